"""The one shape every technique's answer takes.

A Result is a frozen dataclass whose annotations say everything:

    recovery: Estimate                                  a headline number with its interval and its null
    n_dropped: int                                      a number or a flag that qualifies the answer
    matrix: Float[np.ndarray, "checkpoint other_checkpoint"]   an array with named axes
    site: Annotated[tuple[str, ...], "site"]            names along an axis

From them, each written once: a Zarr group, MLflow metrics, a Prefect artifact, a section of the report.
(Do not use `from __future__ import annotations` in a module that defines a Result: the annotations are read.)
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, get_type_hints

import numpy as np

from mechint_core.figure import Figure

NAN = math.nan


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with what is needed to act on it: its interval and its null.

    `low` and `high` bound the value at `level` confidence. `null` is what the control gives (a permutation,
    a surrogate, an untrained model): `p_value` is the chance of a value as extreme under it, never 0. A part
    that does not apply is NaN. The Result's `evidence` says which interval and which null these are.
    """

    value: float
    low: float = NAN
    high: float = NAN
    null: float = NAN
    p_value: float = NAN
    level: float = 0.95

    def __str__(self) -> str:
        text = f"{self.value:.4g}"
        if not math.isnan(self.low):
            text += f" [{self.low:.4g}, {self.high:.4g}]"
        if not math.isnan(self.null):
            text += f", null {self.null:.4g}"
        if not math.isnan(self.p_value):
            text += f", p = {self.p_value:.3g}"
        return text

    def parts(self) -> dict[str, float]:
        """Return the parts that apply, by name; the value itself has the empty name."""
        named = {"": self.value, "low": self.low, "high": self.high, "null": self.null, "p_value": self.p_value}
        return {name: part for name, part in named.items() if name == "" or not math.isnan(part)}


@dataclass(frozen=True, slots=True)
class Result:
    """Base of all results: a frozen record of estimates, flags, arrays with named axes, and labels."""

    technique: ClassVar[str]
    """The name of the function that makes this result."""
    evidence: ClassVar[str]
    """One sentence: which interval and which null the Estimates carry."""
    figures: ClassVar[tuple[Figure, ...]] = ()
    """How to draw it."""

    @abstractmethod
    def reading(self) -> str:
        """Say in one or two sentences what these numbers mean, for someone who will not read the numbers."""

    def estimates(self) -> dict[str, Estimate]:
        """Return the headline numbers, in the order they are declared."""
        return {name: value for name, value in self._items() if isinstance(value, Estimate)}

    def flags(self) -> dict[str, float]:
        """Return the plain numbers and booleans that qualify the answer."""
        kinds = (bool, int, float, np.number)
        return {name: float(value) for name, value in self._items() if isinstance(value, kinds)}

    def scalars(self) -> dict[str, float]:
        """Return every number under a flat name: `slope`, `slope.low`, `slope.p_value`, `n_nan`, ..."""
        parts = {
            f"{name}.{part}" if part else name: number
            for name, estimate in self.estimates().items()
            for part, number in estimate.parts().items()
        }
        return parts | self.flags()

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays; `axes` names their axes."""
        return {name: value for name, value in self._items() if isinstance(value, np.ndarray)}

    def labels(self) -> dict[str, tuple[str, ...]]:
        """Return the names along axes (sites, measures, phases)."""
        return {name: value for name, value in self._items() if isinstance(value, tuple)}

    @classmethod
    def axes(cls) -> dict[str, tuple[str, ...]]:
        """Return the axis names of every array, read from its annotation."""
        hints: dict[str, Any] = get_type_hints(cls)
        return {name: tuple(hint.dim_str.split()) for name, hint in hints.items() if hasattr(hint, "dim_str")}

    def _items(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]
