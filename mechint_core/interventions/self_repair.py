"""How much of a lesion the rest of the model makes good.

A site is lesioned, and the rest of the model either reacts or is held where it was:

    total        = mean_i (m_i - m_i lesioned)                              the others react
    direct       = mean_i (m_i - m_i lesioned, the others held intact)      the others cannot
    compensation = direct - total                                           > 0: self-repair; < 0: they add to it
    change_o     = mean_i (m_i with o alone as in the lesioned run - m_i)   what site o's reaction does for the answer

m is the metric, taken with the sign that makes a worse answer smaller. Where the others' contributions add up,
compensation is the sum of their changes.

Source: [@mcgrath2023], [@rushing2024].
Cost: (6 + O) forwards of all inputs for O other sites with the control, (4 + O) without; a mean lesion needs one more.
Chunked over: samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from mechint_core.errors import ConfigurationError
from mechint_core.figure import Bars, Figure
from mechint_core.interventions._ablation import Ablation, ablated_blocks, check_ablation
from mechint_core.models import capture, inference, memory_remedy, samples_first, samples_to, to_model
from mechint_core.patching import (
    Block,
    Displaced,
    Edit,
    PairedConfig,
    PairRuns,
    PromptPairs,
    Slice,
    Write,
    damage,
    find_components,
    find_site,
    mean_effects,
    own_pairs,
    random_directions,
    run_experiments,
)
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

ALPHA: Final = 0.05
"""A site reacts if the p-value of its change is at most this and the interval does not hold 0."""
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfRepairConfig(PairedConfig):
    """What is lesioned, and who may make up for it."""

    site: str = ""
    """Name of the module that is lesioned."""
    others: tuple[str, ...] = ()
    """Globs over the modules that may react: components that write into the same stream, not the stream itself."""
    ablation: Ablation = "mean"
    """What the lesioned site gives: zero, mean, class_mean, other_class_mean, resample or noise."""
    position: int | None = None
    """Lesion this position only (second axis of a sample's activation); None: all of them."""
    control: bool = True
    """Compare with a push of the same size in a random direction. Otherwise the null is 0."""

    def __post_init__(self) -> None:
        PairedConfig.__post_init__(self)
        check_ablation(self.ablation)


@dataclass(frozen=True, slots=True)
class SelfRepair(Result):
    """What a lesion costs with and without the reaction of the rest of the model."""

    technique: ClassVar[str] = "self_repair"
    evidence: ClassVar[str] = (
        "Interval: bootstrap over samples. Null of total, direct and compensation: a push of the same size in a random "
        "direction of the lesioned site; of single sites, no change. p: sign flips of own less null, two-sided; of "
        "single sites, adjusted for their number."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Bars(
            values="change",
            labels="site",
            low="low",
            high="high",
            title="What each site's reaction to the lesion does for the answer",
            value_label="change of the metric; above 0: makes up for it",
        ),
    )

    compensation: Estimate
    """Direct less total damage: what the others make good."""
    total: Estimate
    """Damage by the lesion."""
    direct: Estimate
    """Damage by the lesion where the others are held as they were."""
    repaired_share: float
    """Compensation over direct damage, ratio of means. NaN where the direct damage is within noise."""
    site: Annotated[tuple[str, ...], "site"]
    """The others, in the model's order."""
    change: Float[np.ndarray, "site"]
    low: Float[np.ndarray, "site"]
    high: Float[np.ndarray, "site"]
    p_value: Float[np.ndarray, "site"]
    n_samples: int
    n_reacting: int
    """Sites whose interval does not hold 0, with an adjusted p of at most 0.05."""

    def reading(self) -> str:
        """Say how much of the lesion is made good, and by whom."""
        repair = self.compensation
        clear = repair.p_value <= ALPHA and not repair.low <= repair.null <= repair.high
        share = "" if np.isnan(self.repaired_share) else f" ({self.repaired_share:.0%})"
        rival = "a push of the same size" if repair.null else "nothing"
        verdict = (
            f"the others {'make good' if repair.value > 0 else 'add'} {abs(repair.value):.3g}{share}"
            if clear
            else f"what the others change, {repair}, is not distinguishable from {rival}"
        )
        order = np.argsort(
            -np.where(_reacting(self.low, self.high, self.p_value), np.abs(self.change), -1.0), kind="stable"
        )
        named = ", ".join(f"{self.site[k]} {self.change[k]:+.3g}" for k in order[: min(self.n_reacting, _SHOWN)])
        return (
            f"The lesion alone costs the answer {self.direct.value:.3g}, and {self.total.value:.3g} once the rest "
            f"reacts: {verdict}. {self.n_reacting} of {len(self.site)} sites react{f': {named}' if named else ''}."
        )


def self_repair(
    model: nn.Module,
    inputs: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample"] | None = None,
    foil: Int[np.ndarray, "sample"] | None = None,
    label: Int[np.ndarray, "sample"] | None = None,
    *,
    config: SelfRepairConfig = SelfRepairConfig(),
) -> SelfRepair:
    """Measure how much of a lesion the rest of the model makes good.

    Use it where ablating a site seems to cost nothing: it may be idle, or others may take over its work. The direct
    damage is what it contributes itself; compensation is what is lost from sight in an ablation. The sites that react
    must be components beside the lesioned one, for holding a module that contains it, or the stream it writes to, holds
    the lesion's own effect too. A reaction can also be a side effect of the lesion, as when a normalisation rescales.

    Parameters
    ----------
    model
        Any module; run in eval mode, and left as it was.
    inputs
        Samples first, passed to `model` as its only argument. At least 2, better 50.
    target
        The right answer, as a class. Needed unless the metric is kl or distance.
    foil
        A wrong answer, for the logit difference; otherwise the mean of all others.
    label
        What `class_mean` and `other_class_mean` average within; the target, if it is not given.
    config
        Lesion, the sites that may react, metric, and memory.

    Returns
    -------
    SelfRepair
        Total and direct damage and compensation with interval and null, and what each site's reaction does, all in
        the metric's units.

    Raises
    ------
    ShapeError
        If the arrays do not fit together, there are fewer than 2 samples, or the output is not (sample[, position],
        class).
    ConfigurationError
        If the lesioned site is a glob of several, no site beside it is named, the metric needs a target or the ablation
        a label and there is none, or a target is not a class.
    DegenerateInputError
        If the inputs or the model's outputs are not finite, or a class has one sample.
    NotFoundError
        If a glob matches no module that can be patched.
    MemoryBudgetError
        If a pass does not fit in memory.

    Notes
    -----
    Direct damage is the natural direct effect of the lesion with the others as mediators, and minus compensation the
    total indirect one (see `mediation`).

    References
    ----------
    [@mcgrath2023]
    [@rushing2024]

    Examples
    --------
    >>> import torch
    >>> from mechint_core.random import generator
    >>> from mechint_core.synthetic.causal_networks import TwoRouteNetwork
    >>> model = TwoRouteNetwork(direct=3.0, to_mediator=-1.0, n_units=8, n_outputs=5)  # y = M (3 x - 1.5 x)
    >>> inputs = generator(0, "example").normal(size=(40, 8))
    >>> answer = model(torch.from_numpy(inputs)).argmax(dim=1).numpy()
    >>> config = SelfRepairConfig(site="exposure", others=("mediated",))
    >>> round(self_repair(model, inputs, answer, config=config).repaired_share, 6)  # 1.5 of 3
    0.5
    """
    given = own_pairs(inputs, target, foil, config.metric)
    if not config.others:
        raise ConfigurationError("others must name the sites that may react to the lesion. Got none.")
    with inference(model), memory_remedy(f"Use batch_rows below {config.batch_rows}, or a smaller cache_bytes."):
        few = samples_to(to_model(inputs[:2], model), config.sample_axis)
        axis = config.sample_axis
        (lesioned,) = find_site(model, few, config.site, sample_axis=axis, position=config.position).sites
        found = find_components(model, few, (config.site, *config.others), by="site", sample_axis=axis)
        others = tuple(site for site in found.sites if site != lesioned)
        if not others:
            raise ConfigurationError(f"others must name sites beside the lesioned one. Got only {lesioned!r}.")
        runs = PairRuns(model=model, config=config, sites=found.sites, bytes_per_row=found.bytes_per_row)
        scores = _scores(runs, given, lesioned, others, target if label is None else label, config)
    return _result(scores, others, config)


@dataclass(frozen=True, slots=True)
class _Scores:
    """The metric of every sample."""

    intact: Float[np.ndarray, "sample"]
    lesions: Float[np.ndarray, "experiment sample"]
    """Lesioned; lesioned with the others held; the control's both."""
    reactions: Float[np.ndarray, "site sample"]
    """Intact but for one site, which is as in the lesioned run."""


def _scores(
    runs: PairRuns,
    inputs: PromptPairs,
    lesioned: str,
    others: Sequence[str],
    label: Int[np.ndarray, "sample"] | None,
    config: SelfRepairConfig,
) -> _Scores:
    draws = generator(config.seed, "self_repair", "control")
    intact, found = np.empty(len(inputs)), list[np.ndarray]()
    for block, donors in ablated_blocks(runs, inputs, config.ablation, label, caches=4):
        seen = block.base_activations
        lesions: list[Edit] = [Write(lesioned, donors[lesioned], Slice(config.position))]
        if config.control:
            lesions.append(Displaced(lesions[0], random_directions(seen[lesioned], draws)))
        held: list[Edit] = [Write(site, seen[site]) for site in others]
        reacted = _activations(runs, block, lesions[0], others)
        experiments = [edits for lesion in lesions for edits in ([lesion], [lesion, *held])]
        experiments += [[Write(site, reacted[site])] for site in others]
        intact[block.rows] = block.clean
        found.append(runs.score_experiments(block, experiments))
    scores = np.concatenate(found, axis=1)
    return _Scores(intact, scores[: -len(others)], scores[-len(others) :])


def _activations(runs: PairRuns, block: Block, lesion: Edit, sites: Sequence[str]) -> Mapping[str, Tensor]:
    """Return what some sites give in the lesioned run; a block is no larger than a pass, so there is one."""
    config = runs.config
    with capture(runs.model, sites) as seen:
        list(
            run_experiments(
                runs.model, block.base, [[lesion]], batch_rows=len(block.rows), sample_axis=config.sample_axis
            )
        )
    return {site: samples_first(seen[site], config.sample_axis) for site in sites}


def _result(scores: _Scores, others: tuple[str, ...], config: SelfRepairConfig) -> SelfRepair:
    scale = float(np.abs([scores.intact, scores.lesions[0]]).mean())
    lost = damage(scores.intact, scores.lesions, config.metric)
    total, direct = lost[0], lost[1]
    nothing = np.zeros((2, len(total)))
    null_total, null_direct = lost[2:] if config.control else nothing
    change = -damage(scores.intact, scores.reactions, config.metric)

    def one(effect: Float[np.ndarray, "sample"], null: Float[np.ndarray, "sample"]) -> Estimate:
        return mean_effects(effect[None], null[None], config=config, scale=scale)[0]

    of_direct, repair = one(direct, null_direct), one(direct - total, null_direct - null_total)
    found = mean_effects(change, config=config, scale=scale)
    return SelfRepair(
        compensation=repair,
        total=one(total, null_total),
        direct=of_direct,
        repaired_share=NAN if of_direct.low <= 0 <= of_direct.high else repair.value / of_direct.value,
        site=others,
        change=found.value,
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        n_samples=len(total),
        n_reacting=int(_reacting(found.low, found.high, found.p_value).sum()),
    )


def _reacting(
    low: Float[np.ndarray, "site"], high: Float[np.ndarray, "site"], p_value: Float[np.ndarray, "site"]
) -> Bool[np.ndarray, "site"]:
    return (p_value <= ALPHA) & ((low > 0) | (high < 0))
