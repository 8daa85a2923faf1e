"""brain_alignment: what it measures where the alignment, the noise and the ceiling are planted."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from mechint_core.alignment import BrainAlignmentConfig, brain_alignment, rsa
from mechint_core.alignment._brain_encoding import PENALTIES, FoldedRidge, PenaltyChoice, weighted_correlation
from mechint_core.alignment._brain_rsa import ceilings
from mechint_core.alignment._ridge import cross_validated_prediction
from mechint_core.alignment.rsa import RSAConfig
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

MEASURES = ("rsa", "encoding")
FEW = {"n_bootstrap": 60, "n_permutations": 60}


def recording(x, *, noise=0.5, subjects=3, channels=12, repetitions=3, times=1, seed=0):
    """Channels that read the site linearly, each subject by its own weights, with noise of its own."""
    rng = generator(seed, "recording")
    weights = rng.normal(size=(times, x.shape[1], subjects * channels)) / np.sqrt(x.shape[1])
    signal = np.einsum("iu,tuc->itc", x, weights)
    shape = (len(x), repetitions, times, subjects * channels)
    responses = signal[:, None] + noise * rng.normal(size=shape)
    return responses, np.repeat(np.arange(subjects), channels)


def site(n=60, units=8, seed=0):
    return generator(seed, "site").normal(size=(n, units))


# Known answer
@pytest.mark.parametrize("measure", MEASURES)
def test_brain_alignment__is_1_for_a_rotated_site_without_noise(measure):
    x = site()
    turn = np.linalg.qr(generator(1, "turn").normal(size=(8, 8)))[0]
    responses = (3 * x @ turn)[:, None, None]

    found = brain_alignment(x, responses, config=BrainAlignmentConfig(measure=measure, metric="euclidean", **FEW))

    assert found.score.value == pytest.approx(1.0, abs=1e-3)
    assert found.score.p_value < 0.05
    assert np.isnan(found.ceiling)
    assert "nothing repeated" in found.reading()


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("subjects", [1, 4])
def test_brain_alignment__reaches_the_ceiling_where_the_site_is_what_was_recorded(measure, subjects):
    x = site(n=150)
    responses, subject = recording(x, noise=1.0, subjects=subjects, channels=60)

    found = brain_alignment(x, responses, subject, config=BrainAlignmentConfig(measure=measure, metric="euclidean"))

    assert found.score.value < 0.9
    assert found.ceiled.value == pytest.approx(1.0, abs=0.1)
    assert found.ceiling_low[0] <= found.ceiling_high[0]
    assert found.n_subjects == subjects


@pytest.mark.parametrize("measure", MEASURES)
def test_brain_alignment__finds_the_time_at_which_the_region_answers(measure):
    x = site()
    responses, subject = recording(x, times=5)
    silent = generator(3, "silence").normal(size=responses.shape)
    responses = np.where((np.arange(5) == 3)[:, None], responses, silent)

    found = brain_alignment(
        x, responses, subject, np.linspace(0.0, 0.2, 5), config=BrainAlignmentConfig(measure=measure)
    )

    assert found.best_time == pytest.approx(0.15)
    assert found.p_value[3] < 0.01
    assert (np.delete(found.p_value, 3) > 0.05).all()
    assert "best time, 0.15 s" in found.reading()


@pytest.mark.parametrize("measure", MEASURES)
def test_brain_alignment__an_unrelated_recording_is_not_told_from_chance(measure):
    responses, subject = recording(site(seed=5))

    found = brain_alignment(site(), responses, subject, config=BrainAlignmentConfig(measure=measure))

    assert found.score.p_value > 0.05
    assert found.score.low < found.score.null < found.score.high
    assert "relabelled conditions do as well" in found.reading()


# Oracle
def test_brain_alignment__of_one_subject_without_repetitions_is_rsa():
    x, (responses, _) = site(), recording(site(), subjects=1, repetitions=1)
    whole = responses[:, 0, 0]

    found = brain_alignment(x, responses, config=BrainAlignmentConfig(**FEW))

    assert found.score.value == pytest.approx(rsa(x, whole, config=RSAConfig()).similarity.value, abs=1e-12)


def test_ceilings__equal_the_definition_written_out():
    vectors = generator(0, "ceilings").normal(size=(4, 2, 30)) + 1
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)

    low, high = ceilings(vectors)

    for time in range(2):
        d = vectors[:, time]
        with_all = [d[s] @ d.sum(0) / np.linalg.norm(d.sum(0)) for s in range(4)]
        others = [np.delete(d, s, axis=0).sum(0) for s in range(4)]
        assert high[time] == pytest.approx(np.mean(with_all), abs=1e-12)
        assert low[time] == pytest.approx(
            np.mean([d[s] @ others[s] / np.linalg.norm(others[s]) for s in range(4)]), abs=1e-12
        )


def test_weighted_correlation__equals_numpy_on_the_drawn_rows():
    rng = generator(0, "weighted")
    p, y = rng.normal(size=(2, 20, 3))
    rows = rng.integers(0, 20, 20)

    found = weighted_correlation(p, y, np.bincount(rows, minlength=20)[:, None].astype(float))

    for channel in range(3):
        assert found[0, channel] == pytest.approx(np.corrcoef(p[rows, channel], y[rows, channel])[0, 1], abs=1e-12)


@pytest.mark.parametrize("units", [4, 50])
def test_folded_ridge__equals_the_streamed_one_and_scikit_learn(units):
    from sklearn.linear_model import Ridge

    rng = generator(0, "ridge")
    x, y, fold = rng.normal(size=(30, units)), rng.normal(size=(30, 3)), np.arange(30) % 5
    counts = rng.integers(0, 3, 30).astype(float)
    streamed, penalty = cross_validated_prediction(x, y, fold, PENALTIES)

    np.testing.assert_array_equal(PenaltyChoice.of(x, fold).best(y), penalty)
    plain = FoldedRidge.of(x, fold, np.ones(30)).predict(y, penalty)
    ridge = FoldedRidge.of(x, fold, counts)
    drawn = ridge.predict(y, np.ones((5, 3)))

    for each in range(5):
        held_out = fold == each
        np.testing.assert_allclose(plain[held_out] + y[~held_out].mean(axis=0), streamed[held_out], atol=1e-9)
        oracle = Ridge(alpha=ridge.parts[each][0].unit).fit(x[~held_out], y[~held_out], sample_weight=counts[~held_out])
        np.testing.assert_allclose(
            drawn[held_out] - drawn[held_out].mean(0),
            (found := oracle.predict(x[held_out])) - found.mean(0),
            atol=1e-9,
        )


# Law
@settings(max_examples=5)
@given(st.sampled_from(MEASURES), st.integers(0, 1000))
def test_brain_alignment__does_not_depend_on_the_order_of_channels_or_repetitions_or_on_workers(measure, seed):
    x = site(n=30)
    responses, subject = recording(x, seed=seed, times=2)
    order = generator(seed, "order").permutation(len(subject))
    config = BrainAlignmentConfig(measure=measure, **FEW)

    found = brain_alignment(x, responses, subject, config=config)
    with compute(Backend(threads=3)):
        again = brain_alignment(x, responses, subject, config=config)
    other = brain_alignment(x, responses[..., order], subject[order], config=config)

    assert found.score == again.score
    np.testing.assert_array_equal(found.draws, again.draws)
    assert other.score.value == pytest.approx(found.score.value, abs=1e-9)
    np.testing.assert_allclose(other.draws, found.draws, atol=1e-9)


def test_brain_alignment__leaves_out_and_counts_conditions_that_a_channel_never_answered():
    x = site(n=40)
    responses, subject = recording(x)
    responses[3, :, :, 0] = np.nan
    responses[7, 0] = np.nan  # one presentation of several

    found = brain_alignment(x, responses, subject, config=BrainAlignmentConfig(**FEW))
    without = brain_alignment(
        np.delete(x, 3, axis=0), np.delete(responses, 3, axis=0), subject, config=BrainAlignmentConfig(**FEW)
    )

    assert (found.n_dropped, found.n_conditions) == (1, 39)
    assert found.score == without.score
    assert 3 not in found.shown


def test_brain_alignment__draws_are_the_same_for_every_site_of_one_recording():
    x = site()
    responses, subject = recording(x)
    near, far = (
        brain_alignment(each, responses, subject) for each in (x, x + 0.3 * generator(9, "near").normal(size=x.shape))
    )

    assert np.corrcoef(near.draws, far.draws)[0, 1] > 0.8


@pytest.mark.calibration
@pytest.mark.thorough
@pytest.mark.parametrize("measure", MEASURES)
def test_brain_alignment__p_values_of_unrelated_recordings_are_uniform(measure):
    config = BrainAlignmentConfig(measure=measure, n_bootstrap=19, n_permutations=99)
    p_values = []
    for draw in range(500):
        responses, subject = recording(site(n=24, seed=draw + 1000), subjects=2, channels=4, repetitions=1, seed=draw)
        p_values.append(brain_alignment(site(n=24, seed=draw), responses, subject, config=config).score.p_value)

    assert stats.kstest(p_values, "uniform").pvalue > 0.01


@pytest.mark.calibration
@pytest.mark.thorough
@pytest.mark.parametrize("measure", MEASURES)
def test_brain_alignment__the_interval_covers_what_new_conditions_and_subjects_would_give(measure):
    """The truth is the mean over many recordings of this size; conditions, subjects and noise are new in each."""
    config = BrainAlignmentConfig(measure=measure, metric="euclidean", n_bootstrap=200, n_permutations=19)
    found = []
    for draw in range(500):
        x = site(n=60, seed=draw)
        responses, subject = recording(x, noise=1.0, subjects=6, channels=15, repetitions=2, seed=draw)
        found.append(brain_alignment(x, responses, subject, config=config).score)
    truth = np.mean([each.value for each in found])

    covered = np.mean([each.low <= truth <= each.high for each in found])

    assert 0.92 <= covered <= 0.98


# Bad input
def test_brain_alignment__refuses_what_has_no_answer(without_shape_checks):
    x, (responses, subject) = site(n=20), recording(site(n=20))
    with pytest.raises(ShapeError, match="responses must be"):
        brain_alignment(x[:-1], responses, subject)
    with pytest.raises(ShapeError, match="subject must have one number per channel"):
        brain_alignment(x, responses, subject[:-1])
    with pytest.raises(ShapeError, match="time must have one entry"):
        brain_alignment(x, responses, subject, np.arange(3.0))
    with pytest.raises(ShapeError, match="at least 5 conditions"):
        brain_alignment(x, np.where(np.arange(20)[:, None, None, None] < 4, responses, np.nan), subject)
    with pytest.raises(ShapeError, match="lower n_folds"):
        brain_alignment(x, responses, subject, config=BrainAlignmentConfig(measure="encoding", n_folds=11))
    with pytest.raises(DegenerateInputError, match="x must be finite"):
        brain_alignment(np.full_like(x, np.nan), responses, subject)
    with pytest.raises(DegenerateInputError, match="Got infinity"):
        brain_alignment(x, np.full_like(responses, np.inf), subject)
    with pytest.raises(DegenerateInputError, match="constant ones"):
        brain_alignment(x, np.ones_like(responses), subject, config=BrainAlignmentConfig(measure="encoding"))


def test_config__refuses_impossible_options(without_shape_checks):
    for options, match in (
        ({"measure": "guess"}, "measure must be"),
        ({"metric": "guess"}, "metric must be"),
        ({"n_folds": 1}, "n_folds"),
        ({"n_bootstrap": 3}, "n_bootstrap"),
        ({"level": 1.0}, "level"),
    ):
        with pytest.raises(ConfigurationError, match=match):
            BrainAlignmentConfig(**options)
