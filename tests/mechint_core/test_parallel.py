"""One driver: the same answer on threads, on processes, on a cluster, for every chunking."""

import os

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.parallel import (
    LANES,
    Backend,
    Reduction,
    Rows,
    compute,
    local_processes,
    map_parallel,
    n_workers,
    reduce_rows,
)
from mechint_core.random import generator


def square(x: float) -> float:
    return x * x


def fails(x: float) -> float:
    raise ValueError(f"no answer for {x}")


def total(block: np.ndarray) -> np.ndarray:
    return block.sum(axis=0, dtype=np.float64)


def keep(state: np.ndarray) -> np.ndarray:
    return state


SUM = Reduction(chunk=total, combine=np.add, finalize=keep)


# Known answer
def test_map_parallel__keeps_the_order():
    assert map_parallel(square, range(50)) == [x * x for x in range(50)]


def test_reduce_rows__sums():
    assert reduce_rows(SUM, np.arange(12.0).reshape(6, 2), block_rows=2).tolist() == [30, 36]


# Law
@given(st.integers(1, 40), st.integers(1, 45), st.integers(1, 4))
def test_reduce_rows__is_the_same_for_every_chunking_and_worker_count(n_rows: int, block_rows: int, threads: int):
    x = generator(n_rows, "parallel").normal(size=(n_rows, 3))

    with compute(Backend(threads=threads)):
        chunked = reduce_rows(SUM, x, block_rows=block_rows)

    assert np.allclose(chunked, x.sum(axis=0), rtol=1e-12, atol=1e-12)


def test_reduce_rows__gives_the_same_bits_on_any_number_of_workers():
    x = generator(0, "parallel").normal(size=(1000, 3))
    answers = []
    for threads in (1, 2, 3, 7):
        with compute(Backend(threads=threads)):
            answers.append(reduce_rows(SUM, x, block_rows=7).tobytes())

    assert len(set(answers)) == 1


def test_reduce_rows__reads_each_row_once_in_at_most_lanes_runs():
    class Counted:
        def __init__(self, values: np.ndarray) -> None:
            self.values, self.shape, self.dtype, self.read = values, values.shape, values.dtype, []

        def __getitem__(self, rows: slice) -> np.ndarray:
            self.read.append((rows.start, rows.stop))
            return self.values[rows]

    counted = Counted(np.ones((100, 2)))
    assert isinstance(counted, Rows)

    with compute(Backend(threads=1)):
        reduce_rows(SUM, counted, block_rows=9)

    assert sorted(counted.read) == [(start, min(start + 9, 100)) for start in range(0, 100, 9)]
    assert LANES == 4


def test_compute__local_processes_and_a_remote_address_agree_with_threads():
    from distributed import LocalCluster

    x = generator(0, "parallel").normal(size=(60, 3))
    here = reduce_rows(SUM, x, block_rows=8).tobytes()
    with compute(Backend(processes=2)):
        assert n_workers() == 2
        assert map_parallel(square, range(10)) == [n * n for n in range(10)]
        assert reduce_rows(SUM, x, block_rows=8).tobytes() == here
    cluster = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0")
    with cluster, compute(Backend(address=cluster.scheduler_address)):
        assert reduce_rows(SUM, x, block_rows=8).tobytes() == here
    assert map_parallel(square, [3]) == [9]


def process_number(_: int) -> int:
    return os.getpid()


def test_local_processes__start_once_for_all_blocks_and_stop():
    backend, seen = Backend(processes=1), []
    with local_processes(backend), local_processes(backend):
        for _ in range(2):
            with compute(backend):
                seen += map_parallel(process_number, range(2))
    with compute(backend):
        other = map_parallel(process_number, range(2))

    assert len(set(seen)) == 1
    assert not {*other, os.getpid()} & set(seen)


def test_local_processes__last_until_the_last_block_ends_in_whatever_order():
    backend = Backend(processes=1)
    first, second = local_processes(backend), local_processes(backend)
    first.__enter__()
    second.__enter__()
    with compute(backend):
        seen = map_parallel(process_number, range(1))
    first.__exit__(None, None, None)
    with compute(backend):
        assert map_parallel(process_number, range(1)) == seen
    second.__exit__(None, None, None)
    with compute(backend):
        assert map_parallel(process_number, range(1)) != seen


def test_map_parallel__raises_what_the_function_raised():
    with pytest.raises(ValueError, match="no answer for"):
        map_parallel(fails, range(5))


# Bad input
def test_reduce_rows__raises_on_rows_that_do_not_match():
    with pytest.raises(ShapeError, match="same number of rows"):
        reduce_rows(SUM, np.ones((3, 2)), np.ones((4, 2)))


def test_reduce_rows__raises_on_no_rows():
    with pytest.raises(ShapeError, match=">= 1"):
        reduce_rows(SUM, np.ones((0, 2)))


@pytest.mark.parametrize("wrong", [{"threads": -1}, {"processes": -2}, {"address": "tcp://x:1", "processes": 1}])
def test_backend__refuses_what_makes_no_sense(wrong: dict[str, int]):
    with pytest.raises(ConfigurationError):
        Backend(**wrong)
