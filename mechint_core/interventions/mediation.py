"""How much of an effect goes through some mediators, and how much around them.

Y(a, M(b)) is the answer to input a, its mediators held at what they are on input b; 1 is clean, 0 corrupted:

    total effect             TE  = Y(1, M(1)) - Y(0, M(0))
    natural direct effect    NDE = Y(1, M(0)) - Y(0, M(0))      the input changes, the mediators stay
    natural indirect effect  NIE = Y(0, M(1)) - Y(0, M(0))      the mediators change, the input stays
    total direct effect      TDE = Y(1, M(1)) - Y(0, M(1))
    total indirect effect    TIE = Y(1, M(1)) - Y(1, M(0))

    TE = NDE + TIE = TDE + NIE          interaction = TE - NDE - NIE = TIE - NIE, 0 where the routes add up

On a network all five are measured, not estimated: each term is a run.

Source: [@pearl2001], [@robins1992], [@vig2020].
Cost: (8 + 3 P) forwards of all pairs for P mediators, (6 + 2 P) without the control.
Chunked over: prompt pairs.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from torch import nn

from mechint_core.figure import Bars, Figure
from mechint_core.models import inference, memory_remedy, samples_to, to_model
from mechint_core.patching import (
    Block,
    Components,
    Edit,
    Granularity,
    PairedConfig,
    PairRuns,
    PairScores,
    PromptPairs,
    Recovery,
    Write,
    check_components,
    find_components,
    mean_effects,
    other_pairs,
    recovery_of,
)
from mechint_core.result import NAN, Estimate, Result

ALPHA: Final = 0.05
"""A part mediates if its p-value is at most this and its interval does not hold its null."""
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class MediationConfig(PairedConfig):
    """What the mediators are."""

    sites: tuple[str, ...] = ("*",)
    """Globs over module names: the mediators. Attention modules, when taken apart by heads."""
    by: Granularity = "site"
    """One mediator is a site, an attention head, a position of a site, or a unit of a site."""
    position: int | None = None
    """Mediate at this position only (second axis of a sample's activation); None: at all of them."""
    n_heads: int | None = None
    """Heads of each attention, where the model does not say."""
    control: bool = True
    """Hold the mediators at what another prompt gives them, for the null. Otherwise the null is 0."""

    def __post_init__(self) -> None:
        PairedConfig.__post_init__(self)
        check_components(self.by, self.position, sites=self.sites)


@dataclass(frozen=True, slots=True)
class Mediation(Result):
    """An effect, and its parts through and around the mediators; in the metric's units."""

    technique: ClassVar[str] = "mediation"
    evidence: ClassVar[str] = (
        "Interval: bootstrap over prompt pairs. Null of natural indirect effects: mediators held at what another clean "
        "prompt gives them; of all others, no effect. p: sign flips of own less null, two-sided; of single mediators, "
        "adjusted for their number."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Bars(
            values="effect_value",
            labels="effect",
            low="effect_low",
            high="effect_high",
            title="Through all mediators, and around them",
            value_label="effect, in the metric's units",
        ),
        Bars(
            values="indirect",
            labels="part",
            low="low",
            high="high",
            null="null",
            title="Natural indirect effect through one mediator (tick: another prompt's value)",
            value_label="effect, in the metric's units",
        ),
    )

    total: Estimate
    natural_direct: Estimate
    natural_indirect: Estimate
    total_direct: Estimate
    total_indirect: Estimate
    interaction: Estimate
    """TE - NDE - NIE: what input and mediators do only together."""
    proportion: Estimate
    """NIE / TE, ratio of means; below 0 where the mediators work against the rest. NaN if there is no effect."""
    part: Annotated[tuple[str, ...], "part"]
    """Mediators, in the model's order."""
    indirect: Float[np.ndarray, "part"]
    """Natural indirect effect through each alone, and what follows from it."""
    low: Float[np.ndarray, "part"]
    high: Float[np.ndarray, "part"]
    null: Float[np.ndarray, "part"]
    p_value: Float[np.ndarray, "part"]
    total_indirect_of: Float[np.ndarray, "part"]
    """Total indirect effect through each alone: what holding it at the corrupted value takes away."""
    proportion_of: Float[np.ndarray, "part"]
    """Natural indirect effect of each as a share of the total effect."""
    effect: Annotated[tuple[str, ...], "measure"]
    effect_value: Float[np.ndarray, "measure"]
    effect_low: Float[np.ndarray, "measure"]
    effect_high: Float[np.ndarray, "measure"]
    overlap: float
    """Sum of `indirect` less the natural indirect effect of all: above 0 where mediators relay or repeat each other."""
    defined: bool
    """False, and the proportions NaN, if clean and corrupted do not differ beyond noise."""
    n_pairs: int
    n_mediating: int
    """Mediators whose interval does not hold their null, with an adjusted p of at most 0.05."""
    n_skipped: int
    """Modules that the globs match but that cannot be patched."""

    def reading(self) -> str:
        """Say how much goes through the mediators, and through which."""
        if not self.defined:
            return (
                f"Clean and corrupted runs differ by {self.total}, which is within noise: there is nothing to mediate."
            )
        sure = "" if self.natural_indirect.p_value <= ALPHA else ", not distinguishable from another prompt's"
        together = (
            f"; {self.interaction.value:.3g} of it they do only together with the input"
            if self.interaction.p_value <= ALPHA and not self.interaction.low <= 0 <= self.interaction.high
            else ""
        )
        found = f"{self.n_mediating} of {len(self.part)} mediators carry some of it alone"
        sizes = np.where(self._mediating(), np.abs(self.indirect), -1.0)
        largest = np.argsort(-sizes, kind="stable")[: min(self.n_mediating, _SHOWN)]
        named = ", ".join(f"{self.part[k]} {self.indirect[k]:.3g}" for k in largest)
        return (
            f"Of a total effect of {self.total.value:.3g}, {self.natural_indirect.value:.3g} "
            f"({self.proportion.value:.0%}) goes through the mediators{sure} and {self.natural_direct.value:.3g} "
            f"around them{together}. {found}{f': {named}' if named else ''}."
        )

    def _mediating(self) -> Bool[np.ndarray, "part"]:
        return _mediating(self.low, self.high, self.null, self.p_value)


def mediation(
    model: nn.Module,
    clean: Num[np.ndarray, "sample ..."],
    corrupted: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample"] | None = None,
    corrupted_target: Int[np.ndarray, "sample"] | None = None,
    *,
    config: MediationConfig = MediationConfig(),
) -> Mediation:
    """Measure how much of an effect goes through some mediators, and how much around them.

    Use it to ask whether a set of sites, heads or neurons passes on what a change of the prompt does. The natural
    indirect effect is what patching recovers in the corrupted run, the total indirect effect what it destroys in the
    clean one; where they differ, the mediators and the other routes depend on each other, and neither number alone is
    "the" mediated part. The effect through one mediator holds all that it sets off downstream, so the effects of
    mediators in series overlap.

    Parameters
    ----------
    model
        Any module; run in eval mode, and left as it was.
    clean
        Inputs with the right answer, samples first, passed to `model` as its only argument.
    corrupted
        The same inputs with what matters changed; row i belongs to clean row i. At least 2 pairs, better 50.
    target
        The clean prompt's answer, as a class. Needed unless the metric is kl or distance.
    corrupted_target
        The corrupted prompt's answer, for the logit difference.
    config
        Mediators, metric, and memory.

    Returns
    -------
    Mediation
        All effects in the metric's units, the proportion mediated (dimensionless), and both for every mediator.

    Raises
    ------
    ShapeError
        If the arrays do not pair up, there are fewer than 2 pairs, the output is not (sample[, position], class), or
        mediators are positions and no site has any.
    ConfigurationError
        If the metric needs a target and there is none, or a target is not a class of the output.
    DegenerateInputError
        If the inputs or the model's outputs are not finite.
    NotFoundError
        If a glob matches no module that can be patched.
    MemoryBudgetError
        If a pass does not fit in memory.

    Notes
    -----
    TE = NDE + TIE = TDE + NIE holds exactly, for every pair. The effects keep the metric's own sign: of a loss, an
    effect that helps is negative. NIE / TE is the recovery of `patch_sites`, TIE / TE its damage.

    References
    ----------
    [@pearl2001]
    [@robins1992]
    [@vig2020]

    Examples
    --------
    >>> import torch
    >>> from mechint_core.random import generator
    >>> from mechint_core.synthetic.linear_network import LinearNetwork
    >>> draws = generator(0, "example")
    >>> clean, corrupted = draws.normal(size=(40, 8)), draws.normal(size=(40, 8))
    >>> model = LinearNetwork((3.0, 1.0))  # two routes, which carry 3/4 and 1/4 of the answer
    >>> answer = model(torch.from_numpy(clean)).argmax(dim=1).numpy()
    >>> found = mediation(model, clean, corrupted, answer, config=MediationConfig(sites=("routes.0",)))
    >>> round(found.proportion.value, 6), round(abs(found.interaction.value), 6)
    (0.75, 0.0)
    """
    pairs = PromptPairs.of(clean, corrupted, target, corrupted_target, config.metric)
    with inference(model), memory_remedy(f"Use batch_rows below {config.batch_rows}, or a smaller cache_bytes."):
        few = samples_to(to_model(clean[:2], model), config.sample_axis)
        mediators = find_components(
            model,
            few,
            config.sites,
            by=config.by,
            sample_axis=config.sample_axis,
            position=config.position,
            n_heads=config.n_heads,
            heads_only=True,
        )
        outcomes = _outcomes(model, pairs, mediators, config)
    return _result(outcomes, mediators, config)


@dataclass(frozen=True, slots=True)
class _Outcomes:
    """Y(a, M(b)) of every pair; the first experiment holds all mediators, the others one each."""

    y11: Float[np.ndarray, "sample"]
    y00: Float[np.ndarray, "sample"]
    y01: Float[np.ndarray, "experiment sample"]
    """Corrupted input, clean mediators."""
    y10: Float[np.ndarray, "experiment sample"]
    """Clean input, corrupted mediators."""
    y01_control: Float[np.ndarray, "experiment sample"] | None
    """Corrupted input, another clean prompt's mediators."""


def _outcomes(model: nn.Module, pairs: PromptPairs, mediators: Components, config: MediationConfig) -> _Outcomes:
    def experiments(block: Block) -> list[list[Edit]]:
        held: list[Edit] = [Write(each.site, block.donor_activations[each.site], each.part) for each in mediators.parts]
        return [held, *([one] for one in held)]

    others = other_pairs(len(pairs), config.seed) if config.control else None
    into_corrupted, into_clean = (
        PairRuns(
            model=model, config=config, sites=mediators.sites, bytes_per_row=mediators.bytes_per_row, noising=noising
        ).score_pairs(pairs, experiments, others=None if noising else others)
        for noising in (False, True)
    )
    own, control = np.split(into_corrupted.patched, [1 + len(mediators.parts)])
    return _Outcomes(
        into_corrupted.clean, into_corrupted.corrupted, own, into_clean.patched, control if config.control else None
    )


def _result(y: _Outcomes, mediators: Components, config: MediationConfig) -> Mediation:
    scale = float(np.abs([y.y11, y.y00]).mean())
    nothing = np.zeros_like(y.y01)
    total = y.y11 - y.y00
    natural_direct, natural_indirect = y.y10 - y.y00, y.y01 - y.y00
    total_direct, total_indirect = y.y11 - y.y01, y.y11 - y.y10
    control = nothing if y.y01_control is None else y.y01_control - y.y00

    def one(effect: Float[np.ndarray, "sample"], null: Float[np.ndarray, "sample"] = nothing[0]) -> Estimate:
        return mean_effects(effect[None], null[None], config=config, scale=scale)[0]

    of_all = {
        "total": one(total),
        "natural_direct": one(natural_direct[0]),
        "natural_indirect": one(natural_indirect[0], control[0]),
        "total_direct": one(total_direct[0]),
        "total_indirect": one(total_indirect[0]),
        "interaction": one(total_indirect[0] - natural_indirect[0]),
    }
    found = mean_effects(natural_indirect[1:], control[1:], config=config, scale=scale)
    shares = recovery_of(
        PairScores(y.y11, y.y00, y.y01, y.y01_control),
        noising=False,
        n_draws=config.n_draws,
        level=config.level,
        seed=config.seed,
    )
    return Mediation(
        **of_all,
        proportion=_proportion(shares, of_all["natural_indirect"].p_value, config.level),
        part=mediators.names,
        indirect=found.value,
        low=found.low,
        high=found.high,
        null=found.null,
        p_value=found.p_value,
        total_indirect_of=total_indirect[1:].mean(axis=1),
        proportion_of=shares.value[1:],
        effect=tuple(name.replace("_", " ") for name in of_all),
        effect_value=np.array([each.value for each in of_all.values()]),
        effect_low=np.array([each.low for each in of_all.values()]),
        effect_high=np.array([each.high for each in of_all.values()]),
        overlap=float(found.value.sum() - natural_indirect[0].mean()),
        defined=shares.defined,
        n_pairs=len(total),
        n_mediating=int(_mediating(found.low, found.high, found.null, found.p_value).sum()),
        n_skipped=mediators.n_skipped,
    )


def _proportion(shares: Recovery, p_value: float, level: float) -> Estimate:
    """Return the share of all mediators together; whether it differs from its null, their effect says."""
    if not shares.defined:
        return Estimate(NAN, level=level)
    value, low, high, null = (float(part[0]) for part in (shares.value, shares.low, shares.high, shares.null))
    return Estimate(value, low, high, null, p_value, level)


def _mediating(
    low: Float[np.ndarray, "part"],
    high: Float[np.ndarray, "part"],
    null: Float[np.ndarray, "part"],
    p_value: Float[np.ndarray, "part"],
) -> Bool[np.ndarray, "part"]:
    return (p_value <= ALPHA) & ((null < low) | (null > high))
