"""Explainable variance: how much of a channel's responses repeats, and so could be explained by any model.

    ceiling = S / (S + N <1/n>),    S, N: signal and noise power of the channel, n repetitions of a condition

is the largest R² a model can reach for responses averaged over repetitions, and its root the largest correlation. The
reliability of split halves, lengthened by Spearman-Brown, estimates the same number in another way.

Source: [@sahani2002], [@allen2022] (noise ceiling, ncsnr), [@spearman1910], [@schoppe2016].
Cost: repetitions x conditions x channels, times n_permutations; conditions x channels, times n_splits n_bootstrap.
Chunked over: nothing; the draws are made in pieces.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mechint_core.alignment._explainable import Repeated, half_correlations, half_means, lengthened, presence
from mechint_core.alignment._row_units import summarised
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Figure, Histogram, Scatter
from mechint_core.kernels.false_discovery import false_discovery_rate
from mechint_core.kernels.resampling import p_value
from mechint_core.parallel import map_parallel
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

LANES = 8
"""Pieces the draws are made in."""
ROUNDING = 1e-12
"""A channel that varies by less than this share of its size is constant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainableVarianceConfig:
    """How to estimate what repeats."""

    n_splits: int = 20
    """Random halves of the repetitions that reliability is averaged over."""
    n_bootstrap: int = 500
    """Bootstrap draws of conditions."""
    n_permutations: int = 500
    """Draws in which each repetition's conditions change places."""
    level: float = 0.95
    """Confidence of the intervals, and of what counts as reliable."""
    seed: int = 0
    """Names the draws and the halves."""

    def __post_init__(self) -> None:
        if self.n_splits < 1:
            raise ConfigurationError(f"n_splits must be at least 1. Got {self.n_splits}.")
        if min(self.n_bootstrap, self.n_permutations) < 0:
            raise ConfigurationError(
                f"n_bootstrap and n_permutations must be at least 0. Got {self.n_bootstrap} and {self.n_permutations}."
            )
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level must be between 0 and 1. Got {self.level}.")


@dataclass(frozen=True, slots=True)
class ExplainableVarianceResult(Result):
    """What repeats in each channel."""

    technique: ClassVar[str] = "explainable_variance"
    evidence: ClassVar[str] = (
        "The intervals are bootstraps over conditions; the null lets the conditions of each repetition change places."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Histogram(
            values="ceiling", title="How much of a channel's mean response repeats", x_label="share of its variance"
        ),
        Scatter(
            points="two_ways",
            title="Signal power across, split halves up: two estimates of the same share",
        ),
    )
    invariances: ClassVar[tuple[str, ...]] = ("channel scaling", "channel offset", "repetition permutation")
    """Changes of the responses that leave `explainable` as it is."""

    explainable: Estimate
    """Mean over channels of `ceiling`."""
    single: Estimate
    """Mean over channels of the same share for one repetition."""
    reliability: Estimate
    """Mean over channels of `split_half`."""
    n_channels: int
    n_conditions: int
    n_repetitions: int
    n_missing: int
    """Responses that are missing."""
    n_dropped: int
    """Conditions with fewer than two repetitions in a channel, summed over channels."""
    n_constant: int
    """Channels without a ceiling: constant, or with fewer than four conditions."""
    n_negative: int
    """Channels whose signal power is estimated below 0."""
    n_reliable: int
    """Channels that repeat above the null, at a false discovery rate of 1 - level."""
    ceiling: Float[np.ndarray, "channel"]
    """Largest R² for the mean over repetitions; not clipped. What `encoding_model` takes."""
    ceiling_low: Float[np.ndarray, "channel"]
    ceiling_high: Float[np.ndarray, "channel"]
    ceiling_error: Float[np.ndarray, "channel"]
    """Standard error."""
    correlation_ceiling: Float[np.ndarray, "channel"]
    """Largest correlation, the root of `ceiling`; 0 where that is below 0."""
    single_ceiling: Float[np.ndarray, "channel"]
    """Largest R² for one repetition."""
    split_half: Float[np.ndarray, "channel"]
    """Reliability of the mean over repetitions, from halves of them."""
    signal_power: Float[np.ndarray, "channel"]
    """Variance of the expected responses over conditions, in squared units of the responses; may be below 0."""
    noise_power: Float[np.ndarray, "channel"]
    """Variance of one repetition about the expected response."""
    ncsnr: Float[np.ndarray, "channel"]
    """Root of signal over noise power; 0 where the signal power is below 0."""
    p_values: Float[np.ndarray, "channel"]
    q_values: Float[np.ndarray, "channel"]
    """False discovery rate over channels."""
    two_ways: Float[np.ndarray, "channel coordinate"]
    """`ceiling` and `split_half`."""

    def reading(self) -> str:
        """Say how much could be explained, and in how many channels anything repeats."""
        found = self.explainable
        text = f"On average {found.value:.0%} of the variance of a channel's mean response repeats"
        if not math.isnan(found.low):
            text += f" [{found.low:.0%}, {found.high:.0%}]"
        if math.isnan(found.p_value):
            return f"{text}; no null was drawn, so nothing says what noise would give."
        if found.p_value > 1 - found.level:
            text += f": not distinguishable from noise (p = {found.p_value:.2g})"
        return f"{text}. {self.n_reliable} of {self.n_channels} channels repeat above the null."


def explainable_variance(
    responses: Float[np.ndarray, "repetition condition channel"],
    *,
    config: ExplainableVarianceConfig = ExplainableVarianceConfig(),
) -> ExplainableVarianceResult:
    """Ask how much of each channel's variance over conditions repeats, and so could be explained at all.

    Use it before any model is compared with recordings: a channel that does not repeat can confirm nothing. It assumes
    that repetitions differ by noise that is independent between them and about equally large in all conditions;
    adaptation or drift counts as noise, and noise that two repetitions share counts as signal.

    Parameters
    ----------
    responses
        In any unit. NaN is a repetition that is missing; conditions may differ in how many they have.
    config
        How many halves and draws.

    Returns
    -------
    ExplainableVarianceResult
        Shares of variance, at most 1; 0 on average for noise, so some are negative then.

    Raises
    ------
    ShapeError
        If `responses` is not (repetition, condition, channel) with at least 2 repetitions and 4 conditions.
    DegenerateInputError
        If a response is infinite, or no channel has four conditions with two repetitions and varies.

    Notes
    -----
    The halves have equally many repetitions of a condition; of an odd number one is left out, at random. Each null draw
    halves once, not `n_splits` times, so the p-value of `reliability` errs on the side of caution.

    References
    ----------
    [@sahani2002]
    [@allen2022]
    [@spearman1910]
    [@schoppe2016]

    Examples
    --------
    >>> signal, noise = np.array([0.0, 2.0, 4.0, 6.0]), np.array([1.0, -1.0, -1.0, 1.0])
    >>> found = explainable_variance(np.stack([signal + noise, signal - noise])[:, :, None])
    >>> found.noise_power.round(6).item(), found.signal_power.round(6).item(), found.ceiling.round(6).item()
    (2.0, 5.666667, 0.95)
    """
    responses = _checked(responses)
    repeated, present = Repeated.of(responses), presence(responses)
    power = repeated.power()
    ceiling, single = power.ceiling[0], power.single[0]
    if np.all(np.isnan(ceiling)):
        raise DegenerateInputError("a channel must vary over 4 conditions with 2 repetitions. Got none that does.")
    n = responses.shape[1]
    drawn = generator(config.seed, "bootstrap").multinomial(n, np.full(n, 1 / n), config.n_bootstrap).astype(np.float64)
    boot = repeated.power(drawn)
    null = _null(responses, config)
    halves = _split_halves(responses, present, np.vstack([np.ones((1, n)), drawn]), config)
    ps = np.array([p_value(a, b) for a, b in zip(ceiling, null[0].T, strict=True)])
    q_values = false_discovery_rate(ps)
    positive = np.maximum(power.signal[0], 0)
    usable = ~np.isnan(ceiling)
    return ExplainableVarianceResult(
        explainable=summarised(ceiling, boot.ceiling, null[0], null_of=ceiling, level=config.level),
        single=summarised(single, boot.single, null[1], null_of=single, level=config.level),
        reliability=summarised(halves[0], halves[1:], null[2], null_of=halves[0], level=config.level),
        n_channels=responses.shape[2],
        n_conditions=n,
        n_repetitions=len(responses),
        n_missing=int(np.isnan(responses).sum()),
        n_dropped=int(np.sum(repeated.counts == 0)),
        n_constant=int(np.sum(~usable)),
        n_negative=int(np.sum(power.signal[0][usable] < 0)),
        n_reliable=int(np.sum(q_values <= 1 - config.level)),
        ceiling=ceiling,
        ceiling_low=_quantile(boot.ceiling, (1 - config.level) / 2),
        ceiling_high=_quantile(boot.ceiling, (1 + config.level) / 2),
        ceiling_error=boot.ceiling.std(axis=0, ddof=1) if config.n_bootstrap > 1 else np.full(len(ceiling), NAN),
        correlation_ceiling=np.sqrt(np.maximum(ceiling, 0)),
        single_ceiling=single,
        split_half=halves[0],
        signal_power=power.signal[0],
        noise_power=power.noise[0],
        ncsnr=np.sqrt(positive / np.where(power.noise[0] > 0, power.noise[0], NAN)),
        p_values=ps,
        q_values=q_values,
        two_ways=np.column_stack([ceiling, halves[0]]),
    )


def _checked(responses: np.ndarray) -> np.ndarray:
    if responses.ndim != 3 or responses.shape[0] < 2 or responses.shape[1] < 4 or responses.shape[2] < 1:
        raise ShapeError(
            "responses must be (repetition, condition, channel) with at least 2 repetitions and 4 conditions. "
            f"Got shape {responses.shape}."
        )
    wide = responses.astype(np.float64)
    if np.any(np.isinf(wide)):
        raise DegenerateInputError("responses must be finite, or NaN where missing. Got infinity: drop those.")
    used = ~np.isnan(wide)
    centre = np.where(used, wide, 0).sum(axis=(0, 1)) / np.maximum(used.sum(axis=(0, 1)), 1)
    constant = np.abs(np.where(used, wide - centre, 0)).max(axis=(0, 1)) <= ROUNDING * np.abs(centre)
    return np.where(constant & used, 0.0, wide - centre)  # a shift changes nothing here, and cancels less


def _null(responses: np.ndarray, config: ExplainableVarianceConfig) -> np.ndarray:
    """Return ceiling, single ceiling and reliability with conditions out of place: (measure, draw, channel)."""
    shape = (config.n_permutations, *responses.shape[:2])
    places = np.broadcast_to(np.arange(shape[2], dtype=np.int32), shape)
    orders = generator(config.seed, "permutation").permuted(places, axis=2)
    there = presence(responses)
    of_lane = partial(_null_lane, np.where(np.isnan(responses), 0.0, responses), there.astype(np.float64))
    return np.concatenate(map_parallel(of_lane, np.array_split(orders, LANES)), axis=1)


def _null_lane(filled: np.ndarray, there: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Let conditions change places; any two halves of the repetitions are then as good as any other."""
    half, whole = len(filled) // 2, slice(None)
    ones, found = np.ones((1, filled.shape[1])), np.empty((3, len(orders), filled.shape[2]))
    for i, order in enumerate(orders):
        parts = [_summed(filled, there, order, part) for part in (slice(0, half), slice(half, 2 * half))]
        sums, counts, squares = _summed(filled, there, order, whole)
        power = Repeated.of_sums(sums, counts, squares).power()
        means = [np.where(n > 0, total / np.maximum(n, 1), np.nan) for total, n, _ in parts]
        missing = np.isnan(means[0] + means[1])
        first, second = (np.where(missing, np.nan, mean) for mean in means)
        r = half_correlations(first, second, ones)
        found[:, i] = power.ceiling[0], power.single[0], lengthened(r, counts)[0]
    return found


def _summed(
    filled: np.ndarray, there: np.ndarray, order: np.ndarray, part: slice
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sums over some repetitions, each in its own order: responses, how many there are, squares."""
    sums, squares = np.zeros(filled.shape[1:]), np.zeros(filled.shape[1:])
    counts = np.zeros(there.shape[1:])
    for values, present, places in zip(filled[part], there[part], order[part], strict=True):
        moved = values[places]
        sums += moved
        counts += present[places]
        squares += moved * moved
    return sums, counts, squares


def _split_halves(
    responses: np.ndarray, present: np.ndarray, weights: np.ndarray, config: ExplainableVarianceConfig
) -> np.ndarray:
    """Return the reliability of all repetitions in each draw of conditions: (draw, channel)."""
    of_lane = partial(_halves_lane, responses, present, weights, config.seed)
    total = sum(map_parallel(of_lane, np.array_split(np.arange(config.n_splits), LANES)))
    return lengthened(np.asarray(total) / config.n_splits, present.sum(axis=0))


def _halves_lane(
    responses: np.ndarray, present: np.ndarray, weights: np.ndarray, seed: int, splits: np.ndarray
) -> np.ndarray:
    total = np.zeros((len(weights), responses.shape[2]))
    for split in splits:
        first, second = half_means(responses, present, generator(seed, "halves", int(split)))
        total += half_correlations(first, second, weights)
    return total


def _quantile(draws: np.ndarray, at: float) -> np.ndarray:
    return np.quantile(draws, at, axis=0) if len(draws) else np.full(draws.shape[1], NAN)
