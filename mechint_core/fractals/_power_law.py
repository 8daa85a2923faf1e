"""What the estimators of this family share: reading series, fitting every unit at once, and how sure the exponent is.

An estimator measures each unit at several scales, piece by piece along the axis. The exponent of a unit is the slope

    exponent = sum_s (a_s - mean a) ln m_s / sum_s (a_s - mean a)^2        m_s = sum_rows pieces / sum_rows counts

of the log measure m over the abscissa a (a multiple of the log scale). The pieces are what is resampled: a draw
joins random runs of neighbouring pieces, the same runs for every unit and scale, so that what units and scales
share stays shared; the interval is

    exponent -+ t_(dof) * standard deviation over draws

with Student's t for the few independent pieces that the largest scale leaves.

Source: [@politis1992], [@theiler1992]
Cost: draws x scales x units logarithms.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, Protocol, cast, get_args, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import stdtrit

from mechint_core.errors import ConfigurationError, DegenerateInputError, DtypeError, ShapeError
from mechint_core.kernels.resampling import block_indices, p_value
from mechint_core.kernels.surrogates import shuffled_orders
from mechint_core.parallel import map_parallel
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate

NanPolicy = Literal["raise", "omit"]
"""What to do about units with a value that is not finite: refuse the input, or leave those units out."""

PIECES: Final = 32
"""Pieces that the axis is cut into for resampling."""
TASK_VALUES: Final = 2**22
"""Values of one parallel task: below this, starting a thread costs more than it saves."""
UNITS_AT_ONCE: Final = 128
"""Units resampled together: 200 draws of 20 scales then take 4 MB."""
NULL_UNITS: Final = 32
"""Most units of one surrogate. A mean over fewer units spreads more, so the p-value errs on the safe side."""
NULL_TASKS: Final = 4
"""Parallel tasks that share the surrogates."""


def check_draws(nan_policy: str, **counts: int) -> None:
    """Refuse, in a config, a policy that does not exist, and numbers of draws below 0."""
    if nan_policy not in get_args(NanPolicy):
        raise ConfigurationError(f"nan_policy must be 'raise' or 'omit'. Got {nan_policy!r}.")
    if min(counts.values()) < 0:
        raise ConfigurationError(f"{' and '.join(counts)} must not be negative. Got {tuple(counts.values())}.")


@runtime_checkable
class Detachable(Protocol):
    """A torch tensor, as far as this family knows one."""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        ...

    def detach(self) -> Any:
        """Return the values without their history."""
        ...


def as_series(series: np.ndarray | Detachable) -> Float[np.ndarray, "time unit"]:
    """Return `series` as a row-major array of float32 or float64: what the compiled kernels read.

    A one-dimensional series becomes one unit. Half precision becomes float32, exactly; integers become float64.

    Raises
    ------
    DtypeError
        If the values are not real numbers.
    ShapeError
        If there are neither one nor two axes, or there is no unit.
    """
    values = series.detach().cpu().double().numpy() if isinstance(series, Detachable) else np.asarray(series)
    if values.dtype.kind not in "fiu":
        raise DtypeError(f"series must hold real numbers. Got {values.dtype}.")
    if values.ndim not in (1, 2) or 0 in values.shape[1:]:
        raise ShapeError(f"series must be (time,) or (time, unit >= 1). Got shape {values.shape}.")
    exact = {2: np.float32, 4: np.float32}.get(values.itemsize, np.float64) if values.dtype.kind == "f" else np.float64
    columns = values[:, None] if values.ndim == 1 else values
    return np.ascontiguousarray(columns, dtype=exact)


@dataclass(frozen=True, slots=True)
class Scaling:
    """A measure of every unit at every scale, in pieces along the axis."""

    abscissa: Float[np.ndarray, "scale"]
    """What the log measure is fitted over."""
    pieces: Float[np.ndarray, "row scale unit"]
    counts: Float[np.ndarray, "row scale"]

    def measure(self) -> Float[np.ndarray, "scale unit"]:
        """Return the measure over the whole axis."""
        return self.pieces.sum(axis=0) / self.counts.sum(axis=0)[:, None]

    def fit(self) -> tuple[Float[np.ndarray, "unit"], Float[np.ndarray, "unit"]]:
        """Return the exponent and R squared of every unit; NaN where the measure is 0 or not finite at a scale."""
        height = _log(self.measure())
        height = height - height.mean(axis=0)
        slope = _slopes(self.abscissa, height)
        run = self.abscissa - self.abscissa.mean()
        with np.errstate(invalid="ignore"):
            explained = (slope * slope) * (run @ run) / np.sum(height * height, axis=0)
        return slope, explained

    def typical(self, usable: np.ndarray, exponent: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the geometric mean of the measure over `usable` units, and the power law through it."""
        if not usable.any():
            return np.full_like(self.abscissa, NAN), np.full_like(self.abscissa, NAN)
        height = _log(self.measure()[:, usable]).mean(axis=1)
        line = height.mean() + exponent * (self.abscissa - self.abscissa.mean())
        return np.exp(height), np.exp(line)

    def refused(self, policy: NanPolicy) -> int:
        """Return how many units hold values that are not finite.

        Raises
        ------
        DegenerateInputError
            If there are any and the policy is to raise.
        """
        return refused_units(np.asarray(np.isfinite(self.pieces).all(axis=(0, 1))), policy)

    def resample(
        self, usable: np.ndarray, *, run: int, n_draws: int, rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "draw"], Float[np.ndarray, "unit"]]:
        """Return the mean exponent over the `usable` units of each draw, and each unit's standard deviation."""
        error = np.full(self.pieces.shape[2], NAN)
        total = np.zeros(n_draws)
        n_rows = len(self.pieces)
        if n_draws < 2 or n_rows < 2 * run or not usable.any():
            return np.full(n_draws, NAN), error
        drawn = block_indices(n_rows, run, n_draws=n_draws, rng=rng)
        times = np.stack([np.bincount(rows, minlength=n_rows) for rows in drawn]).astype(np.float64)
        counts = times @ self.counts
        which = np.flatnonzero(usable)
        for units in np.split(which, range(UNITS_AT_ONCE, which.size, UNITS_AT_ONCE)):
            with np.errstate(invalid="ignore", divide="ignore"):  # a draw may hold no window of the largest scale
                measure = np.tensordot(times, self.pieces[:, :, units], (1, 0)) / counts[:, :, None]
            exponent = _slopes(self.abscissa, _log(measure).swapaxes(0, 1))
            error[units] = spread(exponent)
            total += exponent.sum(axis=1)
        return total / which.size, error


def refused_units(finite: Bool[np.ndarray, "unit"], policy: NanPolicy) -> int:
    """Return how many units are not finite.

    Raises
    ------
    DegenerateInputError
        If there are any and the policy is to raise.
    """
    n_nan = int(np.sum(~finite))
    if n_nan and policy == "raise":
        raise DegenerateInputError(
            f"series must be finite. Got NaN or infinity in {n_nan} of {finite.size} units. "
            "Pass nan_policy='omit' to leave those units out."
        )
    return n_nan


def finite_units(series: Float[np.ndarray, "time unit"], policy: NanPolicy) -> tuple[np.ndarray, int]:
    """Return `series` with units that are not finite set to 0, and how many those are."""
    finite = np.asarray(np.isfinite(series).all(axis=0))
    n_nan = refused_units(finite, policy)
    return (np.where(finite, series, 0) if n_nan else series), n_nan


def mean_exponent(
    exponent: Float[np.ndarray, "unit"],
    draws: Float[np.ndarray, "draw"],
    null: Float[np.ndarray, "_"],
    *,
    degrees_of_freedom: int,
    level: float = 0.95,
) -> Estimate:
    """Bind the mean exponent over the usable units to its interval and its two-sided p-value."""
    usable = exponent[np.isfinite(exponent)]
    value = float(usable.mean()) if usable.size else NAN
    half = float(stdtrit(degrees_of_freedom, (1 + level) / 2) * spread(draws[:, None])[0])
    finite = null[np.isfinite(null)]
    typical = float(finite.mean()) if finite.size else NAN
    return Estimate(value, value - half, value + half, typical, p_value(value, null, "two-sided"), level)


def shuffled_null(
    exponents: Callable[[np.ndarray], np.ndarray],
    series: Float[np.ndarray, "time unit"],
    usable: np.ndarray,
    *,
    n_draws: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "draw"]:
    """Return the mean exponent of `series` in random order, once per draw, over at most `NULL_UNITS` usable units."""
    which = np.flatnonzero(usable)
    if n_draws == 0 or which.size == 0:
        return np.full(0, NAN)
    picked = which[np.linspace(0, which.size - 1, min(NULL_UNITS, which.size)).astype(int)]
    orders = shuffled_orders(len(series), n_draws=n_draws, rng=rng)
    means = partial(_means_in_order, exponents, np.ascontiguousarray(series[:, picked]))
    return np.concatenate(map_parallel(means, np.array_split(orders, min(NULL_TASKS, n_draws))))


def over_units(
    kernel: Callable[[int, int], np.ndarray], series: Float[np.ndarray, "time unit"]
) -> Float[np.ndarray, "row scale unit"]:
    """Join `kernel(first, stop)` over runs of units, in parallel."""
    length, n_units = series.shape
    step = -(-max(1, TASK_VALUES // length) // UNITS_AT_ONCE) * UNITS_AT_ONCE
    runs = [(first, min(first + step, n_units)) for first in range(0, n_units, step)]
    parts = map_parallel(partial(_call, kernel), runs)
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def stream(seed: int, *words: str) -> np.random.Generator:
    """Return the generator of one step of this family."""
    return generator(seed, "fractals", *words)


def _call(kernel: Callable[[int, int], np.ndarray], run: tuple[int, int]) -> np.ndarray:
    return kernel(*run)


def _means_in_order(
    exponents: Callable[[np.ndarray], np.ndarray], series: np.ndarray, orders: np.ndarray
) -> np.ndarray:
    return np.array([exponents(series[order]).mean() for order in orders])


def _slopes(abscissa: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Return the least-squares slope of `height` (scale first) over `abscissa`."""
    run = abscissa - abscissa.mean()
    return cast(np.ndarray, np.tensordot(run, height, (0, 0)) / (run @ run))


def _log(measure: np.ndarray) -> np.ndarray:
    """Return the logarithm, NaN where there is nothing to take it of."""
    return np.log(measure, out=np.full_like(measure, NAN), where=(measure > 0) & np.isfinite(measure))


def spread(draws: np.ndarray) -> np.ndarray:
    """Return the standard deviation over draws (the first axis), leaving out draws that could not be fitted."""
    finite = np.isfinite(draws)
    n = finite.sum(axis=0)
    filled = np.where(finite, draws, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        centred = np.where(finite, draws - filled.sum(axis=0) / n, 0)
        return np.sqrt(np.sum(centred * centred, axis=0) / (n - 1))
