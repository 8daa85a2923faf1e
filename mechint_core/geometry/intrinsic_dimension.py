"""Intrinsic dimension: of how many numbers a cloud of activations is a function, at every scale.

    TwoNN                 d = n / sum_i ln(r_2 / r_1)                                  the smallest scale there is
    Gride                 the same from r_2k / r_k, k = 1, 2, 4, ...                   d as a function of scale
    MLE                   d = 1 / mean_i mean_{j<k} ln(r_k / r_j)
    local d of a sample   (k - 2) / sum_{j<k} ln(r_k / r_j)
    local PCA             where the eigenvalues of neighbourhoods fall off most
    participation ratio   (sum lambda)^2 / sum lambda^2                                of the whole cloud's covariance

r_k is the distance to the k-th nearest sample. All but the last come from one graph of neighbours.

Source: [@facco2017], [@denti2022], [@levina2004], [@mackay2005].
Cost: one neighbour graph, and one for each surrogate and each simulated solid; 3 s for 10,000 x 512 without those.
Chunked over: rows of the graph, surrogates, solids.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import ConfigurationError
from mechint_core.figure import Curve, Histogram
from mechint_core.geometry._dimension_calibration import SOLIDS, calibrate
from mechint_core.geometry._distinct_cloud import DistinctCloud
from mechint_core.geometry._local_spectrum import gap_dimension, local_spectra, noise_floor, typical_spectrum
from mechint_core.geometry._neighbour_ratios import DimensionEstimate, gride, maximum_likelihood, mean_log_ratio
from mechint_core.geometry._participation_ratio import participation_ratios
from mechint_core.geometry._point_cloud import principal_axes, random_copy
from mechint_core.kernels.neighbour_graph import NeighbourGraph, neighbour_graph
from mechint_core.kernels.resampling import estimate, percentile_interval
from mechint_core.parallel import map_parallel
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

FEWEST_SURROGATES: Final = 19
"""Fewer cannot reach p = 0.05."""
GROUPS: Final = 20
"""Parts of the cloud that are left out in turn, for the interval of the participation ratio."""
T_19: Final = 2.093
"""Student's t of 19 degrees of freedom, 95 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntrinsicDimensionConfig:
    """How far neighbourhoods reach, and how sure to be."""

    n_neighbours: int = 20
    """Neighbours behind the maximum-likelihood estimate and the local dimensions."""
    max_neighbours: int = 64
    """Gride goes up to this neighbour, and local PCA is made of so many; at most a quarter of the samples are used."""
    n_anchors: int = 200
    """Samples whose neighbourhoods local PCA is made of."""
    n_surrogates: int | None = None
    """Gaussian clouds of the null, 0 for none. By default 99 for up to 500 samples, fewer for more, never below 19."""
    n_calibrations: int | None = None
    """Draws of each simulated solid behind the corrected dimension, 0 for none. By default 4 for up to 1000 samples,
    fewer for more."""
    n_bootstrap: int = 200
    """Draws of anchors behind the interval of local PCA; 0 for none."""
    seed: int = 0
    """Draws anchors, surrogates and solids."""

    def __post_init__(self) -> None:
        if self.n_neighbours < 3:
            raise ConfigurationError(f"n_neighbours must be at least 3. Got {self.n_neighbours}.")
        if self.max_neighbours < 2 or self.n_anchors < 2:
            raise ConfigurationError(
                f"max_neighbours and n_anchors must be at least 2. Got {self.max_neighbours} and {self.n_anchors}."
            )
        if self.n_surrogates is not None and self.n_surrogates != 0 and self.n_surrogates < FEWEST_SURROGATES:
            raise ConfigurationError(
                f"n_surrogates must be 0 or at least {FEWEST_SURROGATES}. Got {self.n_surrogates}."
            )
        if min(self.n_bootstrap, self.n_calibrations or 0, self.n_surrogates or 0) < 0:
            raise ConfigurationError(f"n_bootstrap and n_calibrations must not be negative. Got {self}.")

    def surrogates_for(self, n_points: int) -> int:
        """Return how many surrogates are drawn for so many samples."""
        if self.n_surrogates is not None:
            return self.n_surrogates
        return int(np.clip(99 * 500 / n_points, FEWEST_SURROGATES, 99))

    def calibrations_for(self, n_points: int) -> int:
        """Return how often each solid is drawn for so many samples."""
        if self.n_calibrations is not None:
            return self.n_calibrations
        return int(np.clip(4000 // n_points, 1, 4))


@dataclass(frozen=True, slots=True)
class IntrinsicDimension(Result):
    """The dimension of a cloud by several estimators, by scale and around each sample."""

    technique: ClassVar[str] = "intrinsic_dimension"
    evidence: ClassVar[str] = (
        "Intervals (95 %): likelihood, with the scores of neighbouring samples correlated; for the corrected dimension "
        "the assumed shape added; for local PCA a bootstrap of anchors; for the participation ratio a jackknife of 20 "
        "groups. Null: Gaussian clouds with exactly the same covariance (p: the data have fewer dimensions); for the "
        "participation ratio an isotropic cloud of that size."
    )
    figures: ClassVar[tuple[Curve | Histogram, ...]] = (
        Curve(
            x="radius",
            y=("dimension_by_scale", "null_by_scale"),
            low="low_by_scale",
            high="high_by_scale",
            title="Dimension by scale (Gride), and of Gaussian clouds of the same covariance",
            x_label="distance to the farther neighbour",
            y_label="dimension",
            log_x=True,
        ),
        Curve(
            y=("local_spectrum",),
            title="Eigenvalues of neighbourhoods",
            x_label="component",
            y_label="share of the variance",
            log_y=True,
        ),
        Histogram(values="local_dimension", title="Dimension around each sample", x_label="local dimension"),
    )

    two_nn: Estimate
    """From the two nearest neighbours. Too small above about 10 dimensions: see `corrected`."""
    corrected: Estimate
    """The dimension of a Gaussian cloud of as many samples that shows the same `two_nn`. Its interval reaches from a
    sphere, which has no border, to a cube. NaN if nothing was simulated."""
    mle: Estimate
    """From `n_neighbours` neighbours: a larger scale, less variance, more bias."""
    local_pca: Estimate
    """Directions that neighbourhoods spread in; NaN where their eigenvalues fall off without a gap."""
    participation_ratio: Estimate
    """Of the whole cloud: the linear dimensions it fills, an upper reference. From 1 to the number of units."""
    noise_floor: float
    """Standard deviation of a neighbourhood along each of the other directions: noise and curvature, in the units of
    the points. NaN if there are none."""
    n_points: int
    """Distinct samples that the estimates are made of."""
    n_duplicates: int
    """Samples left out because they equal another."""
    n_near_duplicates: int
    """Samples left out because they lie within 1e-4 of a typical neighbourhood of another: copies with rounding."""
    n_surrogates: int
    neighbour: Int[np.ndarray, "scale"]
    """2 k, the farther of the two neighbours of Gride."""
    radius: Float[np.ndarray, "scale"]
    """Median distance to that neighbour."""
    dimension_by_scale: Float[np.ndarray, "scale"]
    low_by_scale: Float[np.ndarray, "scale"]
    high_by_scale: Float[np.ndarray, "scale"]
    null_by_scale: Float[np.ndarray, "scale"]
    """Mean of the Gaussian clouds."""
    local_dimension: Float[np.ndarray, "sample"]
    """Around each sample; its relative standard error is about 1 / sqrt(n_neighbours - 3). NaN where all its
    neighbours are equally far."""
    local_spectrum: Float[np.ndarray, "component"]
    """Eigenvalues of neighbourhoods relative to their sum, geometric mean over anchors."""

    def reading(self) -> str:
        """Say how many dimensions there are at the smallest scale, and whether that is few for this covariance."""
        d, scales = self.two_nn, self.dimension_by_scale
        if np.isnan(d.value):
            return "All neighbours are equally far, as on a grid: ratios of distances say nothing about dimension."
        text = f"The cloud has {d.value:.1f} dimensions [{d.low:.1f}, {d.high:.1f}] at the smallest scale"
        if self.corrected.value > max(1.0, 1.15 * d.value):
            text += f" ({self.corrected.value:.0f} corrected for the number of samples)"
        if len(scales) > 1:
            text += f", {scales[-1]:.1f} at the {self.neighbour[-1]}th neighbour"
        if np.isfinite(d.p_value):
            fewer = "fewer than" if d.p_value <= 0.05 else "no fewer than"
            text += f": {fewer} a Gaussian cloud of the same covariance ({d.null:.1f}, p = {d.p_value:.2g})"
        if d.high < 1:
            text += ". Fewer than one: samples come in tight groups, such as near copies; read larger scales"
        left_out = self.n_duplicates + self.n_near_duplicates
        return f"{text}." + (f" {left_out} copies of other samples were left out." if left_out else "")


def intrinsic_dimension(
    points: Float[np.ndarray, "sample unit"],
    *,
    config: IntrinsicDimensionConfig = IntrinsicDimensionConfig(),
) -> IntrinsicDimension:
    """Ask of how many numbers a cloud of activations is a function, and whether its covariance explains that.

    Use it to follow how representations compress over layers or training. It assumes that samples are independent
    and that density hardly changes within a neighbourhood. Noise raises the dimension at scales below its size:
    read `dimension_by_scale` from there on. Above about 10 dimensions every estimate from neighbours is too small,
    the more so the fewer samples; `corrected` says by how much, if the cloud is shaped like a Gaussian.

    Parameters
    ----------
    points
        One activation vector per sample; some 500 samples and more.
    config
        Neighbours, anchors, surrogates, simulated solids.

    Returns
    -------
    IntrinsicDimension
        Dimensions, from above 0; exact copies and copies with rounding are left out and counted.

    Raises
    ------
    ShapeError
        If `points` is not (sample, unit).
    DegenerateInputError
        If a value is NaN or infinite.
    DegenerateInputError
        If fewer than 20 samples are distinct.

    Notes
    -----
    The maximum-likelihood forms are used throughout: no line is fitted to a distribution function and no sample is
    discarded. The null keeps the singular values of the centred cloud, which is an exact test of "Gaussian with some
    covariance". Participation ratio and null of a cloud with fewer samples than units are bounded by the samples: the
    interval covers what n samples show, 1 / (1 / PR + 1 / (n - 1)). The intervals of likelihood leave out the bias of
    borders: for 300 samples of a ball of 3 dimensions that of `two_nn` covers in 88 %, of `mle` in 0 %, of `corrected`
    in 96 % of clouds.

    References
    ----------
    [@facco2017]
    [@denti2022]
    [@levina2004]
    [@mackay2005]
    [@fukunaga1971]
    [@langsrud2005]

    Examples
    --------
    A plane in 5 dimensions:

    >>> from mechint_core.synthetic.manifolds import uniform_cube
    >>> plane = intrinsic_dimension(uniform_cube(500, dimension=2, ambient=5).points)
    >>> round(plane.two_nn.value), plane.local_pca.value, plane.two_nn.p_value > 0.05
    (2, 2.0, True)
    """
    seen = DistinctCloud.of(points, max(config.max_neighbours, config.n_neighbours))
    n_neighbours = min(config.n_neighbours, seen.graph.index.shape[1])
    graph, rows = seen.graph, seen.rows
    ks = _scales(graph)
    by_scale = [gride(graph, k) for k in ks]
    mle = maximum_likelihood(graph, n_neighbours)
    null = _null(rows, ks, n_neighbours, config)
    raw = by_scale[0]
    spectra = _anchor_spectra(rows, graph, config)
    local_pca = _local_pca(spectra, points.shape[1], config)
    return IntrinsicDimension(
        two_nn=_tested(raw, null[:, 0]),
        corrected=_corrected(raw, len(rows), config),
        mle=_tested(mle, null[:, -1]),
        local_pca=local_pca,
        participation_ratio=_participation(rows, config),
        noise_floor=noise_floor(spectra, local_pca.value),
        n_points=len(rows),
        n_duplicates=seen.n_duplicates,
        n_near_duplicates=seen.n_near_duplicates,
        n_surrogates=len(null),
        neighbour=2 * np.array(ks),
        radius=np.median(graph.distance[:, 2 * np.array(ks) - 1], axis=0),
        dimension_by_scale=np.array([each.value for each in by_scale]),
        low_by_scale=np.array([each.low for each in by_scale]),
        high_by_scale=np.array([each.high for each in by_scale]),
        null_by_scale=null[:, :-1].mean(axis=0) if len(null) else np.full(len(ks), NAN),
        local_dimension=_local_dimension(graph, n_neighbours)[seen.row],
        local_spectrum=typical_spectrum(spectra),
    )


def intrinsic_dimension_many(
    clouds: Sequence[Float[np.ndarray, "sample unit"]],
    *,
    config: IntrinsicDimensionConfig = IntrinsicDimensionConfig(),
) -> list[IntrinsicDimension]:
    """Ask of each of many clouds how many dimensions it has: `intrinsic_dimension` of each, in order, in parallel.

    Parameters
    ----------
    clouds
        One array per cloud: sites, checkpoints, subjects.
    config
        Applies to every cloud, seed included.

    Returns
    -------
    list of IntrinsicDimension
        One for each cloud.

    Raises
    ------
    MechintError
        As `intrinsic_dimension`, for the first cloud that is at fault.
    """
    return map_parallel(partial(intrinsic_dimension, config=config), clouds)


def _scales(graph: NeighbourGraph) -> list[int]:
    """Return 1, 2, 4, ... as far as the graph reaches twice that."""
    return [2**j for j in range(graph.index.shape[1].bit_length() - 1)]


def _tested(dimension: DimensionEstimate, null: Float[np.ndarray, "draw"]) -> Estimate:
    """Bind an estimate to its interval and to the null: are there fewer dimensions than in a Gaussian cloud?"""
    if np.isnan(dimension.value):
        return Estimate(NAN)
    return replace(estimate(dimension.value, null=null, tail="less"), low=dimension.low, high=dimension.high)


def _null(
    rows: Float[np.ndarray, "row unit"], ks: list[int], n_neighbours: int, config: IntrinsicDimensionConfig
) -> Float[np.ndarray, "draw estimator"]:
    """Return Gride at every scale, and last the maximum-likelihood estimate, of clouds with the same covariance."""
    n_draws = config.surrogates_for(len(rows))
    if n_draws == 0:
        return np.empty((0, len(ks) + 1))
    exact = rows.astype(np.float64)
    centre, axes = principal_axes(exact, 0)
    one = partial(_of_copy, (exact - centre) @ axes, ks, n_neighbours, config.seed)
    return np.array(map_parallel(one, range(n_draws)))


def _of_copy(
    scores: Float[np.ndarray, "row component"], ks: list[int], n_neighbours: int, seed: int, draw: int
) -> list[float]:
    copy = random_copy(scores, generator(seed, "geometry", "intrinsic_dimension", "surrogate", draw))
    graph = neighbour_graph(copy, max(2 * ks[-1], n_neighbours))
    by_scale = [gride(graph, k, with_error=False).value for k in ks]
    return [*by_scale, maximum_likelihood(graph, n_neighbours, with_error=False).value]


def _corrected(raw: DimensionEstimate, n_points: int, config: IntrinsicDimensionConfig) -> Estimate:
    n_draws = config.calibrations_for(n_points)
    if n_draws == 0 or np.isnan(raw.value):
        return Estimate(NAN)
    known = calibrate(_two_nn, raw.value, n_points=n_points, n_neighbours=2, n_draws=n_draws, seed=config.seed)
    low = min(known.corrected(raw.low, solid) for solid in SOLIDS)
    high = max(known.corrected(raw.high, solid) for solid in SOLIDS)
    return Estimate(known.corrected(raw.value, "gaussian"), low, high)


def _two_nn(graph: NeighbourGraph) -> float:
    return gride(graph, 1, with_error=False).value


def _anchor_spectra(
    rows: Float[np.ndarray, "row unit"], graph: NeighbourGraph, config: IntrinsicDimensionConfig
) -> Float[np.ndarray, "anchor component"]:
    rng = generator(config.seed, "geometry", "intrinsic_dimension", "anchor")
    anchors = rng.choice(len(rows), min(config.n_anchors, len(rows)), replace=False)
    return local_spectra(rows, np.column_stack([anchors, graph.index[anchors]]))


def _local_pca(
    spectra: Float[np.ndarray, "anchor component"], n_units: int, config: IntrinsicDimensionConfig
) -> Estimate:
    """Return where the typical spectrum has its gap; the interval is that of resampled anchors."""
    value = gap_dimension(typical_spectrum(spectra), n_units)
    if np.isnan(value) or config.n_bootstrap == 0:
        return Estimate(value)
    rng = generator(config.seed, "geometry", "intrinsic_dimension", "bootstrap")
    draws = (spectra[rng.integers(0, len(spectra), len(spectra))] for _ in range(config.n_bootstrap))
    dimensions = np.array([gap_dimension(typical_spectrum(each), n_units) for each in draws])
    return Estimate(value, *percentile_interval(dimensions))


def _participation(rows: Float[np.ndarray, "row unit"], config: IntrinsicDimensionConfig) -> Estimate:
    """Return the participation ratio, with the jackknife over groups, beside that of an isotropic cloud."""
    n, n_units = rows.shape
    rng = generator(config.seed, "geometry", "intrinsic_dimension", "group")
    groups = np.array_split(rng.permutation(n), GROUPS)
    whole, *without = participation_ratios(rows - rows.mean(axis=0, dtype=np.float64), groups)
    spread = np.log(without)
    error = float(np.sqrt((GROUPS - 1) * np.mean((spread - spread.mean()) ** 2)))
    reach = np.exp(T_19 * error)
    return Estimate(float(whole), float(whole / reach), float(whole * reach), 1 / (1 / n_units + 1 / (n - 1)))


def _local_dimension(graph: NeighbourGraph, n_neighbours: int) -> Float[np.ndarray, "row"]:
    inverse = mean_log_ratio(graph, n_neighbours) * (n_neighbours - 1)
    tied = inverse <= 0
    return np.where(tied, NAN, (n_neighbours - 2) / np.where(tied, 1, inverse))
