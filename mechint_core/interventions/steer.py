"""Add a vector to what a site computes, and see how the answer follows, and what else changes.

    x  <-  x + d s v / |v|          s = standard deviation of the activations along v, d = dose

    response_d    = mean_i m_i(d)                                         the metric at each dose
    slope         = mean_i sum_d (d - mean d) m_i(d) / sum_d (d - mean d)^2    metric per dose
    side_effect_d = mean_j KL(p_j || p_j(d))                              on inputs that steering should leave alone

Source: [@turner2023], [@rimsky2024]; the latent of a dictionary: [@templeton2024].
Cost: (2 + (1 + R) D) forwards of all inputs for D doses and R control vectors, (1 + 6 D) of the neutral inputs, and
one of the examples.
Chunked over: samples.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import nn

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Curve, Figure
from mechint_core.interventions._steering_vectors import (
    BY_GROUPS,
    Source,
    Vectors,
    group_vectors,
    latent_vector,
    random_controls,
)
from mechint_core.kernels.resampling import p_value
from mechint_core.models import inference, memory_remedy, samples_to, to_model
from mechint_core.patching import (
    ROUNDING,
    Codes,
    PairedConfig,
    PairRuns,
    PromptPairs,
    Shift,
    find_site,
    intact_blocks,
    mean_effects,
    own_pairs,
)
from mechint_core.result import NAN, Estimate, Result

DoseUnit = Literal["deviation", "vector"]

ALPHA: Final = 0.05
"""A vector steers if the p-value of its slope is at most this and the slope's interval does not hold 0."""
SIDE_CONTROLS: Final = 5
"""Control vectors that are tried on the neutral inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SteerConfig(PairedConfig):
    """Where and with what to steer, and how strongly."""

    site: str = ""
    """Name of the module whose output is steered."""
    source: Source = "mean_difference"
    """Where the vector is from: mean_difference or probe of two groups of examples, latent of a dictionary, given."""
    latent: int = 0
    """Which latent of the dictionary."""
    position: int | None = None
    """Steer this position only (second axis of a sample's activation); None steers all of them."""
    doses: tuple[float, ...] = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
    """Strengths, rising."""
    dose_unit: DoseUnit = "deviation"
    """deviation: of the activations along the vector; vector: multiples of the vector as it is."""
    shrinkage: float = 0.1
    """Of the probe: variance added in every direction, as a share of the mean variance of a unit."""
    n_random: int = 39
    """Control vectors; 39 allow p = 0.025."""

    def __post_init__(self) -> None:
        PairedConfig.__post_init__(self)
        if self.source not in get_args(Source):
            raise ConfigurationError(f"source must be one of {', '.join(get_args(Source))}. Got {self.source!r}.")
        if self.dose_unit not in get_args(DoseUnit):
            raise ConfigurationError(f"dose_unit must be deviation or vector. Got {self.dose_unit!r}.")
        if len(self.doses) < 2 or not np.isfinite(self.doses).all() or (np.diff(self.doses) <= 0).any():
            raise ConfigurationError(f"doses must be at least 2 finite numbers that rise. Got {self.doses}.")
        if not self.shrinkage > 0 or self.n_random < 1:
            raise ConfigurationError(
                f"shrinkage must be above 0 and n_random at least 1. Got {self.shrinkage} and {self.n_random}."
            )


@dataclass(frozen=True, slots=True)
class Steering(Result):
    """How the answer follows a vector added at a site, and what else does."""

    technique: ClassVar[str] = "steer"
    evidence: ClassVar[str] = (
        "Interval: bootstrap over inputs, the vector fixed. Null: vectors of the same length, made from the same "
        "examples with shuffled labels, or, for a latent or a given vector, in random directions. p: share of them "
        "whose slope is as steep, either way."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Curve(
            y=("response",),
            x="dose",
            low="low",
            high="high",
            null="null",
            title="How the answer follows the dose (dashed: control vectors)",
            x_label="dose",
            y_label="metric",
        ),
        Curve(
            y=("side_effect",),
            x="dose",
            low="side_low",
            high="side_high",
            null="side_null",
            title="How far neutral answers move (dashed: control vectors)",
            x_label="dose",
            y_label="KL from the unsteered answer, nats",
        ),
    )

    slope: Estimate
    """Change of the metric per dose."""
    largest_change: Estimate
    """Mean metric at the last dose less that at the first. Null: mean of the control vectors."""
    side_effect_at_last: Estimate
    """KL on neutral inputs at the last dose, nats (mean squared distance for a metric without classes)."""
    dose: Float[np.ndarray, "dose"]
    response: Float[np.ndarray, "dose"]
    """Mean metric."""
    low: Float[np.ndarray, "dose"]
    high: Float[np.ndarray, "dose"]
    null: Float[np.ndarray, "dose"]
    """Mean metric under the control vectors."""
    side_effect: Float[np.ndarray, "dose"]
    side_low: Float[np.ndarray, "dose"]
    side_high: Float[np.ndarray, "dose"]
    side_null: Float[np.ndarray, "dose"]
    control_slope: Float[np.ndarray, "control"]
    vector: Float[np.ndarray, "unit"]
    """What dose 1 adds."""
    linearity: float
    """R^2 of the mean response against a line in the dose: 1 until the answer saturates. NaN if nothing moves."""
    deviation: float
    """Standard deviation of the activations along the vector, over inputs (and positions)."""
    length: float
    """Of the vector before it is scaled to a dose."""
    n_samples: int
    n_shared: int
    """Inputs that are among the examples which made the vector: the response is optimistic where it is not 0."""

    def reading(self) -> str:
        """Say whether the vector steers the answer, how strongly, and at what price."""
        steers = self.slope.p_value <= ALPHA and not self.slope.low <= 0 <= self.slope.high
        verdict = (
            f"more than control vectors of its length do (p = {self.slope.p_value:.2g})"
            if steers
            else f"not distinguishable from control vectors of its length (p = {self.slope.p_value:.2g})"
        )
        leak = f" {self.n_shared} inputs were among the examples that made it." if self.n_shared else ""
        return (
            f"Each dose of the vector moves the metric by {self.slope.value:.3g} [{self.slope.low:.3g}, "
            f"{self.slope.high:.3g}], {verdict}. At dose {self.dose[-1]:g} neutral answers move by "
            f"{self.side_effect_at_last.value:.3g}, against {self.side_effect_at_last.null:.3g} under controls.{leak}"
        )


def steer(
    model: nn.Module,
    inputs: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample"] | None = None,
    foil: Int[np.ndarray, "sample"] | None = None,
    examples: Num[np.ndarray, "row ..."] | None = None,
    label: Int[np.ndarray, "row"] | None = None,
    neutral: Num[np.ndarray, "other_sample ..."] | None = None,
    vector: Float[np.ndarray, "unit"] | None = None,
    dictionary: Codes | None = None,
    *,
    config: SteerConfig = SteerConfig(),
) -> Steering:
    """Measure how a model's answers follow a vector added to what one site computes.

    Use it to test that a direction means something to the model, or to choose a dose. A slope shows that the answer can
    be pushed along this direction, not that the model itself uses it: patch or ablate it for that. Examples that made
    the vector must not be among the inputs it is tried on; shared ones are counted.

    Parameters
    ----------
    model
        Any module; run in eval mode, and left as it was.
    inputs
        What is steered, samples first, passed to `model` as its only argument. At least 2, better 50.
    target
        The class that steering is to make more likely. Needed unless the metric is kl or distance.
    foil
        The class it is compared with, for the logit difference; otherwise the mean of all others.
    examples
        Inputs of two groups, for the sources mean_difference and probe.
    label
        The group of every example; the vector leads from the smaller label to the larger one.
    neutral
        Inputs whose answers should stay. By default `inputs`, whose answers should not.
    vector
        For the source given: one number per unit of the site.
    dictionary
        For the source latent: trained on the site.
    config
        Site, source, doses, metric, and memory.

    Returns
    -------
    Steering
        Slope (metric per dose) with interval and null, the response and the side effect at every dose, the vector.

    Raises
    ------
    ShapeError
        If the arrays do not fit together, there are fewer than 2 samples, the vector does not have the site's units,
        or the output is not (sample[, position], class).
    ConfigurationError
        If what the source or the metric needs is missing, the latent does not exist, the site is a glob of
        several, or a target is not a class.
    DegenerateInputError
        If inputs or outputs are not finite, there are not two groups of two, or the vector is 0 or nothing varies
        along it.
    NotFoundError
        If the model has no such site, or it cannot be steered.
    MemoryBudgetError
        If a pass does not fit in memory.

    Notes
    -----
    Where a linear read-out w follows the site, the slope is w . v, v being what dose 1 adds, exactly. Side effects are
    KL, or the mean squared distance where the metric is that or one's own.

    References
    ----------
    [@turner2023]
    [@rimsky2024]
    [@templeton2024]

    Examples
    --------
    >>> from mechint_core.random import generator
    >>> from mechint_core.synthetic.causal_networks import ConceptNetwork
    >>> model, draws = ConceptNetwork(), generator(0, "example")  # the second logit less the first is 2 k . h
    >>> inputs, target = draws.normal(size=(20, 16)), np.ones(20, dtype=int)
    >>> config = SteerConfig(site="hidden", source="given", dose_unit="vector")
    >>> round(steer(model, inputs, target, vector=0.5 * model.concept, config=config).slope.value, 6)
    1.0
    """
    given = own_pairs(inputs, target, foil, config.metric)
    quiet = replace(config, metric="distance" if ":" in config.metric or config.metric == "distance" else "kl")
    apart = own_pairs(inputs if neutral is None else neutral, None, None, quiet.metric)
    with inference(model), memory_remedy(f"Use batch_rows below {config.batch_rows}, or a smaller cache_bytes."):
        few = samples_to(to_model(inputs[:2], model), config.sample_axis)
        found = find_site(model, few, config.site, sample_axis=config.sample_axis, position=config.position)
        runs = PairRuns(model=model, config=config, sites=found.sites, bytes_per_row=found.bytes_per_row)
        vectors = _vectors(runs, examples, label, vector, dictionary, config)
        deviation, length = _deviation(runs, given, vectors[0], config), float(np.linalg.norm(vectors[0]))
        vectors *= deviation / length if config.dose_unit == "deviation" else 1.0
        scores = _responses(runs, given, vectors, config.doses, config.position)
        few_vectors, quietly = vectors[: 1 + SIDE_CONTROLS], replace(runs, config=quiet)
        moved = _responses(quietly, apart, few_vectors, config.doses, config.position)
    shared = 0 if examples is None or config.source not in BY_GROUPS else _n_shared(inputs, examples)
    return _result(scores, moved, shared, vectors[0], deviation, length, config)


def _vectors(
    runs: PairRuns,
    examples: np.ndarray | None,
    label: np.ndarray | None,
    vector: np.ndarray | None,
    dictionary: Codes | None,
    config: SteerConfig,
) -> Vectors:
    if config.source in BY_GROUPS:
        if examples is None or label is None:
            raise ConfigurationError(f"source={config.source!r} needs examples and the label of each. Pass both.")
        shrinkage = config.shrinkage if config.source == "probe" else None
        return group_vectors(
            runs, examples, label, position=config.position, shrinkage=shrinkage, n_controls=config.n_random
        )
    if config.source == "latent":
        vector = latent_vector(dictionary, config.latent)
    if vector is None:
        raise ConfigurationError("source='given' needs a vector. Pass one, or use another source.")
    return random_controls(vector, n_controls=config.n_random, seed=config.seed)


def _deviation(runs: PairRuns, inputs: PromptPairs, vector: Float[np.ndarray, "unit"], config: SteerConfig) -> float:
    """Return the standard deviation of the activations along the vector."""
    (site,) = runs.sites
    v = torch.from_numpy(vector / np.linalg.norm(vector))
    found: list[np.ndarray] = []
    for block in intact_blocks(runs, inputs):
        x = block.base_activations[site].to("cpu", torch.float64)
        if x.shape[-1] != len(v):
            raise ShapeError(f"the vector must have the site's {x.shape[-1]} units. Got {len(v)}.")
        found.append((x if config.position is None else x[:, config.position]).matmul(v).numpy())
    deviation = float(np.concatenate(found).std())
    if deviation == 0:
        raise DegenerateInputError(
            f"activations at {site!r} must vary along the vector. Got the same value for all inputs."
        )
    return deviation


def _responses(
    runs: PairRuns, inputs: PromptPairs, vectors: Vectors, doses: tuple[float, ...], position: int | None
) -> Float[np.ndarray, "control dose sample"]:
    """Return the metric of every input under every vector at every dose."""
    (site,) = runs.sites
    experiments = [[Shift(site, torch.from_numpy(dose * vector), position)] for vector in vectors for dose in doses]
    found = [runs.score_experiments(block, experiments) for block in intact_blocks(runs, inputs)]
    return np.concatenate(found, axis=1).reshape(len(vectors), len(doses), -1)


def _result(
    scores: Float[np.ndarray, "control dose sample"],
    moved: Float[np.ndarray, "row dose other_sample"],
    n_shared: int,
    vector: Float[np.ndarray, "unit"],
    deviation: float,
    length: float,
    config: SteerConfig,
) -> Steering:
    dose, scale = np.array(config.doses, dtype=np.float64), float(np.abs(scores[0]).mean())
    lever = (dose - dose.mean()) / np.square(dose - dose.mean()).sum()
    slopes = np.einsum("d,vds->vs", lever, scores)
    control_slope = slopes[1:].mean(axis=1)
    change = scores[:, -1] - scores[:, 0]
    response = mean_effects(scores[0], config=config, scale=scale)
    side = mean_effects(moved[0], config=config, scale=scale)
    side_null = moved[1:].mean(axis=(0, 2))
    return Steering(
        slope=_against(slopes, config, scale),
        largest_change=_against(change, config, scale),
        side_effect_at_last=Estimate(
            *(float(each[-1]) for each in (side.value, side.low, side.high, side_null)), level=config.level
        ),
        dose=dose,
        response=response.value,
        low=response.low,
        high=response.high,
        null=scores[1:].mean(axis=(0, 2)),
        side_effect=side.value,
        side_low=side.low,
        side_high=side.high,
        side_null=side_null,
        control_slope=control_slope,
        vector=vector,
        linearity=_linearity(dose, response.value),
        deviation=deviation,
        length=length,
        n_samples=scores.shape[2],
        n_shared=n_shared,
    )


def _against(effects: Float[np.ndarray, "control sample"], config: SteerConfig, scale: float) -> Estimate:
    """Return the mean effect of the vector, with the share of control vectors whose effect is as large, either way."""
    own, controls = mean_effects(effects[:1], config=config, scale=scale)[0], effects[1:].mean(axis=1)
    rounding = ROUNDING * scale
    p = p_value(abs(own.value), np.abs(controls)) if abs(own.value) > rounding else 1.0
    return replace(own, null=float(controls.mean()), p_value=p)


def _linearity(dose: Float[np.ndarray, "dose"], response: Float[np.ndarray, "dose"]) -> float:
    """Return the squared correlation of response and dose."""
    if np.ptp(response) <= ROUNDING * np.abs(response).max():
        return NAN
    return float(np.corrcoef(dose, response)[0, 1] ** 2)


def _n_shared(inputs: np.ndarray, examples: np.ndarray) -> int:
    known = {row.tobytes() for row in np.ascontiguousarray(examples)}
    return sum(row.tobytes() in known for row in np.ascontiguousarray(inputs, dtype=examples.dtype))
