"""Canonical correlation analysis: which directions of two systems vary together, and whether that holds on new samples.

    max corr(X a_k, Y b_k),      X a_k uncorrelated with X a_j, Y b_k with Y b_j, for j < k

Headline: the correlations that weights found on the other folds reach on held-out samples. With as many units as
samples the correlations within the sample are 1 whatever the data, so those stand beside it, with what is known about
them: their interval, bias taken out by the jackknife over folds, and a permutation test that steps down.

Source: [@hotelling1936], [@vinod1976] (ridge), [@winkler2020] (test), [@stone1974] (held out), [@hardoon2004] (kernel).
Cost: n (p + q)² / 2 for the covariances, folds included; p³ + q³ per fold (and penalty); n p q per relabelling.
Chunked over: samples.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, final, get_args

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._canonical import Canonical, rank_of, variate_deviations
from mechint_core.alignment._canonical_folds import CanonicalFolds, RidgeFit, canonical_folds
from mechint_core.alignment._coordinates import AlignedCoordinates, Kernel, aligned_coordinates, unit_loadings
from mechint_core.alignment._held_out import correlation_interval, population_interval
from mechint_core.alignment._paired_directions import Fitted, PairedDirections
from mechint_core.alignment._step_down import StepDown, step_down
from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.figure import Curve, Figure, Scatter
from mechint_core.kernels.joint_covariance import picked_rows
from mechint_core.parallel import Rows, len_rows
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

ENOUGH_SAMPLES_PER_UNIT = 5.0
"""Below this the bias of the correlations within the sample is not taken out well: no interval for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CCAConfig:
    """How to correlate the subspaces of two systems."""

    n_components: int = 20
    """Pairs of directions, the most correlated first; fewer if a system has fewer."""
    penalties: tuple[float, ...] = (0.0,)
    """Ridge, in mean variances of a unit. 0 is CCA itself; of several, cross-validation chooses."""
    kernel: Kernel = "none"
    """none, linear (the same numbers, from the rows) or rbf: directions in the kernel's feature space."""
    kernel_width: float = 1.0
    """Width of the radial kernel, in median distances of samples."""
    n_folds: int = 5
    """Runs of neighbouring samples that are held out in turn."""
    n_permutations: int = 500
    """Relabellings of samples in the step-down test; 0 for no test."""
    n_inference: int = 2000
    """Samples, drawn at random, that the test is made on; at least four per unit, where there are as many."""
    level: float = 0.95
    """Confidence of the intervals."""
    memory_budget: int = 2**31
    """Refuse to decompose rows that would take more bytes than this (wide or ill-conditioned data, kernels)."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        if self.n_components < 1:
            raise ConfigurationError(f"n_components must be at least 1. Got {self.n_components}.")
        check_penalties(self.penalties, self.kernel)
        if self.kernel_width <= 0:
            raise ConfigurationError(f"kernel_width must be above 0. Got {self.kernel_width}.")
        if self.n_folds < 3:
            raise ConfigurationError(f"n_folds must be at least 3. Got {self.n_folds}.")
        if self.n_permutations < 0 or self.n_inference < 4:
            raise ConfigurationError(
                f"n_permutations must be at least 0 and n_inference at least 4. "
                f"Got {self.n_permutations} and {self.n_inference}."
            )
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level must be between 0 and 1. Got {self.level}.")


def check_penalties(penalties: tuple[float, ...], kernel: str) -> None:
    """Refuse penalties that are negative or none, and a radial kernel without one."""
    if kernel not in get_args(Kernel):
        raise ConfigurationError(f"kernel must be one of {get_args(Kernel)}. Got {kernel!r}.")
    if not penalties or min(penalties) < 0:
        raise ConfigurationError(f"penalties must be at least 0, and at least one. Got {penalties}.")
    if kernel == "rbf" and min(penalties) == 0:
        raise ConfigurationError("penalties must be above 0 for a radial kernel: its space has a direction per sample.")


@dataclass(frozen=True, slots=True)
class CCAResult(Result):
    """Correlated directions of two systems, on held-out samples and within the sample."""

    technique: ClassVar[str] = "cca"
    evidence: ClassVar[str] = (
        "The interval is the jackknife over folds, fits included; the null is every relabelling of held-out samples (0 "
        "on average, exactly); the p-value is the first of a step-down permutation test of Wilks' statistic."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Curve(
            y=("held_out", "within_sample"), title="Canonical correlations", x_label="component", y_label="correlation"
        ),
        Scatter(points="first_pair", title="First pair of variates", x_label="first system", y_label="second system"),
    )
    invariances: ClassVar[tuple[str, ...]] = ("invertible linear", "orthogonal", "isotropic scaling", "translation")
    """Changes of either system that leave all correlations as they are; of a ridge or kernel, all but the first."""

    similarity: Estimate
    """Mean held-out correlation of the components."""
    n_components: int
    n_significant: int
    """Components whose family-wise p-value is at most 1 - level."""
    n_samples: int
    n_samples_per_unit: float
    """Samples per direction of both systems together: below 5 nothing within the sample is to be trusted."""
    rank_x: int
    rank_y: int
    rank_deficient: bool
    """A system varies along fewer directions than it has units."""
    saturated: bool
    """More directions than samples and no ridge: within the sample all is correlated, and there is no test."""
    penalty: float
    """The ridge that was given or chosen, in mean variances of a unit."""
    n_inference: int
    """Samples that the test was made on."""
    wilks: float
    """Π (1 - r²) over all canonical correlations; NaN with a ridge."""
    held_out: Float[np.ndarray, "component"]
    within_sample: Float[np.ndarray, "component"]
    """Canonical correlations of all samples: too high."""
    low: Float[np.ndarray, "component"]
    """Interval of the population's canonical correlation; NaN with a ridge, or with too few samples per unit."""
    high: Float[np.ndarray, "component"]
    p_values: Float[np.ndarray, "component"]
    """Of the step-down test: the chance of any false discovery is at most that. With a ridge the first is exact."""
    loadings_x: Float[np.ndarray, "unit component"]
    """Covariance of each unit with the variates, which have variance 1."""
    loadings_y: Float[np.ndarray, "other_unit component"]
    variates_x: Float[np.ndarray, "sample component"]
    """Variates of the shown samples."""
    variates_y: Float[np.ndarray, "sample component"]
    first_pair: Float[np.ndarray, "sample coordinate"]
    """The first variates of the shown samples: first system, second system."""
    shown: Int[np.ndarray, "sample"]
    """Which samples those are."""

    def reading(self) -> str:
        """Say how far the correlation holds on new samples, and how much of it is more than chance."""
        found = self.similarity
        text = (
            f"On held-out samples {self.n_components} pairs of directions correlate by {found.value:.3f} "
            f"[{found.low:.3f}, {found.high:.3f}] on average ({float(self.within_sample.mean()):.3f} within the sample)"
        )
        if self.saturated:
            return f"{text}; there are more directions than samples, so nothing can be tested: give penalties."
        if math.isnan(found.p_value):
            return f"{text}; no relabelling was done, so nothing says what unrelated systems would give."
        if self.n_significant == 0:
            return f"{text}: not distinguishable from unrelated systems (p = {found.p_value:.2g})."
        text += f"; {self.n_significant} of them are more than chance (step-down p = {found.p_value:.2g} for the first)"
        if self.n_samples_per_unit < ENOUGH_SAMPLES_PER_UNIT:
            text += f". With {self.n_samples_per_unit:.1f} samples per unit, read the held-out values only"
        return f"{text}."


@final
class CCA(PairedDirections):
    """Canonical correlation analysis as an object: `CCA(n_components=20).fit(X, Y).score(X_test, Y_test)`.

    Parameters
    ----------
    n_components
        Pairs of directions; fewer if a system has fewer.
    penalty
        Ridge, in mean variances of a unit.
    kernel, kernel_width, memory_budget
        As in `CCAConfig`.
    """

    def __init__(
        self,
        n_components: int = 20,
        *,
        penalty: float = 0.0,
        kernel: Kernel = "none",
        kernel_width: float = 1.0,
        memory_budget: int = 2**31,
    ) -> None:
        self.config = CCAConfig(
            n_components=n_components,
            penalties=(penalty,),
            kernel=kernel,
            kernel_width=kernel_width,
            memory_budget=memory_budget,
        )
        super().__init__()

    def fit(self, x: Float[Rows, "sample unit"], y: Float[Rows, "sample other_unit"]) -> "CCA":
        """Find the directions, in one pass over the rows."""
        data = _coordinates(x, y, self.config, n_folds=1)
        found = RidgeFit(data, self.config.n_components).whole(self.config.penalties[0], self.config.n_components)
        self._found = Fitted(data, found.weights_x, found.weights_y, found.correlations)
        return self

    @property
    def canonical_correlations(self) -> Float[np.ndarray, "component"]:
        """Correlations of the variates of the samples that were fitted, falling: too high for new samples."""
        return self._fitted.strengths


def cca(
    x: Float[Rows, "sample unit"], y: Float[Rows, "sample other_unit"], *, config: CCAConfig = CCAConfig()
) -> CCAResult:
    """Ask which directions of two systems vary together, on samples that had no part in finding them.

    Use it to compare systems whatever their units: it sees through any invertible mixing of them. It assumes that row i
    of both systems answers the same sample, and that samples are independent (for frames of one recording the p-value
    is too small). It cannot tell how much of either system's variance the directions carry: two systems can agree
    perfectly along directions that hardly vary.

    Parameters
    ----------
    x, y
        One row per sample, at least four per fold, aligned between the systems. Read block by block and summed in
        float64; read whole if a system has no fewer units than samples, is ill conditioned, or for a kernel.
    config
        How many components, which ridge or kernel, and how interval and null are found.

    Returns
    -------
    CCAResult
        Correlations are in [-1, 1] on held-out samples (0 on average for unrelated systems) and in [0, 1] within the
        sample, falling; 1 if a direction of one system is a linear function of the other.

    Raises
    ------
    ShapeError
        If a system is not two-dimensional, their numbers of samples differ, or a fold has fewer than four.
    DegenerateInputError
        If a system holds NaN or infinity, or is constant over samples.
    MemoryBudgetError
        If rows must be decomposed and that takes more than `memory_budget`.

    Notes
    -----
    `similarity` estimates what weights found on (k - 1) / k of the samples reach on new ones. `low` and `high` bound
    the population's correlations, which lie between those: they are centred on the bias-corrected correlation.
    Without a ridge, units that repeat each other are dropped (`rank_deficient`); nothing changes.

    References
    ----------
    [@hotelling1936]
    [@vinod1976]
    [@winkler2020]
    [@stone1974]
    [@hardoon2004]

    Examples
    --------
    >>> x = np.column_stack([np.tile([0.0, 1.0, 3.0, 2.0], 10), np.repeat(np.arange(10.0), 4)])
    >>> mixing = np.array([[2.0, 1.0], [1.0, 1.0]])
    >>> round(cca(x, x @ mixing - 5, config=CCAConfig(n_permutations=0)).similarity.value, 12)
    1.0
    """
    n = len_rows(x)
    if n < 4 * config.n_folds:
        raise ShapeError(f"x must have at least 4 samples for each of {config.n_folds} folds. Got shape {x.shape}.")
    data = _coordinates(x, y, config, n_folds=config.n_folds)
    found = canonical_folds(data, n_components=config.n_components, penalties=config.penalties)
    rank_x, rank_y = _ranks(data, found)
    per_unit, k = n / (rank_x + rank_y), len(found.whole.correlations)
    picked, test = _tested(data, found, rank_x + rank_y, config)
    p_values = np.pad(test.p_values, (0, max(k - len(test.p_values), 0)), constant_values=np.nan)[:k]
    similarity, without = float(found.held_out.scores.mean()), found.held_out.without.mean(axis=1)
    low, high = correlation_interval(similarity, without, config.level)
    bounds = np.full((2, k), np.nan)
    if found.penalty == 0 and per_unit >= ENOUGH_SAMPLES_PER_UNIT:
        bounds = population_interval(found.whole.correlations, found.without, config.level)
    loadings_x, loadings_y = _loadings(data, found.whole)
    u, v = _variates_of(data, found.whole, picked)
    return CCAResult(
        similarity=Estimate(similarity, low, high, 0.0, float(p_values[0]), config.level),
        n_components=k,
        n_significant=int(np.sum(p_values <= 1 - config.level)),
        n_samples=n,
        n_samples_per_unit=per_unit,
        rank_x=rank_x,
        rank_y=rank_y,
        rank_deficient=rank_x < x.shape[1] or rank_y < y.shape[1],
        saturated=test.saturated,
        penalty=found.penalty,
        n_inference=len(picked),
        wilks=float(np.prod(1 - found.whole.spectrum**2)) if found.penalty == 0 else NAN,
        held_out=found.held_out.scores,
        within_sample=found.whole.correlations,
        low=bounds[0],
        high=bounds[1],
        p_values=p_values,
        loadings_x=loadings_x,
        loadings_y=loadings_y,
        variates_x=u,
        variates_y=v,
        first_pair=np.column_stack([u[:, 0], v[:, 0]]),
        shown=picked,
    )


def _coordinates(x: Rows, y: Rows, config: CCAConfig, *, n_folds: int) -> AlignedCoordinates:
    return aligned_coordinates(
        x,
        y,
        n_folds=n_folds,
        kernel=config.kernel,
        width=config.kernel_width,
        whitened=max(config.penalties) == 0,
        memory_budget=config.memory_budget,
    )


def _ranks(data: AlignedCoordinates, found: CanonicalFolds) -> tuple[int, int]:
    """Return the number of directions of either system; a ridge hides those that are missing."""
    if found.penalty == 0:
        return found.whole.rank_x, found.whole.rank_y
    covariance = data.whole
    return data.x.rank or rank_of(covariance.xx), data.y.rank or rank_of(covariance.yy)


def _tested(
    data: AlignedCoordinates, found: CanonicalFolds, n_directions: int, config: CCAConfig
) -> tuple[np.ndarray, StepDown]:
    """Return the samples that the test is made on, and the test."""
    n = data.folds.total.n
    m = min(n, max(config.n_inference, 4 * n_directions))
    picked = np.sort(generator(config.seed, "cca").choice(n, m, replace=False))
    test = step_down(
        picked_rows(data.x.rows, picked),
        picked_rows(data.y.rows, picked),
        ridge_x=found.ridge_x,
        ridge_y=found.ridge_y,
        n_permutations=config.n_permutations,
        seed=config.seed,
    )
    return picked, test


def _loadings(data: AlignedCoordinates, whole: Canonical) -> tuple[np.ndarray, np.ndarray]:
    """Return what each unit has in common with each variate, scaled to variance 1."""
    covariance = data.whole
    scale_x, scale_y = variate_deviations(covariance, whole.weights_x, whole.weights_y)
    return (
        unit_loadings(data.x, covariance.xx, whole.weights_x / scale_x, covariance.n),
        unit_loadings(data.y, covariance.yy, whole.weights_y / scale_y, covariance.n),
    )


def _variates_of(data: AlignedCoordinates, whole: Canonical, picked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    covariance = data.whole
    return (
        (picked_rows(data.x.rows, picked) - covariance.mean_x) @ whole.weights_x,
        (picked_rows(data.y.rows, picked) - covariance.mean_y) @ whole.weights_y,
    )
