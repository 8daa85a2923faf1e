"""Moments of a measure by scale, for many series at once, and what follows from them.

    M_q(n) = (mean over windows of F^q)^(1/q)        M_0(n) = exp mean ln F         ~ n^h(q)
    tau(q) = q h(q) - 1       f(alpha) = min_q (q alpha - tau(q))

The minimum over q is the Legendre transform as it is defined: f is concave and at most 1 whatever the sampling error.

Source: [@kantelhardt2002], [@politis1992]
Cost: draws x moments x scales x units logarithms.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from mechint_core.fractals._power_law import spread
from mechint_core.kernels.resampling import block_indices
from mechint_core.result import NAN

UNITS_AT_ONCE: Final = 16
"""Units resampled together: 200 draws of 11 moments at 10 scales then take 3 MB each."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over the windows of each piece of the axis: of F^q, and of ln F where q is 0."""

    scale: Int[np.ndarray, "scale"]
    q: Float[np.ndarray, "moment"]
    sums: Float[np.ndarray, "row moment scale unit"]
    counts: Float[np.ndarray, "row scale unit"]
    """Windows in the sums: the flat ones are left out."""
    n_flat: Int[np.ndarray, "unit"]

    @classmethod
    def unpack(
        cls,
        packed: Float[np.ndarray, "row scale unit"],
        scale: Int[np.ndarray, "scale"],
        q: Float[np.ndarray, "moment"],
    ) -> "Moments":
        """Return the moments from rows of: sums by piece and moment, counts by piece, and flat windows."""
        n_pieces = (len(packed) - 1) // (q.size + 1)
        sums = packed[: n_pieces * q.size].reshape(n_pieces, q.size, scale.size, -1)
        return cls(scale, q, sums, packed[n_pieces * q.size : -1], packed[-1].sum(axis=0).astype(np.int64))

    def joined(self, backwards: "Moments") -> "Moments":
        """Return these moments and those of the series in reverse, as one."""
        sums, counts = self.sums + backwards.sums[::-1], self.counts + backwards.counts[::-1]
        return Moments(self.scale, self.q, sums, counts, self.n_flat + backwards.n_flat)

    def log_moments(self) -> Float[np.ndarray, "moment scale unit"]:
        """Return ln M_q(n); NaN where all windows are flat."""
        return _log_moments(self.sums.sum(axis=0), self.counts.sum(axis=0), self.q)

    def fit(self) -> tuple[Float[np.ndarray, "moment unit"], Float[np.ndarray, "moment unit"]]:
        """Return h(q) and R squared of every unit."""
        height = self.log_moments()
        slope = self._slopes(height)
        run = np.log(self.scale) - np.log(self.scale).mean()
        height = height - height.mean(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            return slope, slope**2 * (run @ run) / np.sum(height**2, axis=1)

    def resample(
        self, usable: np.ndarray, *, run: int, n_draws: int, rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "draw moment"], Float[np.ndarray, "moment unit"]]:
        """Return the mean h(q) over the `usable` units of each draw, and each unit's standard deviation."""
        n_pieces, n_moments, _, n_units = self.sums.shape
        error = np.full((n_moments, n_units), NAN)
        if n_draws < 2 or not usable.any():
            return np.full((n_draws, n_moments), NAN), error
        drawn = block_indices(n_pieces, run, n_draws=n_draws, rng=rng)
        times = np.stack([np.bincount(rows, minlength=n_pieces) for rows in drawn]).astype(np.float64)
        which = np.flatnonzero(usable)
        total = np.zeros((n_draws, n_moments))
        for units in np.split(which, range(UNITS_AT_ONCE, which.size, UNITS_AT_ONCE)):
            sums = np.tensordot(self.sums[..., units], times, (0, 1)).swapaxes(2, 3)  # moment scale draw unit
            counts = np.tensordot(self.counts[..., units], times, (0, 1)).swapaxes(1, 2)
            slopes = self._slopes(_log_moments(sums, counts, self.q))
            error[:, units] = spread(slopes.swapaxes(0, 1))
            total += slopes.sum(axis=2).T
        return total / which.size, error

    def _slopes(self, height: np.ndarray) -> np.ndarray:
        """Return the least-squares slope over ln n: the axis of scales is the second."""
        run = np.log(self.scale) - np.log(self.scale).mean()
        return np.tensordot(height, run, (1, 0)) / (run @ run)


def singularity_spectrum(
    q: Float[np.ndarray, "moment"], h: Float[np.ndarray, "moment"]
) -> tuple[Float[np.ndarray, "moment"], Float[np.ndarray, "moment"]]:
    """Return alpha and f(alpha) at each q."""
    tau = q * h - 1
    alpha = np.gradient(tau, q)
    return alpha, np.min(q[:, None] * alpha - tau[:, None], axis=0)


def _log_moments(sums: np.ndarray, counts: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return ln M_q, with the axis of moments first and the counts without it."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums / counts
    order = q.reshape(-1, *[1] * counts.ndim)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(order == 0, mean, np.log(mean) / np.where(order == 0, 1, order))
