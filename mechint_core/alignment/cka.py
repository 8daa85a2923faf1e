"""Centred kernel alignment: how much of the geometry of two systems' responses is the same.

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),        K and L centred

    linear     K = X Xᵀ
    rbf        K_ij = exp(-||x_i - x_j||² / (2 s²)),  s = bandwidth times the median distance

    biased     HSIC(K, L) ∝ tr(K L)                      (= ||Xᵀ Y||²_F if linear)
    unbiased   HSIC(K, L) ∝ sum_{i≠j} Ã_ij B̃_ij, with Ã, B̃ the U-centred kernels (0 on average if independent)
    batches    numerator and denominators averaged over batches of rows, each HSIC unbiased, and then divided

Interval: the influence of row i on CKA = N / sqrt(A B) is 2n (N_i / sqrt(A B) - (A_i / A + B_i / B) CKA / 2), where N_i
is the part of row i in the sum N; its spread over rows, divided by sqrt(n), is the standard error (infinitesimal
jackknife). Null: the mean and variance over all n! relabellings of Y's rows are known in closed form, so nothing is
drawn; the skewness is that of the limiting weighted sum of chi-squares, and the p-value is Pearson's type III.

Source: [@kornblith2019], [@song2012], [@nguyen2021] (batches), [@kaziaoual1995] (moments), [@josse2008] (type III),
[@efron1982] (jackknife).
Cost: n (p + q)² where linear and p + q <= n, else n² (p + q), or n b (p + q) in batches of b; p³ for the skewness.
Chunked over: samples. No n x n matrix is held, unless linear with p + q > n.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from jaxtyping import Float

from mechint_core.alignment._kernel_alignment import KernelAlignment, align, align_batches
from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.figure import Figure, Histogram
from mechint_core.kernels.fisher_interval import fisher_interval
from mechint_core.kernels.linear_kernels import KernelPair, linear_kernels
from mechint_core.kernels.radial_kernels import median_distance, radial_kernels
from mechint_core.kernels.row_views import SideBySide
from mechint_core.kernels.shuffle import BlockShuffle
from mechint_core.parallel import Rows, len_rows
from mechint_core.random import generator
from mechint_core.result import Estimate, Result

Kernel = Literal["linear", "rbf"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CKAConfig:
    """How to compare two systems by centred kernel alignment."""

    unbiased: bool = True
    """Correct the bias that drives CKA to 1 when there are more units than samples."""
    kernel: Kernel = "linear"
    """What makes two samples alike: linear (their inner product) or rbf (their closeness)."""
    bandwidth: float = 1.0
    """Width of the rbf kernel, in median distances of two samples. Below 1 only near neighbours count."""
    batch_size: int = 0
    """Samples in one minibatch; 0 compares all samples with each other, which is more precise."""
    n_inference: int = 300
    """Samples, drawn at random, from which the width of the interval is estimated. Not used with batches."""
    level: float = 0.95
    """Confidence of the interval."""
    seed: int = 0
    """Names the draw of those samples, or of the batches."""

    def __post_init__(self) -> None:
        if self.kernel not in get_args(Kernel):
            raise ConfigurationError(f"kernel must be one of {', '.join(get_args(Kernel))}. Got {self.kernel!r}.")
        if not 0 < self.bandwidth < float("inf"):
            raise ConfigurationError(f"bandwidth must be above 0. Got {self.bandwidth}.")
        if self.batch_size != 0 and self.batch_size < 4:
            raise ConfigurationError(f"batch_size must be 0 (all samples) or at least 4. Got {self.batch_size}.")
        if self.batch_size and not self.unbiased:
            raise ConfigurationError(
                "batches need the unbiased form: the bias is that of a batch's size. Set unbiased."
            )
        if self.n_inference < 2:
            raise ConfigurationError(f"n_inference must be at least 2. Got {self.n_inference}.")
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level must be between 0 and 1. Got {self.level}.")


@dataclass(frozen=True, slots=True)
class CKAResult(Result):
    """Similarity of two systems by centred kernel alignment."""

    technique: ClassVar[str] = "cka"
    evidence: ClassVar[str] = (
        "The interval is the infinitesimal jackknife over samples (or the spread over batches); the null is every "
        "relabelling of the second system's samples (within batches): exact mean and variance, approximate tail."
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
    """Samples (or batches) the width of the interval was estimated from."""
    n_batches: int
    """1 where all samples were compared with each other."""
    scale_x: float
    """Width of the first system's rbf kernel, in its units; 0 if the kernel is linear."""
    scale_y: float
    """The same of the second system."""
    unbiased: bool
    influence: Float[np.ndarray, "draw"]
    """n times what one sample adds to `similarity`; with batches, their number times what one of them adds."""

    def reading(self) -> str:
        """Say how similar the systems are, and whether unrelated systems would look the same."""
        found, kind = self.similarity, "unbiased" if self.unbiased else "biased"
        name = "RBF" if self.scale_x else "Linear"
        text = (
            f"{name} CKA ({kind}) of {self.n_samples} samples is {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
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
    variance: a few strong directions decide, and two systems can agree on them and differ in all they compute (a
    narrow rbf kernel asks for the same neighbours instead). It is not a distance and says nothing about which unit
    matches which.

    Parameters
    ----------
    x, y
        One row per sample, at least 4, aligned between the systems; read once, block by block. Products are taken
        in the precision of the data (at least float32) and summed in float64: about 1e-7 for float32 data. The rbf
        kernel is taken in float64.
    config
        Which kernel and estimator, and how its interval is estimated.

    Returns
    -------
    CKAResult
        `similarity` is dimensionless: 1 if one system is the other rotated, rescaled and shifted. Biased: in
        [0, 1], and 0 if every cross-covariance is 0. Unbiased: in [-1, 1], and 0 on average for unrelated systems.
        The interval describes sampling of rows at this n; at CKA near 0, where it is too wide, read the p-value.

    Raises
    ------
    ShapeError
        If a system is not two-dimensional, their numbers of samples differ, or there are fewer than 4; or fewer
        than two batches of 4.
    DegenerateInputError
        If a system holds NaN or infinity, is constant over samples, or has all its samples equally far apart (the
        unbiased form is then 0 / 0); or if more than half of the rbf kernel's distances are 0.

    Notes
    -----
    The interval is symmetric in Fisher's z. The p-value is reported down to 1e-6. The median distance is that of up
    to 2000 samples, evenly spaced, and the skewness of the rbf kernel's null that of the `n_inference` samples.

    References
    ----------
    [@kornblith2019]
    [@song2012]
    [@nguyen2021]
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
    kernels = _Kernels.of(x, y, config)
    if config.batch_size:
        found = align_batches(kernels(one, other, np.arange(len(one))) for one, other in _batches(x, y, config))
    else:
        picked = generator(config.seed, "cka").choice(n, min(n, config.n_inference), replace=False)
        found = align(kernels(x, y, np.sort(picked)), unbiased=config.unbiased)
    return _result(found, kernels, n, config)


@dataclass(frozen=True, slots=True)
class _Kernels:
    """What the two kernels of some rows share; the width of an rbf kernel is that of all rows."""

    kernel: Kernel
    scale_x: float
    scale_y: float

    @classmethod
    def of(cls, x: Rows, y: Rows, config: CKAConfig) -> "_Kernels":
        if config.kernel == "linear":
            return cls("linear", 0.0, 0.0)
        return cls("rbf", config.bandwidth * median_distance(x), config.bandwidth * median_distance(y))

    def __call__(self, x: Rows, y: Rows, picked: np.ndarray) -> KernelPair:
        if self.kernel == "linear":
            return linear_kernels(x, y, picked=picked)
        return radial_kernels(x, y, scale_x=self.scale_x, scale_y=self.scale_y, picked=picked)


def _batches(x: Rows, y: Rows, config: CKAConfig) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield every row of both systems once, in random batches that differ in size by one at most."""
    if len(x.shape) != 2 or len(y.shape) != 2 or x.shape[0] != y.shape[0]:
        raise ShapeError(f"systems must be (sample, unit) with the same samples. Got {x.shape} and {y.shape}.")
    if x.shape[0] < max(8, config.batch_size + 4):
        raise ShapeError(f"x must have samples for two batches of {config.batch_size}. Got {x.shape[0]} samples.")
    joint = BlockShuffle(SideBySide([x, y]), batch_size=config.batch_size, seed=config.seed)
    for _ in range(joint.n_batches):
        batch = next(joint)
        yield batch[:, : x.shape[1]], batch[:, x.shape[1] :]


def _result(found: KernelAlignment, kernels: _Kernels, n: int, config: CKAConfig) -> CKAResult:
    low, high = fisher_interval(found.value, found.error, config.level, freedom=found.freedom)
    return CKAResult(
        similarity=Estimate(found.value, low, high, found.null, found.p_value, config.level),
        dimension_x=found.dimension_x,
        dimension_y=found.dimension_y,
        n_samples=n,
        n_inference=len(found.influence),
        n_batches=len(found.influence) if config.batch_size else 1,
        scale_x=kernels.scale_x,
        scale_y=kernels.scale_y,
        unbiased=config.unbiased,
        influence=found.influence,
    )
