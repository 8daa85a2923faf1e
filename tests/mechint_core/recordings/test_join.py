import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mechint_core.errors import RecordingError
from mechint_core.random import generator
from mechint_core.recordings import Recording, join_recordings


def of_subject(name, condition, n_channels=2, **more):
    rng = generator(0, name)
    condition = np.array(condition)
    shape = (len(condition), n_channels)
    return Recording(responses=rng.normal(size=shape), condition=condition, subject=np.full(n_channels, name), **more)


# Known answer
def test_join_recordings__lines_up_conditions_and_leaves_the_rest_missing():
    first, second = of_subject("a", ["x", "y", "x"]), of_subject("b", ["y", "z"], n_channels=1)

    joined = join_recordings([first, second])
    found = joined.by_condition()

    assert joined.subjects.tolist() == ["a", "b"]
    assert joined.conditions.tolist() == ["x", "y", "z"]
    np.testing.assert_array_equal(found[:, :2, :2], first.by_condition())
    np.testing.assert_array_equal(found[0, :, 2], [np.nan, *second.responses[:, 0]])
    assert np.isnan(found[:, 2, :2]).all()


def test_join_recordings__of_one_changes_nothing_that_techniques_see():
    only = of_subject("a", ["x", "y", "x"], session=np.array([1, 1, 2]), region=np.array(["V1", "V2"]))

    joined = join_recordings([only])

    np.testing.assert_array_equal(joined.by_condition(), only.by_condition())
    assert joined.region.tolist() == ["V1", "V2"]
    assert joined.sessions.tolist() == ["1", "2"]


def test_join_recordings__keeps_sessions_that_agree_and_positions():
    first = of_subject("a", [1, 2, 1], session=np.array([1, 1, 2]), position=np.zeros((2, 3)))
    second = of_subject("b", [2, 1, 1], session=np.array([1, 1, 2]))

    joined = join_recordings([first, second])

    assert {
        (c, r): s
        for c, r, s in zip(joined.condition.tolist(), joined.repetition.tolist(), joined.session.tolist(), strict=True)
    } == {
        (1, 0): "1",
        (2, 0): "1",
        (1, 1): "2",
    }
    assert np.isnan(joined.position[2:]).all()
    assert not joined.position[:2].any()
    assert join_recordings([first, of_subject("b", [1, 1], session=np.array([2, 2]))]).sessions.tolist() == ["1"]


def test_join_recordings__renames_subjects_and_lets_one_have_two_probes():
    probes = [of_subject("a", [1, 2]), of_subject("a", [2, 1])]

    assert join_recordings(probes, subjects=["m", "m"]).subject.tolist() == ["m"] * 4
    assert join_recordings(probes, subjects=["m", "n"]).subjects.tolist() == ["m", "n"]


# Law
@settings(max_examples=25)
@given(st.integers(0, 2**31))
def test_join_recordings__holds_every_response_of_every_subject_once(seed):
    rng = generator(seed, "join")
    parts = [of_subject(name, rng.integers(4, size=int(rng.integers(1, 9))).tolist()) for name in ("a", "b", "c")]

    joined = join_recordings(parts)

    for part in parts:
        back = joined.select(subject=str(part.subjects[0]))
        np.testing.assert_array_equal(back.by_condition(), part.by_condition())


# Bad input
def test_join_recordings__raises_on_all_disagreements_at_once():
    third = Recording(
        responses=np.zeros((2, 1, 1)), condition=np.arange(2), time=np.zeros(1), subject=np.array(["a"]), units="uV"
    )

    with pytest.raises(RecordingError) as caught:
        join_recordings([of_subject("a", [1, 2]), third])

    for part in ("Got 3 problem", "the same time steps", "the same units", "Got 'a' in several. Name them"):
        assert part in str(caught.value)


def test_join_recordings__raises_on_none_on_missing_names_and_on_mixed_positions():
    with pytest.raises(RecordingError, match="at least one recording"):
        join_recordings([])
    with pytest.raises(RecordingError, match=r"name each of 1 recordings. Got 2"):
        join_recordings([of_subject("a", [1])], subjects=["a", "b"])
    flat, solid = (of_subject(name, [1, 2], position=np.zeros((2, n))) for name, n in (("a", 2), ("b", 3)))
    with pytest.raises(RecordingError, match="all have two or all three"):
        join_recordings([flat, solid])
