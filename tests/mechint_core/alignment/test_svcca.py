import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from mechint_core.alignment import SVCCAConfig, SVCCAResult, svcca
from mechint_core.errors import ConfigurationError, DegenerateInputError, MemoryBudgetError, ShapeError
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

UNTESTED = SVCCAConfig(n_permutations=0)


def related(seed, n, p, q, correlations):
    """Rows of a joint Gaussian with these canonical correlations, every direction of variance 1."""
    rng = generator(seed, "related")
    x, y = rng.normal(size=(n, p)), rng.normal(size=(n, q))
    for k, r in enumerate(correlations):
        y[:, k] = r * x[:, k] + np.sqrt(1 - r * r) * y[:, k]
    return x, y


def by_hand(x, y, share):
    """Raghu et al.: singular vectors that carry the share, then canonical correlation by QR."""
    bases = []
    for each in (x, y):
        left, values, _ = np.linalg.svd(each - each.mean(axis=0), full_matrices=False)
        carried = np.cumsum(values**2) / np.sum(values**2)
        bases.append(left[:, : int(np.sum(carried < share)) + 1])
    return np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)


# Known answer
def test_svcca__of_a_rotated_copy_is_one(rng):
    x = rng.normal(size=(60, 5)) * [5, 4, 3, 2, 1]

    found = svcca(x, 2 * x @ np.linalg.qr(rng.normal(size=(5, 5)))[0] - 7, config=UNTESTED)

    assert found.similarity.value == pytest.approx(1, abs=1e-10)
    assert "no relabelling" in found.reading()


def test_svcca__keeps_the_directions_that_carry_the_variance(rng):
    """Orthogonal columns with 90, 9 and 1 % of the variance."""
    columns = np.linalg.qr(rng.normal(size=(60, 3)) - rng.normal(size=(60, 3)).mean(axis=0))[0]
    columns = np.linalg.qr(columns - columns.mean(axis=0))[0] * np.sqrt([0.90, 0.09, 0.01])

    kept = [
        svcca(columns, columns, config=SVCCAConfig(n_permutations=0, variance_kept=v)).dimension_x
        for v in (0.8, 0.95, 1.0)
    ]

    assert kept == [1, 2, 3]


def test_svcca__null_is_what_unrelated_systems_give_in_so_few_samples():
    """More directions than samples: correlations near 1 for anything, and the null says so."""
    rng = generator(0, "few")

    found = svcca(rng.normal(size=(50, 100)), rng.normal(size=(50, 80)))

    assert found.saturated
    assert found.similarity.value > 0.9
    assert found.similarity.null == pytest.approx(found.similarity.value, abs=0.02)
    assert found.similarity.p_value > 0.05
    assert np.isnan(found.similarity.low)
    assert "not distinguishable" in found.reading()


# Oracle
@pytest.mark.parametrize(("n", "p", "q"), [(80, 6, 4), (30, 50, 8)], ids=["streamed", "whole"])
@pytest.mark.parametrize("share", [0.7, 0.99])
def test_svcca__equals_the_definition(n, p, q, share):
    x, y = related(1, n, p, q, (0.8, 0.4))
    x = x * np.linspace(2, 0.2, p) + 3

    found = svcca(x, y, config=SVCCAConfig(n_permutations=0, variance_kept=share))

    assert found.correlations == pytest.approx(by_hand(x, y, share), abs=1e-10)
    assert found.similarity.value == pytest.approx(by_hand(x, y, share).mean(), abs=1e-10)


# Law
@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_svcca__has_the_invariances_it_declares(seed, scale, shift):
    rng = generator(seed, "invariance")
    x, y = rng.normal(size=(40, 5)) * [4, 3, 2, 1, 0.1], rng.normal(size=(40, 3))
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    expected = svcca(x, y, config=UNTESTED).similarity.value
    changed = {"orthogonal": x @ turn, "isotropic scaling": scale * x, "translation": x + shift}
    assert set(changed) == set(SVCCAResult.invariances)
    for other in changed.values():
        assert svcca(other, y, config=UNTESTED).similarity.value == pytest.approx(expected, abs=1e-9)
        assert svcca(y, other, config=UNTESTED).similarity.value == pytest.approx(expected, abs=1e-9)
    assert 0 <= expected <= 1


@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), block_bytes=st.integers(64, 3000), threads=st.integers(1, 3))
def test_svcca__streamed_equals_whole(seed, block_bytes, threads):
    x, y = related(seed, 60, 4, 3, (0.7,))
    config = SVCCAConfig(n_permutations=9)
    whole = svcca(x + 30, y, config=config)
    with pytest.MonkeyPatch.context() as patch, compute(Backend(threads=threads)):
        patch.setattr("mechint_core.parallel.BLOCK_BYTES", block_bytes)
        streamed = svcca(x + 30, y, config=config)

    assert streamed.scalars() == pytest.approx(whole.scalars(), rel=1e-8, abs=1e-10)


def test_svcca__same_seed_gives_the_same_bits_for_any_number_of_workers():
    x, y = related(2, 90, 4, 3, (0.5,))
    found = []
    for threads in (1, 3):
        with compute(Backend(threads=threads)):
            found.append(svcca(x, y, config=SVCCAConfig(n_permutations=30)).scalars())

    assert found[0] == found[1]


def test_svcca__null_of_some_samples_is_scaled_to_all():
    """Relabelled correlations fall with the root of the number of samples: 10 % here, from 40 draws."""
    x, y = related(3, 1000, 6, 5, ())
    some, every = (svcca(x, y, config=SVCCAConfig(n_permutations=40, n_inference=m)).similarity for m in (250, 1000))

    assert some.null == pytest.approx(every.null, rel=0.1)


@pytest.mark.calibration
def test_svcca__p_values_are_uniform_under_the_null():
    """500 unrelated pairs; the KS distance of 500 uniform draws passes 0.087 once in 1000."""
    config = SVCCAConfig(n_permutations=99)
    found = [svcca(*related(seed, 40, 5, 4, ()), config=config).similarity.p_value for seed in range(500)]

    assert stats.kstest(found, "uniform").statistic < 0.087


@pytest.mark.calibration
@pytest.mark.parametrize("n", [100, 300])
def test_svcca__interval_covers_the_population_value(n):
    """95 ± 3 % of 1000 intervals; the binomial standard error is 0.7 %."""
    config = SVCCAConfig(n_permutations=0, variance_kept=1.0)
    found = [svcca(*related(seed, n, 5, 4, (0.8, 0.6, 0.4, 0.3)), config=config).similarity for seed in range(1000)]

    assert 0.92 < np.mean([each.low <= 0.525 <= each.high for each in found]) < 0.98


# Bad input
def test_svcca__raises_on_too_few_samples(rng):
    with pytest.raises(ShapeError, match=r"at least 2 samples for each of 10 groups. Got 19"):
        svcca(rng.normal(size=(19, 2)), rng.normal(size=(19, 2)))


def test_svcca__raises_on_unequal_samples(rng, without_shape_checks):
    with pytest.raises(ShapeError, match="same samples"):
        svcca(rng.normal(size=(30, 2)), rng.normal(size=(29, 2)))


def test_svcca__raises_on_nan_and_on_a_constant_system(rng):
    x = rng.normal(size=(30, 2))

    with pytest.raises(DegenerateInputError, match="y must be finite"):
        svcca(x, np.where(x == x[2, 1], np.nan, x))
    with pytest.raises(DegenerateInputError, match="x must vary"):
        svcca(np.full((30, 2), 0.1), x)


def test_svcca__raises_where_rows_do_not_fit_in_memory(rng):
    with pytest.raises(MemoryBudgetError, match="x must fit in memory_budget"):
        svcca(rng.normal(size=(30, 40)), rng.normal(size=(30, 2)), config=SVCCAConfig(memory_budget=1000))


@pytest.mark.parametrize(
    "options",
    [{"variance_kept": 0.0}, {"variance_kept": 1.1}, {"n_groups": 2}, {"n_permutations": -1}, {"level": 0.0}],
)
def test_svcca__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))} must be"):
        SVCCAConfig(**options)
