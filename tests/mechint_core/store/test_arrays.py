"""Stored arrays: what was appended is what is read, by rows, columns and positions."""

import hashlib
import operator
import pickle
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import xarray
import zarr
from hypothesis import given, settings, strategies as st

from mechint_core.errors import ConfigurationError, CorruptStoreError, DtypeError, NotFoundError, ShapeError
from mechint_core.parallel import Rows
from mechint_core.store import ActivationStore, StoredArray, chunks, writing


def append(store: ActivationStore, *blocks: np.ndarray, **options: Any) -> StoredArray:
    with store.write_activations("run", 0, "site", **{"source": {}, **options}) as writer:
        for block in blocks:
            writer.append(block)
    return store.activations("run", 0, "site")


def stored(store: ActivationStore, values: np.ndarray, **options: Any) -> StoredArray:
    axes = ("sample", "position", "unit") if values.ndim == 3 else ("sample", "unit")
    options = {"axes": axes, "dtype": values.dtype.name, **options}
    return append(store, values[:100], values[100:], n_samples=len(values), **options)


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    return ActivationStore(tmp_path / "store")


@pytest.fixture
def small_chunks():
    with mock.patch.object(chunks, "CHUNK_BYTES", 4096):
        yield


# Known answer


def test_stored_array__digest_is_the_sha256_of_header_and_rows(store, rng):
    values = rng.standard_normal((30, 4)).astype(np.float32)
    by_hand = hashlib.sha256(b"float32 [30, 4]\n" + values.tobytes()).hexdigest()
    assert stored(store, values).digest == by_hand


def test_stored_array__reads_the_rows_columns_and_positions_that_were_written(store, rng, small_chunks):
    values = rng.standard_normal((700, 3, 8)).astype(np.float32)
    array = stored(store, values)
    assert isinstance(array, Rows)
    assert (array.shape, array.axes, array.dtype) == ((700, 3, 8), ("sample", "position", "unit"), np.float32)
    np.testing.assert_array_equal(array.read(), values)
    np.testing.assert_array_equal(np.asarray(array), values)
    for rows in (
        slice(0, 1),
        slice(41, 44),
        slice(500, None),
        slice(-5, None),
        slice(9, 400, 7),
        slice(5, 5),
        slice(9, 2),
    ):
        np.testing.assert_array_equal(array[rows], values[rows])
        np.testing.assert_array_equal(array.at_position(-1)[rows], values[rows, -1])
    np.testing.assert_array_equal(array.columns(slice(2, 5)), values[..., 2:5])
    view = array.at_position(1)
    assert (view.shape, view.axes, view.digest) == ((700, 8), ("sample", "unit"), f"{array.digest}@1")
    np.testing.assert_array_equal(view.columns(slice(1, None, 2)), values[:, 1, 1::2])


def test_column_blocks__cover_every_unit_once(store, rng, small_chunks):
    values = rng.standard_normal((300, 10)).astype(np.float32)
    blocks = list(stored(store, values).column_blocks(4))
    assert [units for units, _ in blocks] == [slice(0, 4), slice(4, 8), slice(8, 10)]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks], axis=1), values)


def test_at_position__reads_only_the_chunks_of_its_rows(store, rng, small_chunks):
    values = rng.standard_normal((64, 4, 16)).astype(np.float32)  # 256 bytes a row: 16 rows in a chunk
    array = stored(store, values)
    with mock.patch.object(chunks._ChunkFiles, "_read_chunk", autospec=True) as read:
        array.at_position(2)[17:30]
    assert [call.args[1] for call in read.call_args_list] == [1]


def test_bfloat16__round_trips_through_torch(store, rng):
    tensor = torch.from_numpy(rng.standard_normal((50, 8)).astype(np.float32)).to(torch.bfloat16)
    array = stored(store, tensor.view(torch.uint16).numpy(), dtype="bfloat16")
    assert (array.dtype, array.logical_dtype, array.bits().dtype) == (np.float32, "bfloat16", np.uint16)
    assert torch.equal(torch.from_numpy(array.bits().read()).view(torch.bfloat16), tensor)
    np.testing.assert_array_equal(array.read(), tensor.float().numpy())
    assert zarr.open_array(store.place.folder / array.path / "values", mode="r").attrs["logical_dtype"] == "bfloat16"


# Oracle


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "uint8", "bool", "complex64"])
def test_stored_array__reads_what_zarr_itself_reads(store, rng, small_chunks, dtype):
    array = stored(store, (100 * rng.standard_normal((500, 6))).astype(dtype))
    zarr_reads = zarr.open_array(store.place.folder / array.path / "values", mode="r")[:]
    assert array.dtype == zarr_reads.dtype
    np.testing.assert_array_equal(array.read(), zarr_reads)


@pytest.mark.filterwarnings("ignore:Object at commit.json is not recognized")  # zarr, of every file that is not its own
def test_xarray__opens_an_activation_group_with_named_axes(store, rng):
    values = rng.standard_normal((20, 3, 5)).astype(np.float32)
    array = stored(store, values)
    with xarray.open_zarr(store.place.folder / array.path, consolidated=False, chunks=None) as opened:
        assert opened["values"].dims == ("sample", "position", "unit")
        np.testing.assert_array_equal(opened["values"].values, values)


def test_bfloat16__rounds_floats_as_torch_does(store, rng):
    values = (rng.standard_normal((2000, 4)) * 10.0 ** rng.integers(-40, 38, (2000, 4))).astype(np.float32)
    values[0] = [np.nan, np.inf, -np.inf, 3.4e38]
    array = stored(store, values, dtype="bfloat16")
    np.testing.assert_array_equal(array.read(), torch.from_numpy(values).to(torch.bfloat16).float().numpy())


# Law


@settings(max_examples=40)
@given(
    n_rows=st.integers(1, 60),
    n_units=st.integers(1, 5),
    chunk_bytes=st.integers(1, 300),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    shard_rows=st.none() | st.integers(1, 20),
    url=st.sampled_from(["", "memory://law/"]),
)
def test_write_activations__numbers_and_digest_do_not_depend_on_blocks_chunks_shards_or_place(
    tmp_path_factory, n_rows, n_units, chunk_bytes, cuts, shard_rows, url
):
    store = ActivationStore(url or tmp_path_factory.mktemp("law"))
    values = np.arange(n_rows * n_units, dtype=np.float32).reshape(n_rows, n_units)
    bounds = [0, *sorted(min(cut, n_rows) for cut in cuts), n_rows]
    blocks = [values[start:stop] for start, stop in pairwise(bounds)]
    with mock.patch.object(chunks, "CHUNK_BYTES", chunk_bytes):
        array = append(store, *blocks, n_samples=n_rows, shard_rows=shard_rows)
    assert array.digest == writing.array_digest(values)
    np.testing.assert_array_equal(array.read(), values)
    for start, block in zip(bounds, blocks, strict=False):
        np.testing.assert_array_equal(array[start : start + len(block)], block)


def test_stored_array__digest_tells_shape_dtype_and_content_apart(store, rng):
    values = rng.integers(0, 9, (6, 4)).astype(np.float32)
    variants = [values, values.reshape(4, 6), values.astype(np.float64), values + 1, values[:, ::-1]]
    assert len({stored(store, each).digest for each in variants}) == len(variants)


def test_stored_array__pickles_and_is_read_in_another_process(store, rng, small_chunks):
    values = rng.standard_normal((200, 8)).astype(np.float32)
    array = stored(store, values)
    array[:1]  # an opened reader does not travel
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(array))[7:9], values[7:9])
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        there = other.submit(operator.getitem, array, slice(7, 190)).result()
    np.testing.assert_array_equal(there, values[7:190])


# Bad input


def test_write_activations__refuses_too_few_and_too_many_rows_and_commits_nothing(store):
    for n_rows in (0, 9, 11):
        with pytest.raises(ShapeError, match=f"rows must be 10 in all. Got {n_rows}"):
            append(store, np.zeros((n_rows, 2), np.float32), n_samples=10)
    assert list(store.ls()) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_samples": 0}, ShapeError, "n_samples must be an integer >= 1"),
        ({"axes": ("sample", "neuron")}, ConfigurationError, "axes must be different names"),
        ({"dtype": "float31"}, DtypeError, "dtype must be a numpy dtype's name"),
        ({"dtype": "str"}, DtypeError, "must hold numbers"),
        ({"shard_rows": 0}, ConfigurationError, "shard_rows must be at least 1"),
        ({"source": {"model": object()}}, ConfigurationError, "must be JSON"),
    ],
)
def test_write_activations__refuses_impossible_options(store, options, error, message):
    with pytest.raises(error, match=message):
        append(store, np.zeros((2, 2), np.float32), **{"n_samples": 2, **options})
    assert list(store.ls()) == []


@pytest.mark.parametrize(
    ("dtype", "block", "error", "message"),
    [
        ("float32", np.zeros(3, np.float32), ShapeError, "a block must be"),
        ("float32", np.zeros((1, 3), np.float32), ShapeError, r"rows \(2,\). Got \(1, 3\)"),
        ("float32", np.zeros((1, 2), complex), DtypeError, "rows must be float32 or convertible"),
        ("int64", np.zeros((1, 2)), DtypeError, "rows must be int64 or convertible"),
        ("float16", np.full((1, 2), 1e5), DtypeError, "must fit into float16"),
        ("bfloat16", np.zeros((1, 2), np.int64), DtypeError, "bfloat16 must be given as floats"),
    ],
)
def test_append__refuses_rows_that_do_not_fit(store, dtype, block, error, message):
    first = np.zeros((1, 2), "uint16" if dtype == "bfloat16" else dtype)
    with pytest.raises(error, match=message):
        append(store, first, block, n_samples=4, dtype=dtype)
    assert list(store.ls()) == []


def test_stored_array__refuses_what_is_no_slice_of_rows_or_no_position(store):
    array = stored(store, np.zeros((4, 2, 3), np.float32))
    with pytest.raises(ConfigurationError, match="read forwards"):
        array[::-1]
    with pytest.raises(ConfigurationError, match="width must be at least 1"):
        next(array.column_blocks(0))
    with pytest.raises(ShapeError, match="position must be from -2 to 1"):
        array.at_position(2)
    with pytest.raises(ShapeError, match=r"must have axes \(sample, position, unit\)"):
        array.at_position(0).at_position(0)


@pytest.mark.parametrize("damage", ["missing", "truncated", "longer"])
def test_stored_array__refuses_a_damaged_chunk(store, rng, small_chunks, damage):
    array = stored(store, rng.standard_normal((500, 16)).astype(np.float32))
    chunk = store.place.folder / array.path / "values" / "c" / "3" / "0"
    whole = chunk.read_bytes()
    chunk.unlink() if damage == "missing" else chunk.write_bytes(whole[:-1] if damage == "truncated" else whole + b"0")
    np.testing.assert_array_equal(array[:64].shape, (64, 16))  # the others can be read
    with pytest.raises(CorruptStoreError, match="chunk is missing" if damage == "missing" else "must hold 4096 bytes"):
        array.read()


def test_stored_array__says_when_its_entry_has_been_replaced_or_removed(store):
    array = stored(store, np.zeros((4, 3), np.float32))
    array[:1]
    stored(store, np.zeros((4, 3), np.float32))
    np.testing.assert_array_equal(array[:1], 0)  # by equal numbers: nothing to say
    stored(store, np.ones((4, 3), np.float32))
    with pytest.raises(CorruptStoreError, match=r"has been replaced\. Open it again"):
        array[:1]
    store.place.remove(array.path)
    with pytest.raises(NotFoundError, match="has been removed"):
        array[:1]
