"""An interval on Fisher's scale, for numbers that end at -1 and 1: correlations, cosines, alignments.

    z = artanh r,        low, high = tanh(z ± q error / (1 - r²))

Source: [@fisher1921].
Cost: none.
"""

import math

from scipy import stats

ROUNDING = 1e-12
"""Closer than this to -1 or 1 there is nothing left to vary."""


def fisher_interval(value: float, error: float, level: float, *, freedom: float = math.inf) -> tuple[float, float]:
    """Return value ± q error on Fisher's scale, which keeps it within [-1, 1]; a point where |value| is 1.

    The quantile q is the normal one, or Student's where the error was estimated with few degrees of `freedom`.

    Examples
    --------
    >>> [round(end, 3) for end in fisher_interval(0.5, 0.1, 0.95)]
    [0.28, 0.67]
    """
    if 1 - abs(value) <= ROUNDING:
        return value, value
    inside = (1 + level) / 2
    quantile = float(stats.norm.ppf(inside) if math.isinf(freedom) else stats.t.ppf(inside, freedom))
    reach = quantile * error / (1 - value**2)
    return math.tanh(math.atanh(value) - reach), math.tanh(math.atanh(value) + reach)
