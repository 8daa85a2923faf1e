"""How much experiments change a score on average, and how sure that is: statistics over samples.

    effect_e = mean_i effect_ei          null_e = mean_i control_ei          margin_ei = effect_ei - control_ei

The interval resamples samples. The p-value flips the sign of each sample's margin, in all experiments together, and
compares with the largest of each flip: it is adjusted for having looked at every experiment.

Source: [@westfall1993] (largest statistic), [@phipson2010].
Cost: n_draws x samples x experiments multiplications, twice.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from mechint_core.kernels.resampling import percentile_interval
from mechint_core.patching.pairs import PairedConfig
from mechint_core.patching.recovery import ROUNDING, resampling_weights, sign_flips
from mechint_core.result import Estimate

Side = Literal["greater", "two-sided"]


@dataclass(frozen=True, slots=True)
class MeanEffects:
    """What each experiment changes on average."""

    value: Float[np.ndarray, "experiment"]
    low: Float[np.ndarray, "experiment"]
    high: Float[np.ndarray, "experiment"]
    null: Float[np.ndarray, "experiment"]
    """Mean of the controls; 0 without."""
    p_value: Float[np.ndarray, "experiment"]
    level: float

    def __getitem__(self, experiment: int) -> Estimate:
        parts = (self.value, self.low, self.high, self.null, self.p_value)
        return Estimate(*(float(part[experiment]) for part in parts), level=self.level)


def mean_effects(
    effects: Float[np.ndarray, "experiment sample"],
    control: Float[np.ndarray, "experiment sample"] | None = None,
    *,
    config: PairedConfig,
    scale: float,
    side: Side = "two-sided",
) -> MeanEffects:
    """Return the mean effects, their intervals and adjusted p-values.

    `scale` is the typical size of the scores whose differences the effects are: a margin that is rounding of float32
    beside it has a p-value of 1. Draws, level and seed are those of `config`.
    """
    n_draws, level, seed = config.n_draws, config.level, config.seed
    null = np.zeros_like(effects) if control is None else control
    draws = effects @ resampling_weights(effects.shape[1], n_draws, seed).T
    bounds = np.array([percentile_interval(each, level) for each in draws])
    margin = effects - null
    p = sign_flips(margin, n_draws, seed) if side == "greater" else _either_side(margin, n_draws, seed)
    rounding = np.abs(margin).max(axis=1) <= ROUNDING * scale
    return MeanEffects(
        effects.mean(axis=1) + 0.0,  # + 0.0: no effect is 0, not -0
        bounds[:, 0],
        bounds[:, 1],
        null.mean(axis=1) + 0.0,
        np.where(rounding, 1.0, p),
        level,
    )


def _either_side(
    margin: Float[np.ndarray, "experiment sample"], n_draws: int, seed: int
) -> Float[np.ndarray, "experiment"]:
    """Compare the size of each sum with the largest size of each flip: both signs stand for one experiment."""
    return sign_flips(np.concatenate([margin, -margin]), n_draws, seed).reshape(2, -1).min(axis=0)
