"""Singular vector canonical correlation: how far the strong directions of two systems can be mapped onto each other.

    V_x: principal directions that carry 99 % of the variance of X,  V_y: of Y
    similarity = mean_k ρ_k,      ρ: canonical correlations of X V_x and Y V_y

Source: [@raghu2017], [@efron1981] (interval).
Cost: n (p + q)² / 2 for the covariances, groups included; p³ + q³ per group; n d_x d_y per relabelling.
Chunked over: samples.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from scipy import linalg

from mechint_core.alignment._coordinates import aligned_coordinates
from mechint_core.alignment._subspace_similarity import SubspaceDraws, reading_of, relabelled_null, similarity_interval
from mechint_core.errors import ConfigurationError
from mechint_core.figure import Curve, Figure
from mechint_core.kernels.joint_covariance import JointCovariance, picked_rows
from mechint_core.parallel import Rows, map_parallel
from mechint_core.random import generator
from mechint_core.result import Estimate, Result

ROUNDING = 1e-12
"""A direction with less than this share of the largest variance is rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SVCCAConfig:
    """How to compare two systems by singular vector canonical correlation."""

    variance_kept: float = 0.99
    """Share of each system's variance that its kept directions carry."""
    n_groups: int = 10
    """Groups of neighbouring samples that the jackknife leaves out in turn."""
    n_permutations: int = 200
    """Relabellings of samples; 0 for no null."""
    n_inference: int = 5000
    """Samples, drawn at random, that are relabelled."""
    level: float = 0.95
    """Confidence of the interval."""
    memory_budget: int = 2**31
    """Refuse to decompose rows that would take more bytes than this (no fewer units than samples)."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        if not 0 < self.variance_kept <= 1:
            raise ConfigurationError(f"variance_kept must be above 0 and at most 1. Got {self.variance_kept}.")
        _ = self.draws

    @property
    def draws(self) -> SubspaceDraws:
        """The draws that interval and null are made of."""
        return SubspaceDraws(
            n_groups=self.n_groups,
            n_permutations=self.n_permutations,
            n_inference=self.n_inference,
            level=self.level,
            memory_budget=self.memory_budget,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True)
class SVCCAResult(Result):
    """Similarity of the strong directions of two systems."""

    technique: ClassVar[str] = "svcca"
    evidence: ClassVar[str] = (
        "The interval is the jackknife over groups of samples, for the population's similarity: its bias is taken out, "
        "so the value may lie above it; the null relabels the second system's samples."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Curve(
            y=("correlations",), title="Canonical correlations of the kept directions", x_label="component",
            y_label="correlation",
        ),
    )  # fmt: skip
    invariances: ClassVar[tuple[str, ...]] = ("orthogonal", "isotropic scaling", "translation")
    """Changes of either system that leave `similarity` as it is."""

    similarity: Estimate
    dimension_x: int
    """Directions of the first system that were kept."""
    dimension_y: int
    n_samples: int
    n_samples_per_direction: float
    """Samples per kept direction of both systems together: below 5 the value is mostly bias: no interval."""
    saturated: bool
    """More directions than samples: some correlations are 1 whatever the data."""
    correlations: Float[np.ndarray, "component"]

    def reading(self) -> str:
        """Say how similar the strong directions are, and whether unrelated systems would look the same."""
        kept = f"{self.dimension_x} and {self.dimension_y} strongest directions"
        text = f"The {kept} have a mean canonical correlation of"
        return reading_of(text, self.similarity)


def svcca(
    x: Float[Rows, "sample unit"], y: Float[Rows, "sample other_unit"], *, config: SVCCAConfig = SVCCAConfig()
) -> SVCCAResult:
    """Ask how far the strong directions of two systems are linear functions of each other.

    Use it to compare layers or networks of any width where weak directions are noise. It assumes that row i of both
    systems answers the same sample, and that samples are independent. All kept directions count the same, however
    much variance they carry; and the value is biased upwards, the more the fewer samples there are per direction, so
    compare it with its null. `cca` says what holds on new samples.

    Parameters
    ----------
    x, y
        One row per sample, at least two per group, aligned between the systems. Read block by block, and summed in
        float64; a system with no fewer units than samples is read whole.
    config
        How much variance is kept, and how interval and null are found.

    Returns
    -------
    SVCCAResult
        `similarity` is in [0, 1]: 1 if the kept directions of the system that has fewer are linear functions of the
        other's.

    Raises
    ------
    ShapeError
        If a system is not two-dimensional, their numbers of samples differ, or a group has fewer than two.
    DegenerateInputError
        If a system holds NaN or infinity, or is constant over samples.
    MemoryBudgetError
        If a system must be decomposed by its rows and that takes more than `memory_budget`.

    Notes
    -----
    The numbers of kept directions are those of all samples, in every group of the jackknife too.

    References
    ----------
    [@raghu2017]
    [@efron1981]

    Examples
    --------
    >>> x = np.column_stack([np.tile([0.0, 1.0, 3.0, 2.0], 10), np.repeat(np.arange(10.0), 4)])
    >>> quarter_turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> round(svcca(x, 7 * x @ quarter_turn + 5).similarity.value, 12)
    1.0
    """
    config.draws.check(x)
    data = aligned_coordinates(x, y, n_folds=config.n_groups, whitened=False, memory_budget=config.memory_budget)
    axes_x, axes_y = (principal_axes(each, config.variance_kept) for each in (data.whole.xx, data.whole.yy))
    (_, dimension_x), (_, dimension_y) = axes_x.shape, axes_y.shape
    measure = _MeanCorrelation(dimension_x, dimension_y)
    correlations = measure.correlations(data.whole)
    value = float(correlations.mean())
    without = np.array(map_parallel(measure, [data.folds.without(group) for group in range(config.n_groups)]))
    n, per_direction = data.whole.n, data.whole.n / (dimension_x + dimension_y)
    interval = similarity_interval(value, without, config.level, per_direction=per_direction)
    picked = np.sort(generator(config.seed, "svcca").choice(n, min(n, config.n_inference), replace=False))
    null = relabelled_null(
        mean_correlation_of_bases,
        picked_rows(data.x.rows, picked) @ axes_x,
        picked_rows(data.y.rows, picked) @ axes_y,
        n_samples=n,
        n_permutations=config.n_permutations,
        seed=config.seed,
        word="svcca relabelling",
    )
    return SVCCAResult(
        similarity=null.estimate(0, value, interval, config.level),
        dimension_x=dimension_x,
        dimension_y=dimension_y,
        n_samples=n,
        n_samples_per_direction=per_direction,
        saturated=dimension_x + dimension_y > n - 1,
        correlations=correlations,
    )


def principal_axes(
    covariance: Float[np.ndarray, "unit _"], variance_kept: float = 1.0, n_axes: int | None = None
) -> Float[np.ndarray, "unit _"]:
    """Return the strongest directions, as many as carry that share of the variance, scaled to unit variance."""
    values, vectors = linalg.eigh(covariance, check_finite=False)
    values, vectors = values[::-1], vectors[:, ::-1]
    carried = np.cumsum(values) / values.sum()
    enough = int(np.searchsorted(carried, variance_kept * (1 - ROUNDING))) + 1
    kept = min(n_axes or enough, int(np.sum(values > ROUNDING * len(values) * values[0])))
    return vectors[:, :kept] / np.sqrt(values[:kept])


@dataclass(frozen=True, slots=True)
class _MeanCorrelation:
    """Mean canonical correlation of so many of the strongest directions."""

    dimension_x: int
    dimension_y: int

    def __call__(self, covariance: JointCovariance) -> float:
        correlations = self.correlations(covariance)
        return float(correlations.sum()) / min(self.dimension_x, self.dimension_y)

    def correlations(self, covariance: JointCovariance) -> np.ndarray:
        axes_x = principal_axes(covariance.xx, n_axes=self.dimension_x)
        axes_y = principal_axes(covariance.yy, n_axes=self.dimension_y)
        return np.minimum(linalg.svdvals(axes_x.T @ covariance.xy @ axes_y, check_finite=False), 1.0)


def mean_correlation_of_bases(basis_x: np.ndarray, basis_y: np.ndarray) -> Float[np.ndarray, "_"]:
    """Return the mean canonical correlation of two orthonormal bases, as an array of one."""
    return np.array([np.mean(linalg.svdvals(basis_x.T @ basis_y, check_finite=False))])
