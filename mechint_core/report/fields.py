"""What a figure declaration names, looked up in a stored result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mechint_core.errors import NotFoundError, ShapeError
from mechint_core.report.thinning import drawable
from mechint_core.report.wording import number
from mechint_core.store.record import StoredResult


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a result under the names that a declaration gives them."""

    declared: Mapping[str, Any]
    result: StoredResult

    def text(self, option: str) -> str:
        """Return an option that is text; empty if it is not given."""
        return str(self.declared.get(option) or "")

    def on(self, option: str) -> bool:
        """Return an option that is a switch."""
        return bool(self.declared.get(option))

    def numbers(self, option: str, ndim: int = 1) -> np.ndarray:
        """Return the array that `option` names."""
        return self.array(self.text(option), ndim)

    def array(self, name: str, ndim: int | None = 1) -> np.ndarray:
        """Return the array field `name`; with any number of axes if `ndim` is None."""
        if name not in self.result.arrays:
            raise NotFoundError(f"field {name!r} is not among the arrays {sorted(self.result.arrays)}.")
        array = np.asarray(self.result.arrays[name])
        if ndim not in (None, array.ndim) or (array.dtype.kind not in "biuf"):
            raise ShapeError(
                f"field {name!r} must be numbers along {ndim or 'any'} axes. Got {array.shape} {array.dtype}."
            )
        return drawable(array.astype(np.float64))

    def optional(self, option: str, like: np.ndarray) -> np.ndarray | None:
        """Return the array that `option` names, if it names one; its length must be that of `like`."""
        if not self.text(option):
            return None
        found = self.numbers(option)
        if len(found) != len(like):
            raise ShapeError(f"field {self.text(option)!r} must have length {len(like)}. Got {len(found)}.")
        return found

    def names(self, option: str) -> tuple[str, ...]:
        """Return what `option` names as labels: labels, or numbers written out; empty if it names nothing."""
        name = self.text(option)
        if name in self.result.labels:
            return tuple(self.result.labels[name])
        return tuple(number(value) for value in self.numbers(option)) if name else ()

    def scalar(self, option: str) -> float:
        """Return the number that `option` names among estimates and flags; NaN if it names nothing."""
        name = self.text(option)
        if name in self.result.estimates:
            return self.result.estimates[name].value
        return float(self.result.flags.get(name, np.nan))
