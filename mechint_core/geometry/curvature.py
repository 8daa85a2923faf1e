"""Curvature: how the manifold that activations lie on bends, against its own noise.

    w(u) = a + B u + 1/2 u' II u               the neighbours of a sample over its tangent space of d dimensions
    mean curvature        |H| = |tr II| / d    1 / R on a sphere of radius R, 0 on a plane; that of a curve if d = 1
    scalar curvature      R = |tr II|^2 - |II|^2                          d (d - 1) / R^2 on a sphere
    sectional curvature   K = R / (d (d - 1))                             Gauss's if d = 2; 1 / R^2 on a sphere

|H| says how the manifold bends in space; K what its inhabitants could measure: a rolled-up sheet has |H| > 0 and K = 0.

Source: [@docarmo1992], [@cazals2005].
Cost: one neighbour graph, and per anchor one fit and `n_surrogates` products of (k + 1) x k.
Chunked over: rows of the graph, anchors.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import ConfigurationError, DegenerateInputError
from mechint_core.figure import Histogram
from mechint_core.geometry._distinct_cloud import DistinctCloud
from mechint_core.geometry._local_spectrum import gap_dimension, local_spectra, typical_spectrum
from mechint_core.geometry._quadratic_fit import LocalCurvature, curvature_at, n_coefficients
from mechint_core.kernels.resampling import estimate
from mechint_core.kernels.surrogates import shuffled_orders
from mechint_core.parallel import map_parallel
from mechint_core.random import generator
from mechint_core.result import Estimate, Result

FEWEST_SURROGATES: Final = 19
FEWEST_NEIGHBOURS: Final = 24
NEIGHBOURS_PER_COEFFICIENT: Final = 4
BENT: Final = 0.05
"""A sectional curvature of a smaller share of |H|^2 is within the error of fitting a quadratic."""
ANCHORS_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvatureConfig:
    """Over how many neighbours to fit, in how many dimensions, and how sure to be."""

    dimension: int = 0
    """Of the manifold. 0 takes that of local PCA, where neighbourhoods have a clear one."""
    n_neighbours: int = 0
    """Of each fit. 0 takes 4 for each coefficient of the quadratic, at least 24. More of them average noise out, and
    must still lie within a small part of the radius of curvature."""
    n_anchors: int = 300
    """Samples at which curvature is measured."""
    n_surrogates: int = 99
    """Flat neighbourhoods of the null, 0 for none."""
    n_bootstrap: int = 200
    """Draws of anchors behind the intervals; 0 for none."""
    seed: int = 0
    """Draws anchors, surrogates and the bootstrap."""

    def __post_init__(self) -> None:
        if min(self.dimension, self.n_neighbours, self.n_bootstrap) < 0 or self.n_anchors < 2:
            raise ConfigurationError(
                f"dimension, n_neighbours and n_bootstrap must not be negative, n_anchors at least 2. Got {self}."
            )
        if self.n_surrogates != 0 and self.n_surrogates < FEWEST_SURROGATES:
            raise ConfigurationError(
                f"n_surrogates must be 0 or at least {FEWEST_SURROGATES}. Got {self.n_surrogates}."
            )

    def neighbours_for(self, dimension: int) -> int:
        """Return how many neighbours a fit in so many dimensions takes."""
        return self.n_neighbours or max(FEWEST_NEIGHBOURS, NEIGHBOURS_PER_COEFFICIENT * n_coefficients(dimension))


@dataclass(frozen=True, slots=True)
class Curvature(Result):
    """How a cloud bends: in space, and in itself."""

    technique: ClassVar[str] = "curvature"
    evidence: ClassVar[str] = (
        "Interval: bootstrap of anchors (95 %), whose neighbourhoods may overlap; without the error of fitting a "
        "quadratic (of a sphere's (1 + r^2 / 4 R^2) / R it covers 77 to 94 %) and too low where `noise_floor` is near "
        "|H| (it covers 3 %). Null: flat neighbourhoods with the same noise, that is, with what each fit leaves in "
        "random order, so K of a bent sheet has a small p too (90 % of noisy cylinders); one-sided p for the mean "
        "curvature, two-sided for the others."
    )
    figures: ClassVar[tuple[Histogram, ...]] = (
        Histogram(values="mean_curvature_at", title="Mean curvature at the anchors", x_label="|H|"),
        Histogram(values="sectional_curvature_at", title="Sectional curvature at the anchors", x_label="K"),
    )

    mean_curvature: Estimate
    """Median |H|, in 1 / units of the points, noise subtracted; 0 where there is no more than noise."""
    scalar_curvature: Estimate
    """Median R, in 1 / units squared; 0 for a curve."""
    sectional_curvature: Estimate
    """Median K, in 1 / units squared; NaN for a curve."""
    dimension: int
    n_neighbours: int
    noise: float
    """Median standard deviation from the fit, over all normal directions together, in the units of the points."""
    noise_floor: float
    """Median |H| that noise of this size gives by itself: bends below it are not seen at one anchor."""
    radius: float
    """Median distance to the farthest neighbour of a fit. |H| times it should be well below 1."""
    n_anchors: int
    n_duplicates: int
    """Samples left out because they equal another, up to rounding."""
    n_surrogates: int
    anchor: Int[np.ndarray, "centre"]
    """The samples at which curvature was measured."""
    mean_curvature_at: Float[np.ndarray, "centre"]
    scalar_curvature_at: Float[np.ndarray, "centre"]
    sectional_curvature_at: Float[np.ndarray, "centre"]

    def reading(self) -> str:
        """Say whether the cloud bends more than its noise, and whether it is curved in itself."""
        h, k = self.mean_curvature, self.sectional_curvature
        text = f"As a manifold of {self.dimension} dimension{'s' * (self.dimension > 1)} the cloud bends with"
        text += f" |H| = {h.value:.3g}" + (f" (radius {1 / h.value:.3g})" if h.value > 0 else "")
        if np.isfinite(h.p_value):
            text += f", {'more' if h.p_value <= 0.05 else 'no more'} than its noise explains (p = {h.p_value:.2g})"
        if np.isfinite(k.value):
            shape = "like a sphere" if k.value > 0 else "like a saddle"
            if k.p_value > 0.05 or abs(k.value) <= BENT * h.value**2:
                shape = "not distinguishable from a sheet that was bent without stretching"
            text += f"; in itself it has K = {k.value:.3g}, {shape}"
        if h.value * self.radius > 1:
            text += ". Neighbourhoods are as large as the radius of curvature: do not trust these, take more samples"
        return text + "."


def curvature(
    points: Float[np.ndarray, "sample unit"],
    *,
    config: CurvatureConfig = CurvatureConfig(),
) -> Curvature:
    """Measure how the manifold that activations lie on bends, and whether that is more than noise.

    Use it to tell whether a representation is flat, whether a variable is laid out on a ring of what radius, or
    whether layers straighten it. It assumes a manifold of one dimension without self-crossings, and neighbourhoods
    that are small against its radius of curvature and large against its noise; `radius`, `noise` and `noise_floor`
    say so. It measures what a neighbourhood shows: bends smaller than that are noise.

    Parameters
    ----------
    points
        One activation vector per sample.
    config
        Dimension, neighbours, anchors, surrogates.

    Returns
    -------
    Curvature
        |H| in 1 / units of `points`, R and K in 1 / units squared.

    Raises
    ------
    ShapeError
        If `points` is not (sample, unit).
    DegenerateInputError
        If a value is NaN or infinite, or fewer than 20 samples are distinct.
    DegenerateInputError
        If local PCA sees no dimension, or as many as there are units, and `dimension` is 0.
    DegenerateInputError
        If there are fewer than 4 samples for each neighbour of a fit.
    ConfigurationError
        If `dimension` leaves no unit to bend into, or `n_neighbours` are too few for the quadratic.

    Notes
    -----
    On a sphere of radius R the quadratic over a cap of radius r gives |H| too large by r^2 / (4 R^2).

    References
    ----------
    [@docarmo1992]
    [@cazals2005]

    Examples
    --------
    A circle of radius 5 is a curve of curvature 0.2:

    >>> from mechint_core.synthetic.manifolds import polygon
    >>> round(curvature(5 * polygon(2000).points).mean_curvature.value, 3)
    0.2
    """
    cloud, d = _seen(points, config)
    n_neighbours = cloud.graph.index.shape[1]
    rng = generator(config.seed, "geometry", "curvature", "anchor")
    anchor = np.sort(rng.choice(len(cloud.rows), min(config.n_anchors, len(cloud.rows)), replace=False))
    local = _local(cloud, anchor, d, config)
    pairs = d * (d - 1)
    sectional = local.scalar / pairs if pairs else np.full(len(anchor), np.nan)
    null_sectional = local.null_scalar / pairs if pairs else np.full(local.null_scalar.shape, np.nan)
    return Curvature(
        mean_curvature=_bound(local.square_mean, local.null_square_mean, config, root=True),
        scalar_curvature=_bound(local.scalar, local.null_scalar, config) if pairs else Estimate(0.0),
        sectional_curvature=_bound(sectional, null_sectional, config) if pairs else Estimate(np.nan),
        dimension=d,
        n_neighbours=n_neighbours,
        noise=float(np.median(local.noise)),
        noise_floor=float(np.median(local.floor)),
        radius=float(np.median(cloud.graph.distance[anchor, -1])),
        n_anchors=len(anchor),
        n_duplicates=cloud.n_duplicates + cloud.n_near_duplicates,
        n_surrogates=config.n_surrogates,
        anchor=cloud.first[anchor],
        mean_curvature_at=np.sqrt(np.maximum(local.square_mean, 0)),
        scalar_curvature_at=local.scalar,
        sectional_curvature_at=sectional,
    )


def _seen(points: np.ndarray, config: CurvatureConfig) -> tuple[DistinctCloud, int]:
    """Return the cloud with as many neighbours as a fit takes, and its dimension."""
    d = config.dimension
    if d == 0:
        small = DistinctCloud.of(points, config.n_neighbours or FEWEST_NEIGHBOURS)
        d = _local_dimension(small, config)
    if d >= points.shape[1]:
        raise ConfigurationError(
            f"dimension must be below the number of units, so that there is something to bend into. "
            f"Got {d} of {points.shape[1]}."
        )
    n_neighbours = config.neighbours_for(d)
    if n_neighbours < n_coefficients(d) + 1:
        raise ConfigurationError(
            f"n_neighbours must be at least {n_coefficients(d) + 1} for a quadratic in {d} dimensions. "
            f"Got {n_neighbours}."
        )
    cloud = DistinctCloud.of(points, n_neighbours)
    if cloud.graph.index.shape[1] < n_neighbours:
        raise DegenerateInputError(
            f"points must hold at least {4 * n_neighbours} distinct samples, 4 for each neighbour of a fit in {d} "
            f"dimensions. Got {len(cloud.rows)}. Collect more, or pass a smaller dimension or n_neighbours."
        )
    return cloud, d


def _local_dimension(cloud: DistinctCloud, config: CurvatureConfig) -> int:
    rng = generator(config.seed, "geometry", "curvature", "dimension")
    anchor = rng.choice(len(cloud.rows), min(config.n_anchors, len(cloud.rows)), replace=False)
    spectra = local_spectra(cloud.rows, np.column_stack([anchor, cloud.graph.index[anchor]]))
    found = gap_dimension(typical_spectrum(spectra), cloud.rows.shape[1])
    if np.isnan(found) or int(found) == cloud.rows.shape[1]:
        what = "no gap" if np.isnan(found) else "every unit filled"
        raise DegenerateInputError(
            f"points must lie near a manifold of fewer dimensions than units. Got {what} in the eigenvalues of "
            "neighbourhoods. Pass dimension."
        )
    return int(found)


def _local(cloud: DistinctCloud, anchor: Int[np.ndarray, "centre"], d: int, config: CurvatureConfig) -> LocalCurvature:
    """Return curvature at the anchors, fitted block by block."""
    members = np.column_stack([anchor, cloud.graph.index[anchor]])
    rng = generator(config.seed, "geometry", "curvature", "surrogate")
    orders = shuffled_orders(members.shape[1], n_draws=config.n_surrogates, rng=rng)
    blocks = [members[start : start + ANCHORS_AT_ONCE] for start in range(0, len(members), ANCHORS_AT_ONCE)]
    return LocalCurvature.joined(map_parallel(partial(_block, cloud.rows, d, orders), blocks))


def _block(
    rows: Float[np.ndarray, "row unit"],
    d: int,
    orders: Int[np.ndarray, "draw member"],
    members: Int[np.ndarray, "centre member"],
) -> LocalCurvature:
    return curvature_at(rows, members, d, orders)


def _bound(
    local: Float[np.ndarray, "centre"],
    null: Float[np.ndarray, "draw centre"],
    config: CurvatureConfig,
    *,
    root: bool = False,
) -> Estimate:
    """Bind the median to its interval over anchors and to that of flat neighbourhoods; `root` for squares."""
    rng = generator(config.seed, "geometry", "curvature", "bootstrap")
    drawn = rng.integers(0, len(local), (config.n_bootstrap, len(local)))
    value, draws, flat = np.median(local), np.median(local[drawn], axis=1), np.median(null, axis=1)
    if root:
        value, draws, flat = (np.sqrt(np.maximum(each, 0)) for each in (value, draws, flat))
    return estimate(float(value), bootstrap=draws, null=flat, tail="greater" if root else "two-sided")
