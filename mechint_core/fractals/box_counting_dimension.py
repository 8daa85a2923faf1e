"""Box-counting dimension: how does the number of boxes that hold a cloud of points grow as they shrink.

    N(s)  = boxes of side s that hold a point                          ~ s^-D_0
    D_1   = slope of sum_b p_b ln p_b over ln s                        information dimension, p_b: share of points in b
    D_2   = slope of ln sum_b p_b^2 over ln s                          correlation dimension
    L(s)  = N sum_b p_b^2                                              lacunarity: 1 if all boxes hold alike

Of several grids, shifted against each other, the one with fewest boxes counts. Scales at which the points run out, so
that N would tend to their number, are left out.

Source: [@mandelbrot1982], [@grassberger1983], [@allain1991]
Cost: sample x coordinate x scale x grid, and a sort of the samples for each.
Chunked over: nothing; surrogates and subsamples run in parallel.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtrit

from mechint_core.errors import ConfigurationError, DegenerateInputError, DtypeError, ShapeError
from mechint_core.figure import Curve
from mechint_core.fractals._power_law import check_draws, stream
from mechint_core.kernels.resampling import p_value
from mechint_core.parallel import map_parallel
from mechint_core.result import NAN, Estimate, Result

COARSEST: Final = 4
"""Boxes along the longest side at the coarsest automatic scale."""
FINEST: Final = 2**40
FEWEST: Final = 3
"""Fewest scales of a fit."""
CURVED: Final = 0.3
"""Local slopes that differ more than this are not those of a power law."""
LEVEL: Final = 0.95
DENSE: Final = 16
"""Boxes per point up to which all boxes are counted, empty ones too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxCountingDimensionConfig:
    """Which boxes, and how sure to be."""

    sides: tuple[float, ...] = ()
    """Sides of the boxes, in units of the points, decreasing. By default from a quarter of the longest extent down, by
    factors of the square root of 2, as long as boxes hold `occupancy` points on average."""
    origin: float | None = None
    """Where the first grid has a corner, on every axis. By default the smallest value on each axis."""
    occupancy: float = 5.0
    """Fewest points per box on average, without `sides`: fewer, and boxes are missed (0.7 % at 5 in a plane)."""
    n_grids: int = 4
    """Grids, shifted by equal parts of a box along the diagonal."""
    nan_policy: Literal["raise", "omit"] = "raise"
    """Refuse a point with NaN or infinity, or ("omit") leave it out and count it."""
    n_subsamples: int = 40
    """Half-samples behind the interval; 0 for none."""
    n_surrogates: int = 39
    """Gaussian clouds behind the null; 0 for none."""
    seed: int = 0
    """Draws the half-samples and the Gaussian clouds."""

    def __post_init__(self) -> None:
        if self.sides and (len(self.sides) < FEWEST or min(self.sides) <= 0):
            raise ConfigurationError(f"sides must be at least {FEWEST} positive numbers. Got {self.sides}.")
        if list(self.sides) != sorted(set(self.sides), reverse=True):
            raise ConfigurationError(f"sides must decrease. Got {self.sides}.")
        if self.occupancy < 1 or not 1 <= self.n_grids <= 64:
            raise ConfigurationError(
                f"occupancy must be at least 1, and n_grids in 1 ... 64. Got {self.occupancy} and {self.n_grids}."
            )
        check_draws(self.nan_policy, n_subsamples=self.n_subsamples, n_surrogates=self.n_surrogates)


@dataclass(frozen=True, slots=True)
class BoxCountingDimensionResult(Result):
    """How a cloud fills space."""

    technique: ClassVar[str] = "box_counting_dimension"
    evidence: ClassVar[str] = (
        "Interval: spread over half-samples, which is that of the estimate, and the standard error of the line "
        "(Student's t, 95 %), without the bias of a finite sample: of 3000 points of Sierpinski's triangle it covers "
        "34 % (boxes), 84 % (information), 76 % (correlation). Null: Gaussian clouds of the same size and covariance, "
        "p for a smaller value."
    )
    figures: ClassVar[tuple[Curve, ...]] = (
        Curve(
            x="side",
            y=("n_boxes", "fitted_n_boxes"),
            title="Boxes by side",
            x_label="side of a box",
            y_label="boxes that hold a point",
            log_x=True,
            log_y=True,
        ),
        Curve(
            x="side",
            y=("local_slope", "lacunarity"),
            title="Local dimension and lacunarity",
            x_label="side of a box",
            log_x=True,
        ),
    )

    dimension: Estimate
    """D_0: between 0 (points) and the number of coordinates."""
    information_dimension: Estimate
    """D_1: at most D_0; what a typical point sees."""
    correlation_dimension: Estimate
    """D_2: at most D_1; what dense parts of the cloud have."""
    r_squared: float
    """Of the line of ln N: 1 is a perfect power law."""
    slope_range: float
    """Largest less smallest local slope of ln N."""
    largest_side: float
    """Of the fit, in units of the points."""
    smallest_side: float
    """Of the fit."""
    n_samples: int
    """Points counted."""
    n_coordinates: int
    """Dimension of the space."""
    n_nan: int
    """Points left out because a coordinate is not finite."""
    side: Float[np.ndarray, "scale"]
    n_boxes: Int[np.ndarray, "scale"]
    fitted_n_boxes: Float[np.ndarray, "scale"]
    local_slope: Float[np.ndarray, "scale"]
    """Dimension between neighbouring scales."""
    lacunarity: Float[np.ndarray, "scale"]

    def reading(self) -> str:
        """Say how the cloud fills space, and whether a power law describes it."""
        d = self.dimension
        text = f"Boxes multiply as side^-{d.value:.3f}"
        text += f" [{d.low:.3f}, {d.high:.3f}]" if np.isfinite(d.low) else ""
        if np.isfinite(d.p_value):
            less = "less than" if d.p_value < 0.05 else "not less than"
            text += f": {less} Gaussian clouds of this size and shape ({d.null:.3f}, p = {d.p_value:.2g})"
        if self.slope_range > CURVED:
            return f"{text}. Local slopes differ by {self.slope_range:.2f}, so this is no one dimension."
        return f"{text}."


def box_counting_dimension(
    points: Float[np.ndarray, "sample coordinate"],
    *,
    config: BoxCountingDimensionConfig = BoxCountingDimensionConfig(),
) -> BoxCountingDimensionResult:
    """Measure how a cloud of points fills the space it lies in, by counting boxes.

    Use it for clouds in few coordinates (a projection, a trajectory, weights in a plane) that may be fractal: a set
    with gaps at all scales. For the dimension of a manifold in many coordinates use neighbour-based intrinsic
    dimension, which needs exponentially fewer points. The number depends on the range of scales (see local slopes),
    and rotating the cloud changes it a little.

    Parameters
    ----------
    points
        One point per row; some 1000 for each factor of two in scale that a plane shall have.
    config
        The boxes, what to do about NaN, and the number of draws.

    Returns
    -------
    BoxCountingDimensionResult
        Dimensionless `dimension`: 0 for finitely many places, 1 for a curve, 2 for a surface, between for fractals.

    Raises
    ------
    DtypeError
        If `points` does not hold real numbers.
    ShapeError
        If `points` is not (sample, coordinate).
    DegenerateInputError
        If a value is NaN or infinite and the policy is to raise, all points are equal, or they are too few to hold 3
        scales.

    Notes
    -----
    Scaling or shifting the cloud changes nothing, unless `sides` or `origin` are given. Half of the points without
    replacement vary about the whole as the whole varies about the truth, so their spread needs no correction.

    References
    ----------
    [@mandelbrot1982]
    [@grassberger1983]

    Examples
    --------
    The Cantor set of twelve levels, in boxes of its own sides:

    >>> from mechint_core.synthetic.fractal_sets import cantor_set
    >>> config = BoxCountingDimensionConfig(sides=tuple(3.0**-k for k in range(1, 12)), origin=0.0)
    >>> round(box_counting_dimension(cantor_set(12).points, config=config).dimension.value, 7)
    0.6309298
    """
    x, n_nan = _finite_points(points, config.nan_policy)
    side = np.array(config.sides) if config.sides else _automatic_sides(x, config)
    measures = _measures(x, side, config)
    slopes = _slopes(measures, side)
    halves = map_parallel(partial(_half_sample, x, side, config), range(config.n_subsamples))
    null = map_parallel(partial(_gaussian_cloud, x, side, config), range(config.n_surrogates))
    estimates = [
        _estimate(float(slopes[i]), np.array([half[i] for half in halves]), np.array([each[i] for each in null]), error)
        for i, error in enumerate(_line_errors(measures, side))
    ]
    log_side, height = np.log(side), measures[0]
    local = -np.gradient(height, log_side)
    variance = float(np.sum((height - height.mean()) ** 2))
    explained = slopes[0] ** 2 * float(np.sum((log_side - log_side.mean()) ** 2)) / variance if variance else NAN
    return BoxCountingDimensionResult(
        dimension=estimates[0],
        information_dimension=estimates[1],
        correlation_dimension=estimates[2],
        r_squared=explained,
        slope_range=float(np.ptp(local)),
        largest_side=float(side[0]),
        smallest_side=float(side[-1]),
        n_samples=len(x),
        n_coordinates=x.shape[1],
        n_nan=n_nan,
        side=side,
        n_boxes=np.round(np.exp(height)).astype(np.int64),
        fitted_n_boxes=np.exp(height.mean() - slopes[0] * (log_side - log_side.mean())),
        local_slope=local,
        lacunarity=np.exp(measures[0] - measures[2]),
    )


def _finite_points(points: np.ndarray, policy: str) -> tuple[Float[np.ndarray, "sample coordinate"], int]:
    """Return the finite points as float64, and how many are not."""
    if points.dtype.kind not in "fiu":
        raise DtypeError(f"points must hold real numbers. Got {points.dtype}.")
    if points.ndim != 2 or 0 in points.shape:
        raise ShapeError(f"points must be (sample >= 1, coordinate >= 1). Got shape {points.shape}.")
    finite = np.isfinite(points).all(axis=1)
    n_nan = int(np.sum(~finite))
    if n_nan and policy == "raise":
        raise DegenerateInputError(
            f"points must be finite. Got NaN or infinity in {n_nan} of {len(points)}. "
            "Pass nan_policy='omit' to leave those out."
        )
    x = points[finite].astype(np.float64)
    if len(x) < 2 or not np.ptp(x, axis=0).any():
        raise DegenerateInputError(f"points must differ. Got {len(x)} finite points, all equal.")
    return x, n_nan


def _automatic_sides(x: Float[np.ndarray, "sample coordinate"], config: BoxCountingDimensionConfig) -> np.ndarray:
    """Return sides from coarse to fine, as long as boxes hold enough points."""
    extent = float(np.ptp(x, axis=0).max())
    sides: list[float] = []
    for half_octave in range(2 * int(np.log2(FINEST))):
        side = extent / round(COARSEST * 2 ** (half_octave / 2))
        if np.exp(_measures(x, np.array([side]), config)[0, 0]) * config.occupancy > len(x):
            break
        sides.append(side)
    if len(sides) < FEWEST:
        raise DegenerateInputError(
            f"points must be enough for {FEWEST} scales with {config.occupancy:g} points per box. Got {len(x)} points "
            f"in {x.shape[1]} coordinates, enough for {len(sides)}. Project onto fewer coordinates or give sides."
        )
    return np.array(sides)


def _measures(
    x: Float[np.ndarray, "sample coordinate"], side: Float[np.ndarray, "scale"], config: BoxCountingDimensionConfig
) -> Float[np.ndarray, "3 scale"]:
    """Return ln N, the entropy, and -ln sum p^2 of the grid with fewest boxes at each scale."""
    from_corner = x - (x.min(axis=0) if config.origin is None else config.origin)
    found = np.empty((3, side.size))
    for i, length in enumerate(side):
        position = from_corner / length
        counts = [_occupancies(position + shift) for shift in np.arange(config.n_grids) / config.n_grids]
        share = min(counts, key=len) / len(x)
        found[:, i] = np.log(share.size), -np.sum(share * np.log(share)), -np.log(np.sum(share**2))
    return found


def _occupancies(position: Float[np.ndarray, "sample coordinate"]) -> Int[np.ndarray, "box"]:
    """Return how many points each box holds; boxes of side 1."""
    box = np.floor(position)
    box -= box.min(axis=0)
    code = np.zeros(len(box), dtype=np.int64)
    n_codes = 1
    for column in box.astype(np.int64).T:
        if n_codes > 2**62 // (int(column.max()) + 1):  # renumber the boxes so far: at most as many as points
            _, code = np.unique(code, return_inverse=True)
            n_codes = int(code.max()) + 1
        code = code * (int(column.max()) + 1) + column
        n_codes *= int(column.max()) + 1
    if n_codes <= DENSE * len(code):  # counting is 5 times faster than sorting
        counts = np.bincount(code)
        return counts[counts > 0]
    return np.unique(code, return_counts=True)[1]


def _slopes(measures: Float[np.ndarray, "3 scale"], side: Float[np.ndarray, "scale"]) -> Float[np.ndarray, "3"]:
    run = np.log(side) - np.log(side).mean()
    return -(measures @ run) / (run @ run)


def _line_errors(measures: Float[np.ndarray, "3 scale"], side: Float[np.ndarray, "scale"]) -> Float[np.ndarray, "3"]:
    """Return the standard error of each slope from its residuals."""
    run = np.log(side) - np.log(side).mean()
    residual = measures - measures.mean(axis=1, keepdims=True) + _slopes(measures, side)[:, None] * run
    return np.sqrt(np.sum(residual**2, axis=1) / max(1, side.size - 2) / (run @ run))


def _half_sample(x: np.ndarray, side: np.ndarray, config: BoxCountingDimensionConfig, number: int) -> np.ndarray:
    rng = stream(config.seed, "half_sample", str(number))
    return _slopes(_measures(x[rng.permutation(len(x))[: -(-len(x) // 2)]], side, config), side)


def _gaussian_cloud(x: np.ndarray, side: np.ndarray, config: BoxCountingDimensionConfig, number: int) -> np.ndarray:
    """Return the slopes of a Gaussian cloud with the covariance and, by default, the extent of `x`."""
    rng = stream(config.seed, "gaussian_cloud", str(number))
    centred = x - x.mean(axis=0)
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    cloud = rng.standard_normal((len(x), len(scale))) @ (scale[:, None] * axes) / np.sqrt(len(x)) + x.mean(axis=0)
    own = side if config.sides else _automatic_sides(cloud, config)
    return _slopes(_measures(cloud, own, config), own)


def _estimate(value: float, halves: np.ndarray, null: np.ndarray, line_error: float) -> Estimate:
    spread = float(halves.std(ddof=1)) if halves.size > 1 else NAN
    half = float(stdtrit(max(1, halves.size - 1), (1 + LEVEL) / 2) * np.hypot(spread, line_error))
    typical = float(null.mean()) if null.size else NAN
    return Estimate(value, value - half, value + half, typical, p_value(value, null, "less"), LEVEL)
