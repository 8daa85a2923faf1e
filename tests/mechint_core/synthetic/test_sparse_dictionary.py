import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from mechint_core.errors import ConfigurationError
from mechint_core.synthetic.sparse_dictionary import sparse_dictionary


# Known answer
@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_sparse_dictionary__features_fire_with_their_probability_and_half_normal_size(correlation):
    """3.2 million Bernoulli(0.03) draws: sd of their share 1e-4; 96,000 half-normals: sd of their mean 2e-3.

    Correlation makes the draws of a sample dependent, which widens the first by less than 10.
    """
    planted = sparse_dictionary(50_000, n_features=64, p_active=0.03, correlation=correlation)

    active = planted.codes[planted.codes > 0]
    assert active.size / planted.codes.size == pytest.approx(0.03, abs=5e-3 if correlation else 5e-4)
    assert active.mean() == pytest.approx(np.sqrt(2 / np.pi), abs=0.01)
    assert planted.l0 == pytest.approx(64 * active.size / planted.codes.size)


def test_sparse_dictionary__correlation_makes_features_fire_together():
    def mean_absolute_correlation(correlation):
        fires = sparse_dictionary(20_000, n_features=32, p_active=0.1, correlation=correlation).codes > 0
        return np.abs(np.corrcoef(fires.T) - np.eye(32)).mean()

    assert mean_absolute_correlation(0.8) > 5 * mean_absolute_correlation(0.0)


def test_sparse_dictionary__noise_has_the_asked_size():
    planted = sparse_dictionary(5000, noise=0.25)

    residual = planted.activations - planted.codes @ planted.dictionary

    assert residual.std() == pytest.approx(0.25, rel=0.01)  # 320,000 draws: relative sd 1.3e-3


# Law
@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 30), st.floats(0, 0.9), st.integers(0, 9))
def test_sparse_dictionary__activations_are_codes_times_unit_directions(n, units, features, correlation, seed):
    sizes = {"n_units": units, "n_features": features, "correlation": correlation, "seed": seed}
    planted, again = sparse_dictionary(n, **sizes), sparse_dictionary(n, **sizes)

    np.testing.assert_allclose(planted.activations, planted.codes @ planted.dictionary, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(planted.dictionary, axis=1), 1, rtol=1e-6)
    assert (planted.codes >= 0).all()
    np.testing.assert_array_equal(planted.activations, again.activations)


def test_sparse_dictionary__more_samples_keep_the_dictionary():
    np.testing.assert_array_equal(sparse_dictionary(10).dictionary, sparse_dictionary(20).dictionary)


# Bad input
@pytest.mark.parametrize("size", ["n_units", "n_features"])
def test_sparse_dictionary__refuses_sizes_below_one(size):
    with pytest.raises(ConfigurationError, match="sizes must be at least 1"):
        sparse_dictionary(10, **{size: 0})


@pytest.mark.parametrize("option", [{"p_active": 0.0}, {"p_active": 1.0}, {"correlation": 1.0}, {"noise": -1.0}])
def test_sparse_dictionary__refuses_impossible_chances(option):
    with pytest.raises(ConfigurationError, match="p_active must be in"):
        sparse_dictionary(10, **option)
