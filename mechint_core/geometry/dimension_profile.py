"""Dimension by layer and step: where in a network, and when in training, are representations compressed?

    change_s = ln d_s(last) - ln d_s(first)          mean over sites s; below 0: fewer dimensions
    spread   = ln max_s d_s - ln min_s d_s           at the last step: how much the sites differ

d_s(t) and its interval are those of another technique (`intrinsic_dimension`), made of the same samples everywhere. The
standard error of ln d is a fourth of the width of its 95 % interval on that scale. Errors of two checkpoints are taken
as unrelated, those of sites as one, which overstates both.

Source: [@ansuini2019].
Cost: nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtr, ndtri

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Curve, Matrix
from mechint_core.result import NAN, Estimate, Result

Z: Final = float(ndtri(0.975))
SMALLEST_P: Final = 1e-300
"""A normal tail is never 0, whatever a float says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DimensionProfileConfig:
    """What the columns are called."""

    names: tuple[str, ...] = ()
    """The sites, in the order of the columns; numbered if left out."""


@dataclass(frozen=True, slots=True)
class DimensionProfile(Result):
    """The dimension of every site at every checkpoint."""

    technique: ClassVar[str] = "dimension_profile"
    evidence: ClassVar[str] = (
        "Intervals (95 %) from those of the single dimensions, by a normal approximation of their logarithms; errors "
        "of checkpoints unrelated, of sites shared. Null: no change, no difference."
    )
    figures: ClassVar[tuple[Matrix | Curve, ...]] = (
        Matrix(values="dimension", y="site", x="step", title="Dimension by site and step", value_label="dimension"),
        Curve(
            x="step",
            y=("typical", "lowest", "highest"),
            title="Dimension through training: typical, lowest and highest site",
            x_label="step",
            y_label="dimension",
            log_x=True,
            log_y=True,
        ),
    )

    change: Estimate
    """Mean over sites of the log ratio of the last to the first dimension; -0.69 is half as many."""
    spread: Estimate
    """Log ratio of the highest to the lowest dimension of the sites at the last step; NaN for one site. The p-value is
    corrected for the choice of the two, the interval is not."""
    n_sites: int
    n_undefined: int
    """Dimensions that are NaN, and left out."""
    n_below_one: int
    """Dimensions whose interval lies below 1: where samples come in tight groups, which is no dimension."""
    site: Annotated[tuple[str, ...], "site"]
    step: Int[np.ndarray, "checkpoint"]
    dimension: Float[np.ndarray, "site checkpoint"]
    typical: Float[np.ndarray, "checkpoint"]
    """Geometric mean over sites."""
    lowest: Float[np.ndarray, "checkpoint"]
    highest: Float[np.ndarray, "checkpoint"]

    def reading(self) -> str:
        """Say whether training compresses, and which sites have most and fewest dimensions in the end."""
        change = self.change
        ratio = np.exp(change.value)
        way = "fewer" if change.value < 0 else "more"
        known = f"{ratio:.2f} times as many dimensions at the last step as at the first (p = {change.p_value:.2g})"
        text = f"Training leaves {way}: {known}"
        if not change.p_value <= 0.05:
            text = f"Training is not known to change the dimension: {known}"
        last = self.dimension[:, -1]
        if self.n_sites > 1 and np.isfinite(last).any():
            low, high = int(np.nanargmin(last)), int(np.nanargmax(last))
            text += f"; in the end {self.site[low]} has {last[low]:.1f} and {self.site[high]} {last[high]:.1f}"
        if self.n_below_one:
            text += f". {self.n_below_one} are below one, where samples come in tight groups: compare larger scales"
        return f"{text}."


def dimension_profile(
    dimension: Float[np.ndarray, "checkpoint measure"],
    low: Float[np.ndarray, "checkpoint measure"],
    high: Float[np.ndarray, "checkpoint measure"],
    step: Int[np.ndarray, "checkpoint"],
    *,
    config: DimensionProfileConfig = DimensionProfileConfig(),
) -> DimensionProfile:
    """Ask where in a network, and when in training, representations have many dimensions or few.

    Use it on the dimensions that `intrinsic_dimension` found at several sites and checkpoints. It assumes that all were
    found alike, on the same samples. It cannot tell compression from a change of the noise: compare scales.

    Parameters
    ----------
    dimension
        Above 0, or NaN where undefined: a column per site.
    low, high
        Ends of the 95 % intervals.
    step
        Of each checkpoint, rising; at least two.
    config
        Names of the sites.

    Returns
    -------
    DimensionProfile
        Log ratios; dimensions as they were given, a row per site.

    Raises
    ------
    ShapeError
        If the tables differ in shape, have fewer than two checkpoints or no site, or steps do not rise.
    ConfigurationError
        If there are names, but not one for each site.
    DegenerateInputError
        If a dimension is not above 0, or none is known at the first or at the last step.

    References
    ----------
    [@ansuini2019]

    Examples
    --------
    >>> d = np.array([[8.0, 16.0], [4.0, 8.0]])
    >>> found = dimension_profile(d, d / 1.1, d * 1.1, np.array([0, 100]))
    >>> round(float(np.exp(found.change.value)), 6), round(float(np.exp(found.spread.value)), 6)
    (0.5, 2.0)
    """
    _check(dimension, low, high, step, config)
    d = np.log(dimension)
    error = (np.log(high) - np.log(low)) / (2 * Z)
    return DimensionProfile(
        change=_change(d, error),
        spread=_spread(d[-1], error[-1]),
        n_sites=d.shape[1],
        n_undefined=int(np.isnan(d).sum()),
        n_below_one=int(np.sum(high < 1)),
        site=config.names or tuple(str(each) for each in range(d.shape[1])),
        step=step,
        dimension=dimension.T,
        typical=np.exp(_over_sites(np.mean, d)),
        lowest=_over_sites(np.min, dimension),
        highest=_over_sites(np.max, dimension),
    )


def _check(
    dimension: np.ndarray, low: np.ndarray, high: np.ndarray, step: np.ndarray, config: DimensionProfileConfig
) -> None:
    if len({each.shape for each in (dimension, low, high)}) != 1 or dimension.ndim != 2 or 0 in dimension.shape:
        raise ShapeError(
            "dimension, low and high must be (checkpoint, site) alike. "
            f"Got {dimension.shape}, {low.shape} and {high.shape}."
        )
    if step.shape != (len(dimension),) or len(step) < 2 or np.any(np.diff(step) <= 0):
        raise ShapeError(f"step must rise over {len(dimension)} checkpoints, at least two. Got {step.tolist()}.")
    if config.names and len(config.names) != dimension.shape[1]:
        raise ConfigurationError(f"names must be {dimension.shape[1]}, one per site. Got {len(config.names)}.")
    if np.any(dimension <= 0):
        raise DegenerateInputError(f"dimensions must be above 0. Got {np.nanmin(dimension)}.")
    if np.isnan(dimension[[0, -1]]).any(axis=0).all():
        raise DegenerateInputError("some site must have a dimension at the first and the last step. Got none.")


def _change(d: Float[np.ndarray, "checkpoint site"], error: Float[np.ndarray, "checkpoint site"]) -> Estimate:
    known = np.isfinite(d[[0, -1]]).all(axis=0)
    return _against_0(float((d[-1] - d[0])[known].mean()), float(np.hypot(error[0], error[-1])[known].mean()))


def _spread(d: Float[np.ndarray, "site"], error: Float[np.ndarray, "site"]) -> Estimate:
    """Compare the two sites that are farthest apart; their p-value is multiplied by the number of pairs."""
    known = np.flatnonzero(np.isfinite(d))
    if len(known) < 2:
        return Estimate(NAN)
    least, most = known[d[known].argmin()], known[d[known].argmax()]
    n_pairs = len(known) * (len(known) - 1) // 2
    return _against_0(float(d[most] - d[least]), float(np.hypot(error[least], error[most])), n_tests=n_pairs)


def _against_0(value: float, error: float, n_tests: int = 1) -> Estimate:
    p = min(1.0, n_tests * max(SMALLEST_P, 2 * float(ndtr(-abs(value) / error)))) if error > 0 else NAN
    return Estimate(value, value - Z * error, value + Z * error, 0.0, p)


def _over_sites(
    summary: Callable[[np.ndarray], np.floating], d: Float[np.ndarray, "checkpoint site"]
) -> Float[np.ndarray, "checkpoint"]:
    """Summarise the sites whose dimension is known; NaN where none is."""
    known = [row[np.isfinite(row)] for row in d]
    return np.array([summary(row) if row.size else NAN for row in known])
