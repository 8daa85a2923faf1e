"""Persistent homology: the components, loops and voids of a cloud of activations, over all scales.

Join points closer than r, for growing r. A class of H_k is born at r = b and filled in at r = d; its bar is (b, d).

    longest H1     l = max (d - b) / R                        R = min_i max_j d_ij, the enclosing radius
    null           l of Gaussian clouds with the same covariance, reduced to components and landmarks alike
    interval       l -+ q95 |l* - l|                          l* of half of the points, or of resampled means
    entropy        -sum p_i ln p_i,  p_i = l_i / sum l        over the H1 bars
    Betti          bars longer than 95 % of the null clouds have anywhere in that dimension, and of a ratio d / b that
                   holes of sampling alone do not reach [@bobrowski2023]
    sampling band  4 h: the cloud is within h of the one it samples with 95 % confidence, so its barcode is within
                   2 h of that one's [@cohensteiner2007], and a longer bar cannot vanish [@fasy2014]

Source: [@bauer2021], [@fasy2014], [@langsrud2005].
Cost: (1 + n_surrogates + n_resamples) barcodes of m points; with loops 1 ms at m = 59, 20 ms at 200, 120 ms at 400.
Chunked over: clouds, by `persistent_homology_many`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Final, Literal

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import ConfigurationError
from mechint_core.figure import Barcode, Scatter
from mechint_core.geometry._point_cloud import (
    FEWEST_POINTS,
    Cloud,
    principal_axes,
    random_copy,
    subsample_displacement,
)
from mechint_core.geometry._roundest_plane import plane_of
from mechint_core.geometry._sampling_noise import noise_ratios
from mechint_core.geometry._vietoris_rips import PRIMES, RipsBarcode, memory_within, points_within, rips_memory
from mechint_core.kernels.resampling import critical_value, estimate
from mechint_core.parallel import map_parallel
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

LEVEL: Final = 0.95
"""Confidence of the interval, and of the band that a bar must leave to count."""
FEWEST_SURROGATES: Final = 19
"""Fewer cannot reach p = 0.05."""
BEYOND: Final = ("refuse", "subsample")


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistentHomologyConfig:
    """Which complex to build of the points, and what to compare it with."""

    max_dimension: int = 1
    """Highest homology dimension: 0 for components only, 1 for loops, 2 for voids too (much dearer), at most 3."""
    coefficient: int = 2
    """Prime p < 128 of the coefficient field Z/p. A class seen for one prime only is torsion."""
    n_components: int = 0
    """Project on so many leading principal components first; 0 keeps the whole space."""
    roundest_plane: bool = False
    """Whiten those components, and project on the plane in which the points lie most nearly on a circle. With 8
    components this finds one ring where a variable is represented on several; the null searches as hard."""
    max_points: int = 200
    """Replace a larger cloud by so many maxmin landmarks; bars then move by 2 `cover_radius` at most."""
    memory_budget: int = 2**30
    """Bytes that `memory_estimate` may not exceed."""
    beyond_budget: Literal["refuse", "subsample"] = "refuse"
    """What to do with a cloud beyond the budget: refuse it, or take as many landmarks as the budget holds."""
    n_surrogates: int | None = None
    """Gaussian clouds of the null, 0 for none. By default 99 for up to 100 points, fewer for more, never below 19."""
    n_resamples: int = 19
    """Half samples, or resampled condition means, behind the interval; 0 for none."""
    seed: int = 0
    """Draws surrogates and resamples."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_dimension <= 3:
            raise ConfigurationError(f"max_dimension must be 0, 1, 2 or 3. Got {self.max_dimension}.")
        if self.beyond_budget not in BEYOND:
            raise ConfigurationError(f"beyond_budget must be one of {BEYOND}. Got {self.beyond_budget!r}.")
        if self.coefficient not in PRIMES:
            raise ConfigurationError(f"coefficient must be a prime below 128. Got {self.coefficient}.")
        if self.max_points < FEWEST_POINTS:
            raise ConfigurationError(f"max_points must be at least {FEWEST_POINTS}. Got {self.max_points}.")
        if self.roundest_plane and not self.n_components >= 3:
            raise ConfigurationError(f"roundest_plane must choose among n_components >= 3. Got {self.n_components}.")
        if min(self.n_components, self.n_resamples, self.memory_budget) < 0:
            raise ConfigurationError(f"n_components, n_resamples and memory_budget must not be negative. Got {self}.")
        if self.n_surrogates is not None and self.n_surrogates != 0 and self.n_surrogates < FEWEST_SURROGATES:
            raise ConfigurationError(
                f"n_surrogates must be 0 or at least {FEWEST_SURROGATES}. Got {self.n_surrogates}."
            )

    def memory_estimate(self, n_points: int) -> int:
        """Return the bytes that the barcode of `n_points` points, or of their landmarks, may take at its peak."""
        return rips_memory(self.points_for(n_points), self.max_dimension)

    def points_for(self, n_points: int) -> int:
        """Return of how many of `n_points` points, or landmarks, the barcode is made."""
        most = min(n_points, self.max_points)
        if self.beyond_budget == "refuse":
            return most
        return points_within(self.memory_budget, most, self.max_dimension)

    def surrogates_for(self, n_points: int) -> int:
        """Return how many surrogates are drawn for a barcode of `n_points` points."""
        if self.n_surrogates is not None:
            return self.n_surrogates
        return int(np.clip(99 * (100 / n_points) ** 2, FEWEST_SURROGATES, 99))


@dataclass(frozen=True, slots=True)
class PersistentHomology(Result):
    """The barcode of one cloud, and which of its bars are more than chance."""

    technique: ClassVar[str] = "persistent_homology"
    evidence: ClassVar[str] = (
        "Interval: how far the longest loop moves when half of the points are left out, or the condition means are "
        "resampled (95 %). Null: Gaussian clouds with exactly the same covariance, projected and reduced to landmarks "
        "alike (rotation test); the flag n_surrogates says how many."
    )
    figures: ClassVar[tuple[Scatter | Barcode, ...]] = (
        Scatter(points="points", colour="colour", colour_label="label", title="The cloud, two leading components"),
        Barcode(bars="bars", dimension="dimension", band="band", title="Barcode"),
    )

    longest_h1: Estimate
    """Length of the longest loop relative to the enclosing radius, in [0, 1); 0.87 for a densely sampled circle."""
    entropy: Estimate
    """Persistence entropy of the loops in nats: 0 for one loop, ln(n) for n equal ones, NaN for none."""
    betti_0: int
    """Components beyond the band."""
    betti_1: int | float
    """Loops beyond the band and beyond sampling; NaN, like all that is said of loops, if `max_dimension` is 0."""
    band: float
    """Loops no longer than this are within what 95 % of the null clouds show. Without surrogates: `sampling_band`."""
    sampling_band: float
    """Longer bars belong to the sampled space with 95 % confidence; conservative. NaN if nothing was resampled."""
    enclosing_radius: float
    """Units of the points; the scale of all lengths above."""
    cover_radius: float
    """No point is farther from a landmark; 0 if every point was used."""
    n_points: int
    """Points the barcode was made of."""
    n_duplicates: int
    """Points left out because they equal another."""
    n_surrogates: int
    memory_estimate: int
    """Bytes the barcode may have taken at its peak."""
    bars: Float[np.ndarray, "bar endpoint"]
    """In units of the points; by dimension, then longest first. One component never dies: infinity."""
    dimension: Int[np.ndarray, "bar"]
    betti: Int[np.ndarray, "dimension"]
    """Bars beyond the band of their dimension whose death over birth is above what sampling reaches."""
    bands: Float[np.ndarray, "dimension"]
    noise_ratios: Float[np.ndarray, "dimension"]
    """Death over birth that only 5 % of spheres without such holes reach; 1 for components, and without surrogates."""
    points: Float[np.ndarray, "row coordinate"]
    """The two leading components of the points used."""
    colour: Int[np.ndarray, "row"]
    """Their label, or their place among the samples."""

    def reading(self) -> str:
        """Say whether a loop stands out, against what, and how long it is."""
        longest = self.longest_h1
        if len(self.bands) == 1:
            return f"{_count(self.betti_0, 'component')} beyond the band; loops were not looked for (max_dimension 0)."
        length = f"the longest spans {longest.value:.2f} of the cloud's radius"
        if self.n_surrogates == 0:
            return f"{_count(int(self.betti_1), 'loop')} longer than sampling error; {length}. No null was drawn."
        against = f"a Gaussian cloud of the same covariance {longest.null:.2f}, p = {longest.p_value:.2g}"
        if self.betti_1 == 0 and longest.value * self.enclosing_radius > self.band:
            few = "but so few points of a surface show such gaps: more points, or fewer components, may tell"
            return f"Perhaps a loop: {length} ({against}), {few}."
        if self.betti_1 == 0:
            return f"No loop beyond what a Gaussian cloud of the same covariance shows: {length} ({against})."
        stand = "One loop stands out" if self.betti_1 == 1 else f"{self.betti_1} loops stand out"
        return f"{stand}: {length} ({against})."


def persistent_homology(
    points: Float[np.ndarray, "sample unit"],
    label: Int[np.ndarray, "sample"] | None = None,
    *,
    config: PersistentHomologyConfig = PersistentHomologyConfig(),
) -> PersistentHomology:
    """Ask whether activations close into loops, more than a Gaussian cloud of the same covariance would.

    Use it when a variable is suspected to be represented on a circle, torus or sphere: give its value as `label`, and
    the cloud is the mean activation of each value. It assumes that Euclidean distance between activations means
    something, and that each loop is sampled finely against its width. It cannot tell which variable runs around
    a loop, nor see a loop of small amplitude beside large variance elsewhere: then project on the components that
    hold it. A small p-value says "longer than in a Gaussian cloud": mostly a hole, but the gaps between few points on
    a surface, or of a cloud without tails, get one too often. `betti_1` counts what is more than such gaps.

    Parameters
    ----------
    points
        One activation vector per sample.
    label
        One integer per sample. If given, the points are the mean activations of its values.
    config
        Dimension, coefficients, projection, landmarks, memory budget, surrogates.

    Returns
    -------
    PersistentHomology
        Barcode in units of `points`; `longest_h1` in [0, 1), 0 if there is no loop at all.

    Raises
    ------
    ShapeError
        If `points` is not two-dimensional, or `label` has another length.
    DegenerateInputError
        If a point is NaN or infinite.
    DegenerateInputError
        If fewer than 4 points (condition means, with `label`) are distinct.
    MemoryBudgetError
        If the estimate of memory for this many points exceeds the budget.

    Notes
    -----
    The surrogates keep the singular values and draw the left singular vectors anew, which is an exact test of
    "Gaussian with some covariance" that includes the choice of the leading components. Relative lengths are compared,
    so the null has no scale. Betti numbers control the error per dimension over all of its bars. The paper's law for
    death over birth holds for independent points; landmarks are more even, so spheres are drawn and reduced alike.

    References
    ----------
    [@bauer2021]
    [@tralie2018]
    [@cohensteiner2007]
    [@fasy2014]
    [@bobrowski2023]
    [@desilva2004]
    [@langsrud2005]
    [@friedman1974]
    [@hyvarinen1997]
    [@hyvarinen2000]

    Examples
    --------
    The corners of a hexagon: a loop from the side length 1 to sqrt(3).

    >>> angle = np.arange(6) * np.pi / 3
    >>> hexagon = persistent_homology(np.stack([np.cos(angle), np.sin(angle)], axis=1))
    >>> hexagon.bars[hexagon.dimension == 1].round(3)
    array([[1.   , 1.732]])
    """
    cloud = Cloud.of(points, label)
    config = replace(config, max_points=config.points_for(len(cloud.points)))
    n_bytes = memory_within(config.memory_budget, config.max_points, config.max_dimension)
    centre, axes = principal_axes(cloud.points, config.n_components)
    scores = (cloud.points - centre) @ axes
    plane = _plane(scores, config)
    observed = _rips(scores @ plane, config)
    null = _null(scores, len(observed.landmarks.index), config)
    lengths, displacement = _resampled(cloud.seen_along(centre, axes @ plane), observed, config)
    bands = _bands(observed, null, 4 * displacement, config)
    used = observed.landmarks.index
    sizes = len(cloud.points), len(used)
    ratios = noise_ratios(*sizes, config.max_dimension, config.coefficient, n_draws=len(null), level=LEVEL)
    counts = [observed.count(k, longer=bands[k], above=ratios[k]) for k in range(config.max_dimension + 1)]
    loops = config.max_dimension > 0
    return PersistentHomology(
        longest_h1=_longest_h1(observed.longest(1), lengths, np.array([each.longest(1) for each in null]))
        if loops
        else Estimate(NAN),
        entropy=estimate(observed.entropy(), null=np.array([each.entropy() for each in null]), tail="two-sided"),
        betti_0=counts[0],
        betti_1=counts[1] if loops else NAN,
        band=float(bands[1]) if loops else NAN,
        sampling_band=4 * displacement,
        enclosing_radius=observed.radius,
        cover_radius=observed.landmarks.cover_radius,
        n_points=len(used),
        n_duplicates=cloud.n_duplicates,
        n_surrogates=len(null),
        memory_estimate=n_bytes,
        bars=observed.bars,
        dimension=observed.dimension,
        betti=np.array(counts),
        bands=bands,
        noise_ratios=np.array(ratios),
        points=_two_columns((scores @ plane)[used]),
        colour=cloud.colour[used],
    )


def persistent_homology_many(
    clouds: Sequence[Float[np.ndarray, "sample unit"]],
    *,
    config: PersistentHomologyConfig = PersistentHomologyConfig(),
) -> list[PersistentHomology]:
    """Ask of each of many clouds whether its activations close into loops.

    The same as `persistent_homology` of each, in order, on the current backend. The engine holds the interpreter
    lock, so threads gain nothing: start processes with `compute(Backend(processes=n))`, or a cluster.

    Parameters
    ----------
    clouds
        One array per cloud: sites, checkpoints, subjects.
    config
        Applies to every cloud, seed included.

    Returns
    -------
    list of PersistentHomology
        One for each cloud.

    Raises
    ------
    MechintError
        As `persistent_homology`, for the first cloud that is at fault.
    """
    return map_parallel(partial(persistent_homology, config=config), clouds)


def _plane(
    scores: Float[np.ndarray, "sample component"], config: PersistentHomologyConfig
) -> Float[np.ndarray, "component coordinate"]:
    """Return the map from principal components to the coordinates in which distances are taken."""
    rng = generator(config.seed, "persistent_homology", "start")
    return plane_of(scores, rng, roundest=config.roundest_plane)


def _rips(cloud: Float[np.ndarray, "sample coordinate"], config: PersistentHomologyConfig) -> RipsBarcode:
    return RipsBarcode.of(
        cloud, max_points=config.max_points, max_dimension=config.max_dimension, coefficient=config.coefficient
    )


def _null(
    scores: Float[np.ndarray, "sample component"], n_points: int, config: PersistentHomologyConfig
) -> list[RipsBarcode]:
    """Return the barcodes of Gaussian clouds with the singular values of `scores`, projected alike."""
    rng = generator(config.seed, "persistent_homology", "surrogate")
    copies = (random_copy(scores, rng) for _ in range(config.surrogates_for(n_points)))
    return [_rips(copy @ _plane(copy, config), config) for copy in copies]


def _resampled(
    cloud: Cloud, observed: RipsBarcode, config: PersistentHomologyConfig
) -> tuple[Float[np.ndarray, "resample"], float]:
    """Return the longest H1 bars of resampled clouds, and h; none and NaN where nothing can be resampled."""
    rng, n_draws = generator(config.seed, "persistent_homology", "resample"), config.n_resamples
    if n_draws == 0 or (cloud.conditions is not None and cloud.conditions.size.min() < 2):
        return np.empty(0), NAN
    if cloud.conditions is None:
        half = -(-len(cloud.points) // 2)
        halves = (rng.choice(len(cloud.points), half, replace=False) for _ in range(n_draws))
        lengths = [_rips(cloud.points[each], config).longest(1) for each in halves]
        steps = subsample_displacement(cloud.points, observed.landmarks, n_draws=n_draws, rng=rng)
    else:
        means = [cloud.conditions.resampled(rng).means()[cloud.kept] for _ in range(n_draws)]
        lengths = [_rips(each, config).longest(1) for each in means]
        steps = np.linalg.norm(means - cloud.points, axis=-1).max(axis=1) + observed.landmarks.cover_radius
    return np.array(lengths), float(np.quantile(steps, LEVEL))


def _bands(
    observed: RipsBarcode, null: list[RipsBarcode], sampling_band: float, config: PersistentHomologyConfig
) -> Float[np.ndarray, "dimension"]:
    """Return, per dimension, the length that only 5 % of the null reach; the sampling band where there is no null."""
    dimensions = range(config.max_dimension + 1)
    if not null:
        return np.full(len(dimensions), np.nan_to_num(sampling_band))
    longest = np.array([[each.longest(k) for k in dimensions] for each in null])
    return observed.radius * critical_value(longest, LEVEL)


def _longest_h1(value: float, resampled: Float[np.ndarray, "resample"], null: Float[np.ndarray, "draw"]) -> Estimate:
    tested = estimate(value, null=null)
    if len(resampled) == 0:
        return tested
    reach = float(np.quantile(np.abs(resampled - value), LEVEL))
    return replace(tested, low=max(0.0, value - reach), high=min(1.0, value + reach))


def _two_columns(cloud: Float[np.ndarray, "row any"]) -> Float[np.ndarray, "row 2"]:
    """Return the first two coordinates, the second 0 if there is only one."""
    return np.pad(cloud[:, :2], ((0, 0), (0, max(0, 2 - cloud.shape[1]))))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
