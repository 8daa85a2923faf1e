"""Persistence summaries: many barcodes as arrays of one shape, to be averaged, compared and drawn.

    Betti curve     beta(t) = #{i : b_i <= t < d_i}
    landscape       lambda_k(t) = the k-th largest of the tents max(0, min(t - b_i, d_i - t))
    silhouette      sum_i w_i tent_i(t) / sum_i w_i,   w_i = (d_i - b_i)^weight
    entropy         -sum_i p_i ln p_i,   p_i = l_i / sum l,  l_i = d_i - b_i
    image           per pixel of (birth, length): the integral of sum_i l_i N((b_i, l_i), bandwidth^2)

All on one grid for all barcodes, so that barcodes of checkpoints, sites and draws stand beside each other.

Source: [@bubenik2015] (landscapes), [@chazal2014] (silhouettes), [@adams2017] (images), [@cohensteiner2007].
Cost: bars x scales, and bars x pixels, per barcode.
Chunked over: barcodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtr

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.parallel import map_parallel

BLOCK_BYTES = 32 * 2**20
"""Memory for the tents of the barcodes that are transformed together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistenceSummariesConfig:
    """The grids."""

    n_scales: int = 100
    """Scales of curves, landscapes and silhouettes, evenly spaced from 0 to `largest`."""
    largest: float = 0.0
    """Last scale; 0 for the largest finite end of all the barcodes. Bars that never end are cut here."""
    n_landscapes: int = 5
    """Levels of the landscape."""
    weight: float = 1.0
    """Power of a bar's length by which it counts in the silhouette."""
    n_pixels: int = 20
    """Pixels of the image along birth, and along length, each from 0 to `largest`."""
    bandwidth: float = 0.05
    """Standard deviation of a bar's blob, as a share of `largest`."""

    def __post_init__(self) -> None:
        if self.n_scales < 2 or min(self.n_landscapes, self.n_pixels) < 1:
            raise ConfigurationError(
                f"n_scales must be at least 2, n_landscapes and n_pixels at least 1. Got {self.n_scales}, "
                f"{self.n_landscapes} and {self.n_pixels}."
            )
        if not (self.largest >= 0 and self.weight >= 0 and self.bandwidth > 0):
            raise ConfigurationError(
                f"largest and weight must not be negative, and bandwidth be above 0. Got {self.largest}, "
                f"{self.weight} and {self.bandwidth}."
            )


@dataclass(frozen=True, slots=True)
class PersistenceSummaries:
    """Barcodes as arrays: one row per barcode, in the order they were given."""

    scale: Float[np.ndarray, "scale"]
    betti: Int[np.ndarray, "barcode scale"]
    landscape: Float[np.ndarray, "barcode level scale"]
    """Highest level first."""
    silhouette: Float[np.ndarray, "barcode scale"]
    """0 for a barcode without bars."""
    image: Float[np.ndarray, "barcode length birth"]
    entropy: Float[np.ndarray, "barcode"]
    """In nats; NaN for a barcode without bars."""
    total_length: Float[np.ndarray, "barcode"]


def persistence_summaries(
    barcodes: Sequence[Float[np.ndarray, "_ 2"]],
    *,
    config: PersistenceSummariesConfig = PersistenceSummariesConfig(),
) -> PersistenceSummaries:
    """Turn many barcodes into Betti curves, landscapes, silhouettes, images and entropies on one grid.

    Parameters
    ----------
    barcodes
        One array of births and deaths per barcode, of one homology dimension each. A barcode may be empty.
    config
        The grids.

    Returns
    -------
    PersistenceSummaries
        In units of the barcodes; counts for Betti curves, nats for entropy.

    Raises
    ------
    ShapeError
        If there is no barcode, or one is not (bar, 2).
    DegenerateInputError
        If a birth is not finite, a death is NaN, or a bar ends before it begins.
    DegenerateInputError
        If no bar ends, so that there is no last scale, and `largest` is 0.

    Examples
    --------
    >>> bars = np.array([[0.0, 2.0], [1.0, 2.0]])
    >>> found = persistence_summaries([bars], config=PersistenceSummariesConfig(n_scales=5))
    >>> found.scale, found.betti[0], found.landscape[0, 0]
    (array([0. , 0.5, 1. , 1.5, 2. ]), array([1, 1, 2, 2, 0]), array([0. , 0.5, 1. , 0.5, 0. ]))
    """
    if not barcodes or any(bars.ndim != 2 or bars.shape[1] != 2 for bars in barcodes):
        raise ShapeError(f"barcodes must each be (bar, 2), at least one. Got shapes {[b.shape for b in barcodes]}.")
    ends = np.concatenate(list(barcodes)).astype(np.float64)
    n_bad = int(np.sum(~np.isfinite(ends[:, 0]) | ~(ends[:, 1] >= ends[:, 0])))
    if n_bad:
        raise DegenerateInputError(f"bars must begin at a finite scale and end no earlier. Got {n_bad} that do not.")
    largest = config.largest or float(np.max(ends[np.isfinite(ends)], initial=0.0))
    if not largest > 0:
        raise DegenerateInputError("a bar must end above 0 to set the last scale. Got none: give `largest`.")
    size = max(1, max(len(bars) for bars in barcodes))
    per_block = max(1, BLOCK_BYTES // (8 * size * max(config.n_scales, config.n_pixels)))
    starts = range(0, len(barcodes), per_block)
    transform = _Transform(config, largest)
    parts = map_parallel(transform, [_padded(barcodes[start : start + per_block], size) for start in starts])
    return PersistenceSummaries(transform.scale, *(np.concatenate(each) for each in zip(*parts, strict=True)))


def _padded(barcodes: Sequence[Float[np.ndarray, "_ 2"]], size: int) -> Float[np.ndarray, "barcode bar 2"]:
    """Stack barcodes; bars from 0 to 0, which count for nothing, fill the shorter ones."""
    stacked = np.zeros((len(barcodes), size, 2))
    for place, bars in enumerate(barcodes):
        stacked[place, : len(bars)] = bars
    return stacked


@dataclass(frozen=True, slots=True)
class _Transform:
    """The transform of a block of stacked barcodes; it pickles."""

    config: PersistenceSummariesConfig
    largest: float

    @property
    def scale(self) -> Float[np.ndarray, "scale"]:
        return np.linspace(0.0, self.largest, self.config.n_scales)

    def __call__(self, bars: Float[np.ndarray, "barcode bar 2"]) -> tuple[np.ndarray, ...]:
        birth, death = bars[..., 0], np.minimum(bars[..., 1], self.largest)
        length = np.maximum(death - birth, 0.0)
        total = length.sum(axis=1)
        tents = np.minimum(self.scale - birth[..., None], death[..., None] - self.scale)
        tents = np.maximum(tents, 0.0)
        return (
            np.sum((bars[..., :1] <= self.scale) & (self.scale < bars[..., 1:]), axis=1),
            self._landscape(tents),
            self._silhouette(tents, length),
            self._image(birth, length),
            _entropy(length, total),
            total,
        )

    def _landscape(self, tents: Float[np.ndarray, "barcode bar scale"]) -> Float[np.ndarray, "barcode level scale"]:
        levels = self.config.n_landscapes
        tents = np.pad(tents, ((0, 0), (0, max(0, levels - tents.shape[1])), (0, 0)))
        highest = np.partition(tents, tents.shape[1] - levels, axis=1)[:, -levels:]
        return np.sort(highest, axis=1)[:, ::-1]

    def _silhouette(
        self, tents: Float[np.ndarray, "barcode bar scale"], length: Float[np.ndarray, "barcode bar"]
    ) -> Float[np.ndarray, "barcode scale"]:
        weight = np.where(length > 0, length, 0.0) ** self.config.weight * (length > 0)
        total = weight.sum(axis=1, keepdims=True)
        return np.einsum("cb,cbt->ct", weight, tents) / np.where(total > 0, total, 1.0)

    def _image(
        self, birth: Float[np.ndarray, "barcode bar"], length: Float[np.ndarray, "barcode bar"]
    ) -> Float[np.ndarray, "barcode length birth"]:
        edge = np.linspace(0.0, self.largest, self.config.n_pixels + 1)
        spread = self.config.bandwidth * self.largest
        along_birth = np.diff(ndtr((edge - birth[..., None]) / spread), axis=-1)
        along_length = np.diff(ndtr((edge - length[..., None]) / spread), axis=-1)
        return np.einsum("cb,cbl,cbx->clx", length, along_length, along_birth, optimize=True)


def _entropy(
    length: Float[np.ndarray, "barcode bar"], total: Float[np.ndarray, "barcode"]
) -> Float[np.ndarray, "barcode"]:
    share = length / np.where(total > 0, total, 1.0)[:, None]
    logs = np.log(np.where(share > 0, share, 1.0))
    return np.where(total > 0, np.abs(np.sum(share * logs, axis=1)), np.nan)
