"""Inner products of dissimilarity matrices in every bootstrap draw of their conditions, for many matrices at once.

Condition i is drawn w_i times, W = Σ w_i: pair (i, j) counts π_ij = w_i w_j times, pairs of copies of one condition
never. In each draw <a, b> is

    cosine                  Σ π a b over pairs i < j
    pearson                 Σ π a b - Σ π a Σ π b / Σ π
    spearman, rho-a         pearson's, of the mid-ranks that the drawn pairs have
    whitened cosine         aᵀ V⁻¹ b, V the covariance of the drawn pairs' noise, alike in all conditions
    whitened correlation    the same of a and b less their means over the drawn pairs

The first two are entries of one matrix product, (products x pairs) (pairs x draws). Whitening is exact and as cheap:
V⁻¹ of all pairs is double centring, and leaving pairs out of V is the same as giving them the values that make the
norm least. By symmetry all pairs of copies of condition i have one value x_i, and with r_i = Σ_j a_ij w_j

    x_i = (2 r_i / W - t) / g_i,   g_i = 1 - 2 (w_i - 1) / W,   c_i = w_i (w_i - 1)
    t   = (Σ w_i r_i + 2 / W Σ c_i r_i / g_i) / (W² + Σ c_i / g_i)
    <a, b> = 2 Σ π a b - 2 / W Σ w_i (r_i + (w_i - 1) x_i) s_i + (Σ w_i r_i + Σ c_i x_i) Σ w_i s_i / W²

with s_i = Σ_j b_ij w_j.

Source: [@nili2014] (condition bootstrap), [@diedrichsen2020] (V), [@schutt2023] (copies left out).
Cost: n² per product and draw; n² per matrix and draw for ranks.
Chunked over: draws, and runs of pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeGuard, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from mechint_core.alignment._distances import square_form
from mechint_core.alignment._drawn_ranks import DrawnRanks
from mechint_core.errors import ConfigurationError, DegenerateInputError
from mechint_core.parallel import map_parallel

DrawnComparison = Literal["pearson", "cosine", "spearman", "rho-a", "whitened cosine", "whitened correlation"]
"""The comparisons that are inner products in every draw."""
PLAIN = ("pearson", "cosine")
RANKED = ("spearman", "rho-a")
CENTRED = ("pearson", "whitened correlation")
DRAWS_AT_ONCE = 256
"""Draws in one piece of work, whatever the number of workers."""
PAIRS_AT_ONCE = 2048
"""Pairs weighed at once: with their draws 4 MB, which stay in the cache."""
ROUNDING = 1e-12
"""A squared norm below this share of what it was before centring is rounding: the matrix is constant."""


def is_drawn(comparison: str) -> TypeGuard[DrawnComparison]:
    """Return whether the comparison is an inner product in every draw."""
    return comparison in get_args(DrawnComparison)


def check_drawn_comparison(comparison: str) -> None:
    """Refuse a comparison that is not one of `DrawnComparison`."""
    if not is_drawn(comparison):
        raise ConfigurationError(f"comparison must be one of {get_args(DrawnComparison)}. Got {comparison!r}.")


@dataclass(frozen=True, slots=True)
class DrawnProducts:
    """<a, b>, <a, a> and <b, b> of listed pairs of matrices in each draw, over the pairs that both hold."""

    inner: Float[np.ndarray, "draw product"]
    left: Float[np.ndarray, "draw product"]
    """<a, a>: NaN where a is constant in the draw."""
    right: Float[np.ndarray, "draw product"]

    def agreement(self) -> Float[np.ndarray, "draw product"]:
        """Return <a, b> / sqrt(<a, a> <b, b>); NaN where a or b is constant in the draw."""
        return self.inner / np.sqrt(self.left * self.right)


def drawn_products(
    rdms: Float[np.ndarray, "rdm pair"],
    left: Int[np.ndarray, "product"],
    right: Int[np.ndarray, "product"],
    comparison: DrawnComparison,
    *,
    counts: Int[np.ndarray, "condition draw"],
) -> DrawnProducts:
    """Multiply `rdms[left[k]]` and `rdms[right[k]]` for all k, where condition i occurs `counts[i]` times.

    Pairs that are NaN in either matrix are left out; whitening needs them to be whole conditions.
    """
    found = np.empty((3, counts.shape[1], len(left)))
    blocks = range(0, counts.shape[1], DRAWS_AT_ONCE)
    for mask, chosen in _joint_masks(np.isfinite(rdms), left, right):
        work = _Work.of(rdms, mask, left[chosen], right[chosen], comparison)
        parts = map_parallel(work, [counts[:, start : start + DRAWS_AT_ONCE] for start in blocks])
        for start, part in zip(blocks, parts, strict=True):
            found[:, start : start + DRAWS_AT_ONCE, chosen] = part
    return DrawnProducts(*found)


def _joint_masks(
    present: Bool[np.ndarray, "rdm pair"], left: np.ndarray, right: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Group the products by which pairs both matrices hold."""
    masks, which = np.unique(np.packbits(present, axis=1), axis=0, return_inverse=True)
    which = which.ravel()
    both = np.sort(np.stack([which[left], which[right]]), axis=0)
    code = both[0] * len(masks) + both[1]
    groups = [np.flatnonzero(code == each) for each in np.unique(code)]
    return [(present[left[chosen[0]]] & present[right[chosen[0]]], chosen) for chosen in groups]


@dataclass(frozen=True, slots=True)
class _Work:
    """Products of matrices that hold the same pairs (0 elsewhere), for a block of draws; each product is made once."""

    rdms: np.ndarray
    mask: np.ndarray
    first: np.ndarray
    second: np.ndarray
    inner: np.ndarray
    """Which product <a, b> is; `left` and `right` are those of <a, a> and <b, b>."""
    left: np.ndarray
    right: np.ndarray
    comparison: DrawnComparison

    @classmethod
    def of(
        cls, rdms: np.ndarray, mask: np.ndarray, left: np.ndarray, right: np.ndarray, comparison: DrawnComparison
    ) -> "_Work":
        used, at = np.unique(np.stack([left, right]), return_inverse=True)
        a, b = at.reshape(2, -1)
        n = len(used)
        wanted = np.stack([np.minimum(a, b) * n + np.maximum(a, b), a * n + a, b * n + b])
        listed, which = np.unique(wanted, return_inverse=True)
        (first, second), (inner, own_left, own_right) = np.divmod(listed, n), which.reshape(3, -1)
        return cls(np.where(mask, rdms[used], 0.0), mask, first, second, inner, own_left, own_right, comparison)

    def __call__(self, counts: np.ndarray) -> Float[np.ndarray, "3 draw product"]:
        weights = counts.astype(np.float64)
        if self.comparison in RANKED:
            products = self._ranked(weights)
        else:
            with np.errstate(invalid="ignore", divide="ignore"):  # a draw of one condition: no pair, NaN
                products = self._plain(weights)[0] if self.comparison in PLAIN else self._whitened(weights)
        own = np.full_like(products, np.nan)
        own[self.left], own[self.right] = products[self.left], products[self.right]
        if self.comparison == "rho-a":
            n = _pairs_drawn(weights, self.mask)
            own = np.where(own > 0, (n**3 - n) / 12, np.nan)
        own = np.where(own > 0, own, np.nan)
        return np.stack([products[self.inner].T, own[self.left].T, own[self.right].T])

    def _plain(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the products, each matrix's sum over the drawn pairs, and how many these are."""
        centre, k = self.comparison in CENTRED, len(self.first)
        shift = self.rdms.sum(axis=1, keepdims=True) / max(1, self.mask.sum()) if centre else 0.0
        z = np.where(self.mask, self.rdms - shift, 0.0)
        sums = np.zeros((k + len(z) + 1, weights.shape[1]))
        for run, drawn in _weighted_pairs(weights):
            part = z[:, run]
            sums += np.concatenate([part[self.first] * part[self.second], part, self.mask[None, run]]) @ drawn
        products, total, n = sums[:k], sums[k:-1], sums[-1]
        if centre:
            products = self._less_rounding(products - total[self.first] * total[self.second] / n, products)
        return products, total + shift * n, n

    def _less_rounding(self, centred: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Put 0 where nothing but rounding is left of a squared norm."""
        own = (self.first == self.second)[:, None]
        return np.where(own & (centred <= ROUNDING * before), 0.0, centred)

    def _ranked(self, weights: np.ndarray) -> np.ndarray:
        i, j = (each[self.mask] for each in np.triu_indices(len(weights), 1))
        ranks = DrawnRanks.of(self.rdms[:, self.mask])
        products = np.empty((len(self.first), weights.shape[1]))
        for draw, w in enumerate(weights.T):
            times = w[i] * w[j]
            centred = ranks(times)
            products[:, draw] = ((centred * times) @ centred.T)[self.first, self.second]
        return products

    def _whitened(self, weights: np.ndarray) -> np.ndarray:
        w = weights * _conditions_held(self.mask)[:, None]
        plain, total, n_pairs = self._plain(w)
        n, copies, g = w.sum(axis=0), w * (w - 1), 1 - 2 * (w - 1) / w.sum(axis=0)
        g = np.where(g > 0, g, np.nan)  # a condition that is more than half of the draw: V is singular
        mean = total / n_pairs if self.comparison in CENTRED else np.zeros_like(total)
        rows = np.stack([square_form(each) @ w for each in self.rdms]) - mean[:, None] * (n - w)
        sums = np.einsum("id,rid->rd", w, rows)
        t = (sums + 2 / n * np.sum(copies / g * rows, axis=1)) / (n**2 + np.sum(copies / g, axis=0))
        x = (2 * rows / n - t[:, None]) / g
        filled, whole = w * (rows + (w - 1) * x), sums + np.einsum("id,rid->rd", copies, x)
        a, b = self.first, self.second
        centring = 2 / n * np.einsum("kid,kid->kd", filled[a], rows[b]) - whole[a] * sums[b] / n**2
        return self._less_rounding(2 * plain - centring, 2 * plain)


def _pairs_drawn(weights: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return how many pairs there are in each draw, those that are not held left out."""
    return np.einsum("id,id->d", weights, square_form(mask.astype(np.float64)) @ weights) / 2


def _weighted_pairs(weights: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield runs of pairs i < j, and how often each of them occurs in each draw."""
    n = len(weights)
    ends = np.cumsum(np.arange(n - 1, 0, -1))
    row, start = 0, 0
    while row < n - 1:
        last = max(row + 1, int(np.searchsorted(ends, start + PAIRS_AT_ONCE, side="right")))
        drawn = np.concatenate([weights[i] * weights[i + 1 :] for i in range(row, last)])
        yield slice(start, start + len(drawn)), drawn
        row, start = last, start + len(drawn)


def _conditions_held(mask: np.ndarray) -> np.ndarray:
    """Return which conditions have pairs; refuse pairs that miss without a whole condition missing."""
    held = square_form(mask.astype(np.float64)).max(axis=1) > 0
    i, j = np.triu_indices(len(held), 1)
    if not np.array_equal(mask, held[i] & held[j]):
        raise DegenerateInputError(
            "missing pairs must be whole conditions for a whitened comparison. Got single ones: use 'pearson'."
        )
    return held
