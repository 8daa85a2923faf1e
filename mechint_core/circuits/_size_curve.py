"""How faithful circuits are that grow from nothing to the whole model, and the areas that sum it up.

    CPR = area under F(C_s)          CMD = area of |1 - F(C_s)|          s = 0...1, the share of the edges that is kept

Points are joined by straight lines; F is 0 at s = 0 and 1 at s = 1.

Source: [@mueller2025].
Cost: none but the resampling.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechint_core.circuits._effect_shares import Effect
from mechint_core.kernels.resampling import Tail, estimate
from mechint_core.result import Estimate


@dataclass(frozen=True, slots=True)
class SizeCurve:
    """Faithfulness over sizes. Make it with `of`."""

    size: Int[np.ndarray, "size"]
    """Numbers of edges, none and all included."""
    curve: Float[np.ndarray, "size"]
    low: Float[np.ndarray, "size"]
    high: Float[np.ndarray, "size"]
    null: Float[np.ndarray, "size"]
    """Mean of random circuits."""
    area: Estimate
    """CPR; its null is random circuits."""
    distance: Estimate
    """CMD."""

    @classmethod
    def of(
        cls,
        effect: Effect,
        growing: Float[np.ndarray, "_ sample"],
        random: Float[np.ndarray, "row sample"],
        sizes: Int[np.ndarray, "_"],
        n_edges: int,
    ) -> "SizeCurve":
        """Measure the circuits of `sizes` edges; `random` holds as many for each size, size after size."""
        grown = effect.shares(np.concatenate([effect.empty[None], growing, effect.full[None]]))
        by_size = effect.shares(random).value.reshape(len(sizes), -1 if len(sizes) else 1)
        nothing = np.full(
            (1, by_size.shape[1]), 0 * effect.shares(effect.empty[None]).value[0]
        )  # NaN without an effect
        null = np.concatenate([nothing, by_size, nothing + 1])
        size = np.array([0, *sizes, n_edges])
        share = size / n_edges
        low, high = grown.bounds()

        def area(value: np.ndarray, draws: np.ndarray, null: np.ndarray, tail: Tail) -> Estimate:
            of, of_draws, of_null = (np.trapezoid(each, share, axis=0) for each in (value, draws, null))
            return estimate(float(of), bootstrap=of_draws, null=of_null, tail=tail, level=effect.level)

        return cls(
            size=size,
            curve=grown.value,
            low=low,
            high=high,
            null=null.mean(axis=1),
            area=area(grown.value, grown.draws, null, "greater"),
            distance=area(np.abs(1 - grown.value), np.abs(1 - grown.draws), np.abs(1 - null), "less"),
        )
