"""One training set of ridge regression in the basis in which every penalty is a division, and a fold it did not see.

    C = V diag(s) Vᵀ,   w = V (Vᵀ c / (s + λ))            C, c: sums of squares and products about the training means

    Σ (y - ŷ)² = Σ (y - ȳ)² - 2 wᵀ c_f + wᵀ C_f w         C_f, c_f: those of the fold, about the training means too

so that neither another penalty nor the error it makes reads a row again.

Source: [@hoerl1970].
Cost: p³ for the basis; p² t per penalty and fold.
Chunked over: targets.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import linalg

from mechint_core.alignment._fold_sums import FoldSums
from mechint_core.errors import DegenerateInputError


@dataclass(frozen=True, slots=True)
class Scores:
    """Sums over held-out rows per target: what R² and correlation are made of."""

    error: Float[np.ndarray, "*draw target"]
    """Σ (y - ŷ)²."""
    spread: Float[np.ndarray, "*draw target"]
    """Σ (y - ȳ)², ȳ the mean of the training rows."""
    shared: Float[np.ndarray, "*draw target"]
    """Σ (y - <y>)(ŷ - <ŷ>), < > the mean over the fold."""
    predicted: Float[np.ndarray, "*draw target"]
    """Σ (ŷ - <ŷ>)²."""
    measured: Float[np.ndarray, "*draw target"]
    """Σ (y - <y>)²."""

    @property
    def r2(self) -> Float[np.ndarray, "*draw target"]:
        """1 - Σ (y - ŷ)² / Σ (y - ȳ)²: 0 is what the training mean predicts; NaN for a constant target."""
        return 1 - ratio(self.error, self.spread)

    @property
    def correlation(self) -> Float[np.ndarray, "*draw target"]:
        """Correlation of prediction and target within folds."""
        return ratio(self.shared, np.sqrt(self.predicted * self.measured))


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide; NaN where the divisor is 0."""
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0)


@dataclass(frozen=True, slots=True)
class Training:
    """The ridge problem of some folds, in the basis in which a penalty is a division."""

    sums: FoldSums
    kept: list[int]
    mean_x: np.ndarray
    mean_y: np.ndarray
    values: np.ndarray
    basis: np.ndarray
    """(unit, direction): weights are `basis` times coefficients."""
    unit: float
    """The mean squared length of a row, of which relative penalties are multiples."""

    @classmethod
    def of(cls, sums: FoldSums, kept: list[int], scale: np.ndarray) -> "Training":
        """Decompose the covariance of the kept folds, its columns scaled."""
        mean_x = sums.mean_x(kept)
        covariance = sums.xx_about(kept, mean_x)
        covariance *= scale
        covariance *= scale[:, None]
        values, vectors = linalg.eigh(covariance, overwrite_a=True, check_finite=False, driver="evd")
        vectors *= scale[:, None]
        values = np.maximum(values, 0)
        if not values[-1] > 0:
            raise DegenerateInputError("x must vary over the rows of every training set. Got the same row every time.")
        return cls(sums, kept, mean_x, sums.mean_y(kept), values, vectors, float(values.sum() / sums.n[kept].sum()))

    def project(self, columns: slice) -> np.ndarray:
        """Return Vᵀ c of some targets."""
        return self.basis.T @ self.sums.xy_about(self.kept, self.mean_x, self.mean_y, columns)

    def held_out(self, fold: int) -> "HeldOut":
        """Return the sums of a fold that was left out, in this basis."""
        about = self.sums.xx_about([fold], self.mean_x)
        n = int(self.sums.n[fold])
        offset = self.basis.T @ (self.sums.x[fold] / n - self.mean_x)
        return HeldOut(self, fold, self.basis.T @ about @ self.basis, offset)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A fold that was left out, in the basis of its training set."""

    training: Training
    fold: int
    xx: np.ndarray
    offset: np.ndarray
    """How far the fold's mean row is from the training mean."""

    def project(self, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return Vᵀ c_f and Σ (y - ȳ)² of some targets."""
        training, sums = self.training, self.training.sums
        xy = training.basis.T @ sums.xy_about([self.fold], training.mean_x, training.mean_y, columns)
        return xy, sums.yy_about(self.fold, training.mean_y)[columns]

    def errors(self, solved: np.ndarray, columns: slice, penalties: np.ndarray) -> Float[np.ndarray, "penalty target"]:
        """Return Σ (y - ŷ)² at every penalty."""
        xy, spread = self.project(columns)
        found = np.empty((len(penalties), xy.shape[1]))
        for i, penalty in enumerate(penalties):
            coefficients = solved / (self.training.values + penalty)[:, None]
            found[i] = spread + np.einsum("at,at->t", coefficients, self.xx @ coefficients - 2 * xy)
        return found

    def scores(self, coefficients: np.ndarray, columns: slice) -> Float[np.ndarray, "sum target"]:
        """Return the five sums of `Scores` for one set of coefficients."""
        xy, spread = self.project(columns)
        n, sums = int(self.training.sums.n[self.fold]), self.training.sums
        mean_y = sums.y[self.fold, columns] / n - self.training.mean_y[columns]
        mean_predicted = self.offset @ coefficients
        shared = np.einsum("at,at->t", coefficients, xy)
        predicted = np.einsum("at,at->t", coefficients, self.xx @ coefficients)
        return np.stack(
            [
                spread - 2 * shared + predicted,
                spread,
                shared - n * mean_predicted * mean_y,
                predicted - n * mean_predicted**2,
                spread - n * mean_y**2,
            ]
        )
