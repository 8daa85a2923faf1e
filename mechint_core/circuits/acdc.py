"""Find a circuit by trying to do without every edge: automatic circuit discovery (ACDC).

    H <- M                                            every edge intact
    for each edge e, from the output back to the input:
        harm_e = m(H) - m(H - {e})                    towards the model with every edge cut counts as positive
        if harm_e <= tau:  H <- H - {e}

An edge into a node that nothing intact leads on from is cut without a run. With the metric kl, harm is the growth of
the divergence from the whole model, as in the paper; the whole graph has a divergence of exactly 0.

The rule is sequential, but most edges go. So the next edges are run as if all of them went, ever more at once, until
one stays; the answer is that of one run after the other.

Source: [@conmy2023].
Cost: one run of all pairs per edge that something intact leads on from, and at most one pass more per kept edge.
Chunked over: prompt pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Final, get_args

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from torch import nn

from mechint_core.circuits._effect_shares import Effect
from mechint_core.circuits._greedy_cuts import Cuts, greedy_cuts
from mechint_core.circuits._random_circuits import random_circuits
from mechint_core.errors import ConfigurationError
from mechint_core.figure import Bars, Figure, Graph
from mechint_core.kernels.resampling import percentile_interval
from mechint_core.models import inference, memory_remedy, samples_to, to_model
from mechint_core.patching import (
    EDGE_GRANULARITIES,
    Ablation,
    Edge,
    EdgeGranularity,
    EdgeRuns,
    PairedConfig,
    PromptPairs,
    residual_graph,
)
from mechint_core.random import generator
from mechint_core.result import Estimate, Result

LEAST: Final = 0.01
"""Share of the effect below which no edge is kept, unless a threshold is given."""

Masks = Bool[np.ndarray, "experiment edge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcdcConfig(PairedConfig):
    """What an edge must be worth to stay."""

    metric: str = "kl"
    """As for all pairs; kl, the paper's choice, keeps what moves any class, up or down."""
    tau: float | None = None
    """Harm, in units of the metric, above which an edge stays. None: the standard error of the whole effect over
    pairs, or a hundredth of the effect if that is more: what is smaller could not be told from noise in the whole."""
    granularity: EdgeGranularity = "qkv"
    """Nodes: block (attentions and MLPs), head, or qkv (the query, key and value inputs of heads apart)."""
    components: tuple[str, ...] = ()
    """Globs of the modules that write to the residual stream; by default attentions, and what is named mlp or ffn."""
    split_input: bool = False
    """Take the input apart by position: senders `input@0`, `input@1`, ..."""
    ablation: Ablation = "corrupted"
    """What edges carry that are cut: the corrupted run's write, zero, the mean of corrupted runs, or another pair's
    clean write."""
    n_random: int = 19
    """Random connected circuits of the same size, for the null."""

    def __post_init__(self) -> None:
        PairedConfig.__post_init__(self)
        for name, value, known in (
            ("granularity", self.granularity, EDGE_GRANULARITIES),
            ("ablation", self.ablation, get_args(Ablation)),
        ):
            if value not in known:
                raise ConfigurationError(f"{name} must be one of {', '.join(known)}. Got {value!r}.")
        if self.tau is not None and not 0 <= self.tau < np.inf:
            raise ConfigurationError(f"tau must be at least 0, or None. Got {self.tau}.")
        if self.n_random < 1:
            raise ConfigurationError(f"n_random must be at least 1. Got {self.n_random}.")


@dataclass(frozen=True, slots=True)
class AcdcCircuit(Result):
    """Which edges cannot be done without, one after the other."""

    technique: ClassVar[str] = "acdc"
    evidence: ClassVar[str] = (
        "Intervals: bootstrap over the prompt pairs on which the circuit was found, so that they flatter it. "
        "Null: connected random circuits of the same size, on these pairs."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Graph(
            sender="sender",
            receiver="receiver",
            score="score",
            kept="kept",
            low="low",
            high="high",
            title="What cutting each edge changes, when its turn comes",
            value_label="harm",
        ),
        Bars(
            values="score",
            labels="edge",
            low="low",
            high="high",
            title="What cutting each edge changes, when its turn comes",
            value_label="harm, in units of the metric",
        ),
    )

    faithfulness: Estimate
    """Share of the whole model's effect that the kept edges have alone, on the pairs they were chosen by."""
    difference: Estimate
    """Mean metric of the whole model less that with every edge cut. Null: 0."""
    defined: bool
    """False if whole and empty model do not differ beyond noise; unless tau was given, no edge is kept then."""
    tau: float
    n_pairs: int
    n_edges: int
    n_kept: int
    n_tested: int
    """Edges that were run; the others led nowhere when their turn came."""
    n_runs: int
    """Runs of all pairs, those included whose assumption did not hold."""
    edge: Annotated[tuple[str, ...], "edge"]
    sender: Annotated[tuple[str, ...], "edge"]
    receiver: Annotated[tuple[str, ...], "edge"]
    score: Float[np.ndarray, "edge"]
    """Mean harm when the edge's turn came; 0 if it led nowhere."""
    low: Float[np.ndarray, "edge"]
    high: Float[np.ndarray, "edge"]
    kept: Bool[np.ndarray, "edge"]
    discovered_on: Annotated[tuple[str, ...], "sample"]
    """Fingerprints of the pairs."""

    def reading(self) -> str:
        """Say how large the circuit is and what it does on its own pairs."""
        if not self.defined and not self.n_kept:
            return (
                f"The whole model and the one with every edge cut differ by {self.difference}, which is within noise: "
                "there is no effect whose circuit could be looked for."
            )
        found = self.faithfulness
        return (
            f"{self.n_kept} of {self.n_edges} edges cannot be cut without a harm above {self.tau:.3g}. Alone they "
            f"restore {found.value:.2f} [{found.low:.2f}, {found.high:.2f}] of the effect, connected random circuits "
            f"of their size {found.null:.2f}, on the {self.n_pairs} pairs they were chosen by; other pairs must judge "
            "them."
        )


def acdc(
    model: nn.Module,
    clean: Num[np.ndarray, "sample ..."],
    corrupted: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample"] | None = None,
    corrupted_target: Int[np.ndarray, "sample"] | None = None,
    *,
    config: AcdcConfig = AcdcConfig(),
) -> AcdcCircuit:
    """Find the edges that a behaviour cannot do without, by cutting one after the other.

    Use it on small models, or on the edges that attribution has left, for it is exact and each edge costs a run. The
    rule is greedy: an edge with a backup is cut, the backup then stays, and the order decides which of the two is
    called the circuit. With a metric other than kl, edges that hold the answer back are cut as harmless. Judge what it
    finds by `circuit_faithfulness`, on other pairs.

    Parameters
    ----------
    model
        Any transformer whose parts write to a residual stream; run in eval mode, and left as it was.
    clean
        Inputs with the right answer, samples first, passed to `model` as its only argument.
    corrupted
        The same inputs with what matters changed; row i belongs to clean row i. At least 2 pairs, better 50.
    target
        The clean prompt's answer, as a class. Needed unless the metric is kl or distance.
    corrupted_target
        The corrupted prompt's answer, for the logit difference.
    config
        Metric, threshold, granularity, ablation and memory.

    Returns
    -------
    AcdcCircuit
        Every edge with its harm (in units of the metric) and whether it is kept; how much the kept ones do alone.

    Raises
    ------
    ShapeError
        If the arrays do not pair up, there are fewer than 2 pairs, or the output is not (sample[, position], class).
    ConfigurationError
        If the metric needs a target and there is none, or the model's parts do not add to a stream.
    NotFoundError
        If the model has no parts that write to a residual stream, or a glob matches none.
    DegenerateInputError
        If the inputs or the model's outputs are not finite.
    MemoryBudgetError
        If a pass does not fit in memory.

    Notes
    -----
    Receivers are taken from the output back, and into each the latest sender first. Where harm is measured by another
    metric than kl, its sign is such that moving towards the model with every edge cut is harm.

    References
    ----------
    [@conmy2023]

    Examples
    --------
    >>> from mechint_core.synthetic.induction_model import CHANGED_EDGES, induction_model, induction_prompts
    >>> found = acdc(induction_model(), **induction_prompts(8))
    >>> edges = list(zip(found.sender, found.receiver, strict=True))
    >>> {edge for edge, kept in zip(edges, found.kept, strict=True) if kept} == CHANGED_EDGES["prompt"]
    True
    """
    pairs = PromptPairs.of(clean, corrupted, target, corrupted_target, config.metric)
    with inference(model), memory_remedy(f"Use batch_rows below {config.batch_rows}, or a smaller cache_bytes."):
        graph = residual_graph(
            model,
            samples_to(to_model(clean[:2], model), config.sample_axis),
            granularity=config.granularity,
            components=config.components,
            split_input=config.split_input,
            sample_axis=config.sample_axis,
        )
        scores_of = EdgeRuns(model=model, graph=graph, config=config).scorer(pairs, ablation=config.ablation)

        def scored(kept: Masks) -> Float[np.ndarray, "experiment sample"]:
            return scores_of(kept).patched

        whole, empty = scored(np.repeat([[True], [False]], len(graph.edges), axis=1))
        effect = Effect.of(whole, empty, n_draws=config.n_draws, level=config.level, seed=config.seed)
        tau = _threshold(effect, config)
        most = max(1, config.batch_rows // len(pairs))
        found = greedy_cuts(
            graph.edges, scored, whole, sign=float(np.sign(effect.difference.value)), tau=tau, most=most
        )
        alone = scored(np.concatenate([found.kept[None], _random(graph.edges, found.kept, config)]))
    return _result(graph.edges, pairs, effect, tau, found, alone)


def _threshold(effect: Effect, config: AcdcConfig) -> float:
    """Return the harm that is accepted: infinite if there is no effect, for then no edge can be worth keeping."""
    if config.tau is not None:
        return config.tau
    if not effect.defined:
        return math.inf
    noise = float((effect.weights @ (effect.full - effect.empty)).std())
    return max(noise, LEAST * abs(effect.difference.value))


def _random(edges: Sequence[Edge], kept: Bool[np.ndarray, "edge"], config: AcdcConfig) -> Masks:
    rng = generator(config.seed, "acdc", "random circuits")
    return random_circuits(edges, int(kept.sum()), n_circuits=config.n_random, kind="connected", rng=rng)


def _result(
    edges: Sequence[Edge],
    pairs: PromptPairs,
    effect: Effect,
    tau: float,
    found: Cuts,
    alone: Float[np.ndarray, "experiment sample"],
) -> AcdcCircuit:
    does = effect.shares(alone)
    faithfulness = does.estimate(0)
    bounds = np.array([percentile_interval(each, effect.level) for each in found.harm @ effect.weights.T])
    return AcdcCircuit(
        faithfulness=replace(faithfulness, null=float(does.value[1:].mean())),
        difference=effect.difference,
        defined=effect.defined,
        tau=tau,
        n_pairs=len(pairs),
        n_edges=len(edges),
        n_kept=int(found.kept.sum()),
        n_tested=found.n_tested,
        n_runs=found.n_runs,
        edge=tuple(f"{sender} → {receiver}" for sender, receiver in edges),
        sender=tuple(sender for sender, _ in edges),
        receiver=tuple(receiver for _, receiver in edges),
        score=found.harm.mean(axis=1),
        low=bounds[:, 0],
        high=bounds[:, 1],
        kept=found.kept,
        discovered_on=tuple(sorted(pairs.fingerprints())),
    )
