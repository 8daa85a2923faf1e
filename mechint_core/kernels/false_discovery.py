"""Many tests at once: p-values adjusted so that few of the discoveries are false.

    q_(i) = min over k >= i of  p_(k) m c / k          p_(1) <= ... <= p_(m)
    c     = 1                                          Benjamini-Hochberg: tests independent or positively dependent
    c     = 1 + 1/2 + ... + 1/m                        Benjamini-Yekutieli: any dependence

Calling discovered all tests with q <= a keeps the expected share of false ones among them at or below a.

Source: [@benjamini1995], [@benjamini2001].
Cost: one sort.
"""

import numpy as np
from jaxtyping import Bool, Float

from mechint_core.errors import DegenerateInputError


def false_discovery_rate(
    p_values: Float[np.ndarray, "*test"], *, any_dependence: bool = False
) -> Float[np.ndarray, "*test"]:
    """Return q-values: the smallest false discovery rate at which each test is a discovery.

    Parameters
    ----------
    p_values
        Of all tests that were made, in any shape. NaN is a test that was not made: it stays NaN and does not count.
    any_dependence
        Whether the tests may depend on each other in any way (Benjamini and Yekutieli), rather than positively or
        not at all (Benjamini and Hochberg).

    Returns
    -------
    Float[np.ndarray, "*test"]
        In [0, 1], never below the p-value.

    Raises
    ------
    DegenerateInputError
        If a p-value is not in [0, 1].

    Examples
    --------
    >>> false_discovery_rate(np.array([0.01, 0.04, 0.03, np.nan])).tolist()
    [0.03, 0.04, 0.04, nan]
    """
    made, p = made_tests(p_values)
    rank = np.arange(1, p.size + 1)
    order = np.argsort(p, kind="stable")
    dependence = np.sum(1 / rank) if any_dependence else 1.0
    scaled = p[order] * p.size * dependence / rank
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    q_values = np.full(p_values.shape, np.nan)
    q_values[made] = adjusted
    return q_values


def made_tests(
    p_values: Float[np.ndarray, "*test"],
) -> tuple[Bool[np.ndarray, "*test"], Float[np.ndarray, "made"]]:
    """Return which tests were made, and their p-values; refuse what is no p-value."""
    made = ~np.isnan(p_values)
    p = np.asarray(p_values[made], dtype=np.float64)
    if p.size and not (p.min() >= 0 and p.max() <= 1):
        raise DegenerateInputError(f"p-values must be in [0, 1]. Got {p.min()} to {p.max()}.")
    return made, p
