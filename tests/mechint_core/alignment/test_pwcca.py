import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from mechint_core.alignment import PWCCAConfig, PWCCAResult, pwcca
from mechint_core.errors import ConfigurationError, DegenerateInputError, MemoryBudgetError, ShapeError
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

UNTESTED = PWCCAConfig(n_permutations=0)


def related(seed, n, p, q, correlations):
    """Rows of a joint Gaussian with these canonical correlations, every direction of variance 1."""
    rng = generator(seed, "related")
    x, y = rng.normal(size=(n, p)), rng.normal(size=(n, q))
    for k, r in enumerate(correlations):
        y[:, k] = r * x[:, k] + np.sqrt(1 - r * r) * y[:, k]
    return x, y


def by_hand(x, y):
    """Morcos et al., on the rows: variates by QR, weights by their products with the units of the first system."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    qx, qy = np.linalg.qr(x)[0], np.linalg.qr(y)[0]
    left, values, _ = np.linalg.svd(qx.T @ qy, full_matrices=False)
    weights = np.abs((qx @ left).T @ x).sum(axis=1)
    return float(weights @ values / weights.sum())


def values(x, y, config=UNTESTED):
    found = pwcca(x, y, config=config)
    return found.similarity_x.value, found.similarity_y.value


# Known answer
def test_pwcca__of_a_linear_copy_is_one(rng):
    x = rng.normal(size=(60, 4))

    assert values(x, x @ rng.normal(size=(4, 6))) == pytest.approx((1, 1), abs=1e-7)


def test_pwcca__weighs_directions_by_what_units_follow_them():
    """Three units follow the first direction and one the second: shares 3/4 and 1/4 of correlations 1 and 1/2."""
    rng = generator(0, "weights")
    a, b, c = np.linalg.qr(np.column_stack([np.ones(80), rng.normal(size=(80, 3))]))[0].T[1:]
    x, y = np.column_stack([a, a, a, b]), np.column_stack([a, b / 2 + np.sqrt(3) / 2 * c])

    found = pwcca(x, y, config=UNTESTED)

    assert (found.rank_x, found.rank_y) == (2, 2)
    assert found.correlations == pytest.approx([1, 1 / 2], abs=1e-9)
    assert found.shares_x == pytest.approx([3 / 4, 1 / 4], abs=1e-9)
    assert found.similarity_x.value == pytest.approx(7 / 8, abs=1e-9)
    assert found.similarity_y.value == pytest.approx(3 / 4, abs=1e-9)


def test_pwcca__null_is_what_unrelated_systems_give_in_so_few_samples(rng):
    found = pwcca(rng.normal(size=(50, 100)), rng.normal(size=(50, 80)), config=PWCCAConfig(n_permutations=20))

    assert found.saturated
    assert found.similarity_x.null == pytest.approx(1)
    assert found.similarity_x.p_value == 1
    assert np.isnan(found.similarity_x.low)
    assert "not distinguishable" in found.reading()


# Oracle
def test_pwcca__equals_the_definition_in_both_directions():
    x, y = related(1, 80, 6, 4, (0.8, 0.4))
    x, y = x @ generator(1, "mix").normal(size=(6, 6)) + 3, y * [3, 1, 1, 0.1]

    assert values(x, y)[1] == pytest.approx(by_hand(y, x), abs=1e-10)
    assert values(y, x)[0] == pytest.approx(by_hand(y, x), abs=1e-10)


def test_pwcca__of_an_ill_conditioned_system_equals_the_definition():
    """A condition of 1e5 in the data is 1e10 in its covariance, so the rows are decomposed."""
    x, y = related(2, 80, 3, 4, (0.8, 0.4))
    turn = np.linalg.qr(generator(2, "turn").normal(size=(3, 3)))[0]

    assert values(x * [1, 1e-2, 1e-5] @ turn, y)[0] == pytest.approx(by_hand(x * [1, 1e-2, 1e-5] @ turn, y), abs=1e-7)


# Law
@settings(max_examples=6)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_pwcca__has_the_invariances_it_declares(seed, scale, shift):
    rng = generator(seed, "invariance")
    x, y = rng.normal(size=(40, 4)), rng.normal(size=(40, 3))
    changed = {"permutation": y[:, rng.permutation(3)], "isotropic scaling": scale * y, "translation": y + shift}
    assert set(changed) == set(PWCCAResult.invariances)
    for other in changed.values():
        assert values(x, other) == pytest.approx(values(x, y), abs=1e-9)
    mixed = y @ (np.eye(3) + 0.4 * np.linalg.qr(rng.normal(size=(3, 3)))[0])
    assert values(x, mixed)[0] == pytest.approx(values(x, y)[0], abs=1e-9)
    assert values(x, y) == pytest.approx(values(y, x)[::-1], abs=1e-9)
    assert all(0 <= each <= 1 for each in values(x, y))


@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), block_bytes=st.integers(64, 3000), threads=st.integers(1, 3))
def test_pwcca__streamed_equals_whole(seed, block_bytes, threads):
    x, y = related(seed, 60, 4, 3, (0.7,))
    config = PWCCAConfig(n_permutations=9)
    whole = pwcca(x + 30, y, config=config)
    with pytest.MonkeyPatch.context() as patch, compute(Backend(threads=threads)):
        patch.setattr("mechint_core.parallel.BLOCK_BYTES", block_bytes)
        streamed = pwcca(x + 30, y, config=config)

    assert streamed.scalars() == pytest.approx(whole.scalars(), rel=1e-8, abs=1e-10)


def test_pwcca__same_seed_gives_the_same_bits_for_any_number_of_workers():
    x, y = related(3, 90, 4, 3, (0.5,))
    found = []
    for threads in (1, 3):
        with compute(Backend(threads=threads)):
            found.append(pwcca(x, y, config=PWCCAConfig(n_permutations=30)).scalars())

    assert found[0] == found[1]


@pytest.mark.calibration
def test_pwcca__p_values_are_uniform_under_the_null():
    """500 unrelated pairs; the KS distance of 500 uniform draws passes 0.087 once in 1000."""
    config = PWCCAConfig(n_permutations=99)
    found = [pwcca(*related(seed, 40, 5, 4, ()), config=config).similarity_x.p_value for seed in range(500)]

    assert stats.kstest(found, "uniform").statistic < 0.087


@pytest.mark.calibration
def test_pwcca__interval_covers_the_population_value():
    """The population value is that of 200,000 samples, to 0.002; 95 ± 3 % of 1000 intervals."""
    mixing = generator(4, "mix").normal(size=(5, 5))
    x, y = related(0, 200_000, 5, 4, (0.8, 0.6, 0.4, 0.2))
    population = by_hand(x @ mixing, y)
    found = []
    for seed in range(1, 1001):
        x, y = related(seed, 300, 5, 4, (0.8, 0.6, 0.4, 0.2))
        found.append(pwcca(x @ mixing, y, config=UNTESTED).similarity_x)

    assert 0.92 < np.mean([each.low <= population <= each.high for each in found]) < 0.98


# Bad input
def test_pwcca__raises_on_too_few_samples(rng):
    with pytest.raises(ShapeError, match=r"at least 2 samples for each of 10 groups. Got 19"):
        pwcca(rng.normal(size=(19, 2)), rng.normal(size=(19, 2)))


def test_pwcca__raises_on_unequal_samples(rng, without_shape_checks):
    with pytest.raises(ShapeError, match="same samples"):
        pwcca(rng.normal(size=(30, 2)), rng.normal(size=(29, 2)))


def test_pwcca__raises_on_nan_and_on_a_constant_system(rng):
    x = rng.normal(size=(30, 2))

    with pytest.raises(DegenerateInputError, match="y must be finite"):
        pwcca(x, np.where(x == x[2, 1], np.nan, x))
    with pytest.raises(DegenerateInputError, match="x must vary"):
        pwcca(np.full((30, 2), 0.1), x)


def test_pwcca__raises_where_rows_do_not_fit_in_memory(rng):
    with pytest.raises(MemoryBudgetError, match="x must fit in memory_budget"):
        pwcca(rng.normal(size=(30, 40)), rng.normal(size=(30, 2)), config=PWCCAConfig(memory_budget=1000))


@pytest.mark.parametrize("options", [{"n_groups": 2}, {"n_permutations": -1}, {"level": 0.0}])
def test_pwcca__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))} must be"):
        PWCCAConfig(**options)
