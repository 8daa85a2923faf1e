"""What every attribution technique answers: shares of the parts, how sure they are, and what shuffled networks give.

    share_p = sum_i |a_ip| / sum_iq |a_iq|                       a: attribution of sample i to part p
    learned = 1/2 sum_p |share_p - mean share_p of the others|   0: as in shuffled networks, 1: nothing in common

`others` are the shuffled networks for the model, and the model and the other shuffled networks for each of them: under
the null that training has changed nothing all of them are exchangeable, so the p-value is exact. What a dictionary
leaves unexplained is left out of it: it is large wherever the dictionary was not trained.

Cost: n_bootstrap x samples x parts multiplications.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from jaxtyping import Float

from mechint_core.features.attribution._attribution_question import AttributionConfig
from mechint_core.features.attribution._explained import Explained
from mechint_core.features.attribution._parts import ERROR
from mechint_core.features.attribution._shuffled_parameters import Compared
from mechint_core.figure import Bars, Figure, Matrix
from mechint_core.kernels.resampling import p_value, percentile_interval
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

STORED_VALUES: Final = 2**20
"""Attributions per sample are kept up to so many."""
_NAMED = 3

EVIDENCE: Final = (
    "Intervals: bootstrap over samples. Null: the same network with the entries of every parameter shuffled; "
    "p: the share of such networks with as large a change (either sign), top share, or distance from the others."
)
SHARES: Final = Bars(
    values="share",
    labels="part",
    low="share_low",
    high="share_high",
    null="share_null",
    title="What the answer rests on (tick: shuffled parameters)",
    value_label="share of the attribution's size",
)
SIGNED: Final = Bars(
    values="attribution",
    labels="part",
    low="low",
    high="high",
    title="What each part adds to the answer",
    value_label="mean attribution, in units of the answer",
)


@dataclass(frozen=True, slots=True)
class Attribution(Result):
    """How much of a model's answer is due to each part; the common form of the attribution techniques."""

    evidence: ClassVar[str] = EVIDENCE
    figures: ClassVar[tuple[Figure, ...]] = (SHARES, SIGNED)

    change: Estimate
    """Mean of f(sample) - f(baseline): what the attributions of a sample add up to."""
    top_share: Estimate
    """Share of the part with the largest one."""
    learned: Estimate
    """Share of the attribution that lies elsewhere than in networks with shuffled parameters."""
    part: Annotated[tuple[str, ...], "part"]
    attribution: Float[np.ndarray, "part"]
    """Mean over samples."""
    low: Float[np.ndarray, "part"]
    high: Float[np.ndarray, "part"]
    share: Float[np.ndarray, "part"]
    share_low: Float[np.ndarray, "part"]
    share_high: Float[np.ndarray, "part"]
    share_null: Float[np.ndarray, "part"]
    """Mean over shuffled networks."""
    per_sample: Float[np.ndarray, "sample part"]
    """Attributions of every sample; without rows if there are more than a million."""
    completeness_error: float
    """Largest |sum of attributions - change| of a sample, relative to its change or, where that is smaller, to the
    mean |change|."""
    n_samples: int

    def finding(self) -> str:
        """Say on which parts the answer rests, and whether training has put it there."""
        if np.isnan(self.top_share.value):
            return "Nothing to attribute: no part moves the answer away from its baseline."
        order = [index for index in np.argsort(-self.share, kind="stable")[:_NAMED] if self.share[index] > 0]
        named = ", ".join(f"{self.part[index]} ({self.share[index]:.0%})" for index in order)
        return f"{self._moved()} Of {len(self.part)} parts, it rests most on {named}.{self._placed()}"

    def _moved(self) -> str:
        moved = f"The answer moves by {_bounded(self.change)} from the baseline"
        if np.isnan(self.change.p_value):
            return f"{moved}; there is no null to compare with."
        beyond = "beyond" if _significant(self.change) else "not beyond"
        null = f"{self.change.null:.3g}, p = {self.change.p_value:.2g}"
        return f"{moved}, {beyond} networks with shuffled parameters ({null})."

    def _placed(self) -> str:
        if np.isnan(self.learned.p_value):
            return ""
        if np.count_nonzero(self.share) == 1:
            return " The others are as in the baseline."
        if _significant(self.learned):
            return (
                f" Training has put it there: {self.learned.value:.0%} of the attribution lies elsewhere than with "
                f"shuffled parameters, which differ by {self.learned.null:.0%} among themselves "
                f"(p = {self.learned.p_value:.2g})."
            )
        return (
            f" Which parts these are is not distinguishable from networks with shuffled parameters "
            f"(p = {self.learned.p_value:.2g})."
        )


@dataclass(frozen=True, slots=True)
class UnitAttribution(Attribution):
    """An attribution by gradients, which has a value for every unit at every position."""

    figures: ClassVar[tuple[Figure, ...]] = (
        SHARES,
        SIGNED,
        Matrix(
            values="grid",
            title="What each unit adds at each position",
            x_label="unit",
            y_label="position",
            value_label="mean attribution",
            diverging=True,
        ),
    )

    grid: Float[np.ndarray, "position unit"]
    """Mean attribution per unit (head, latent, the last one the error) at each position."""


def summarise(found: Explained, compared: Compared, config: AttributionConfig) -> dict[str, Any]:
    """Return the fields of an `Attribution`."""
    per_sample, change, names = found.per_sample, found.change, found.names
    weights = _resampled(len(change), config)
    share, shares = _shares(np.abs(per_sample).mean(axis=0)), _shares(weights @ np.abs(per_sample))
    low, high = _bounds(weights @ per_sample, config.level)
    share_low, share_high = _bounds(shares, config.level)
    return {
        "change": _change(change, weights @ change, compared, config.level),
        "top_share": _top_share(share, shares, compared, config.level),
        "learned": _learned(_without_error(compared, names), config),
        "part": names,
        "attribution": per_sample.mean(axis=0),
        "low": low,
        "high": high,
        "share": share,
        "share_low": share_low,
        "share_high": share_high,
        "share_null": _mean(_shares_of(compared.shuffled)),
        "per_sample": per_sample if per_sample.size <= STORED_VALUES else per_sample[:0],
        "completeness_error": float(relative_error(per_sample.sum(axis=1), change).max()),
        "n_samples": len(change),
    }


def relative_error(
    total: Float[np.ndarray, "sample"], change: Float[np.ndarray, "sample"]
) -> Float[np.ndarray, "sample"]:
    """Return |total - change| relative to |change|, or to its mean over samples where that is larger."""
    error = np.abs(total - change)
    size = np.maximum(np.abs(change), np.abs(change).mean())
    return np.divide(error, size, out=np.where(error > 0, np.inf, 0.0), where=size > 0)


def _change(
    change: Float[np.ndarray, "sample"], draws: Float[np.ndarray, "draw"], compared: Compared, level: float
) -> Estimate:
    low, high = percentile_interval(draws, level)
    null = float(_mean(compared.shuffled_change))
    p = p_value(abs(compared.own_change), np.abs(compared.shuffled_change))
    return Estimate(float(change.mean()), low, high, null, p, level)


def _top_share(
    share: Float[np.ndarray, "part"], shares: Float[np.ndarray, "draw part"], compared: Compared, level: float
) -> Estimate:
    low, high = percentile_interval(shares[:, np.argmax(share)], level)  # of this part, not of whichever is largest
    null, own = _shares_of(compared.shuffled).max(axis=1), float(_shares_of(compared.own[None]).max())
    return Estimate(float(share.max()), low, high, float(_mean(null)), p_value(own, null), level)


def _without_error(compared: Compared, names: tuple[str, ...]) -> Compared:
    if names[-1] != ERROR:
        return compared
    return replace(compared, own=compared.own[:, :-1], shuffled=compared.shuffled[..., :-1])


def _learned(compared: Compared, config: AttributionConfig) -> Estimate:
    if not len(compared.shuffled):
        return Estimate(NAN, level=config.level)
    everyone = _shares_of(np.concatenate([compared.own[None], compared.shuffled]))
    mean_of_others = (everyone.sum(axis=0) - everyone) / (len(everyone) - 1)
    apart = np.abs(everyone - mean_of_others).sum(axis=1) / 2
    redrawn = _shares(_resampled(len(compared.own), config) @ np.abs(compared.own))
    draws = np.abs(redrawn - mean_of_others[0]).sum(axis=1) / 2
    low, high = percentile_interval(draws - draws.mean() + apart[0], config.level)  # resampling adds to any distance
    null, p = float(apart[1:].mean()), p_value(apart[0], apart[1:])
    return Estimate(float(apart[0]), max(low, 0.0), min(high, 1.0), null, p, config.level)


def _significant(estimate: Estimate) -> bool:
    return estimate.p_value <= 1 - estimate.level + 1e-9


def _mean(draws: Float[np.ndarray, "draw *part"]) -> Float[np.ndarray, "*part"]:
    """Average over draws; NaN if there are none."""
    return np.asarray(draws.mean(axis=0)) if len(draws) else np.full(draws.shape[1:], NAN)


def _shares_of(attributions: Float[np.ndarray, "draw sample part"]) -> Float[np.ndarray, "draw part"]:
    return _shares(np.abs(attributions).mean(axis=1))


def _shares(sizes: Float[np.ndarray, "*draw part"]) -> Float[np.ndarray, "*draw part"]:
    """Divide by the total; NaN where that is 0."""
    total = sizes.sum(axis=-1, keepdims=True)
    return np.divide(sizes, total, out=np.full_like(sizes, NAN), where=total > 0)


def _resampled(n_samples: int, config: AttributionConfig) -> Float[np.ndarray, "draw sample"]:
    """Weights of the samples in bootstrap draws. One sample has no spread: NaN."""
    if n_samples < 2:
        return np.full((1, n_samples), NAN)
    rng = generator(config.seed, "bootstrap")
    return rng.multinomial(n_samples, np.full(n_samples, 1 / n_samples), size=config.n_bootstrap) / n_samples


def _bounds(
    draws: Float[np.ndarray, "draw part"], level: float
) -> tuple[Float[np.ndarray, "part"], Float[np.ndarray, "part"]]:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def _bounded(estimate: Estimate) -> str:
    interval = "" if np.isnan(estimate.low) else f" [{estimate.low:.3g}, {estimate.high:.3g}]"
    return f"{estimate.value:.3g}{interval}"
