"""Models with parameters: chosen, weighted or interpolated from component matrices, fitted by inner products alone.

    prediction θ = Σ_m θ_m x_m,     G = <x_m, x_k>,     c_m = Σ_s a_s <x_m, e_s>,   e_s the unit vectors of the subjects

    selected        the one m with the largest c_m / sqrt(G_mm)
    weighted        θ >= 0 with the least ||Σ_m θ_m x_m - Σ_s a_s e_s||²: of all directions it agrees best with them
    interpolated    θ_m, θ_m+1 >= 0 of two neighbours only, the best of all neighbours

Where no weights above 0 agree at all (every c_m <= 0), the selected one is taken.

Source: [@khaligh2014] (weighted components), [@schutt2023] (families), [@lawson1974] (non-negative least squares).
Cost: one small least-squares problem per draw and fold.
Chunked over: nothing.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls

from mechint_core.errors import ConfigurationError

Family = Literal["selected", "weighted", "interpolated"]
"""Ways to make one model of many components."""
RANK = 1e-12
"""Directions of G below this share of the largest are none: components repeat each other."""

Gram = Float[np.ndarray, "draw model other_model"]
Cross = Float[np.ndarray, "draw model"]


def check_families(families: tuple[str, ...]) -> None:
    """Refuse families that are unknown or named twice."""
    if set(families) - set(get_args(Family)) or len(set(families)) < len(families):
        raise ConfigurationError(f"families must be different ones of {get_args(Family)}. Got {families!r}.")


def fit(family: Family, gram: Gram, cross: Cross) -> Float[np.ndarray, "draw model"]:
    """Return the parameters θ of each draw; NaN where the sums are."""
    return {"selected": _selected, "weighted": _weighted, "interpolated": _interpolated}[family](gram, cross)


def _selected(gram: Gram, cross: Cross) -> np.ndarray:
    agreement = _alone(gram, cross)
    chosen = np.argmax(np.where(np.isnan(agreement), -np.inf, agreement), axis=1)
    theta = np.zeros_like(cross)
    theta[np.arange(len(cross)), chosen] = 1
    return np.where(np.isnan(agreement).all(axis=1, keepdims=True), np.nan, theta)


def _alone(gram: Gram, cross: Cross) -> np.ndarray:
    own = np.einsum("bmm->bm", gram)
    return cross / np.sqrt(np.where(own > 0, own, np.nan))


def _weighted(gram: Gram, cross: Cross) -> np.ndarray:
    theta = _selected(gram, cross)
    known = np.flatnonzero(np.isfinite(gram).all(axis=(1, 2)) & np.isfinite(cross).all(axis=1))
    values, vectors = np.linalg.eigh(gram[known])
    root = np.sqrt(np.where(values > RANK * values[:, -1:], values, np.inf))
    design = np.where(np.isfinite(root), root, 0)[:, :, None] * vectors.transpose(0, 2, 1)
    target = np.einsum("bkm,bm->bk", vectors.transpose(0, 2, 1), cross[known]) / root
    for draw, a, b in zip(known, design, target, strict=True):
        found = nnls(a, b)[0]
        if found.any():
            theta[draw] = found
    return theta


def _interpolated(gram: Gram, cross: Cross) -> np.ndarray:
    theta, best = _selected(gram, cross), np.nanmax(_alone(gram, cross), axis=1, initial=-np.inf)
    for m in range(cross.shape[1] - 1):
        a, b, both = gram[:, m, m], gram[:, m + 1, m + 1], gram[:, m, m + 1]
        first = b * cross[:, m] - both * cross[:, m + 1]
        second = a * cross[:, m + 1] - both * cross[:, m]
        with np.errstate(invalid="ignore", divide="ignore"):  # two components that are one
            agreement = (first * cross[:, m] + second * cross[:, m + 1]) / np.sqrt(
                first**2 * a + second**2 * b + 2 * first * second * both
            )
        better = (first > 0) & (second > 0) & (agreement > best)
        theta[better] = 0
        theta[better, m], theta[better, m + 1] = first[better], second[better]
        best = np.where(better, agreement, best)
    return theta
