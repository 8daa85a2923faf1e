"""Local principal components: how many directions a neighbourhood spreads in, and the noise in the others.

    lambda_j(i)      eigenvalues of the covariance of the neighbours of sample i, relative to their sum
    lambda_j         exp mean_i ln lambda_j(i)
    d                of the j with lambda_j >= lambda_1 / 20, that with the largest lambda_j / lambda_{j+1}, if that is
                     at least `CLEAR_GAP`
    noise floor      the mean of the eigenvalues after the gap

On a manifold sampled evenly the first d eigenvalues are alike, and what follows is curvature and noise, far below.

Source: [@fukunaga1971], [@little2017].
Cost: one (k + 1) x (k + 1) eigenvalue problem, and (k + 1)^2 D products, per anchor.
"""

from typing import Final

import numpy as np
from jaxtyping import Float, Int

from mechint_core.result import NAN

CLEAR_GAP: Final = 2.0
"""Eigenvalues within this ratio of each other are no gap: sampling alone gives 1.5 for 64 neighbours."""
LEAST: Final = 0.05
"""A direction with less than this share of the first one's variance is curvature or noise [@fukunaga1971]."""
FULL: Final = 0.1
"""Where all directions there are carry at least this share of the first, none of them is noise."""
ROUNDING: Final = 1e-13
"""Relative to the first eigenvalue; what is below is 0."""


def local_spectra(
    points: Float[np.ndarray, "row unit"], neighbours: Int[np.ndarray, "anchor neighbour"]
) -> Float[np.ndarray, "anchor component"]:
    """Return the eigenvalues of the covariance of each neighbourhood, the largest first."""
    most = min(neighbours.shape[1] - 1, points.shape[1])
    spectra = np.empty((len(neighbours), most))
    for place, index in enumerate(neighbours):
        around = points[index].astype(np.float64)
        around -= around.mean(axis=0)
        small = around @ around.T if len(around) <= around.shape[1] else around.T @ around
        spectra[place] = np.linalg.eigvalsh(small)[::-1][:most] / (len(around) - 1)
    return np.maximum(spectra, 0)


def typical_spectrum(spectra: Float[np.ndarray, "anchor component"]) -> Float[np.ndarray, "component"]:
    """Return the geometric mean of the spectra, each relative to its sum."""
    floor = ROUNDING * spectra[:, :1]
    shares = np.maximum(spectra, floor) / spectra.sum(axis=1, keepdims=True)
    return np.exp(np.log(shares).mean(axis=0))


def gap_dimension(spectrum: Float[np.ndarray, "component"], n_units: int) -> float:
    """Return after how many eigenvalues the largest gap is; all if none is small; NaN where there is no clear gap."""
    ratio = np.where(spectrum[:-1] >= LEAST * spectrum[0], spectrum[:-1] / spectrum[1:], 0)
    if len(ratio) and ratio.max() >= CLEAR_GAP:
        return float(ratio.argmax() + 1)
    whole = len(spectrum) == n_units and spectrum[-1] >= FULL * spectrum[0]
    return float(n_units) if whole else NAN


def noise_floor(spectra: Float[np.ndarray, "anchor component"], dimension: float) -> float:
    """Return the standard deviation per direction beyond the first `dimension`; NaN if there is none."""
    if np.isnan(dimension) or int(dimension) == spectra.shape[1]:
        return NAN
    return float(np.sqrt(spectra[:, int(dimension) :].mean()))
