"""Pairs of directions as an object that is fitted on some samples and used on others: what CCA and PLS share.

    u = (X - x̄) A,    v = (Y - ȳ) B,    score = mean_k corr(u_k, v_k)

Source: [@hotelling1936], [@wegelin2000].
Cost: n (p + q) K for K components.
Chunked over: samples.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mechint_core.alignment._canonical import correlations_of
from mechint_core.alignment._coordinates import AlignedCoordinates, Coordinates, unit_weights
from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.kernels.joint_covariance import joint_covariance
from mechint_core.parallel import BLOCK_BYTES, Rows, rows_in


@dataclass(frozen=True, slots=True)
class Fitted:
    """Two systems' coordinates, and the directions that were found in them."""

    data: AlignedCoordinates
    weights_x: np.ndarray
    weights_y: np.ndarray
    strengths: np.ndarray
    """What was maximised, in the samples that were fitted."""


class PairedDirections(ABC):
    """Directions of two systems, to be fitted on some samples and scored on others."""

    def __init__(self) -> None:
        self._found: Fitted | None = None

    @abstractmethod
    def fit(self, x: Float[Rows, "sample unit"], y: Float[Rows, "sample other_unit"]) -> "PairedDirections":
        """Find the directions."""

    @property
    def weights_x(self) -> Float[np.ndarray, "_ component"]:
        """Weights of the first system's units; of its fitted samples, for a radial kernel."""
        return unit_weights(self._fitted.data.x, self._fitted.weights_x)

    @property
    def weights_y(self) -> Float[np.ndarray, "_ component"]:
        """The same of the second system."""
        return unit_weights(self._fitted.data.y, self._fitted.weights_y)

    def score(self, x: Float[Rows, "sample unit"], y: Float[Rows, "sample other_unit"]) -> float:
        """Return the mean correlation of the pairs of directions on these samples, which should be new ones."""
        return float(self.correlations(x, y).mean())

    def correlations(
        self, x: Float[Rows, "sample unit"], y: Float[Rows, "sample other_unit"]
    ) -> Float[np.ndarray, "component"]:
        """Return the correlation of each pair of directions on these samples; 0 where a variate does not vary."""
        u, v = self._variates(x, y)
        step = min(rows_in(BLOCK_BYTES, x), rows_in(BLOCK_BYTES, y))
        covariance = joint_covariance(u, v, block_rows=step).whole
        each = np.eye(covariance.xy.shape[0])
        return correlations_of(covariance, each, each)

    def transform(
        self, x: Float[Rows, "sample unit"], y: Float[Rows, "sample other_unit"]
    ) -> tuple[Float[np.ndarray, "sample component"], Float[np.ndarray, "sample component"]]:
        """Return the variates of these samples, less their mean over the samples that were fitted."""
        found, (u, v) = self._fitted, self._variates(x, y)
        whole = found.data.whole
        return u[:] - whole.mean_x @ found.weights_x, v[:] - whole.mean_y @ found.weights_y

    def _variates(self, x: Rows, y: Rows) -> tuple["Variates", "Variates"]:
        found = self._fitted
        for name, rows, coordinates in (("x", x, found.data.x), ("y", y, found.data.y)):
            if len(rows.shape) != 2 or rows.shape[1] != coordinates.n_columns:
                raise ShapeError(
                    f"{name} must be (sample, unit) with the {coordinates.n_columns} units that were fitted. "
                    f"Got shape {rows.shape}."
                )
        return Variates(x, found.data.x, found.weights_x), Variates(y, found.data.y, found.weights_y)

    @property
    def _fitted(self) -> Fitted:
        if self._found is None:
            raise ConfigurationError("directions must be fitted before they are used. Call fit(x, y) first.")
        return self._found


@dataclass(frozen=True, slots=True)
class Variates:
    """The variates of a system, row by row, none of which is computed before it is asked for."""

    rows: Rows
    coordinates: Coordinates
    weights: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis; rows first."""
        return (self.rows.shape[0], self.weights.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Kind of number."""
        return np.dtype(np.float64)

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Take a run of rows to its variates."""
        return self.coordinates.of(np.asarray(self.rows[rows])) @ self.weights
