"""Representation topology divergence: where do two representations of the same samples join them differently?

    cross-barcode   bars (b, d): joined at b in the smaller of both distances, at d in the first alone
    RTD             (1/2) (sum of bars of (w, min(w, v)) + sum of bars of (v, min(w, v)))
    distances       each divided by its `quantile` over all pairs
    batches         samples drawn without replacement; RTD is the mean over them
    interval        mean -+ t s sqrt(1/k + b/(n - b)),   b of n samples in each of k batches
    null            the other representation's samples in random order, batches kept: unrelated representations

Source: [@barannikov2022].
Cost: 2 n_batches (1 + n_permutations) barcodes of 2 b + 1 points.
Chunked over: batches and permutations.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import pdist
from scipy.stats import t as student

from mechint_core.errors import ConfigurationError, DegenerateInputError, MemoryBudgetError, ShapeError
from mechint_core.figure import Barcode, Histogram
from mechint_core.geometry._cross_barcode import cross_barcode
from mechint_core.geometry._vietoris_rips import rips_memory
from mechint_core.kernels.resampling import estimate
from mechint_core.parallel import map_parallel
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

FEWEST_SAMPLES: Final = 8
"""In all; a batch holds half of them at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepresentationTopologyDivergenceConfig:
    """How many samples to compare at once, how often, and with what."""

    batch_size: int = 60
    """Samples compared at once, at most half of all. The divergence grows with it: compare only equal ones."""
    n_batches: int = 10
    """Batches that are averaged."""
    quantile: float = 0.9
    """Distances are divided by this quantile of theirs, so that a representation's scale does not count."""
    n_permutations: int = 19
    """Random orders of the second representation's samples; 0 for none."""
    memory_budget: int = 2**30
    """Bytes that one barcode may take."""
    seed: int = 0
    """Draws batches and orders."""

    def __post_init__(self) -> None:
        if self.batch_size < FEWEST_SAMPLES // 2 or self.n_batches < 2:
            raise ConfigurationError(
                f"batch_size must be at least {FEWEST_SAMPLES // 2} and n_batches 2. "
                f"Got {self.batch_size} and {self.n_batches}."
            )
        if not 0 < self.quantile <= 1:
            raise ConfigurationError(f"quantile must be in (0, 1]. Got {self.quantile}.")
        if min(self.n_permutations, self.memory_budget) < 0:
            raise ConfigurationError(f"n_permutations and memory_budget must not be negative. Got {self}.")


@dataclass(frozen=True, slots=True)
class RepresentationTopologyDivergence(Result):
    """How differently two representations join the same samples, and how differently unrelated ones would."""

    technique: ClassVar[str] = "representation_topology_divergence"
    evidence: ClassVar[str] = (
        "Interval: Student's t over batches, widened for the samples that they share (95 %). Null: the samples of the "
        "second representation in random order; a small p says that the two are more alike than unrelated ones."
    )
    figures: ClassVar[tuple[Barcode | Histogram, ...]] = (
        Barcode(bars="bars", dimension="direction", title="Cross-barcodes of the first batch, by direction"),
        Histogram(values="by_batch", title="Divergence of each batch", x_label="RTD"),
    )

    divergence: Estimate
    """0 for the same distances up to scale; in shares of the `quantile` distance."""
    similarity: Estimate
    """1 - divergence / its null: 1 for the same shape, 0 for unrelated representations."""
    forward: float
    """Sum of the bars of what is joined late in the first representation and early in the second. Clusters of the
    first make few long bars here, and many short ones backward: beside their distance their samples are close."""
    backward: float
    """The same with the two exchanged."""
    n_samples: int
    batch_size: int
    n_constant: int
    """Batches in which a representation has no distance above 0; left out."""
    by_batch: Float[np.ndarray, "draw"]
    bars: Float[np.ndarray, "bar endpoint"]
    """Of the first batch."""
    direction: Int[np.ndarray, "bar"]
    """0: joined late in the first representation; 1: in the second."""

    def reading(self) -> str:
        """Say how alike the representations are, against unrelated ones."""
        d = self.divergence
        text = f"The divergence is {d.value:.3g} [{d.low:.3g}, {d.high:.3g}]"
        if np.isnan(d.p_value):
            return f"{text}; no null was drawn.{self._widest()}"
        alike = "more alike than unrelated ones" if d.p_value <= 0.05 else "no more alike than unrelated ones"
        return f"{text}: the representations are {alike} ({d.null:.3g}, p = {d.p_value:.2g}).{self._widest()}"

    def _widest(self) -> str:
        """Name the longest bar."""
        if not len(self.bars):
            return ""
        bar = int(np.argmax(self.bars[:, 1] - self.bars[:, 0]))
        early, late = ("second", "first") if self.direction[bar] == 0 else ("first", "second")
        birth, death = self.bars[bar]
        return (
            f" Widest split: samples that are joined at {birth:.2g} in the {early}, in the {late} only at {death:.2g}."
        )


def representation_topology_divergence(
    points: Float[np.ndarray, "sample unit"],
    other_points: Float[np.ndarray, "sample other_unit"],
    *,
    config: RepresentationTopologyDivergenceConfig = RepresentationTopologyDivergenceConfig(),
) -> RepresentationTopologyDivergence:
    """Ask how differently two representations of the same samples join them into clusters and loops.

    Use it to compare layers, checkpoints, seeds or models of any widths where clusters matter: unlike CKA or
    Procrustes it sees a cluster that splits, at whatever place. It assumes that samples are paired, and that Euclidean
    distance means something in both. It cannot tell representations with one dissimilarity matrix apart, and the
    number depends on the batch size: compare divergences of equal batches only.

    Parameters
    ----------
    points, other_points
        The same samples in the same order, in two representations.
    config
        Batches, quantile, number of random orders.

    Returns
    -------
    RepresentationTopologyDivergence
        `divergence` is at least 0, and 0 where the distances are the same up to scale.

    Raises
    ------
    ShapeError
        If a representation is not two-dimensional, their samples differ in number, or there are fewer than 8.
    DegenerateInputError
        If a value is NaN or infinite, or in no two batches both representations have distances above 0.
    MemoryBudgetError
        If the estimate of memory for one barcode exceeds the budget.

    Notes
    -----
    The interval is that of a mean over subsets drawn without replacement from n samples, for a statistic that is
    nearly linear; it is wider where batches hold a large share of all samples. Only bars of dimension 1 are used, as
    in the paper.

    References
    ----------
    [@barannikov2022]
    [@bauer2021]

    Examples
    --------
    >>> x = np.sin(np.arange(40.0) ** 2).reshape(20, 2)
    >>> config = RepresentationTopologyDivergenceConfig(n_permutations=0)
    >>> representation_topology_divergence(x, 3 * x[:, ::-1], config=config).divergence.value
    0.0
    """
    pair = _checked(points), _checked(other_points)
    n, size = _batch_size(pair, config)
    rng = generator(config.seed, "geometry", "representation_topology_divergence", "batch")
    batches = [rng.choice(n, size, replace=False) for _ in range(config.n_batches)]
    observed = np.array(map_parallel(_Divergence(*pair, config.quantile), [(each, each) for each in batches]))
    usable = np.isfinite(observed).all(axis=1)
    if usable.sum() < 2:
        raise DegenerateInputError(
            f"both representations must have distances above 0 in at least 2 batches. Got {usable.sum()}."
        )
    null = _null(pair, batches, config)
    mean = observed[usable].mean(axis=0)
    divergence = _with_interval(observed[usable].mean(axis=1), null, size, n)
    bars = _bars(pair, batches[int(usable.argmax())], config.quantile)
    return RepresentationTopologyDivergence(
        divergence=divergence,
        similarity=_similarity(divergence, null),
        forward=float(mean[0]),
        backward=float(mean[1]),
        n_samples=n,
        batch_size=size,
        n_constant=int(np.sum(~usable)),
        by_batch=observed.mean(axis=1),
        bars=np.concatenate(bars),
        direction=np.repeat(np.arange(2), [len(each) for each in bars]),
    )


def _checked(points: Float[np.ndarray, "sample any"]) -> Float[np.ndarray, "sample any"]:
    if points.ndim != 2 or points.size == 0:
        raise ShapeError(f"a representation must be (sample, unit), neither empty. Got shape {points.shape}.")
    n_bad = int(np.sum(~np.isfinite(points)))
    if n_bad:
        raise DegenerateInputError(f"representations must be finite. Got {n_bad} NaN or infinite values.")
    return points.astype(np.float64)


def _batch_size(pair: tuple[np.ndarray, np.ndarray], config: RepresentationTopologyDivergenceConfig) -> tuple[int, int]:
    """Return the numbers of samples, in all and in a batch."""
    n = len(pair[0])
    if len(pair[1]) != n or n < FEWEST_SAMPLES:
        raise ShapeError(
            f"representations must have the same samples, at least {FEWEST_SAMPLES}. Got {n} and {len(pair[1])}."
        )
    size = min(config.batch_size, n // 2)
    n_bytes = rips_memory(2 * size + 1, 1)
    if n_bytes > config.memory_budget:
        raise MemoryBudgetError(
            f"memory_budget must be at least {n_bytes} bytes for batches of {size}. Got {config.memory_budget}. "
            "Lower batch_size, or raise the budget."
        )
    return n, size


@dataclass(frozen=True, slots=True)
class _Divergence:
    """Both directions of the divergence of a batch: a callable that pickles."""

    points: np.ndarray
    other: np.ndarray
    quantile: float

    def __call__(self, batch: tuple[Int[np.ndarray, "row"], Int[np.ndarray, "row"]]) -> tuple[float, float]:
        distances = _distances(self.points[batch[0]], self.other[batch[1]], self.quantile)
        if distances is None:
            return NAN, NAN
        first, second = distances
        return _total(cross_barcode(first, second)), _total(cross_barcode(second, first))


def _distances(
    points: np.ndarray, other: np.ndarray, quantile: float
) -> tuple[Float[np.ndarray, "pair"], Float[np.ndarray, "pair"]] | None:
    """Return the distances in both, each over its quantile; None where one of the quantiles is 0."""
    pair = pdist(points), pdist(other)
    scales = [float(np.quantile(each, quantile)) for each in pair]
    return None if min(scales) == 0 else (pair[0] / scales[0], pair[1] / scales[1])


def _total(bars: Float[np.ndarray, "bar endpoint"]) -> float:
    return float(np.sum(bars[:, 1] - bars[:, 0]))


def _bars(
    pair: tuple[np.ndarray, np.ndarray], batch: Int[np.ndarray, "row"], quantile: float
) -> list[Float[np.ndarray, "bar endpoint"]]:
    distances = _distances(pair[0][batch], pair[1][batch], quantile)
    return [] if distances is None else [cross_barcode(*distances), cross_barcode(*distances[::-1])]


def _null(
    pair: tuple[np.ndarray, np.ndarray],
    batches: list[Int[np.ndarray, "row"]],
    config: RepresentationTopologyDivergenceConfig,
) -> Float[np.ndarray, "draw"]:
    """Return the mean divergence over the batches where all samples of the second are in another order."""
    rng = generator(config.seed, "geometry", "representation_topology_divergence", "order")
    orders = [rng.permutation(len(pair[0])) for _ in range(config.n_permutations)]
    tasks = [(batch, order[batch]) for order in orders for batch in batches]
    found = np.array(map_parallel(_Divergence(*pair, config.quantile), tasks), dtype=np.float64)
    by_draw = found.reshape(len(orders), -1) if len(orders) else np.empty((0, 1))
    return np.array([each[np.isfinite(each)].mean() for each in by_draw])


def _with_interval(
    by_batch: Float[np.ndarray, "batch"], null: Float[np.ndarray, "draw"], size: int, n: int
) -> Estimate:
    value, k = float(by_batch.mean()), len(by_batch)
    tested = estimate(value, null=null, tail="less")
    error = float(by_batch.std(ddof=1)) * math.sqrt(1 / k + size / (n - size))
    reach = float(student.ppf((1 + tested.level) / 2, k - 1)) * error
    return Estimate(value, max(0.0, value - reach), value + reach, tested.null, tested.p_value, tested.level)


def _similarity(divergence: Estimate, null: Float[np.ndarray, "draw"]) -> Estimate:
    if not len(null) or not divergence.null > 0:
        return Estimate(NAN)
    ends = [1 - end / divergence.null for end in (divergence.value, divergence.high, divergence.low)]
    return Estimate(ends[0], ends[1], ends[2], 0.0, divergence.p_value, divergence.level)
