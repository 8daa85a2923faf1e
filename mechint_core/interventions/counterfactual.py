"""What would the answer be, had a variable inside the model another value?

z is a site's activation, some of its units, its coordinate along a direction, or latents of a dictionary:

    interpolate   do(z = (1 - a) z_i + a z'_i)    z' of the source input i; a = 1 swaps
    do            do(z = a)                       the same value for every input
    add           do(z = z_i + a)                 an edit

    response_a = mean_i m_i(a)        individual effect_i = m_i(last a) - m_i(first a)        ATE = mean_i effect_i

Each answer is a run of the model with z set and all else computed from it, so the effects are those of the model
itself; no adjustment for confounders is needed, and none is made.

Source: [@pearl2009], [@geiger2021].
Cost: (2 + 2 D) forwards of all inputs for D doses with the control, (2 + D) without.
Chunked over: samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import nn

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.figure import Curve, Figure, Histogram
from mechint_core.interventions._variables import (
    Coordinate,
    Intervene,
    Intervention,
    LatentCodes,
    Units,
    Variable,
)
from mechint_core.models import inference, memory_remedy, samples_to, to_model
from mechint_core.patching import (
    ROUNDING,
    Block,
    Codes,
    Displaced,
    Edit,
    PairedConfig,
    PairRuns,
    PromptPairs,
    find_site,
    intact_blocks,
    mean_effects,
    own_pairs,
    random_directions,
)
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

Part = Literal["site", "units", "direction", "latents"]

ALPHA: Final = 0.05
"""An effect is there if its p-value is at most this and its interval does not hold its null."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterfactualConfig(PairedConfig):
    """Which variable to set, and to what."""

    site: str = ""
    """Name of the module whose output holds the variable."""
    variable: Part = "site"
    """The whole activation, some units, the coordinate along `vector`, or latents of `dictionary`."""
    units: tuple[int, ...] = ()
    """Which units, for variable='units'."""
    latents: tuple[int, ...] = ()
    """Which latents, for variable='latents'."""
    position: int | None = None
    """Intervene at this position only (second axis of a sample's activation); None: at all of them."""
    kind: Intervention = "interpolate"
    """interpolate to the source's value, do (one value for all), or add."""
    doses: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """How far to the source, the values set, or what is added; rising. (0, 1) is the plain swap."""
    control: bool = True
    """Compare with a push of the same size in a random direction: twice the cost. Otherwise the null is 0."""

    def __post_init__(self) -> None:
        PairedConfig.__post_init__(self)
        for name, value, known in (("variable", self.variable, Part), ("kind", self.kind, Intervention)):
            if value not in get_args(known):
                raise ConfigurationError(f"{name} must be one of {', '.join(get_args(known))}. Got {value!r}.")
        for name, chosen in (("units", self.units), ("latents", self.latents)):
            if (self.variable == name) != bool(chosen):
                raise ConfigurationError(
                    f"{name} must be given for variable={name!r}, and only then. "
                    f"Got {chosen} for variable={self.variable!r}."
                )
        if len(self.doses) < 2 or not np.isfinite(self.doses).all() or (np.diff(self.doses) <= 0).any():
            raise ConfigurationError(f"doses must be at least 2 finite numbers that rise. Got {self.doses}.")


@dataclass(frozen=True, slots=True)
class Counterfactual(Result):
    """What the answers would be, had the variable other values."""

    technique: ClassVar[str] = "counterfactual"
    evidence: ClassVar[str] = (
        "Interval: bootstrap over samples. Null: a push of the same size in a random direction of the site, for every "
        "sample and dose; no effect, without control. p: sign flips of own less null, two-sided."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Curve(
            y=("response",),
            x="dose",
            low="low",
            high="high",
            null="null",
            title="What the answer would be (dashed: a random push of the same size)",
            x_label="value of the intervention",
            y_label="metric",
        ),
        Histogram(
            values="individual_effect",
            title="The effect on each sample",
            x_label="metric at the last dose less that at the first",
        ),
    )

    average_effect: Estimate
    """Mean metric at the last dose less that at the first: the average treatment effect."""
    slope: Estimate
    """Change of the metric per unit of dose, least squares over all doses."""
    dose: Float[np.ndarray, "dose"]
    response: Float[np.ndarray, "dose"]
    low: Float[np.ndarray, "dose"]
    high: Float[np.ndarray, "dose"]
    null: Float[np.ndarray, "dose"]
    """Mean metric under the control; that of the intact model, without."""
    individual_effect: Float[np.ndarray, "sample"]
    spread: float
    """Standard deviation of the individual effects: 0 where every sample responds alike."""
    opposite_share: float
    """Share of the samples whose effect has the other sign than the average."""
    linearity: float
    """R^2 of the mean response against a line in the dose. NaN if nothing moves."""
    intact: float
    """Mean metric of the intact model."""
    n_samples: int

    def reading(self) -> str:
        """Say what setting the variable does to the answer, on average and how differently."""
        effect = self.average_effect
        rival = "a random push of the same size" if effect.null else "nothing"
        if effect.p_value > ALPHA or effect.low <= effect.null <= effect.high:
            return (
                f"Setting the variable from {self.dose[0]:g} to {self.dose[-1]:g} moves the metric by {effect}: not "
                f"distinguishable from {rival}."
            )
        return (
            f"Setting the variable from {self.dose[0]:g} to {self.dose[-1]:g} moves the metric by {effect.value:.3g} "
            f"[{effect.low:.3g}, {effect.high:.3g}] on average, against {effect.null:.3g} by {rival}. "
            f"Samples differ by {self.spread:.3g} (standard deviation), and {self.opposite_share:.0%} of them move the "
            f"other way; a straight line in the dose explains {self.linearity:.0%} of the mean response."
        )


def counterfactual(
    model: nn.Module,
    inputs: Num[np.ndarray, "sample ..."],
    source: Num[np.ndarray, "sample ..."] | None = None,
    target: Int[np.ndarray, "sample"] | None = None,
    foil: Int[np.ndarray, "sample"] | None = None,
    vector: Float[np.ndarray, "unit"] | None = None,
    dictionary: Codes | None = None,
    *,
    config: CounterfactualConfig = CounterfactualConfig(),
) -> Counterfactual:
    """Measure what the answers would be, had a variable inside the model another value.

    Use it for what-if questions about one variable: swap it with that of a paired input, move it there step by step, or
    set it to values of your choice. The effect is what follows inside this model. A value that no input produces (a
    large do, a swap of half an activation) may put the rest of the model where it never is; compare with the control,
    which pushes the activation as far in a random direction.

    Parameters
    ----------
    model
        Any module; run in eval mode, and left as it was.
    inputs
        What happened, samples first, passed to `model` as its only argument. At least 2, better 50.
    source
        What might have happened, row by row: where the variable's other value comes from, when interpolating.
    target
        The right answer, as a class. Needed unless the metric is kl or distance.
    foil
        The answer it is compared with, for the logit difference; otherwise the mean of all others.
    vector
        The direction whose coordinate is the variable; of any length, which is divided out.
    dictionary
        Whose latents are the variable: trained on the site.
    config
        Site, variable, intervention, doses, metric, and memory.

    Returns
    -------
    Counterfactual
        Average effect and slope with interval and null, the response at every dose, the effect on every sample.

    Raises
    ------
    ShapeError
        If the arrays do not fit together, there are fewer than 2 samples, the vector or the dictionary does not
        have the site's units, or the output is not (sample[, position], class).
    ConfigurationError
        If the source, vector or dictionary that the variable or the intervention needs is missing, a unit or latent
        does not exist, the site is a glob of several, the metric needs a target, or a target is not a class.
    DegenerateInputError
        If inputs or outputs are not finite, or the vector is 0.
    NotFoundError
        If the model has no such site, or it cannot be patched.
    MemoryBudgetError
        If a pass does not fit in memory.

    Notes
    -----
    In a linear structural model do(z = a) gives a line in a whose slope is the total effect of z on the answer, for
    every sample. Latents are set by what the decoder makes of their change; where features overlap, encoding the result
    again may give other codes.

    References
    ----------
    [@pearl2009]
    [@geiger2021]

    Examples
    --------
    >>> from mechint_core.random import generator
    >>> from mechint_core.synthetic.causal_networks import ConceptNetwork
    >>> model, draws = ConceptNetwork(), generator(0, "example")  # the second logit less the first is 2 k . h
    >>> inputs, target = draws.normal(size=(20, 16)), np.ones(20, dtype=int)
    >>> config = CounterfactualConfig(site="hidden", variable="direction", kind="do", doses=(-1.0, 1.0))
    >>> found = counterfactual(model, inputs, target=target, vector=model.concept, config=config)
    >>> round(found.average_effect.value, 6), round(found.spread, 6)  # had k . h been 1 for all, and not -1
    (4.0, 0.0)
    """
    given = own_pairs(inputs, target, foil, config.metric)
    others = None if config.kind != "interpolate" else _checked_source(inputs, source)
    with inference(model), memory_remedy(f"Use batch_rows below {config.batch_rows}, or a smaller cache_bytes."):
        few = samples_to(to_model(inputs[:2], model), config.sample_axis)
        found = find_site(model, few, config.site, sample_axis=config.sample_axis, position=config.position)
        runs = PairRuns(model=model, config=config, sites=found.sites, bytes_per_row=found.bytes_per_row)
        intact, scores, control = _responses(runs, given, others, _variable(vector, dictionary, config), config)
    return _result(intact, scores, control, config)


def _checked_source(inputs: np.ndarray, source: np.ndarray | None) -> np.ndarray:
    if source is None:
        raise ConfigurationError("kind='interpolate' needs a source. Pass one, or use kind='do' or 'add'.")
    if source.shape != inputs.shape:
        raise ShapeError(f"source must have the shape of inputs, {inputs.shape}, row by row. Got {source.shape}.")
    return own_pairs(source, None, None, "distance").clean


def _variable(vector: np.ndarray | None, dictionary: Codes | None, config: CounterfactualConfig) -> Variable:
    if config.variable == "direction":
        if vector is None:
            raise ConfigurationError("variable='direction' needs a vector. Pass one.")
        return Coordinate.along(torch.from_numpy(np.asarray(vector, dtype=np.float64)))
    if config.variable == "latents":
        if dictionary is None:
            raise ConfigurationError("variable='latents' needs a dictionary. Pass one.")
        n_latents = len(dictionary.W_dec)
        if min(config.latents) < 0 or max(config.latents) >= n_latents:
            raise ConfigurationError(f"latents must lie in 0...{n_latents - 1}. Got {config.latents}.")
        return LatentCodes(dictionary, config.latents)
    return Units(config.units or None)


def _responses(
    runs: PairRuns,
    inputs: PromptPairs,
    source: np.ndarray | None,
    variable: Variable,
    config: CounterfactualConfig,
) -> tuple[Float[np.ndarray, "sample"], Float[np.ndarray, "dose sample"], Float[np.ndarray, "dose sample"] | None]:
    """Return the metric of the intact model, and of every sample at every dose: its own, and displaced as far."""
    (site,) = runs.sites
    draws = generator(config.seed, "counterfactual", "control")

    def experiments(block: Block) -> list[Sequence[Edit]]:
        donor = None if source is None else runs.run(source[block.rows], runs.sites)[1][site]
        own = [Intervene(site, variable, config.kind, dose, donor, config.position) for dose in config.doses]
        made: list[Sequence[Edit]] = [[one] for one in own]
        if config.control:
            aside = random_directions(block.base_activations[site], draws)
            made += [[Displaced(one, aside)] for one in own]
        return made

    intact, found = np.empty(len(inputs)), list[np.ndarray]()
    for block in intact_blocks(runs, inputs, caches=3):
        intact[block.rows] = block.clean
        found.append(runs.score_experiments(block, experiments(block)))
    own, control = np.split(np.concatenate(found, axis=1), [len(config.doses)])
    return intact, own, control if config.control else None


def _result(
    intact: Float[np.ndarray, "sample"],
    scores: Float[np.ndarray, "dose sample"],
    control: Float[np.ndarray, "dose sample"] | None,
    config: CounterfactualConfig,
) -> Counterfactual:
    dose, scale = np.array(config.doses, dtype=np.float64), float(np.abs(scores).mean())
    lever = (dose - dose.mean()) / np.square(dose - dose.mean()).sum()
    response = mean_effects(scores, config=config, scale=scale)

    def one(weights: Float[np.ndarray, "dose"]) -> Estimate:
        null = None if control is None else weights[None] @ control
        return mean_effects(weights[None] @ scores, null, config=config, scale=scale * float(np.abs(weights).sum()))[0]

    effect = scores[-1] - scores[0]
    moves = np.ptp(response.value) > ROUNDING * scale
    return Counterfactual(
        average_effect=one(np.array([-1.0, *[0.0] * (len(dose) - 2), 1.0])),
        slope=one(lever),
        dose=dose,
        response=response.value,
        low=response.low,
        high=response.high,
        null=np.full(len(dose), intact.mean()) if control is None else control.mean(axis=1),
        individual_effect=effect,
        spread=float(effect.std()),
        opposite_share=float((effect * effect.mean() < 0).mean()),
        linearity=float(np.corrcoef(dose, response.value)[0, 1] ** 2) if moves else NAN,
        intact=float(intact.mean()),
        n_samples=len(intact),
    )
