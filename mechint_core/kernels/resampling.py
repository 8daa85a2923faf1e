"""Intervals and p-values from draws: bootstrap, permutation, surrogate.

    interval  = the central `level` quantiles of the bootstrap draws
    p         = (1 + #{null >= observed}) / (1 + n_null)          never 0 [@phipson2010]

Cost: one sort of the draws.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import ShapeError
from mechint_core.result import NAN, Estimate

Tail = Literal["greater", "less", "two-sided"]


def percentile_interval(draws: Float[np.ndarray, "draw"], level: float = 0.95) -> tuple[float, float]:
    """Return the central interval that holds `level` of `draws` (NaN draws are left out)."""
    finite = draws[np.isfinite(draws)]
    if finite.size == 0:
        return NAN, NAN
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def p_value(observed: float, null: Float[np.ndarray, "draw"], tail: Tail = "greater") -> float:
    """Return the chance of a value as extreme as `observed` under `null`; at least 1 / (1 + n_null)."""
    finite = null[np.isfinite(null)]
    if finite.size == 0 or not np.isfinite(observed):
        return NAN
    above = (1 + int(np.sum(finite >= observed))) / (1 + finite.size)
    below = (1 + int(np.sum(finite <= observed))) / (1 + finite.size)
    return {"greater": above, "less": below, "two-sided": min(1.0, 2 * min(above, below))}[tail]


def critical_value(null: Float[np.ndarray, "draw *each"], level: float = 0.95) -> Float[np.ndarray, "*each"]:
    """Return what a statistic must exceed for a p-value of at most 1 - `level`; inf if so few draws allow none."""
    allowed = int((1 - level) * (len(null) + 1) + 1e-9) - 1  # of the null's draws, at or above it
    return np.asarray(np.sort(null, axis=0)[::-1][allowed]) if allowed >= 0 else np.full(null.shape[1:], np.inf)


def estimate(
    value: float,
    *,
    bootstrap: Float[np.ndarray, "draw"] | None = None,
    null: Float[np.ndarray, "_"] | None = None,  # as many draws as it likes: it need not match the bootstrap
    tail: Tail = "greater",
    level: float = 0.95,
) -> Estimate:
    """Bind a value to its bootstrap interval and to the mean and p-value of its null draws."""
    low, high = percentile_interval(bootstrap, level) if bootstrap is not None else (NAN, NAN)
    if null is None:
        return Estimate(value, low, high, level=level)
    finite = null[np.isfinite(null)]
    typical = float(finite.mean()) if finite.size else NAN
    return Estimate(value, low, high, typical, p_value(value, null, tail), level)


def bootstrap_rows(
    statistic: Callable[[Int[np.ndarray, "sample"]], float],
    n_samples: int,
    *,
    n_draws: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "draw"]:
    """Evaluate `statistic` on `n_draws` sets of row indices drawn with replacement."""
    if n_samples < 2:
        raise ShapeError(f"a bootstrap needs at least 2 samples. Got {n_samples}.")
    draws = (statistic(rng.integers(0, n_samples, n_samples)) for _ in range(n_draws))
    return np.fromiter(draws, dtype=np.float64, count=n_draws)


def block_indices(length: int, block: int, *, n_draws: int, rng: np.random.Generator) -> Int[np.ndarray, "draw time"]:
    """Return circular block-bootstrap indices [@politis1992]: each draw joins random runs of `block` steps."""
    if not 1 <= block <= length:
        raise ShapeError(f"block must be between 1 and the series length {length}. Got {block}.")
    starts = rng.integers(0, length, (n_draws, -(-length // block)))
    return ((starts[..., None] + np.arange(block)) % length).reshape(n_draws, -1)[:, :length]
