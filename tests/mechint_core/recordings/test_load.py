"""What does not depend on the format: which fields are which, which part is wanted, what is said of broken files."""

import inspect
import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mechint_core.errors import ConfigurationError, MechintError, NotFoundError, RecordingError
from mechint_core.random import generator
from mechint_core.recordings import load_recording
from mechint_core.recordings._assembly import Wanted, assembled
from mechint_core.recordings._fields import FileField, held


@pytest.fixture
def saved(tmp_path, session):
    """Write the fixture's recording as npz, some of it changed or left out."""

    def save(name="monkey.npz", **changes):
        arrays = {**vars(session), **changes}
        np.savez(tmp_path / name, **{key: values for key, values in arrays.items() if values is not None})
        return tmp_path / name

    return save


# Known answer
def test_load_recording__finds_fields_by_the_names_files_have(saved, session, assert_same):
    path = saved(
        responses=None,
        condition=None,
        Firing_Rates=session.responses,
        stimulus_id=session.condition,
        depth=np.arange(5.0),
    )

    found = load_recording(path)

    assert_same(found)
    assert found.subjects.tolist() == ["monkey"]
    assert found.channel_descriptors["depth"].tolist() == [0, 1, 2, 3, 4]


def test_load_recording__takes_names_from_the_caller_first(saved, session):
    path = saved(other=session.responses + 1, label=np.arange(12))

    found = load_recording(path, fields={"responses": "other", "condition": "label"})

    assert found.responses == pytest.approx(session.responses + 1)
    assert found.conditions.tolist() == list(range(12))
    assert found.sample_descriptors["condition"].tolist() == session.condition.tolist()


def test_load_recording__turns_axes_as_told_or_as_lengths_leave_no_choice(saved, session, assert_same):
    turned = saved(responses=session.responses.transpose(2, 0, 1))

    assert_same(load_recording(turned))
    assert_same(load_recording(turned, axes=("channel", "sample", "time")))


def test_load_recording__flattens_repetitions_and_subjects(saved, rng):
    responses = rng.normal(size=(4, 3, 2, 5))  # channel, condition, subject, repetition
    path = saved(
        "grid.npz",
        responses=responses,
        condition=np.array(["a", "b", "c"]),
        region=np.array(list("xxyy")),
        session=None,
        time=None,
        position=None,
    )

    found = load_recording(path, axes=("channel", "condition", "subject", "repetition"))
    by_condition = found.by_condition()

    assert by_condition.shape == (5, 3, 8)
    assert found.subject.tolist() == [0] * 4 + [1] * 4
    assert found.region.tolist() == list("xxyy") * 2
    np.testing.assert_array_equal(by_condition[4, 1, 4:], responses[:, 1, 1, 4])


def test_load_recording__numbers_conditions_that_are_an_axis(saved, rng):
    path = saved(
        "rows.npz",
        responses=rng.normal(size=(4, 3)),
        **dict.fromkeys(["condition", "session", "region", "position", "time"]),
    )

    assert load_recording(path, axes=("condition", "channel")).conditions.tolist() == [0, 1, 2, 3]


def test_load_recording__splits_by_subject_where_each_sample_has_one(saved, session):
    path = saved(subject=np.array(["p1", "p2"] * 6), session=None)

    found = load_recording(path)

    assert found.subjects.tolist() == ["p1", "p2"]
    assert found.responses.shape[-1] == 10
    own = found.select(subject="p2").by_condition()
    np.testing.assert_array_equal(own[:, 0], session.responses[3::4])
    assert load_recording(path, subject="p2").subjects.tolist() == ["p2"]


def test_load_recording__reads_the_part_asked_for(saved, session):
    found = load_recording(saved(), region="IT", session=2, time=(0.0, 0.2))

    np.testing.assert_array_equal(found.responses, session.responses[4:, 1:4, 2:])
    assert found.position == pytest.approx(session.position[2:])


def test_assembled__reads_no_more_than_holds_what_is_asked_for(session):
    asked = []

    def read(selection):
        asked.append(selection)
        return session.responses[selection]

    fields = {name: held(name, values) for name, values in vars(session).items() if name != "responses"}
    fields["responses"] = FileField("responses", (12, 6, 5), read)

    assembled("data", fields, Wanted(region="IT", session=2, time=(0.0, 0.2)))

    assert asked == [(slice(4, 12), slice(1, 4), slice(2, 5))]


def test_load_recording__leaves_bad_channels_out_or_in(saved, session):
    responses = session.responses.copy()
    responses[:, :, 1], responses[3, :, 4] = 2.0, np.nan
    path = saved(responses=responses)

    assert load_recording(path, bad_channels="drop").region.tolist() == ["V4", "IT", "IT"]
    assert load_recording(path, bad_channels="keep").n_channels == 5
    with pytest.raises(RecordingError) as caught:
        load_recording(path)
    assert "1 of 5 channels are NaN where others of their subject are not: channel 4: 6 of 72" in str(caught.value)
    assert "1 of 5 channels are the same throughout: channel 1" in str(caught.value)


# Law
@settings(max_examples=25)
@given(st.integers(0, 2**31))
def test_load_recording__a_part_is_what_select_gives_of_the_whole(tmp_path_factory, seed):
    rng = generator(seed, "part")
    path = tmp_path_factory.mktemp("part") / "some.npy"
    region, session = rng.integers(2, size=6), rng.integers(2, size=8)
    np.save(path, rng.normal(size=(8, 4, 6)))
    said = {"condition": rng.integers(3, size=8).tolist(), "region": region.tolist(), "session": session.tolist()}
    path.with_suffix(".json").write_text(json.dumps({**said, "time": [0.0, 0.1, 0.2, 0.3]}))
    asked = {"region": int(region[0]), "session": int(session[0]), "time": (0.1, 0.25)}

    np.testing.assert_array_equal(
        load_recording(path, **asked).by_condition(), load_recording(path).select(**asked).by_condition()
    )


# Bad input
def test_load_recording__says_all_that_is_wrong_with_a_file_at_once(saved, session):
    path = saved(
        condition=session.condition[:11],
        time=session.time[:5],
        region=np.array(["V4", "IT"]),
        subject=np.arange(3),
        position=np.zeros((4, 3)),
    )

    with pytest.raises(RecordingError) as caught:
        load_recording(path)

    for part in (
        "monkey.npz must be complete and consistent. Got 5 problem",
        r"condition must have one entry per sample (12). Got shape (11,), responses have sample 12, time 6, channel 5",
        "time must have one entry per time step. Got 5",
        r"region must have one entry per channel (5). Got shape (2,)",
        r"subject must have one entry per channel (5). Got shape (3,)",
        r"position must have 2 or 3 coordinates per channel (5). Got (4, 3)",
    ):
        assert part in str(caught.value)


def test_load_recording__says_which_fields_are_missing_and_which_there_are(saved, session):
    with pytest.raises(RecordingError) as caught:
        load_recording(saved(condition=None, responses=None, time=None, a=session.responses, b=session.responses))
    assert "responses is missing. The file has session [12], region [5], position [5, 3], a [12, 6, 5]" in str(
        caught.value
    )
    assert "condition is missing" in str(caught.value)
    with pytest.raises(RecordingError, match="time is missing: seconds of each time step"):
        load_recording(saved(time=None))
    with pytest.raises(RecordingError, match=r"condition must be one of the file's fields: .* Got 'stim'"):
        load_recording(saved(), fields={"condition": "stim"})
    with pytest.raises(RecordingError, match=r"fields must name some of 'responses', .* Got 'answers'"):
        load_recording(saved(), fields={"answers": "a"})
    for asked in ({"session": 2}, {"subject": 2}):
        with pytest.raises(RecordingError, match="is missing, so 2 cannot be chosen"):
            load_recording(saved(session=None), **asked)


def test_load_recording__says_which_field_could_be_two(saved, session):
    path = saved(Condition=session.condition)

    with pytest.raises(RecordingError, match=r"condition must be one field. Got 'condition', 'Condition'. Say which"):
        load_recording(path)


def test_load_recording__raises_on_axes_that_do_not_fit(saved):
    for axes in (
        ("sample", "channel"),
        ("sample", "sample", "channel"),
        ("condition", "sample", "channel"),
        ("row", "time", "channel"),
    ):
        with pytest.raises(RecordingError, match="axes must say of each axis of 'responses', of shape"):
            load_recording(saved(), axes=axes)


def test_load_recording__says_of_what_a_recording_itself_refuses_which_file_it_is(saved, session):
    path = saved(time=session.time[::-1], repetition=np.zeros(12, int), session=None)

    with pytest.raises(RecordingError, match=r"monkey.npz must be complete.*\n.*time must rise"):
        load_recording(path)
    with pytest.raises(RecordingError, match="4 of them more than once"):
        load_recording(saved(repetition=np.zeros(12, int), session=None))


def test_load_recording__raises_on_unknown_formats_and_wrong_names(tmp_path):
    for name, content, message in (
        ("data.pkl", b"\x80\x04", "must be in a known format: .npy.* Got .pkl, and first bytes"),
        ("data", b"", "Got no suffix"),
        ("data.npz", b"", "must be npz, as its name says. Got an empty file"),
        ("data.h5", b"hello world", "must be hdf5, as its name says. Got first bytes b'hello wo'"),
        ("data.csv", b"a,b\n\0\0", "must be csv, as its name says"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RecordingError, match=message):
            load_recording(tmp_path / name)


def test_load_recording__raises_on_what_does_not_exist_or_makes_no_sense(tmp_path, saved):
    with pytest.raises(NotFoundError, match="There is none"):
        load_recording(tmp_path / "nothing.npz")
    with pytest.raises(RecordingError, match="must be a whole Zarr group"):
        load_recording(tmp_path)
    with pytest.raises(ConfigurationError, match="bad_channels must be one of"):
        inspect.unwrap(load_recording)(saved(), bad_channels="fix")
    with pytest.raises(ConfigurationError, match="a window is cut from NWB files only"):
        load_recording(saved(), window=(0.0, 1.0))
    with pytest.raises(NotFoundError, match=r"region must be among 'IT', 'V4'. Got 'V1'"):
        load_recording(saved(), region="V1")


@pytest.mark.parametrize("suffix", ["npy", "npz", "mat", "h5", "csv"])
def test_load_recording__of_a_file_cut_anywhere_raises_only_what_it_should(tmp_path, session, suffix, rng):
    import h5py
    from scipy.io import savemat

    path = tmp_path / f"cut.{suffix}"
    if suffix == "npy":
        np.save(path, session.responses)
    elif suffix == "npz":
        np.savez_compressed(path, **vars(session))
    elif suffix == "mat":
        savemat(path, vars(session), do_compression=True)
    elif suffix == "csv":
        path.write_text("condition,a,b\n" + "".join(f"{c},{i},{-i}\n" for i, c in enumerate(session.condition)))
    else:
        with h5py.File(path, "w") as file:
            for name, values in vars(session).items():
                file[name] = values.astype("S") if values.dtype.kind == "U" else values
    whole = path.read_bytes()
    for _ in range(40):
        broken = bytearray(whole[: int(rng.integers(len(whole)))])
        for place in rng.integers(max(1, len(broken)), size=3 * (len(broken) > 3)):
            broken[place] ^= 0xFF
        path.write_bytes(bytes(broken))
        with suppress(MechintError):
            load_recording(path)
    path.write_bytes(whole[: len(whole) // 2] if suffix != "csv" else b"condition,a\n")
    with pytest.raises(RecordingError, match=path.name):
        load_recording(path)
