import json

import hypothesis.strategies as st
import numpy as np
import pytest
import zarr
from hypothesis import given

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.kernels.shuffle import BlockShuffle
from mechint_core.random import generator


class Counted:
    """Rows that remember what was read of them."""

    def __init__(self, rows):
        self.rows, self.shape, self.dtype = rows, rows.shape, rows.dtype
        self.n_read, self.reads = 0, []

    def __getitem__(self, rows):
        read = self.rows[rows]
        self.n_read += len(read)
        self.reads.append(len(read))
        return read


def numbered(n_rows, *rest):
    """Rows whose vectors are told apart by their first unit."""
    rows = np.zeros((n_rows, *rest), np.float32)
    rows[..., 0] = np.arange(np.prod(rows.shape[:-1])).reshape(rows.shape[:-1])
    return rows


def take(batches, n):
    return [next(batches)[:, 0].astype(int).tolist() for _ in range(n)]


sizes = st.fixed_dictionaries(
    {
        "n_rows": st.integers(1, 60),
        "positions": st.integers(1, 3),
        "batch_size": st.integers(1, 40),
        "block_rows": st.integers(1, 12) | st.none(),
        "buffer_bytes": st.integers(1, 600),
        "seed": st.integers(0, 5),
    }
)


def loader(n_rows, positions, **options):
    rows = numbered(n_rows, positions, 2) if positions > 1 else numbered(n_rows, 2)
    return BlockShuffle(rows, **options)


# Known answer
def test_block_shuffle__a_batch_mixes_vectors_from_far_apart():
    """16 of 100 blocks fit in the buffer: the vectors of one batch of 64 come from nearly all of those 16.

    64 draws from 16 equal blocks miss a given one with chance (15/16)^64 = 0.016, so 14 is 6 sigma away.
    """
    batches = BlockShuffle(numbered(10_000, 4), batch_size=64, block_rows=100, buffer_bytes=16 * 100 * 16)

    batch = next(batches)[:, 0].astype(int)

    assert len(set(batch // 100)) >= 14
    assert not np.array_equal(batch, np.sort(batch))


def test_block_shuffle__reads_each_row_once_per_epoch_in_blocks():
    rows = Counted(numbered(1000, 3))
    batches = BlockShuffle(rows, batch_size=7, block_rows=50, buffer_bytes=4 * 50 * 12)

    take(batches, batches.n_batches)

    assert rows.n_read == 1000
    assert min(rows.reads) >= 50


def test_block_shuffle__a_source_that_fits_the_buffer_is_read_once_in_all():
    rows = Counted(numbered(1000, 3))
    batches = BlockShuffle(rows, batch_size=100)

    first, second = take(batches, 10), take(batches, 10)

    assert rows.n_read == 1000
    assert first != second


def test_block_shuffle__restored_in_the_middle_reads_at_most_one_buffer_to_go_on():
    rows = Counted(numbered(1000, 3))
    batches = BlockShuffle(rows, batch_size=10, block_rows=50, buffer_bytes=4 * 50 * 12)
    batches.restore({"epoch": 3, "batch": 55})

    next(batches)

    assert rows.n_read <= 200


# Oracle
def test_block_shuffle__one_buffer_is_a_plain_permutation():
    rows = numbered(500, 2)

    ours = np.concatenate(take(BlockShuffle(rows, batch_size=60, seed=4), 9))

    assert ours.tolist() == generator(4, "vectors", 0, 0).permutation(500).tolist()


def test_block_shuffle__stored_rows_give_the_batches_of_rows_in_memory(tmp_path):
    rows = numbered(700, 2, 4)
    stored = zarr.create_array(tmp_path / "rows.zarr", shape=rows.shape, chunks=(64, 2, 4), dtype=rows.dtype)
    stored[:] = rows
    options = {"batch_size": 90, "block_rows": 32, "buffer_bytes": 4096, "seed": 2}

    ours, oracle = BlockShuffle(stored, **options), BlockShuffle(rows, **options)

    for _ in range(2 * oracle.n_batches):
        np.testing.assert_array_equal(next(ours), next(oracle))


# Law
@given(sizes)
def test_block_shuffle__gives_every_vector_once_per_epoch(options):
    batches = loader(**options)
    for _ in range(2):
        epoch = take(batches, batches.n_batches)

        assert sorted(number for batch in epoch for number in batch) == list(range(batches.n_vectors))
        lengths = [len(batch) for batch in epoch]
        assert max(lengths) <= options["batch_size"]
        assert max(lengths) - min(lengths) <= 1


@given(sizes, st.integers(0, 70))
def test_block_shuffle__restored_anywhere_continues_with_the_very_next_batch(options, n_before):
    uninterrupted, stopped, restored = loader(**options), loader(**options), loader(**options)
    take(uninterrupted, n_before)
    take(stopped, n_before)

    restored.restore(json.loads(json.dumps(stopped.state())))

    n_after = uninterrupted.n_batches + 2
    assert take(restored, n_after) == take(uninterrupted, n_after)


@given(sizes)
def test_block_shuffle__same_seed_same_batches(options):
    first, second = loader(**options), loader(**options)

    assert take(first, 5) == take(second, 5)


def test_block_shuffle__seeds_and_epochs_differ():
    def epochs(seed):
        batches = BlockShuffle(numbered(300, 2), batch_size=300, seed=seed)
        return take(batches, 2)

    assert len({tuple(epoch) for seed in (0, 1) for epoch in epochs(seed)}) == 4


def test_block_shuffle__does_not_give_out_views_of_the_source():
    rows = numbered(10, 2)

    next(BlockShuffle(rows, batch_size=10))[:] = -1

    assert (rows[:, 0] == np.arange(10)).all()


# Bad input
@pytest.mark.parametrize("shape", [(5,), (0, 3), (4, 0)])
def test_block_shuffle__refuses_rows_without_vectors(shape):
    with pytest.raises(ShapeError, match="rows must be"):
        BlockShuffle(np.zeros(shape), batch_size=1)


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"buffer_bytes": 0}, {"block_rows": 0}])
def test_block_shuffle__refuses_sizes_below_one(option):
    with pytest.raises(ConfigurationError, match="must be at least 1"):
        BlockShuffle(numbered(4, 2), **{"batch_size": 2, **option})


@pytest.mark.parametrize("state", [{"epoch": -1, "batch": 0}, {"epoch": 0, "batch": 2}, {"epoch": 0, "batch": -1}])
def test_block_shuffle__refuses_a_place_that_no_epoch_has(state):
    with pytest.raises(ConfigurationError, match="within an epoch of 2 batches"):
        BlockShuffle(numbered(4, 2), batch_size=2).restore(state)
