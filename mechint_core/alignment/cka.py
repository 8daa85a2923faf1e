"""Linear centred kernel alignment: how much of the geometry of two systems' responses is the same.

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),        K = X Xᵀ, L = Y Yᵀ, rows centred

    biased     HSIC(K, L) ∝ tr(K L) = ||Xᵀ Y||²_F
    unbiased   HSIC(K, L) ∝ sum_{i≠j} Ã_ij B̃_ij, with Ã, B̃ the U-centred kernels (0 on average if independent)

Interval: the influence of row i on CKA = N / sqrt(A B) is 2n (N_i / sqrt(A B) - (A_i / A + B_i / B) CKA / 2), where N_i
is the part of row i in the sum N; its spread over rows, divided by sqrt(n), is the standard error (infinitesimal
jackknife). Null: the mean and variance over all n! relabellings of Y's rows are known in closed form, so nothing is
drawn; the skewness is that of the limiting weighted sum of chi-squares, and the p-value is Pearson's type III.

Source: [@kornblith2019], [@song2012], [@kaziaoual1995] (moments), [@josse2008] (type III), [@efron1982] (jackknife).
Cost: n (p + q)² where p + q <= n, else n² (p + q); p³ for the skewness, where it matters.
Chunked over: samples.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from scipy import stats

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Figure, Histogram
from mechint_core.kernels.linear_kernels import KernelProduct, LinearKernels, linear_kernels
from mechint_core.parallel import Rows, len_rows
from mechint_core.random import generator
from mechint_core.result import Estimate, Result

SMALLEST_P = 1e-6
"""Below this the type III tail was not checked against permutations, so no smaller p-value is reported."""
BEYOND_EVERY_TAIL = 17.0
"""Standard deviations at which even the most skewed null, one chi-square, has fallen below `SMALLEST_P`."""
ROUNDING = 1e-12
"""A U-centred norm below this share of the biased one is rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CKAConfig:
    """How to compare two systems by centred kernel alignment."""

    unbiased: bool = True
    """Correct the bias that drives CKA to 1 when there are more units than samples."""
    n_inference: int = 300
    """Samples, drawn at random, from which the width of the interval is estimated."""
    level: float = 0.95
    """Confidence of the interval."""
    seed: int = 0
    """Names the draw of those samples."""

    def __post_init__(self) -> None:
        if self.n_inference < 2:
            raise ConfigurationError(f"n_inference must be at least 2. Got {self.n_inference}.")
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level must be between 0 and 1. Got {self.level}.")


@dataclass(frozen=True, slots=True)
class CKAResult(Result):
    """Similarity of two systems by centred kernel alignment."""

    technique: ClassVar[str] = "cka"
    evidence: ClassVar[str] = (
        "The interval is the infinitesimal jackknife over samples; the null is every relabelling of the second "
        "system's samples: exact mean and variance, approximate tail."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Histogram(
            values="influence", title="What single samples do to the similarity", x_label="influence on CKA, times n"
        ),
    )
    invariances: ClassVar[tuple[str, ...]] = ("orthogonal", "isotropic scaling", "translation")
    """Changes of either system that leave `similarity` as it is."""

    similarity: Estimate
    dimension_x: float
    """Participation ratio of the first system: how many directions carry its variance."""
    dimension_y: float
    """The same of the second system."""
    n_samples: int
    n_inference: int
    """Samples the width of the interval was estimated from."""
    unbiased: bool
    influence: Float[np.ndarray, "draw"]
    """n times what one sample adds to `similarity`."""

    def reading(self) -> str:
        """Say how similar the systems are, and whether unrelated systems would look the same."""
        found, kind = self.similarity, "unbiased" if self.unbiased else "biased"
        text = (
            f"Linear CKA ({kind}) of {self.n_samples} samples is {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
        )
        if found.p_value > 1 - found.level:
            return f"{text}: not distinguishable from unrelated systems ({found.null:.3f}, p = {found.p_value:.2g})."
        return f"{text}; unrelated systems of these dimensions would give {found.null:.3f} (p = {found.p_value:.2g})."


def cka(
    x: Float[Rows, "sample unit"], y: Float[Rows, "sample other_unit"], *, config: CKAConfig = CKAConfig()
) -> CKAResult:
    """Measure how similar the geometry of two systems' responses to the same samples is.

    Use it to compare layers, networks or checkpoints of any width. It assumes that row i of both systems answers the
    same sample and that samples are independent (frames of one recording are not). It weighs directions by their
    variance: a few strong directions decide, and two systems can agree on them and differ in all they compute. It
    is not a distance and says nothing about which unit matches which.

    Parameters
    ----------
    x, y
        One row per sample, at least 4, aligned between the systems; read once, block by block. Products are taken
        in the precision of the data (at least float32) and summed in float64: about 1e-7 for float32 data.
    config
        Which estimator, and how its interval is estimated.

    Returns
    -------
    CKAResult
        `similarity` is dimensionless: 1 if one system is the other rotated, rescaled and shifted. Biased: in
        [0, 1], and 0 if every cross-covariance is 0. Unbiased: in [-1, 1], and 0 on average for unrelated systems.
        The interval describes sampling of rows at this n; at CKA near 0, where it is too wide, read the p-value.

    Raises
    ------
    ShapeError
        If a system is not two-dimensional, their numbers of samples differ, or there are fewer than 4.
    DegenerateInputError
        If a system holds NaN or infinity, is constant over samples, or has all its samples equally far apart (the
        unbiased form is then 0 / 0).

    Notes
    -----
    The interval is symmetric in Fisher's z. The p-value is reported down to 1e-6.

    References
    ----------
    [@kornblith2019]
    [@song2012]
    [@kaziaoual1995]
    [@josse2008]
    [@efron1982]

    Examples
    --------
    >>> x = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [2.0, 2.0]])
    >>> quarter_turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> round(cka(x, 7 * x @ quarter_turn + 5).similarity.value, 12)
    1.0
    """
    n = len_rows(x)
    if n < 4:
        raise ShapeError(f"x must have at least 4 samples. Got shape {x.shape}.")
    picked = generator(config.seed, "cka").choice(n, min(n, config.n_inference), replace=False)
    kernels = linear_kernels(x, y, picked=np.sort(picked))
    inner = _unbiased_inner if config.unbiased else _biased_inner
    xx, xy, yy = (inner(product) for product in (kernels.xx, kernels.xy, kernels.yy))
    if min(xx / kernels.xx.inner, yy / kernels.yy.inner) <= ROUNDING:
        raise DegenerateInputError("samples must differ in their distances for unbiased CKA. Got all pairs alike.")
    value = xy / math.sqrt(xx * yy)
    influence = _influence(kernels, xx, xy, yy, unbiased=config.unbiased)
    low, high = _interval(value, float(influence.std(ddof=1)) / math.sqrt(n), config.level)
    null, p_value = _null(kernels, value, unbiased=config.unbiased)
    return CKAResult(
        similarity=Estimate(value, low, high, null, p_value, config.level),
        dimension_x=kernels.xx.trace_x**2 / kernels.xx.inner,
        dimension_y=kernels.yy.trace_y**2 / kernels.yy.inner,
        n_samples=n,
        n_inference=len(picked),
        unbiased=config.unbiased,
        influence=influence,
    )


def _biased_inner(product: KernelProduct) -> float:
    return product.inner


def _unbiased_inner(product: KernelProduct) -> float:
    return product.unbiased_inner


def _influence(kernels: LinearKernels, xx: float, xy: float, yy: float, *, unbiased: bool) -> np.ndarray:
    """Return the derivative of CKA in the weight of each picked row."""
    part_xx, part_xy, part_yy = (
        product.row_inner - product.row_diagonal if unbiased else product.row_inner
        for product in (kernels.xx, kernels.xy, kernels.yy)
    )
    norm = math.sqrt(xx * yy)
    return 2 * kernels.xy.n * (part_xy / norm - (part_xx / xx + part_yy / yy) * xy / norm / 2)


def _interval(value: float, error: float, level: float) -> tuple[float, float]:
    """Return value ± z error on Fisher's scale, which keeps it within [-1, 1]; a point where CKA is 1."""
    if 1 - abs(value) <= ROUNDING:
        return value, value
    reach = float(stats.norm.ppf((1 + level) / 2)) * error / (1 - value**2)
    return math.tanh(math.atanh(value) - reach), math.tanh(math.atanh(value) + reach)


def _null(kernels: LinearKernels, value: float, *, unbiased: bool) -> tuple[float, float]:
    """Return the mean over all relabellings of one system's samples, and the chance of `value` or more."""
    n, xx, yy = kernels.xy.n, kernels.xx, kernels.yy
    mean, variance = 0.0, 2 / (n * (n - 3))
    if not unbiased:
        dimension_x, dimension_y = xx.trace_x**2 / xx.inner, yy.trace_y**2 / yy.inner
        mean = math.sqrt(dimension_x * dimension_y) / (n - 1)
        spread_x, spread_y = _diagonal_excess(xx, dimension_x), _diagonal_excess(yy, dimension_y)
        free = (n - 1 - dimension_x) * (n - 1 - dimension_y)
        variance = 2 * free + (n - 1) / (n * (n - 3)) * spread_x * spread_y
        variance /= (n + 1) * (n - 1) ** 2 * (n - 2)
    if variance <= 0:
        return mean, 1.0
    z = (value - mean) / math.sqrt(variance)
    if z > BEYOND_EVERY_TAIL:
        return mean, SMALLEST_P
    return mean, max(float(stats.pearson3.sf(z, kernels.null_skewness())), SMALLEST_P)


def _diagonal_excess(product: KernelProduct, dimension: float) -> float:
    """How far Σ k_i² is above what independent directions would give: (n-1-β) (n-3)/(n-1) τ of the source."""
    n = product.n
    diagonal = product.spread + product.trace_x**2 / n
    return n * (n + 1) * diagonal / product.inner - (n - 1) * (dimension + 2)
