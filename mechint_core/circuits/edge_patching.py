"""Find the edges through which a model's answer flows, by cutting each of them, exactly.

    noising     edge e cut in the clean run:            D_e = (m_clean - m_cut e)          / (m_clean - m_corrupted)
    denoising   edge e restored in the corrupted run:   R_e = (m_restored e - m_corrupted) / (m_clean - m_corrupted)

A cut edge (s, r) carries what s wrote in the corrupted run; r reads it in the place of what s writes now, and all that
depends on r follows. Other receivers of s go on reading what it writes. Numerator and denominator are averaged over
prompt pairs before they are divided.

Source: [@wang2023], [@goldowskydill2023].
Cost: (2 + E) forwards of all pairs for E edges, packed into passes of `batch_rows`; with control E more.
Chunked over: prompt pairs and edges.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int, Num
from torch import nn

from mechint_core.circuits._scored_edges import EdgeScoringConfig, ScoredEdges, edge_runs, fields_of, judge_edges
from mechint_core.circuits._sufficient_edges import cut_down
from mechint_core.models import inference, memory_remedy
from mechint_core.patching import EdgeRuns, PairScores, PromptPairs


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgePatchingConfig(EdgeScoringConfig):
    """Which edges are cut, how, and which are kept."""

    control: bool = True
    """When denoising, restore another pair's clean write too, for the null: twice the cost. Otherwise the null is 0."""


@dataclass(frozen=True, slots=True)
class PatchedEdges(ScoredEdges):
    """What cutting (or restoring) each edge moves of the answer, exactly, and which edges are kept."""

    technique: ClassVar[str] = "edge_patching"
    evidence: ClassVar[str] = (
        "Interval: bootstrap over prompt pairs. Null: no effect; when denoising, another pair's clean write on the "
        "same edge. p: sign flips of own less null, two-sided, adjusted for the number of edges."
    )


def edge_patching(
    model: nn.Module,
    clean: Num[np.ndarray, "sample ..."],
    corrupted: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample"] | None = None,
    corrupted_target: Int[np.ndarray, "sample"] | None = None,
    *,
    config: EdgePatchingConfig = EdgePatchingConfig(),
) -> PatchedEdges:
    """Find the connections through which a model's answer flows, by cutting each one.

    Use it where every edge can be afforded, or to check `edge_attribution`: nothing is approximated. Edges are cut one
    at a time, so an edge whose work another one repeats looks idle when noising, and one that needs a partner when
    denoising; scores do not add up to 1. What is kept is a hypothesis about the circuit: `circuit_faithfulness` judges
    it, on other pairs.

    Parameters
    ----------
    model
        Any transformer whose parts add to a residual stream; run in eval mode, and left as it was.
    clean
        Inputs with the right answer, samples first, passed to `model` as its only argument.
    corrupted
        The same inputs with what matters changed; row i belongs to clean row i. At least 2 pairs, better 50.
    target
        The clean prompt's answer, as a class. Needed unless the metric is kl or distance.
    corrupted_target
        The corrupted prompt's answer, for the logit difference.
    config
        Granularity, direction, ablation, which edges are kept, metric, and memory.

    Returns
    -------
    PatchedEdges
        Every edge's score (dimensionless, 1 = all of the answer), with interval, null and p-value, and the kept ones.

    Raises
    ------
    ShapeError
        If the arrays do not pair up, there are fewer than 2 pairs, or the output is not (sample[, position], class).
    ConfigurationError
        If the metric needs a target and there is none, a target is not a class of the output, or the model's parts do
        not add to a stream that later ones read.
    NotFoundError
        If the model has no parts that write to a residual stream, or a glob matches none.
    DegenerateInputError
        If the inputs or the model's outputs are not finite.
    MemoryBudgetError
        If a pass does not fit in memory.

    Notes
    -----
    Ratio of means over pairs, never clipped. Undefined (NaN, `defined` False, nothing kept) where the bootstrap
    interval of the mean difference holds 0. The graph is measured (see `residual_graph`), not declared.

    References
    ----------
    [@wang2023]
    [@goldowskydill2023]

    Examples
    --------
    >>> from mechint_core.synthetic.induction_model import CHANGED_EDGES, induction_model, induction_prompts
    >>> pairs = induction_prompts(n_prompts=16, change="second")
    >>> found = edge_patching(induction_model(), *pairs.values())
    >>> {edge for edge, kept in zip(zip(found.sender, found.receiver), found.kept) if kept} == CHANGED_EDGES["second"]
    True
    """
    pairs = PromptPairs.of(clean, corrupted, target, corrupted_target, config.metric)
    with inference(model), memory_remedy(f"Use batch_rows below {config.batch_rows}, or a smaller cache_bytes."):
        runs = edge_runs(model, pairs, config)
        scores = _cut_each(runs, pairs, config)
    edges = runs.graph.edges
    judged = cut_down(judge_edges(scores, edges, config), runs, pairs, model, config)
    return PatchedEdges(**fields_of(judged, edges, pairs, config))


def _cut_each(runs: EdgeRuns, pairs: PromptPairs, config: EdgePatchingConfig) -> PairScores:
    """Score every edge's experiment; sender by sender, so that a pass holds the writes of few senders."""
    each = EachEdgeCut.of(runs)
    noising, own = config.noising, np.argsort(each.edges)
    scores = runs.score(pairs, each, ablation=config.ablation, denoising=not noising)
    control = None
    if config.control and not noising:
        control = runs.score(pairs, each, ablation="other", denoising=True).patched[own]
    return replace(scores, patched=scores.patched[own], control=control)


@dataclass(frozen=True, slots=True)
class EachEdgeCut:
    """The masks of experiments that cut one edge each; made as they are read, for all of them may not fit in memory."""

    edges: Int[np.ndarray, "edge"]
    """Which edge each experiment cuts."""
    n_edges: int

    @classmethod
    def of(cls, runs: EdgeRuns) -> "EachEdgeCut":
        """Cut the edges of a graph, sender by sender."""
        senders = [runs.graph.senders.index(sender) for sender, _ in runs.graph.edges]
        return cls(np.argsort(senders, kind="stable"), len(senders))

    @property
    def shape(self) -> tuple[int, int]:
        """(experiment, edge)"""
        return len(self.edges), self.n_edges

    @property
    def dtype(self) -> np.dtype[np.bool_]:
        """Whether an edge is kept."""
        return np.dtype(bool)

    def __getitem__(self, rows: slice, /) -> Bool[np.ndarray, "experiment edge"]:
        """Return some experiments' masks."""
        return self.edges[rows, None] != np.arange(self.n_edges)
