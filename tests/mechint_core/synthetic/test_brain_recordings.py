import inspect

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.spatial.distance import pdist

from mechint_core.errors import ConfigurationError, DegenerateInputError
from mechint_core.random import generator
from mechint_core.synthetic.brain_recordings import MIXTURES, brain_recordings

unchecked = inspect.unwrap(brain_recordings)  # without the shape checker of the tests, to meet our own messages


def means(made, n_repetitions):
    return np.nanmean(made.responses.reshape(n_repetitions, -1, made.responses.shape[-1]), axis=0)


def correlations(first, second):
    a, b = (each - each.mean(axis=0) for each in (first, second))
    return (a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))


# Known answer
@pytest.mark.parametrize("noise", ["gaussian", "poisson"])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_brain_recordings__reach_their_ceilings(noise, missing):
    n = 1500
    made = brain_recordings(
        n_conditions=n,
        n_subjects=2,
        n_channels=20,
        n_repetitions=3,
        snr=0.4,
        snr_spread=0.5,
        noise=noise,
        missing=missing,
    )

    found = correlations(means(made, 3), made.signal)
    z = (found - made.ceiling) / ((1 - made.ceiling**2) / np.sqrt(n))

    assert np.abs(z.mean()) < 3 / np.sqrt(len(z))
    assert np.abs(z).max() < 5
    if not missing:
        assert made.ceiling == pytest.approx(made.ceiling_of(3))
        of_noise = made.responses.reshape(3, n, -1).var(axis=0, ddof=1).mean(axis=0)
        assert np.mean(of_noise / made.noise_variance) == pytest.approx(1, abs=3 * 0.03 / np.sqrt(len(z)))


def test_brain_recordings__mean_signal_to_noise_is_what_was_asked_for():
    made = brain_recordings(n_conditions=30, snr=0.7)
    assert made.signal_variance / made.noise_variance == pytest.approx(0.7)
    assert made.ceiling == pytest.approx(np.sqrt(0.7 / (0.7 + 1 / 4)))

    counts = brain_recordings(n_conditions=30, snr=2.0, noise="poisson")
    assert counts.signal_variance / counts.noise_variance == pytest.approx(2.0)
    assert counts.responses.min() >= 0
    assert np.array_equal(counts.responses, np.rint(counts.responses))


def test_brain_recordings__dissimilarities_of_many_channels_tend_to_the_mixtures():
    made = brain_recordings(n_conditions=30, n_subjects=1, n_channels=20_000, n_repetitions=2, snr=1.0)

    found = np.array(
        [
            [
                np.corrcoef(pdist(means(made, 2)[:, made.region == region], "sqeuclidean"), pdist(each, "sqeuclidean"))[
                    0, 1
                ]
                for region in made.regions
            ]
            for each in made.features.values()
        ]
    )

    assert found == pytest.approx(made.rdm_correlation, abs=0.02)
    assert made.rdm_correlation[:, 0] == pytest.approx([1.0, made.rdm_correlation[1, 0]])
    assert made.rdm_correlation[1, 0] < made.rdm_correlation[1, 1] < made.rdm_correlation[1, 2]


def test_brain_recordings__features_explain_the_shares_they_were_given():
    made = brain_recordings(n_conditions=2000, n_subjects=1, n_channels=200, n_units=5, n_repetitions=1)

    for row, space in enumerate(made.features.values()):
        of_space = (np.linalg.qr(space)[0].T @ made.signal) ** 2
        explained = of_space.sum(axis=0) / (made.signal**2).sum(axis=0)
        assert np.abs(explained - made.channel_shares[row]).max() < 0.1  # 0.02 is chance: five of 2000 directions
        for column, region in enumerate(made.regions):
            own = made.region == region
            total = made.signal_variance[own]
            share = (made.channel_shares[row, own] * total).sum() / total.sum()
            assert share == pytest.approx(made.shares[row, column], abs=0.04)


def test_brain_recordings__respond_at_their_latencies():
    time = np.arange(0, 0.4, 0.02)
    made = brain_recordings(
        n_conditions=20, n_channels=3, time=time, snr=200.0, latencies={"early": 0.04, "middle": 0.1, "late": 0.3}
    )

    spread = made.responses.reshape(4, 20, len(time), -1).mean(axis=0).std(axis=0)

    for region, latency in (("early", 0.04), ("middle", 0.1), ("late", 0.3)):
        at = time[spread[:, made.region == region].argmax(axis=0)]
        assert np.abs(at - latency).max() <= 0.021
    assert made.course[1, 5] == pytest.approx(1.0)


def test_brain_recordings__take_given_features(rng):
    features = {"layer 1": rng.normal(size=(25, 3)) + 7, "layer 2": rng.normal(size=(25, 6))}
    made = brain_recordings(features, mixtures={"V1": {"layer 1": 1.0}}, n_subjects=1, n_channels=4)

    assert list(made.features) == ["layer 1", "layer 2"]
    assert np.linalg.matrix_rank(made.signal) == 3
    assert made.rdm_correlation[0, 0] == pytest.approx(1.0)
    assert (made.features["layer 1"] ** 2).sum(axis=1).mean() == pytest.approx(1.0)


# Law
@settings(max_examples=20)
@given(st.integers(0, 2**31), st.floats(0, 0.9), st.integers(1, 5))
def test_brain_recordings__lose_whole_presentations_of_a_subject_and_keep_one(seed, missing, n_repetitions):
    made = brain_recordings(n_conditions=9, n_channels=2, n_repetitions=n_repetitions, missing=missing, seed=seed)
    gone = np.isnan(made.responses)

    for subject in range(3):
        own = gone[:, made.subject == subject]
        assert np.array_equal(own.all(axis=1), own.any(axis=1))
    assert np.array_equal((~gone).reshape(n_repetitions, 9, -1).sum(axis=0), made.presentations)
    assert made.presentations.min() >= 1


@settings(max_examples=10)
@given(st.integers(0, 2**31))
def test_brain_recordings__same_seed_same_bits_and_losses_change_nothing_else(seed):
    one, two = (brain_recordings(n_conditions=9, n_channels=2, seed=seed, missing=each) for each in (0.0, 0.4))

    assert one.responses.tobytes() == brain_recordings(n_conditions=9, n_channels=2, seed=seed).responses.tobytes()
    kept = ~np.isnan(two.responses)
    assert np.array_equal(one.responses[kept], two.responses[kept])


# Bad input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixtures": {"V1": {"a": 0.8, "b": 0.3}}}, "shares of V1 must be at least 0 and sum to at most 1"),
        ({"mixtures": {"V1": {"a": -0.1}}}, "shares of V1 must be at least 0"),
        ({"mixtures": {}}, "at least one of everything. Got 0 regions"),
        ({"n_channels": 0}, "at least one of everything"),
        ({"snr": 0.0}, "snr must be above 0"),
        ({"missing": 1.0}, "missing must be at least 0 and below 1"),
        (
            {"mixtures": {"V1": {"low": 0.5}}, "time": np.arange(3.0)},
            "latencies must name every region. Got none for V1",
        ),
        ({"time": np.array([0.1, 0.1])}, "time must rise"),
    ],
)
def test_brain_recordings__raise_on_what_makes_no_sense(options, message):
    with pytest.raises(ConfigurationError, match=message):
        brain_recordings(**options)


def test_brain_recordings__raise_on_unknown_noise_and_features():
    with pytest.raises(ConfigurationError, match=r"gaussian or poisson. Got 'pink'"):
        unchecked(noise="pink")
    with pytest.raises(ConfigurationError, match=r"mixtures must be of \['a'\]. Got \['high', 'low'\]"):
        brain_recordings({"a": generator(0, "a").normal(size=(5, 2))}, mixtures=MIXTURES)


def test_brain_recordings__raise_on_features_that_do_not_differ_or_disagree():
    mixtures = {"V1": {"a": 0.5}}
    for features in ({"a": np.ones((5, 2))}, {"a": np.full((5, 2), np.nan)}):
        with pytest.raises(DegenerateInputError, match="features a must be finite and differ"):
            brain_recordings(features, mixtures=mixtures)
    with pytest.raises(DegenerateInputError, match="of the same conditions"):
        unchecked({"a": np.eye(5), "b": np.eye(4)}, mixtures=mixtures)
