import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from mechint_core.errors import ConfigurationError
from mechint_core.synthetic.aligned_systems import aligned_systems


# Known answer
def test_aligned_systems__rotate_into_each_other_at_similarity_one():
    pair = aligned_systems(30, 4, similarity=1.0)
    rotation = np.linalg.lstsq(pair.x, pair.y, rcond=None)[0]

    assert rotation @ rotation.T == pytest.approx(np.eye(4), abs=1e-12)
    assert pair.x @ rotation == pytest.approx(pair.y, abs=1e-12)


# Law
@settings(max_examples=20)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_aligned_systems__have_the_planted_covariances_if_exact(seed, similarity):
    pair = aligned_systems(40, 3, similarity=similarity, seed=seed, exact=True)
    both = np.hstack([pair.x, pair.y])
    covariance = both.T @ both / 40

    assert both.mean(axis=0) == pytest.approx(0, abs=1e-12)
    assert np.diag(covariance) == pytest.approx(1, abs=1e-12)
    assert np.sum(covariance[:3, 3:] ** 2) == pytest.approx(3 * similarity, abs=1e-12)


# Bad input
def test_aligned_systems__raise_on_an_impossible_similarity():
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        aligned_systems(30, 4, similarity=1.1)


def test_aligned_systems__raise_on_too_few_rows_to_be_exact():
    with pytest.raises(ConfigurationError, match="more than 8 rows"):
        aligned_systems(8, 4, similarity=0.5, exact=True)
