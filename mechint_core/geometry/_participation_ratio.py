"""The participation ratio of a covariance, and its jackknife.

    PR = (tr C)^2 / tr C^2        1 if one direction holds all variance, the number of units if all hold the same

Leaving a group of rows out subtracts its sums from those of all rows; with more units than rows the matrix of products
of rows is smaller, has the same traces, and rows are left out of it.

Source: [@abbott2011], [@efron1981] (the jackknife).
Cost: one product of the rows with themselves.
"""

from typing import Final

import numpy as np
from jaxtyping import Float, Int

MOST_HELD: Final = 1024
"""Up to so many units the products of all groups are held, and made once: 8 MB a group."""


def participation_ratios(
    centred: Float[np.ndarray, "row unit"], groups: list[Int[np.ndarray, "_"]]
) -> Float[np.ndarray, "which"]:
    """Return the participation ratio of all rows, and then without each group."""
    if centred.shape[1] > len(centred):
        return _of_products(centred @ centred.T, groups)
    return _of_moments(centred, groups)


def _of_products(
    products: Float[np.ndarray, "row other"], groups: list[Int[np.ndarray, "_"]]
) -> Float[np.ndarray, "which"]:
    ratios = [_ratio(_twice_centred(products))]
    for group in groups:
        kept = np.delete(np.arange(len(products)), group)
        ratios.append(_ratio(_twice_centred(products[np.ix_(kept, kept)])))
    return np.array(ratios)


def _of_moments(
    centred: Float[np.ndarray, "row unit"], groups: list[Int[np.ndarray, "_"]]
) -> Float[np.ndarray, "which"]:
    n = np.array([len(group) for group in groups])
    sums = np.array([centred[group].sum(axis=0) for group in groups])
    held = [_product(centred[group]) for group in groups] if centred.shape[1] <= MOST_HELD else []
    total = np.sum(held, axis=0) if held else _product(centred)
    ratios = [_ratio(total - np.outer(sums.sum(axis=0), sums.sum(axis=0)) / n.sum())]
    for g, group in enumerate(groups):
        others = sums.sum(axis=0) - sums[g]
        without = total - (held[g] if held else _product(centred[group]))
        ratios.append(_ratio(without - np.outer(others, others) / (n.sum() - n[g])))
    return np.array(ratios)


def _product(part: Float[np.ndarray, "member unit"]) -> Float[np.ndarray, "unit other"]:
    return part.T @ part  # numpy sees that both factors are one array, and halves the work


def _twice_centred(products: Float[np.ndarray, "row other"]) -> Float[np.ndarray, "row other"]:
    mean = products.mean(axis=0)
    return products - mean - mean[:, None] + mean.mean()


def _ratio(scatter: Float[np.ndarray, "row other"]) -> float:
    return float(np.trace(scatter) ** 2 / np.sum(scatter**2))
