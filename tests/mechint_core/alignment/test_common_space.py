import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from mechint_core.alignment import _shapes
from mechint_core.alignment.common_space import CommonSpaceConfig, CommonSpaceResult, common_space
from mechint_core.errors import ConfigurationError, DegenerateInputError, MemoryBudgetError, ShapeError
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

QUICK = CommonSpaceConfig(n_permutations=0)


def rotation(rng, size):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def group(rng, n_systems=4, n_samples=80, n_units=5, noise=0.6):
    common = rng.normal(size=(n_samples, n_units))
    return [common @ rotation(rng, n_units) + noise * rng.normal(size=common.shape) for _ in range(n_systems)]


# Known answer
@pytest.mark.parametrize(("n_samples", "n_units"), [(60, 5), (14, 30)], ids=["tall", "wide"])
def test_common_space__of_rotated_copies_is_one_point(rng, n_samples, n_units):
    x = rng.normal(size=(n_samples, n_units))
    systems = [(k + 1) * x @ rotation(rng, n_units) + k for k in range(4)]

    found = common_space(systems, config=QUICK)

    aligned = [(each - each.mean(axis=0)) @ turn for each, turn in zip(systems, found.maps, strict=True)]
    sizes = [np.linalg.norm(each) for each in aligned]
    assert found.objective[-1] == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(aligned[0] / sizes[0], aligned[3] / sizes[3], atol=1e-8)
    if n_units == 5:  # fewer samples than units in a half: a rotation found there says little of the other
        assert found.held_out.value == pytest.approx(1, abs=1e-9)
        assert found.converged


def test_common_space__of_more_noise_predicts_less_and_gains_from_turning():
    """Signal 1 and noise s² in 6 of 6 directions: the correlation with 4 others is 1 / sqrt((1 + s²)(1 + s² / 4))."""
    found = common_space(group(generator(2, "noise"), n_systems=5, n_samples=4000, n_units=6, noise=0.7))

    assert found.held_out.value == pytest.approx(1 / np.sqrt(1.49 * (1 + 0.49 / 4)), abs=0.01)
    assert found.gain.low > 0
    assert found.held_out.p_value <= 0.001
    assert "more than as they are" in found.reading()


def test_common_space__leaves_unrelated_systems_at_the_null():
    rng = generator(0, "unrelated")
    found = common_space([rng.normal(size=(100, 6)) for _ in range(4)])

    assert abs(found.held_out.null) < 0.01
    assert found.held_out.low < 0 < found.held_out.high
    assert "not distinguishable" in found.reading()


def test_common_space__has_no_unaligned_score_where_units_differ(rng):
    x = rng.normal(size=(40, 6))
    found = common_space([x, x[:, :4]], config=QUICK)

    assert np.isnan(found.unaligned.value)
    assert np.isnan(found.gain.value)
    assert np.all(found.maps[1, 4:] == 0)


# Oracle
def test_common_space__of_two_systems_is_procrustes(rng):
    """The objective of two at their mean is half of 1 - cos."""
    x, y = group(rng, 2)
    one, other = ((each - each.mean(axis=0)) for each in (x, y))
    one, other = one / np.linalg.norm(one), other / np.linalg.norm(other)

    found = common_space([x, y], config=QUICK)

    assert found.objective[-1] == pytest.approx((1 - np.linalg.norm(one.T @ other, "nuc")) / 2, abs=1e-10)


def test_common_space__equals_its_definition_on_the_rows(rng):
    """Iterated Procrustes on the rows of one half, correlations of each with the mean of the others on the other."""
    systems = group(rng)
    half = _shapes.random_half(80, 0)
    fit, score = ([each[half == which] for each in systems] for which in (0, 1))
    fit, score = ([each - each.mean(axis=0) for each in part] for part in (fit, score))
    size = [np.linalg.norm(each) for each in fit]
    fit, score = ([each / s for each, s in zip(part, size, strict=True)] for part in (fit, score))

    def polar(m):
        left, _, right = np.linalg.svd(m)
        return left @ right

    turns = [polar(each.T @ fit[0]) for each in fit]
    for _ in range(200):
        template = np.mean([each @ turn for each, turn in zip(fit, turns, strict=True)], axis=0)
        turns = [polar(each.T @ template) for each in fit]
    turned = [each @ turn for each, turn in zip(score, turns, strict=True)]
    expected = [
        np.corrcoef(each.ravel(), np.mean([turned[j] for j in range(4) if j != k], axis=0).ravel())[0, 1]
        for k, each in enumerate(turned)
    ]

    found = common_space(systems, config=CommonSpaceConfig(n_permutations=0, tolerance=1e-14, max_turns=500))

    np.testing.assert_allclose(found.score, expected, atol=1e-6)


# Law
@settings(max_examples=12)
@given(seed=st.integers(0, 2**31), n_systems=st.integers(2, 5), noise=st.floats(0, 5))
def test_common_space__never_raises_its_objective(seed, n_systems, noise):
    found = common_space(group(generator(seed, "monotone"), n_systems, n_samples=20, noise=noise), config=QUICK)

    assert np.all(np.diff(found.objective) <= 1e-12)
    assert found.objective.min() >= 0
    assert np.all(np.abs(found.agreement) <= 1 + 1e-12)


@settings(max_examples=6)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-2, 1e2), shift=st.floats(-10, 10))
def test_common_space__has_the_invariances_it_declares(seed, scale, shift):
    """To the accuracy of the search, which starts elsewhere after a rotation."""
    rng, config = generator(seed, "invariance"), CommonSpaceConfig(n_permutations=0, tolerance=1e-12, max_turns=1000)
    systems = group(rng, 3)
    changed = {
        "orthogonal": systems[1] @ rotation(rng, 5),
        "isotropic scaling": scale * systems[1],
        "translation": systems[1] + shift,
    }
    assert set(changed) == set(CommonSpaceResult.invariances)
    before = common_space(systems, config=config).held_out.value
    for other in changed.values():
        after = common_space([systems[0], other, systems[2]], config=config).held_out.value
        assert after == pytest.approx(before, abs=1e-5)


@settings(max_examples=6)
@given(seed=st.integers(0, 2**31), block_rows=st.integers(1, 90), threads=st.integers(1, 3))
def test_common_space__streamed_equals_whole(seed, block_rows, threads):
    systems = [each + 20 for each in group(generator(seed, "chunks"), 3)]
    whole = common_space(systems)
    with pytest.MonkeyPatch.context() as patch, compute(Backend(threads=threads)):
        patch.setattr(_shapes, "BLOCK_ROWS", block_rows)
        streamed = common_space(systems)

    assert streamed.scalars() == pytest.approx(whole.scalars(), rel=1e-8, abs=1e-10)
    np.testing.assert_allclose(streamed.score, whole.score, atol=1e-10)


def test_common_space__same_seed_gives_the_same_bits(rng):
    systems = group(rng)

    assert common_space(systems).scalars() == common_space(systems).scalars()


@pytest.mark.calibration
def test_common_space__p_values_are_uniform_under_the_null():
    """500 groups of unrelated systems; the KS distance of 500 uniform draws passes 0.087 once in 1000."""
    rng, config = generator(3, "null"), CommonSpaceConfig(n_permutations=199)
    decay = 1 / np.arange(1, 5)
    found = [
        common_space([rng.normal(size=(40, 4)) * decay for _ in range(3)], config=config).held_out.p_value
        for _ in range(500)
    ]

    assert stats.kstest(found, "uniform").statistic < 0.087


@pytest.mark.calibration
def test_common_space__interval_covers_the_score_of_its_rotations():
    """Rotations known to be right in the limit: 4 systems of 5 units; 95 ± 3 % of 500 intervals."""
    truth = 1 / np.sqrt(1.36 * (1 + 0.36 / 3))
    found = [
        common_space(group(generator(seed, "cover"), n_samples=1200), config=QUICK).held_out for seed in range(500)
    ]

    assert 0.92 < np.mean([each.low <= truth <= each.high for each in found]) < 0.98


# Bad input
def test_common_space__raises_on_one_system(rng):
    with pytest.raises(ShapeError, match="two or more"):
        common_space([rng.normal(size=(9, 2))])


def test_common_space__raises_on_nan(rng):
    x = rng.normal(size=(9, 2))

    with pytest.raises(DegenerateInputError, match="must be finite"):
        common_space([x, np.where(x == x[2, 1], np.nan, x)])


def test_common_space__raises_on_a_constant_system(rng):
    with pytest.raises(DegenerateInputError, match="must vary"):
        common_space([np.zeros((9, 2)), rng.normal(size=(9, 2))])


def test_common_space__raises_when_the_products_would_not_fit(rng, monkeypatch):
    monkeypatch.setattr(sys.modules[common_space.__module__], "BUDGET_BYTES", 1000)

    with pytest.raises(MemoryBudgetError, match="products of 10 units"):
        common_space(group(rng, 2))


@pytest.mark.parametrize(
    "options",
    [{"max_turns": 0}, {"tolerance": 0.0}, {"n_inference": 7}, {"n_permutations": -1}, {"level": 1.0}],
)
def test_common_space__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        CommonSpaceConfig(**options)
