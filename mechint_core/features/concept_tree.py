"""Which latents are special cases of which: a tree estimated from what fires together.

    containment = P(i fires | j fires) = n_ij / n_j
    excess      = (containment - P(i)) / (1 - P(i))                0: chance,  1: j never fires without i
    p           = P(H >= n_ij),   H ~ Hypergeometric(N, n_i, n_j)  Fisher's exact test

    j is below i  where  n_i >= breadth n_j,  excess >= min_excess,  q <= false_discovery
    parent(j)   = the rarest i that j is below;  a root if there is none

q is p adjusted over all pairs of which one latent is broad enough to be the other's parent. A parent is broader than
its child, so there is no cycle. The null is the whole procedure on shuffled firing: each latent keeps how often it
fires, and fires in samples drawn at random.

Source: [@benjamini1995] for q; [@bussmann2025] for trees of latents as what a dictionary should hold.
Cost: (1 + n_null) products of the sparse firing with itself, samples x L0^2, for any number of latents.
Chunked over: samples, then latents. Memory: 8 bytes per active code, and one block of pairs.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import ConfigurationError, DegenerateInputError
from mechint_core.features._containment import (
    Firing,
    contained_pairs,
    count_pairs,
    fisher_p,
    read_firing,
    shuffled_firing,
)
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.figure import Bars, Figure, Histogram, Matrix
from mechint_core.kernels.false_discovery import false_discovery_rate
from mechint_core.kernels.proportions import wilson_interval
from mechint_core.kernels.resampling import bootstrap_rows, p_value, percentile_interval
from mechint_core.parallel import Rows
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

SHOWN = 20
"""Edges, and latents of the largest families, that are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptTreeConfig:
    """What counts as a special case, and how sure to be of it."""

    min_excess: float = 0.7
    """Least share of a latent's firing that its parent must have, beyond chance: 0 is independence, 1 inclusion."""
    breadth: float = 1.2
    """A parent fires at least this many times as often as its child: near copies of a latent are not its parents."""
    min_firings: int = 10
    """Latents that fire in fewer vectors are not judged."""
    false_discovery: float = 0.05
    """Expected share of chance among the pairs called significant."""
    n_null: int = 19
    """Shuffles of the firing to compare with; 19 allow p = 0.05."""
    n_bootstrap: int = 200
    """Bootstrap draws of the edges, for the interval of the mean containment."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        if self.min_firings < 1 or self.n_null < 1 or self.n_bootstrap < 1 or self.seed < 0:
            raise ConfigurationError(
                f"min_firings, n_null and n_bootstrap must be at least 1, seed at least 0. Got {self}."
            )
        if not (0 < self.min_excess <= 1 and 0 < self.false_discovery < 1 and 0 < self.level < 1):
            raise ConfigurationError(f"min_excess, false_discovery and level must be in (0, 1). Got {self}.")
        if not self.breadth > 1:
            raise ConfigurationError(f"breadth must be above 1, or two latents could be each other's. Got {self}.")


@dataclass(frozen=True, slots=True)
class ConceptTree(Result):
    """The tree of a dictionary's latents on one set of vectors."""

    technique: ClassVar[str] = "concept_tree"
    evidence: ClassVar[str] = (
        "Share below a parent: Wilson's interval over latents; null: each latent's firing shuffled over the vectors, "
        "and the tree made again. Mean containment: bootstrap over edges; null: how often the parents fire anyway. "
        "Each edge: Wilson's interval over vectors, and Fisher's exact test adjusted over all pairs."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Matrix(
            values="together",
            x="shown",
            y="shown",
            title="What fires where, in the largest families",
            x_label="latent that fires",
            y_label="latent that may contain it",
            value_label="P(row | column)",
        ),
        Bars(
            values="edge_containment",
            labels="edge",
            low="edge_low",
            high="edge_high",
            null="edge_chance",
            title="Children and their parents",
            value_label="share of the child's firing that its parent has (tick: chance)",
        ),
        Histogram(
            values="containment",
            title="How much of each child its parent has",
            x_label="share of the child's firing",
        ),
    )

    below_share: Estimate
    """Share of the judged latents that have a parent."""
    mean_containment: Estimate
    """Over the edges; NaN if there is none."""
    n_vectors: int
    n_latents: int
    n_dead: int
    """Latents that never fire here."""
    n_rare: int
    """Latents that fire, but in too few vectors to be judged."""
    n_edges: int
    n_families: int
    """Roots with at least one child."""
    n_levels: int
    n_pairs: int
    """Pairs that were tested: one latent broad enough to be the other's parent."""
    parent: Int[np.ndarray, "latent"]
    """-1: a root, or not judged."""
    level_of: Int[np.ndarray, "latent"]
    """0: a root; -1: not judged."""
    root: Int[np.ndarray, "latent"]
    """The root above each latent, itself for a root; -1: not judged."""
    density: Float[np.ndarray, "latent"]
    """Share of the vectors a latent fires in."""
    containment: Float[np.ndarray, "latent"]
    """Of each latent in its parent; NaN without one. So are the next five."""
    containment_low: Float[np.ndarray, "latent"]
    containment_high: Float[np.ndarray, "latent"]
    chance: Float[np.ndarray, "latent"]
    p_value: Float[np.ndarray, "latent"]
    q_value: Float[np.ndarray, "latent"]
    together: Float[np.ndarray, "row column"]
    shown: Annotated[tuple[str, ...], "row"]
    edge: Annotated[tuple[str, ...], "example"]
    """Of the largest families, as in "child in parent"."""
    edge_containment: Float[np.ndarray, "example"]
    edge_low: Float[np.ndarray, "example"]
    edge_high: Float[np.ndarray, "example"]
    edge_chance: Float[np.ndarray, "example"]

    def reading(self) -> str:
        """Say how much of the dictionary is ordered, and whether chance would order as much."""
        n_judged = self.n_latents - self.n_dead - self.n_rare
        if self.n_edges == 0:
            return f"None of the {n_judged} latents that fire often enough is a special case of another."
        sure = self.below_share.p_value <= 1 - self.below_share.level + 1e-9
        verdict = (
            f"shuffled firing gives {self.below_share.null:.1%}"
            if sure
            else f"not distinguishable from shuffled firing (p = {self.below_share.p_value:.2g})"
        )
        return (
            f"{self.n_edges} of {n_judged} latents ({self.below_share.value:.0%}) are special cases of another, in "
            f"{self.n_families} families of up to {self.n_levels} levels; {verdict}. Where a child fires, its parent "
            f"fires in {self.mean_containment.value:.0%} of the vectors (by chance {self.mean_containment.null:.0%})."
        )


def concept_tree(
    activations: Float[Rows, "sample *position unit"],
    dictionary: SparseDictionary,
    *,
    config: ConceptTreeConfig = ConceptTreeConfig(),
) -> ConceptTree:
    """Find which of a dictionary's latents are special cases of which others.

    Use it to read a large dictionary from the general to the particular, above all a nested one. It knows what fires
    together, not what it means: any latent that fires only where a broader one does counts as its special case. A
    dictionary that absorbs parents into their children (`feature_absorption`) has fewer edges than the truth. The
    tests take vectors as independent, which positions of one sequence are not quite.

    Parameters
    ----------
    activations
        In the units the dictionary takes; read block by block. Further axes before the last are flattened to vectors.
    dictionary
        A trained dictionary.
    config
        What counts as an edge.

    Returns
    -------
    ConceptTree
        `below_share` in [0, 1]: 0 where every latent is a root. `mean_containment` in (0, 1], 1 where no child fires
        without its parent. `parent` is at most one per latent, the rarest of those that contain it; `level_of` counts
        the latents above it.

    Raises
    ------
    ShapeError
        If there is no sample, or they have not the dictionary's number of units.
    DegenerateInputError
        If a value is not finite, or no latent fires often enough to be judged.

    Notes
    -----
    A latent that always fires contains all others by chance: it is never a parent.

    References
    ----------
    [@bussmann2025]
    [@benjamini1995]

    Examples
    --------
    >>> import torch
    >>> from mechint_core.features import SparseAutoencoder, SparseAutoencoderConfig
    >>> basis = SparseAutoencoder(3, 3, config=SparseAutoencoderConfig(activation="relu"))
    >>> _ = torch.nn.init.eye_(basis.W_enc)
    >>> animal, dog, rain = [1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]
    >>> tree = concept_tree(np.array(20 * [animal, dog, rain, rain]), basis)
    >>> tree.parent.tolist()
    [-1, 0, -1]
    """
    firing = read_firing(activations, dictionary)
    judged = firing.counts >= config.min_firings
    if not judged.any():
        raise DegenerateInputError(
            f"a latent must fire in at least {config.min_firings} vectors. Got at most {firing.counts.max()} of "
            f"{firing.n_vectors}: give more vectors, or lower min_firings."
        )
    edges = _edges(firing, config)
    null = [_share(_edges(shuffled_firing(firing, config.seed, draw), config), judged) for draw in range(config.n_null)]
    return _result(firing, edges, judged, np.array(null), config)


def edge_f1(
    parent: Int[np.ndarray, "latent"],
    true_parent: Int[np.ndarray, "feature"],
    partner: Int[np.ndarray, "feature"],
) -> float:
    """Return how well a tree of latents has the edges of a planted tree: the harmonic mean of precision and recall.

    Parameters
    ----------
    parent
        Of each latent, -1 for none.
    true_parent
        Of each planted feature, -1 for none.
    partner
        The latent that stands for each feature, -1 for none: `match_features(...).partner`.

    Returns
    -------
    float
        In [0, 1]. An edge between latents that stand for no feature counts as a false one. NaN if neither tree has
        an edge.

    Examples
    --------
    >>> edge_f1(np.array([1, -1, 1]), np.array([-1, 0, 0]), np.array([1, 0, 2]))
    1.0
    """
    children = np.flatnonzero(true_parent >= 0)
    child, above = partner[children], partner[true_parent[children]]
    n_right = int(np.sum((child >= 0) & (above >= 0) & (parent[child] == above)))
    n_edges = int(np.sum(parent >= 0)) + len(children)
    return 2 * n_right / n_edges if n_edges else NAN


class _Edges(NamedTuple):
    """The edges of a tree: one per child."""

    child: Int[np.ndarray, "edge"]
    parent: Int[np.ndarray, "edge"]
    together: Int[np.ndarray, "edge"]
    """Vectors that both fire in."""
    p_value: Float[np.ndarray, "edge"]
    q_value: Float[np.ndarray, "edge"]
    n_pairs: int


def _edges(firing: Firing, config: ConceptTreeConfig) -> _Edges:
    """Return the parent of every latent that has one: the rarest of those that significantly contain it."""
    counts = firing.counts
    child, parent, together = contained_pairs(
        firing, min_excess=config.min_excess, breadth=config.breadth, min_firings=config.min_firings
    )
    p = fisher_p(together, counts[parent], counts[child], firing.n_vectors)
    n_pairs = count_pairs(counts[counts >= config.min_firings], config.breadth)
    q = np.minimum(1.0, false_discovery_rate(p) * (n_pairs / max(1, len(p))))  # pairs that are not here have p = 1
    kept = np.flatnonzero(q <= config.false_discovery)
    rarest = kept[np.lexsort((parent[kept], -together[kept], counts[parent[kept]], child[kept]))]
    one = rarest[np.unique(child[rarest], return_index=True)[1]]
    return _Edges(child[one], parent[one], together[one], p[one], q[one], n_pairs)


def _share(edges: _Edges, judged: np.ndarray) -> float:
    return len(edges.child) / float(judged.sum())


def _result(
    firing: Firing, edges: _Edges, judged: np.ndarray, null: Float[np.ndarray, "draw"], config: ConceptTreeConfig
) -> ConceptTree:
    """Describe the tree latent by latent, and its largest families."""
    counts, n_vectors = firing.counts, firing.n_vectors
    n_latents = len(counts)
    parent = np.full(n_latents, -1)
    parent[edges.child] = edges.parent
    level_of, root = _ascend(parent)
    containment = edges.together / counts[edges.child]
    low, high = wilson_interval(containment, counts[edges.child], config.level)
    chance = counts[edges.parent] / n_vectors

    def by_latent(values: Float[np.ndarray, "edge"]) -> Float[np.ndarray, "latent"]:
        placed = np.full(n_latents, NAN)
        placed[edges.child] = values
        return placed

    def drawn(values: Float[np.ndarray, "edge"]) -> Float[np.ndarray, "example"]:
        return values[chosen] if len(chosen) else np.full(1, NAN)  # a figure needs a bar

    size = np.bincount(root, minlength=n_latents) * judged
    family = np.lexsort((np.arange(n_latents), level_of, root, -size[root], ~judged))[: min(SHOWN, int(judged.sum()))]
    chosen = np.lexsort((edges.child, edges.parent, -size[root[edges.child]]))[:SHOWN]
    rows = firing.matrix[family].toarray()
    return ConceptTree(
        below_share=_below_share(edges, judged, null, config.level),
        mean_containment=_mean_containment(containment, chance, config),
        n_vectors=n_vectors,
        n_latents=n_latents,
        n_dead=int(np.sum(counts == 0)),
        n_rare=int(np.sum((counts > 0) & ~judged)),
        n_edges=len(edges.child),
        n_families=int(np.sum(size > 1)),
        n_levels=int(level_of[judged].max()) + 1,
        n_pairs=edges.n_pairs,
        parent=parent,
        level_of=np.where(judged, level_of, -1),
        root=np.where(judged, root, -1),
        density=counts / n_vectors,
        containment=by_latent(containment),
        containment_low=by_latent(low),
        containment_high=by_latent(high),
        chance=by_latent(chance),
        p_value=by_latent(edges.p_value),
        q_value=by_latent(edges.q_value),
        together=(rows @ rows.T / counts[family]).astype(np.float64),
        shown=tuple(str(latent) for latent in family),
        edge=tuple(f"{edges.child[one]} in {edges.parent[one]}" for one in chosen) or ("no edge",),
        edge_containment=drawn(containment),
        edge_low=drawn(low),
        edge_high=drawn(high),
        edge_chance=drawn(chance),
    )


def _ascend(parent: Int[np.ndarray, "latent"]) -> tuple[Int[np.ndarray, "latent"], Int[np.ndarray, "latent"]]:
    """Return how many latents are above each one, and the last of them (itself for a root)."""
    level, root = np.zeros(len(parent), dtype=np.int64), np.arange(len(parent))
    while np.any(moving := parent[root] >= 0):
        level += moving
        root = np.where(moving, parent[root], root)
    return level, root


def _below_share(edges: _Edges, judged: np.ndarray, null: Float[np.ndarray, "draw"], level: float) -> Estimate:
    value = _share(edges, judged)
    low, high = wilson_interval(value, int(judged.sum()), level)
    return Estimate(value, float(low), float(high), float(null.mean()), p_value(value, null), level)


def _mean_containment(
    containment: Float[np.ndarray, "edge"], chance: Float[np.ndarray, "edge"], config: ConceptTreeConfig
) -> Estimate:
    if len(containment) == 0:
        return Estimate(NAN, level=config.level)
    low = high = NAN
    if len(containment) > 1:
        rng = generator(config.seed, "bootstrap")
        draws = bootstrap_rows(
            lambda rows: float(containment[rows].mean()), len(containment), n_draws=config.n_bootstrap, rng=rng
        )
        low, high = percentile_interval(draws, config.level)
    return Estimate(float(containment.mean()), low, high, float(chance.mean()), level=config.level)
