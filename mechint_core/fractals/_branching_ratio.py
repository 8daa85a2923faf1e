"""Branching ratio of summed activity: how many events does one event cause in the next bin.

    r_k = cov(A(t), A(t + k)) / var A(t)        slope of the activity k bins later over that of now
    naive        m = r_1: too small where only a part of the units is seen
    corrected    r_k = b m^k: seeing a part lowers b, the decay stays                       multistep regression
    offset       r_k = b m^k + c: what a drift of the whole recording adds

Over m, the fit is one-dimensional: b (and c) follow. The interval resamples stretches of the recording, whose sums of
A(t), A(t)^2, A(t + k) and A(t) A(t + k) are kept, and is symmetric in the logarithm of the decay time -1 / ln m.

Source: [@wilting2018], [@politis1992]
Cost: bins x lags multiplications, lags <= 60.
"""

from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtrit

from mechint_core.errors import ShapeError
from mechint_core.fractals._power_law import spread, stream
from mechint_core.kernels.resampling import p_value
from mechint_core.parallel import map_parallel
from mechint_core.result import NAN, Estimate

MOST_LAGS: Final = 60
"""Lags of a fit: beyond so many, they are spread evenly."""
LONGEST: Final = 2000
"""Largest automatic lag."""
FADED: Final = 0.1
"""The automatic fit ends where r_k has fallen to this share of r_1, or into the noise."""
DECAYS: Final = np.geomspace(0.05, 1e6, 600)
"""Decay times, in bins, that the fit is searched at before it is refined between two of them."""
LEVEL: Final = 0.95
ROUNDS: Final = 40
GOLDEN: Final = (np.sqrt(5) - 1) / 2
STRETCHES: Final = (20, 200)
"""Fewest and most stretches that are resampled."""


@dataclass(frozen=True, slots=True)
class Regression:
    """Sums over stretches of a recording from which r_k follows, for any choice of stretches."""

    lag: Int[np.ndarray, "scale"]
    sums: Float[np.ndarray, "4 row scale"]
    """Of A(t), A(t)^2, A(t + k) and A(t) A(t + k), less the mean activity."""
    counts: Float[np.ndarray, "row"]

    @classmethod
    def of(cls, activity: Int[np.ndarray, "time"], max_lag: int) -> "Regression":
        """Sum over stretches some ten times as long as the largest lag, where there are enough bins."""
        if activity.size < 2 * max_lag:
            raise ShapeError(
                f"raster must have at least {2 * max_lag} bins for a max_lag of {max_lag}. Got {activity.size}."
            )
        a = activity - activity.mean()
        longest = max_lag or _fading_lag(a)
        lag = np.unique(np.linspace(1, longest, min(longest, MOST_LAGS)).round().astype(np.int64))
        n_pairs = a.size - longest
        n_rows = int(np.clip(n_pairs // (10 * longest), *STRETCHES))
        edge = np.linspace(0, n_pairs, n_rows + 1).astype(np.int64)
        now = a[:n_pairs]
        sums = np.empty((4, n_rows, lag.size))
        sums[0], sums[1] = np.add.reduceat(now, edge[:-1])[:, None], np.add.reduceat(now * now, edge[:-1])[:, None]
        for i, k in enumerate(lag):
            later = a[k : k + n_pairs]
            sums[2, :, i] = np.add.reduceat(later, edge[:-1])
            sums[3, :, i] = np.add.reduceat(now * later, edge[:-1])
        return cls(lag, sums, np.diff(edge).astype(np.float64))

    def slopes(self) -> Float[np.ndarray, "scale"]:
        """Return r_k."""
        return _slopes(self.sums.sum(axis=1), float(self.counts.sum()))

    def resampled(self, n_draws: int, rng: np.random.Generator) -> Float[np.ndarray, "draw scale"]:
        """Return r_k of stretches drawn with replacement."""
        n_rows = self.counts.size
        times = rng.multinomial(n_rows, np.full(n_rows, 1 / n_rows), size=n_draws).astype(np.float64)
        return _slopes(np.einsum("dr,frk->fdk", times, self.sums), (times @ self.counts)[:, None])

    @property
    def degrees_of_freedom(self) -> int:
        """Stretches less one."""
        return self.counts.size - 1


@dataclass(frozen=True, slots=True)
class Decay:
    """The fit r_k = b m^k (+ c) of one or many sets of slopes."""

    ratio: Float[np.ndarray, "draw"]
    """m; 0 where no decaying curve fits better than none."""
    fitted: Float[np.ndarray, "draw scale"]

    @classmethod
    def fit(cls, lag: Int[np.ndarray, "scale"], slopes: Float[np.ndarray, "draw scale"], *, offset: bool) -> "Decay":
        """Search the decay time on a grid, then between the neighbours of the best by golden section."""
        wanted = slopes - slopes.mean(axis=1, keepdims=True) if offset else slopes
        match = wanted @ _shapes(lag, DECAYS, offset).T
        best = np.argmax(match, axis=1).clip(1, DECAYS.size - 2)
        low, high = np.log(DECAYS[best - 1]), np.log(DECAYS[best + 1])
        for _ in range(ROUNDS):
            left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
            ahead = _match(lag, wanted, left, offset) > _match(lag, wanted, right, offset)
            low, high = np.where(ahead, low, left), np.where(ahead, right, high)
        decay = np.exp((low + high) / 2)
        shape = _shapes(lag, decay, offset)
        size = np.sum(wanted * shape, axis=1, keepdims=True)
        fitted = size * shape + (slopes.mean(axis=1, keepdims=True) if offset else 0)
        return cls(np.where(size[:, 0] > 0, np.exp(-1 / decay), 0.0), np.where(size > 0, fitted, 0.0))


@dataclass(frozen=True, slots=True)
class Branching:
    """The branching ratio of a recording, both ways, with intervals and nulls."""

    corrected: Estimate
    naive: Estimate
    with_offset: float
    applies: bool
    lag: Int[np.ndarray, "scale"]
    slopes: Float[np.ndarray, "scale"]
    fitted: Float[np.ndarray, "scale"]

    @classmethod
    def of(
        cls, activity: Int[np.ndarray, "time"], max_lag: int, *, n_draws: int, n_orders: int, seed: int
    ) -> "Branching":
        """Fit the decay of `activity`, resample its stretches, and put its bins in random orders."""
        regression = Regression.of(activity, max_lag)
        slopes = regression.slopes()
        fit = Decay.fit(regression.lag, slopes[None], offset=False)
        ratio, naive, freedom = float(fit.ratio[0]), float(slopes[0]), regression.degrees_of_freedom
        draws = regression.resampled(n_draws, stream(seed, "stretches"))
        low, high = ratio_interval(ratio, Decay.fit(regression.lag, draws, offset=False).ratio, freedom)
        error = spread(draws) if n_draws > 1 else np.zeros_like(slopes)
        half = float(stdtrit(freedom, (1 + LEVEL) / 2) * error[0]) if n_draws > 1 else NAN
        null = np.array(map_parallel(partial(_shuffled_slope, activity, seed), range(n_orders)))
        p, typical = p_value(naive, null, "greater"), float(null.mean()) if n_orders else NAN
        left = np.sqrt(np.mean((slopes - fit.fitted[0]) ** 2))
        return cls(
            Estimate(ratio, low, high, 0.0 if n_orders else NAN, p, LEVEL),
            Estimate(naive, naive - half, naive + half, typical, p, LEVEL),
            float(Decay.fit(regression.lag, slopes[None], offset=True).ratio[0]),
            bool(ratio > 0 and not naive <= half and left <= max(FADED * naive, 2 * np.sqrt(np.mean(error**2)))),
            regression.lag,
            slopes,
            fit.fitted[0],
        )

    def time(self, width: int) -> Estimate:
        """Return -1 / ln m in steps, of bins of `width` steps."""
        m = self.corrected
        value, low, high = (width * decay_time(each) for each in (m.value, m.low, m.high))
        return Estimate(value, low, high, width * m.null, m.p_value, m.level)


def ratio_interval(
    ratio: float, draws: Float[np.ndarray, "draw"], degrees_of_freedom: int, level: float = LEVEL
) -> tuple[float, float]:
    """Return the interval of m that is symmetric in the logarithm of its decay time."""
    if draws.size < 2:
        return NAN, NAN
    half = stdtrit(degrees_of_freedom, (1 + level) / 2) * spread(_log_decay(draws)[:, None])[0]
    low, high = np.exp(-np.exp(-_log_decay(np.array([ratio, ratio])) - half * np.array([-1, 1])))
    return float(low), float(high)


def decay_time(ratio: float) -> float:
    """Return -1 / ln m, in bins; 0 for m = 0."""
    return 0.0 if ratio == 0 else float(-1 / np.log(ratio))


def _log_decay(ratio: Float[np.ndarray, "draw"]) -> Float[np.ndarray, "draw"]:
    """Return ln(-1 / ln m), at least that of the shortest decay time that is searched."""
    return -np.log(-np.log(np.maximum(ratio, np.exp(-1 / DECAYS[0]))))


def _slopes(sums: np.ndarray, count: float | np.ndarray) -> np.ndarray:
    now, square, later, product = sums / count
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw may hold no activity
        return (product - now * later) / (square - now * now)


def _shuffled_slope(activity: Int[np.ndarray, "time"], seed: int, number: int) -> float:
    a = stream(seed, "order", str(number)).permutation(activity) - activity.mean()
    now, later = a[:-1], a[1:]
    variance = float(now.var())
    return float((now @ later / now.size - now.mean() * later.mean()) / variance) if variance else NAN


def _fading_lag(a: Float[np.ndarray, "time"]) -> int:
    """Return where the autocorrelation has faded: at least 5, at most a tenth of the recording."""
    size = 1 << int(np.ceil(np.log2(2 * a.size)))
    spectrum = np.abs(np.fft.rfft(a, size)) ** 2
    most = int(max(5, min(LONGEST, a.size // 10)))
    r = np.fft.irfft(spectrum, size)[: most + 1]
    r = r / r[0]
    noise = 2 * np.sqrt((1 + 2 * np.cumsum(np.maximum(r[1:], 0) ** 2)) / a.size)
    faded = np.flatnonzero(r[1:] < np.maximum(FADED * r[1], noise))
    return int(max(5, faded[0] + 1)) if faded.size else most


def _shapes(lag: np.ndarray, decay: np.ndarray, offset: bool) -> Float[np.ndarray, "draw scale"]:
    """Return m^k of length 1, with its mean taken off for a fit with offset."""
    shape = np.exp(-lag / decay[:, None])
    if offset:
        shape = shape - shape.mean(axis=1, keepdims=True)
    length = np.linalg.norm(shape, axis=1, keepdims=True)
    return shape / np.where(length > 0, length, 1)


def _match(lag: np.ndarray, wanted: np.ndarray, log_decay: np.ndarray, offset: bool) -> Float[np.ndarray, "draw"]:
    return np.sum(wanted * _shapes(lag, np.exp(log_decay), offset), axis=1)
