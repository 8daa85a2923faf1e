"""Projection-weighted canonical correlation: canonical correlations, weighted by what the variates say of the units.

    similarity_x = Σ_k α_k ρ_k / Σ_k α_k,      α_k = Σ_j |cov(h_k, x_j)|,    h_k: k-th canonical variate of X

and similarity_y with the variates and units of Y: the two differ, and papers report the one or the other. Variates that
only noise units follow count little, so no directions need be dropped first.

Source: [@morcos2018], [@efron1981] (interval).
Cost: n (p + q)² / 2 for the covariances, groups included; p³ + q³ per group; n p q + p² q per relabelling.
Chunked over: samples.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from scipy import linalg

from mechint_core.alignment._canonical import canonical
from mechint_core.alignment._coordinates import AlignedCoordinates, Coordinates, aligned_coordinates, unit_loadings
from mechint_core.alignment._subspace_similarity import (
    SubspaceDraws,
    orthonormal_basis,
    reading_of,
    relabelled_null,
    similarity_interval,
)
from mechint_core.figure import Curve, Figure
from mechint_core.kernels.joint_covariance import JointCovariance, picked_rows
from mechint_core.parallel import Rows, map_parallel
from mechint_core.random import generator
from mechint_core.result import Estimate, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class PWCCAConfig:
    """How to compare two systems by projection-weighted canonical correlation."""

    n_groups: int = 10
    """Groups of neighbouring samples that the jackknife leaves out in turn."""
    n_permutations: int = 200
    """Relabellings of samples; 0 for no null."""
    n_inference: int = 5000
    """Samples, drawn at random, that are relabelled."""
    level: float = 0.95
    """Confidence of the intervals."""
    memory_budget: int = 2**31
    """Refuse to decompose rows that would take more bytes than this (wide or ill-conditioned data)."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
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
class PWCCAResult(Result):
    """Similarity of two systems, weighted by either of them."""

    technique: ClassVar[str] = "pwcca"
    evidence: ClassVar[str] = (
        "The interval is the jackknife over groups of samples, for the population's similarity: its bias is taken out, "
        "so the value may lie above it; the null relabels the second system's samples."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Curve(
            y=("correlations",), title="Canonical correlations", x_label="component", y_label="correlation"
        ),
        Curve(
            y=("shares_x", "shares_y"), title="What each component counts for", x_label="component",
            y_label="share of the weight",
        ),
    )  # fmt: skip
    invariances: ClassVar[tuple[str, ...]] = ("permutation", "isotropic scaling", "translation")
    """Changes of either system that leave both similarities as they are; the one that does not weigh may be mixed."""

    similarity_x: Estimate
    """Weighted by the first system's units."""
    similarity_y: Estimate
    """Weighted by the second system's units."""
    rank_x: int
    rank_y: int
    n_samples: int
    n_samples_per_direction: float
    """Samples per direction of both systems together: below 5 the value is mostly bias: no interval."""
    saturated: bool
    """More directions than samples: some correlations are 1 whatever the data."""
    correlations: Float[np.ndarray, "component"]
    shares_x: Float[np.ndarray, "component"]
    """What each correlation counts for in `similarity_x`; their sum is 1."""
    shares_y: Float[np.ndarray, "component"]

    def reading(self) -> str:
        """Say how similar the systems are to either, and whether unrelated systems would look the same."""
        text = f"Weighted by the second system the similarity is {self.similarity_y.value:.3f}; by the first it is"
        return reading_of(text, self.similarity_x)


def pwcca(
    x: Float[Rows, "sample unit"], y: Float[Rows, "sample other_unit"], *, config: PWCCAConfig = PWCCAConfig()
) -> PWCCAResult:
    """Ask how far what the units of one system carry is a linear function of the other system.

    Use it where `svcca` would have to guess how many directions are signal. It assumes that row i of both systems
    answers the same sample, and that samples are independent. It depends on the axes that the weighing system is
    written in, and is biased upwards, the more the fewer samples there are per unit: compare it with its null.

    Parameters
    ----------
    x, y
        One row per sample, at least two per group, aligned between the systems. Read block by block, and summed in
        float64; a system with no fewer units than samples, or an ill-conditioned one, is read whole.
    config
        How interval and null are found.

    Returns
    -------
    PWCCAResult
        Similarities are in [0, 1]: `similarity_x` is 1 if X is a linear function of Y.

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
    Of a system with more directions than the other, only as many variates as there are pairs weigh.

    References
    ----------
    [@morcos2018]
    [@efron1981]

    Examples
    --------
    >>> x = np.column_stack([np.tile([0.0, 1.0, 3.0, 2.0], 10), np.repeat(np.arange(10.0), 4)])
    >>> found = pwcca(x, x @ np.array([[2.0, 1.0], [1.0, 1.0]]))
    >>> round(found.similarity_x.value, 12), round(found.similarity_y.value, 12)
    (1.0, 1.0)
    """
    config.draws.check(x)
    data = aligned_coordinates(x, y, n_folds=config.n_groups, memory_budget=config.memory_budget)
    measure = _Weighted(data)
    whole = measure.of(data.whole)
    without = np.array(map_parallel(measure, [data.folds.without(group) for group in range(config.n_groups)]))
    n, per_direction = data.whole.n, data.whole.n / (whole.rank_x + whole.rank_y)
    picked = np.sort(generator(config.seed, "pwcca").choice(n, min(n, config.n_inference), replace=False))
    rows_x, rows_y = picked_rows(data.x.rows, picked), picked_rows(data.y.rows, picked)
    null = relabelled_null(
        _WeightedBases(_unit_products(data.x, rows_x), _unit_products(data.y, rows_y)),
        rows_x,
        rows_y,
        n_samples=n,
        n_permutations=config.n_permutations,
        seed=config.seed,
        word="pwcca relabelling",
    )
    similarity_x, similarity_y = (
        null.estimate(
            index,
            whole.similarities[index],
            similarity_interval(
                whole.similarities[index], without[:, index], config.level, per_direction=per_direction
            ),
            config.level,
        )
        for index in range(2)
    )
    return PWCCAResult(
        similarity_x=similarity_x,
        similarity_y=similarity_y,
        rank_x=whole.rank_x,
        rank_y=whole.rank_y,
        n_samples=n,
        n_samples_per_direction=per_direction,
        saturated=whole.rank_x + whole.rank_y > n - 1,
        correlations=whole.correlations,
        shares_x=whole.shares_x,
        shares_y=whole.shares_y,
    )


@dataclass(frozen=True, slots=True)
class _Found:
    correlations: np.ndarray
    shares_x: np.ndarray
    shares_y: np.ndarray
    rank_x: int
    rank_y: int

    @property
    def similarities(self) -> tuple[float, float]:
        return float(self.shares_x @ self.correlations), float(self.shares_y @ self.correlations)


@dataclass(frozen=True, slots=True)
class _Weighted:
    """Covariances -> both similarities."""

    data: AlignedCoordinates

    def __call__(self, covariance: JointCovariance) -> tuple[float, float]:
        return self.of(covariance).similarities

    def of(self, covariance: JointCovariance) -> _Found:
        found = canonical(covariance)
        loadings_x = unit_loadings(self.data.x, covariance.xx, found.weights_x, covariance.n)
        loadings_y = unit_loadings(self.data.y, covariance.yy, found.weights_y, covariance.n)
        return _Found(found.correlations, _shares(loadings_x), _shares(loadings_y), found.rank_x, found.rank_y)


def _shares(loadings: Float[np.ndarray, "unit component"]) -> Float[np.ndarray, "component"]:
    weights = np.abs(loadings).sum(axis=0)
    return weights / weights.sum()


def _unit_products(coordinates: Coordinates, rows: np.ndarray) -> Float[np.ndarray, "unit _"]:
    """Return the products of each unit with an orthonormal basis of all: what any variate's loadings are made of."""
    products = (rows - rows.mean(axis=0)).T @ orthonormal_basis(rows)
    return products if coordinates.inverse is None else coordinates.inverse.T @ products


@dataclass(frozen=True, slots=True)
class _WeightedBases:
    """Orthonormal bases -> both similarities, with the units' products with them."""

    units_x: np.ndarray
    units_y: np.ndarray

    def __call__(self, basis_x: np.ndarray, basis_y: np.ndarray) -> np.ndarray:
        left, values, right = linalg.svd(basis_x.T @ basis_y, full_matrices=False, check_finite=False)
        return np.array([_shares(self.units_x @ left) @ values, _shares(self.units_y @ right.T) @ values])
