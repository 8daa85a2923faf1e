"""Rows that belong together, as what is drawn: bootstrap draws of held-out scores, and other orders of the rows.

    unit = a group where there are many groups; else a run of `block` rows inside a group (a session, a run)

A bootstrap draw takes units with replacement, and every sum that R² and correlation are made of is a weighted sum over
units, so all draws are one product. A permutation puts units in another order (inside their group, where groups are
few), or turns each group by a random number of rows, which leaves its time course as it is.

Source: [@efron1993] (bootstrap), [@politis1992] (blocks), [@winkler2014] (exchangeable blocks).
Cost: draws x units x targets.
Chunked over: rows.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._fold_sums import FoldSums, row_blocks
from mechint_core.alignment._ridge import PREDICTED_ROWS
from mechint_core.alignment._ridge_basis import Scores
from mechint_core.errors import ConfigurationError
from mechint_core.kernels.resampling import p_value, percentile_interval
from mechint_core.parallel import Rows, map_parallel
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate

Order = Literal["permuted", "turned"]

MANY_GROUPS = 20
"""From this many groups on, a group is what is drawn."""
MOST_UNITS = 1000
"""Shorter units are joined up to this many."""
LANES = 8
"""Pieces the bootstrap draws are made in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """How interval and null are drawn."""

    n_bootstrap: int
    n_permutations: int
    n_inference: int
    block: int
    order: Order
    level: float
    seed: int

    def __post_init__(self) -> None:
        if min(self.n_bootstrap, self.n_permutations) < 0:
            raise ConfigurationError(
                f"n_bootstrap and n_permutations must be at least 0. Got {self.n_bootstrap} and {self.n_permutations}."
            )
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level must be between 0 and 1. Got {self.level}.")
        if min(self.block, self.n_inference) < 1:
            raise ConfigurationError(
                f"block and n_inference must be at least 1. Got {self.block} and {self.n_inference}."
            )
        if self.order not in ("permuted", "turned"):
            raise ConfigurationError(f"order must be 'permuted' or 'turned'. Got {self.order!r}.")

    def targets(self, n_targets: int) -> Int[np.ndarray, "target"]:
        """Return the targets whose null is drawn."""
        rng = generator(self.seed, "targets")
        return np.sort(rng.choice(n_targets, min(n_targets, self.n_inference), replace=False))

    def counts(self, n_units: int) -> Float[np.ndarray, "draw row"]:
        """Return how often each unit is drawn, in each bootstrap draw."""
        drawn = generator(self.seed, "bootstrap").multinomial(n_units, np.full(n_units, 1 / n_units), self.n_bootstrap)
        return drawn.astype(np.float64)

    def orders(self, n: int, group: Int[np.ndarray, "sample"] | None) -> Int[np.ndarray, "draw sample"]:
        """Return row numbers in other orders."""
        rng, turned = generator(self.seed, "permutation"), self.order == "turned"
        units = self._units(n, group)
        places = [np.concatenate(each) for each in units]
        number = [np.repeat(np.arange(len(each)), [len(unit) for unit in each]) for each in units]
        orders = np.empty((self.n_permutations, n), np.int32)
        for order in orders:
            for place, unit in zip(places, number, strict=True):
                order[np.sort(place)] = _turned(place, rng) if turned else _shuffled(place, unit, rng)
        return orders

    def unit_of_row(self, n: int, group: Int[np.ndarray, "sample"] | None) -> Int[np.ndarray, "sample"]:
        """Return which unit each row is in; there are at most about `MOST_UNITS`."""
        units = [unit for each in self._units(n, group) for unit in each]
        joined = -(-len(units) // MOST_UNITS)
        number = np.empty(n, np.int64)
        for i, unit in enumerate(units):
            number[unit] = i // joined
        return number

    def _units(self, n: int, group: np.ndarray | None) -> list[list[np.ndarray]]:
        """Return the units, in the lists inside which they may change places."""
        if group is None:
            return [_runs(np.arange(n), self.block)]
        groups = [np.flatnonzero(group == each) for each in np.unique(group)]
        if len(groups) >= MANY_GROUPS:
            return [groups]
        return [_runs(rows, self.block) for rows in groups]


def _runs(rows: np.ndarray, length: int) -> list[np.ndarray]:
    return [rows[start : start + length] for start in range(0, len(rows), length)]


def _shuffled(rows: np.ndarray, unit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put the units of `rows` in another order, the rows inside a unit in their own."""
    return rows[np.argsort(rng.permutation(int(unit[-1]) + 1)[unit], kind="stable")]


def _turned(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.roll(rows, rng.integers(1, len(rows))) if len(rows) > 1 else rows


@dataclass(frozen=True, slots=True)
class UnitSums:
    """The sums of `Scores` per unit of rows: (sum, unit, target)."""

    sums: np.ndarray

    def draw(self, counts: Float[np.ndarray, "draw row"]) -> list[Scores]:
        """Return the scores of each bootstrap draw, the draws in a few pieces."""
        return map_parallel(self._piece, np.array_split(counts, LANES))

    def _piece(self, counts: np.ndarray) -> Scores:
        return Scores(*(counts @ each for each in self.sums))


def unit_sums(
    x: Float[Rows, "sample unit"],
    y: Float[Rows, "sample target"],
    sums: FoldSums,
    weights: Float[np.ndarray, "fold unit target"],
    folds: Int[np.ndarray, "sample"],
    units: Int[np.ndarray, "sample"],
) -> UnitSums:
    """Predict each row by the model that did not see it, and add up what scores are made of, unit by unit."""
    n_units, t = int(units.max()) + 1, weights.shape[2]
    total = np.zeros((5, n_units, t))
    for fold, each in enumerate(weights):
        kept = [f for f in range(len(weights)) if f != fold]
        mean_x, mean_y = sums.mean_x(kept), sums.mean_y(kept)[:t]
        offset_y = sums.y[fold, :t] / sums.n[fold] - mean_y
        offset_predicted = (sums.x[fold] / sums.n[fold] - mean_x) @ each
        for rows, wanted in row_blocks(folds == fold, PREDICTED_ROWS):
            predicted = (np.asarray(x[rows])[wanted] - sums.shift_x - mean_x) @ each
            measured = np.asarray(y[rows])[wanted][:, :t] - sums.shift_y[:t] - mean_y
            about_p, about_y = predicted - offset_predicted, measured - offset_y
            parts = (
                (measured - predicted) ** 2, measured**2, about_p * about_y, about_p**2, about_y**2,
            )  # fmt: skip
            _add_by_unit(total, parts, units[rows][wanted])
    return UnitSums(total)


def _add_by_unit(total: np.ndarray, parts: tuple[np.ndarray, ...], units: np.ndarray) -> None:
    order = np.argsort(units, kind="stable")
    present, starts = np.unique(units[order], return_index=True)
    for into, part in zip(total, parts, strict=True):
        into[present] += np.add.reduceat(part[order], starts, axis=0)


def summarised(
    values: Float[np.ndarray, "target"],
    draws: Float[np.ndarray, "draw target"],
    null: Float[np.ndarray, "relabelling picked"],
    *,
    null_of: Float[np.ndarray, "picked"],
    level: float,
) -> Estimate:
    """Bind the mean over targets to its interval, and to the means of the null draws over `null_of`'s targets.

    The mean, because its interval covers: draws of the median over targets that differ by noise spread too far.
    """
    low, high = percentile_interval(means_over(draws), level)
    of_null = means_over(null)
    finite = of_null[np.isfinite(of_null)]
    typical = float(finite.mean()) if len(finite) else NAN
    return Estimate(mean_over(values), low, high, typical, p_value(mean_over(null_of), of_null), level)


def mean_over(values: Float[np.ndarray, "target"]) -> float:
    """Return the mean over the targets that have a value; NaN if none has."""
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if len(kept) else NAN


def means_over(draws: Float[np.ndarray, "draw target"]) -> Float[np.ndarray, "draw"]:
    """Return the mean of each draw over the targets with a value in some draw; NaN where one of these has none."""
    kept = np.any(np.isfinite(draws), axis=0)
    return draws[:, kept].mean(axis=1) if np.any(kept) else np.full(len(draws), NAN)


def pooled_p_values(
    values: Float[np.ndarray, "target"], null: Float[np.ndarray, "draw picked"]
) -> Float[np.ndarray, "target"]:
    """Return the chance of each value in one pool of null draws; NaN where there is no value or no draw."""
    pool = np.sort(null[np.isfinite(null)])
    if len(pool) == 0:
        return np.full(len(values), NAN)
    above = len(pool) - np.searchsorted(pool, values)
    return np.where(np.isfinite(values), (1 + above) / (1 + len(pool)), NAN)
