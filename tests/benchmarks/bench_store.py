"""The store against a raw file, page cache warm: 131072 x 768 float32, 403 MB, a quarter of the shape in the notes."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

from mechint_core.kernels.shuffle import BlockShuffle
from mechint_core.random import generator
from mechint_core.store import ActivationStore, StoredArray

N_ROWS, N_UNITS = 131_072, 768
BLOCK_BYTES = 8 * 2**20
REPEATS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Hold the same rows as one raw file and in a store."""
    folder = tmp_path_factory.mktemp("store")
    values = generator(0, "bench", "store").standard_normal((N_ROWS, N_UNITS), dtype=np.float32)
    values.tofile(folder / "raw.bin")
    store = ActivationStore(folder / "store")
    with store.write_activations("run", 0, "site", n_samples=N_ROWS, source={}) as writer:
        for start in range(0, N_ROWS, 16_384):
            writer.append(values[start : start + 16_384])
    yield folder
    shutil.rmtree(folder)  # pytest would keep the gigabyte


@pytest.fixture
def array(folder: Path) -> StoredArray:
    return ActivationStore(folder / "store").activations("run", 0, "site")


def best_of_both(ours: Callable[[], object], theirs: Callable[[], object]) -> float:
    """Return the ratio of the best times of two calls, taken in turn."""
    times: list[list[float]] = [[], []]
    for _ in range(REPEATS):
        for call, taken in zip((ours, theirs), times, strict=True):
            started = perf_counter()
            call()
            taken.append(perf_counter() - started)
    return min(times[0]) / min(times[1])


def read_blocks(array: StoredArray) -> None:
    for rows in array.row_blocks(BLOCK_BYTES):
        array[rows]


def read_raw_blocks(path: Path) -> None:
    with path.open("rb") as raw:
        while np.fromfile(raw, np.float32, BLOCK_BYTES // 4).size:
            pass


@pytest.mark.benchmark
def test_sequential_read(folder, array, record):
    ratio = best_of_both(lambda: read_blocks(array), lambda: read_raw_blocks(folder / "raw.bin"))
    record("store: sequential read, 8 MB blocks", ratio, 1 / 0.7, unit="x time of np.fromfile", note="403 MB float32")


@pytest.mark.benchmark
def test_whole_read(folder, array, record):
    ratio = best_of_both(array.read, lambda: np.fromfile(folder / "raw.bin", np.float32))
    record("store: read into one array", ratio, 1 / 0.7, unit="x time of np.fromfile", note="403 MB float32")


@pytest.mark.benchmark
def test_shuffled_batches(array, record):
    epochs: list[float] = []
    for seed in range(3):
        batches = BlockShuffle(array, batch_size=4096, seed=seed, buffer_bytes=64 * 2**20)
        started = perf_counter()
        for _ in range(batches.n_batches):
            next(batches)
        epochs.append((perf_counter() - started) / batches.n_batches)
    record(
        "store: block-shuffled batch of 4096 x 768 float32",
        min(epochs) / 0.040,
        1.0,
        unit="x 40 ms",
        note="mean over an epoch of 131072 rows, fills of 64 MB included",
    )


@pytest.mark.benchmark
def test_random_blocks(array, record):
    starts = generator(0, "bench", "blocks").integers(0, N_ROWS // 256, (50, 16)) * 256
    taken: list[float] = []
    for batch in starts:
        started = perf_counter()
        np.concatenate([array[start : start + 256] for start in batch])
        taken.append(perf_counter() - started)
    record("store: 16 random blocks of 256 rows", min(taken) / 0.040, 1.0, unit="x 40 ms", note="no buffer")
