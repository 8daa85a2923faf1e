"""Whether a circuit does, alone, what the whole model does: judged on prompt pairs it was not found on.

    F(H) = (m(H) - m(empty)) / (m(M) - m(empty))                  m(H): metric when only the edges H are left intact

    sufficiency    F(C)                                           the circuit C alone; 1 is the whole model M
    necessity      1 - F(M - C)                                   what is lost without it
    completeness   mean over K of |F(C - K) - F(M - K)|           K random parts of C; 0 if C breaks as M does
    minimality     F(C) - F(C - {e})                              what each edge e of C adds
    CPR            area under F(C_s), s = 0...1                   C_s the share s of the edges with the largest |score|
    CMD            area of |1 - F(C_s)|

F is a ratio of means over pairs, never clipped: above 1, the circuit lacks what holds the model back. All runs are
exact: edges that are cut carry what the corrupted run (the mean, or nothing) would send.

Source: [@wang2023] (completeness, minimality), [@mueller2025] (CPR, CMD), [@shi2024] (random circuits), [@miller2024].
Cost: 4 + 2 n_random + 2 n_knockouts + |C| + (1 + n_random_curve) sizes runs of all pairs, packed into passes.
Chunked over: prompt pairs.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, get_args

import numpy as np
from jaxtyping import Float, Int, Num
from torch import nn

from mechint_core.circuits._effect_shares import Effect
from mechint_core.circuits._random_circuits import RANDOM_CIRCUITS, RandomCircuits
from mechint_core.circuits._size_curve import SizeCurve
from mechint_core.circuits._trial_circuits import TrialCircuits
from mechint_core.circuits.circuit import Circuit
from mechint_core.errors import ConfigurationError
from mechint_core.figure import Bars, Curve, Figure, Graph, Scatter
from mechint_core.models import inference, memory_remedy, samples_to, to_model
from mechint_core.patching import (
    Ablation,
    Edge,
    EdgeRuns,
    PairedConfig,
    PromptPairs,
    residual_graph,
)
from mechint_core.result import Estimate, Result

ALPHA: Final = 0.05
"""A circuit beats random ones, and an edge matters, if its p-value is at most this."""
_SHOWN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitFaithfulnessConfig(PairedConfig):
    """What cut edges carry, what chance is, and how much is tried."""

    ablation: Ablation | None = None
    """What edges carry that are cut: corrupted, mean, zero or other; None: as when the circuit was found."""
    components: tuple[str, ...] = ()
    """Globs of the modules that write to the residual stream; by default those the circuit was found with."""
    random_circuits: RandomCircuits = "connected"
    """Chance: random circuits of whole ways from input to output, or any subsets of the edges, of the same size."""
    n_random: int = 99
    """Random circuits; the smallest p-value is 1 / (1 + n_random)."""
    n_random_curve: int = 19
    """Random circuits at each size of the curve."""
    n_knockouts: int = 20
    """Random parts of the circuit that are knocked out."""
    n_left_out: int = 256
    """Edges that are left out one by one: all, or if the circuit has more, those with the smallest scores."""
    sizes: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    """Shares of all edges that circuits of growing size keep."""

    def __post_init__(self) -> None:
        PairedConfig.__post_init__(self)
        if self.ablation is not None and self.ablation not in get_args(Ablation):
            raise ConfigurationError(f"ablation must be one of {', '.join(get_args(Ablation))}. Got {self.ablation!r}.")
        if self.random_circuits not in RANDOM_CIRCUITS:
            raise ConfigurationError(
                f"random_circuits must be one of {', '.join(RANDOM_CIRCUITS)}. Got {self.random_circuits!r}."
            )
        if min(self.n_random, self.n_random_curve, self.n_knockouts) < 1 or self.n_left_out < 0:
            raise ConfigurationError(
                f"n_random, n_random_curve and n_knockouts must be at least 1, n_left_out at least 0. Got {self}."
            )
        if not all(0 < each < 1 for each in self.sizes):
            raise ConfigurationError(f"sizes must be shares strictly between 0 and 1. Got {self.sizes}.")


@dataclass(frozen=True, slots=True)
class FaithfulCircuit(Result):
    """What a circuit does alone, what the model does without it, and what each of its edges adds."""

    technique: ClassVar[str] = "circuit_faithfulness"
    evidence: ClassVar[str] = (
        "Intervals: bootstrap over prompt pairs on which the circuit was not found. "
        "Null: random circuits of the same size, by default connected ones."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Bars(
            values="share",
            labels="measure",
            low="share_low",
            high="share_high",
            null="share_null",
            title="What the circuit does alone, and what is lost without it (tick: random circuits)",
            value_label="share of the whole model's effect",
        ),
        Curve(
            y=("curve",),
            x="size",
            low="curve_low",
            high="curve_high",
            null="curve_null",
            title="Circuits of growing size, the strongest edges first (dashed: random circuits)",
            x_label="number of edges",
            y_label="faithfulness",
        ),
        Bars(
            values="contribution",
            labels="edge",
            low="low",
            high="high",
            title="What each edge adds to the circuit",
            value_label="faithfulness lost without it",
        ),
        Scatter(
            points="knockouts",
            title="Parts of the circuit knocked out: does it break as the model does?",
            x_label="faithfulness of the model without them",
            y_label="of the circuit without them",
        ),
        Graph(
            sender="sender",
            receiver="receiver",
            score="contribution",
            low="low",
            high="high",
            title="The circuit, each edge by what it adds",
            value_label="faithfulness lost without it",
        ),
    )

    faithfulness: Estimate
    """F(C), sufficiency: 1 is the whole model, 0 as if every edge were cut."""
    necessity: Estimate
    """1 - F(M - C): 1 if nothing is left of the effect without the circuit."""
    incompleteness: Estimate
    """Mean |F(C - K) - F(M - K)|: 0 if knocking out parts of it breaks the circuit as it breaks the model."""
    area: Estimate
    """CPR: area under faithfulness over the share of edges. 1 - 1 / (2 x edges) at most, if one edge were all."""
    distance: Estimate
    """CMD: area between faithfulness and 1."""
    difference: Estimate
    """Mean metric of the whole model less that with every edge cut: the effect that all is a share of. Null: 0."""
    defined: bool
    """False, and everything but `difference` NaN, if its interval holds 0: there is nothing to have a share of."""
    n_pairs: int
    n_edges: int
    n_kept: int
    n_idle: int
    """Edges left out that neither add (interval above 0, adjusted p at most 0.05) nor oppose."""
    n_opposing: int
    """Edges whose contribution's interval lies below 0: the circuit is better without them."""
    n_untested: int
    """Kept edges that were not left out, for there are more than `n_left_out`."""
    n_discovered_on: int
    """Pairs the circuit says it was found on, none of which is used here; 0 if it does not say."""
    measure: Annotated[tuple[str, ...], "measure"]
    share: Float[np.ndarray, "measure"]
    share_low: Float[np.ndarray, "measure"]
    share_high: Float[np.ndarray, "measure"]
    share_null: Float[np.ndarray, "measure"]
    random_faithfulness: Float[np.ndarray, "control"]
    """F of each random circuit."""
    knockouts: Float[np.ndarray, "draw coordinate"]
    """F(M - K), then F(C - K)."""
    size: Int[np.ndarray, "size"]
    """Edges of circuits that grow, from none to all."""
    curve: Float[np.ndarray, "size"]
    curve_low: Float[np.ndarray, "size"]
    curve_high: Float[np.ndarray, "size"]
    curve_null: Float[np.ndarray, "size"]
    """Mean of random circuits of this size."""
    edge: Annotated[tuple[str, ...], "edge"]
    """Kept edges that were left out, in the circuit's order."""
    sender: Annotated[tuple[str, ...], "edge"]
    receiver: Annotated[tuple[str, ...], "edge"]
    contribution: Float[np.ndarray, "edge"]
    """F(C) - F(C - {e}). A backup of another edge adds nothing by itself."""
    low: Float[np.ndarray, "edge"]
    high: Float[np.ndarray, "edge"]
    p_value: Float[np.ndarray, "edge"]
    """One-sided, by sign flips of pairs, adjusted for the number of edges."""

    def reading(self) -> str:
        """Say what the circuit does, beside random ones, and which edges it could do without."""
        if not self.defined:
            return (
                f"The whole model and the one with every edge cut differ by {self.difference}, which is within noise: "
                "there is no effect for a circuit to carry."
            )
        does, lost = self.faithfulness, self.necessity
        unseen = " it was not found on" if self.n_discovered_on else ""
        what = (
            f"the circuit ({self.n_kept} of {self.n_edges} edges) restores {does.value:.2f} [{does.low:.2f}, "
            f"{does.high:.2f}] of the effect on {self.n_pairs} pairs{unseen}; without it {lost.value:.2f} "
            f"[{lost.low:.2f}, {lost.high:.2f}] is lost"
        )
        if not does.p_value <= ALPHA:
            worse = "This is no better than random circuits of its size, which"
            return f"Alone, {what}. {worse} restore {does.null:.2f} (p = {does.p_value:.2g})."
        random = (
            f"Random circuits of its size restore {does.null:.2f} (p = {does.p_value:.2g}); "
            f"without one of them {lost.null:.2f} is lost."
        )
        return f"Alone, {what}. {random}{self._idle()}"

    def _idle(self) -> str:
        if not self.n_idle:
            return " Every edge that was left out adds to it." if self.edge else ""
        tested = zip(self.edge, self.low, self.high, self.p_value, strict=True)
        idle = [name for name, *found in tested if _is_idle(*found)]
        more = f" and {len(idle) - _SHOWN} more" if len(idle) > _SHOWN else ""
        return f" By themselves, these edges add nothing that shows: {', '.join(idle[:_SHOWN])}{more}."


def circuit_faithfulness(
    model: nn.Module,
    circuit: Circuit,
    clean: Num[np.ndarray, "sample ..."],
    corrupted: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample"] | None = None,
    corrupted_target: Int[np.ndarray, "sample"] | None = None,
    *,
    config: CircuitFaithfulnessConfig = CircuitFaithfulnessConfig(),
) -> FaithfulCircuit:
    """Find out whether a circuit does, alone, what the whole model does.

    Use it on a circuit that was found by any method, with prompt pairs of the same kind that were kept apart when it
    was found; pairs it was found on are refused. A faithful circuit need not be the only one, nor the smallest:
    necessity fails where the model has backups, and an edge may look idle because another one stands in for it. The
    numbers belong to this ablation, metric and granularity; others may give other ones [@miller2024]. With kl or
    distance every model has an effect, an untrained one too: what it does is then its own output.

    Parameters
    ----------
    model
        Any transformer whose parts write to a residual stream; run in eval mode, and left as it was.
    circuit
        Which edges to keep; its scores order the circuits of growing size.
    clean
        Inputs with the right answer, samples first, passed to `model` as its only argument.
    corrupted
        The same inputs with what matters changed; row i belongs to clean row i. At least 2 pairs, better 50.
    target
        The clean prompt's answer, as a class. Needed unless the metric is kl or distance.
    corrupted_target
        The corrupted prompt's answer, for the logit difference.
    config
        Ablation, metric, chance, and memory.

    Returns
    -------
    FaithfulCircuit
        Faithfulness and necessity (1: all of the effect; not clipped), incompleteness (0 at best), areas over sizes,
        and the contribution of every edge, each with its interval.

    Raises
    ------
    ConfigurationError
        If the circuit was found on some of these pairs, or the metric needs a target and there is none.
    NotFoundError
        If the circuit keeps an edge that this model does not have.
    ShapeError
        If the arrays do not pair up, there are fewer than 2 pairs, or the output is not (sample[, position], class).
    DegenerateInputError
        If the inputs or the model's outputs are not finite.
    MemoryBudgetError
        If a pass does not fit in memory.

    Notes
    -----
    The curve takes the edges by the size of their scores, edges of the circuit first where they are alike, and does
    not leave out those that lead nowhere. K has a random number of edges, from one to all.

    References
    ----------
    [@wang2023]
    [@mueller2025]
    [@shi2024]
    [@miller2024]

    Examples
    --------
    >>> from mechint_core.synthetic.induction_model import INDUCTION_EDGES, induction_model, induction_prompts
    >>> sender, receiver = zip(*INDUCTION_EDGES, strict=True)
    >>> circuit = Circuit(sender=sender, receiver=receiver, score=np.ones(7), kept=np.ones(7, dtype=bool))
    >>> config = CircuitFaithfulnessConfig(ablation="zero", n_random=19, sizes=())
    >>> found = circuit_faithfulness(induction_model(), circuit, **induction_prompts(8), config=config)
    >>> found.n_edges, round(found.faithfulness.value, 6), round(found.necessity.value, 6)
    (81, 1.0, 1.0)
    """
    pairs = PromptPairs.of(clean, corrupted, target, corrupted_target, config.metric)
    _refuse_leakage(pairs, circuit)
    with inference(model), memory_remedy(f"Use batch_rows below {config.batch_rows}, or a smaller cache_bytes."):
        graph = residual_graph(
            model,
            samples_to(to_model(clean[:2], model), config.sample_axis),
            granularity=circuit.granularity,
            components=config.components or circuit.components,
            split_input=circuit.split_input,
            sample_axis=config.sample_axis,
        )
        trials = _trials(circuit, graph.edges, config)
        runs = EdgeRuns(model=model, graph=graph, config=config)
        scores = runs.score(pairs, trials.kept, ablation=config.ablation or circuit.ablation).patched
    return _judged(trials, scores, len(circuit.discovered_on), config)


def _refuse_leakage(pairs: PromptPairs, circuit: Circuit) -> None:
    leaked = pairs.fingerprints() & set(circuit.discovered_on)
    if leaked:
        raise ConfigurationError(
            f"a circuit must be judged on pairs it was not found on. Got {len(leaked)} of {len(pairs)} on which it "
            "was. Pass held-out pairs."
        )


def _trials(circuit: Circuit, edges: tuple[Edge, ...], config: CircuitFaithfulnessConfig) -> TrialCircuits:
    sizes = np.unique(np.array([max(1, round(share * len(edges))) for share in config.sizes], dtype=np.int64))
    return TrialCircuits.of(
        circuit,
        edges,
        sizes=sizes[sizes < len(edges)],
        random=config.random_circuits,
        n_random=config.n_random,
        n_random_growing=config.n_random_curve,
        n_knockouts=config.n_knockouts,
        n_left_out=config.n_left_out,
        seed=config.seed,
    )


def _judged(
    trials: TrialCircuits,
    scores: Float[np.ndarray, "experiment sample"],
    n_discovered_on: int,
    config: CircuitFaithfulnessConfig,
) -> FaithfulCircuit:
    of = trials.sorted(scores)
    whole, empty = of["ends"]
    effect = Effect.of(whole, empty, n_draws=config.n_draws, level=config.level, seed=config.seed)
    does, random = effect.shares(of["circuit"]), effect.shares(of["random"]).value
    lost, random_lost = effect.of_gains(whole - of["without circuit"]), 1 - effect.shares(of["without random"]).value
    faithfulness, necessity = does.estimate(0, random), lost.estimate(0, random_lost)
    knocked = [effect.shares(of[f"{which} knocked out"]) for which in ("model", "circuit")]
    added = of["circuit"] - of["left out"]
    contribution, p_value = effect.of_gains(added), effect.p_values(added)
    low, high = contribution.bounds()
    edges, n_kept = [trials.edges[each] for each in trials.left_out], int(trials.circuit.sum())
    grown = SizeCurve.of(effect, of["growing"], of["random growing"], trials.sizes, len(trials.edges))
    return FaithfulCircuit(
        faithfulness=faithfulness,
        necessity=necessity,
        incompleteness=knocked[0].mean_distance(knocked[1]),
        area=grown.area,
        distance=grown.distance,
        difference=effect.difference,
        defined=effect.defined,
        n_pairs=len(whole),
        n_edges=len(trials.edges),
        n_kept=n_kept,
        n_idle=sum(_is_idle(*each) for each in zip(low, high, p_value, strict=True)),
        n_opposing=int((high < 0).sum()),
        n_untested=n_kept - len(edges),
        n_discovered_on=n_discovered_on,
        measure=("circuit alone", "lost without it"),
        share=np.array([faithfulness.value, necessity.value]),
        share_low=np.array([faithfulness.low, necessity.low]),
        share_high=np.array([faithfulness.high, necessity.high]),
        share_null=np.array([faithfulness.null, necessity.null]),
        random_faithfulness=random,
        size=grown.size,
        curve=grown.curve,
        curve_low=grown.low,
        curve_high=grown.high,
        curve_null=grown.null,
        knockouts=np.stack([each.value for each in knocked], axis=1),
        edge=tuple(f"{sender} → {receiver}" for sender, receiver in edges),
        sender=tuple(sender for sender, _ in edges),
        receiver=tuple(receiver for _, receiver in edges),
        contribution=contribution.value,
        low=low,
        high=high,
        p_value=p_value,
    )


def _is_idle(low: float, high: float, p_value: float) -> bool:
    """Say whether an edge's contribution cannot be told from none."""
    return not ((low > 0 and p_value <= ALPHA) or high < 0)
