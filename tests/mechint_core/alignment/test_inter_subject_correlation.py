import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from mechint_core.alignment.inter_subject_correlation import (
    InterSubjectCorrelationConfig,
    InterSubjectCorrelationResult,
    inter_subject_correlation,
)
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

QUICK = InterSubjectCorrelationConfig(n_bootstrap=0, n_null=0)
both_surrogates = pytest.mark.parametrize("surrogate", ["circular shift", "phase"])


def recordings(rng, n_subjects=8, n_samples=60, noise=(1.0, 2.0, 0.5)):
    """One common course per channel, and noise of its own in each subject."""
    common = rng.normal(size=(n_samples, len(noise)))
    return common + np.asarray(noise) * rng.normal(size=(n_subjects, n_samples, len(noise)))


# Known answer
def test_inter_subject_correlation__of_rescaled_copies_is_one(rng):
    wave = rng.normal(size=(40, 2))
    found = inter_subject_correlation(np.stack([wave, 2 * wave + 1, 5 * wave - 3]))

    assert (found.leave_one_out.value, found.pairwise.value) == pytest.approx((1, 1), abs=1e-9)
    assert found.n_discovered == 2


def test_inter_subject_correlation__is_that_of_the_planted_noise():
    """Signal 1, noise s² in each of m subjects: 1 / (1 + s²) for a pair, and 1 / sqrt((1 + s²)(1 + s² / (m - 1)))."""
    found = inter_subject_correlation(recordings(generator(1, "planted"), 8, 20_000, (1.0, 2.0)), config=QUICK)

    assert found.pairwise.value == pytest.approx((1 / 2 + 1 / 5) / 2, abs=0.01)
    expected = [1 / np.sqrt((1 + s) * (1 + s / 7)) for s in (1.0, 4.0)]
    assert found.correlation == pytest.approx(expected, abs=0.01)


def test_inter_subject_correlation__discovers_the_channels_that_share_something():
    rng = generator(2, "channels")
    x = recordings(rng, 12, 100, (1.0, 1.0, 1.0, 1.0))
    x[:, :, 2:] = rng.normal(size=(12, 100, 2))

    found = inter_subject_correlation(x)

    assert (found.q_value <= 0.05).tolist() == [True, True, False, False]
    assert found.n_discovered == 2
    assert "2 of 4 channels" in found.reading()


def test_inter_subject_correlation__of_unrelated_subjects_is_at_the_null(rng):
    found = inter_subject_correlation(rng.normal(size=(8, 60, 3)))

    assert found.leave_one_out.p_value > 0.05
    assert "not distinguishable" in found.reading()


def test_inter_subject_correlation__leaves_a_silent_channel_out(rng):
    x = recordings(rng)
    x[2, :, 1] = 4.0
    found, without = (inter_subject_correlation(each, config=QUICK) for each in (x, x[:, :, [0, 2]]))

    assert found.n_silent_channels == 1
    assert np.isnan(found.correlation[1])
    assert found.leave_one_out.value == pytest.approx(without.leave_one_out.value, abs=1e-12)


# Oracle
@pytest.mark.parametrize("standardised", [True, False])
def test_inter_subject_correlation__equals_correlations_with_the_mean_of_the_others(rng, standardised):
    """numpy's corrcoef, subject by subject, as in the tutorial of Nastase et al."""
    x = recordings(rng) * rng.uniform(0.5, 4, size=(8, 1, 1))
    courses = stats.zscore(x, axis=1) if standardised else x
    expected = [
        [np.corrcoef(courses[s, :, c], np.delete(courses, s, 0)[:, :, c].mean(axis=0))[0, 1] for c in range(3)]
        for s in range(8)
    ]
    pairs = [np.corrcoef(x[:, :, c])[np.triu_indices(8, 1)].mean() for c in range(3)]
    config = InterSubjectCorrelationConfig(standardised=standardised, n_bootstrap=0, n_null=0)

    found = inter_subject_correlation(x, config=config)

    np.testing.assert_allclose(found.correlation, np.mean(expected, axis=0), atol=1e-12)
    np.testing.assert_allclose(found.by_subject, np.mean(expected, axis=1), atol=1e-12)
    assert found.pairwise.value == pytest.approx(np.mean(pairs), abs=1e-12)


# Law
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_inter_subject_correlation__has_the_invariances_it_declares(seed, scale, shift):
    rng = generator(seed, "invariance")
    x = recordings(rng, 4, 20)
    changed = {
        "translation": x + shift * np.arange(4)[:, None, None],
        "positive scaling": x * np.array([scale, 1, 1, 1])[:, None, None],
        "order of subjects": x[::-1],
    }
    assert set(changed) == set(InterSubjectCorrelationResult.invariances)
    before = inter_subject_correlation(x, config=QUICK).leave_one_out.value
    for other in changed.values():
        assert inter_subject_correlation(other, config=QUICK).leave_one_out.value == pytest.approx(before, abs=1e-9)
    assert -1 <= before <= 1


def test_inter_subject_correlation__gives_the_same_bits_for_any_number_of_workers(rng):
    x = rng.normal(size=(5, 30, 70))
    found = []
    for threads in (1, 3):
        with compute(Backend(threads=threads)):
            found.append(inter_subject_correlation(x, config=InterSubjectCorrelationConfig(n_bootstrap=50, n_null=21)))

    assert found[0].scalars() == found[1].scalars()
    assert np.array_equal(found[0].low, found[1].low)
    assert np.array_equal(found[0].p_value, found[1].p_value)


@pytest.mark.calibration
@both_surrogates
def test_inter_subject_correlation__p_values_are_uniform_under_the_null(surrogate):
    """500 groups of unrelated smooth courses; the KS distance of 500 uniform draws passes 0.087 once in 1000."""
    rng = generator(3, "null", surrogate)
    config = InterSubjectCorrelationConfig(surrogate=surrogate, n_bootstrap=0, n_null=99)
    ps = []
    for _ in range(500):
        spectrum = np.fft.rfft(rng.normal(size=(4, 64, 1)), axis=1) / (1 + np.arange(33))[:, None]
        smooth = np.fft.irfft(spectrum, n=64, axis=1)
        ps.append(inter_subject_correlation(smooth, config=config).leave_one_out.p_value)

    assert stats.kstest(ps - rng.uniform(0, 0.01, 500), "uniform").statistic < 0.087


@pytest.mark.calibration
def test_inter_subject_correlation__intervals_cover_over_subjects():
    """Subjects differ in their noise, the input is fixed; 95 ± 4 % of 500 intervals of either number."""
    wave = generator(0, "input").normal(size=(200, 1))
    wave = (wave - wave.mean()) / wave.std()

    def draw(rng, m):
        return wave + rng.uniform(0.5, 2, size=(m, 1, 1)) * rng.normal(size=(m, 200, 1))

    many = inter_subject_correlation(draw(generator(1, "truth"), 20_000), config=QUICK).pairwise.value
    rng = generator(2, "cover")
    truth = np.mean([inter_subject_correlation(draw(rng, 24), config=QUICK).leave_one_out.value for _ in range(2000)])
    config = InterSubjectCorrelationConfig(n_bootstrap=400, n_null=0)
    found = [inter_subject_correlation(draw(rng, 24), config=config) for _ in range(500)]

    pairwise = np.mean([each.pairwise.low <= many <= each.pairwise.high for each in found])
    leave_one_out = np.mean([each.leave_one_out.low <= truth <= each.leave_one_out.high for each in found])
    assert 0.91 < pairwise < 0.99
    assert 0.91 < leave_one_out < 0.99


# Bad input
@pytest.mark.parametrize("shape", [(2, 20, 3), (4, 7, 3), (4, 20, 0)])
def test_inter_subject_correlation__raises_on_too_little(shape):
    with pytest.raises(ShapeError, match="subject >= 3"):
        inter_subject_correlation(np.zeros(shape))


def test_inter_subject_correlation__raises_on_nan(rng):
    x = recordings(rng)
    x[0, 0, 0] = np.nan

    with pytest.raises(DegenerateInputError, match="must be finite"):
        inter_subject_correlation(x)


def test_inter_subject_correlation__raises_when_nothing_varies():
    with pytest.raises(DegenerateInputError, match="must vary in every subject"):
        inter_subject_correlation(np.ones((4, 20, 2)))


@pytest.mark.parametrize("options", [{"surrogate": "none"}, {"n_bootstrap": -1}, {"n_null": -1}, {"level": 1.0}])
def test_inter_subject_correlation__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        InterSubjectCorrelationConfig(**options)
