"""How well a cheap estimate of effects agrees with the exact ones, on the parts for which both are known.

    r      correlation of the mean effects over parts (Pearson's, and of their ranks: Spearman's)
    signs  share of parts whose estimate has the sign of the exact effect; both 0 agrees
    error  |estimate - exact| / |exact|, lengths over parts: 1 is as bad as estimating nothing

Intervals resample prompt pairs, and those parts that are a random sample of the others. The null gives each part the
estimate of another.

Which parts those are: half of them those with the strongest estimates, half drawn from the others, so that what is
reported is checked, and what was missed has a chance to show.

Cost: n_draws x parts x samples multiplications.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from mechint_core.kernels.resampling import Tail, estimate
from mechint_core.patching.pairs import PairedConfig
from mechint_core.patching.recovery import ROUNDING, PairScores, Recovery, resampling_weights
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate

TRUSTED_CORRELATION: Final = 0.9
TRUSTED_ERROR: Final = 0.5
TRUSTED_ERROR_ALONE: Final = 0.2
"""Where nothing is known of the correlation."""
_FEWEST = 3
"""Parts that a correlation needs: through two points there is always a line."""

Means = Float[np.ndarray, "draw part"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of estimated with exact effects."""

    correlation: Estimate
    rank_correlation: Estimate
    signs: Estimate
    error: Estimate

    @property
    def trusted(self) -> bool:
        """Whether estimates may stand for exact effects: r at least 0.9, error at most 0.5; without r, at most 0.2.

        Where the exact effects are all alike, an error of 0.5 may be one part of three that was missed altogether.
        """
        if np.isnan(self.correlation.value):
            return bool(self.error.value <= TRUSTED_ERROR_ALONE)
        return bool(self.correlation.value >= TRUSTED_CORRELATION and self.error.value <= TRUSTED_ERROR)


@dataclass(frozen=True, slots=True)
class Verification:
    """A sample of estimated effects beside the exact ones. Make it with `verify`."""

    parts: Int[np.ndarray, "example"]
    """The strongest first, then the random ones."""
    points: Float[np.ndarray, "example coordinate"]
    """Estimated, then exact share of each."""
    agreement: Agreement

    def fields(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the fields of a Result that reports it; `names` are those of all parts."""
        return {
            "correlation": self.agreement.correlation,
            "rank_correlation": self.agreement.rank_correlation,
            "sign_agreement": self.agreement.signs,
            "relative_error": self.agreement.error,
            "verified": tuple(names[k] for k in self.parts),
            "verified_points": self.points,
            "trusted": self.agreement.trusted,
        }


def choose_to_verify(found: Recovery, n_parts: int, draws: np.random.Generator) -> Int[np.ndarray, "example"]:
    """Choose parts: half of `n_parts` the strongest, either sign, half of the others at random; none if undefined."""
    if not found.defined:
        return np.arange(0)
    strongest = np.argsort(-np.abs(found.value), kind="stable")
    n = min(n_parts, len(strongest))
    sure, others = np.split(strongest, [_n_sure(n)])
    return np.concatenate([sure, draws.choice(others, size=n - len(sure), replace=False)])


def verify(
    scores: PairScores,
    found: Recovery,
    parts: Int[np.ndarray, "example"],
    exact: Float[np.ndarray, "example sample"],
    *,
    noising: bool,
    config: PairedConfig,
) -> Verification:
    """Compare the estimated scores of all parts with the exact ones of those that `choose_to_verify` chose."""
    base, n = scores.clean if noising else scores.corrupted, len(parts)
    effect = float((scores.clean - scores.corrupted).mean()) * (-1 if noising else 1)
    measured = exact - base
    shares = measured.mean(axis=1) / effect + 0.0 if n else np.empty(0)  # + 0.0: no effect is 0, not -0
    agreement = agreement_of(
        scores.patched[parts] - base,
        measured,
        sampled=np.arange(n) >= _n_sure(n) if n < len(scores.patched) else np.zeros(n, dtype=bool),
        rounding=ROUNDING * float(np.abs([scores.clean, scores.corrupted]).mean()),
        n_draws=config.n_draws,
        level=config.level,
        seed=config.seed,
    )
    return Verification(parts, np.stack([found.value[parts], shares], axis=1), agreement)


def agreement_of(
    estimated: Float[np.ndarray, "part sample"],
    exact: Float[np.ndarray, "part sample"],
    *,
    sampled: Bool[np.ndarray, "part"],
    rounding: float,
    n_draws: int,
    level: float,
    seed: int,
) -> Agreement:
    """Return the agreement of two sets of effects; `sampled` parts stand for others, the rest for themselves.

    Mean effects up to `rounding` count as 0. Everything is NaN without parts, the correlations below 3 of them.
    """
    if not len(exact):
        nothing = Estimate(NAN, level=level)
        return Agreement(nothing, nothing, nothing, nothing)
    draws = generator(seed, "agreement")
    weights = resampling_weights(exact.shape[1], n_draws, seed)
    parts = _resampled_parts(sampled, len(weights), draws)
    means = [_rounded(each.mean(axis=1), rounding) for each in (estimated, exact)]
    resampled = [_rounded(np.take_along_axis(weights @ each.T, parts, axis=1), rounding) for each in (estimated, exact)]
    shuffled = draws.permuted(np.tile(means[0], (n_draws, 1)), axis=1)
    found: list[Estimate] = []
    for statistic, tail in _STATISTICS:
        value = float(statistic(means[0][None], means[1][None])[0])
        null = statistic(shuffled, np.broadcast_to(means[1], shuffled.shape))
        found.append(estimate(value, bootstrap=statistic(*resampled), null=null, tail=tail, level=level))
    return Agreement(*found)


def _n_sure(n_parts: int) -> int:
    """Return how many of the chosen parts are the strongest, not drawn."""
    return -(-n_parts // 2)


def _rounded(values: np.ndarray, rounding: float) -> np.ndarray:
    return np.where(np.abs(values) <= rounding, 0.0, values)


def _resampled_parts(sampled: Bool[np.ndarray, "part"], n_draws: int, draws: np.random.Generator) -> np.ndarray:
    """Return which parts each draw holds: all that stand for themselves, and as many sampled ones as there are."""
    parts = np.tile(np.arange(len(sampled)), (n_draws, 1))
    others = np.flatnonzero(sampled)
    parts[:, others] = draws.choice(others, size=(n_draws, len(others))) if len(others) else 0
    return parts


def _pearson(one: Means, other: Means) -> Float[np.ndarray, "draw"]:
    if one.shape[1] < _FEWEST:
        return np.full(len(one), NAN)
    a, b = _centred(one), _centred(other)
    size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), size, out=np.full(len(size), NAN), where=size > 0)


def _centred(values: Means) -> Means:
    """Subtract the mean over parts; what is left of equal values is 0, not rounding."""
    centred = values - values.mean(axis=1, keepdims=True)
    rounding = 1e-12 * np.abs(values).max(axis=1, keepdims=True)
    return np.where(np.abs(centred).max(axis=1, keepdims=True) > rounding, centred, 0.0)


def _spearman(one: Means, other: Means) -> Float[np.ndarray, "draw"]:
    return _pearson(rankdata(one, axis=1), rankdata(other, axis=1))


def _signs(one: Means, other: Means) -> Float[np.ndarray, "draw"]:
    return (np.sign(one) == np.sign(other)).mean(axis=1)


def _error(one: Means, other: Means) -> Float[np.ndarray, "draw"]:
    size = np.linalg.norm(other, axis=1)
    return np.divide(np.linalg.norm(one - other, axis=1), size, out=np.full(len(size), NAN), where=size > 0)


_STATISTICS: Final[tuple[tuple[Callable[[Means, Means], Float[np.ndarray, "draw"]], Tail], ...]] = (
    (_pearson, "greater"),
    (_spearman, "greater"),
    (_signs, "greater"),
    (_error, "less"),
)
"""In the order of `Agreement`, and on which side of the null each speaks for the estimates."""
