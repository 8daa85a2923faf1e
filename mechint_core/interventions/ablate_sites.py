"""Find the parts of a model whose loss damages its answers.

Each part in turn gives something that does not depend on the sample (or only on its class), and the answer is scored:

    D_p     = mean_i (m_i - m_i without p)                          in the metric's units, > 0: the answer is worse
    share_p = D_p / D_all            D_all: all parts at once       a ratio of means over the samples

m is the metric, taken with the sign that makes a worse answer smaller. D_all is what the intact model gains over one
whose parts know nothing of the sample, so share = 1 means that this part alone is as bad to lose as all of them.

Source: [@wang2023], [@heimersheim2024].
Cost: (3 + 2 P) forwards of all inputs for P parts; zero and resample need no means, and one less.
Chunked over: samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Float, Int, Num
from torch import nn

from mechint_core.figure import Bars, Figure, Matrix
from mechint_core.interventions._ablation import Ablation, ablated_blocks, check_ablation
from mechint_core.models import inference, memory_remedy, samples_to, to_model
from mechint_core.patching import (
    Components,
    Displaced,
    Edit,
    Granularity,
    PairedConfig,
    PairRuns,
    PairScores,
    PromptPairs,
    Write,
    check_components,
    component_grid,
    damage,
    find_components,
    mean_effects,
    own_pairs,
    random_directions,
    recovery_of,
    stand_out,
)
from mechint_core.random import generator
from mechint_core.result import Estimate, Result

_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class AblateSitesConfig(PairedConfig):
    """What to ablate, and what takes its place."""

    sites: tuple[str, ...] = ("*",)
    """Globs over module names; attention modules, when taken apart by heads."""
    by: Granularity = "site"
    """One part is a site, an attention head, a position of a site, or a unit of a site."""
    ablation: Ablation = "mean"
    """zero (off the data, where 0 is unusual), mean, class_mean (leaves the class), other_class_mean (takes only the
    class), resample (another sample's activation), or noise (Gaussian with each unit's mean and standard deviation)."""
    position: int | None = None
    """Ablate this position only (second axis of a sample's activation); None: all of them."""
    n_heads: int | None = None
    """Heads of each attention, where the model does not say."""
    control: bool = True
    """Compare with a push of the same size in a random direction: twice the cost. Otherwise the null is 0."""

    def __post_init__(self) -> None:
        PairedConfig.__post_init__(self)
        check_ablation(self.ablation)
        check_components(self.by, self.position, sites=self.sites)


@dataclass(frozen=True, slots=True)
class AblatedSites(Result):
    """What the loss of each part does to the answers."""

    technique: ClassVar[str] = "ablate_sites"
    evidence: ClassVar[str] = (
        "Interval: bootstrap over samples. Null: a push of the same size in a random direction of the same site, for "
        "every sample; no damage, without control. p: sign flips of own less null, adjusted for the number of parts."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Bars(
            values="damage",
            labels="part",
            low="low",
            high="high",
            null="null",
            title="What losing one part costs the answer (tick: a random push of the same size)",
            value_label="damage, in the metric's units",
        ),
        Matrix(
            values="grid",
            y="site",
            title="The same as a map: by layer, position, head or unit",
            x_label="layer, position, head or unit",
            value_label="damage",
            diverging=True,
        ),
    )

    largest: Estimate
    """The largest damage; its p-value is adjusted for the choice, its interval is not."""
    all_ablated: Estimate
    """Damage when all parts are ablated at once. Null: 0."""
    part: Annotated[tuple[str, ...], "part"]
    """In the model's order."""
    damage: Float[np.ndarray, "part"]
    """D, in the metric's units: positive is a worse answer, negative a better one."""
    low: Float[np.ndarray, "part"]
    high: Float[np.ndarray, "part"]
    null: Float[np.ndarray, "part"]
    p_value: Float[np.ndarray, "part"]
    """One-sided: more damage than the null's."""
    share: Float[np.ndarray, "part"]
    """Of `all_ablated`; not clipped, NaN where that is within noise."""
    share_low: Float[np.ndarray, "part"]
    share_high: Float[np.ndarray, "part"]
    site: Annotated[tuple[str, ...], "site"]
    """Rows of the grid: sites, or attention modules; by site, names without the first number in them, the layer."""
    grid: Float[np.ndarray, "site column"]
    """Damage by layer, position, head or unit; NaN where there is no such part."""
    intact: float
    """Mean metric of the intact model."""
    defined: bool
    """False, and the shares NaN, if ablating everything changes nothing beyond noise."""
    n_samples: int
    n_damaging: int
    """Parts whose interval lies above their null with an adjusted p of at most 0.05."""
    n_skipped: int
    """Modules that the globs match but that cannot be ablated."""

    def reading(self) -> str:
        """Name the parts whose loss matters, in the model's order."""
        damaging = np.flatnonzero(stand_out(self.low, self.null, self.p_value))
        shown = [
            f"{self.part[k]} {self.damage[k]:.3g} [{self.low[k]:.3g}, {self.high[k]:.3g}]"
            + (f", {self.share[k]:.0%} of all" if self.defined else "")
            for k in sorted(sorted(damaging, key=lambda k: -self.damage[k])[:_SHOWN])
        ]
        rival = "a random push of its size" if self.null.any() else "nothing"
        if not len(damaging):
            return (
                f"No part's loss damages the answer more than {rival} "
                f"(smallest adjusted p = {self.p_value.min():.2g}, {self.n_samples} samples)."
            )
        more = f", and smaller damage at {len(damaging) - _SHOWN} more" if len(damaging) > _SHOWN else ""
        others = "" if len(damaging) == len(self.part) else " The others are not distinguishable from their null."
        return (
            f"Ablating one part damages the answer more than {rival} does at {len(damaging)} of {len(self.part)} "
            f"parts, in the model's order: {'; '.join(shown)}{more}.{others}"
        )


def ablate_sites(
    model: nn.Module,
    inputs: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample"] | None = None,
    foil: Int[np.ndarray, "sample"] | None = None,
    label: Int[np.ndarray, "sample"] | None = None,
    *,
    config: AblateSitesConfig = AblateSitesConfig(),
) -> AblatedSites:
    """Find the parts of a model whose loss damages its answers.

    Use it to ask what a model needs, where there are no prompt pairs to patch between. It tests necessity: a part that
    another one backs up looks idle. Zero is far from anything the model has seen and exaggerates damage; the mean
    removes what tells samples apart; another sample's activation keeps even their joint distribution. The control
    pushes the same activation as far in a random direction, so that a part counts only for what it carries.

    Parameters
    ----------
    model
        Any module; run in eval mode, and left as it was.
    inputs
        Samples first, passed to `model` as its only argument. Means are taken over them. At least 2, better 50.
    target
        The right answer, as a class. Needed unless the metric is kl or distance.
    foil
        A wrong answer, for the logit difference; otherwise the mean of all others.
    label
        What `class_mean` and `other_class_mean` average within; the target, if it is not given.
    config
        Parts, ablation, metric, and memory.

    Returns
    -------
    AblatedSites
        Damage of every part in the metric's units and as a share of that of all, with interval, null and p-value.

    Raises
    ------
    ShapeError
        If the arrays do not fit together, there are fewer than 2 samples, the output is not (sample[, position],
        class), or parts are positions and no site has any.
    ConfigurationError
        If the metric needs a target, or the ablation a label, and there is none, or a target is not a class.
    DegenerateInputError
        If the inputs or the model's outputs are not finite, or a class has one sample.
    NotFoundError
        If a glob matches no module that can be ablated.
    MemoryBudgetError
        If a pass does not fit in memory.

    Notes
    -----
    Means and standard deviations are taken per unit and position over `inputs`, in float64, the ablated sample
    included. Worse is larger for loss, kl and distance and smaller for the others; damage is positive for worse.

    References
    ----------
    [@wang2023]
    [@heimersheim2024]

    Examples
    --------
    >>> import torch
    >>> from mechint_core.random import generator
    >>> from mechint_core.synthetic.linear_network import LinearNetwork
    >>> inputs = generator(0, "example").normal(size=(40, 8))
    >>> model = LinearNetwork((3.0, 1.0))  # two routes, which carry 3/4 and 1/4 of the answer
    >>> answer = model(torch.from_numpy(inputs)).argmax(dim=1).numpy()
    >>> config = AblateSitesConfig(sites=("routes.*",))
    >>> ablate_sites(model, inputs, answer, config=config).share.round(6).tolist()
    [0.75, 0.25]
    """
    given = own_pairs(inputs, target, foil, config.metric)
    label = target if label is None else label
    with inference(model), memory_remedy(f"Use batch_rows below {config.batch_rows}, or a smaller cache_bytes."):
        few = samples_to(to_model(inputs[:2], model), config.sample_axis)
        found = find_components(
            model,
            few,
            config.sites,
            by=config.by,
            sample_axis=config.sample_axis,
            position=config.position,
            n_heads=config.n_heads,
            heads_only=True,
        )
        runs = PairRuns(model=model, config=config, sites=found.sites, bytes_per_row=found.bytes_per_row)
        scores = _scores(runs, given, found, label, config)
    return _result(scores, found, config)


def _scores(
    runs: PairRuns,
    inputs: PromptPairs,
    components: Components,
    label: Int[np.ndarray, "sample"] | None,
    config: AblateSitesConfig,
) -> PairScores:
    """Score the intact model, the one without any part, and those without one; the control displaces that part."""
    draws = {site: generator(config.seed, "ablate_sites", "control", site) for site in runs.sites}
    intact, found = np.empty(len(inputs)), list[np.ndarray]()
    for block, donors in ablated_blocks(runs, inputs, config.ablation, label, caches=3 if config.control else 2):
        ablations = [Write(each.site, donors[each.site], each.part) for each in components.parts]
        experiments: list[Sequence[Edit]] = [ablations, *([one] for one in ablations)]
        if config.control:
            aside = {site: random_directions(each, draws[site]) for site, each in block.base_activations.items()}
            experiments += [[Displaced(one, aside[one.site])] for one in ablations]
        intact[block.rows] = block.clean
        found.append(runs.score_experiments(block, experiments))
    everything, own, displaced = np.split(np.concatenate(found, axis=1), [1, 1 + len(components.parts)])
    return PairScores(intact, everything[0], own, displaced if config.control else None)


def _result(scores: PairScores, components: Components, config: AblateSitesConfig) -> AblatedSites:
    scale = float(np.abs([scores.clean, scores.corrupted]).mean())
    lost = damage(scores.clean, scores.patched, config.metric)
    displaced = None if scores.control is None else damage(scores.clean, scores.control, config.metric)
    every = damage(scores.clean, scores.corrupted[None], config.metric)
    found = mean_effects(lost, displaced, config=config, scale=scale, side="greater")
    shares = recovery_of(scores, noising=True, n_draws=config.n_draws, level=config.level, seed=config.seed)
    site, grid = component_grid(components.names, found.value, config.by)
    return AblatedSites(
        largest=found[int(found.value.argmax())],
        all_ablated=mean_effects(every, config=config, scale=scale)[0],
        part=components.names,
        damage=found.value,
        low=found.low,
        high=found.high,
        null=found.null,
        p_value=found.p_value,
        share=shares.value,
        share_low=shares.low,
        share_high=shares.high,
        site=site,
        grid=grid,
        intact=float(scores.clean.mean()),
        defined=shares.defined,
        n_samples=len(scores.clean),
        n_damaging=int(stand_out(found.low, found.null, found.p_value).sum()),
        n_skipped=components.n_skipped,
    )
