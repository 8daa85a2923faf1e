"""Labels and numbers as files hold them, made into strings, integers and floats; what cannot be is said in words."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

SHOWN: Final = 8
"""Names in a message: of a thousand, the first few tell as much."""
_EXACT: Final = 2**24
"""Integers below this are themselves in float32."""


def listed(names: Iterable[Any]) -> str:
    """Return names for a message, of many the first few."""
    every = [repr(each) for each in names]
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more if every else "nothing"


def duplicates(*columns: Sequence[Any] | np.ndarray) -> list[Any]:
    """Return the rows of these columns that occur more than once; of one column, its entries."""
    plain = [each.tolist() if isinstance(each, np.ndarray) else list(each) for each in columns]
    counts = Counter(zip(*plain, strict=True))
    twice = [row for row, count in counts.items() if count > 1]
    return twice if len(columns) > 1 else [row[0] for row in twice]


def as_floats(name: str, values: Any, problems: list[str]) -> np.ndarray:
    """Return real numbers as float32, if that holds them exactly, or float64."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        problems.append(f"{name} must be real numbers. Got {described(array)}.")
        return np.full(array.shape, np.nan)
    if array.dtype.kind == "f":
        return array.astype(
            np.float32 if array.dtype.itemsize <= np.dtype(np.float32).itemsize else np.float64, copy=False
        )
    small = array.dtype.itemsize <= 2 or (array.size > 0 and array.min() > -_EXACT and array.max() < _EXACT)
    return array.astype(np.float32 if small else np.float64)


def as_labels(name: str, values: np.ndarray, length: int, axis: str, problems: list[str]) -> np.ndarray:
    """Return one string or integer per step of the axis."""
    if values.shape != (length,):
        problems.append(f"{name} must have one entry per {axis} ({length}). Got shape {values.shape}.")
        return np.full(length, "")
    if values.dtype.kind == "f":
        n_unknown = int((~np.isfinite(values)).sum())
        if n_unknown:
            problems.append(f"{name} must be known of every {axis}. Got {n_unknown} of {length} that are NaN.")
            return np.full(length, "")
        whole = values == np.rint(values)
        return values.astype(np.int64) if whole.all() else np.array([f"{each:g}" for each in values.tolist()])
    found = as_text(values) if values.dtype.kind in "OSTU" else values.astype(np.int64)
    if found is None or values.dtype.kind not in "OSTUiub":
        problems.append(f"{name} must be strings or integers. Got {described(values)}.")
        return np.full(length, "")
    n_empty = int((found == "").sum()) if found.dtype.kind == "U" else 0
    if n_empty:
        problems.append(f"{name} must be known of every {axis}. Got {n_empty} of {length} that are empty.")
    return found


def as_text(values: np.ndarray) -> np.ndarray | None:
    """Return strings, bytes or objects that are either as an array of strings; None if they are anything else."""
    if values.dtype.kind == "U":
        return values
    texts: list[str] = []
    for each in values.ravel().tolist():
        if isinstance(each, bytes):
            texts.append(each.decode("utf-8", "replace").rstrip("\0"))
        elif isinstance(each, str):
            texts.append(each)
        elif isinstance(each, int | np.integer) and not isinstance(each, bool):
            texts.append(str(int(each)))
        else:
            return None
    return np.array(texts, np.str_).reshape(values.shape)


def described(array: np.ndarray) -> str:
    """Return what an array is, for a message."""
    if array.dtype.kind == "O" and array.size:
        return f"an array of {type(array.ravel()[0]).__name__} of shape {array.shape}"
    return f"{array.dtype} of shape {array.shape}"
