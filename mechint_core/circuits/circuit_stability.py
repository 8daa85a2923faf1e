"""Whether other prompts would have given the same circuit: discovery on halves of the pairs, again and again.

    A_s, B_s     the n edges with the largest |mean effect|, each on one half of the pairs, split at random
    stability  = mean over splits s of  |A_s and B_s| / |A_s or B_s|
    f_e        = share of the halves whose circuit holds edge e
    E[false]  <= n² / ((2 f - 1) N)            edges held by a share f or more of the halves, of N edges in all

The two halves of a split have no pair in common, so what they agree on is not in the pairs but in the model. Effects
are measured once, for all pairs; splitting costs no run.

Source: [@meinshausen2010], [@shah2013] (halves that complement each other), [@shi2024] (random circuits).
Cost: that of `edge_attribution` (or, exact, of `edge_patching`); then 2 n_splits means and rankings of all edges.
Chunked over: prompt pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from torch import nn

from mechint_core.circuits._random_circuits import random_circuits
from mechint_core.circuits._scored_edges import EdgeScoringConfig, edge_runs, judge_edges
from mechint_core.circuits.edge_patching import EachEdgeCut
from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.figure import Bars, Figure, Graph, Histogram
from mechint_core.kernels.resampling import estimate
from mechint_core.models import differentiation, inference, memory_remedy
from mechint_core.patching import Edge, EdgeRuns, PairScores, PromptPairs, edge_gradients
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

Scoring = Literal["attribution", "exact"]
ALPHA: Final = 0.05
FEWEST: Final = 4
"""Pairs: two halves of two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitStabilityConfig(EdgeScoringConfig):
    """How edges are scored, how many a circuit holds, and how often pairs are split."""

    scoring: Scoring = "attribution"
    """attribution: integrated gradients; exact: every edge cut."""
    n_steps: int = 5
    """Midpoints between the two inputs, for attribution."""
    n_splits: int = 50
    """Times the pairs are split into halves."""
    stable_above: float = 0.9
    """An edge is stable if at least this share of the halves finds it; above 0.5."""
    n_null: int = 199
    """Pairs of random connected circuits of the same size; the smallest p-value is 1 / (1 + n_null)."""

    def __post_init__(self) -> None:
        EdgeScoringConfig.__post_init__(self)
        if self.scoring not in get_args(Scoring):
            raise ConfigurationError(f"scoring must be attribution or exact. Got {self.scoring!r}.")
        if min(self.n_steps, self.n_splits, self.n_null) < 1:
            raise ConfigurationError(f"n_steps, n_splits and n_null must be at least 1. Got {self}.")
        if not 0.5 < self.stable_above <= 1:
            raise ConfigurationError(f"stable_above must be above 0.5, and at most 1. Got {self.stable_above}.")


@dataclass(frozen=True, slots=True)
class CircuitStability(Result):
    """How often each edge is found on half of the prompt pairs."""

    technique: ClassVar[str] = "circuit_stability"
    evidence: ClassVar[str] = (
        "Interval: the central share of the splits, not a confidence interval. "
        "Null: two connected random circuits of the same size; p is for one split, so that of the mean is smaller."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Graph(
            sender="sender",
            receiver="receiver",
            score="frequency",
            kept="stable",
            title="How often each edge is found on half of the pairs (in full: stable ones)",
            value_label="share of halves",
        ),
        Bars(
            values="frequency",
            labels="edge",
            null="expected",
            title="How often each edge is found on half of the pairs (tick: in random circuits)",
            value_label="share of halves",
        ),
        Histogram(values="split_likeness", title="Likeness of the circuits of two halves", x_label="Jaccard index"),
    )

    stability: Estimate
    """Mean Jaccard index of the circuits of two halves, in [0, 1]."""
    difference: Estimate
    """Mean metric of the clean less the corrupted runs. Null: 0."""
    defined: bool
    """False, and `stability` NaN, if there is no effect beyond noise, or no edge to keep on all pairs."""
    n_pairs: int
    n_edges: int
    n_kept: int
    """Edges in the circuit of each half: as many as on all pairs."""
    n_stable: int
    expected_false: float
    """Bound on the expected number of stable edges that are so by chance, if all others are alike."""
    split_likeness: Float[np.ndarray, "draw"]
    """Jaccard index of each split's two circuits."""
    edge: Annotated[tuple[str, ...], "edge"]
    sender: Annotated[tuple[str, ...], "edge"]
    receiver: Annotated[tuple[str, ...], "edge"]
    frequency: Float[np.ndarray, "edge"]
    expected: Float[np.ndarray, "edge"]
    """Share of the random circuits that hold the edge."""
    stable: Bool[np.ndarray, "edge"]

    def reading(self) -> str:
        """Say how much of the circuit other prompts would have given."""
        if not self.defined:
            return (
                f"There is no circuit whose stability could be measured: clean and corrupted runs differ by "
                f"{self.difference}, and {self.n_kept} edges are kept on all pairs."
            )
        found = self.stability
        circuits = f"Two halves of the pairs give circuits of {self.n_kept} edges"
        if not found.p_value <= ALPHA:
            return (
                f"{circuits} whose likeness cannot be told from that of random ones: they share {found.value:.2f} of "
                f"their edges, random ones {found.null:.2f} (p = {found.p_value:.2g})."
            )
        return (
            f"{circuits} that share {found.value:.2f} [{found.low:.2f}, {found.high:.2f}] of their edges, random ones "
            f"{found.null:.2f}; {self.n_stable} edges are found on nearly every half, of which at most "
            f"{self.expected_false:.2g} are expected to be there by chance."
        )


def circuit_stability(
    model: nn.Module,
    clean: Num[np.ndarray, "sample ..."],
    corrupted: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample"] | None = None,
    corrupted_target: Int[np.ndarray, "sample"] | None = None,
    *,
    config: CircuitStabilityConfig = CircuitStabilityConfig(),
) -> CircuitStability:
    """Find out which edges of a circuit other prompts would have given, too.

    Use it on the pairs a circuit is looked for on, before telling a story of single edges. It says how much the choice
    of edges hangs on the choice of prompts of this kind, not whether the circuit is faithful; edges can be stable and
    wrong. For other seeds or methods, find a circuit with each and use `compare_circuits`.

    Parameters
    ----------
    model
        Any differentiable transformer whose parts add to a residual stream; run in eval mode, and left as it was.
    clean
        Inputs with the right answer, samples first, passed to `model` as its only argument.
    corrupted
        The same inputs with what matters changed; row i belongs to clean row i. At least 4 pairs, better 50.
    target
        The clean prompt's answer, as a class. Needed unless the metric is kl or distance.
    corrupted_target
        The corrupted prompt's answer, for the logit difference.
    config
        Scoring, granularity, which edges are kept on all pairs (by default the significant ones), splits.

    Returns
    -------
    CircuitStability
        Mean Jaccard index of two halves (1: the same circuit always), and for every edge the share of the halves that
        find it, in [0, 1].

    Raises
    ------
    ShapeError
        If the arrays do not pair up, there are fewer than 4 pairs, or the output is not (sample[, position], class).
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
    A half's circuit holds as many edges as the one on all pairs, whether or not they are connected. The bound assumes
    that edges outside the circuit are exchangeable, and takes n for the number of edges chosen.

    References
    ----------
    [@meinshausen2010]
    [@shah2013]
    [@shi2024]

    Examples
    --------
    >>> from mechint_core.synthetic.induction_model import CHANGED_EDGES, induction_model, induction_prompts
    >>> found = circuit_stability(induction_model(), **induction_prompts(16, change="second"))
    >>> found.stability.value, found.n_stable == len(CHANGED_EDGES["second"])
    (1.0, True)
    """
    pairs = PromptPairs.of(clean, corrupted, target, corrupted_target, config.metric)
    if len(pairs) < FEWEST:
        raise ShapeError(f"there must be at least {FEWEST} pairs, to be split into halves. Got {len(pairs)}.")
    with memory_remedy(f"Use batch_rows below {config.batch_rows}, or a smaller cache_bytes."):
        with inference(model):
            runs = edge_runs(model, pairs, config)
        scores = _scored(runs, pairs, config)
    edges = runs.graph.edges
    judged = judge_edges(scores, edges, config)
    n_kept = int(judged.kept.sum()) if judged.recovery.defined else 0
    halves = _halves(len(pairs), config)
    effects = scores.patched - (scores.clean if config.noising else scores.corrupted)
    found = largest(np.abs(halves @ effects.T), n_kept)
    return _result(edges, found, judged.recovery.difference, len(pairs), config)


def _scored(runs: EdgeRuns, pairs: PromptPairs, config: CircuitStabilityConfig) -> PairScores:
    """Return the metric with each edge cut (or, denoising, restored), for every pair."""
    denoising = not config.noising
    if config.scoring == "attribution":
        steps = [((k + 0.5) / config.n_steps, 1 / config.n_steps) for k in range(config.n_steps)]
        with differentiation(runs.model):
            return edge_gradients(runs, pairs, steps=steps, ablation=config.ablation, denoising=denoising)
    each = EachEdgeCut.of(runs)
    with inference(runs.model):
        scores = runs.score(pairs, each, ablation=config.ablation, denoising=denoising)
    return PairScores(scores.clean, scores.corrupted, scores.patched[np.argsort(each.edges)])


def _halves(n_pairs: int, config: CircuitStabilityConfig) -> Float[np.ndarray, "row sample"]:
    """Return the weights of the pairs in each half: the two halves of a split follow each other."""
    rng = generator(config.seed, "circuit_stability", "halves")
    weights = np.zeros((2 * config.n_splits, n_pairs))
    for split in range(config.n_splits):
        order = rng.permutation(n_pairs)
        for half, rows in enumerate((order[: n_pairs // 2], order[n_pairs // 2 : 2 * (n_pairs // 2)])):
            weights[2 * split + half, rows] = 1 / len(rows)
    return weights


def largest(strength: Float[np.ndarray, "row edge"], n_kept: int) -> Bool[np.ndarray, "row edge"]:
    """Keep the `n_kept` largest of each row; of equals, the first."""
    kept = np.zeros(strength.shape, dtype=bool)
    np.put_along_axis(kept, np.argsort(-strength, axis=1, kind="stable")[:, :n_kept], True, axis=1)
    return kept


def _result(
    edges: Sequence[Edge],
    found: Bool[np.ndarray, "row edge"],
    difference: Estimate,
    n_pairs: int,
    config: CircuitStabilityConfig,
) -> CircuitStability:
    n_kept = int(found[0].sum())
    rng = generator(config.seed, "circuit_stability", "random circuits")
    random = random_circuits(edges, n_kept, n_circuits=2 * config.n_null, kind="connected", rng=rng)
    likeness, frequency = _likeness(found), found.mean(axis=0)
    value = float(likeness.mean())
    stable = frequency >= config.stable_above
    return CircuitStability(
        stability=estimate(value, bootstrap=likeness, null=_likeness(random), level=config.level),
        difference=difference,
        defined=n_kept > 0,
        n_pairs=n_pairs,
        n_edges=len(edges),
        n_kept=n_kept,
        n_stable=int(stable.sum()),
        expected_false=n_kept**2 / ((2 * config.stable_above - 1) * len(edges)),
        split_likeness=likeness,
        edge=tuple(f"{sender} → {receiver}" for sender, receiver in edges),
        sender=tuple(sender for sender, _ in edges),
        receiver=tuple(receiver for _, receiver in edges),
        frequency=frequency,
        expected=random.mean(axis=0),
        stable=stable,
    )


def _likeness(circuits: Bool[np.ndarray, "row edge"]) -> Float[np.ndarray, "draw"]:
    """Return the Jaccard index of each two circuits that follow each other; NaN if both are empty."""
    one, other = circuits[::2], circuits[1::2]
    shared, either = (one & other).sum(axis=1), (one | other).sum(axis=1)
    return np.divide(shared, either, out=np.full(len(one), NAN), where=either > 0)
