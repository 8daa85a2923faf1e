import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mechint_core.errors import ConfigurationError, NotFoundError, RecordingError
from mechint_core.random import generator
from mechint_core.recordings import Recording, describe_recording
from mechint_core.synthetic.brain_recordings import brain_recordings


def recording(**changes):
    given = {
        "responses": np.arange(12.0).reshape(4, 3),
        "condition": np.array(["b", "a", "b", "c"]),
        "subject": np.array(["s1", "s1", "s2"]),
        "region": np.array(["V1", "V2", "V1"]),
    }
    return Recording(**given | changes)


# Known answer
def test_by_condition__puts_each_presentation_in_its_place():
    found = recording().by_condition()

    assert found[:, :, 0] == pytest.approx(np.array([[3.0, 0.0, 9.0], [np.nan, 6.0, np.nan]]), nan_ok=True)
    assert found.shape == (2, 3, 3)


def test_by_condition__follows_the_order_asked_for_and_leaves_unseen_ones_missing():
    found = recording(condition=np.array([3, 1, 3, 7])).by_condition(["7", "2", 3])

    assert found[:, :, 1] == pytest.approx(np.array([[10.0, np.nan, 1.0], [np.nan, np.nan, 7.0]]), nan_ok=True)


def test_by_condition__counts_repetitions_over_sessions():
    found = recording(
        condition=np.array([0, 0, 0, 0]), session=np.array([2, 2, 1, 1]), repetition=np.array([1, 0, 1, 0])
    ).by_condition()

    assert found[:, 0, 0].tolist() == [9.0, 6.0, 3.0, 0.0]


def test_recording__says_what_is_in_it():
    found = recording()

    assert found.conditions.tolist() == ["a", "b", "c"]
    assert found.regions.tolist() == ["V1", "V2"]
    assert found.subjects.tolist() == ["s1", "s2"]
    assert found.subject_index.tolist() == [0, 0, 1]
    assert found.region_index.tolist() == [0, 1, 0]
    assert found.n_repetitions == 2
    assert found.repetition.tolist() == [0, 0, 1, 0]


def test_select__keeps_what_is_asked_for_and_drops_samples_without_it():
    responses = np.arange(24.0).reshape(4, 2, 3)
    responses[0, :, 2] = np.nan
    whole = recording(
        responses=responses,
        time=np.array([0.1, 0.2]),
        sample_descriptors={"trial": np.arange(4)},
        channel_descriptors={"depth": np.array([1.0, 2.0, 3.0])},
    )

    part = whole.select(region="V1", subject=["s2"], time=(0.15, 0.3))

    assert part.responses.tolist() == [[[11.0]], [[17.0]], [[23.0]]]
    assert part.condition.tolist() == ["a", "b", "c"]
    assert part.time.tolist() == [0.2]
    assert part.sample_descriptors["trial"].tolist() == [1, 2, 3]
    assert part.channel_descriptors["depth"].tolist() == [3.0]


def test_recording__takes_matlabs_numbers_as_labels_and_small_integers_exactly():
    found = recording(responses=np.arange(12, dtype=np.int16).reshape(4, 3), condition=np.array([2.0, 1.0, 2.0, 3.0]))

    assert found.conditions.tolist() == [1, 2, 3]
    assert found.condition.dtype.kind == "i"
    assert found.responses.dtype == np.float32
    assert recording(condition=np.array([22.5, 45.0, 22.5, 0.0])).conditions.tolist() == ["0", "22.5", "45"]


def test_of_simulated__keeps_subjects_regions_and_time():
    made = brain_recordings(n_conditions=5, n_subjects=2, n_channels=2, time=np.linspace(0, 0.3, 4), missing=0.3)

    found = Recording.of_simulated(made)

    assert found.by_condition().shape == (4, 5, 4, 12)
    assert found.subjects.tolist() == [0, 1]
    assert found.regions.tolist() == ["early", "late", "middle"]


def test_describe_recording__counts_what_is_odd():
    responses = np.arange(12.0).reshape(4, 3)
    responses[:, 1] = 7.0
    responses[2, 0] = np.nan

    table = describe_recording(recording(responses=responses, units="spikes")).splitlines()

    assert table[0] == "3 conditions, 3 channels, 2 subjects, 2 regions, 1 sessions"
    assert "1 to 2 of each condition, 4 samples in all" in table[2]
    assert table[-3].split() == ["s1", "V1", "1", "3", "33%", "0"]
    assert table[-2].split() == ["s1", "V2", "1", "4", "0%", "1"]


# Law
@settings(max_examples=50)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 4))
def test_by_condition__mean_over_repetitions_is_that_of_the_samples(seed, n_conditions, n_sessions):
    rng = generator(seed, "by_condition")
    n = int(rng.integers(1, 30))
    responses, condition = rng.normal(size=(n, 2)), rng.integers(n_conditions, size=n)
    responses[rng.random(n) < 0.2, 1] = np.nan
    session = rng.integers(n_sessions, size=n)
    found = Recording(responses=responses, condition=condition, session=session)

    by_condition = found.by_condition()

    for place, label in enumerate(found.conditions.tolist()):
        values, expected = by_condition[:, place], responses[condition == label]
        for channel in range(2):
            kept, own = (each[~np.isnan(each[:, channel]), channel] for each in (values, expected))
            assert sorted(kept) == sorted(own)
    order = rng.permutation(n)
    shuffled = Recording(
        responses=responses[order],
        condition=condition[order],
        session=session[order],
        repetition=found.repetition[order],
    )
    np.testing.assert_array_equal(shuffled.by_condition(), by_condition)


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_select__and_by_condition_commute(seed):
    rng = generator(seed, "select")
    region = rng.integers(3, size=6)
    found = Recording(responses=rng.normal(size=(9, 6)), condition=rng.integers(3, size=9), region=region)

    one = found.select(region=int(region[0])).by_condition()

    np.testing.assert_array_equal(one, found.by_condition()[:, :, region == region[0]])


# Bad input
def test_recording__says_all_that_is_wrong_at_once():
    with pytest.raises(RecordingError) as caught:
        Recording(
            responses=np.full((4, 2, 3), np.inf),
            condition=np.array(["a", "", "b", "c"]),
            session=np.array([1, 2]),
            subject=np.array([1.0, np.nan, 2.0]),
            position=np.zeros((3, 4)),
            time=np.array([0.1, 0.1]),
            channel_descriptors={"depth": np.zeros(2)},
        )

    for part in (
        "Got 7 problem",
        "24 infinite",
        "condition must be known of every sample. Got 1 of 4 that are empty",
        r"session must have one entry per sample (4). Got shape (2,)",
        "subject must be known of every channel. Got 1 of 3 that are NaN",
        "shape (3, 2) or (3, 3). Got (3, 4)",
        "0.1 is followed by 0.1",
        "depth must have one entry per channel (3)",
    ):
        assert part in str(caught.value)


def test_recording__raises_on_responses_that_are_no_numbers_or_have_other_axes():
    with pytest.raises(RecordingError, match=r"responses must be real numbers. Got <U1 of shape"):
        recording(responses=np.full((4, 3), "x"))
    with pytest.raises(RecordingError, match=r"responses must have axes .* Got shape \(4,\)"):
        recording(responses=np.zeros(4))
    with pytest.raises(RecordingError, match="none of them empty"):
        recording(responses=np.zeros((4, 0)))


def test_recording__raises_on_repetitions_that_occur_twice():
    with pytest.raises(RecordingError, match=r"Got 1 of them more than once: \('b', 0, '1'\)"):
        recording(repetition=np.zeros(4, int))


def test_recording__raises_on_time_where_responses_have_none():
    with pytest.raises(RecordingError, match=r"which responses of shape .* have 0. Got shape"):
        recording(time=np.arange(3.0))


def test_recording__raises_on_labels_that_are_objects():
    with pytest.raises(RecordingError, match=r"condition must be strings or integers. Got an array of dict"):
        recording(condition=np.array([{}, {}, {}, {}]))


def test_by_condition__raises_on_conditions_that_were_not_shown_or_asked_for_twice():
    with pytest.raises(NotFoundError, match=r"'a', 'b', 'c'. Got 'd'"):
        recording().by_condition(["d"])
    with pytest.raises(ConfigurationError, match=r"asked for once. Got 'a' twice"):
        recording().by_condition(["a", "a"])


def test_select__raises_on_what_is_not_there():
    with pytest.raises(NotFoundError, match=r"region must be among 'V1', 'V2'. Got 'IT'"):
        recording().select(region="IT")
    with pytest.raises(NotFoundError, match="must have channels in common"):
        recording().select(region="V2", subject="s2")
    with pytest.raises(NotFoundError, match="responses without time"):
        recording().select(time=(0.0, 1.0))
    with pytest.raises(NotFoundError, match="none but NaN"):
        recording(responses=np.full((4, 3), np.nan)).select(region="V1")
