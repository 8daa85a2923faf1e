import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from mechint_core.alignment import ExplainableVarianceConfig, ExplainableVarianceResult, explainable_variance
from mechint_core.alignment._explainable import lengthened, noise_ceiling_of
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

QUICK = ExplainableVarianceConfig(n_permutations=0, n_bootstrap=0, n_splits=4)


def recorded(rng, n_repetitions, n_conditions, n_channels, *, signal=1.0, noise=1.0):
    """Responses of known signal and noise power."""
    expected = rng.normal(size=(n_conditions, n_channels)) * np.sqrt(signal)
    return expected + rng.normal(size=(n_repetitions, n_conditions, n_channels)) * np.sqrt(noise)


# Known answer
def test_explainable_variance__of_noiseless_responses_is_one(rng):
    once = rng.normal(size=(1, 20, 3))

    found = explainable_variance(np.repeat(once, 4, axis=0), config=QUICK)

    np.testing.assert_allclose([found.ceiling, found.split_half, found.single_ceiling], 1, atol=1e-12)


def test_explainable_variance__is_that_of_signal_and_noise():
    """4000 conditions: the standard error of the ceiling is about 0.01, and 30 channels share it."""
    found = explainable_variance(recorded(generator(0, "known"), 3, 4000, 30, signal=0.5, noise=2.0), config=QUICK)

    assert found.explainable.value == pytest.approx(0.5 / (0.5 + 2 / 3), abs=0.01)
    assert found.reliability.value == pytest.approx(0.5 / (0.5 + 2 / 3), abs=0.015)
    assert found.single.value == pytest.approx(0.2, abs=0.01)
    assert np.median(found.ncsnr) == pytest.approx(0.5, abs=0.01)
    np.testing.assert_allclose(found.correlation_ceiling, np.sqrt(found.ceiling))


def test_explainable_variance__is_the_r2_of_the_true_responses():
    """No model does better than the expected responses themselves."""
    rng = generator(1, "truth")
    expected = rng.normal(size=(5000, 1))
    responses = expected + 1.5 * rng.normal(size=(4, 5000, 1))
    mean = responses.mean(axis=0)

    r2 = 1 - np.mean((mean - expected) ** 2) / np.var(mean)

    assert explainable_variance(responses, config=QUICK).ceiling[0] == pytest.approx(r2, abs=0.03)


def test_explainable_variance__missing_repetitions_leave_it_unbiased():
    """Over 60 experiments in which half of the repetitions are missing at random, the mean signal power is 1."""
    rng, powers = generator(2, "missing"), []
    for _ in range(60):
        responses = recorded(rng, 6, 60, 2, noise=3.0)
        responses[rng.random(responses.shape) < 0.5] = np.nan
        powers.append(explainable_variance(responses, config=QUICK).signal_power)

    assert np.mean(powers) == pytest.approx(1, abs=4 * np.std(powers) / np.sqrt(120))


def test_explainable_variance__counts_what_is_missing(rng):
    responses = recorded(rng, 3, 30, 4)
    responses[:2, 5, 1] = np.nan
    responses[:, :, 3] = 0.1

    found = explainable_variance(responses, config=QUICK)

    assert (found.n_missing, found.n_dropped, found.n_constant) == (2, 1, 1)
    assert np.isnan(found.ceiling[3])
    kept = np.delete(np.arange(30), 5)
    np.testing.assert_allclose(found.ceiling[1], noise_ceiling_of(responses[:, kept, 1:2])[0], atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_lengthened__undoes_the_halving(n):
    """r of halves is S / (S + N / h), and that of all n repetitions S / (S + N / n)."""
    signal, noise, half = 0.7, 1.9, n // 2

    found = lengthened(np.array([[signal / (signal + noise / half)]]), np.full((5, 1), float(n)))

    assert found[0, 0] == pytest.approx(signal / (signal + noise / n), abs=1e-12)


# Oracle
def test_explainable_variance__equals_the_analysis_of_variance(rng):
    """With complete data 1 / F of a one-way analysis of variance is the share of noise, times 1 + 2 / 22."""
    responses = recorded(rng, 4, 25, 3)
    f = [stats.f_oneway(*responses[:, :, channel].T).statistic for channel in range(3)]

    np.testing.assert_allclose(
        explainable_variance(responses, config=QUICK).ceiling, 1 - 22 / 24 / np.array(f), atol=1e-12
    )


def test_explainable_variance__two_repetitions_have_one_split(rng):
    responses = recorded(rng, 2, 40, 1)
    halves = explainable_variance(responses, config=QUICK).split_half[0]
    swapped = []
    for seed in range(200):  # which of the two comes first is drawn per condition
        flip = generator(seed, "flip").random(40) < 0.5
        first, second = (np.where(flip, responses[i, :, 0], responses[1 - i, :, 0]) for i in (0, 1))
        r = np.corrcoef(first, second)[0, 1]
        swapped.append(2 * r / (1 + r))

    assert halves == pytest.approx(np.mean(swapped), abs=0.02)


# Law
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_explainable_variance__has_the_invariances_it_declares(seed, scale, shift):
    rng = generator(seed, "invariance")
    responses = recorded(rng, 4, 12, 3)
    changed = {
        "channel scaling": responses * np.array([scale, 1.0, -scale]),
        "channel offset": responses + shift,
        "repetition permutation": responses[rng.permutation(4)],
    }
    assert set(changed) == set(ExplainableVarianceResult.invariances)
    expected = noise_ceiling_of(responses)
    for each in changed.values():
        found = explainable_variance(each, config=QUICK)
        np.testing.assert_allclose(found.ceiling, expected, rtol=1e-8, atol=1e-8)
        assert np.all(found.ceiling <= 1)
        assert np.all(np.abs(found.split_half) <= 1 + 1e-12)


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_explainable_variance__same_seed_gives_the_same_bits_for_any_number_of_workers(rng, missing):
    responses = recorded(rng, 4, 20, 3)
    responses[rng.random(responses.shape) < missing] = np.nan
    config = ExplainableVarianceConfig(n_permutations=30, n_bootstrap=30, n_splits=5)
    found = []
    for threads in (1, 3):
        with compute(Backend(threads=threads)):
            found.append(explainable_variance(responses, config=config))

    np.testing.assert_equal(found[0].scalars(), found[1].scalars())
    np.testing.assert_equal(found[0].arrays(), found[1].arrays())


def test_explainable_variance__null_does_not_depend_on_how_missing_is_told(rng):
    """A repetition that no channel has is one that was never made."""
    responses = recorded(rng, 3, 20, 2)
    padded = np.concatenate([responses, np.full((1, 20, 2), np.nan)])

    first, second = (explainable_variance(each, config=QUICK) for each in (responses, padded))

    np.testing.assert_allclose(first.ceiling, second.ceiling, atol=1e-12)


def test_explainable_variance__reading_says_when_nothing_repeats(rng):
    assert "not distinguishable" in explainable_variance(rng.normal(size=(3, 40, 3))).reading()
    assert "5 of 5 channels" in explainable_variance(recorded(rng, 4, 80, 5)).reading()
    assert "no null was drawn" in explainable_variance(recorded(rng, 4, 80, 5), config=QUICK).reading()


@pytest.mark.calibration
@pytest.mark.parametrize(("n_repetitions", "n_conditions", "signal"), [(4, 100, 1.0), (3, 200, 0.5)])
def test_explainable_variance__intervals_cover_what_was_planted(n_repetitions, n_conditions, signal):
    """95 ± 3 % of 600 intervals, of the ceiling and of one repetition."""
    config = ExplainableVarianceConfig(n_permutations=0, n_splits=1)
    covered = []
    for seed in range(600):
        responses = recorded(generator(seed, "coverage"), n_repetitions, n_conditions, 1, signal=signal)
        found = explainable_variance(responses, config=config)
        truths = (signal / (signal + 1 / n_repetitions), signal / (signal + 1))
        pairs = zip((found.explainable, found.single), truths, strict=True)
        covered.append([each.low <= truth <= each.high for each, truth in pairs])

    assert np.all(np.abs(np.mean(covered, axis=0) - 0.95) < 0.03)


@pytest.mark.calibration
@pytest.mark.thorough
@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_explainable_variance__p_values_are_uniform_under_the_null(missing):
    """600 recordings of noise; the KS distance of 600 uniform draws passes 0.08 once in 1000; 1/100 is the grid."""
    config, ps = ExplainableVarianceConfig(n_permutations=99, n_bootstrap=0, n_splits=1), []
    for seed in range(600):
        rng = generator(seed, "null")
        responses = rng.gamma(2.0, size=(4, 25, 2))
        responses[rng.random(responses.shape) < missing] = np.nan
        found = explainable_variance(responses, config=config)
        ps.append([found.explainable.p_value, found.p_values[0], found.reliability.p_value])

    assert all(stats.kstest(each, "uniform").statistic < 0.09 for each in np.transpose(ps))


# Bad input
@pytest.mark.parametrize("shape", [(1, 10, 2), (3, 3, 2), (3, 10, 0)])
def test_explainable_variance__raises_on_too_little(shape):
    with pytest.raises(ShapeError, match="at least 2 repetitions and 4 conditions"):
        explainable_variance(np.zeros(shape))


def test_explainable_variance__raises_on_infinity(rng):
    responses = recorded(rng, 3, 10, 2)
    responses[1, 2, 0] = np.inf

    with pytest.raises(DegenerateInputError, match="Got infinity"):
        explainable_variance(responses)


def test_explainable_variance__raises_when_no_channel_varies():
    with pytest.raises(DegenerateInputError, match="Got none that does"):
        explainable_variance(np.full((3, 10, 2), 0.1))


@pytest.mark.parametrize("options", [{"n_splits": 0}, {"n_bootstrap": -1}, {"n_permutations": -1}, {"level": 1.0}])
def test_explainable_variance__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))}.* must be"):
        ExplainableVarianceConfig(**options)
