"""Interval and null of one number that sums up the canonical correlations of two systems.

    interval  z_J ± t_{G-1} SE,    z_J = G z - (G - 1) z̄,    SE² = (G - 1) / G Σ_g (z_(g) - z̄)²,    z = artanh s

where z_(g) is without group g of neighbouring samples: the jackknife takes out the bias of order 1 / n, by which
correlations within a sample are too high. The null relabels samples; on m < n of them correlations of unrelated systems
are larger by sqrt((n - 1) / (m - 1)), as the mean of tr MᵀM over all relabellings is d_x d_y / (n - 1).

Source: [@efron1981], [@efron1982] (jackknife).
Cost: one fit per group; n d_x d_y + the singular values of a d_x x d_y matrix per relabelling.
Chunked over: samples; the null reads those it is made on.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import linalg

from mechint_core.alignment._held_out import population_interval
from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.kernels.relabelling import ROUNDING as TIE, relabelled
from mechint_core.kernels.resampling import p_value
from mechint_core.parallel import Rows, len_rows
from mechint_core.result import NAN, Estimate

ENOUGH_PER_DIRECTION = 5.0
"""Samples per direction of both systems together below which there is no interval."""

Measure = Callable[[np.ndarray, np.ndarray], Float[np.ndarray, "_"]]
"""Orthonormal bases of both systems' directions -> the similarities that are tested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubspaceDraws:
    """How interval and null of a subspace similarity are found."""

    n_groups: int
    n_permutations: int
    n_inference: int
    level: float
    memory_budget: int
    seed: int

    def __post_init__(self) -> None:
        if self.n_groups < 3:
            raise ConfigurationError(f"n_groups must be at least 3. Got {self.n_groups}.")
        if self.n_permutations < 0 or self.n_inference < 4:
            raise ConfigurationError(
                f"n_permutations must be at least 0 and n_inference at least 4. "
                f"Got {self.n_permutations} and {self.n_inference}."
            )
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level must be between 0 and 1. Got {self.level}.")

    def check(self, x: Rows) -> None:
        """Refuse fewer than 2 samples per group, or too few to correlate."""
        n = len_rows(x)
        if n < max(2 * self.n_groups, 4):
            raise ShapeError(f"x must have at least 2 samples for each of {self.n_groups} groups. Got {n} samples.")


def similarity_interval(
    value: float, without: Float[np.ndarray, "fold"], level: float, *, per_direction: float
) -> tuple[float, float]:
    """Bound the population's similarity; NaN with so few samples per direction that the bias is not taken out well."""
    if per_direction < ENOUGH_PER_DIRECTION:
        return NAN, NAN
    low, high = population_interval(np.array(value), without, level)
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class RelabelledNull:
    """Similarities on some samples, and what they become when one system's samples are relabelled."""

    observed: Float[np.ndarray, "_"]
    null: Float[np.ndarray, "draw _"]
    shrink: float
    """By how much less the null of all samples is than that of those."""

    def estimate(self, index: int, value: float, interval: tuple[float, float], level: float) -> Estimate:
        """Bind a similarity of all samples to its interval and null."""
        draws = self.null[:, index]
        typical = self.shrink * float(draws.mean()) if len(draws) else NAN
        found = float(self.observed[index])
        return Estimate(value, *interval, typical, p_value(found - TIE * abs(found), draws), level)


def relabelled_null(
    measure: Measure, x: np.ndarray, y: np.ndarray, *, n_samples: int, n_permutations: int, seed: int, word: str
) -> RelabelledNull:
    """Relabel samples of systems that are read whole: orthonormal bases of their columns go to `measure`."""
    basis_x, basis_y = orthonormal_basis(x), orthonormal_basis(y)
    observed, shrink = measure(basis_x, basis_y), math.sqrt((len(x) - 1) / (n_samples - 1))
    if n_permutations == 0:
        return RelabelledNull(observed, np.empty((0, len(observed))), shrink)
    run = _Relabel(measure, basis_x, basis_y)
    null = relabelled(run, len(x), n_permutations=n_permutations, seed=seed, word=word)
    return RelabelledNull(observed, null, shrink)


@dataclass(frozen=True, slots=True)
class _Relabel:
    measure: Measure
    basis_x: np.ndarray
    basis_y: np.ndarray

    def __call__(self, order: np.ndarray) -> np.ndarray:
        return self.measure(self.basis_x, self.basis_y[order])


def orthonormal_basis(rows: np.ndarray, ridge: float = 0.0) -> Float[np.ndarray, "sample _"]:
    """Return an orthonormal basis of the centred rows' columns, each shrunk as a ridge does."""
    left, values, _ = linalg.svd(rows - rows.mean(axis=0), full_matrices=False, check_finite=False)
    kept = values > TIE * values[0]
    values = values[kept]
    return left[:, kept] * (values / np.sqrt(values**2 + (len(rows) - 1) * ridge))


def reading_of(text: str, found: Estimate) -> str:
    """Complete a sentence by the interval, and by what unrelated systems would give."""
    text += f" {found.value:.3f}"
    if not math.isnan(found.low):
        text += f" ([{found.low:.3f}, {found.high:.3f}] in the population)"
    if math.isnan(found.p_value):
        return f"{text}; no relabelling was done, so nothing says what unrelated systems would give."
    if found.p_value > 1 - found.level:
        return f"{text}: not distinguishable from unrelated systems ({found.null:.3f}, p = {found.p_value:.2g})."
    return f"{text}; unrelated systems of these dimensions give {found.null:.3f} (p = {found.p_value:.2g})."
