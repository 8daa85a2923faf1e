"""Activations made of sparse features that form trees: the planted truth for hierarchies and absorption.

    x_i = sum_j c_ij D_j + sigma e_i        c_ij = b_ij s_ij,  e_i ~ N(0, 1)

    b_ij ~ Bernoulli(p_root)                                        a root
    b_ij ~ Bernoulli(p_child) if b_i,parent(j) = 1, else 0          any other feature

An animal is present in all samples in which a dog is. Siblings fire independently, or exclude each other: a sample
that holds a parent then holds at most one of its children.

Source: [@bussmann2025; @chanin2024] for such trees as a test of sparse dictionaries.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from mechint_core.errors import ConfigurationError
from mechint_core.random import generator
from mechint_core.synthetic.sparse_dictionary import SparseDictionary

Strength = Literal["half_normal", "near_one"]

SPREAD = 0.1
"""Standard deviation of a strength near one."""


@dataclass(frozen=True, slots=True)
class FeatureTree(SparseDictionary):
    """Planted truth: `activations = codes @ dictionary + noise`, and which feature is below which."""

    parent: Int[np.ndarray, "feature"]
    """The feature that each one implies; -1 for a root."""
    level: Int[np.ndarray, "feature"]
    """0 for a root, 1 for its children, and so on."""


def feature_tree(
    n_samples: int,
    *,
    n_units: int = 64,
    n_roots: int = 8,
    n_children: tuple[int, ...] = (4,),
    p_root: float = 0.15,
    p_child: float = 0.2,
    exclusive: bool = True,
    strength: Strength = "near_one",
    orthogonal: bool = False,
    noise: float = 0.0,
    seed: int = 0,
) -> FeatureTree:
    """Return `n_samples` sums of a few known features, each of which implies its parent.

    Parameters
    ----------
    n_samples, n_units, n_roots
        Sizes; each at least 1.
    n_children
        Children of each feature, level by level: (4,) makes two levels, (4, 2) three, () roots alone.
    p_root
        Chance that a root is active in a sample, in (0, 1).
    p_child
        Chance that a child is active where its parent is, in (0, 1]; for exclusive siblings at most one over their
        number. Where p_child times that number is 1, a parent is never seen without a child.
    exclusive
        Whether siblings exclude each other, or fire independently given their parent.
    strength
        Size of an active code: half-normal, or normal around 1 with standard deviation 0.1.
    orthogonal
        Whether directions are orthogonal, which needs as many units as features, or random: superposition.
    noise
        Standard deviation of Gaussian noise on every unit.
    seed
        The same seed gives the same dictionary whatever the number of samples.

    Returns
    -------
    FeatureTree
        Float32 activations (sample, unit), unit-norm dictionary (feature, unit), codes (sample, feature) >= 0; parent
        and level (feature), parents before their children.

    Raises
    ------
    ConfigurationError
        If a size is below 1, a probability or the noise is out of its range, or there are more orthogonal features
        than units.

    Examples
    --------
    >>> planted = feature_tree(1000, n_roots=2, n_children=(3,))
    >>> planted.parent.tolist()
    [-1, -1, 0, 0, 0, 1, 1, 1]
    >>> animal, dog = planted.codes[:, 0] > 0, planted.codes[:, 2] > 0
    >>> bool(animal[dog].all())
    True
    """
    if min(n_samples, n_units, n_roots, *n_children) < 1:
        raise ConfigurationError(
            f"sizes must be at least 1. Got {n_samples} samples, {n_units} units, {n_roots} roots, {n_children}."
        )
    most = min(1.0, 1 / max(n_children, default=1)) if exclusive else 1.0
    if not (0 < p_root < 1 and 0 < p_child <= most and noise >= 0):
        raise ConfigurationError(
            f"p_root must be in (0, 1), p_child in (0, {most:.3g}] and noise >= 0. Got {p_root}, {p_child}, {noise}."
        )
    parent, level = _tree(n_roots, n_children)
    dictionary = _directions(len(parent), n_units, orthogonal, seed)
    firing = _firing(n_samples, parent, level, (p_root, p_child), exclusive, seed)
    sizes = generator(seed, "sizes").standard_normal(firing.shape, dtype=np.float32)
    sizes = np.abs(sizes if strength == "half_normal" else 1 + np.float32(SPREAD) * sizes)
    codes = np.where(firing, sizes, np.float32(0))
    activations = codes @ dictionary
    if noise:
        activations += np.float32(noise) * generator(seed, "noise").standard_normal(activations.shape, np.float32)
    return FeatureTree(activations, dictionary, codes, parent, level)


def _tree(n_roots: int, n_children: tuple[int, ...]) -> tuple[Int[np.ndarray, "feature"], Int[np.ndarray, "feature"]]:
    """Return parent and level of each feature, level by level, siblings side by side."""
    parents, first, width = [np.full(n_roots, -1)], 0, n_roots
    for each in n_children:
        parents.append(np.repeat(np.arange(first, first + width), each))
        first, width = first + width, width * each
    levels = [np.full(len(members), level) for level, members in enumerate(parents)]
    return np.concatenate(parents), np.concatenate(levels)


def _directions(n_features: int, n_units: int, orthogonal: bool, seed: int) -> Float[np.ndarray, "feature unit"]:
    """Return unit vectors of random direction."""
    rows = generator(seed, "dictionary").standard_normal((n_features, n_units))
    if not orthogonal:
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    if n_features > n_units:
        raise ConfigurationError(f"orthogonal features must be at most the {n_units} units. Got {n_features} features.")
    return np.linalg.qr(rows.T)[0].T.astype(np.float32)


def _firing(
    n_samples: int,
    parent: Int[np.ndarray, "feature"],
    level: Int[np.ndarray, "feature"],
    chances: tuple[float, float],
    exclusive: bool,
    seed: int,
) -> Bool[np.ndarray, "sample feature"]:
    """Return which features are active: one uniform number per feature, or per family of exclusive siblings.

    Sibling number r is active where its family's number lies in [r p_child, (r + 1) p_child).
    """
    uniform = generator(seed, "firing").random((n_samples, len(parent)), dtype=np.float32)
    p_root, p_child = chances
    firing = uniform < p_root
    for depth in range(1, int(level.max()) + 1):
        members = np.flatnonzero(level == depth)
        above = parent[members]
        if exclusive:
            rank = np.arange(len(members)) - np.searchsorted(above, above)
            draw = uniform[:, members - rank]
            chosen = (draw >= rank * np.float32(p_child)) & (draw < (rank + 1) * np.float32(p_child))
        else:
            chosen = uniform[:, members] < p_child
        firing[:, members] = chosen & firing[:, above]
    return firing
