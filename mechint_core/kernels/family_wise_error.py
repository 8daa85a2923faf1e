"""Many tests at once: p-values adjusted so that the chance of even one false discovery stays small.

    Holm             p̃_(i) = max over k <= i of  (m - k + 1) p_(k)            any dependence
    max-statistic    p̃_(i) = max over k <= i of  (1 + #{max over j >= k of t*_(j) >= t_(k)}) / (1 + B)

with p_(1) <= ... <= p_(m), or t_(1) >= ... >= t_(m), and t* the statistics of all tests in one draw of the null: the
second learns from the draws how far the tests repeat each other, and is the sharper the more they do.

Source: [@holm1979], [@westfall1993] (step-down max-statistic), [@phipson2010] (never 0).
Cost: one sort; m per draw.
"""

import numpy as np
from jaxtyping import Float

from mechint_core.errors import ShapeError
from mechint_core.kernels.false_discovery import made_tests


def holm(p_values: Float[np.ndarray, "*test"]) -> Float[np.ndarray, "*test"]:
    """Return adjusted p-values: the smallest family-wise error rate at which each test is a discovery.

    Parameters
    ----------
    p_values
        Of all tests that were made, in any shape. NaN is a test that was not made: it stays NaN and does not count.

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
    >>> holm(np.array([0.01, 0.04, 0.03, np.nan])).tolist()
    [0.03, 0.06, 0.06, nan]
    """
    made, p = made_tests(p_values)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)), 1.0)
    found = np.full(p_values.shape, np.nan)
    found[made] = adjusted
    return found


def max_statistic(
    observed: Float[np.ndarray, "test"], null: Float[np.ndarray, "draw test"]
) -> Float[np.ndarray, "test"]:
    """Return p-values adjusted by the distribution of the largest statistic, stepping down from the largest.

    Parameters
    ----------
    observed
        One statistic per test; large ones speak against the null. NaN is a test that was not made.
    null
        The statistics of all tests in each draw of the null, drawn together. Draws with a NaN are left out.

    Returns
    -------
    Float[np.ndarray, "test"]
        In [1 / (1 + draws), 1]; NaN where nothing was tested or no draw is left.

    Raises
    ------
    ShapeError
        If a draw has not one statistic per test.

    Examples
    --------
    >>> max_statistic(np.array([3.0, 1.0]), np.array([[0.0, 2.0], [2.0, 0.0], [0.5, 0.5]])).tolist()
    [0.25, 0.5]
    """
    if null.shape[1:] != observed.shape:
        raise ShapeError(f"null must be (draw, {len(observed)}). Got shape {null.shape}.")
    made = np.flatnonzero(~np.isnan(observed))
    order = made[np.argsort(-observed[made], kind="stable")]
    draws = null[:, order]
    draws = draws[np.isfinite(draws).all(axis=1)]
    found = np.full(observed.shape, np.nan)
    if not order.size or not len(draws):
        return found
    largest = np.maximum.accumulate(draws[:, ::-1], axis=1)[:, ::-1]
    found[order] = np.maximum.accumulate((1 + np.sum(largest >= observed[order], axis=0)) / (1 + len(draws)))
    return found
