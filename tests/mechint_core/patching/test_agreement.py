"""Agreement of estimated with exact effects."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import pearsonr, spearmanr

from mechint_core.patching import PairedConfig, PairScores, agreement_of, choose_to_verify, recovery_of, verify
from mechint_core.random import generator


def agreement(estimated, exact, sampled=None, rounding=0.0, seed=0):
    sampled = np.zeros(len(exact), dtype=bool) if sampled is None else sampled
    return agreement_of(estimated, exact, sampled=sampled, rounding=rounding, n_draws=200, level=0.95, seed=seed)


def effects(n=12, seed=0):
    draws = generator(seed, "effects")
    return draws.normal(size=(n, 1)) + 0.3 * draws.normal(size=(n, 30))


# Known answer
def test_agreement__of_equal_effects_is_perfect():
    exact = effects()
    found = agreement(exact, exact)
    for each, wanted in ((found.correlation, 1), (found.rank_correlation, 1), (found.signs, 1), (found.error, 0)):
        assert each.value == pytest.approx(wanted, abs=1e-12)
        assert each.low == pytest.approx(wanted, abs=1e-12)
        assert each.p_value < 0.05
    assert found.trusted


def test_agreement__of_estimates_that_say_nothing_is_an_error_of_1():
    found = agreement(np.zeros((12, 30)), effects())
    assert found.error.value == 1
    assert found.signs.value == 0
    assert np.isnan(found.correlation.value)
    assert not found.trusted


def test_agreement__of_twice_the_effects_correlates_but_is_not_trusted():
    found = agreement(2.0 * effects(), effects())
    assert found.correlation.value == pytest.approx(1)
    assert found.error.value == pytest.approx(1)
    assert not found.trusted


def test_agreement__of_two_parts_has_no_correlation():
    found = agreement(effects(2), effects(2))
    assert np.isnan(found.correlation.value)
    assert np.isnan(found.rank_correlation.value)
    assert found.trusted  # their error is 0


def test_agreement__of_equal_effects_of_which_one_is_missed_is_not_trusted():
    """Three parts that carry everything, one of them saturated: its estimate is a fifth of the truth."""
    exact = np.ones((3, 30))
    found = agreement(exact * np.array([[1.0], [1.0], [0.2]]), exact)
    assert np.isnan(found.correlation.value)
    assert found.error.value == pytest.approx(0.8 / np.sqrt(3))
    assert not found.trusted


def test_agreement__of_no_parts_is_nan_and_not_trusted():
    found = agreement(np.empty((0, 30)), np.empty((0, 30)))
    assert np.isnan(found.error.value)
    assert not found.trusted


def test_agreement__signs_of_dead_parts_agree_up_to_rounding():
    exact, estimated = effects(6), effects(6)
    exact[3], estimated[3] = 1e-9, -1e-9
    assert agreement(estimated, exact, rounding=1e-6).signs.value == 1
    assert agreement(estimated, exact).signs.value == pytest.approx(5 / 6)


def estimates(n_parts=9, n_pairs=20):
    """Scores that part k moves by 0.1 k on average, either way."""
    draws = generator(0, "estimates")
    clean, corrupted = draws.normal(3, 0.1, n_pairs), draws.normal(0, 0.1, n_pairs)
    sizes = 0.1 * np.arange(n_parts) * np.array([-1.0, 1.0])[np.arange(n_parts) % 2]
    scores = PairScores(clean, corrupted, corrupted + sizes[:, None] * (clean - corrupted))
    return scores, recovery_of(scores, noising=False, n_draws=50, level=0.95, seed=0)


def test_choose_to_verify__takes_half_the_strongest_and_half_of_the_others_at_random():
    _, found = estimates()
    chosen = [choose_to_verify(found, 5, generator(seed, "chosen")) for seed in range(20)]
    assert all(each[:3].tolist() == [8, 7, 6] for each in chosen)
    assert all(len(set(each.tolist())) == 5 for each in chosen)
    assert set(np.concatenate(chosen)[3:].tolist()) == set(range(9))
    assert sorted(choose_to_verify(found, 50, generator(0, "chosen"))) == list(range(9))
    assert len(choose_to_verify(found, 0, generator(0, "chosen"))) == 0


def test_choose_to_verify__takes_none_where_nothing_is_defined():
    same = PairScores(np.ones(9), np.ones(9), np.ones((4, 9)))
    undefined = recovery_of(same, noising=False, n_draws=20, level=0.95, seed=0)
    assert len(choose_to_verify(undefined, 4, generator(0, "chosen"))) == 0


@pytest.mark.parametrize("noising", [False, True])
def test_verify__puts_estimated_and_exact_shares_side_by_side(noising):
    scores, _ = estimates()
    if noising:
        scores = PairScores(scores.clean, scores.corrupted, scores.clean + scores.corrupted - scores.patched)
    found = recovery_of(scores, noising=noising, n_draws=50, level=0.95, seed=0)
    parts = choose_to_verify(found, 6, generator(0, "chosen"))

    base = scores.clean if noising else scores.corrupted
    exact = base + 2 * (scores.patched[parts] - base)  # twice what was estimated
    fields = verify(scores, found, parts, exact, noising=noising, config=PairedConfig(metric="kl", n_draws=50)).fields(
        [f"part {k}" for k in range(9)]
    )

    np.testing.assert_allclose(fields["verified_points"], np.outer(found.value[parts], [1, 2]), atol=1e-12)
    assert fields["verified"] == tuple(f"part {k}" for k in parts)
    assert fields["relative_error"].value == pytest.approx(0.5)
    assert fields["correlation"].value == pytest.approx(1)


# Oracle
def test_agreement__correlations_equal_scipys():
    estimated, exact = effects(seed=1) + effects(), effects()
    found = agreement(estimated, exact)
    means = estimated.mean(axis=1), exact.mean(axis=1)
    assert found.correlation.value == pytest.approx(pearsonr(*means).statistic, abs=1e-12)
    assert found.rank_correlation.value == pytest.approx(spearmanr(*means).statistic, abs=1e-12)


# Law
@settings(max_examples=20)
@given(st.floats(0.01, 100), st.integers(0, 100))
def test_agreement__does_not_depend_on_the_unit_of_the_effects(scale, seed):
    estimated, exact = effects(seed=seed + 1) + effects(seed=seed), effects(seed=seed)
    one, other = agreement(estimated, exact), agreement(scale * estimated, scale * exact)
    for name in ("correlation", "rank_correlation", "signs", "error"):
        assert getattr(other, name).value == pytest.approx(getattr(one, name).value, abs=1e-9)


def test_agreement__only_sampled_parts_add_to_the_uncertainty():
    """Effects without spread over pairs: all of the interval's width comes from the parts."""
    exact = np.repeat(effects().mean(axis=1, keepdims=True), 30, axis=1)
    estimated = exact + np.repeat(effects(seed=1).mean(axis=1, keepdims=True), 30, axis=1)
    certain, drawn = (agreement(estimated, exact, sampled=np.full(12, sampled)) for sampled in (False, True))
    assert certain.error.high - certain.error.low == pytest.approx(0, abs=1e-9)
    assert drawn.error.high - drawn.error.low > 0.1


def test_agreement__of_unrelated_effects_is_at_the_nominal_level():
    """300 draws: the share of p <= 0.05 is within 0.05 +- 3.3 standard errors of 0.0126."""
    draws = generator(0, "unrelated")
    p = []
    for seed in range(300):
        one, other = draws.normal(size=(2, 10, 5))
        p.append(agreement(one, other, seed=seed).correlation.p_value)
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.092
