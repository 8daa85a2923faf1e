"""How much a dictionary explains for how few active latents: one point per dictionary of a sweep.

    FVU(L0)        on the frontier: the dictionaries that no other beats in both
    ln FVU ~ a + b ln L0         over all of them:  doubling L0 multiplies FVU by 2^b

Two dictionaries compare fairly only at equal L0; a sweep compares whole families. The fit takes all dictionaries,
also those that another beats: along the frontier alone FVU falls with L0 by its definition, whatever sparsity costs.
The null shuffles which L0 has which FVU: what the slope would be if sparsity cost nothing.

Source: [@gao2024].
Cost: nothing; the evaluations are made elsewhere.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Figure, Scatter
from mechint_core.kernels.resampling import estimate
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

MEASURES = ("l0", "fvu", "loss_recovered", "n_latents")


@dataclass(frozen=True, slots=True, kw_only=True)
class SparsityFrontierConfig:
    """How sure to be of the exchange."""

    n_draws: int = 999
    """Bootstrap draws of the dictionaries, and shuffles."""
    level: float = 0.95
    """Confidence of the interval."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        if self.n_draws < 1 or self.seed < 0 or not 0 < self.level < 1:
            raise ConfigurationError(f"n_draws must be at least 1, level in (0, 1), seed at least 0. Got {self}.")


@dataclass(frozen=True, slots=True)
class SparsityFrontier(Result):
    """What sparsity costs, over the dictionaries of a sweep."""

    technique: ClassVar[str] = "sparsity_frontier"
    evidence: ClassVar[str] = "Interval: bootstrap over dictionaries. Null: FVU shuffled among them."
    figures: ClassVar[tuple[Figure, ...]] = (
        Scatter(
            points="fvu_points",
            title="What few active latents leave unexplained",
            x_label="active latents per vector, L0",
            y_label="FVU",
            colour="n_latents",
            colour_label="latents",
        ),
        Scatter(
            points="recovered_points",
            title="What few active latents give the model back",
            x_label="active latents per vector, L0",
            y_label="loss recovered",
            colour="n_latents",
            colour_label="latents",
        ),
    )

    doubling: Estimate
    """What doubling L0 multiplies the unexplained variance by."""
    n_dictionaries: int
    n_frontier: int
    l0: Float[np.ndarray, "dictionary"]
    fvu: Float[np.ndarray, "dictionary"]
    loss_recovered: Float[np.ndarray, "dictionary"]
    n_latents: Float[np.ndarray, "dictionary"]
    on_frontier: Bool[np.ndarray, "dictionary"]
    fvu_points: Float[np.ndarray, "dictionary coordinate"]
    recovered_points: Float[np.ndarray, "dictionary coordinate"]

    def reading(self) -> str:
        """Say what sparsity costs here."""
        best = int(np.argmin(self.fvu))
        start = (
            f"Of {self.n_dictionaries} dictionaries {self.n_frontier} are on the frontier of L0 against FVU; the best "
            f"leaves {self.fvu[best]:.1%} of the variance with {self.l0[best]:.3g} active latents. "
        )
        if np.isnan(self.doubling.value):
            return start + "Their L0 is too much alike to say what sparsity costs."
        return start + (
            f"Doubling L0 multiplies the unexplained variance by {self.doubling.value:.2f} "
            f"[{self.doubling.low:.2f}, {self.doubling.high:.2f}] (p = {self.doubling.p_value:.2g})."
        )


def sparsity_frontier(
    measures: Float[np.ndarray, "dictionary measure"], *, config: SparsityFrontierConfig = SparsityFrontierConfig()
) -> SparsityFrontier:
    """Measure what sparsity costs: how the dictionaries of a sweep trade active latents for variance explained.

    Use it on dictionaries of the same site and data that differ in sparsity, size or kind. It assumes that they are
    trained alike, and that ln FVU falls about linearly with ln L0; it cannot tell which of them means something.

    Parameters
    ----------
    measures
        One row per dictionary: L0, FVU, loss recovered (NaN where it is not known), number of latents.
    config
        Draws and confidence.

    Returns
    -------
    SparsityFrontier
        `doubling` in (0, inf): 0.5 if twice the latents halve the error, 1 if more do not help; NaN with fewer than
        three different L0. `on_frontier` marks dictionaries that no other beats in both L0 and FVU.

    Raises
    ------
    ShapeError
        If there are not four measures of at least two dictionaries.
    DegenerateInputError
        If an L0 or FVU is not finite and above 0.

    References
    ----------
    [@gao2024]

    Examples
    --------
    >>> sweep = np.array([[8, 0.4, np.nan, 512], [16, 0.2, np.nan, 512], [32, 0.1, np.nan, 512]])
    >>> round(sparsity_frontier(sweep).doubling.value, 3)
    0.5
    """
    if measures.ndim != 2 or measures.shape[1] != len(MEASURES) or len(measures) < 2:
        raise ShapeError(f"measures must be (dictionary >= 2, {', '.join(MEASURES)}). Got shape {measures.shape}.")
    l0, fvu, recovered, n_latents = measures.astype(np.float64).T
    if not (np.isfinite(l0) & np.isfinite(fvu) & (l0 > 0) & (fvu > 0)).all():
        raise DegenerateInputError("L0 and FVU must be finite and above 0. Got others: a dictionary that never fires?")
    frontier = np.array(
        [not ((l0 <= a) & (fvu <= b) & ((l0 < a) | (fvu < b))).any() for a, b in zip(l0, fvu, strict=True)]
    )
    return SparsityFrontier(
        doubling=_doubling(l0, fvu, config),
        n_dictionaries=len(l0),
        n_frontier=int(frontier.sum()),
        l0=l0,
        fvu=fvu,
        loss_recovered=recovered,
        n_latents=n_latents,
        on_frontier=frontier,
        fvu_points=np.stack([l0, fvu], axis=1),
        recovered_points=np.stack([l0, recovered], axis=1),
    )


def _doubling(
    l0: Float[np.ndarray, "dictionary"], fvu: Float[np.ndarray, "dictionary"], config: SparsityFrontierConfig
) -> Estimate:
    """Return 2 to the slope of ln FVU on ln L0, with its bootstrap and shuffled draws."""
    x, y = np.log(l0), np.log(fvu)
    if len(np.unique(np.round(x, 6))) < 3:
        return Estimate(NAN, level=config.level)
    rng = generator(config.seed, "sparsity_frontier")
    rows = rng.integers(0, len(x), (config.n_draws, len(x)))
    rows = rows[np.ptp(x[rows], axis=1) > 0]
    shuffled = _slopes(x[None], rng.permuted(np.tile(y, (config.n_draws, 1)), axis=1))
    draws = _slopes(x[rows], y[rows])
    slope = float(_slopes(x[None], y[None])[0])
    return estimate(2**slope, bootstrap=2**draws, null=2**shuffled, tail="less", level=config.level)


def _slopes(
    x: Float[np.ndarray, "#draw dictionary"], y: Float[np.ndarray, "draw dictionary"]
) -> Float[np.ndarray, "draw"]:
    deviation = x - x.mean(axis=1, keepdims=True)
    return np.sum(deviation * y, axis=1) / np.sum(deviation * deviation, axis=1)
