"""Other arrangements of rows that stay where they are: nothing is read before it is asked for."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from mechint_core.errors import ShapeError
from mechint_core.parallel import Rows


class SideBySide:
    """The vectors of several arrays, row by row next to each other.

    Parameters
    ----------
    parts
        Arrays whose axes agree up to the last.

    Raises
    ------
    ShapeError
        If they do not, or there is none.

    Examples
    --------
    >>> SideBySide([np.zeros((4, 2)), np.ones((4, 1))])[1:2]
    array([[0., 0., 1.]])
    """

    def __init__(self, parts: Sequence[Rows]) -> None:
        shapes = [tuple(part.shape) for part in parts]
        if len({shape[:-1] for shape in shapes}) != 1 or len(shapes[0]) < 2:
            raise ShapeError(f"sources must have the same (sample, ...) axes before their units. Got shapes {shapes}.")
        self._parts = list(parts)
        self.shape = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
        self.dtype = np.result_type(*(part.dtype for part in parts))

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Read a run of rows of all of them."""
        if len(self._parts) == 1:
            return self._parts[0][rows]
        n = len(range(*rows.indices(self.shape[0])))
        joint, start = np.empty((n, *self.shape[1:]), self.dtype), 0
        for part in self._parts:  # one at a time: no more than one part is there twice
            joint[..., start : start + part.shape[-1]] = part[rows]
            start += part.shape[-1]
        return joint


class KeptVectors:
    """The vectors of (sample, position, unit) at the positions that count, one after the other.

    Parameters
    ----------
    rows
        Any axes before the units.
    kept
        (sample, ...): what is no padding. It is held in memory, one byte a vector.

    Raises
    ------
    ShapeError
        If `kept` has not the axes of `rows` before its last, or keeps nothing.

    Examples
    --------
    >>> rows, kept = np.arange(6.0).reshape(2, 3, 1), np.array([[True, True, False], [True, False, False]])
    >>> KeptVectors(rows, kept)[1:3].ravel()
    array([1., 3.])
    """

    def __init__(self, rows: Rows, kept: Bool[np.ndarray, "sample *position"]) -> None:
        if tuple(rows.shape[:-1]) != kept.shape or not kept.any():
            raise ShapeError(
                f"kept must be (sample, position) like rows {tuple(rows.shape)}, and keep at least one vector. "
                f"Got shape {kept.shape} with {int(kept.sum())} kept."
            )
        self._rows, self._kept = rows, kept
        self._ends = np.cumsum(kept.reshape(len(kept), -1).sum(axis=1))  # kept vectors up to and with each row
        self.shape = (int(self._ends[-1]), rows.shape[-1])
        self.dtype = rows.dtype

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Read a run of kept vectors."""
        start, stop, _ = rows.indices(self.shape[0])
        if stop <= start:
            return np.empty((0, self.shape[1]), self.dtype)
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._ends, stop - 1, side="right"))
        vectors = self._rows[slice(first, last + 1)][self._kept[first : last + 1]]
        before = int(self._ends[first - 1]) if first else 0
        return vectors[start - before : stop - before]
