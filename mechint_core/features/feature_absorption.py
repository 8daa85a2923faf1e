"""Whether a dictionary hides general features inside special ones: absorption and splitting, against known features.

    absorbed  p silent, c fires                    in the vectors that hold the child (and so its parent)
    gap       P(p fires | parent, no child) - P(p fires | parent, this child)

p and c are the latents that stand for the parent and for the child: those paired with them, one to one, so that the
correlations of codes with features are largest. A sparse dictionary has a motive to absorb: a latent for "dog" that
holds "animal" too saves one active latent wherever there is a dog, and leaves an "animal" latent that means
"animal, but no dog". A feature is split where several latents correlate with it more than with any other feature.

The null of absorption and gap deals the parent latent's silences at random among the vectors that hold the parent:
as many, but blind to the children. That of what is found and split is a dictionary of random directions, with as many
latents and the same L0: few features in many units are half visible along any direction.

Source: [@chanin2024] for absorption, [@bricken2023] for splitting.
Cost: 1 + n_null encodings (the null's of at most `null_samples`), as many products of the active codes with the
features, and one of draws x samples x edges.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array, vstack
from torch.nn import functional

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.features._bootstrap_counts import bootstrap_counts
from mechint_core.features._encoded_blocks import encoded_blocks
from mechint_core.features._silent_parents import Edges, Measured, any_child, dealt, measure, ratio
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.features.dictionaries.sparse_codes import batch_topk, sparse_encode
from mechint_core.figure import Bars, Figure
from mechint_core.kernels.proportions import wilson_interval
from mechint_core.kernels.resampling import estimate, p_value
from mechint_core.random import generator, torch_generator
from mechint_core.result import NAN, Estimate, Result

SHOWN = 24
"""Children that are drawn, the most absorbed first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureAbsorptionConfig:
    """When a latent stands for a feature, and how sure to be of what it misses."""

    min_correlation: float = 0.5
    """Least correlation of a latent's code with a feature it stands for. (One that fires in half of a feature's
    vectors has about 0.7, in a quarter 0.5.)"""
    n_bootstrap: int = 200
    """Bootstrap draws of the samples, for intervals."""
    n_null: int = 19
    """Draws of the null; 19 allow p = 0.05."""
    null_samples: int = 1024
    """Samples that a random dictionary is tried on, at most."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        if self.n_bootstrap < 1 or self.n_null < 1 or self.null_samples < 2 or self.seed < 0:
            raise ConfigurationError(
                f"n_bootstrap and n_null must be at least 1, null_samples at least 2, seed at least 0. Got {self}."
            )
        if not (0 < self.level < 1 and 0 < self.min_correlation < 1):
            raise ConfigurationError(f"level and min_correlation must be in (0, 1). Got {self}.")


@dataclass(frozen=True, slots=True)
class FeatureAbsorption(Result):
    """How much of the parents a dictionary hides in their children."""

    technique: ClassVar[str] = "feature_absorption"
    evidence: ClassVar[str] = (
        "Absorption and gap: bootstrap over samples; null: the parent latents' silences dealt at random among their "
        "features' samples. Found and split: Wilson's interval over features; null: random dictionaries of equal size "
        "and L0."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Bars(
            values="shown_recall",
            labels="edge",
            null="shown_recall_alone",
            title="Does the parent's latent fire where this child is? (tick: where no child is)",
            value_label="share of samples",
        ),
        Bars(
            values="shown_absorbed",
            labels="edge",
            title="Parent absorbed: its latent silent, the child's firing",
            value_label="share of the child's samples",
        ),
    )

    absorption: Estimate
    """Share of the samples with a child in which the parent's latent is silent and the child's fires."""
    recall_gap: Estimate
    """Mean over children of how much less often the parent's latent fires with the child than without any."""
    found_share: Estimate
    """Share of the features that a latent stands for."""
    split_share: Estimate
    """Share of the features that several latents stand for."""
    n_samples: int
    n_edges: int
    n_never_alone: int
    """Children whose parent is never seen without a child, or never with this one: no gap is defined."""
    n_orphans: int
    """Times that a child is present without its parent: these are left out."""
    latent: Int[np.ndarray, "feature"]
    """That stands for each feature; -1: none."""
    correlation: Float[np.ndarray, "feature"]
    """Of its code with the feature; 0 without one."""
    n_latents_of: Int[np.ndarray, "feature"]
    """Latents that correlate most with this feature, and enough."""
    recall: Float[np.ndarray, "feature"]
    """Share of a feature's samples in which its latent fires; NaN if it is never present."""
    recall_alone: Float[np.ndarray, "feature"]
    """The same where no child of it is present."""
    parent_recall: Float[np.ndarray, "feature"]
    """How often the parent's latent fires where this child is present; NaN for a root. So are the next two."""
    gap: Float[np.ndarray, "feature"]
    absorbed: Float[np.ndarray, "feature"]
    edge: Annotated[tuple[str, ...], "example"]
    shown_recall: Float[np.ndarray, "example"]
    shown_recall_alone: Float[np.ndarray, "example"]
    shown_absorbed: Float[np.ndarray, "example"]

    def reading(self) -> str:
        """Say whether parents are absorbed, and how many features are there at all."""
        sure = self.recall_gap.p_value <= 1 - self.recall_gap.level + 1e-9
        if np.isnan(self.recall_gap.value):
            verdict = "No parent is seen without a child, so nothing tells absorption from weak parents"
        elif sure:
            verdict = (
                f"Where a child is present, its parent's latent fires {self.recall_gap.value:.0%} less often than "
                f"where none is: {self.absorption.value:.0%} of these samples are absorbed"
            )
        else:
            verdict = (
                f"Children do not silence their parents' latents more than chance (gap {self.recall_gap.value:.1%}, "
                f"p = {self.recall_gap.p_value:.2g})"
            )
        better = self.found_share.p_value <= 1 - self.found_share.level + 1e-9
        beyond = (
            f"{self.found_share.null:.0%} by chance"
            if better
            else f"no more than by chance, {self.found_share.null:.0%}"
        )
        return (
            f"{verdict}. {self.found_share.value:.0%} of the {len(self.latent)} features have a latent of their own "
            f"({beyond}), {self.split_share.value:.0%} more than one."
        )


def feature_absorption(
    activations: Float[np.ndarray, "sample unit"],
    dictionary: SparseDictionary,
    features: Float[np.ndarray, "sample feature"],
    parent: Int[np.ndarray, "feature"],
    *,
    config: FeatureAbsorptionConfig = FeatureAbsorptionConfig(),
) -> FeatureAbsorption:
    """Measure how often a general feature is hidden inside a special one.

    Use it where the features are known: planted data, or labels of which one implies another (an animal, a dog). The
    gap compares a parent's latent with itself, so a parent that is hard to see does not look absorbed; absorption
    counts every silence, so compare it between dictionaries at equal L0, and with its null. It cannot see a parent
    that is hidden in a feature nobody labelled.

    Parameters
    ----------
    activations
        In the units the dictionary takes.
    dictionary
        A trained dictionary.
    features
        Strength of each known feature in each sample, or 1 and 0: present where above 0.
    parent
        Of each feature, the one that it implies; -1 for none.
    config
        Pairing, draws and confidence.

    Returns
    -------
    FeatureAbsorption
        `absorption` in [0, 1]: 0 where a parent's latent never misses a child's sample, or no child has a latent.
        `recall_gap` in [-1, 1], NaN if no parent is ever alone: 0 where children make no difference, 1 where a
        parent's latent is silent exactly there. `found_share` and `split_share` in [0, 1].

    Raises
    ------
    ShapeError
        If there are fewer than two samples, the arrays do not fit each other, or the dictionary has other units.
    DegenerateInputError
        If a value is not finite, `parent` names no feature or is no forest, or no child is ever present.

    Notes
    -----
    [@chanin2024] has no planted truth: it finds latents by probes and asks whether a latent like the probe takes
    over. Here the latents are found by pairing, and the child's latent must be the one that fires.

    A latent that hears the child's direction as well fires a little more or less with it: small gaps of either sign,
    even of random directions, are interference rather than absorption.

    References
    ----------
    [@chanin2024]
    [@bricken2023]

    Examples
    --------
    >>> import torch
    >>> from mechint_core.features import SparseAutoencoder, SparseAutoencoderConfig
    >>> animal, dog = np.tile([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], (20, 1)).T
    >>> x = np.stack([animal, dog], axis=1)
    >>> absorbing = SparseAutoencoder(2, 2, config=SparseAutoencoderConfig(activation="relu"))
    >>> _ = absorbing.W_enc.data.copy_(torch.tensor([[1.0, -1.0], [0.0, 1.0]]))
    >>> result = feature_absorption(x, absorbing, x, np.array([-1, 0]))
    >>> (result.absorption.value, result.recall_gap.value)
    (1.0, 1.0)
    """
    edges = _checked(activations, features, parent)
    blocks = [csr_array(block[:, 0], dtype=np.float64) for _, block in encoded_blocks(activations, dictionary)]
    codes = csr_array(vstack(blocks))
    paired = _pair(codes, features, config.min_correlation)
    present, fires = features > 0, _fires(codes, paired.latent)
    counts = bootstrap_counts(len(features), config.n_bootstrap, generator(config.seed, "bootstrap"))
    found = measure(fires, fires, present, edges, counts)
    if not (found.n_with[0] > 0).any():
        raise DegenerateInputError("a child must be present with its parent in some sample. Got none.")
    rng = generator(config.seed, "null")
    blind = [measure(dealt(fires, present, rng), fires, present, edges, counts[:1]) for _ in range(config.n_null)]
    size = (dictionary.hidden_dim, codes.nnz / len(features))
    chance = [_pair_random(activations, features, size, draw, config) for draw in range(config.n_null)]
    return _result(found, blind, paired, chance, edges, fires, present, config)


class _Paired(NamedTuple):
    latent: Int[np.ndarray, "feature"]
    correlation: Float[np.ndarray, "feature"]
    n_latents_of: Int[np.ndarray, "feature"]


def _pair(codes: csr_array, features: Float[np.ndarray, "sample feature"], least: float) -> _Paired:
    """Pair latents with features one to one, so that the correlations of codes with features are largest."""
    n = len(features)
    centred = features - features.mean(axis=0, dtype=np.float64)
    mean, power = (np.asarray(each.sum(axis=0)).ravel() / n for each in (codes, codes.power(2)))
    spread = np.sqrt(np.maximum(power - mean**2, 0))[:, None] * centred.std(axis=0)
    covariance = (codes.T @ centred) / n
    correlation = np.divide(covariance, spread, out=np.zeros_like(covariance), where=spread > 0)
    correlation = np.where(correlation >= least, correlation, 0.0)
    rows, columns = linear_sum_assignment(correlation, maximize=True)
    rows, columns = (each[correlation[rows, columns] > 0] for each in (rows, columns))
    latent, best = np.full(features.shape[1], -1), np.zeros(features.shape[1])
    latent[columns], best[columns] = rows, correlation[rows, columns]
    most = correlation.argmax(axis=1)[correlation.max(axis=1) > 0]
    return _Paired(latent, best, np.bincount(most, minlength=features.shape[1]))


def _pair_random(
    activations: Float[np.ndarray, "sample unit"],
    features: Float[np.ndarray, "sample feature"],
    size: tuple[int, float],
    draw: int,
    config: FeatureAbsorptionConfig,
) -> _Paired:
    """Pair the latents of random directions: so many, of which so many are active on average."""
    n_latents, l0 = size
    rows = generator(config.seed, "samples", draw).permutation(len(features))[: config.null_samples]
    x = torch.tensor(activations[rows], dtype=torch.float32)
    draws = torch_generator(config.seed, "directions", draw)
    directions = functional.normalize(torch.randn(n_latents, x.shape[1], generator=draws), dim=1)
    largest = sparse_encode(x, directions, -directions @ x.mean(dim=0), batch_topk(l0))
    entries = (
        largest.values.double().numpy(),
        largest.latents.numpy(),
        np.r_[largest.starts.numpy(), len(largest.latents)],
    )
    return _pair(csr_array(entries, shape=(len(x), n_latents)), features[rows], config.min_correlation)


def _fires(codes: csr_array, latent: Int[np.ndarray, "feature"]) -> Bool[np.ndarray, "sample feature"]:
    """Return where the latent of each feature fires; nowhere for a feature without one."""
    fires = np.zeros((codes.indptr.size - 1, len(latent)), dtype=bool)
    fires[:, latent >= 0] = codes.tocsc()[:, latent[latent >= 0]].toarray() > 0
    return fires


def _result(
    found: Measured,
    blind: list[Measured],
    paired: _Paired,
    chance: list[_Paired],
    edges: Edges,
    fires: Bool[np.ndarray, "sample feature"],
    present: Bool[np.ndarray, "sample feature"],
    config: FeatureAbsorptionConfig,
) -> FeatureAbsorption:
    gap, parent_recall = found.gap()[0], ratio(found.n_fired, found.n_with)[0]
    recall_alone = ratio(found.n_alone_fired, found.n_alone)[0]
    absorbed = ratio(found.n_absorbed, found.n_with)[0]
    alone = present & ~any_child(present, edges)
    drawn = np.argsort(-np.nan_to_num(absorbed), kind="stable")[:SHOWN]
    return FeatureAbsorption(
        absorption=_bound(found.absorption(), [each.absorption() for each in blind], config.level),
        recall_gap=_bound(found.mean_gap(), [each.mean_gap() for each in blind], config.level),
        found_share=_share(paired.latent >= 0, [each.latent >= 0 for each in chance], config.level),
        split_share=_share(paired.n_latents_of > 1, [each.n_latents_of > 1 for each in chance], config.level),
        n_samples=len(present),
        n_edges=len(edges.child),
        n_never_alone=int(np.sum(np.isnan(gap))),
        n_orphans=int(np.sum(present[:, edges.child] & ~present[:, edges.parent])),
        latent=paired.latent,
        correlation=paired.correlation,
        n_latents_of=paired.n_latents_of,
        recall=ratio((fires & present).sum(axis=0), present.sum(axis=0)),
        recall_alone=ratio((fires & alone).sum(axis=0), alone.sum(axis=0)),
        parent_recall=_by_feature(parent_recall, edges, len(paired.latent)),
        gap=_by_feature(gap, edges, len(paired.latent)),
        absorbed=_by_feature(absorbed, edges, len(paired.latent)),
        edge=tuple(f"{edges.child[one]} in {edges.parent[one]}" for one in drawn),
        shown_recall=parent_recall[drawn],
        shown_recall_alone=recall_alone[drawn],
        shown_absorbed=absorbed[drawn],
    )


def _bound(values: Float[np.ndarray, "draw"], null: list[Float[np.ndarray, "one"]], level: float) -> Estimate:
    """Return the first value with its bootstrap interval, the others, and its null."""
    if np.isnan(values[0]):
        return Estimate(NAN, level=level)
    return estimate(float(values[0]), bootstrap=values[1:], null=np.concatenate(null), level=level)


def _share(hits: Bool[np.ndarray, "feature"], chance: list[Bool[np.ndarray, "feature"]], level: float) -> Estimate:
    value, null = float(hits.mean()), np.array([each.mean() for each in chance])
    low, high = wilson_interval(value, len(hits), level)
    return Estimate(value, float(low), float(high), float(null.mean()), p_value(value, null), level)


def _by_feature(values: Float[np.ndarray, "edge"], edges: Edges, n_features: int) -> Float[np.ndarray, "feature"]:
    placed = np.full(n_features, NAN)
    placed[edges.child] = values
    return placed


def _checked(
    activations: Float[np.ndarray, "sample unit"],
    features: Float[np.ndarray, "sample feature"],
    parent: Int[np.ndarray, "feature"],
) -> Edges:
    """Return the edges, which make a forest."""
    n_samples, n_features = features.shape if features.ndim == 2 else (0, 0)
    if n_samples < 2 or activations.shape[:-1] != (n_samples,) or parent.shape != (n_features,):
        raise ShapeError(
            "activations (sample >= 2, unit), features (sample, feature) and parent (feature) must fit each other. "
            f"Got shapes {activations.shape}, {features.shape} and {parent.shape}."
        )
    if not np.isfinite(features).all():
        raise DegenerateInputError("features must be finite. Got NaN or infinity.")
    child, ancestor = np.flatnonzero(parent >= 0), parent
    if not len(child) or parent.min() < -1 or parent.max() >= n_features:
        raise DegenerateInputError(f"parent must name features 0 to {n_features - 1}, or -1. Got {parent.tolist()}.")
    for _ in range(n_features):  # no way up is longer than this
        ancestor = np.where(ancestor >= 0, parent[ancestor], -1)
    if (ancestor >= 0).any():
        raise DegenerateInputError(f"parent must be a forest. Got a feature above itself: {parent.tolist()}.")
    return Edges(child, parent[child])
