"""Each format, written by its own library and read back; and what only that format can get wrong."""

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import zarr
from scipy.io import savemat

from mechint_core.errors import RecordingError
from mechint_core.recordings import load_recording
from mechint_core.recordings._assembly import Wanted
from mechint_core.recordings._hdf5_files import hdf5_fields
from mechint_core.store import ActivationStore

MATLABS = Path(scipy.io.__file__).parent / "matlab" / "tests" / "data"


# numpy
def test_npy__with_a_json_beside_it(tmp_path, session, assert_same):
    np.save(tmp_path / "m1.npy", session.responses)
    said = {name: values.tolist() for name, values in vars(session).items() if name != "responses"}
    (tmp_path / "m1.json").write_text(json.dumps({**said, "units": "spikes/s", "subject": "monkey 1"}))

    found = load_recording(tmp_path / "m1.npy")

    assert_same(found)
    assert found.units == "spikes/s"
    assert found.subjects.tolist() == ["monkey 1"]


def test_npy__with_tables_beside_it(tmp_path, session, assert_same):
    np.save(tmp_path / "m1.npy", session.responses[:, 0].astype(np.float32))
    write_rows(
        tmp_path / "m1.samples.csv", [["stimulus", "session"], *zip(session.condition, session.session, strict=True)]
    )
    write_rows(tmp_path / "m1.channels.csv", [["area", "depth"], *zip(session.region, range(5), strict=True)])

    found = load_recording(tmp_path / "m1.npy")

    assert_same(found, time=False, position=False)
    assert found.responses.dtype == np.float32
    assert found.channel_descriptors["depth"].tolist() == [0, 1, 2, 3, 4]


def test_npy_and_npz__refuse_pickles(tmp_path, session):
    objects = np.array([{"a": 1}, None], dtype=object)
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    with pytest.raises(RecordingError, match=r"Got Python objects: .* would run code"):
        load_recording(tmp_path / "objects.npy")
    np.savez(tmp_path / "objects.npz", responses=session.responses, condition=np.array(list(session.condition), object))
    with pytest.raises(RecordingError, match="condition cannot be read from 'condition': it holds Python objects"):
        load_recording(tmp_path / "objects.npz")


def test_npy__raises_on_a_broken_table_beside_it(tmp_path, session):
    np.save(tmp_path / "m1.npy", session.responses)
    for text, message in (
        ("{", "m1.json must be a whole JSON object"),
        ("[1]", "must be a JSON object: name -> value"),
    ):
        (tmp_path / "m1.json").write_text(text)
        with pytest.raises(RecordingError, match=message):
            load_recording(tmp_path / "m1.npy")
    (tmp_path / "m1.json").write_text('{"condition": [[1], [2, 3]]}')
    with pytest.raises(RecordingError, match="table in which condition is a value or a list"):
        load_recording(tmp_path / "m1.npy")


# MATLAB
def test_mat__of_version_5(tmp_path, session, assert_same):
    savemat(
        tmp_path / "v5.mat",
        {
            "data": {"betas": session.responses, "roi": cells(session.region)},
            "stim_id": cells(session.condition),
            "session": session.session,
            "time": session.time[:, None],
            "xyz": session.position.T,
            "note": "made by hand",
        },
        do_compression=True,
    )

    assert_same(load_recording(tmp_path / "v5.mat"))


def test_mat__character_matrices_and_numbers_in_cells(tmp_path, session):
    numbers = np.empty(12, object)
    numbers[:] = [float(each) for each in range(12)]
    savemat(tmp_path / "v5.mat", {"x": session.responses[:, 0], "condition": session.condition, "trial": numbers})

    found = load_recording(tmp_path / "v5.mat")

    assert found.condition.tolist() == session.condition.tolist()
    assert found.sample_descriptors["trial"].tolist() == list(range(12))


def test_mat__refuses_cells_of_anything_else(tmp_path, session):
    mixed = np.empty(12, object)
    mixed[:] = [np.zeros(3)] * 12
    savemat(tmp_path / "v5.mat", {"x": session.responses[:, 0], "condition": mixed})

    with pytest.raises(RecordingError, match="condition cannot be read from 'condition': it is a cell"):
        load_recording(tmp_path / "v5.mat")


def test_mat__complex_responses_are_no_recording(tmp_path, session):
    savemat(tmp_path / "v5.mat", {"responses": session.responses[:, 0] * 1j, "condition": cells(session.condition)})

    with pytest.raises(RecordingError, match=r"responses must be real numbers. Got complex128"):
        load_recording(tmp_path / "v5.mat")


def test_mat__of_version_7_3(tmp_path, session, assert_same):
    with matlab_file(tmp_path / "v73.mat") as file:
        data = file.create_group("data")
        data.attrs["MATLAB_class"] = np.bytes_("struct")
        matlab_array(data, "betas", session.responses)
        matlab_cells(file, data, "roi", session.region)
        matlab_cells(file, file, "stim_id", session.condition)
        matlab_array(file, "session", session.session[:, None].astype(float))
        matlab_array(file, "time", session.time[None])
        matlab_array(file, "xyz", session.position)
        matlab_text(file, "units", "spikes/s")

    found = load_recording(tmp_path / "v73.mat")

    assert_same(found)
    assert found.units == "spikes/s"
    part = load_recording(tmp_path / "v73.mat", region="IT", time=(0.0, 0.2), session=2)
    np.testing.assert_array_equal(part.responses, session.responses[4:, 1:4, 2:])


def test_mat__of_version_7_3_refuses_objects_and_sparse_arrays(tmp_path, session):
    with matlab_file(tmp_path / "v73.mat") as file:
        matlab_array(file, "responses", session.responses[:, 0])
        matlab_array(file, "condition", np.zeros((6, 1)))
        file["condition"].attrs["MATLAB_class"] = np.bytes_("categorical")
        file["condition"].attrs["MATLAB_object_decode"] = 3
        sparse = file.create_group("session")
        sparse.attrs["MATLAB_sparse"] = 12

    with pytest.raises(RecordingError) as caught:
        load_recording(tmp_path / "v73.mat")
    assert "condition cannot be read from 'condition': it is a MATLAB object; save cellstr(x)" in str(caught.value)
    assert "session cannot be read from 'session': it is sparse; save full(x)" in str(caught.value)


def test_mat__of_version_7_3_nested_cells_and_complex_numbers_are_refused(tmp_path, session):
    with matlab_file(tmp_path / "v73.mat") as file:
        pairs = np.zeros((5, 12), [("real", "f8"), ("imag", "f8")])
        file["responses"] = pairs
        matlab_cells(file, file, "inner", session.region)
        file.create_dataset("condition", data=[[file["inner"].ref]], dtype=h5py.ref_dtype)

    with pytest.raises(RecordingError) as caught:
        load_recording(tmp_path / "v73.mat")
    assert "responses cannot be read from 'responses': it holds complex numbers" in str(caught.value)
    assert "condition cannot be read from 'condition': it is a cell" in str(caught.value)


@pytest.mark.parametrize("path", sorted(MATLABS.glob("*.mat")), ids=lambda path: path.stem)
def test_mat__files_that_matlab_wrote_are_read_and_found_to_be_no_recordings(path):
    """Every version from 4 to 7.3, whole and broken: none of scipy's own test files holds conditions."""
    with pytest.raises(RecordingError, match=r"condition is missing|must be a whole MAT file"):
        load_recording(path)


def test_mat__numbers_that_matlab_wrote_in_version_7_3():
    path = MATLABS / "testhdf5_7.4_GLNX86.mat"
    if not path.exists():
        pytest.skip("scipy is installed without its tests")

    with hdf5_fields(path, Wanted()) as fields:
        assert fields["testdouble"].shape == (1, 9)
        assert fields["testdouble"].read((slice(None), slice(1, 3))) == pytest.approx(np.pi * np.array([[0.25, 0.5]]))


# HDF5
def test_hdf5__with_groups_and_attributes(tmp_path, session, assert_same):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["neural/rates"] = session.responses
        file["trials/stimulus"] = session.condition.astype("S")
        file["trials/session"] = session.session
        file["channels/area"] = session.region.astype(object)
        file["channels/position"] = session.position
        file["neural/time"] = session.time
        file.attrs["subject"] = "M"
        file["elsewhere"] = h5py.ExternalLink("other.h5", "/data")

    found = load_recording(tmp_path / "m.h5")

    assert_same(found)
    assert found.subjects.tolist() == ["M"]
    part = load_recording(tmp_path / "m.h5", region="V4", time=(0.1, 0.4))
    np.testing.assert_array_equal(part.responses, session.responses[:, 2:, :2])


def test_hdf5__takes_the_names_of_axes_and_the_columns_of_tables(tmp_path, session, assert_same):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["values"] = session.responses.transpose(1, 2, 0)
        for place, (name, label) in enumerate((("time_bin", "time"), ("neuroid", ""), ("presentation", ""))):
            file[name] = np.arange(file["values"].shape[place])
            file[name].make_scale(name)
            file["values"].dims[place].attach_scale(file[name])
            file["values"].dims[place].label = label
        trials = np.zeros(12, [("image_id", "S3"), ("session", "i4")])
        trials["image_id"], trials["session"] = session.condition, session.session
        file["trials"] = trials
        file["region"], file["time"] = session.region.astype("S"), session.time

    assert_same(load_recording(tmp_path / "m.h5"), position=False)


def test_hdf5__says_of_fields_that_are_neither_numbers_nor_text(tmp_path, session):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["responses"] = session.responses[:, 0]
        file.create_dataset("condition", data=[file["responses"].ref] * 12, dtype=h5py.ref_dtype)

    with pytest.raises(RecordingError, match=r"condition cannot be read .* neither numbers nor text"):
        load_recording(tmp_path / "m.h5")


# Zarr
@pytest.mark.filterwarnings("ignore:The data type:FutureWarning")  # text of fixed width in v3
@pytest.mark.parametrize("version", [2, 3])
def test_zarr__of_either_version(tmp_path, session, assert_same, version):
    group = zarr.open_group(tmp_path / "m.zarr", mode="w", zarr_format=version)
    for name, values in vars(session).items():
        group.create_array(name, data=values, chunks=values.shape if values.ndim < 3 else (5, 3, 2))

    assert_same(load_recording(tmp_path / "m.zarr"))
    part = load_recording(tmp_path / "m.zarr", region="IT", time=(0.0, 0.2))
    np.testing.assert_array_equal(part.responses, session.responses[:, 1:4, 2:])


def test_zarr__takes_the_names_of_axes(tmp_path, session, assert_same):
    group = zarr.open_group(tmp_path / "m.zarr", mode="w")
    turned = session.responses.transpose(2, 0, 1)
    group.create_array("responses", data=turned, dimension_names=["channel", "sample", "time"])
    for name in ("condition", "session", "region", "position", "time"):
        values = getattr(session, name)
        group.create_array(name, data=values.astype(np.dtypes.StringDType()) if values.dtype.kind == "U" else values)

    assert_same(load_recording(tmp_path / "m.zarr"))


def test_zarr__reads_what_the_store_holds(tmp_path, session):
    store = ActivationStore(tmp_path / "store")
    store.write_inputs("brain", {"responses": session.responses[:, 0], "condition": np.arange(12)}, source={})

    found = load_recording(tmp_path / "store" / "inputs" / "brain")

    np.testing.assert_array_equal(found.responses, session.responses[:, 0])


def test_zarr__raises_on_broken_chunks_and_descriptions(tmp_path, session):
    group = zarr.open_group(tmp_path / "m.zarr", mode="w")
    group.create_array("responses", data=session.responses[:, 0])
    group.create_array("condition", data=session.session)
    (tmp_path / "m.zarr" / "responses" / "c" / "0" / "0").write_bytes(b"no chunk")
    with pytest.raises(RecordingError, match=r"must be a whole Zarr group. Got: CorruptStoreError"):
        load_recording(tmp_path / "m.zarr")
    (tmp_path / "m.zarr" / "zarr.json").write_text("{}")
    with pytest.raises(RecordingError, match="must be a whole Zarr group"):
        load_recording(tmp_path / "m.zarr")


def test_zarr__refuses_pickles(tmp_path, session):
    group = zarr.open_group(tmp_path / "m.zarr", mode="w", zarr_format=2)
    group.create_array("responses", data=session.responses[:, 0])
    described = json.loads((tmp_path / "m.zarr" / "responses" / ".zarray").read_text())
    described |= {"filters": [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 5}], "dtype": "|O", "fill_value": None}
    (tmp_path / "m.zarr" / "responses" / ".zarray").write_text(json.dumps(described))

    with pytest.raises(RecordingError, match="must hold no pickles, which run code"):
        load_recording(tmp_path / "m.zarr")


# CSV
@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("csv", ";"), ("tsv", "\t")])
def test_csv__with_one_column_per_channel(tmp_path, session, assert_same, suffix, delimiter):
    rows = [
        [*each, *map(repr, values.tolist())]
        for each, values in zip(
            zip(session.condition, session.session, strict=True), session.responses[:, 0], strict=True
        )
    ]
    write_rows(tmp_path / f"m.{suffix}", [["Stimulus", "session", "e1", "e2", "e3", "e4", "e5"], *rows], delimiter)
    write_rows(
        tmp_path / "m.channels.csv",
        [["name", "region"], *((f"e{i + 1}", each) for i, each in enumerate(session.region))],
    )

    found = load_recording(tmp_path / f"m.{suffix}")

    assert_same(found, time=False, position=False)
    assert found.channel_descriptors["channel"].tolist() == ["e1", "e2", "e3", "e4", "e5"]


def test_csv__with_one_column_per_channel_and_one_row_per_time_step(tmp_path, session, rng):
    repetition = np.repeat([0, 1, 2], 4)
    rows = [
        [session.condition[s], repetition[s], session.time[t], *session.responses[s, t]]
        for s in range(12)
        for t in range(6)
    ]
    write_rows(
        tmp_path / "m.csv",
        [["condition", "repetition", "time", "a", "b", "c", "d", "e"], *(rows[i] for i in rng.permutation(72))],
    )

    found = load_recording(tmp_path / "m.csv")

    expected = session.responses.reshape(3, 4, 6, 5)[:, np.argsort(session.condition[:4])]
    np.testing.assert_array_equal(found.by_condition(), expected)


def test_csv__with_one_row_per_response(tmp_path, session, rng):
    rows = [
        ["s1", session.region[c], c, session.condition[s], session.time[t], session.responses[s, t, c]]
        for s in range(12)
        for t in range(6)
        for c in range(5)
    ]
    rows += [["s2", "IT", 0, "cat", time, 7.5 + time] for time in session.time]
    write_rows(tmp_path / "m.csv", [["subject", "region", "channel", "condition", "time", "response"], *rows])

    found = load_recording(tmp_path / "m.csv")

    own = found.select(subject="s1")
    expected = session.responses.reshape(3, 4, 6, 5)[:, np.argsort(session.condition[:4])]
    np.testing.assert_array_equal(own.by_condition(), expected)
    assert own.region.tolist() == session.region.tolist()
    assert found.select(subject="s2").responses[0, :, 0] == pytest.approx(7.5 + session.time)


def test_csv__what_is_empty_is_missing(tmp_path):
    (tmp_path / "m.csv").write_text("\ufeffcondition,subject,a,b\ncat,1,1.5,\ndog,1,NA,2\ncat,1,3,4\n", "utf-8")

    found = load_recording(tmp_path / "m.csv", bad_channels="keep")

    np.testing.assert_array_equal(found.responses, [[1.5, np.nan], [np.nan, 2.0], [3.0, 4.0]])
    assert found.subjects.tolist() == [1]


def test_csv__digits_that_are_names_stay_as_they_are(tmp_path):
    (tmp_path / "m.csv").write_text("image,session,a\n007,1_2,1\n10,1_3,2.5\n")

    found = load_recording(tmp_path / "m.csv")

    assert found.conditions.tolist() == ["007", "10"]
    assert found.sessions.tolist() == ["1_2", "1_3"]


def test_csv__raises_on_tables_that_are_none(tmp_path):
    for text, message in (
        ("condition,a\n", "the first line must name each column"),
        ("a,a\n1,2\n", "once, and others follow"),
        ("condition,a\ncat,1,2\ndog,2\n", "each line must have 2 entries.* Got 1 .* line 2 with 3"),
        ("condition,note\ncat,x\n", "a column of numbers for each channel. Got none for any"),
        ("condition,time,a\ncat,0,1\ncat,0,2\n", "one row for each sample and time"),
        ("condition,repetition,channel,response\ncat,0,1,1\ncat,0,1,2\n", "Got 1 rows that repeat another"),
        ("stim_number,a\n1,2\n2,3\n", "condition is missing"),
    ):
        (tmp_path / "m.csv").write_text(text)
        with pytest.raises(RecordingError, match=message):
            load_recording(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_bytes(b"condition,a\n\xff\xfe,1\n")
    with pytest.raises(RecordingError, match="must be a whole table in UTF-8"):
        load_recording(tmp_path / "m.csv")


def write_rows(path, rows, delimiter=","):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def cells(texts):
    made = np.empty((len(texts), 1), object)
    made[:, 0] = [str(each) for each in texts]
    return made


def matlab_file(path):
    """HDF5 behind the 512 bytes that MATLAB puts first."""
    with h5py.File(path, "w", userblock_size=512):
        pass
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))
    return h5py.File(path, "r+")


def matlab_array(group, name, values):
    group[name] = np.asarray(values).T
    group[name].attrs["MATLAB_class"] = np.bytes_("double")


def matlab_text(group, name, text):
    group[name] = np.array([[ord(each)] for each in text], np.uint16)
    group[name].attrs["MATLAB_class"] = np.bytes_("char")


def matlab_cells(file, group, name, texts):
    references = []
    for index, text in enumerate(texts):
        matlab_text(file.require_group("#refs#"), f"{name}{index}", str(text))
        references.append([file[f"#refs#/{name}{index}"].ref])
    group.create_dataset(name, data=np.array(references, h5py.ref_dtype).T, dtype=h5py.ref_dtype)
    group[name].attrs["MATLAB_class"] = np.bytes_("cell")
