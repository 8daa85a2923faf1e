"""Shuffled batches of rows that need not fit in memory.

    blocks   = the rows, cut into runs of contiguous rows, in an order drawn per epoch
    fill     = the next blocks that fit in the buffer, read in storage order
    batches  = the vectors of a fill, in an order drawn per fill

Random rows cost a stored array 70 times what random blocks cost, and a shuffled buffer hides that neighbours came
together. Fills do not overlap, and both orders are functions of (seed, epoch, fill) alone: the whole state of the
loader is two integers, and a restored loader re-reads at most one fill to continue with the very next batch.

Cost: each row is read once per epoch (once in all, if the buffer holds every row). Memory: one buffer.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.parallel import Rows
from mechint_core.random import generator

BLOCK_VECTORS = 256
"""A block holds at least this many vectors."""
BLOCK_BYTES = 2 * 2**20
"""And about this many bytes: the size of a stored chunk, which smaller blocks would read several times."""
BUFFER_BYTES = 256 * 2**20
"""Memory for one fill, unless the caller says otherwise."""


class BlockShuffle(Iterator[Float[np.ndarray, "sample unit"]]):
    """An endless stream of shuffled batches, every vector exactly once per epoch.

    Rows with more than one axis, such as (sample, position, unit), are flattened to vectors of the last axis.
    Batches of one epoch differ in size by at most one vector and never exceed `batch_size`: no small last batch.

    Parameters
    ----------
    rows
        What to read: an array in memory or a stored one, at least two axes.
    batch_size
        Most vectors in one batch.
    seed
        Names the order. The same seed gives the same batches, wherever the rows are kept.
    buffer_bytes
        Memory for shuffling (one block, if that is more). Only vectors that share the buffer can share a batch.
    block_rows
        Rows (of the first axis) read together. By default at least `BLOCK_VECTORS` and `BLOCK_BYTES`.

    Raises
    ------
    ShapeError
        If `rows` has fewer than two axes, or holds no vector.
    ConfigurationError
        If `batch_size`, `buffer_bytes` or `block_rows` is below 1.

    Examples
    --------
    >>> batches = BlockShuffle(np.arange(8.0).reshape(4, 2), batch_size=2)
    >>> sorted(float(x) for _ in range(2) for x in next(batches)[:, 0])
    [0.0, 2.0, 4.0, 6.0]
    """

    def __init__(
        self,
        rows: Rows,
        *,
        batch_size: int,
        seed: int = 0,
        buffer_bytes: int = BUFFER_BYTES,
        block_rows: int | None = None,
    ) -> None:
        if len(rows.shape) < 2 or 0 in rows.shape:
            raise ShapeError(f"rows must be (sample >= 1, ..., unit >= 1). Got shape {rows.shape}.")
        if min(batch_size, buffer_bytes, 1 if block_rows is None else block_rows) < 1:
            raise ConfigurationError(
                f"batch_size, buffer_bytes and block_rows must be at least 1. "
                f"Got {batch_size}, {buffer_bytes} and {block_rows}."
            )
        self._rows, self._seed = rows, seed
        self._per_row = int(np.prod(rows.shape[1:-1], dtype=np.int64))  # vectors in one row
        self._block = block_rows or self._default_block(buffer_bytes)
        row_bytes = self._per_row * self.width * rows.dtype.itemsize
        self._blocks_per_fill = max(1, buffer_bytes // (self._block * row_bytes))
        self._batch_size = batch_size
        self._epoch = self._batch = 0
        self._planned = self._filled = -1  # the epoch and fill that the next three fields belong to
        self._fills: list[np.ndarray] = []  # the blocks of each fill
        self._starts = np.zeros(0, np.int64)  # first vector of each fill, and the end of the last
        self._order = np.zeros(0, np.int64)
        self._held: tuple[int, ...] = ()  # the blocks now in the buffer
        self._buffer = np.zeros((0, self.width), rows.dtype)

    @property
    def n_vectors(self) -> int:
        """Vectors in one epoch."""
        return self._rows.shape[0] * self._per_row

    @property
    def n_batches(self) -> int:
        """Batches in one epoch."""
        return -(-self.n_vectors // self._batch_size)

    @property
    def width(self) -> int:
        """Units of one vector."""
        return self._rows.shape[-1]

    def state(self) -> dict[str, int]:
        """Return where the stream is: the epoch, and the batches of it already given."""
        return {"epoch": self._epoch, "batch": self._batch}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go to a place returned by `state` (of a loader with the same rows, sizes and seed).

        Raises
        ------
        ConfigurationError
            If no epoch of these rows has such a place.
        """
        epoch, batch = state["epoch"], state["batch"]
        if epoch < 0 or not 0 <= batch < self.n_batches:
            raise ConfigurationError(f"batch must be within an epoch of {self.n_batches} batches. Got {dict(state)}.")
        self._epoch, self._batch = epoch, batch

    def __next__(self) -> Float[np.ndarray, "sample unit"]:
        """Return the next batch, and go on to the next epoch after the last one of this."""
        self._plan()
        start, stop = (batch * self.n_vectors // self.n_batches for batch in (self._batch, self._batch + 1))
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts: list[np.ndarray] = []
        while start < stop:
            self._fill(first)
            offset, end = int(self._starts[first]), int(self._starts[first + 1])
            parts.append(self._buffer[self._order[start - offset : min(stop, end) - offset]])
            start, first = min(stop, end), first + 1
        self._batch += 1
        if self._batch == self.n_batches:
            self._epoch, self._batch = self._epoch + 1, 0
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _default_block(self, buffer_bytes: int) -> int:
        """Return the fewest rows that hold enough vectors and bytes, but let a buffer hold several blocks."""
        vector_bytes = self.width * self._rows.dtype.itemsize
        vectors = max(BLOCK_VECTORS, min(BLOCK_BYTES, buffer_bytes // 8) // vector_bytes)
        return min(self._rows.shape[0], -(-vectors // self._per_row))

    def _plan(self) -> None:
        """Draw this epoch's order of blocks and divide it into fills."""
        if self._planned == self._epoch:
            return
        n_rows = self._rows.shape[0]
        order = generator(self._seed, "blocks", self._epoch).permutation(-(-n_rows // self._block))
        n_fills = -(-len(order) // self._blocks_per_fill)
        self._fills = [np.sort(blocks) for blocks in np.array_split(order, n_fills)]
        lengths = [np.sum(np.minimum(self._block, n_rows - blocks * self._block)) for blocks in self._fills]
        self._starts = np.cumsum([0, *lengths]) * self._per_row
        self._planned, self._filled = self._epoch, -1

    def _fill(self, fill: int) -> None:
        """Hold the vectors of a fill, and draw their order."""
        if self._filled == fill:
            return
        blocks = tuple(int(block) for block in self._fills[fill])
        if blocks != self._held:  # the only fill of a small source never changes: read once, shuffle anew
            self._buffer, self._held = self._buffer[:0].copy(), ()  # free it before reading the next
            self._buffer, self._held = self._read(_runs(blocks, self._block)), blocks
        self._order = generator(self._seed, "vectors", self._epoch, fill).permutation(len(self._buffer))
        self._filled = fill

    def _read(self, runs: list[slice]) -> Float[np.ndarray, "sample unit"]:
        """Return the vectors of these runs of rows; one run of an array in memory is not copied."""
        if len(runs) == 1:
            return self._rows[runs[0]].reshape(-1, self.width)
        ends = np.cumsum([0, *(min(run.stop, self._rows.shape[0]) - run.start for run in runs)]) * self._per_row
        vectors = np.empty((int(ends[-1]), self.width), self._rows.dtype)
        for run, start, stop in zip(runs, ends[:-1], ends[1:], strict=True):
            vectors[start:stop] = self._rows[run].reshape(-1, self.width)
        return vectors


def _runs(blocks: tuple[int, ...], size: int) -> list[slice]:
    """Return the row slices of sorted `blocks`, neighbours joined: one read instead of many."""
    runs: list[slice] = []
    for block in blocks:
        if runs and runs[-1].stop == block * size:
            runs[-1] = slice(runs[-1].start, (block + 1) * size)
        else:
            runs.append(slice(block * size, (block + 1) * size))
    return runs
