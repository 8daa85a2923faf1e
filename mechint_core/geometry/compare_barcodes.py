"""Compare barcodes: do two clouds have the same shape, as far as persistent homology sees it?

    distance     bottleneck or 2-Wasserstein between the barcodes of one homology dimension
    null         points exchanged at random between the two clouds, sizes kept (permutation test)
    interval     d -+ q95 |d* - d|      d* between halves of both clouds
    standard     each cloud centred and divided by its root mean square radius, so that shapes are compared

Source: [@cohensteiner2007], [@robinson2017] (permutation tests of barcodes).
Cost: 2 (1 + n_permutations + n_resamples) barcodes and as many matchings.
Chunked over: permutations and halves.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Barcode, Curve
from mechint_core.geometry._point_cloud import FEWEST_POINTS, Cloud
from mechint_core.geometry._vietoris_rips import PRIMES, RipsBarcode, memory_within
from mechint_core.geometry.diagram_distance import diagram_distance
from mechint_core.geometry.persistence_summaries import PersistenceSummariesConfig, persistence_summaries
from mechint_core.kernels.resampling import estimate
from mechint_core.parallel import map_parallel
from mechint_core.random import generator
from mechint_core.result import Estimate, Result

Metric = Literal["bottleneck", "wasserstein"]
ORDER: dict[Metric, float] = {"bottleneck": np.inf, "wasserstein": 2.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareBarcodesConfig:
    """Which barcodes to compare, and how."""

    dimension: int = 1
    """Homology dimension, 0 to 2."""
    metric: Metric = "bottleneck"
    """The largest move of a bar, or ("wasserstein") the root of the sum of squared moves."""
    standardise: bool = True
    """Centre each cloud and divide it by its root mean square radius."""
    coefficient: int = 2
    """Prime p < 128 of the coefficient field Z/p."""
    max_points: int = 100
    """Replace a larger cloud by so many maxmin landmarks."""
    memory_budget: int = 2**30
    """Bytes that one barcode may take."""
    n_permutations: int = 99
    """Exchanges of points between the clouds; 0 for none."""
    n_resamples: int = 19
    """Pairs of halves behind the interval; 0 for none."""
    seed: int = 0
    """Draws both."""

    def __post_init__(self) -> None:
        if not 0 <= self.dimension <= 2:
            raise ConfigurationError(f"dimension must be 0, 1 or 2. Got {self.dimension}.")
        if self.metric not in ORDER:
            raise ConfigurationError(f"metric must be one of {tuple(ORDER)}. Got {self.metric!r}.")
        if self.coefficient not in PRIMES or self.max_points < FEWEST_POINTS:
            raise ConfigurationError(
                f"coefficient must be a prime below 128, and max_points at least {FEWEST_POINTS}. "
                f"Got {self.coefficient} and {self.max_points}."
            )
        if min(self.n_permutations, self.n_resamples, self.memory_budget) < 0:
            raise ConfigurationError(f"numbers of draws and memory_budget must not be negative. Got {self}.")


@dataclass(frozen=True, slots=True)
class CompareBarcodes(Result):
    """How far two barcodes are apart, and whether exchanging points between the clouds brings them as far."""

    technique: ClassVar[str] = "compare_barcodes"
    evidence: ClassVar[str] = (
        "Interval: how far the distance moves when half of the points of both clouds are left out (95 %). Null: "
        "points exchanged at random between the clouds."
    )
    figures: ClassVar[tuple[Curve | Barcode, ...]] = (
        Curve(x="scale", y=("betti", "other_betti"), title="Betti curves of both clouds", x_label="scale"),
        Barcode(bars="bars", dimension="dimension", title="Barcode of the first cloud"),
        Barcode(bars="other_bars", dimension="other_dimension", title="Barcode of the second cloud"),
    )

    distance: Estimate
    """In root mean square radii, or in units of the points if they are not standardised."""
    n_points: int
    """Distinct points of the first cloud."""
    n_other_points: int
    cover_radius: float
    """The larger of the two clouds: the distance is exact but for 4 of these."""
    scale: Float[np.ndarray, "scale"]
    betti: Int[np.ndarray, "scale"]
    other_betti: Int[np.ndarray, "scale"]
    bars: Float[np.ndarray, "bar endpoint"]
    dimension: Int[np.ndarray, "bar"]
    other_bars: Float[np.ndarray, "other_bar endpoint"]
    other_dimension: Int[np.ndarray, "other_bar"]

    def reading(self) -> str:
        """Say whether the clouds differ in shape."""
        d = self.distance
        if np.isnan(d.p_value):
            return f"The barcodes are {d.value:.3g} apart. No null was drawn."
        differ = "differ in shape" if d.p_value <= 0.05 else "are not known to differ in shape"
        return (
            f"The clouds {differ}: their barcodes are {d.value:.3g} apart, those of clouds that exchange points "
            f"{d.null:.3g} (p = {d.p_value:.2g})."
        )


def compare_barcodes(
    points: Float[np.ndarray, "sample unit"],
    other_points: Float[np.ndarray, "other_sample unit"],
    *,
    config: CompareBarcodesConfig = CompareBarcodesConfig(),
) -> CompareBarcodes:
    """Ask whether two clouds of activations have the same shape, as far as their barcodes say.

    Use it for two classes, tasks or checkpoints at one site. It assumes that both clouds live in the same units, since
    the null exchanges points between them. It cannot tell where shapes differ that have one barcode, and a small
    p-value says that the clouds are not samples of one distribution, which the barcodes then show: a denser
    cloud differs as well as one of another shape. For the same samples in two representations, which need not share
    units, use `representation_topology_divergence`.

    Parameters
    ----------
    points, other_points
        One activation vector per sample, in the same units.
    config
        Homology dimension, metric, landmarks, numbers of draws.

    Returns
    -------
    CompareBarcodes
        `distance` is at least 0, and never infinite: just one component lives on in each cloud.

    Raises
    ------
    ShapeError
        If a cloud is not two-dimensional, or their units differ in number.
    DegenerateInputError
        If a point is NaN or infinite, or a cloud has fewer than 8 distinct points.
    MemoryBudgetError
        If the estimate of memory for one barcode exceeds the budget.

    Notes
    -----
    Standardising uses each cloud's own mean and radius, so after it the exchange is exact for large clouds only.

    References
    ----------
    [@cohensteiner2007]
    [@robinson2017]
    [@bauer2021]

    Examples
    --------
    An octagon and one a tenth larger, whose loop dies at 2 sin(3 pi / 8) = 1.8478 times its radius:

    >>> turn = np.arange(8) * np.pi / 4
    >>> octagon = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    >>> config = CompareBarcodesConfig(standardise=False, n_permutations=0, n_resamples=0)
    >>> round(compare_barcodes(octagon, 1.1 * octagon, config=config).distance.value, 4)
    0.1848
    """
    clouds = _clouds(points, other_points, config)
    first, second = (_barcode(cloud, config) for cloud in clouds)
    value = _distance(first, second, config)
    rng = generator(config.seed, "geometry", "compare_barcodes", "exchange")
    exchanged = [_exchanged(*clouds, rng) for _ in range(config.n_permutations)]
    null = np.array(map_parallel(partial(_distance_of, config=config), exchanged))
    curves = persistence_summaries(
        [each.bars[each.dimension == config.dimension] for each in (first, second)],
        config=PersistenceSummariesConfig(largest=max(first.radius, second.radius), n_landscapes=1),
    )
    return CompareBarcodes(
        distance=_with_interval(estimate(value, null=null), clouds, config),
        n_points=len(clouds[0]),
        n_other_points=len(clouds[1]),
        cover_radius=max(first.landmarks.cover_radius, second.landmarks.cover_radius),
        scale=curves.scale,
        betti=curves.betti[0],
        other_betti=curves.betti[1],
        bars=first.bars,
        dimension=first.dimension,
        other_bars=second.bars,
        other_dimension=second.dimension,
    )


def _clouds(
    points: Float[np.ndarray, "sample unit"],
    other_points: Float[np.ndarray, "other_sample unit"],
    config: CompareBarcodesConfig,
) -> tuple[Float[np.ndarray, "row unit"], Float[np.ndarray, "other_row unit"]]:
    """Return the distinct points of both clouds, standardised."""
    clouds = tuple(Cloud.of(each, None).points for each in (points, other_points))
    if clouds[0].shape[1] != clouds[1].shape[1]:
        raise ShapeError(f"clouds must have the same units. Got {clouds[0].shape[1]} and {clouds[1].shape[1]}.")
    least = min(len(each) for each in clouds)
    if least < 2 * FEWEST_POINTS:
        raise DegenerateInputError(f"a cloud must have at least {2 * FEWEST_POINTS} distinct points. Got {least}.")
    memory_within(config.memory_budget, min(max(len(each) for each in clouds), config.max_points), config.dimension)
    return (_standard(clouds[0]), _standard(clouds[1])) if config.standardise else (clouds[0], clouds[1])


def _standard(cloud: Float[np.ndarray, "row unit"]) -> Float[np.ndarray, "row unit"]:
    centred = cloud - cloud.mean(axis=0)
    return centred / np.sqrt(np.mean(np.sum(centred**2, axis=1)))


def _barcode(cloud: Float[np.ndarray, "row unit"], config: CompareBarcodesConfig) -> RipsBarcode:
    return RipsBarcode.of(
        cloud, max_points=config.max_points, max_dimension=config.dimension, coefficient=config.coefficient
    )


def _distance(first: RipsBarcode, second: RipsBarcode, config: CompareBarcodesConfig) -> float:
    one, other = (each.bars[each.dimension == config.dimension] for each in (first, second))
    return diagram_distance(one, other, order=ORDER[config.metric])


def _distance_of(
    clouds: tuple[Float[np.ndarray, "row unit"], Float[np.ndarray, "other_row unit"]], config: CompareBarcodesConfig
) -> float:
    return _distance(_barcode(clouds[0], config), _barcode(clouds[1], config), config)


def _exchanged(
    first: Float[np.ndarray, "row unit"], second: Float[np.ndarray, "other_row unit"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "row unit"], Float[np.ndarray, "other_row unit"]]:
    pool = rng.permutation(np.concatenate([first, second]))
    return pool[: len(first)], pool[len(first) :]


def _with_interval(
    tested: Estimate,
    clouds: tuple[Float[np.ndarray, "row unit"], Float[np.ndarray, "other_row unit"]],
    config: CompareBarcodesConfig,
) -> Estimate:
    if config.n_resamples == 0:
        return tested
    rng = generator(config.seed, "geometry", "compare_barcodes", "halves")
    halves = [(_half(clouds[0], rng), _half(clouds[1], rng)) for _ in range(config.n_resamples)]
    moved = np.abs(np.array(map_parallel(partial(_distance_of, config=config), halves)) - tested.value)
    reach = float(np.quantile(moved, tested.level))
    return replace(tested, low=max(0.0, tested.value - reach), high=tested.value + reach)


def _half(cloud: Float[np.ndarray, "row unit"], rng: np.random.Generator) -> Float[np.ndarray, "half unit"]:
    return cloud[rng.choice(len(cloud), -(-len(cloud) // 2), replace=False)]
