"""Procrustes alignment: how alike two systems are once one is rotated onto the other, and the rotation itself.

    theta     = min_Q arccos <X, Y Q> = arccos( ||Xᵀ Y||_* / (||X|| ||Y||) )       Q orthogonal, X and Y centred
    distance  = sqrt(2 - 2 cos theta)                                              both of size 1
              = sqrt((||X||² + ||Y||² - 2 ||Xᵀ Y||_*) / n)                         or each of its own size
    Q         = W Uᵀ,   where U S Wᵀ = Xᵀ Y

The narrower system is padded with zeros, so that Q maps its units into directions of the wider one. The held-out score
is the cosine on one half of the samples of the rotation found on the other.

Source: [@schonemann1966], [@gower1975], [@williams2021] (angular distance), [@ding2021] (between networks).
Cost: n (p + q)² and (p + q)³; p q min(p, q) per null draw.
Chunked over: samples, where neither system has more units than samples.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from scipy import stats

from mechint_core.alignment._shapes import Narrowed, ShapeMoments, angle_interval, check_systems, pick
from mechint_core.errors import ConfigurationError
from mechint_core.figure import Curve, Figure
from mechint_core.kernels.fisher_interval import fisher_interval
from mechint_core.kernels.resampling import p_value
from mechint_core.kernels.shape_metric import ShapePair
from mechint_core.parallel import Rows
from mechint_core.result import NAN, Estimate, Result

SMALLEST_P = 1e-6
"""Below this the normal tail of the held-out score's null was not checked, so no smaller p-value is reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcrustesConfig:
    """How to rotate one system onto another."""

    centred: bool = True
    """Remove each system's mean: a shift is then no difference."""
    scaled: bool = True
    """Give both systems size 1 before `distance` is taken: a rescaling is then no difference. Angles never see size."""
    n_inference: int = 1000
    """Samples, drawn at random, from which the widths of the intervals are estimated."""
    n_permutations: int = 99
    """Draws of the null of the angle."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the halves and the draws."""

    def __post_init__(self) -> None:
        if self.n_inference < 8:
            raise ConfigurationError(f"n_inference must be at least 8. Got {self.n_inference}.")
        if self.n_permutations < 0:
            raise ConfigurationError(f"n_permutations must be at least 0. Got {self.n_permutations}.")
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level must be between 0 and 1. Got {self.level}.")


@dataclass(frozen=True, slots=True)
class ProcrustesResult(Result):
    """How far two systems are apart after the best rotation."""

    technique: ClassVar[str] = "procrustes"
    evidence: ClassVar[str] = (
        "The intervals are infinitesimal jackknives over samples, those of angle and distance with the bias of fitting "
        "taken out by halves; the null relabels (or, of many samples, rotates) the samples of the second system."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Curve(
            y=("agreement",), title="What each pair of matched directions adds to the cosine", x_label="direction",
            y_label="share of the cosine's bound",
        ),
    )  # fmt: skip
    invariances: ClassVar[tuple[str, ...]] = ("orthogonal", "isotropic scaling", "translation")
    """Changes of either system that leave `angle` as it is, with the default configuration."""

    angle: Estimate
    """In radians: 0 for a rotated copy, pi / 2 for nothing in common."""
    distance: Estimate
    """Between the systems after the rotation: at size 1, or root mean square per sample if not scaled."""
    held_out: Estimate
    """Cosine, on one half of the samples, after the rotation found on the other half."""
    disparity: float
    """1 - cos² of the angle: the share of one system's variance that the other, rotated and rescaled, leaves."""
    scale: float
    """By what the rotated second system is to be multiplied to come closest to the first."""
    n_samples: int
    rotates: bool
    """Whether the null rotated the samples in place of relabelling them."""
    agreement: Float[np.ndarray, "component"]
    """Singular values of Xᵀ Y over ||X|| ||Y||, the largest first: their sum is the cosine."""
    rotation: Float[np.ndarray, "other_unit unit"]
    """Maps a row of the second system (less its mean) onto the first."""

    def reading(self) -> str:
        """Say how far apart the systems are, and whether unrelated systems would be as close."""
        found, held = self.angle, self.held_out
        text = (
            f"After the best rotation the systems are {found.value:.3f} radians apart [{found.low:.3f}, "
            f"{found.high:.3f}]; on samples that did not choose the rotation their cosine is {held.value:.3f}"
        )
        if held.p_value > 1 - held.level:
            return f"{text}: not distinguishable from unrelated systems (p = {held.p_value:.2g})."
        close = "" if math.isnan(found.null) else f"; unrelated systems would be {found.null:.3f} apart"
        return f"{text}{close} (held out: p = {held.p_value:.2g})."


def procrustes(
    x: Float[Rows, "sample unit"],
    y: Float[Rows, "sample other_unit"],
    *,
    config: ProcrustesConfig = ProcrustesConfig(),
) -> ProcrustesResult:
    """Ask how far two systems are apart once one is rotated onto the other.

    Use it where rotations do not matter but relative sizes of directions do: to compare layers, seeds or checkpoints,
    and to carry one system's coordinates into another's. It is a metric (CKA is none). It assumes that row i of both
    systems answers the same sample. With few samples for its units a rotation fits noise: compare `angle` with its
    null, and read `held_out`. It cannot see what is common to two systems but of different size in each.

    Parameters
    ----------
    x, y
        One row per sample, at least 8, aligned between the systems; read twice, block by block, in float64. A system
        with more units than samples is read whole.
    config
        What counts as the same, and how interval and null are found.

    Returns
    -------
    ProcrustesResult
        `angle` in [0, pi / 2] and `distance` from 0 on: 0 if one system is the other rotated and shifted (and
        rescaled); pi / 2 if every cross-covariance is 0. `held_out` in [-1, 1], 0 on average for unrelated systems.

    Raises
    ------
    ShapeError
        If a system is not two-dimensional, their numbers of samples differ, or there are fewer than 8.
    DegenerateInputError
        If a system holds NaN or infinity, or is constant over samples.

    Notes
    -----
    The interval is of the angle that more and more samples would give, which is larger than that of few samples: it
    may lie above the value. For unrelated systems it is too low; read the p-value. The null of `held_out` holds the
    rotation and relabels the half that is scored: mean and variance are exact, the tail is normal.

    References
    ----------
    [@schonemann1966]
    [@gower1975]
    [@williams2021]
    [@ding2021]

    Examples
    --------
    >>> x = np.cos(np.outer(np.arange(20.0) ** 2, [1.0, 2.0]))
    >>> quarter_turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> found = procrustes(x, 3 * x @ quarter_turn + 5)
    >>> round(found.angle.value, 7), round(found.scale, 7)
    (0.0, 0.3333333)
    >>> np.round(found.rotation, 7).astype(int).tolist()
    [[0, -1], [1, 0]]
    """
    n = check_systems([x, y])
    one, other = (Narrowed.of(each, centred=config.centred) for each in (x, y))
    picked = pick(n, config.n_inference, config.seed, "procrustes")
    read = ShapeMoments.of(one.rows, other.rows, picked=picked, seed=config.seed, centred=config.centred)
    pair = ShapePair.of(read.moments.whole, read.n_units, 1.0)
    null = read.null(pair, n_draws=config.n_permutations, seed=config.seed)
    angle = _angle(read, pair, null, config)
    size_x, size_y = _sizes(read)
    return ProcrustesResult(
        angle=angle,
        distance=_distance(angle, size_x, size_y, n, scaled=config.scaled),
        held_out=_held_out(read, config.level),
        disparity=math.sin(angle.value) ** 2,
        scale=pair.cosine * size_x / size_y,
        n_samples=n,
        rotates=not read.relabels,
        agreement=_agreement(read, size_x * size_y),
        rotation=other.to_units(one.to_units(pair.turn).T),
    )


def _sizes(read: ShapeMoments) -> tuple[float, float]:
    diagonal = np.diag(read.moments.whole.cross)
    return math.sqrt(diagonal[: read.n_units].sum()), math.sqrt(diagonal[read.n_units :].sum())


def _agreement(read: ShapeMoments, sizes: float) -> np.ndarray:
    cross = read.moments.whole.cross[: read.n_units, read.n_units :]
    return np.linalg.svd(cross, compute_uv=False) / sizes


def _angle(read: ShapeMoments, pair: ShapePair, null: np.ndarray, config: ProcrustesConfig) -> Estimate:
    halves = [ShapePair.of(each, read.n_units, 1.0).cosine for each in read.moments.halves]
    influence = pair.influence(read.moments.picked, read.moments.whole.n)
    error = float(influence.std(ddof=1)) / math.sqrt(read.moments.whole.n)
    value = read.angle(pair)
    low, high = angle_interval(value, pair.cosine, (halves[0], halves[1]), error, config.level)
    apart = np.arccos(np.clip(null, -1, 1))
    typical = float(apart.mean()) if len(apart) else NAN
    return Estimate(value, low, high, typical, p_value(value, apart, "less"), config.level)


def _distance(angle: Estimate, size_x: float, size_y: float, n: int, *, scaled: bool) -> Estimate:
    """Return the distance at each of the angle's numbers, of which it is a rising function."""

    def at(theta: float) -> float:
        if scaled:
            return 2 * math.sin(theta / 2)
        return math.sqrt(((size_x - size_y) ** 2 + 4 * size_x * size_y * math.sin(theta / 2) ** 2) / n)

    return Estimate(at(angle.value), at(angle.low), at(angle.high), at(angle.null), angle.p_value, angle.level)


def _held_out(read: ShapeMoments, level: float) -> Estimate:
    """Score on the second half the rotation found on the first; a fixed rotation's null is known in closed form."""
    fitted, scored = (each.cross for each in read.moments.halves)
    p, n, moments = read.n_units, read.moments.halves[1].n, read.moments
    left, _, right = np.linalg.svd(fitted[:p, p:], full_matrices=False)
    turn = left @ right
    xx, xy, yy = scored[:p, :p], scored[:p, p:], scored[p:, p:]
    square_x, square_y = float(np.trace(xx)), float(np.trace(yy))
    norm = math.sqrt(square_x * square_y)
    value = float(np.vdot(turn, xy)) / norm
    rows = moments.picked[moments.picked_half == 1]
    parts = np.einsum("ia,ia->i", rows[:, :p] @ turn, rows[:, p:]) / norm
    for block, square in ((rows[:, :p], square_x), (rows[:, p:], square_y)):
        parts -= value / 2 * np.einsum("ia,ia->i", block, block) / square
    error = math.sqrt(n) * float(parts.std(ddof=1)) if len(parts) > 1 else NAN
    low, high = fisher_interval(value, error, level)
    spread = math.sqrt(float(np.vdot(turn.T @ xx @ turn, yy)) / moments.halves[1].freedom) / norm
    chance = float(stats.norm.sf(value / spread)) if spread > 0 else 1.0
    return Estimate(value, low, high, 0.0, max(chance, SMALLEST_P), level)
