"""Shape distances: how far apart many systems are, whatever rotation (or linear map) lies between them.

    Xφ      = X (a I + (1 - a) C^(-1/2)),    C = Xᵀ X r / tr(Xᵀ X)
    d(X, Y) = min_Q arccos <Xφ, Yφ Q> / (||Xφ|| ||Yφ||) = arccos( ||Xφᵀ Yφ||_* / (||Xφ|| ||Yφ||) )

a = 1 is the angular Procrustes distance: rotations do not matter. a = 0 whitens: no invertible linear map matters, and
d is the arc cosine of the mean canonical correlation. Every a gives a metric: d(X, Z) <= d(X, Y) + d(Y, Z). So systems
are points of a space, and may be drawn (classical scaling), clustered or averaged; CKA and CCA scores allow none of it.

Source: [@williams2021]; [@torgerson1952] (classical scaling).
Cost: m² / 2 pairs of n (p + q)² + (p + q)³, and p q min(p, q) per pair and null draw.
Chunked over: samples, where no system has more units than samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mechint_core.alignment._shapes import Narrowed, ShapeMoments, check_systems, pick
from mechint_core.errors import ConfigurationError
from mechint_core.figure import Figure, Matrix, Scatter
from mechint_core.kernels.fisher_interval import fisher_interval
from mechint_core.kernels.resampling import p_value
from mechint_core.kernels.shape_metric import ShapePair
from mechint_core.parallel import Rows
from mechint_core.result import NAN, Estimate, Result

RESIDENT_BYTES = 256 * 2**20
"""Systems that together are smaller than this are read once and kept while they are compared."""
ALIKE = 1e-6
"""Below this angle two systems are copies: there is nothing left to vary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeDistanceConfig:
    """Which differences between systems count, and how interval and null are found."""

    alpha: float = 1.0
    """1: rotations do not count. 0: no invertible linear map counts, which needs many more samples than units."""
    n_inference: int = 300
    """Samples, drawn at random, from which the width of the interval is estimated."""
    n_permutations: int = 99
    """Draws of the null, for each pair of systems."""
    level: float = 0.95
    """Confidence of the interval."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigurationError(f"alpha must be between 0 and 1. Got {self.alpha}.")
        if self.n_inference < 8:
            raise ConfigurationError(f"n_inference must be at least 8. Got {self.n_inference}.")
        if self.n_permutations < 0:
            raise ConfigurationError(f"n_permutations must be at least 0. Got {self.n_permutations}.")
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level must be between 0 and 1. Got {self.level}.")


@dataclass(frozen=True, slots=True)
class ShapeDistanceResult(Result):
    """Distances between systems, and a drawing of them."""

    technique: ClassVar[str] = "shape_distance"
    evidence: ClassVar[str] = (
        "The interval is the infinitesimal jackknife over samples, with the bias of fitting taken out by halves; the "
        "null relabels (or, of many samples, rotates) the samples of one system of each pair."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Matrix(
            values="distances", title="Shape distance between systems", x_label="system", y_label="system",
            value_label="radians",
        ),
        Scatter(points="embedding", title="Systems placed so that their distances are kept best"),
    )  # fmt: skip
    invariances: ClassVar[tuple[str, ...]] = ("orthogonal", "isotropic scaling", "translation")
    """Changes of any system that leave `distances` as they are; at alpha 0 invertible linear maps too."""

    mean_distance: Estimate
    """Over all pairs of systems, in radians."""
    alpha: float
    n_samples: int
    n_systems: int
    drawn_share: float
    """Share of the squared distances that the drawing keeps."""
    distances: Float[np.ndarray, "system other_system"]
    """In radians, in [0, pi / 2]."""
    embedding: Float[np.ndarray, "system coordinate"]
    """Coordinates in the plane that keeps most of the squared distances."""

    def reading(self) -> str:
        """Say how far apart the systems are, and whether unrelated systems would be as close."""
        found = self.mean_distance
        text = (
            f"{self.n_systems} systems are {found.value:.3f} radians apart on average "
            f"[{found.low:.3f}, {found.high:.3f}] (alpha = {self.alpha:g})"
        )
        if math.isnan(found.p_value):
            return f"{text}; no null was drawn, so nothing says what unrelated systems would be."
        if found.p_value > 1 - found.level:
            return f"{text}: not distinguishable from unrelated systems ({found.null:.3f}, p = {found.p_value:.2g})."
        return f"{text}; unrelated systems would be {found.null:.3f} apart (p = {found.p_value:.2g})."


def shape_distance(
    systems: Sequence[Float[Rows, "sample _"]], *, config: ShapeDistanceConfig = ShapeDistanceConfig()
) -> ShapeDistanceResult:
    """Ask how far apart systems are, whatever rotation or linear map lies between them.

    Use it to place many networks, seeds, checkpoints, layers or subjects in one space. It assumes that row i of every
    system answers the same sample. With few samples for the units every distance is too small, at alpha 0 most of
    all: compare with the null. It cannot tell which units or samples the systems differ on.

    Parameters
    ----------
    systems
        Two or more, each (sample, unit) with the same samples, at least 8, in memory or stored; read block by block
        in float64. They may differ in their units; one with more units than samples is read whole.
    config
        Which differences count, and how interval and null are found.

    Returns
    -------
    ShapeDistanceResult
        Angles in radians: 0 if the systems agree up to what alpha ignores, pi / 2 if every cross-covariance is 0.

    Raises
    ------
    ShapeError
        If there are fewer than 2 systems or 8 samples, or the systems do not align.
    DegenerateInputError
        If a system holds NaN or infinity, or is constant over samples.

    Notes
    -----
    The paper takes C = Xᵀ X, whose mixture with I depends on the scale of the data and, as n grows, on n; ours has mean
    variance 1. Both agree at alpha 0 and 1. Whitening leaves out directions with less than 1e-12 of the largest
    variance. The interval is of the mean distance that more and more samples would give.

    References
    ----------
    [@williams2021]
    [@torgerson1952]

    Examples
    --------
    >>> x = np.cos(np.outer(np.arange(30.0) ** 2, [1.0, 2.0]))
    >>> sheared = x @ np.array([[1.0, 3.0], [0.0, 2.0]])
    >>> found = [shape_distance([x, sheared], config=ShapeDistanceConfig(alpha=a)).mean_distance.value for a in (0, 1)]
    >>> found[0] < 1e-7 < found[1]
    True
    """
    n, m = check_systems(systems), len(systems)
    if sum(int(np.prod(each.shape)) * each.dtype.itemsize for each in systems) <= RESIDENT_BYTES:
        systems = [np.asarray(each[:]) for each in systems]
    narrowed = [Narrowed.of(each, centred=True).rows for each in systems]
    picked = pick(n, config.n_inference, config.seed, "shape_distance")
    pairs = list(combinations(range(m), 2))
    found = [_compare(narrowed[i], narrowed[j], (i, j), picked, config) for i, j in pairs]
    distances = np.zeros((m, m))
    for (i, j), each in zip(pairs, found, strict=True):
        distances[i, j] = distances[j, i] = each.angle
    embedding, share = _classical_scaling(distances)
    return ShapeDistanceResult(
        mean_distance=_mean(found, n, config.level),
        alpha=config.alpha,
        n_samples=n,
        n_systems=m,
        drawn_share=share,
        distances=distances,
        embedding=embedding,
    )


@dataclass(frozen=True, slots=True)
class _Compared:
    """The angle of two systems, its bias and influence, and angles of the null."""

    angle: float
    corrected: float
    influence: np.ndarray
    null: np.ndarray


def _compare(x: Rows, y: Rows, which: tuple[int, int], picked: np.ndarray, config: ShapeDistanceConfig) -> _Compared:
    read = ShapeMoments.of(x, y, picked=picked, seed=config.seed)
    pair = ShapePair.of(read.moments.whole, read.n_units, config.alpha)
    angle = read.angle(pair)
    null = np.arccos(
        np.clip(read.null(pair, n_draws=config.n_permutations, seed=config.seed, stream=("shape", *which)), -1, 1)
    )
    if angle < ALIKE:
        return _Compared(angle, angle, np.zeros(int(picked.sum())), null)
    halves = [ShapePair.of(each, read.n_units, config.alpha).cosine for each in read.moments.halves]
    corrected = math.acos(float(np.clip(2 * pair.cosine - (halves[0] + halves[1]) / 2, -1, 1)))
    influence = -pair.influence(read.moments.picked, read.moments.whole.n) / math.sin(angle)
    return _Compared(angle, corrected, influence, null)


def _mean(found: list[_Compared], n: int, level: float) -> Estimate:
    """Average over pairs; the interval is on Fisher's scale of the cosine, as for one pair."""
    value, centre = (float(np.mean([getattr(each, name) for each in found])) for name in ("angle", "corrected"))
    error = float(np.mean([each.influence for each in found], axis=0).std(ddof=1)) / math.sqrt(n)
    if value < ALIKE:
        low, high = value, value
    else:
        ends = fisher_interval(math.cos(centre), math.sin(centre) * error, level)
        high, low = np.arccos(np.clip(ends, -1, 1)).tolist()
    null = np.mean([each.null for each in found], axis=0)
    typical = float(null.mean()) if len(null) else NAN
    return Estimate(value, low, high, typical, p_value(value, null, "less"), level)


def _classical_scaling(distances: np.ndarray) -> tuple[np.ndarray, float]:
    """Return points in the plane whose distances are closest to these, and the share of the squares they keep."""
    squares = distances**2
    inner = -(squares - squares.mean(axis=0) - squares.mean(axis=1, keepdims=True) + squares.mean()) / 2
    values, vectors = np.linalg.eigh(inner)
    values, vectors = values[::-1][:2], vectors[:, ::-1][:, :2]
    total = float(np.abs(np.linalg.eigvalsh(inner)).sum())
    points = vectors * np.sqrt(np.maximum(values, 0))
    signs = np.sign(points[np.argmax(np.abs(points), axis=0), [0, 1]])
    share = float(np.maximum(values, 0).sum()) / total if total > 0 else 1.0
    return points * np.where(signs == 0, 1, signs), share
