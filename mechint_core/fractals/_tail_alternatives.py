"""Other laws for the tail that a power law was fitted to, and which of two laws the data make likelier.

    exponential            p(x) ~ exp(-l x)
    lognormal              p(x) ~ Phi((ln(x + 1/2) - m) / s) - Phi((ln(x - 1/2) - m) / s)
    truncated_power_law    p(x) ~ x^-a exp(-l x), l >= 0

each over the same whole numbers x_min ... x_max, where it sums to 1. R = sum of ln p_power - ln p_other is positive
where the power law is likelier, and its p-value the chance of as large a |R| if neither is:

    exponential, lognormal      erfc(|z| / sqrt 2),  z = R / (sqrt(n) sd of ln p_power - ln p_other)        Vuong's test
    truncated_power_law         the chance of a chi squared above -2 R: the power law is its edge l = 0

At that edge the chi squared is exact for heavy tails (a <= 1.5), and on the safe side for steep ones: a true power law
is refused in 3 to 5 % of samples at 5 %.

Source: [@clauset2009], [@vuong1989]
Cost: some hundred likelihoods of the distinct values.
"""

from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize, minimize_scalar
from scipy.special import erfc, log_ndtr

from mechint_core.fractals._zeta_tail import ZetaTail, zeta_sum
from mechint_core.result import NAN

ALTERNATIVES: Final = ("exponential", "lognormal", "truncated_power_law")
IN_WORDS: Final = ("an exponential", "a lognormal", "a power law with a cut-off, as finite systems have,")
DIRECT: Final = 200
"""Terms of the truncated power law summed one by one; an integral and two terms of Euler and Maclaurin for the rest."""
NODE, WEIGHT = np.polynomial.legendre.leggauss(120)
UNTOLD: Final = 1e-6
"""A smaller gain in ln likelihood is none: the search ends before it."""
SMALLEST_DECAY: Final = 1e-12
WIDEST: Final = 200.0
"""Largest s of the lognormal: it is then a power law over any range of data."""
SEARCH: Final = {"xatol": 1e-6, "fatol": 1e-8, "maxiter": 2000, "maxfev": 4000}


@dataclass(frozen=True, slots=True)
class Comparisons:
    """The power law against each of `ALTERNATIVES`."""

    ratio: Float[np.ndarray, "model"]
    """R: positive where the power law is likelier."""
    statistic: Float[np.ndarray, "model"]
    """z, and for the truncated power law 2 R."""
    p_value: Float[np.ndarray, "model"]

    @classmethod
    def of(cls, law: ZetaTail) -> "Comparisons":
        """Fit each alternative to the tail of `law`; NaN where there is no fit."""
        if not np.isfinite(law.exponent):
            return cls(*(np.full(len(ALTERNATIVES), NAN) for _ in range(3)))
        x, count = law.tail()
        largest = law.within.largest
        ours = -law.exponent * np.log(x) - np.log(zeta_sum(law.exponent, law.start, largest))
        rows = [
            _vuong(ours - _exponential(x, count, largest), count),
            _vuong(ours - _lognormal(x, count, largest, law.exponent), count),
            _nested(ours - _truncated(x, count, largest, law.exponent), count),
        ]
        return cls(*np.array(rows).T)


def likelier_law(ratio: Float[np.ndarray, "model"], p_value: Float[np.ndarray, "model"], level: float) -> str:
    """Return, in words, the likeliest of the laws that are surely likelier than the power law; "" if none is."""
    surely = (p_value < level) & (ratio < 0)
    return IN_WORDS[int(np.argmin(np.where(surely, ratio, 0)))] if surely.any() else ""


def _vuong(difference: Float[np.ndarray, "value"], count: np.ndarray) -> tuple[float, float, float]:
    """Return R, z and the two-sided p-value."""
    n = count.sum()
    ratio = float(count @ difference)
    variance = float(count @ (difference - ratio / n) ** 2) / n
    if variance <= 0:
        return ratio, 0.0, 1.0
    z = ratio / np.sqrt(n * variance)
    return ratio, float(z), float(erfc(abs(z) / np.sqrt(2)))


def _nested(difference: Float[np.ndarray, "value"], count: np.ndarray) -> tuple[float, float, float]:
    """Return R, 2 R and the p-value of a law against a larger family at whose edge it lies."""
    ratio = float(count @ difference)
    if ratio > -UNTOLD:
        return 0.0, 0.0, 1.0
    return ratio, 2 * ratio, float(erfc(np.sqrt(-ratio)))


def _exponential(x: np.ndarray, count: np.ndarray, largest: float) -> Float[np.ndarray, "value"]:
    """Return ln p of the most likely exponential: geometric numbers from x_min on."""
    mean = float(count @ (x - x[0])) / count.sum()
    if largest == np.inf:
        return _log_exponential(np.log1p(1 / mean), x, largest)
    loss = partial(_exponential_loss, x, count, largest)
    found = minimize_scalar(loss, bounds=(-10 / largest, 2 * np.log1p(1 / mean)), method="bounded")
    return _log_exponential(float(found.x), x, largest)


def _log_exponential(decay: float, x: np.ndarray, largest: float) -> np.ndarray:
    if abs(decay) < SMALLEST_DECAY:
        decay = SMALLEST_DECAY
    cut = np.expm1(-decay * (largest - x[0] + 1)) if largest < np.inf else -1.0
    return -decay * (x - x[0]) + np.log(np.expm1(-decay) / cut)


def _exponential_loss(x: np.ndarray, count: np.ndarray, largest: float, decay: float) -> float:
    return -float(count @ _log_exponential(decay, x, largest))


def _lognormal(x: np.ndarray, count: np.ndarray, largest: float, exponent: float) -> Float[np.ndarray, "value"]:
    """Return ln p of the most likely lognormal: searched from its moments, and from the widest, nearly a power law."""
    loss = partial(_lognormal_loss, x, count, largest)
    share = count / count.sum()
    mean = float(share @ np.log(x))
    spread = max(0.1, float(np.sqrt(share @ (np.log(x) - mean) ** 2)))
    near = minimize(loss, (mean, np.log(spread)), args=(False,), method="Nelder-Mead", options=SEARCH)
    wide = minimize(loss, (exponent, np.log(20.0)), args=(True,), method="Nelder-Mead", options=SEARCH)
    best, ridge = (near.x, False) if near.fun <= wide.fun else (wide.x, True)
    return _log_lognormal(*_lognormal_parameters(best, ridge), x, largest)


def _lognormal_parameters(free: np.ndarray, ridge: bool) -> tuple[float, float]:
    """Return m and s. Along the `ridge` of nearly equal likelihoods, (1 - a) s^2 = m is searched by a in place of m."""
    s = float(np.exp(np.clip(free[1], -5, np.log(WIDEST))))
    return ((1 - free[0]) * s * s if ridge else free[0]), s


def _lognormal_loss(x: np.ndarray, count: np.ndarray, largest: float, free: np.ndarray, ridge: bool) -> float:
    return -float(count @ _log_lognormal(*_lognormal_parameters(free, ridge), x, largest))


def _log_lognormal(m: float, s: float, x: np.ndarray, largest: float) -> np.ndarray:
    """Return ln p from the tails of the normal law, whose logarithms never vanish."""
    below, above = log_ndtr((m - np.log(x - 0.5)) / s), log_ndtr((m - np.log(x + 0.5)) / s)
    total = log_ndtr((m - np.log(x[0] - 0.5)) / s)
    if largest < np.inf:
        total = _log_difference(total, log_ndtr((m - np.log(largest + 0.5)) / s))
    return np.asarray(_log_difference(below, above) - total)


def _log_difference(larger: float | np.ndarray, smaller: float | np.ndarray) -> float | np.ndarray:
    """Return ln(exp(larger) - exp(smaller)); where they are equal to all digits, something very small."""
    return larger + np.log(np.maximum(-np.expm1(smaller - larger), 1e-300))


def _truncated(x: np.ndarray, count: np.ndarray, largest: float, exponent: float) -> Float[np.ndarray, "value"]:
    """Return ln p of the most likely truncated power law; of the power law itself where no decay is likelier."""
    loss = partial(_truncated_loss, x, count, largest)
    mean = float(count @ x) / count.sum()
    starts = ((exponent, -np.log(x[-1])), (1.0, -np.log(mean)))
    found = [minimize(loss, start, method="Nelder-Mead", options=SEARCH) for start in starts]
    best = found[int(np.argmin([each.fun for each in found]))].x
    return _log_truncated(float(best[0]), float(np.exp(best[1])), x, largest)


def _truncated_loss(x: np.ndarray, count: np.ndarray, largest: float, free: np.ndarray) -> float:
    if not (-5 < free[0] < 20 and -35 < free[1] < 3):
        return np.inf
    return -float(count @ _log_truncated(float(free[0]), float(np.exp(free[1])), x, largest))


def _log_truncated(a: float, decay: float, x: np.ndarray, largest: float) -> np.ndarray:
    total = _scaled_sum(a, decay, x[0], x[0])
    if largest < np.inf:
        total -= _scaled_sum(a, decay, largest + 1, x[0])
    return -a * np.log(x / x[0]) - decay * (x - x[0]) - np.log(total)


def _scaled_sum(a: float, decay: float, start: float, unit: float) -> float:
    """Return the sum over whole k >= start of (k / unit)^-a exp(-decay (k - unit))."""
    k = start + np.arange(DIRECT)
    total = float(np.sum((k / unit) ** -a * np.exp(-decay * (k - unit))))
    after = start + DIRECT
    term = (after / unit) ** -a * np.exp(-decay * (after - unit))
    # The integral over t = after exp(u): what is left out at its end is below exp(-40) of it.
    end = np.log1p(50 / (decay * after))
    if a > 1:
        end = min(end, 50 / (a - 1))
    u = end * (NODE + 1) / 2
    integral = end / 2 * (WEIGHT @ np.exp((1 - a) * u - decay * after * np.expm1(u)))
    return total + term * (after * float(integral) + 0.5 + (a / after + decay) / 12)
