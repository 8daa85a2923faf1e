"""Persistent homology of distances: components, loops and voids where there are dissimilarities and no points.

Join two points when their distance is at most r, for growing r. A class is born at r = b and filled in at r = d.

    longest H1     l = max (min(d, R) - b) / R       R = min_i max_j d_ij, or the largest distance if some are missing
    null           l of the same distances given to pairs at random, reduced to landmarks alike [@giusti2015]
    interval       l -+ q95 |l* - l|                 l* of half of the points
    Betti          bars longer than 95 % of the null have anywhere in that dimension, and of a ratio d / b that holes of
                   sampling alone do not reach [@bobrowski2023]
    landmarks      births and deaths move by 2 `cover_radius` at most [@cohensteiner2007], if d is a metric

Source: [@bauer2021], [@giusti2015], [@desilva2004].
Cost: (1 + n_surrogates + n_resamples) barcodes; as `persistent_homology` for dense distances, by triangles for sparse.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import sparray, spmatrix

from mechint_core.errors import MemoryBudgetError
from mechint_core.figure import Barcode, Histogram
from mechint_core.geometry._distance_pairs import Pairs
from mechint_core.geometry._point_cloud import Landmarks
from mechint_core.geometry._sampling_noise import noise_ratios
from mechint_core.geometry.persistent_homology import FEWEST_SURROGATES, LEVEL, PersistentHomologyConfig
from mechint_core.kernels.resampling import critical_value, estimate
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistentHomologyOfDistancesConfig:
    """Which complex to build of the distances, and what to compare it with."""

    max_dimension: int = 1
    """Highest homology dimension, 0 to 3: 1 for loops, 2 for voids too (much dearer)."""
    coefficient: int = 2
    """Prime p < 128 of the coefficient field Z/p."""
    max_points: int = 100
    """Replace more points by so many maxmin landmarks. Where distances are missing all points are used. A random
    arrangement of 100 points costs 0.6 s, of 200 ten times that: far more than one with a geometry."""
    memory_budget: int = 2**30
    """Bytes that the estimate of memory may not exceed."""
    beyond_budget: Literal["refuse", "subsample"] = "refuse"
    """What to do beyond the budget: refuse, or take as many landmarks as it holds (only where none is missing)."""
    n_surrogates: int | None = None
    """Random assignments of the distances, 0 for none. By default 99 for up to 50 points, fewer for more, >= 19."""
    n_resamples: int = 19
    """Halves of the points behind the interval; 0 for none."""
    seed: int = 0
    """Draws surrogates and resamples."""

    def __post_init__(self) -> None:
        self.of_points()

    def surrogates_for(self, n_points: int) -> int:
        """Return how many surrogates are drawn for a barcode of `n_points` points."""
        if self.n_surrogates is not None:
            return self.n_surrogates
        return int(np.clip(99 * (50 / n_points) ** 3, FEWEST_SURROGATES, 99))

    def of_points(self) -> PersistentHomologyConfig:
        """Return the options that points and distances have in common."""
        return PersistentHomologyConfig(
            max_dimension=self.max_dimension,
            coefficient=self.coefficient,
            max_points=self.max_points,
            memory_budget=self.memory_budget,
            beyond_budget=self.beyond_budget,
            n_surrogates=self.n_surrogates,
            n_resamples=self.n_resamples,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True)
class PersistentHomologyOfDistances(Result):
    """The barcode of the distances, and which of its bars are more than a random arrangement shows."""

    technique: ClassVar[str] = "persistent_homology_of_distances"
    evidence: ClassVar[str] = (
        "Interval: how far the longest loop moves when half of the points are left out (95 %). Null: the same "
        "distances given to pairs at random, which keeps their distribution and destroys all geometry, reduced to "
        "landmarks alike."
    )
    figures: ClassVar[tuple[Barcode | Histogram, ...]] = (
        Barcode(bars="bars", dimension="dimension", band="band", title="Barcode"),
        Histogram(values="distance", title="The distances", x_label="distance"),
    )

    longest_h1: Estimate
    """Length of the longest loop relative to `cut`, in [0, 1]; NaN if `max_dimension` is 0."""
    betti_0: int
    """Components beyond the band."""
    betti_1: int | float
    """Loops beyond the band and beyond sampling; NaN if `max_dimension` is 0."""
    band: float
    """Loops no longer than this are within what 95 % of the null show; 0 where no null was drawn."""
    cut: float
    """Where the complex was cut: the enclosing radius, or the largest distance if some are missing."""
    cover_radius: float
    """No point is farther from a landmark; 0 if every point was used."""
    n_points: int
    """Points the barcode was made of."""
    n_missing: int
    """Pairs of them without a distance."""
    n_merged: int
    """Pairs of them at distance 0."""
    n_unended: int
    """Bars above dimension 0 that are still open at the cut; their length is counted up to there."""
    n_surrogates: int
    memory_estimate: int
    """Bytes the barcode may have taken at its peak."""
    bars: Float[np.ndarray, "bar endpoint"]
    """In units of the distances; by dimension, then longest first. Infinity: open at the cut."""
    dimension: Int[np.ndarray, "bar"]
    betti: Int[np.ndarray, "dimension"]
    bands: Float[np.ndarray, "dimension"]
    noise_ratios: Float[np.ndarray, "dimension"]
    """Death over birth that only 5 % of spheres without such holes reach; 1 for components, and without surrogates."""
    landmark: Int[np.ndarray, "row"]
    """The points used, by their place in the input."""
    distance: Float[np.ndarray, "pair"]
    """The distances between them that are given."""

    def reading(self) -> str:
        """Say whether a loop stands out, against what, and how long it is."""
        longest = self.longest_h1
        missing = f" {self.n_missing} pairs have no distance." if self.n_missing else ""
        if len(self.bands) == 1:
            return f"{self.betti_0} components beyond the band; loops were not looked for.{missing}"
        length = f"the longest spans {longest.value:.2f} of the cut at {self.cut:.3g}"
        if self.n_surrogates == 0:
            return f"{self.betti_1} loops; {length}. No null was drawn.{missing}"
        against = f"the same distances at random {longest.null:.2f}, p = {longest.p_value:.2g}"
        if self.betti_1 == 0 and longest.value * self.cut > self.band:
            few = "but so few points of a surface show such gaps: more points may tell"
            return f"Perhaps a loop: {length} ({against}), {few}.{missing}"
        if self.betti_1 == 0:
            return f"No loop beyond what a random arrangement of the distances shows: {length} ({against}).{missing}"
        stand = "One loop stands out" if self.betti_1 == 1 else f"{self.betti_1} loops stand out"
        return f"{stand}: {length} ({against}).{missing}"


@dataclass(frozen=True, slots=True)
class _Bars:
    """A barcode that is cut."""

    bars: Float[np.ndarray, "bar endpoint"]
    dimension: Int[np.ndarray, "bar"]
    cut: float

    @classmethod
    def of(cls, pairs: Pairs, config: PersistentHomologyOfDistancesConfig) -> "_Bars":
        return cls(*pairs.barcode(max_dimension=config.max_dimension, coefficient=config.coefficient))

    def lengths(self, dimension: int) -> Float[np.ndarray, "bar"]:
        """Return the lengths up to the cut; a component that never ends has none."""
        bars = self.bars[self.dimension == dimension]
        ends = np.minimum(bars[:, 1], self.cut) if dimension else bars[:, 1]
        return ends - bars[:, 0]

    def count(self, dimension: int, *, longer: float, above: float) -> int:
        """Return how many bars of `dimension` are longer than this, and of a death over birth above that."""
        births = self.bars[self.dimension == dimension][:, 0]
        lengths = self.lengths(dimension)
        return int(np.sum((lengths > longer) & (births + lengths > above * births)))

    def longest(self, dimension: int) -> float:
        lengths = self.lengths(dimension)
        return float(np.max(lengths[np.isfinite(lengths)], initial=0.0)) / self.cut


def persistent_homology_of_distances(
    distances: Float[np.ndarray, "pair"] | Float[np.ndarray, "sample sample"] | sparray | spmatrix,
    *,
    config: PersistentHomologyOfDistancesConfig = PersistentHomologyOfDistancesConfig(),
) -> PersistentHomologyOfDistances:
    """Ask whether dissimilarities close into loops, more than the same numbers in a random arrangement would.

    Use it where there are distances and no points: geodesics, a dissimilarity matrix of a brain region, correlations
    turned into distances, a neighbour graph. It assumes that only the order of the distances matters to the shape. The
    null is weak: any geometry, also a flat one, differs from random numbers, so a small p-value beside a short loop
    says little; where there are points, `persistent_homology` compares with a cloud of the same covariance.

    Parameters
    ----------
    distances
        Condensed (as scipy's pdist returns them), square, or a sparse square matrix that stores each joined pair once
        or twice. Infinite, or not stored: never joined. A stored 0 joins at once.
    config
        Dimension, coefficients, landmarks, memory budget, surrogates.

    Returns
    -------
    PersistentHomologyOfDistances
        Barcode in units of `distances`; `longest_h1` in [0, 1], 0 if there is no loop at all.

    Raises
    ------
    ShapeError
        If a dense array is neither condensed nor square, or a sparse one not square.
    DegenerateInputError
        If there are fewer than 4 points, or no finite distance is above 0.
    DegenerateInputError
        If a distance is negative or NaN, differs both ways, or is not 0 from a point to itself.
    MemoryBudgetError
        If the estimate of memory exceeds the budget (and no landmarks may be taken).

    Notes
    -----
    Beyond the enclosing radius nothing is born, so that cut is exact. Where pairs are missing a class may never end:
    its death is infinity, and its length is counted up to the largest distance given, as a lower bound.

    References
    ----------
    [@bauer2021]
    [@giusti2015]
    [@bobrowski2023]
    [@desilva2004]
    [@cohensteiner2007]

    Examples
    --------
    Six points around a ring, each given only the distances to its two neighbours: the loop never ends.

    >>> from scipy.sparse import coo_array
    >>> ring = coo_array((np.ones(6), (np.arange(6), (np.arange(6) + 1) % 6)), shape=(6, 6))
    >>> config = PersistentHomologyOfDistancesConfig(n_surrogates=0, n_resamples=0)
    >>> result = persistent_homology_of_distances(ring, config=config)
    >>> result.bars[result.dimension == 1], result.n_unended
    (array([[ 1., inf]]), 1)
    """
    whole = Pairs.of(distances)
    landmarks, n_bytes = _landmarks(whole, config)
    pairs = whole.among(landmarks.index)
    observed = _Bars.of(pairs, config)
    rng = generator(config.seed, "persistent_homology_of_distances", "surrogate")
    shuffled = (whole.shuffled(rng) for _ in range(config.surrogates_for(pairs.n_points)))
    null = [_Bars.of(each.among(each.landmarks(pairs.n_points).index), config) for each in shuffled]
    bands = _bands(observed, null, config)
    sizes = whole.n_points, pairs.n_points
    ratios = noise_ratios(*sizes, config.max_dimension, config.coefficient, n_draws=len(null), level=LEVEL)
    counts = [observed.count(k, longer=bands[k], above=ratios[k]) for k in range(config.max_dimension + 1)]
    loops = config.max_dimension > 0
    return PersistentHomologyOfDistances(
        longest_h1=_longest_h1(whole, observed, null, config) if loops else Estimate(NAN),
        betti_0=counts[0],
        betti_1=counts[1] if loops else NAN,
        band=float(bands[1]) if loops else NAN,
        cut=observed.cut,
        cover_radius=landmarks.cover_radius,
        n_points=pairs.n_points,
        n_missing=pairs.n_all - len(pairs.distance),
        n_merged=pairs.n_merged,
        n_unended=int(np.sum(np.isinf(observed.bars[:, 1]) & (observed.dimension > 0))),
        n_surrogates=len(null),
        memory_estimate=n_bytes,
        bars=observed.bars,
        dimension=observed.dimension,
        betti=np.array(counts),
        bands=bands,
        noise_ratios=np.array(ratios),
        landmark=landmarks.index,
        distance=pairs.distance,
    )


def _landmarks(pairs: Pairs, config: PersistentHomologyOfDistancesConfig) -> tuple[Landmarks, int]:
    """Choose the points to use, and return them with the estimate of memory in bytes."""
    options = config.of_points()
    n_points = options.points_for(pairs.n_points) if pairs.is_complete else pairs.n_points
    n_bytes = options.memory_estimate(pairs.n_points) if pairs.is_complete else pairs.memory(config.max_dimension)
    if n_bytes > config.memory_budget:
        remedy = "Lower max_points" if pairs.is_complete else "Leave out the largest distances"
        raise MemoryBudgetError(
            f"memory_budget must be at least {n_bytes} bytes for {n_points} points in dimension "
            f"{config.max_dimension}. Got {config.memory_budget}. {remedy}, or raise the budget."
        )
    return pairs.landmarks(n_points), n_bytes


def _longest_h1(
    pairs: Pairs, observed: _Bars, null: list[_Bars], config: PersistentHomologyOfDistancesConfig
) -> Estimate:
    value = observed.longest(1)
    tested = estimate(value, null=np.array([each.longest(1) for each in null]))
    rng, half = generator(config.seed, "persistent_homology_of_distances", "resample"), -(-pairs.n_points // 2)
    if config.n_resamples == 0:
        return tested
    lengths = [
        _half(pairs, np.sort(rng.choice(pairs.n_points, half, replace=False)), config)
        for _ in range(config.n_resamples)
    ]
    reach = float(np.quantile(np.abs(np.array(lengths) - value), LEVEL))
    return replace(tested, low=max(0.0, value - reach), high=min(1.0, value + reach))


def _half(pairs: Pairs, points: Int[np.ndarray, "row"], config: PersistentHomologyOfDistancesConfig) -> float:
    """Return the longest loop of some points; 0 where none of their distances is given or above 0."""
    some = pairs.among(points)
    if some.is_complete:
        some = some.among(some.landmarks(config.of_points().points_for(some.n_points)).index)
    return _Bars.of(some, config).longest(1) if np.any(some.distance > 0) else 0.0


def _bands(
    observed: _Bars, null: list[_Bars], config: PersistentHomologyOfDistancesConfig
) -> Float[np.ndarray, "dimension"]:
    """Return, per dimension, the length that only 5 % of the null reach; 0 where there is no null."""
    dimensions = range(config.max_dimension + 1)
    if not null:
        return np.zeros(len(dimensions))
    return observed.cut * critical_value(np.array([[each.longest(k) for k in dimensions] for each in null]), LEVEL)
