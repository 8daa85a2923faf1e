"""Regression by inner products alone: what models explain of data, together and each beyond the others.

Of the centred products M of the models, c of models and data, y of the data with themselves, and P = M⁻¹:

    b = P c,    R² = b·c / y,    unique_k = b_k² / (P_kk y),    partial_k² = unique_k / (unique_k + 1 - R²)

With weights that may not be below 0, b is the least-squares answer in the Cholesky root of M, and every unique part a
second fit without the model.

Source: [@legendre1994], and the identities above.
Cost: K³ per draw for K models.
Chunked over: nothing.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize

from mechint_core.alignment._pair_gram import centred

Weights = Literal["any", "nonnegative"]
COLLINEAR = 1e-10
"""Share of a model's variance that the others must leave."""


@dataclass(frozen=True, slots=True)
class Explained:
    """What the models explain of each matrix; of every draw, where there are draws."""

    r_squared: np.ndarray
    intercept: np.ndarray
    coefficient: np.ndarray
    unique: np.ndarray
    partial: np.ndarray


def explained_of_grams(grams: np.ndarray, n_models: int, weights: Weights) -> Explained:
    """Regress by inner products (draw, row, row) of the constant, the models and the data."""
    products = centred(grams)
    mm, my = products[:, :n_models, :n_models], products[:, :n_models, n_models:]
    yy = np.diagonal(products[:, n_models:, n_models:], axis1=1, axis2=2)
    inverse = _inverse(mm)
    coefficient = np.moveaxis(inverse @ my, 1, 2)
    explained = np.einsum("dyk,dky->dy", coefficient, my)
    alone = coefficient**2 / np.diagonal(inverse, axis1=1, axis2=2)[:, None]
    rest = np.maximum(yy - explained, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw without variance: NaN, left out
        partial = np.sign(coefficient) * np.sqrt(alone / (alone + rest[..., None]))
        unique, r_squared = alone / yy[..., None], explained / yy
    if weights == "nonnegative":
        r_squared, coefficient, unique = _nonnegative(mm, my, yy)
    return Explained(r_squared, np.zeros_like(r_squared), coefficient, unique, partial)


def _inverse(mm: np.ndarray) -> np.ndarray:
    """Invert the models' products; NaN in a draw in which they are collinear."""
    norms = np.sqrt(np.diagonal(mm, axis1=1, axis2=2))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = mm / (norms[:, :, None] * norms[:, None])
    usable = np.asarray(np.isfinite(correlation).all(axis=(1, 2)))
    usable[usable] = np.linalg.eigvalsh(correlation[usable])[:, 0] > COLLINEAR
    inverse = np.full_like(mm, np.nan)
    inverse[usable] = np.linalg.inv(correlation[usable]) / (norms[usable][:, :, None] * norms[usable][:, None])
    return inverse


def _nonnegative(mm: np.ndarray, my: np.ndarray, yy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return R², weights and unique parts with no weight below 0: of least squares in the root of the products."""
    n_models, every = mm.shape[1], list(range(mm.shape[1]))
    r_squared, unique = np.full(yy.shape, np.nan), np.full((*yy.shape, n_models), np.nan)
    coefficient = np.full_like(unique, np.nan)
    for draw in np.flatnonzero(np.isfinite(_inverse(mm)).all(axis=(1, 2))):
        for y in range(yy.shape[1]):
            size = yy[draw, y]
            coefficient[draw, y], whole = _nonnegative_fit(mm[draw], my[draw, :, y], every)
            without = [_nonnegative_fit(mm[draw], my[draw, :, y], [k for k in every if k != left])[1] for left in every]
            r_squared[draw, y], unique[draw, y] = whole / size, (whole - np.array(without)) / size
    return r_squared, coefficient, unique


def _nonnegative_fit(mm: np.ndarray, my: np.ndarray, models: list[int]) -> tuple[np.ndarray, float]:
    """Return the weights of some models, none below 0, and the sum of squares that they explain."""
    weights = np.zeros(len(mm))
    if models:
        root = np.linalg.cholesky(mm[np.ix_(models, models)])
        weights[models] = optimize.nnls(root.T, np.linalg.solve(root, my[models]))[0]
    return weights, float(2 * weights @ my - weights @ mm @ weights)


def left_by_others(products: np.ndarray) -> np.ndarray:
    """Return the share of each model's variance that the others leave: 1 / (R⁻¹)_kk of the correlations R."""
    norms = np.sqrt(np.diagonal(products))
    values, vectors = np.linalg.eigh(products / np.outer(norms, norms))
    return 1 / np.sum(vectors**2 / np.maximum(values, np.finfo(np.float64).tiny), axis=1)
