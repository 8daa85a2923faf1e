"""Which share of the whole model's effect a part of it makes: a ratio of means over prompt pairs.

    F(H) = (m(H) - m(empty)) / (m(M) - m(empty))          m averaged over pairs before dividing; 1 is all, 0 nothing

M is the whole model, empty the model with every edge ablated. All shares of one judgement are resampled by the same
draws of pairs, so that their differences have intervals too.

Source: [@wang2023].
Cost: n_draws x pairs multiplications for each share.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechint_core.kernels.resampling import estimate, percentile_interval
from mechint_core.patching.recovery import ROUNDING, PairScores, recovery_of, resampling_weights, sign_flips
from mechint_core.result import NAN, Estimate


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of the effect, and what they would be for other pairs."""

    value: Float[np.ndarray, "row"]
    draws: Float[np.ndarray, "row draw"]
    """The same for pairs drawn again; one NaN each, if there is no effect to share."""
    level: float

    def bounds(self) -> Float[np.ndarray, "endpoint row"]:
        """Return the lower and the upper end of each interval."""
        return np.array([percentile_interval(each, self.level) for each in self.draws]).reshape(-1, 2).T

    def estimate(self, at: int, null: Float[np.ndarray, "_"] | None = None) -> Estimate:
        """Bind one share to its interval and its null."""
        return estimate(float(self.value[at]), bootstrap=self.draws[at], null=null, level=self.level)

    def mean_distance(self, other: "Shares") -> Estimate:
        """Return the mean over rows of |this share - the other's|."""
        value = float(np.abs(self.value - other.value).mean())
        return estimate(value, bootstrap=np.abs(self.draws - other.draws).mean(axis=0), level=self.level)


@dataclass(frozen=True, slots=True)
class Effect:
    """What the whole model has and the empty one lacks. Make it with `of`."""

    full: Float[np.ndarray, "sample"]
    """Metric of the whole model, per pair."""
    empty: Float[np.ndarray, "sample"]
    """Metric with every edge ablated."""
    difference: Estimate
    """Mean of full less empty; its null is 0."""
    defined: bool
    """False if full and empty do not differ beyond noise: there is nothing to have a share of."""
    weights: Float[np.ndarray, "draw sample"]
    """How much each pair counts in each bootstrap draw."""
    level: float
    seed: int

    @classmethod
    def of(
        cls,
        full: Float[np.ndarray, "sample"],
        empty: Float[np.ndarray, "sample"],
        *,
        n_draws: int,
        level: float,
        seed: int,
    ) -> "Effect":
        """Measure the effect, and decide whether there is one."""
        alone = PairScores(full, empty, full[None])
        found = recovery_of(alone, noising=False, n_draws=n_draws, level=level, seed=seed)
        weights = resampling_weights(len(full), n_draws, seed)
        return cls(full, empty, found.difference, found.defined, weights, level, seed)

    def shares(self, scores: Float[np.ndarray, "row sample"]) -> Shares:
        """Return F for each row of scores."""
        return self.of_gains(scores - self.empty)

    def of_gains(self, gains: Float[np.ndarray, "row sample"]) -> Shares:
        """Return mean gain over mean effect, for each row of gains."""
        if not self.defined:
            return Shares(np.full(len(gains), NAN), np.full((len(gains), 1), NAN), self.level)
        whole = self.full - self.empty
        with np.errstate(divide="ignore", invalid="ignore"):  # a draw may hit no effect; its NaN is left out
            draws = (gains @ self.weights.T) / (self.weights @ whole)
        return Shares(gains.mean(axis=1) / whole.mean() + 0.0, draws, self.level)  # + 0.0: no share is 0, not -0

    def p_values(self, gains: Float[np.ndarray, "row sample"]) -> Float[np.ndarray, "row"]:
        """Return the chance that signs flipped at random give any row so large a mean gain: adjusted for all rows."""
        if not self.defined or not len(gains):
            return np.full(len(gains), NAN)
        rounding = ROUNDING * float(np.abs([self.full, self.empty]).mean())
        real = np.where(np.abs(gains) > rounding, gains, 0.0)
        return sign_flips(np.sign(self.difference.value) * real, len(self.weights), self.seed)
