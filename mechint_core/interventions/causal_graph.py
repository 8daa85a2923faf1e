"""Find which component of a model directly drives which.

Component i is given its activation of the other run while all others are held as they were, and what j would then
compute is compared with how j itself differs between the runs:

    D_j  = j' - j                                          own difference of j
    d_ij = j(i', every other component as it was) - j      what i alone makes of it, directly
    score(i -> j) = sum d_ij . D_j / sum D_j . D_j         over pairs; the share of D_j, signed
    R_ij = D_j - sum over k other than i of d_kj           what the other senders leave of it

An edge is tested along D_j and along R_ij: effects that cancel in D_j show in R_ij, effects that others repeat in D_j.
The total effect holds nothing: j(i') - j. In linear structural equations x_j = sum_i B_ij x_i + u_j, d_ij = B_ij D_i,
so that the coefficient, sum d_ij D_i / sum D_i D_i, is B_ij itself.

Source: [@pearl2001] (controlled direct effect), [@goldowskydill2023]; [@benjamini1995].
Cost: 2 S forwards of all pairs for S components, S more for the control, packed; n_draws x pairs x edges twice.
Chunked over: prompt pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Num
from torch import nn

from mechint_core.errors import ConfigurationError
from mechint_core.figure import Figure, Graph
from mechint_core.interventions._edge_moments import EdgeMoments, NodePair, edge_moments, edges_of
from mechint_core.kernels.false_discovery import false_discovery_rate
from mechint_core.kernels.resampling import percentile_interval
from mechint_core.models import inference, memory_remedy, samples_to, to_model
from mechint_core.patching import (
    ROUNDING,
    Components,
    Granularity,
    PairedConfig,
    PairRuns,
    PromptPairs,
    check_components,
    find_components,
    resampling_weights,
)
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalGraphConfig(PairedConfig):
    """Which nodes, and how sure an edge must be."""

    metric: str = "distance"
    """How the node `output` is read: distance takes the whole output, another metric the logits at the answer."""
    n_draws: int = 4000
    """Bootstrap draws, and sign flips. The smallest p-value, 1 / (n_draws + 1), must survive as many tests as edges."""
    sites: tuple[str, ...] = ("*",)
    """Globs over module names: the nodes. Name components (attention, mlps) rather than blocks that contain them."""
    by: Granularity = "site"
    """site; head: attention modules head by head (by what they write); position; unit: every coordinate."""
    output: bool = True
    """Whether the model's answer is a node too."""
    control: bool = True
    """Replace by another pair's activation too, for the null: half as many runs again."""
    false_discovery: float = 0.05
    """Expected share of false edges among those that are kept."""

    def __post_init__(self) -> None:
        PairedConfig.__post_init__(self)
        check_components(self.by, sites=self.sites)
        if not 0 < self.false_discovery < 1:
            raise ConfigurationError(f"false_discovery must lie strictly between 0 and 1. Got {self.false_discovery}.")


@dataclass(frozen=True, slots=True)
class CausalGraph(Result):
    """Edges from each component to each that runs after it."""

    technique: ClassVar[str] = "causal_graph"
    evidence: ClassVar[str] = (
        "Interval: bootstrap over pairs. Null: the same edge when the sender gets another pair's activation. p: signs "
        "of own less null flipped, two-sided, per edge; kept edges are chosen at the stated false discovery rate."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Graph(
            sender="sender",
            receiver="receiver",
            score="score",
            kept="kept",
            low="low",
            high="high",
            title="Which component directly drives which",
            value_label="share of the receiver's own difference",
        ),
    )

    strongest: Estimate
    """The edge with the largest score in size; its interval and p-value are not adjusted for the choice."""
    sender: Annotated[tuple[str, ...], "edge"]
    receiver: Annotated[tuple[str, ...], "edge"]
    score: Float[np.ndarray, "edge"]
    """Share of the receiver's difference between the runs that the sender makes directly; not clipped. NaN where the
    receiver does not differ."""
    low: Float[np.ndarray, "edge"]
    high: Float[np.ndarray, "edge"]
    null: Float[np.ndarray, "edge"]
    p_value: Float[np.ndarray, "edge"]
    q_value: Float[np.ndarray, "edge"]
    """Smallest false discovery rate at which the edge is kept."""
    kept: Bool[np.ndarray, "edge"]
    total: Float[np.ndarray, "edge"]
    """The same share along all paths, with nothing held."""
    coefficient: Float[np.ndarray, "edge"]
    """Change of the receiver per change of the sender, where both are single numbers; NaN otherwise."""
    n_kept: int
    n_undefined: int
    """Edges into components that do not differ between the runs."""
    n_pairs: int
    n_skipped: int
    """Modules that the globs match but that cannot be changed."""
    false_discovery: float

    def reading(self) -> str:
        """Name the edges that are kept, the strongest first."""
        possible = len(self.sender) - self.n_undefined
        if not possible:
            return (
                "No component differs between clean and corrupted runs beyond rounding: nothing can be said of edges."
            )
        if not self.n_kept:
            return (
                f"None of {possible} possible edges is distinguishable from its null at a false discovery rate of "
                f"{self.false_discovery:.0%} (smallest p = {np.nanmin(self.p_value):.2g}, {self.n_pairs} pairs)."
            )
        order = [each for each in np.argsort(-np.abs(self.score), kind="stable") if self.kept[each]]
        named = [
            f"{self.sender[e]} -> {self.receiver[e]} {self.score[e]:.2f} [{self.low[e]:.2f}, {self.high[e]:.2f}]"
            for e in order[:_SHOWN]
        ]
        more = f" and {len(order) - _SHOWN} more" if len(order) > _SHOWN else ""
        return (
            f"{self.n_kept} of {possible} possible edges drive their receiver directly, at a false discovery rate of "
            f"{self.false_discovery:.0%}: {', '.join(named)}{more}."
        )


def causal_graph(
    model: nn.Module,
    clean: Num[np.ndarray, "sample ..."],
    corrupted: Num[np.ndarray, "sample ..."],
    *,
    config: CausalGraphConfig = CausalGraphConfig(),
) -> CausalGraph:
    """Find which component of a model directly drives which.

    Use it for a map of the whole computation, whatever the answer is: no target is needed. An edge says that the
    sender, alone and past all other nodes, moves the receiver towards what the receiver is in the clean run (or away
    from it: negative), more than the sender's activation on another prompt does. It is an edge of the chosen nodes: a
    module that is not a node is part of edges. A cause whose effect is orthogonal to the receiver's own difference
    scores 0, and nodes that no pair of prompts changes have no edges at all.

    Parameters
    ----------
    model
        Any module; run in eval mode, and left as it was.
    clean
        Inputs, samples first, passed to `model` as its only argument. Their activations are put into corrupted runs.
    corrupted
        The same inputs with what matters changed; row i belongs to clean row i. At least 2 pairs, better 50.
    config
        Nodes, and the rate of false edges.

    Returns
    -------
    CausalGraph
        For every ordered pair of nodes in the order they run: score (dimensionless, 1 = all of the receiver's
        difference), interval, null, p- and q-value, total effect, and the coefficient between single numbers.

    Raises
    ------
    ShapeError
        If the arrays do not pair up, or there are fewer than 2 pairs.
    DegenerateInputError
        If the inputs or the model's outputs are not finite.
    NotFoundError
        If a glob matches no module, or no module that can be changed.
    MemoryBudgetError
        If a pass does not fit in memory.

    Notes
    -----
    A change below the rounding of float32 counts as none. The graph of an untrained model is not empty: its components
    drive each other too. p is that of the larger of both margins, each in units of its own size. The false discovery
    rate is Benjamini and Hochberg's, which holds for tests that are independent or positively dependent.

    References
    ----------
    [@pearl2001]
    [@goldowskydill2023]
    [@benjamini1995]

    Examples
    --------
    >>> from mechint_core.random import generator
    >>> from mechint_core.synthetic.causal_networks import LinearCausalModel
    >>> model = LinearCausalModel(np.array([[0.0, 2, 0], [0, 0, -1], [0, 0, 0]]))  # x_0 -> x_1 -> x_2
    >>> clean, corrupted = generator(0, "example").normal(size=(2, 60, 3))
    >>> config = CausalGraphConfig(sites=("variables.*",), output=False)
    >>> found = causal_graph(model, clean, corrupted, config=config)
    >>> for sender, receiver, coefficient, kept in zip(found.sender, found.receiver, found.coefficient, found.kept):
    ...     sender, receiver, round(float(coefficient), 6), bool(kept)
    ('variables.0', 'variables.1', 2.0, True)
    ('variables.0', 'variables.2', 0.0, False)
    ('variables.1', 'variables.2', -1.0, True)
    """
    pairs = PromptPairs.of(clean, corrupted, None, None, "distance")
    with inference(model), memory_remedy(f"Use batch_rows below {config.batch_rows}, or a smaller cache_bytes."):
        few = samples_to(to_model(clean[:2], model), config.sample_axis)
        nodes = find_components(model, few, config.sites, by=config.by, sample_axis=config.sample_axis)
        runs = PairRuns(model=model, config=config, sites=nodes.sites, bytes_per_row=nodes.bytes_per_row)
        edges = edges_of(nodes, output=config.output)
        found = edge_moments(runs, pairs, nodes, edges, control=config.control)
    return _result(found, edges, nodes, config)


def _result(found: EdgeMoments, edges: Sequence[NodePair], nodes: Components, config: CausalGraphConfig) -> CausalGraph:
    still = _rms(found.difference) <= ROUNDING * _rms(found.size)
    real = (_rms(found.moved) > ROUNDING * _rms(found.size))[:, None]
    direct, control = real * found.direct, real * found.control
    margins = np.array([direct - control, real * (found.rest - found.rest_control)])
    weights = resampling_weights(direct.shape[1], config.n_draws, config.seed).T
    with np.errstate(divide="ignore", invalid="ignore"):  # receivers that do not differ: 0 / 0, NaN as documented
        draws = np.where(still[:, None], NAN, (direct @ weights) / (found.difference @ weights))
        score, null, total = (
            np.where(still, NAN, each.mean(axis=1) / found.difference.mean(axis=1)) + 0.0  # + 0.0: 0, not -0
            for each in (direct, control, found.total)
        )
        coefficient = found.along.mean(axis=1) / found.cause.mean(axis=1)
    low, high = np.array([percentile_interval(each, config.level) for each in draws]).reshape(-1, 2).T
    p = np.where(still, NAN, _flipped(margins, config))
    q = false_discovery_rate(p)
    kept = q <= config.false_discovery  # NaN is not
    return CausalGraph(
        strongest=_strongest(score, low, high, null, p, config.level),
        sender=tuple(each.sender.name for each in edges),
        receiver=tuple(each.receiver.name for each in edges),
        score=score,
        low=low,
        high=high,
        null=null,
        p_value=p,
        q_value=q,
        kept=kept,
        total=total,
        coefficient=coefficient,
        n_kept=int(kept.sum()),
        n_undefined=int(still.sum()),
        n_pairs=direct.shape[1],
        n_skipped=nodes.n_skipped,
        false_discovery=config.false_discovery,
    )


def _rms(squares: Float[np.ndarray, "edge sample"]) -> Float[np.ndarray, "edge"]:
    return np.sqrt(squares.mean(axis=1))


def _flipped(margins: Float[np.ndarray, "row edge sample"], config: CausalGraphConfig) -> Float[np.ndarray, "edge"]:
    """Return the chance that signs flipped at random give any of an edge's margins, of either sign, this large a sum.

    Margins count in units of their own size, which flips do not change.
    """
    size = np.linalg.norm(margins, axis=2, keepdims=True)
    scaled = np.divide(margins, size, out=np.zeros_like(margins), where=size > 0)
    signs = generator(config.seed, "causal_graph", "sign flips").choice([-1.0, 1.0], (config.n_draws, margins.shape[2]))
    observed, null = np.abs(scaled.sum(axis=2)).max(axis=0), np.abs(signs @ scaled.mT).max(axis=0)
    # Sums in another order differ in their last bits, and a flip that equals the data must count as equal.
    return (1 + (null >= observed - 1e-9).sum(axis=0)) / (1 + config.n_draws)


def _strongest(
    score: Float[np.ndarray, "edge"],
    low: Float[np.ndarray, "edge"],
    high: Float[np.ndarray, "edge"],
    null: Float[np.ndarray, "edge"],
    p_value: Float[np.ndarray, "edge"],
    level: float,
) -> Estimate:
    if np.isnan(score).all():
        return Estimate(NAN, level=level)
    at = int(np.nanargmax(np.abs(score)))
    return Estimate(*(float(part[at]) for part in (score, low, high, null, p_value)), level=level)
