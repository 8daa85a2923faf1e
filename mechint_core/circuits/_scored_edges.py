"""What edge attribution and exact edge patching share: their options, and how effects become scores and a circuit.

    score_e = mean_i gain_ei / mean_i (m_clean,i - m_corrupted,i)

gain is the damage done by cutting the edge in a clean run (noising), or what a clean write through this edge alone
gives back to a corrupted run (denoising).

Significance: p-values are two-sided, by sign flips of pairs, adjusted for the number of edges; an edge is significant
only if its own interval leaves 0 out, and the whole difference of clean and corrupted runs is significant, too: parts
are not asked about before the whole.

Source: [@westfall1993]; [@hanna2024] for building a circuit from the output backwards.
Cost: n_draws x pairs x edges multiplications, three times; then one sort of the edges.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float
from torch import nn

from mechint_core.circuits.circuit import on_ways
from mechint_core.errors import ConfigurationError
from mechint_core.figure import Bars, Figure, Graph
from mechint_core.models import samples_to, to_model
from mechint_core.patching import (
    EDGE_GRANULARITIES,
    Ablation,
    Edge,
    EdgeGranularity,
    EdgeRuns,
    PairedConfig,
    PairScores,
    PromptPairs,
    Recovery,
    mean_effects,
    node_of,
    recovery_of,
    residual_graph,
)
from mechint_core.result import NAN, Estimate, Result

Way = Literal["noising", "denoising"]

ALPHA: Final = 0.05
"""An edge is significant if its p-value, and that of the whole difference, are at most this."""
_SHOWN = 8

Mask = Bool[np.ndarray, "edge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeScoringConfig(PairedConfig):
    """Which edges are scored, how they are cut, and which are kept."""

    granularity: EdgeGranularity = "qkv"
    """Nodes: block (attentions and mlps), head, or qkv (the query, key and value inputs of heads apart)."""
    components: tuple[str, ...] = ()
    """Globs of the modules that write to the residual stream; by default attentions, and what is named mlp or ffn."""
    split_input: bool = False
    """Take the input apart by position: senders `input@0`, `input@1`, ..."""
    direction: Way = "noising"
    """noising tests what is necessary: backups hide it. denoising what is sufficient: parts of an AND look idle."""
    ablation: Ablation = "corrupted"
    """What a cut edge carries: the corrupted run's write, zero, the mean of corrupted runs, or another pair's clean
    write. Edges that carry the same in both runs, such as places, show only by zero."""
    n_edges: int | None = None
    """Keep about this many: the strongest that lead to the output through kept ones, less those that lead nowhere."""
    threshold: float | None = None
    """Keep edges whose score is at least this, of either sign. With neither, keep the significant ones."""
    faithfulness: float | None = None
    """Of the significant edges, keep the fewest, the strongest first, that alone restore this share of the effect."""

    def __post_init__(self) -> None:
        PairedConfig.__post_init__(self)
        for name, value, known in (
            ("granularity", self.granularity, EDGE_GRANULARITIES),
            ("direction", self.direction, get_args(Way)),
            ("ablation", self.ablation, get_args(Ablation)),
        ):
            if value not in known:
                raise ConfigurationError(f"{name} must be one of {', '.join(known)}. Got {value!r}.")
        if isinstance(self.components, str):
            raise ConfigurationError(f"components must be a tuple of globs. Got {self.components!r}.")
        if self.n_edges is not None and self.threshold is not None:
            raise ConfigurationError("edges are kept by n_edges or by threshold, not both. Leave one out.")
        if self.faithfulness is not None and not 0 < self.faithfulness < 1:
            raise ConfigurationError(f"faithfulness must lie strictly between 0 and 1. Got {self.faithfulness}.")
        if self.faithfulness is not None and (self.n_edges, self.threshold) != (None, None):
            raise ConfigurationError("edges are kept by faithfulness, or by n_edges or threshold. Leave one out.")
        if (self.n_edges is not None and self.n_edges < 1) or (self.threshold is not None and not self.threshold > 0):
            raise ConfigurationError(f"n_edges must be at least 1 and threshold above 0. Got {self}.")
        if not self.noising and self.ablation != "corrupted":
            raise ConfigurationError(
                f"when denoising, edges carry clean writes: ablation must be corrupted. Got {self.ablation!r}."
            )

    @property
    def noising(self) -> bool:
        """Whether edges are cut in clean runs."""
        return self.direction == "noising"


@dataclass(frozen=True, slots=True)
class ScoredEdges(Result):
    """What cutting (or restoring) each edge moves of the answer, and which edges are kept."""

    figures: ClassVar[tuple[Figure, ...]] = (
        Graph(
            sender="sender",
            receiver="receiver",
            score="score",
            kept="kept",
            low="low",
            high="high",
            title="What each edge carries of the answer",
            value_label="share of clean minus corrupted",
        ),
        Bars(
            values="score",
            labels="edge",
            low="low",
            high="high",
            null="null",
            title="The strongest edges",
            value_label="share of clean minus corrupted",
        ),
    )

    strongest: Estimate
    """The edge with the largest score, of either sign; its p-value is adjusted for the choice, its interval is not."""
    difference: Estimate
    """Mean metric of the clean less the corrupted runs: the effect that scores are shares of. Null: 0."""
    edge: Annotated[tuple[str, ...], "edge"]
    sender: Annotated[tuple[str, ...], "edge"]
    receiver: Annotated[tuple[str, ...], "edge"]
    score: Float[np.ndarray, "edge"]
    """Positive where the edge carries the answer, negative where it opposes it. Need not add up to 1."""
    low: Float[np.ndarray, "edge"]
    high: Float[np.ndarray, "edge"]
    null: Float[np.ndarray, "edge"]
    """Score with another pair's clean write, when denoising; 0 when noising, or without control."""
    p_value: Float[np.ndarray, "edge"]
    """Two-sided, adjusted for the number of edges."""
    kept: Bool[np.ndarray, "edge"]
    """The circuit."""
    discovered_on: Annotated[tuple[str, ...], "sample"]
    """Fingerprints of the pairs: another judgement of this circuit must not use them."""
    defined: bool
    """False, and all scores NaN, if clean and corrupted do not differ beyond noise."""
    noising: bool
    n_pairs: int
    n_edges: int
    n_kept: int
    n_significant: int

    def reading(self) -> str:
        """Name the strongest edges of the circuit."""
        if not self.defined:
            return (
                f"Clean and corrupted runs differ by {self.difference}, which is within noise: "
                "there is no effect whose edges could be looked for."
            )
        if not self.n_kept:
            return (
                f"None of {self.n_edges} edges is kept: {self.n_significant} move the answer by more than chance "
                f"(smallest adjusted p = {self.p_value.min():.2g}, {self.n_pairs} pairs), and none lies on a whole way "
                "of such edges from the input to the output."
            )
        does = "cut" if self.noising else "restored"
        order = [k for k in np.argsort(-np.abs(self.score), kind="stable") if self.kept[k]]
        named = [f"{self.edge[k]} {self.score[k]:.2f} [{self.low[k]:.2f}, {self.high[k]:.2f}]" for k in order]
        more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
        return (
            f"{self.n_kept} of {self.n_edges} edges are kept ({self.n_significant} are significant); the strongest, by "
            f"the share of the answer that moves when they are {does}: {', '.join(named[:_SHOWN])}{more}. Whether they "
            "suffice, other pairs must judge."
        )


@dataclass(frozen=True, slots=True)
class EdgeJudgement:
    """Scores of edges, and which are kept."""

    recovery: Recovery
    p_value: Float[np.ndarray, "edge"]
    """Two-sided; NaN where nothing is defined."""
    significant: Mask
    kept: Mask


def edge_runs(model: nn.Module, pairs: PromptPairs, config: EdgeScoringConfig) -> EdgeRuns:
    """Measure the graph of a model; call it inside `inference(model)`."""
    graph = residual_graph(
        model,
        samples_to(to_model(pairs.clean[:2], model), config.sample_axis),
        granularity=config.granularity,
        components=config.components,
        split_input=config.split_input,
        sample_axis=config.sample_axis,
    )
    return EdgeRuns(model=model, graph=graph, config=config)


def judge_edges(scores: PairScores, edges: Sequence[Edge], config: EdgeScoringConfig) -> EdgeJudgement:
    """Make scores and a circuit of what was measured with each edge cut."""
    found = recovery_of(scores, noising=config.noising, n_draws=config.n_draws, level=config.level, seed=config.seed)
    base = scores.clean if config.noising else scores.corrupted
    gain = scores.patched - base
    tested = mean_effects(
        gain,
        None if scores.control is None else scores.control - base,
        config=config,
        scale=float(np.abs([scores.clean, scores.corrupted]).mean()),
    )
    p_value = tested.p_value if found.defined else np.full(len(edges), NAN)
    whole = found.defined and found.difference.p_value <= ALPHA
    # Beside a control that does harm, an edge that does nothing would stand out: its own effect must be there, too.
    significant = (p_value <= ALPHA) & whole & ((found.low > 0) | (found.high < 0))
    return EdgeJudgement(found, p_value, significant, _kept(found, significant, edges, config))


def fields_of(
    judged: EdgeJudgement, edges: Sequence[Edge], pairs: PromptPairs, config: EdgeScoringConfig
) -> dict[str, Any]:
    """Return the fields of `ScoredEdges`."""
    found = judged.recovery
    return {
        "strongest": _strongest(judged, config.level),
        "difference": found.difference,
        "edge": tuple(f"{sender} → {receiver}" for sender, receiver in edges),
        "sender": tuple(sender for sender, _ in edges),
        "receiver": tuple(receiver for _, receiver in edges),
        "score": found.value,
        "low": found.low,
        "high": found.high,
        "null": found.null,
        "p_value": judged.p_value,
        "kept": judged.kept,
        "discovered_on": tuple(sorted(pairs.fingerprints())),
        "defined": found.defined,
        "noising": config.noising,
        "n_pairs": len(pairs),
        "n_edges": len(edges),
        "n_kept": int(judged.kept.sum()),
        "n_significant": int(judged.significant.sum()),
    }


def _kept(found: Recovery, significant: Mask, edges: Sequence[Edge], config: EdgeScoringConfig) -> Mask:
    if not found.defined:
        return np.zeros(len(edges), dtype=bool)
    strength = np.abs(found.value)
    if config.n_edges is not None:
        chosen = strongest_from_the_output(edges, strength, config.n_edges)
    else:
        chosen = significant if config.threshold is None else strength >= config.threshold
    return on_ways(edges, chosen)


def strongest_from_the_output(edges: Sequence[Edge], strength: Float[np.ndarray, "edge"], n_edges: int) -> Mask:
    """Take the strongest edge into a node that is reached, starting at the output, again and again."""
    entering: dict[str, list[int]] = {}
    for k, (_, receiver) in enumerate(edges):
        entering.setdefault(node_of(receiver), []).append(k)
    chosen = np.zeros(len(edges), dtype=bool)
    reached, open_edges = {"output"}, [(-strength[k], k) for k in entering["output"]]
    heapq.heapify(open_edges)
    while open_edges and chosen.sum() < n_edges:
        _, k = heapq.heappop(open_edges)
        chosen[k] = True
        sender = edges[k][0]
        if sender not in reached:
            reached.add(sender)
            for more in entering.get(sender, ()):
                heapq.heappush(open_edges, (-strength[more], more))
    return chosen


def _strongest(judged: EdgeJudgement, level: float) -> Estimate:
    found = judged.recovery
    if not found.defined:
        return Estimate(NAN, level=level)
    at = int(np.abs(found.value).argmax())
    parts = (found.value, found.low, found.high, found.null, judged.p_value)
    return Estimate(*(float(part[at]) for part in parts), level=level)
