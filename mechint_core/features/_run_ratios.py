"""What each of several runs does to a model, as ratios of sums over samples, with intervals and null.

    recovered = sum_i (v_end,i - v_dictionary,i) / sum_i (v_end,i - v_clean,i)            v: loss or divergence

A ratio is NaN where the bootstrap interval of its denominator is not above noise.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Float, Int

from mechint_core.kernels.resampling import estimate, percentile_interval
from mechint_core.result import NAN, Estimate

RUNS: Final = ("clean", "dictionary", "untrained dictionary", "mean", "zero")
End = Literal["mean", "zero"]


@dataclass(frozen=True, slots=True)
class RunRatios:
    """Ratios of sums over samples, with their bootstrap draws and what random dictionaries give."""

    values: Float[np.ndarray, "run sample"]
    counts: Float[np.ndarray, "sample"]
    """Positions that each sample's value is a sum over."""
    random: Float[np.ndarray, "random_run chosen"]
    """The clean run, then random dictionaries, on the chosen samples."""
    random_counts: Float[np.ndarray, "chosen"]
    draws: Float[np.ndarray, "draw sample"]
    chosen: Int[np.ndarray, "chosen"]
    level: float

    def recovered(self, end: End, noise: float) -> Estimate:
        """Return how much of the way from an end to the clean run the dictionary goes; NaN if the way is noise."""
        run = dict(zip(RUNS, self.values, strict=True))
        span, gain = run[end] - run["clean"], run[end] - run["dictionary"]
        spans = self.draws @ span
        low, _ = percentile_interval(spans[1:], self.level)
        if not low > noise:
            return Estimate(NAN, level=self.level)
        ratios = np.divide(self.draws @ gain, spans, out=np.full_like(spans, NAN), where=spans > 0)
        way = span[self.chosen].sum()
        chance = (run[end][self.chosen].sum() - self.random[1:].sum(axis=1)) / (way if way > 0 else NAN)
        return estimate(float(ratios[0]), bootstrap=ratios[1:], null=chance, level=self.level)

    def added(self) -> Estimate:
        """Return by how much the dictionary's run exceeds the clean one, per position."""
        run = dict(zip(RUNS, self.values, strict=True))
        means = self._means(run["dictionary"] - run["clean"])
        null = (self.random[1:] - self.random[0]).sum(axis=1) / _or_nan(self.random_counts.sum())
        return estimate(float(means[0]), bootstrap=means[1:], null=null, tail="less", level=self.level)

    def means(self) -> Float[np.ndarray, "control"]:
        """Return the mean per position of every run, and of the random dictionaries together."""
        random = self.random[1:].sum(axis=1).mean() / _or_nan(self.random_counts.sum())
        return np.append([self._means(each)[0] for each in self.values], random)

    def intervals(self) -> tuple[Float[np.ndarray, "control"], Float[np.ndarray, "control"]]:
        """Return the bootstrap interval of every run's mean, and the spread of the random dictionaries."""
        random = self.random[1:].sum(axis=1) / _or_nan(self.random_counts.sum())
        drawn = [*(self._means(each)[1:] for each in self.values), random]
        low, high = np.array([percentile_interval(each, self.level) for each in drawn]).T
        return low, high

    def _means(self, values: Float[np.ndarray, "sample"]) -> Float[np.ndarray, "draw"]:
        counts = self.draws @ self.counts
        return np.divide(self.draws @ values, counts, out=np.full_like(counts, NAN), where=counts > 0)


def _or_nan(count: float) -> float:
    return count if count > 0 else NAN
