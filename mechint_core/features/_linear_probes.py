"""Least-squares probes on a few features, for many targets at once.

    r2_fj = cov(x_f, y_j)^2 / (var x_f var y_j)               S_j: the k features with the largest
    w_j   = (G_SS + ridge diag G_SS)^-1 x_S' y_j,  G = x'x    features and targets centred

For y_j = [class j], r2 orders features as the F statistic of class j against the rest does, and w_j is Fisher's
discriminant: the probe is fitted without iterations, so that hundreds of them, and their permutations, take no time.

Scores on held-out vectors, and each vector's influence on them (the infinitesimal jackknife: the variance of a score
is the sum of the squared influences of independent samples):

    AUC = mean over positives of the share of negatives below it (half for ties)            classes [@delong1988]
    R2  = 1 - sum (y - y_hat)^2 / sum (y - mean)^2                                          continuous

Cost: one product of features x samples x targets; per target a Gram matrix and a system of k features.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class Features(NamedTuple):
    """Features of training and held-out vectors: one row per feature, less its mean over training."""

    train: Float[np.ndarray, "latent sample"]
    test: Float[np.ndarray, "latent held_out"]
    variance: Float[np.ndarray, "latent"]


class Scored(NamedTuple):
    """A score, and how much each held-out vector moves it."""

    value: float
    influence: Float[np.ndarray, "held_out"]
    each: Float[np.ndarray, "condition"]
    """The score of each target; `value` is their mean."""


def features_of(values: Float[np.ndarray, "sample latent"], is_test: Bool[np.ndarray, "sample"]) -> Features:
    """Centre and split features; rows are contiguous, so that picking some of them is a copy."""
    rows = np.ascontiguousarray(values.T, dtype=np.float32)
    train = rows[:, ~is_test]
    mean = train.mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
    train -= mean
    return Features(train, rows[:, is_test] - mean, np.einsum("fn,fn->f", train, train, dtype=np.float64))


def strongest(
    features: Features, goals: Float[np.ndarray, "sample condition"], k: int
) -> tuple[Int[np.ndarray, "condition k"], Float[np.ndarray, "condition k"]]:
    """Return for each centred target its k features of largest r2, strongest first, and their x'y."""
    cross = (features.train @ goals).T.astype(np.float64)
    r2 = np.divide(cross**2, features.variance, out=np.zeros_like(cross), where=features.variance > 0)
    k = min(k, r2.shape[1])
    best = np.argpartition(-r2, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(r2, best, axis=1), axis=1, kind="stable")
    best = np.take_along_axis(best, order, axis=1)
    return best, np.take_along_axis(cross, best, axis=1)


def sparse_predictions(
    features: Features, goals: Float[np.ndarray, "sample condition"], ks: tuple[int, ...], ridge: float
) -> tuple[list[Float[np.ndarray, "condition held_out"]], Int[np.ndarray, "condition"]]:
    """Return what probes on each target's k strongest features predict, for every k; and its strongest feature."""
    chosen, cross = strongest(features, goals, max(ks))
    train, test = features.train[chosen], features.test[chosen]
    gram = (train @ train.transpose(0, 2, 1)).astype(np.float64)
    made: list[np.ndarray] = []
    for k in ks:
        weights = np.linalg.solve(_ridged(gram[:, :k, :k], ridge), cross[:, :k, None])
        made.append(np.einsum("ck,ckn->cn", weights[..., 0].astype(np.float32), test[:, :k]))
    return made, chosen[:, 0]


def full_predictions(
    features: Features, goals: Float[np.ndarray, "sample condition"], ridge: float
) -> Float[np.ndarray, "condition held_out"]:
    """Return what probes on all features predict."""
    gram = (features.train @ features.train.T).astype(np.float64)
    weights = np.linalg.solve(_ridged(gram, ridge), (features.train @ goals).astype(np.float64))
    return weights.T.astype(np.float32) @ features.test


def score_classes(
    predicted: Float[np.ndarray, "condition held_out"], member: Bool[np.ndarray, "condition held_out"]
) -> Scored:
    """Return the mean over classes of the area under the ROC curve."""
    each, influence = np.empty(len(member)), np.zeros(member.shape[1])
    for index, (values, is_member) in enumerate(zip(predicted, member, strict=True)):
        inside, outside = values[is_member], values[~is_member]
        below, above = _share_below(inside, outside), 1 - _share_below(outside, inside)
        each[index] = below.mean()
        influence[is_member] += (below - each[index]) / len(inside)
        influence[~is_member] += (above - each[index]) / len(outside)
    return Scored(float(each.mean()), influence / len(member), each)


def score_values(
    predicted: Float[np.ndarray, "condition held_out"], wanted: Float[np.ndarray, "condition held_out"]
) -> Scored:
    """Return the share of the variance of one continuous target that is predicted."""
    error = (wanted[0] - predicted[0]) ** 2
    deviation = (wanted[0] - wanted[0].mean()) ** 2
    value = 1 - float(error.sum() / deviation.sum())
    return Scored(value, ((1 - value) * deviation - error) / deviation.sum(), np.array([value]))


def _ridged(gram: Float[np.ndarray, "*condition k k"], ridge: float) -> Float[np.ndarray, "*condition k k"]:
    """Add to the diagonal a share of itself, so that the units of a feature do not matter; 1 for a constant one."""
    diagonal = np.einsum("...kk->...k", gram)
    return gram + np.where(diagonal > 0, ridge * diagonal, 1.0)[..., None] * np.eye(gram.shape[-1])


def _share_below(values: Float[np.ndarray, "some"], others: Float[np.ndarray, "other"]) -> Float[np.ndarray, "some"]:
    """Return for each value the share of the others below it; equal ones count half."""
    ordered = np.sort(others)
    places = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return places / (2 * len(others))
