"""Representational similarity analysis: whether two systems find the same conditions alike.

    similarity = corr_{i<j}(D_ij, E_ij)        D, E: the dissimilarities of conditions i and j in either system

All three distances are squared distances of prepared rows, so that most comparisons (`_comparisons`) are functions of
Xᵀ X, Xᵀ Y, Yᵀ Y and the row norms (`mechint_core.kernels.linear_kernels`): one pass over the rows, no n x n matrix.

    pearson, cosine        Σ_{i<j} (D_ij - D̄)(E_ij - Ē), Σ_{i<j} D_ij E_ij
    whitened cosine        tr(K L), K and L the centred kernels: linear CKA
    whitened correlation   tr(K L) - tr K tr L / (n - 1)
    bures                  the sum of the singular values of Xᵀ Y; a second pass

Rank comparisons sort the pairs. Above `EXACT_PAIRS` of them, spearman and rho-a rank by histogram in two passes over
tiles, and tau-a takes a random sample of pairs.

Source: [@kriegeskorte2008], [@nili2014] (inference over conditions), [@mantel1967] (relabelling), [@diedrichsen2020].
Cost: n (p + q)², and n² (p + q) for spearman and rho-a; inference m² per draw on m = `n_inference` conditions, m² log m
for tau-a, m³ for bures.
Chunked over: conditions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._comparisons import Comparison, bures_of_roots, check_comparison, kernel_root
from mechint_core.alignment._conditions import Draws, agreement, estimate_agreement
from mechint_core.alignment._distances import (
    PREPARE,
    Metric,
    check_metric,
    condensed_distances,
    evenly_spaced,
    scale_of,
    square_form,
)
from mechint_core.alignment._ranks import DistanceTiles, histogram_spearman
from mechint_core.alignment._sampled_pairs import sampled_tau_a
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Figure, Matrix, Scatter
from mechint_core.kernels.joint_covariance import joint_covariance
from mechint_core.kernels.linear_kernels import KernelPair, KernelProduct, Prepare, linear_kernels
from mechint_core.parallel import Rows, len_rows
from mechint_core.random import generator
from mechint_core.result import Estimate, Result

EXACT_PAIRS = 2_000_000
"""Rank comparisons sort up to this many pairs (about 2000 conditions), and rank more by histogram, or sample them."""
SHOWN = 64
"""Conditions drawn."""
ROUNDING = 1e-12
"""Distances that vary by less than this share of their size are all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RSAConfig:
    """How to compare two systems by their dissimilarities."""

    metric: Metric = "correlation"
    """Dissimilarity of two conditions: euclidean (squared, per unit), correlation or cosine."""
    comparison: Comparison = "pearson"
    """Agreement of two sets of dissimilarities: pearson, cosine, spearman, rho-a, tau-a, whitened cosine, whitened
    correlation or bures."""
    n_inference: int = 300
    """Conditions, drawn at random, on which interval and null are found; their spread is scaled to all of them."""
    n_bootstrap: int = 500
    """Bootstrap draws of conditions."""
    n_permutations: int = 500
    """Relabellings of conditions (Mantel)."""
    level: float = 0.95
    """Confidence of the interval."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        check_metric(self.metric)
        check_comparison(self.comparison)
        if self.n_inference < 4:
            raise ConfigurationError(f"n_inference must be at least 4. Got {self.n_inference}.")
        _ = self.draws

    @property
    def draws(self) -> Draws:
        """The draws that interval and null are made of."""
        return Draws(n_bootstrap=self.n_bootstrap, n_permutations=self.n_permutations, level=self.level, seed=self.seed)


@dataclass(frozen=True, slots=True)
class RSAResult(Result):
    """Agreement of two systems about which conditions are alike."""

    technique: ClassVar[str] = "rsa"
    evidence: ClassVar[str] = (
        "The interval is a bootstrap over conditions; the null relabels the second system's conditions (Mantel)."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Matrix(
            values="picture_x", x="shown", y="shown", title="First system", x_label="condition", y_label="condition",
            value_label="dissimilarity",
        ),
        Matrix(
            values="picture_y", x="shown", y="shown", title="Second system", x_label="condition", y_label="condition",
            value_label="dissimilarity",
        ),
        Scatter(points="pairs", title="Each pair of conditions: first system across, second system up"),
    )  # fmt: skip

    similarity: Estimate
    n_conditions: int
    n_inference: int
    """Conditions that interval and null were found on."""
    rank_error: float
    """How far spearman or rho-a may be from the exact value, or the standard error of tau-a; 0 where it is exact."""
    picture_x: Float[np.ndarray, "row column"]
    """Dissimilarities of the shown conditions in the first system."""
    picture_y: Float[np.ndarray, "row column"]
    """The same in the second system."""
    pairs: Float[np.ndarray, "pair coordinate"]
    """Dissimilarities of the shown pairs: first system, second system."""
    shown: Int[np.ndarray, "row"]
    """Which conditions are shown."""

    def reading(self) -> str:
        """Say how far the systems agree, and whether unrelated systems would."""
        found = self.similarity
        text = f"The dissimilarities of {self.n_conditions} conditions agree by {found.value:.3f}"
        if not math.isnan(found.low):
            text += f" [{found.low:.3f}, {found.high:.3f}]"
        if math.isnan(found.p_value):
            return f"{text}; no relabelling was done, so nothing says what unrelated systems would give."
        if found.p_value > 1 - found.level:
            return f"{text}: not distinguishable from relabelled conditions (p = {found.p_value:.2g})."
        return f"{text}; relabelled conditions give {found.null:.3f} (p = {found.p_value:.2g})."


class RSA:
    """Representational similarity analysis as an object: `RSA(metric="correlation").compare(X, Y)`."""

    def __init__(self, metric: Metric = "correlation", comparison: Comparison = "pearson") -> None:
        self.config = RSAConfig(metric=metric, comparison=comparison)

    def compare(self, x: Float[Rows, "condition unit"], y: Float[Rows, "condition other_unit"]) -> float:
        """Return the similarity alone; `result` also says how sure it is."""
        return _measure(x, y, self.config).value

    def result(self, x: Float[Rows, "condition unit"], y: Float[Rows, "condition other_unit"]) -> RSAResult:
        """Return the similarity with its interval, its null and what was compared."""
        return rsa(x, y, config=self.config)


def rsa(
    x: Float[Rows, "condition unit"], y: Float[Rows, "condition other_unit"], *, config: RSAConfig = RSAConfig()
) -> RSAResult:
    """Ask whether two systems find the same conditions alike.

    Use it to compare systems whose units do not correspond: layers, networks, recordings. It assumes that row i of both
    systems answers the same condition, and that conditions are a sample of those of interest. It cannot tell what the
    conditions share, and two systems can agree because of one shared nuisance (luminance, length, position).

    Parameters
    ----------
    x, y
        One row per condition, at least 4, aligned between the systems. Products are taken in the precision of the data
        (at least float32) and summed in float64.
    config
        Which dissimilarity, which agreement, and how interval and null are found.

    Returns
    -------
    RSAResult
        `similarity` is dimensionless, in [-1, 1] (cosine, whitened cosine, bures: in [0, 1]); 1 if the dissimilarities
        are proportional (those three), linearly related and rising (pearson, whitened correlation), or in the same
        order (spearman; rho-a and tau-a if moreover none are tied).

    Raises
    ------
    ShapeError
        If a system is not two-dimensional, their numbers of conditions differ, or there are fewer than 4.
    DegenerateInputError
        If a system holds NaN or infinity, all its dissimilarities are the same, or a condition has no correlation
        distance (constant over units) or no cosine (all zeros).

    Notes
    -----
    With more than `n_inference` conditions, interval and p-value come from that many; the interval is shrunk by
    sqrt(m / n) on Fisher's scale, and the p-value has the power of the m.

    References
    ----------
    [@kriegeskorte2008]
    [@nili2014]
    [@mantel1967]

    Examples
    --------
    >>> x = np.array([[0.0, 1.0, 3.0], [2.0, 1.0, 0.0], [0.0, 5.0, 1.0], [1.0, 0.0, 1.0], [3.0, 2.0, 7.0]])
    >>> round(rsa(x, 3 * x[:, ::-1] + 1).similarity.value, 12)
    1.0
    """
    found = _measure(x, y, config)
    shown = evenly_spaced(len(found.picked), SHOWN)
    picture_x, picture_y = (square_form(each)[np.ix_(shown, shown)] for each in (found.first, found.second))
    upper = np.triu_indices(len(shown), 1)
    similarity = estimate_agreement(
        found.value, found.first, found.second, config.comparison, n_conditions=len_rows(x), draws=config.draws
    )
    return RSAResult(
        similarity=similarity,
        n_conditions=len_rows(x),
        n_inference=len(found.picked),
        rank_error=found.rank_error,
        picture_x=picture_x,
        picture_y=picture_y,
        pairs=np.column_stack([picture_x[upper], picture_y[upper]]),
        shown=found.picked[shown],
    )


@dataclass(frozen=True, slots=True)
class _Measured:
    """The agreement over all pairs, and the dissimilarities of the picked conditions."""

    value: float
    rank_error: float
    picked: np.ndarray
    first: np.ndarray
    second: np.ndarray


def _measure(x: Rows, y: Rows, config: RSAConfig) -> _Measured:
    n, prepare = len_rows(x), PREPARE[config.metric]
    if n < 4:
        raise ShapeError(f"x must have at least 4 conditions. Got shape {x.shape}.")
    picked = np.sort(generator(config.seed, "rsa").choice(n, min(n, config.n_inference), replace=False))
    kernels = linear_kernels(x, y, prepare=prepare, picked=picked)
    for name, product in (("x", kernels.xx), ("y", kernels.yy)):
        if product.distance_spread <= ROUNDING * product.distance_inner:
            raise DegenerateInputError(f"dissimilarities of {name} must differ. Got all pairs equally far apart.")
    first = condensed_distances(kernels.rows_x, scale_of(config.metric, x.shape[1]))
    second = condensed_distances(kernels.rows_y, scale_of(config.metric, y.shape[1]))
    error = 0.0
    if config.comparison in _INNER:
        inner = _INNER[config.comparison]
        value = inner(kernels.xy) / math.sqrt(inner(kernels.xx) * inner(kernels.yy))
    elif config.comparison == "bures":
        value = _bures(x, y, prepare, kernels)
    elif len(picked) == n:
        value = agreement(first, second, config.comparison)
    elif n * (n - 1) // 2 <= EXACT_PAIRS:
        every_x, every_y = (condensed_distances(prepare(np.asarray(rows[:])), 1.0) for rows in (x, y))
        value = agreement(every_x, every_y, config.comparison)
    else:
        tiles = DistanceTiles.of(x, y, prepare)
        if config.comparison == "tau-a":
            value, error = sampled_tau_a(tiles, seed=config.seed)
        else:
            value, error = histogram_spearman(
                tiles, kernels.rows_x, kernels.rows_y, broken_ties=config.comparison == "rho-a"
            )
    return _Measured(value, error, picked, first, second)


def _white_spread(product: KernelProduct) -> float:
    """Return <K - D̄ H / 2, L - Ē H / 2> over the centred kernels, H the centring: what taking the means out leaves."""
    return product.inner - product.trace_x * product.trace_y / (product.n - 1)


_INNER: Final[dict[Comparison, Callable[[KernelProduct], float]]] = {
    "pearson": lambda product: product.distance_spread,
    "cosine": lambda product: product.distance_inner,
    "whitened cosine": lambda product: product.inner,
    "whitened correlation": _white_spread,
}
"""The inner product of two dissimilarity matrices whose cosine a comparison is."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Rows as `linear_kernels` sees them: prepared, block by block."""

    rows: Rows
    prepare: Prepare
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        return self.prepare(self.rows[rows])


def _bures(x: Rows, y: Rows, prepare: Prepare, kernels: KernelPair) -> float:
    """Return the sum of the singular values of Xᵀ Y, or of roots of K and L where those are smaller."""
    n = kernels.xy.n
    if x.shape[1] + y.shape[1] > n:
        roots = (kernel_root(_distances_of(form)) for form in (kernels.form_x, kernels.form_y))
        return bures_of_roots(*roots)
    prepared = (_Prepared(rows, prepare, np.result_type(rows.dtype, np.float32)) for rows in (x, y))
    cross = (n - 1) * joint_covariance(*prepared).whole.xy
    nuclear = float(np.linalg.svd(cross, compute_uv=False).sum())
    return nuclear / math.sqrt(kernels.xx.trace_x * kernels.yy.trace_y)


def _distances_of(gram: np.ndarray) -> np.ndarray:
    diagonal = np.diagonal(gram)
    return diagonal[:, None] + diagonal - 2 * gram
