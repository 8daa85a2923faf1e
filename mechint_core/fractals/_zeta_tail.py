"""Discrete power laws: p(x) = x^-a / (zeta(a, x_min) - zeta(a, x_max + 1)) for whole x from x_min to x_max.

    a         the most likely one: mean ln x of the data = mean ln x of the law
    x_min     the one with the smallest distance  D = max_x |S_data(x) - S_law(x)|,  S(x) = P(X >= x), over all whole x
    p         how often data that follow the fit (below x_min: the data's own values) lie as far from their own fit

Both sides of every value of the data are compared, which is the maximum over all whole numbers. A start x_min is given
up as soon as its distance passes the smallest so far: most are, after a few values.

Source: [@clauset2009], [@devroye1986]
Cost: 30 ns per start and value that is looked at; some milliseconds for 100,000 values.
"""

from dataclasses import dataclass
from functools import partial
from typing import Final, no_type_check

import numpy as np
from jaxtyping import Float, Int
from numba import njit

from mechint_core.fractals._power_law import stream
from mechint_core.kernels.resampling import p_value
from mechint_core.parallel import map_parallel
from mechint_core.result import NAN

LOWEST: Final = 1.001
"""Smallest exponent: at 1 the law has no sum."""
HIGHEST: Final = 20.0
DIRECT: Final = 30
"""Terms before this number are summed one by one, the rest by Euler and Maclaurin's formula: relative error below 3e-9
up to exponent 12."""
STEP: Final = 1e-4
"""Of the differences that stand for derivatives by the exponent: they cost it 1e-8."""
COUNTED: Final = 2**14
"""Numbers below this are counted, those above are sorted."""
LARGEST: Final = 2.0**53
"""No number beyond it is drawn: a float could not tell it from its neighbours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TailRange:
    """Which part of a distribution may follow the law."""

    largest: float = np.inf
    """Values above this are left out."""
    fewest: int = 50
    """Fewest values in the tail."""
    n_starts: int = 0
    """Values tried as x_min, evenly spaced in their logarithm; 0 for all distinct ones."""


@dataclass(frozen=True, slots=True)
class ZetaTail:
    """A power law fitted to the tail of some whole numbers; NaN where there are too few."""

    value: Float[np.ndarray, "value"]
    """Distinct values, increasing."""
    count: Int[np.ndarray, "value"]
    exponent: float
    start: float
    """x_min."""
    distance: float
    """D."""
    within: TailRange

    @classmethod
    def fit(cls, numbers: Int[np.ndarray, "_"] | Float[np.ndarray, "_"], within: TailRange) -> "ZetaTail":
        """Fit the tail of `numbers`, all at least 1."""
        value, count = _tally(numbers[numbers <= within.largest])
        starts = _starts(value, count, within)
        if not starts.size:
            return cls(value, count, NAN, NAN, NAN, within)
        exponent, start, distance = _closest_law(value, count, starts, within.largest)
        return cls(value, count, exponent, start, distance, within)

    @property
    def n_tail(self) -> int:
        """Values in the tail."""
        return int(self.count[self.value >= self.start].sum())

    def tail(self) -> tuple[Float[np.ndarray, "value"], Int[np.ndarray, "value"]]:
        """Return the distinct values in the tail, and how often each occurs."""
        return self.value[self.value >= self.start], self.count[self.value >= self.start]

    def survival(self) -> Float[np.ndarray, "value"]:
        """Return the share of the data at or above each distinct value."""
        return self.count[::-1].cumsum()[::-1] / max(1, int(self.count.sum()))

    def fitted_survival(self) -> Float[np.ndarray, "value"]:
        """Return what the law says that share is; NaN below x_min."""
        if not np.isfinite(self.exponent):
            return np.full(self.value.size, NAN)
        total = zeta_sum(self.exponent, self.start, self.within.largest)
        share = [zeta_sum(self.exponent, x, self.within.largest) / total for x in self.value]
        return np.where(self.value >= self.start, share, NAN) * self.n_tail / self.count.sum()

    def simulated(self, rng: np.random.Generator) -> Float[np.ndarray, "_"]:
        """Draw as many numbers: the tail from the law, the rest from the data below it."""
        n, body = int(self.count.sum()), self.value < self.start
        n_tail = int(rng.binomial(n, self.n_tail / n))
        drawn = zeta_numbers(self.exponent, self.start, self.within.largest, n_tail, rng)
        if n_tail == n:
            return drawn
        share = self.count[body] / self.count[body].sum()
        return np.concatenate([np.repeat(self.value[body], rng.multinomial(n - n_tail, share)), drawn])

    def goodness(self, n_draws: int, seed: int, word: str) -> tuple[float, float]:
        """Return the mean distance of simulated data from their own fits, and the chance of one as large as ours."""
        if n_draws == 0 or not np.isfinite(self.exponent):
            return NAN, NAN
        null = np.array(map_parallel(partial(_simulated_distance, self, seed, word), range(n_draws)))
        finite = null[np.isfinite(null)]
        return (float(finite.mean()) if finite.size else NAN), p_value(self.distance, null, "greater")


def zeta_numbers(
    exponent: float, start: float, largest: float, n: int, rng: np.random.Generator
) -> Float[np.ndarray, "_"]:
    """Draw whole numbers from the law, exactly: rounded-down Pareto numbers, thinned by how often each is too many."""
    b = exponent - 1
    lowest = (min(largest + 1, LARGEST) / start) ** -b
    most = _thinning(start, b)
    kept: list[np.ndarray] = [np.empty(0)]
    missing = n
    while missing > 0:
        x = np.floor(start * rng.uniform(lowest, 1, int(1.3 * missing) + 16) ** (-1 / b))
        x = np.clip(x, start, min(largest, LARGEST))
        kept.append(x[rng.random(x.size) * most <= _thinning(x, b)][:missing])
        missing -= kept[-1].size
    return np.concatenate(kept)


def _thinning(x: float | np.ndarray, b: float) -> np.ndarray:
    """Return x^-a over the share of Pareto numbers between x and x + 1, up to a constant: it falls with x."""
    return np.asarray(-1 / (x * np.expm1(-b * np.log1p(1 / np.asarray(x)))))


def _tally(numbers: np.ndarray) -> tuple[Float[np.ndarray, "value"], Int[np.ndarray, "value"]]:
    """Return the distinct numbers and how often each occurs: most are small, and are counted without sorting."""
    small = numbers < COUNTED
    often = np.bincount(numbers[small].astype(np.int64)) if small.any() else np.zeros(0, dtype=np.int64)
    value, count = np.unique(numbers[~small], return_counts=True)
    present = np.flatnonzero(often)
    return np.concatenate([present, value]).astype(np.float64), np.concatenate([often[present], count])


def _starts(value: Float[np.ndarray, "value"], count: Int[np.ndarray, "value"], within: TailRange) -> np.ndarray:
    """Return the places in `value` that are tried as x_min: two values at least, and enough data, are left above."""
    above = count[::-1].cumsum()[::-1]
    allowed = np.flatnonzero((above >= within.fewest) & (np.arange(value.size) <= value.size - 2))
    if not within.n_starts or allowed.size <= within.n_starts:
        return allowed
    wanted = np.geomspace(value[allowed[0]], value[allowed[-1]], within.n_starts)
    return np.unique(allowed[np.searchsorted(value[allowed], wanted * (1 - 1e-12)).clip(max=allowed.size - 1)])


def _simulated_distance(law: ZetaTail, seed: int, word: str, number: int) -> float:
    rng = stream(seed, "simulated", word, str(number))
    return ZetaTail.fit(law.simulated(rng), law.within).distance


@njit(nogil=True, cache=True)
@no_type_check  # numba compiles this function: nothing may wrap it
def zeta_sum(a: float, start: float, largest: float) -> float:
    """Return the sum of k^-a over whole k from `start` to `largest`, which may be infinite."""
    total = _zeta(a, start)
    return total - _zeta(a, largest + 1) if largest < np.inf else total


@njit(nogil=True, cache=True)
@no_type_check
def _zeta(a: float, start: float) -> float:
    total, k = 0.0, start
    while k < DIRECT:
        total += k**-a
        k += 1
    term = k**-a
    inverse = 1 / (k * k)
    third = a * (a + 1) * (a + 2) * inverse
    fifth = third * (a + 3) * (a + 4) * inverse
    return total + term * (k / (a - 1) + 0.5 + (a / 12 - third / 720 + fifth / 30240) / k)


@njit(nogil=True, cache=True)
@no_type_check
def _most_likely(mean_log: float, start: float, largest: float, first: float) -> float:
    """Return the exponent: Newton's steps from `first`, halved into the bracket where they leave it."""
    low, high, a = LOWEST, HIGHEST, min(max(first, LOWEST + 0.01), HIGHEST - 0.01)
    for _ in range(60):
        before = np.log(zeta_sum(a - STEP, start, largest))
        here = np.log(zeta_sum(a, start, largest))
        after = np.log(zeta_sum(a + STEP, start, largest))
        slope = (after - before) / (2 * STEP) + mean_log  # rises with a: 0 where the law's mean is that of the data
        if slope > 0:
            high = a
        else:
            low = a
        bend = (after - 2 * here + before) / STEP**2
        following = a - slope / bend if bend > 0 else low - 1
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - a) < 1e-10:
            return following
        a = following
    return a


@njit(nogil=True, cache=True)
@no_type_check
def _closest_law(value: np.ndarray, count: np.ndarray, starts: np.ndarray, largest: float) -> tuple:
    """Return exponent, x_min and distance of the start whose law is closest; of equals, the smallest."""
    n = len(value)
    above, logs = np.zeros(n + 1), np.zeros(n + 1)  # values, and their logarithms, from here on
    for i in range(n - 1, -1, -1):
        above[i] = above[i + 1] + count[i]
        logs[i] = logs[i + 1] + count[i] * np.log(value[i])
    best_exponent, best_start, best = np.nan, np.nan, np.inf
    a = 2.0
    for i in starts:
        a = _most_likely(logs[i] / above[i], value[i], largest, a)
        distance = _distance(value, above, i, a, largest, best)
        if distance < best:
            best_exponent, best_start, best = a, value[i], distance
    return best_exponent, best_start, best


@njit(nogil=True, cache=True)
@no_type_check
def _distance(value: np.ndarray, above: np.ndarray, i: int, a: float, largest: float, enough: float) -> float:
    """Return the largest distance of the tails from place i on, or something above `enough` if it is."""
    beyond = _zeta(a, largest + 1) if largest < np.inf else 0.0
    total = _zeta(a, value[i]) - beyond
    k, rest, distance = value[i], total, 0.0  # rest: sum from k on
    for j in range(i, len(value)):
        if value[j] < DIRECT:
            while k < value[j]:
                rest -= k**-a
                k += 1
        else:
            rest = _zeta(a, value[j]) - beyond
        at = abs(above[j] / above[i] - rest / total)
        after = abs(above[j + 1] / above[i] - (rest - value[j] ** -a) / total)
        distance = max(distance, at, after)
        if distance >= enough:
            return distance
    return distance
