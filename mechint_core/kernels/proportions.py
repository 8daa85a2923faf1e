"""Shares of a whole, with an interval that is not empty when the share is 0 or 1.

    (s + z^2 / 2n -+ z sqrt(s (1 - s) / n + z^2 / 4n^2)) / (1 + z^2 / n)          z: normal quantile of the level

Source: [@wilson1927].
Cost: none.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtri


def wilson_interval(
    share: Float[np.ndarray, "*test"] | float, n: Int[np.ndarray, "*test"] | int, level: float = 0.95
) -> tuple[Float[np.ndarray, "*test"], Float[np.ndarray, "*test"]]:
    """Return the bounds of a share of `n` independent things, in [0, 1]; NaN if there are none.

    Examples
    --------
    >>> [round(float(bound), 4) for bound in wilson_interval(0.0, 10)]
    [0.0, 0.2775]
    """
    share, count = np.asarray(share, dtype=np.float64), np.asarray(n, dtype=np.float64)
    count = np.where(count > 0, count, np.nan)
    z2 = float(ndtri((1 + level) / 2)) ** 2
    middle = share + z2 / (2 * count)
    half = np.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2)))
    low, high = (middle - half) / (1 + z2 / count), (middle + half) / (1 + z2 / count)
    return np.asarray(np.maximum(low, 0.0)), np.asarray(np.minimum(high, 1.0))
