"""From the sums over two kernels to their alignment, its standard error and its null.

    CKA = sum_b HSIC(K_b, L_b) / sqrt(sum_b HSIC(K_b, K_b) sum_b HSIC(L_b, L_b))         over batches b, or one of all

Numerator and denominators are added up over batches before they are divided: a mean of ratios would be biased, and an
unbiased HSIC(K, L) may be negative, so that no single batch's ratio need exist.

Source: [@nguyen2021] (batches), [@kaziaoual1995] (moments of the null), [@efron1982] (jackknife).
Cost: none beside the kernels'.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mechint_core.errors import DegenerateInputError
from mechint_core.kernels.linear_kernels import KernelPair, KernelProduct

SMALLEST_P = 1e-6
"""Below this the type III tail was not checked against permutations, so no smaller p-value is reported."""
BEYOND_EVERY_TAIL = 17.0
"""Standard deviations at which even the most skewed null, one chi-square, has fallen below `SMALLEST_P`."""
ROUNDING = 1e-12
"""A U-centred norm below this share of the biased one is rounding."""


@dataclass(frozen=True, slots=True)
class KernelAlignment:
    """CKA, how sure it is, and what unrelated systems would give."""

    value: float
    error: float
    """Its standard error."""
    freedom: float
    """Degrees of freedom that the error was estimated with, where they are few."""
    null: float
    p_value: float
    influence: np.ndarray
    """n times what one picked row adds to `value`; or, of batches, their number times what one of them adds."""
    dimension_x: float
    dimension_y: float


def align(kernels: KernelPair, *, unbiased: bool) -> KernelAlignment:
    """Return the alignment of two kernels over all rows."""
    xx, xy, yy = _inner_products(kernels, unbiased=unbiased)
    value = xy / math.sqrt(xx * yy)
    influence = _influence(kernels, xx, xy, yy, unbiased=unbiased)
    null, p_value = _null(kernels, value, unbiased=unbiased)
    return KernelAlignment(
        value=value,
        error=float(influence.std(ddof=1)) / math.sqrt(kernels.xy.n),
        freedom=math.inf,
        null=null,
        p_value=p_value,
        influence=influence,
        dimension_x=kernels.xx.trace_x**2 / kernels.xx.inner,
        dimension_y=kernels.yy.trace_y**2 / kernels.yy.inner,
    )


def align_batches(batches: Iterable[KernelPair]) -> KernelAlignment:
    """Return the unbiased alignment of two kernels over batches: each HSIC is averaged, then divided."""
    found = np.array([_of_batch(each) for each in batches])  # numbers only: kernels of all batches would be large
    xx, xy, yy, variances, skewness, dimension_x, dimension_y = found.T
    norm = math.sqrt(xx.sum() * yy.sum())
    value = float(xy.sum()) / norm
    influence = len(found) * (xy / norm - (xx / xx.sum() + yy / yy.sum()) * value / 2)
    # Labels are exchanged within each batch: variances add up over batches, and so do third moments.
    spread = math.sqrt(float(variances.sum()))
    third = float(np.sum(variances**1.5 * skewness))
    return KernelAlignment(
        value=value,
        error=float(influence.std(ddof=1)) / math.sqrt(len(found)),
        freedom=float(len(found) - 1),
        null=0.0,
        p_value=_tail(value * norm / spread, third / spread**3),
        influence=influence,
        dimension_x=float(dimension_x.mean()),
        dimension_y=float(dimension_y.mean()),
    )


def _of_batch(kernels: KernelPair) -> tuple[float, ...]:
    """Return the three HSIC of a batch, the variance and skewness of the second over relabellings, and dimensions."""
    n = kernels.xy.n
    xx, xy, yy = (each / (n * (n - 3)) for each in _inner_products(kernels, unbiased=True))
    dimensions = (each.trace_x**2 / each.inner for each in (kernels.xx, kernels.yy))
    return xx, xy, yy, 2 * xx * yy / (n * (n - 3)), kernels.null_skewness(), *dimensions


def _inner_products(kernels: KernelPair, *, unbiased: bool) -> tuple[float, float, float]:
    inner = _unbiased_inner if unbiased else _biased_inner
    xx, xy, yy = (inner(product) for product in (kernels.xx, kernels.xy, kernels.yy))
    if min(xx / kernels.xx.inner, yy / kernels.yy.inner) <= ROUNDING:
        raise DegenerateInputError("samples must differ in their distances for unbiased CKA. Got all pairs alike.")
    return xx, xy, yy


def _biased_inner(product: KernelProduct) -> float:
    return product.inner


def _unbiased_inner(product: KernelProduct) -> float:
    return product.unbiased_inner


def _influence(kernels: KernelPair, xx: float, xy: float, yy: float, *, unbiased: bool) -> np.ndarray:
    """Return the derivative of CKA in the weight of each picked row."""
    part_xx, part_xy, part_yy = (
        product.row_inner - product.row_diagonal if unbiased else product.row_inner
        for product in (kernels.xx, kernels.xy, kernels.yy)
    )
    norm = math.sqrt(xx * yy)
    return 2 * kernels.xy.n * (part_xy / norm - (part_xx / xx + part_yy / yy) * xy / norm / 2)


def _null(kernels: KernelPair, value: float, *, unbiased: bool) -> tuple[float, float]:
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
    return mean, SMALLEST_P if z > BEYOND_EVERY_TAIL else _tail(z, kernels.null_skewness())


def _tail(z: float, skewness: float) -> float:
    """Return the chance of z or more under Pearson's type III."""
    return SMALLEST_P if z > BEYOND_EVERY_TAIL else max(float(stats.pearson3.sf(z, skewness)), SMALLEST_P)


def _diagonal_excess(product: KernelProduct, dimension: float) -> float:
    """How far Σ k_i² is above what independent directions would give: (n-1-β) (n-3)/(n-1) τ of the source."""
    n = product.n
    diagonal = product.spread + product.trace_x**2 / n
    return n * (n + 1) * diagonal / product.inner - (n - 1) * (dimension + 2)
