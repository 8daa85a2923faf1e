"""Whether two circuits, or more, are the same one: of other seeds, prompts, methods, or checkpoints of training.

    J_ab = |A and B| / |A or B|               shared edges, of those that either keeps
    O_ab = |A and B| / min(|A|, |B|)          1 if the smaller one is part of the larger
    p_ab = P(X >= |A and B|)                  X hypergeometric: |B| edges drawn from all, |A| of them marked
    f_e  = share of the circuits that keep edge e

Any circuit holds whole ways from the input to the output, so two that have nothing to do with each other share more
than two random sets of edges do. The headline's null, and that of every edge, are therefore connected random circuits
of the same sizes; the hypergeometric p of each two is the weaker statement that they share more than two sets would.

Source: [@shi2024] (random circuits), [@meinshausen2010] (selection frequencies), [@bonett2000].
Cost: circuits² x edges; n_null random circuits for each circuit; n_draws resamples of the edges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from mechint_core.circuits._edge_overlap import chance_of_edges, hypergeometric, jaccard, mean_of_pairs, overlap
from mechint_core.circuits._random_circuits import RANDOM_CIRCUITS, RandomCircuits, random_circuits
from mechint_core.circuits.circuit import Circuit
from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.figure import Curve, Figure, Graph, Matrix
from mechint_core.kernels.resampling import estimate
from mechint_core.patching import Edge, node_of
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

ALPHA: Final = 0.05
"""An edge recurs if its frequency is a discovery at this false discovery rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareCircuitsConfig:
    """What the circuits are called, and how sure to be of their likeness."""

    names: tuple[str, ...] = ()
    """One per circuit; by default their steps, or their numbers."""
    random_circuits: RandomCircuits = "connected"
    """What chance is: connected random circuits of the same sizes, or any subsets of the edges."""
    n_null: int = 199
    """Random circuits in each circuit's place; the smallest p-value is 1 / (1 + n_null)."""
    n_draws: int = 200
    """Bootstrap draws of the edges, and permutations of their scores."""
    level: float = 0.95
    """Of the intervals."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        if self.random_circuits not in RANDOM_CIRCUITS:
            raise ConfigurationError(
                f"random_circuits must be one of {', '.join(RANDOM_CIRCUITS)}. Got {self.random_circuits!r}."
            )
        if min(self.n_null, self.n_draws) < 1 or self.seed < 0:
            raise ConfigurationError(f"n_null and n_draws must be at least 1, seed at least 0. Got {self}.")
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level must lie strictly between 0 and 1. Got {self.level}.")


@dataclass(frozen=True, slots=True)
class ComparedCircuits(Result):
    """What circuits share: edges, nodes, and the order of their scores."""

    technique: ClassVar[str] = "compare_circuits"
    evidence: ClassVar[str] = (
        "Intervals: bootstrap over edges (nodes), the circuits as they are; Fisher's z for each two circuits' scores. "
        "Null: random circuits of the same sizes; permuted edges for the scores."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Matrix(
            values="jaccard",
            title="Edges two circuits share, of those that either keeps",
            x="circuit",
            y="circuit",
            value_label="Jaccard index",
        ),
        Matrix(
            values="rank_correlation",
            title="Whether two circuits rank edges alike",
            x="circuit",
            y="circuit",
            value_label="Spearman correlation of scores",
            diverging=True,
        ),
        Graph(
            sender="sender",
            receiver="receiver",
            score="frequency",
            kept="in_all",
            title="How many of the circuits keep each edge (in full: all of them)",
            value_label="share of circuits",
        ),
        Curve(
            y=("like_last",),
            x="step",
            title="How like the last circuit each one is",
            x_label="step",
            y_label="Jaccard index",
        ),
    )

    edge_likeness: Estimate
    """Mean Jaccard index of the edges of two circuits."""
    node_likeness: Estimate
    """The same for the nodes that edges lead through."""
    score_likeness: Estimate
    """Mean Spearman correlation of two circuits' scores, over all edges."""
    n_circuits: int
    n_edges: int
    """Of the graph."""
    n_in_any: int
    n_in_all: int
    n_recurrent: int
    """Edges that more circuits keep than chance would make them, at a false discovery rate of 0.05."""
    circuit: Annotated[tuple[str, ...], "circuit"]
    step: Int[np.ndarray, "circuit"]
    """Of training, if the circuits are of checkpoints; else their number."""
    n_kept: Int[np.ndarray, "circuit"]
    like_last: Float[np.ndarray, "circuit"]
    """Jaccard index with the last circuit."""
    jaccard: Float[np.ndarray, "circuit other_circuit"]
    overlap: Float[np.ndarray, "circuit other_circuit"]
    """Shared edges over the smaller circuit's: 1 if one is part of the other."""
    p_value: Float[np.ndarray, "circuit other_circuit"]
    """Hypergeometric: that two sets of edges of these sizes share as many. NaN on the diagonal."""
    node_jaccard: Float[np.ndarray, "circuit other_circuit"]
    rank_correlation: Float[np.ndarray, "circuit other_circuit"]
    rank_correlation_low: Float[np.ndarray, "circuit other_circuit"]
    rank_correlation_high: Float[np.ndarray, "circuit other_circuit"]
    sender: Annotated[tuple[str, ...], "edge"]
    """Edges that any of the circuits keeps."""
    receiver: Annotated[tuple[str, ...], "edge"]
    frequency: Float[np.ndarray, "edge"]
    """Share of the circuits that keep the edge."""
    expected: Float[np.ndarray, "edge"]
    """Share of random circuits that do."""
    q_value: Float[np.ndarray, "edge"]
    in_all: Bool[np.ndarray, "edge"]
    """The intersection; all edges listed are the union."""

    def reading(self) -> str:
        """Say whether the circuits are one and the same."""
        found = self.edge_likeness
        if np.isnan(found.value):
            return f"None of the {self.n_circuits} circuits keeps an edge: there is nothing to compare."
        if not found.p_value <= ALPHA:
            return (
                f"The likeness of the {self.n_circuits} circuits cannot be told from that of random ones: two share "
                f"{found.value:.2f} of their edges, those of these sizes {found.null:.2f} (p = {found.p_value:.2g})."
            )
        return (
            f"Two of the {self.n_circuits} circuits share {found.value:.2f} [{found.low:.2f}, {found.high:.2f}] of the "
            f"edges that either keeps, random circuits of their sizes {found.null:.2f} (p = {found.p_value:.2g}); "
            f"{self.n_in_all} of {self.n_in_any} edges are in all of them. "
            f"Their scores correlate with {self.score_likeness.value:.2f} (Spearman)."
        )


def compare_circuits(
    circuits: Sequence[Circuit],
    step: Int[np.ndarray, "circuit"] | None = None,
    *,
    config: CompareCircuitsConfig = CompareCircuitsConfig(),
) -> ComparedCircuits:
    """Find out whether circuits are the same, and which edges they have in common.

    Use it on circuits of one model's graph that were found from other seeds, prompts or methods, or at other
    checkpoints. That circuits share edges does not say that these do the same thing in them, nor that either is
    faithful. Intervals say how much the likeness hangs on single edges, which are not independent; how much it would
    change for other circuits, only more circuits can tell.

    Parameters
    ----------
    circuits
        At least two, of one graph: whatever their order, they score the same edges.
    step
        The step of training that each belongs to, if they are of checkpoints.
    config
        Names, and what chance is.

    Returns
    -------
    ComparedCircuits
        Jaccard indices and overlap coefficients in [0, 1] (1: the same edges; NaN: neither has any), correlations of
        scores in [-1, 1], and for every edge that any circuit keeps how many do.

    Raises
    ------
    ShapeError
        If there are fewer than two circuits, or their edges differ, or steps or names are not one per circuit.

    References
    ----------
    [@shi2024]
    [@meinshausen2010]
    [@bonett2000]

    Examples
    --------
    >>> one, other = (
    ...     Circuit(
    ...         sender=("input", "input", "a", "b"),
    ...         receiver=("a", "b", "output", "output"),
    ...         score=np.array([3.0, 1.0, 2.0, 0.0]),
    ...         kept=np.array(kept),
    ...     )
    ...     for kept in ([True, False, True, False], [True, True, True, True])
    ... )
    >>> found = compare_circuits([one, other])
    >>> found.edge_likeness.value, float(found.overlap[0, 1]), found.n_in_all
    (0.5, 1.0, 2)
    """
    edges, kept, scores = _aligned(circuits)
    names = _names(len(circuits), step, config)
    random = _random_alike(edges, kept, config)
    touched = _nodes(edges)
    in_any, in_all, frequency = np.any(kept, axis=0), np.all(kept, axis=0), kept.mean(axis=0)
    expected, q_value = chance_of_edges(kept, random)
    ranks = _ranks(scores)
    correlation = _correlations(ranks)
    edge_jaccard = jaccard(kept)
    return ComparedCircuits(
        edge_likeness=_likeness(kept, random, config, "edges"),
        node_likeness=_likeness(kept @ touched, random @ touched, config, "nodes"),
        score_likeness=_score_likeness(ranks, config),
        n_circuits=len(circuits),
        n_edges=len(edges),
        n_in_any=int(in_any.sum()),
        n_in_all=int(in_all.sum()),
        n_recurrent=int((q_value <= ALPHA).sum()),
        circuit=names,
        step=np.arange(1, len(circuits) + 1) if step is None else np.asarray(step),
        n_kept=kept.sum(axis=1),
        like_last=edge_jaccard[:, -1],
        jaccard=edge_jaccard,
        overlap=overlap(kept),
        p_value=hypergeometric(kept),
        node_jaccard=jaccard(kept @ touched),
        rank_correlation=correlation,
        **_correlation_bounds(correlation, ranks.shape[1], config.level),
        sender=tuple(edges[each][0] for each in np.flatnonzero(in_any)),
        receiver=tuple(edges[each][1] for each in np.flatnonzero(in_any)),
        frequency=frequency[in_any],
        expected=expected[in_any],
        q_value=q_value[in_any],
        in_all=in_all[in_any],
    )


def _aligned(
    circuits: Sequence[Circuit],
) -> tuple[tuple[Edge, ...], Bool[np.ndarray, "circuit edge"], Float[np.ndarray, "circuit edge"]]:
    """Return the edges, which of them each circuit keeps, and the scores it gives them."""
    if len(circuits) < 2 or any(set(each.edges) != set(circuits[0].edges) for each in circuits):
        raise ShapeError(
            "circuits must be at least two, of one graph: all score the same edges. "
            f"Got {len(circuits)}, with {[len(each.edges) for each in circuits]} edges."
        )
    edges = circuits[0].edges
    places = [{edge: index for index, edge in enumerate(each.edges)} for each in circuits]
    order = [[place[edge] for edge in edges] for place in places]
    kept = [each.kept[row] for each, row in zip(circuits, order, strict=True)]
    scores = [each.score[row] for each, row in zip(circuits, order, strict=True)]
    return edges, np.array(kept, dtype=bool), np.array(scores, dtype=np.float64)


def _names(n_circuits: int, step: Int[np.ndarray, "circuit"] | None, config: CompareCircuitsConfig) -> tuple[str, ...]:
    if (step is not None and step.shape != (n_circuits,)) or len(config.names) not in (0, n_circuits):
        raise ShapeError(
            f"steps and names must be one for each of the {n_circuits} circuits. Got {step}, {config.names}."
        )
    if config.names:
        return config.names
    return tuple(f"circuit {n}" for n in range(1, n_circuits + 1)) if step is None else tuple(f"step {s}" for s in step)


def _random_alike(
    edges: Sequence[Edge], kept: Bool[np.ndarray, "circuit edge"], config: CompareCircuitsConfig
) -> Bool[np.ndarray, "draw circuit edge"]:
    """Draw random circuits as large as each of the circuits."""
    drawn = [
        random_circuits(
            edges,
            int(circuit.sum()),
            n_circuits=config.n_null,
            kind=config.random_circuits,
            rng=generator(config.seed, "compare_circuits", "random circuits", index),
        )
        for index, circuit in enumerate(kept)
    ]
    return np.stack(drawn, axis=1)


def _nodes(edges: Sequence[Edge]) -> Bool[np.ndarray, "edge node"]:
    """Say which nodes each edge touches; the ends are left out, for every circuit holds them."""
    ends = [(sender, node_of(receiver)) for sender, receiver in edges]
    between = sorted({sender for sender, _ in ends} & {receiver for _, receiver in ends})
    return np.array([[node in both for node in between] for both in ends], dtype=bool).reshape(len(edges), -1)


def _likeness(
    kept: Bool[np.ndarray, "circuit edge"],
    random: Bool[np.ndarray, "draw circuit edge"],
    config: CompareCircuitsConfig,
    what: str,
) -> Estimate:
    """Return the mean Jaccard index of two circuits, with its interval and its null."""
    union = kept[:, kept.any(axis=0)]
    size = union.shape[1]
    rng = generator(config.seed, "compare_circuits", what)
    counts = rng.multinomial(size, np.full(size, 1 / size), size=config.n_draws) if size else np.empty((0, 0))
    return estimate(
        mean_of_pairs(jaccard(kept)),
        bootstrap=np.array([mean_of_pairs(jaccard(union, each)) for each in counts]),
        null=np.array([mean_of_pairs(jaccard(each)) for each in random]),
        level=config.level,
    )


def _ranks(scores: Float[np.ndarray, "circuit edge"]) -> Float[np.ndarray, "circuit _"]:
    """Rank each circuit's scores, over the edges that all have a score for; NaN for circuits without any."""
    finite = np.isfinite(scores)
    scored = finite.any(axis=1)
    common = finite[scored].all(axis=0)
    ranks = np.full((len(scores), int(common.sum())), NAN)
    ranks[scored] = stats.rankdata(scores[np.ix_(scored, common)], axis=1)
    return ranks


def _correlations(ranks: Float[np.ndarray, "circuit edge"]) -> Float[np.ndarray, "circuit other_circuit"]:
    if ranks.shape[1] < 2:
        return np.full((len(ranks), len(ranks)), NAN)
    with np.errstate(divide="ignore", invalid="ignore"):  # a circuit that scores all edges alike: NaN
        return np.corrcoef(ranks)


def _correlation_bounds(
    correlation: Float[np.ndarray, "circuit other_circuit"], n_edges: int, level: float
) -> dict[str, Float[np.ndarray, "circuit other_circuit"]]:
    """Return the interval of each correlation by Fisher's z, with the spread that ranks have."""
    if n_edges <= 3:
        nothing = np.full_like(correlation, NAN)
        return {"rank_correlation_low": nothing, "rank_correlation_high": nothing}
    inside = np.clip(correlation, -1 + 1e-12, 1 - 1e-12)
    z, spread = np.arctanh(inside), np.sqrt((1 + inside**2 / 2) / (n_edges - 3))
    width = float(stats.norm.ppf((1 + level) / 2)) * spread
    return {"rank_correlation_low": np.tanh(z - width), "rank_correlation_high": np.tanh(z + width)}


def _score_likeness(ranks: Float[np.ndarray, "circuit edge"], config: CompareCircuitsConfig) -> Estimate:
    """Return the mean correlation of two circuits' ranks: resampled over edges, and with each one's edges permuted."""
    rng = generator(config.seed, "compare_circuits", "scores")
    n_edges = ranks.shape[1]
    drawn = rng.integers(0, max(n_edges, 1), size=(config.n_draws, n_edges))
    return estimate(
        mean_of_pairs(_correlations(ranks)),
        bootstrap=np.array([mean_of_pairs(_correlations(ranks[:, each])) for each in drawn]),
        null=np.array([mean_of_pairs(_correlations(rng.permuted(ranks, axis=1))) for _ in drawn]),
        level=config.level,
    )
