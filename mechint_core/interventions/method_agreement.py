"""Whether several ways to measure what a part of a model does say the same.

    denoising      (m(corrupted with the clean part) - m(corrupted)) / d          exact: is it sufficient?
    noising        (m(clean) - m(clean with the corrupted part)) / d              exact: is it necessary?
    attribution    g . (clean part - corrupted part) / d                          g at the corrupted run
    integrated     the same, g averaged over the way of this part
    zero, mean     (m(clean) - m(clean with the part ablated)) / d                exact

d = mean m(clean) - m(corrupted), so that a part that carries the answer is positive for all of them, whatever the
metric. Each method gives every part its mean over prompt pairs, and methods are compared over the parts.

Source: [@heimersheim2024], [@nanda2023b], [@miller2024].
Cost: 6 + 4 P forwards and 1 + S n_steps backwards of all pairs, for P parts at S sites.
Chunked over: prompt pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, ClassVar, Final, Literal, get_args

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.stats import rankdata
from torch import nn

from mechint_core.errors import ConfigurationError, DegenerateInputError
from mechint_core.figure import Figure, Matrix
from mechint_core.interventions._ablation import ablated_blocks
from mechint_core.interventions._attributed_parts import part_estimates
from mechint_core.kernels.resampling import estimate, p_value, percentile_interval
from mechint_core.models import differentiation, inference, memory_remedy, samples_to, to_model
from mechint_core.patching import (
    ROUNDING,
    Component,
    Components,
    Granularity,
    PairedConfig,
    PairRuns,
    PairScores,
    PromptPairs,
    Write,
    check_components,
    find_components,
    gradient_blocks,
    own_pairs,
    recovery_of,
    resampling_weights,
)
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

Method = Literal["denoising", "noising", "attribution", "integrated", "zero", "mean"]
METHODS: Final = get_args(Method)
ALPHA: Final = 0.05
FEWEST: Final = 3
"""Parts that a correlation needs: through two points there is always a line."""

Effects = Float[np.ndarray, "part sample"]
Statistics = Float[np.ndarray, "_ method other_method"]
"""Pearson's correlation, Spearman's, and the share of equal signs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodAgreementConfig(PairedConfig):
    """Which methods to compare, on which parts."""

    sites: tuple[str, ...] = ("*",)
    """Globs over module names. Modules that do not give one activation per sample are left out and counted."""
    by: Granularity = "site"
    """Parts: site, head, position or unit."""
    methods: tuple[Method, ...] = METHODS
    """At least two of denoising, noising, attribution, integrated, zero and mean."""
    n_steps: int = 10
    """Midpoints of the integrated way."""

    def __post_init__(self) -> None:
        PairedConfig.__post_init__(self)
        check_components(self.by, sites=self.sites)
        unknown = set(self.methods) - set(METHODS)
        if unknown or len(self.methods) < 2 or len(set(self.methods)) < len(self.methods):
            raise ConfigurationError(
                f"methods must be at least two different ones of {', '.join(METHODS)}. Got {self.methods!r}."
            )
        if self.n_steps < 1:
            raise ConfigurationError(f"n_steps must be at least 1. Got {self.n_steps}.")


@dataclass(frozen=True, slots=True)
class MethodAgreement(Result):
    """How alike the effects are that several methods give the same parts."""

    technique: ClassVar[str] = "method_agreement"
    evidence: ClassVar[str] = (
        "Intervals: bootstrap over prompt pairs, the same draws for all methods. Null: the parts permuted."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Matrix(
            values="rank_correlation",
            title="Whether two methods rank the parts alike",
            x="method",
            y="method",
            value_label="Spearman correlation over parts",
            diverging=True,
        ),
        Matrix(
            values="sign_agreement",
            title="Parts to which two methods give the same sign",
            x="method",
            y="method",
            value_label="share of parts",
        ),
        Matrix(
            values="effect",
            title="What each method says of each part",
            x="part",
            y="method",
            value_label="share of clean minus corrupted",
            diverging=True,
        ),
    )

    agreement: Estimate
    """Mean Spearman correlation over parts of two methods."""
    difference: Estimate
    """Mean metric of the clean less the corrupted runs: the effect that all others are a share of. Null: 0."""
    defined: bool
    """False, and everything but `difference` NaN, if clean and corrupted do not differ beyond noise."""
    n_pairs: int
    n_parts: int
    n_skipped: int
    """Modules that the globs match but that cannot be patched."""
    method: Annotated[tuple[str, ...], "method"]
    part: Annotated[tuple[str, ...], "part"]
    effect: Float[np.ndarray, "method part"]
    """Positive where the part carries the answer; 1 is all of it."""
    correlation: Float[np.ndarray, "method other_method"]
    """Pearson's; NaN if a method says the same of all parts."""
    correlation_low: Float[np.ndarray, "method other_method"]
    correlation_high: Float[np.ndarray, "method other_method"]
    rank_correlation: Float[np.ndarray, "method other_method"]
    rank_correlation_low: Float[np.ndarray, "method other_method"]
    rank_correlation_high: Float[np.ndarray, "method other_method"]
    p_value: Float[np.ndarray, "method other_method"]
    """That permuted parts correlate as much, by ranks; one-sided, not adjusted. NaN on the diagonal."""
    sign_agreement: Float[np.ndarray, "method other_method"]
    """Share of parts with equal signs; two effects of 0 agree."""

    def reading(self) -> str:
        """Name the two methods that agree best, and the two that agree least."""
        if not self.defined:
            return (
                f"Clean and corrupted runs differ by {self.difference}, which is within noise: "
                "there is no effect that methods could agree on."
            )
        if np.isnan(self.agreement.value):
            return f"Of any two methods one gives all {self.n_parts} parts the same effect: they cannot be compared."
        if not self.agreement.p_value <= ALPHA:
            return (
                f"Agreement of the {len(self.method)} methods about the {self.n_parts} parts cannot be told from "
                f"chance: mean Spearman correlation {self.agreement.value:.2f} (p = {self.agreement.p_value:.2g})."
            )
        pairs = [pair for pair in combinations(range(len(self.method)), 2) if np.isfinite(self.rank_correlation[pair])]
        best, least = (choose(pairs, key=lambda pair: self.rank_correlation[pair]) for choose in (max, min))
        return (
            f"Two methods rank the {self.n_parts} parts with a Spearman correlation of {self.agreement.value:.2f} "
            f"[{self.agreement.low:.2f}, {self.agreement.high:.2f}] on average: most alike {self._told(best)}, least "
            f"{self._told(least)}."
        )

    def _told(self, pair: tuple[int, int]) -> str:
        low, high = self.rank_correlation_low[pair], self.rank_correlation_high[pair]
        one, other = (self.method[each] for each in pair)
        return f"{one} and {other} ({self.rank_correlation[pair]:.2f} [{low:.2f}, {high:.2f}])"


def method_agreement(
    model: nn.Module,
    clean: Num[np.ndarray, "sample ..."],
    corrupted: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample"] | None = None,
    corrupted_target: Int[np.ndarray, "sample"] | None = None,
    *,
    config: MethodAgreementConfig = MethodAgreementConfig(),
) -> MethodAgreement:
    """Find out whether exact patching, its approximations and ablation tell the same story of a model.

    Use it before trusting one of them on a model of this kind. Methods may disagree without any being wrong: noising
    does not see what has a backup, denoising not what needs another part beside it, and ablation also removes what
    the two prompts have in common. That they agree is not proof either, for all of them take one part at a time.

    Parameters
    ----------
    model
        Any differentiable module; run in eval mode, and left as it was.
    clean
        Inputs with the right answer, samples first, passed to `model` as its only argument.
    corrupted
        The same inputs with what matters changed; row i belongs to clean row i. At least 2 pairs, better 50.
    target
        The clean prompt's answer, as a class. Needed unless the metric is kl or distance.
    corrupted_target
        The corrupted prompt's answer, for the logit difference.
    config
        Methods, parts, metric.

    Returns
    -------
    MethodAgreement
        Correlations over parts in [-1, 1], 1 if two methods order the parts alike, with intervals over pairs; shares
        of equal signs in [0, 1]; every method's effect of every part.

    Raises
    ------
    ShapeError
        If the arrays do not pair up, there are fewer than 2 pairs, or the output is not (sample[, position], class).
    ConfigurationError
        If the metric needs a target and there is none, or a target is not a class of the output.
    DegenerateInputError
        If there are fewer than 3 parts, or the inputs or the model's outputs are not finite.
    NotFoundError
        If a glob matches no module that can be patched.
    MemoryBudgetError
        If a pass does not fit in memory.

    Notes
    -----
    Mean effects within rounding of float32 count as 0. With kl or distance, the gradient at the corrupted run is of the
    distance from the clean one. Undefined (NaN, `defined` False) where the interval of d holds 0.

    References
    ----------
    [@heimersheim2024]
    [@nanda2023b]
    [@miller2024]

    Examples
    --------
    >>> import torch
    >>> from mechint_core.synthetic.linear_network import LinearNetwork
    >>> draws = generator(0, "example")
    >>> clean, corrupted = draws.normal(size=(40, 8)), draws.normal(size=(40, 8))
    >>> model = LinearNetwork((3.0, 1.0, 2.0))  # three routes, about which all patches agree
    >>> answer = model(torch.from_numpy(clean)).argmax(dim=1).numpy()
    >>> config = MethodAgreementConfig(sites=("routes.*",), methods=("denoising", "noising", "attribution"))
    >>> method_agreement(model, clean, corrupted, answer, config=config).rank_correlation.round(6).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    pairs = PromptPairs.of(clean, corrupted, target, corrupted_target, config.metric)
    with inference(model), memory_remedy(f"Use batch_rows below {config.batch_rows}, or a smaller cache_bytes."):
        few = samples_to(to_model(clean[:2], model), config.sample_axis)
        found = find_components(model, few, config.sites, by=config.by, sample_axis=config.sample_axis, heads_only=True)
        if len(found.parts) < FEWEST:
            raise DegenerateInputError(f"methods are compared over at least {FEWEST} parts. Got {len(found.parts)}.")
    runs = {
        noising: PairRuns(
            model=model, config=config, sites=found.sites, bytes_per_row=found.bytes_per_row, noising=noising
        )
        for noising in (False, True)
    }
    with memory_remedy(f"Use batch_rows below {config.batch_rows}, or a smaller cache_bytes."):
        effects = np.stack(
            [_effects(each, runs[each == "noising"], pairs, found.parts, config.n_steps) for each in config.methods]
        )
        with inference(model):
            ends = runs[False].score_parts(pairs, [])
    return _result(effects, ends, found, config)


def _effects(method: Method, runs: PairRuns, pairs: PromptPairs, parts: Sequence[Component], n_steps: int) -> Effects:
    """Return how much nearer to the clean score each part brings every pair, by one method."""
    if method in ("attribution", "integrated"):
        with differentiation(runs.model):
            return _estimated(runs, pairs, parts, n_steps if method == "integrated" else 0)
    with inference(runs.model):
        if method in ("zero", "mean"):
            return _ablated(runs, pairs, parts, method)
        scores = runs.score_parts(pairs, [(each.site, each.part) for each in parts])
    return scores.clean - scores.patched if runs.noising else scores.patched - scores.corrupted


def _estimated(runs: PairRuns, pairs: PromptPairs, parts: Sequence[Component], n_steps: int) -> Effects:
    effects = np.empty((len(parts), len(pairs)))
    for block in gradient_blocks(runs, pairs):
        effects[:, block.rows] = part_estimates(runs, block, parts, n_steps)
    return effects


def _ablated(
    runs: PairRuns, pairs: PromptPairs, parts: Sequence[Component], ablation: Literal["zero", "mean"]
) -> Effects:
    inputs = own_pairs(pairs.clean, pairs.target, pairs.foil, runs.config.metric)
    effects = np.empty((len(parts), len(pairs)))
    for block, donors in ablated_blocks(runs, inputs, ablation, None):
        scores = runs.score_experiments(block, [[Write(each.site, donors[each.site], each.part)] for each in parts])
        effects[:, block.rows] = block.clean - scores
    return effects


def _result(
    effects: Float[np.ndarray, "method part sample"],
    ends: PairScores,
    components: Components,
    config: MethodAgreementConfig,
) -> MethodAgreement:
    alone = PairScores(ends.clean, ends.corrupted, ends.clean[None])
    whole = recovery_of(alone, noising=False, n_draws=config.n_draws, level=config.level, seed=config.seed)
    rounding = ROUNDING * float(np.abs([ends.clean, ends.corrupted]).mean())
    means = np.where(np.abs(effects.mean(axis=2)) > rounding, effects.mean(axis=2), 0.0)
    value, bootstrap, null = _compared(effects, rounding, config)
    if not whole.defined:
        value, bootstrap, null = (np.full_like(each, NAN) for each in (value, bootstrap, null))
    bounds = np.apply_along_axis(percentile_interval, 0, bootstrap, config.level)
    return MethodAgreement(
        agreement=estimate(
            _mean_of_pairs(value[1]),
            bootstrap=np.array([_mean_of_pairs(each[1]) for each in bootstrap]),
            null=np.array([_mean_of_pairs(each[1]) for each in null]),
            level=config.level,
        ),
        difference=whole.difference,
        defined=whole.defined,
        n_pairs=len(ends.clean),
        n_parts=len(components.parts),
        n_skipped=components.n_skipped,
        method=config.methods,
        part=components.names,
        effect=means / whole.difference.value if whole.defined else np.full_like(means, NAN),
        correlation=value[0],
        correlation_low=bounds[0, 0],
        correlation_high=bounds[1, 0],
        rank_correlation=value[1],
        rank_correlation_low=bounds[0, 1],
        rank_correlation_high=bounds[1, 1],
        p_value=_p_values(value[1], null[:, 1]),
        sign_agreement=value[2],
    )


def _compared(
    effects: Float[np.ndarray, "method part sample"],
    rounding: float,
    config: MethodAgreementConfig,
) -> tuple[
    Statistics, Float[np.ndarray, "draw _ method other_method"], Float[np.ndarray, "draw _ method other_method"]
]:
    """Return the statistics, the same for pairs drawn again, and for permuted parts."""
    weights = resampling_weights(effects.shape[2], config.n_draws, config.seed)
    rng = generator(config.seed, "method_agreement", "permutation")
    means = effects.mean(axis=2)
    return (
        _statistics(means, rounding),
        np.array([_statistics(effects @ each, rounding) for each in weights]),
        np.array([_statistics(rng.permuted(means, axis=1), rounding) for _ in range(config.n_draws)]),
    )


def _statistics(means: Float[np.ndarray, "method part"], rounding: float) -> Statistics:
    """Correlate, having counted in roundings of float32: parts that differ by less are alike, and have no order."""
    counted = np.round(means / rounding) + 0.0 if rounding > 0 else means  # + 0.0: no effect is 0, not -0
    varied = np.where(np.ptp(counted, axis=1, keepdims=True) > 0, means, 0.0)
    signs = np.sign(counted)
    with np.errstate(divide="ignore", invalid="ignore"):  # a method that says the same of all parts: NaN
        return np.stack(
            [
                np.corrcoef(varied),
                np.corrcoef(rankdata(counted, axis=1)),
                (signs[:, None] == signs[None]).mean(axis=2),
            ]
        )


def _mean_of_pairs(matrix: Float[np.ndarray, "method other_method"]) -> float:
    pairs = matrix[np.triu_indices(len(matrix), 1)]
    return float(pairs[np.isfinite(pairs)].mean()) if np.isfinite(pairs).any() else NAN


def _p_values(
    value: Float[np.ndarray, "method other_method"], null: Float[np.ndarray, "draw method other_method"]
) -> Float[np.ndarray, "method other_method"]:
    made = np.full_like(value, NAN)
    for pair in combinations(range(len(value)), 2):
        made[pair] = made[pair[::-1]] = p_value(float(value[pair]), null[:, *pair])
    return made
