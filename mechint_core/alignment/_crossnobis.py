"""Crossnobis: squared distances without the bias that noise adds, from differences in different folds.

    D_ij = mean over folds r ≠ s of (m_ri - m_rj)ᵀ Σ⁻¹ (m_si - m_sj) / p       m_ri: mean of condition i in fold r

Noise of different folds is independent, so two identical conditions are 0 apart on average, and D can be negative.
With P_r = m_r Σ^(-1/2), the sum over r ≠ s is that of m_r · (Σ_s m_s - m_r): one product of matrices for all folds.
A condition that is missing in some folds is compared in the folds that hold both of a pair, which no offset of a fold
can disturb. With a covariance per fold, Σ of a pair of folds is the mean of the two.

    weighting "sample"    D_ij = K_ii + K_jj - 2 K_ij, K_ij the mean of x_s · x_t / p over samples of different folds

counts every sample alike, as rsatoolbox does for unbalanced data. It is unbiased too; but where conditions are
unequally spread over folds, what all samples of a fold share no longer cancels.

Source: [@walther2016], [@diedrichsen2020].
Cost: R n² p / 2 multiplications for R folds; R (R - 1) n² p / 2 where conditions are missing or noise is per fold.
Chunked over: conditions.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations, permutations

import numpy as np
from jaxtyping import Bool, Float, Int

from mechint_core.alignment._distances import PANEL_ROWS, condensed_products, pairs_among
from mechint_core.kernels.noise_covariance import whitening_of


def across_folds(
    first: Float[np.ndarray, "condition fold unit"], second: Float[np.ndarray, "condition fold unit"] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return l and r with (l_i - l_j) · (r_i - r_j) = Σ_{r≠s} (a_ri - a_rj) · (b_si - b_sj), and l_i · r_j = l_j · r_i.

    `a` and `b` are the first and the second; without a second, both are the first. With one it is twice that sum.
    """
    if second is None:
        return _flat(first), _flat(_others(first))
    return np.hstack([_flat(first), _flat(second)]), np.hstack([_flat(_others(second)), _flat(_others(first))])


def crossfold_distances(
    first: Float[np.ndarray, "condition fold unit"],
    held: Bool[np.ndarray, "condition fold"],
    *,
    second: Float[np.ndarray, "condition fold unit"] | None = None,
    covariances: Sequence[np.ndarray] = (),
) -> Float[np.ndarray, "pair"]:
    """Return the mean product of differences in different folds, per unit; NaN for a pair that no two folds hold.

    Parameters
    ----------
    first
        Mean responses; whitened already, unless there are `covariances`.
    held
        Which conditions each fold holds.
    second
        What takes the place of the mean responses in the other fold.
    covariances
        The noise of each fold.
    """
    n, n_folds, n_units = first.shape
    scale = (1.0 if second is None else 0.5) / n_units
    if held.all() and not covariances:
        sides = across_folds(_centred(first), None if second is None else _centred(second))
        return condensed_products(*sides, scale / (n_folds * (n_folds - 1)), overwrite_right=True)
    total, count = np.zeros(n * (n - 1) // 2), np.zeros(n * (n - 1) // 2)
    for r, s in combinations(range(n_folds), 2):
        both = np.flatnonzero(held[:, r] & held[:, s])
        if len(both) < 2:
            continue
        one = _centred(first[both][:, [r, s]])
        if covariances:
            one = whitened(one, whitening_of((covariances[r] + covariances[s]) / 2))
        other = None if second is None else _centred(second[both][:, [r, s]])
        pairs = pairs_among(both, n)
        total[pairs] += condensed_products(*across_folds(one, other), scale / 2)
        count[pairs] += 1
    with np.errstate(invalid="ignore"):  # no two folds hold the pair: 0 / 0, which is NaN
        return total / count


def relabelled_means(
    first: Float[np.ndarray, "condition fold unit"],
    orders: Int[np.ndarray, "draw fold condition"],
    *,
    second: Float[np.ndarray, "condition fold unit"] | None = None,
    covariances: Sequence[np.ndarray] = (),
) -> Float[np.ndarray, "draw"]:
    """Return the mean distance over all pairs after the conditions of each fold were put in another order.

    Over all pairs, Σ (m_ri - m_rj) · (m_si - m_sj) is n Σ_i c_ri · c_si with c centred over conditions, so a draw takes
    n entries of each matrix c_r · c_s.
    """
    n, n_folds, n_units = first.shape
    a = _centred(first)
    b = a if second is None else _centred(second)
    total = np.zeros(len(orders))
    for r, s in (combinations if second is None else permutations)(range(n_folds), 2):
        left, right = a[:, r], b[:, s]
        if covariances:
            whitening = whitening_of((covariances[r] + covariances[s]) / 2)
            left, right = left @ whitening, right @ whitening
        total += (left @ right.T)[orders[:, r], orders[:, s]].sum(axis=1)
    n_products = n_folds * (n_folds - 1) // (2 if second is None else 1)  # c_r · c_s and c_s · c_r are the same
    return total * 2 / ((n - 1) * n_products * n_units)


def whitened(
    means: Float[np.ndarray, "*kind unit"], whitening: Float[np.ndarray, "unit component"] | None
) -> Float[np.ndarray, "*kind component"]:
    """Return every vector times the whitening, if there is one: one product of matrices, whatever the axes."""
    return means if whitening is None else (means.reshape(-1, means.shape[-1]) @ whitening).reshape(means.shape)


def _centred(means: np.ndarray) -> np.ndarray:
    """Shift each fold by its mean over conditions, which changes no distance, and cancels less."""
    return means - means.mean(axis=0)


def _others(means: np.ndarray) -> np.ndarray:
    """Return, in the place of each fold, the sum of the others."""
    total = means[:, 0].copy()
    for fold in range(1, means.shape[1]):  # three times as fast as a sum over the middle axis
        total += means[:, fold]
    return total[:, None] - means


def _flat(means: np.ndarray) -> np.ndarray:
    """Return the folds side by side."""
    return means.reshape(len(means), -1)


def sample_crossnobis(
    means: Float[np.ndarray, "condition fold unit"], counts: Int[np.ndarray, "condition fold"]
) -> Float[np.ndarray, "pair"]:
    """Return the distance of every pair i < j, where all pairs of samples from different folds count alike."""
    n_units = means.shape[2]
    sums = means * counts[:, :, None]
    left, right = _flat(sums), _flat(_others(sums))
    weights = counts.astype(np.float64)
    others = weights.sum(axis=1, keepdims=True) - weights
    with np.errstate(invalid="ignore", divide="ignore"):  # a condition in one fold only: 0 / 0, which is NaN
        own = np.einsum("ia,ia->i", left, right) / np.einsum("ia,ia->i", weights, others) / n_units
        runs = [own[i] + own[i + 1 :] - 2 * row for i, row in enumerate(_mean_products(left, right, weights, others))]
    return np.concatenate(runs)


def _mean_products(
    left: np.ndarray, right: np.ndarray, weights: np.ndarray, others: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield the mean products of each condition with those after it."""
    n_units = left.shape[1] // weights.shape[1]
    for start in range(0, len(left) - 1, PANEL_ROWS):
        rows = slice(start, min(start + PANEL_ROWS, len(left) - 1))
        panel = left[rows] @ right[start + 1 :].T / (weights[rows] @ others[start + 1 :].T) / n_units
        yield from (row[i:] for i, row in enumerate(panel))
