"""How well each of several systems agrees with the mean of the others, from their products alone.

    r_k  = <X_k, Σ_{l≠k} X_l> / (||X_k|| ||Σ_{l≠k} X_l||)  =  Σ_{l≠k} t_kl / sqrt(t_kk Σ_{l,l'≠k} t_ll')
    t_kl = <X_k, X_l>

Weights count a system several times, as a bootstrap does; all copies of k are left out together, so that nothing is
compared with itself.

Source: [@nastase2019] (leave-one-out correlation), [@chen2016] (copies of a subject are no pair).
Cost: m² per set of products and weights.
"""

import numpy as np
from jaxtyping import Float

CANCELLED = 1e-14
"""A sum of systems whose square is below this share of their own squares has cancelled: its correlation is NaN."""


def agreement_with_others(products: Float[np.ndarray, "*set system system"]) -> Float[np.ndarray, "*set system"]:
    """Return the correlation (of centred systems) of each system with the sum of the others.

    Examples
    --------
    >>> agreement_with_others(np.array([[1.0, 0.5], [0.5, 1.0]])).tolist()
    [0.5, 0.5]
    """
    own = np.diagonal(products, axis1=-2, axis2=-1)
    with_all = products.sum(axis=-1)
    others = with_all.sum(axis=-1, keepdims=True) - 2 * with_all + own
    with np.errstate(invalid="ignore", divide="ignore"):
        rounding = CANCELLED * own.sum(axis=-1, keepdims=True)
        return (with_all - own) / np.sqrt(own * np.where(others > rounding, others, np.nan))


def resampled_agreement(
    products: Float[np.ndarray, "*set system system"], counts: Float[np.ndarray, "system draw"]
) -> Float[np.ndarray, "*set draw"]:
    """Return the mean of `agreement_with_others` over systems, each counted `counts` times, for each draw.

    NaN where a draw is of one system only.
    """
    own = np.diagonal(products, axis1=-2, axis2=-1)[..., None]
    with_all = products @ counts
    others = np.sum(counts * with_all, axis=-2, keepdims=True) - 2 * counts * with_all + counts**2 * own
    with np.errstate(invalid="ignore", divide="ignore"):
        rounding = CANCELLED * np.sum(counts**2 * own, axis=-2, keepdims=True)
        each = (with_all - counts * own) / np.sqrt(own * np.where(others > rounding, others, np.nan))
    taken = np.where(counts > 0, counts * each, 0)  # a system that was not drawn has no say, not even a NaN
    return taken.sum(axis=-2) / counts.sum(axis=0)


def resampled_pairs(
    correlations: Float[np.ndarray, "*set system system"], counts: Float[np.ndarray, "system draw"]
) -> Float[np.ndarray, "*set draw"]:
    """Return the mean correlation of two different systems, each counted `counts` times, for each draw."""
    own = np.diagonal(correlations, axis1=-2, axis2=-1)[..., None]
    total = np.sum(counts * (correlations @ counts) - counts**2 * own, axis=-2)
    pairs = counts.sum(axis=0) ** 2 - np.sum(counts**2, axis=0)
    return total / np.where(pairs > 0, pairs, np.nan)
