"""Estimate from gradients what cutting each edge of a model would do: all edges in a few backward passes.

    effect_{s -> r} = (w_s' - w_s) . mean over k of  dm / dx_r |_{alpha_k}          alpha_k = (k + 1/2) / n

w_s is what sender s writes in the clean run, w_s' in the corrupted run (noising; denoising the reverse), x_r what
receiver r reads. The gradient is taken in runs whose input lies on the line between the two, at n midpoints (or the
nodes of Gauss and Legendre): integrated gradients. With method "gradient" it is taken in the clean run itself: edge
attribution patching.

    score_e      = -mean_i effect_ei / mean_i (m_clean,i - m_corrupted,i)
    completeness = sum of the scores of all edges from the input          1 as n grows: a cut, on a straight line

A sample of edges is cut exactly, half of it the strongest, half drawn from the others, and compared.

Source: [@syed2024], [@hanna2024]; [@sundararajan2017] for the line and completeness.
Cost: 2 forwards; n forwards and backwards, each with a backward per head of its attention only; n_verified forwards.
Chunked over: prompt pairs.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal, get_args

import numpy as np
from jaxtyping import Float, Int, Num
from torch import nn

from mechint_core.circuits._scored_edges import EdgeScoringConfig, ScoredEdges, edge_runs, fields_of, judge_edges
from mechint_core.circuits._sufficient_edges import cut_down
from mechint_core.errors import ConfigurationError
from mechint_core.figure import Figure, Scatter
from mechint_core.models import differentiation, inference, memory_remedy
from mechint_core.patching import (
    Edge,
    PairScores,
    PromptPairs,
    choose_to_verify,
    edge_gradients,
    is_input,
    recovery_of,
    verify,
)
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate

Method = Literal["integrated", "gradient"]
Rule = Literal["midpoint", "gauss-legendre"]

_FLAT: Final = ("kl", "distance")
"""Metrics that are least at the clean run, where their gradient is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeAttributionConfig(EdgeScoringConfig):
    """How edges are scored, which are kept, and how much of it is verified."""

    method: Method = "integrated"
    """gradient costs one backward, and is blind where a softmax saturates."""
    n_steps: int = 5
    """Points on the line between the two inputs, for method integrated."""
    rule: Rule = "midpoint"
    """Where they lie. On networks with kinks midpoints do as well as the nodes of Gauss and Legendre, or better."""
    n_verified: int = 16
    """Edges to cut exactly: half the strongest, half of the others at random. 0 trusts the estimates blindly."""

    def __post_init__(self) -> None:
        EdgeScoringConfig.__post_init__(self)
        for name, value, known in (("method", self.method, get_args(Method)), ("rule", self.rule, get_args(Rule))):
            if value not in known:
                raise ConfigurationError(f"{name} must be one of {', '.join(known)}. Got {value!r}.")
        if self.n_steps < 1 or self.n_verified < 0:
            raise ConfigurationError(f"n_steps must be at least 1, n_verified at least 0. Got {self}.")
        if self.noising and self.method == "gradient" and self.metric in _FLAT:
            raise ConfigurationError(
                f"the gradient of {self.metric} must not be 0 where it is taken, and at clean runs it is. "
                "Use method='integrated', or another metric."
            )

    @property
    def steps(self) -> list[tuple[float, float]]:
        """Where gradients are taken between the run that is changed (0) and the other (1), and with which weights."""
        if self.method == "gradient":
            return [(0.0, 1.0)]
        if self.rule == "midpoint":
            return [((k + 0.5) / self.n_steps, 1 / self.n_steps) for k in range(self.n_steps)]
        nodes, weights = np.polynomial.legendre.leggauss(self.n_steps)
        return [(float((1 + x) / 2), float(w / 2)) for x, w in zip(nodes, weights, strict=True)]


@dataclass(frozen=True, slots=True)
class AttributedEdges(ScoredEdges):
    """What cutting (or restoring) each edge would move, estimated from gradients, and how good the estimates are."""

    technique: ClassVar[str] = "edge_attribution"
    evidence: ClassVar[str] = (
        "Interval: bootstrap over prompt pairs (of agreements with exact cuts: over the random edges, too). Null: no "
        "effect; of the agreements: shuffled edges. p: sign flips, two-sided, adjusted for the number of edges."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        *ScoredEdges.figures,
        Scatter(
            points="verified_points",
            title="Estimated against exact scores, of a sample of edges",
            x_label="estimated share",
            y_label="exact share",
        ),
    )

    completeness: Estimate
    """Sum of the scores of all edges from the input; exactly 1 for infinitely many steps. NaN for ablations other than
    corrupted."""
    correlation: Estimate
    """Pearson's, of estimated and exact scores over the verified edges; NaN for fewer than 3."""
    rank_correlation: Estimate
    """Spearman's, of the same."""
    sign_agreement: Estimate
    """Share of verified edges whose estimate has the right sign."""
    relative_error: Estimate
    """|estimated - exact| / |exact|, lengths over the verified edges: 0 is perfect, 1 no better than nothing."""
    verified: Annotated[tuple[str, ...], "example"]
    """The edges that were cut exactly: the strongest first, then the random ones."""
    verified_points: Float[np.ndarray, "example coordinate"]
    """Estimated, then exact score of each."""
    trusted: bool
    """Whether the verified edges correlate by at least 0.9, with a relative error of at most 0.5."""

    def reading(self) -> str:
        """Name the strongest edges, and say whether to believe it."""
        found = ScoredEdges.reading(self)
        if not self.defined:
            return found
        if not self.verified:
            return f"{found} None of it was verified by exact cuts: take it as a guess."
        numbers = (
            f"r = {self.correlation.value:.2f}, {self.sign_agreement.value:.0%} of signs right, relative error "
            f"{self.relative_error.value:.2g}, {len(self.verified)} edges"
        )
        if self.trusted:
            return f"{found} These are estimates, and exact cuts confirm them ({numbers})."
        return (
            f"{found} These are estimates, and not to be trusted: exact cuts disagree ({numbers}). "
            "Use more steps, or edge_patching."
        )


def edge_attribution(
    model: nn.Module,
    clean: Num[np.ndarray, "sample ..."],
    corrupted: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample"] | None = None,
    corrupted_target: Int[np.ndarray, "sample"] | None = None,
    *,
    config: EdgeAttributionConfig = EdgeAttributionConfig(),
) -> AttributedEdges:
    """Estimate through which connections a model's answer flows, without cutting each one.

    Use it where there are too many edges to cut one by one, to find the few hundred that matter. Estimates are first
    order around runs between clean and corrupted: where attention or a nonlinearity saturates on the whole line, an
    edge looks idle though cutting it would matter. So a sample is cut exactly, and how well it agrees is part of the
    answer. What is kept is a hypothesis about the circuit: `circuit_faithfulness` judges it, on other pairs.

    Parameters
    ----------
    model
        Any differentiable transformer whose parts add to a residual stream; run in eval mode, and left as it was.
    clean
        Inputs with the right answer, samples first, passed to `model` as its only argument.
    corrupted
        The same inputs with what matters changed; row i belongs to clean row i. At least 2 pairs, better 50.
    target
        The clean prompt's answer, as a class. Needed unless the metric is kl or distance.
    corrupted_target
        The corrupted prompt's answer, for the logit difference.
    config
        Granularity, direction, ablation, method, which edges are kept, verification, metric, and memory.

    Returns
    -------
    AttributedEdges
        Every edge's estimated score (dimensionless, 1 = all of the answer), with interval and p-value, the kept ones,
        and the agreement with exact cuts.

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
    The line joins what every receiver reads from the input in both runs, so it is defined for tokens. [@hanna2024]'s
    own code takes n points that include the corrupted end and not the clean one; midpoints have no such bias.

    References
    ----------
    [@syed2024]
    [@hanna2024]
    [@sundararajan2017]

    Examples
    --------
    >>> from mechint_core.synthetic.induction_model import CHANGED_EDGES, induction_model, induction_prompts
    >>> pairs = induction_prompts(n_prompts=16, change="second")
    >>> found = edge_attribution(induction_model(), *pairs.values())
    >>> {edge for edge, kept in zip(zip(found.sender, found.receiver), found.kept) if kept} == CHANGED_EDGES["second"]
    True
    """
    pairs = PromptPairs.of(clean, corrupted, target, corrupted_target, config.metric)
    noising = config.noising
    with memory_remedy(f"Use batch_rows below {config.batch_rows}, or a smaller cache_bytes."):
        with inference(model):
            runs = edge_runs(model, pairs, config)
        with differentiation(model):
            scores = edge_gradients(runs, pairs, steps=config.steps, ablation=config.ablation, denoising=not noising)
        edges = runs.graph.edges
        judged = cut_down(judge_edges(scores, edges, config), runs, pairs, model, config)
        draws = generator(config.seed, "edge_attribution", "verified")
        verified = choose_to_verify(judged.recovery, config.n_verified, draws)
        exact = np.empty((0, len(pairs)))
        if len(verified):
            with inference(model):
                kept = np.arange(len(edges)) != verified[:, None]
                exact = runs.score(pairs, kept, ablation=config.ablation, denoising=not noising).patched
    fields = fields_of(judged, edges, pairs, config)
    checked = verify(scores, judged.recovery, verified, exact, noising=noising, config=config)
    return AttributedEdges(
        **fields, **checked.fields(fields["edge"]), completeness=_completeness(scores, edges, config)
    )


def _completeness(scores: PairScores, edges: tuple[Edge, ...], config: EdgeAttributionConfig) -> Estimate:
    """Return the sum of the scores of the edges from the input: together they are a cut."""
    if config.ablation != "corrupted":
        return Estimate(NAN, level=config.level)
    from_input = np.array([is_input(sender) for sender, _ in edges])
    base = scores.clean if config.noising else scores.corrupted
    together = base + (scores.patched[from_input] - base).sum(axis=0)
    found = recovery_of(
        PairScores(scores.clean, scores.corrupted, together[None]),
        noising=config.noising,
        n_draws=config.n_draws,
        level=config.level,
        seed=config.seed,
    )
    return Estimate(float(found.value[0]), float(found.low[0]), float(found.high[0]), level=config.level)
