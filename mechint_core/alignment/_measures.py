"""The dissimilarities that an RDM can hold, from samples to the value of every pair of conditions.

    mahalanobis    D_ij = (m_i - m_j)ᵀ Σ⁻¹ (m_i - m_j) / p               Σ: noise covariance of the units
    crossnobis     the same, with the two differences from different folds
    poisson        D_ij = Σ_a (λ_ia - λ_ja) (log λ_ia - log λ_ja) / p    λ = (m + w · prior) / (1 + w)

Poisson is the Kullback-Leibler divergence of two Poisson distributions, both ways added, with the rates shrunk to a
prior of weight w. Cross-validated, its two brackets are of different folds: 0 on average for identical conditions.
The other measures are those of `_distances`.

Source: [@walther2016] (noise normalisation), [@kullback1951].
Cost: n² p; a noise covariance adds n_samples p² + p³.
Chunked over: conditions.
"""

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._crossnobis import crossfold_distances, relabelled_means, sample_crossnobis, whitened
from mechint_core.alignment._distances import PREPARE, Metric, condensed_distances, condensed_products, scale_of
from mechint_core.alignment._responses import Responses, spread_pairs
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.kernels.noise_covariance import NoiseCovariance, noise_covariance
from mechint_core.result import NAN

Dissimilarity = Literal[
    "euclidean", "correlation", "cosine", "mahalanobis", "crossnobis", "poisson", "crossvalidated poisson"
]
Noise = Literal["none", "full", "diagonal", "shrunk to identity", "shrunk to diagonal"]
Around = Literal["cell", "condition"]
Weighting = Literal["fold", "sample"]

STREAMING: Final[dict[Dissimilarity, Metric]] = {
    "euclidean": "euclidean",
    "correlation": "correlation",
    "cosine": "cosine",
}
"""The measures that prepare each row by itself."""
WHITENED: Final[tuple[Dissimilarity, ...]] = ("mahalanobis", "crossnobis")
CROSSVALIDATED: Final[tuple[Dissimilarity, ...]] = ("crossnobis", "crossvalidated poisson")

NOISE_INVARIANCES: Final[dict[Noise, tuple[str, ...]]] = {
    "none": ("orthogonal",),
    "full": ("invertible linear",),
    "diagonal": ("unit scaling", "unit permutation"),
    "shrunk to identity": ("orthogonal", "isotropic scaling"),
    "shrunk to diagonal": ("unit scaling", "unit permutation"),
}
"""Changes of a system that leave whitened distances as they are, by the noise they are whitened with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A dissimilarity and its options; `RDMConfig` says what each of them means."""

    metric: Dissimilarity
    noise: Noise = "shrunk to diagonal"
    noise_around: Around = "cell"
    noise_per_fold: bool = False
    weighting: Weighting = "fold"
    prior: float = 1.0
    prior_weight: float = 0.1

    def __post_init__(self) -> None:
        words = {"metric": Dissimilarity, "noise": Noise, "noise_around": Around, "weighting": Weighting}
        for name, known in words.items():
            if getattr(self, name) not in get_args(known):
                raise ConfigurationError(f"{name} must be one of {get_args(known)}. Got {getattr(self, name)!r}.")
        if self.metric == "mahalanobis" and self.noise == "none":
            raise ConfigurationError("noise must be given for mahalanobis. Got 'none': use metric='euclidean'.")
        if self.noise_per_fold and not (self.metric == "crossnobis" and self.weighting == "fold"):
            raise ConfigurationError(
                f"noise_per_fold must go with metric='crossnobis' and weighting='fold'. Got {self.metric!r} and "
                f"{self.weighting!r}."
            )
        if self.noise_per_fold and (self.noise == "none" or self.noise_around == "condition"):
            raise ConfigurationError(
                f"noise_per_fold must go with a noise, around 'cell'. Got {self.noise!r}, {self.noise_around!r}."
            )
        if not min(self.prior, self.prior_weight) >= 0:
            raise ConfigurationError(
                f"prior and prior_weight must be at least 0. Got {self.prior} and {self.prior_weight}."
            )


@dataclass(frozen=True, slots=True)
class FittedMeasure:
    """A measure with the noise that was found in the samples."""

    measure: Measure
    whitening: Float[np.ndarray, "unit component"] | None = None
    """Of all folds."""
    noises: tuple[NoiseCovariance, ...] = ()
    """One for all folds, or one per fold."""

    @property
    def shrinkage(self) -> float:
        """How much of the target is in the noise covariance (the mean over folds); NaN without one."""
        return float(np.mean([each.weight for each in self.noises])) if self.noises else NAN

    @property
    def dof(self) -> int:
        """Degrees of freedom of the noise covariances together."""
        return sum(each.dof for each in self.noises)

    def __call__(self, found: Responses) -> Float[np.ndarray, "pair"]:
        """Return the dissimilarity of every pair of conditions; NaN where the samples do not say."""
        metric = self.measure.metric
        if metric in CROSSVALIDATED:
            return self._across_folds(found)
        means = found.means()
        if metric == "poisson":
            rates = poisson_rates(means, self.measure)
            logs = np.log(rates)
            left, right = np.hstack([rates, logs]), np.hstack([logs, rates])
            left, right = left - left.mean(axis=0), right - right.mean(axis=0)
            condensed = condensed_products(left, right, 0.5 / means.shape[1])
        elif metric == "mahalanobis":
            condensed = condensed_distances(whitened(means, self.whitening), 1 / means.shape[1])
        else:
            streaming = STREAMING[metric]
            condensed = condensed_distances(PREPARE[streaming](means), scale_of(streaming, means.shape[1]))
        return spread_pairs(condensed, found.present)

    def without_differences(
        self, found: Responses, orders: Int[np.ndarray, "draw fold condition"]
    ) -> Float[np.ndarray, "draw"]:
        """Return the mean cross-validated dissimilarity when conditions change places within each fold."""
        first, second = self._sides(found.fold_means()[0])
        return relabelled_means(first, orders, second=second, covariances=self._covariances)

    def _across_folds(self, found: Responses) -> np.ndarray:
        means, counts = found.fold_means()
        first, second = self._sides(means)
        if self.measure.metric == "crossnobis" and self.measure.weighting == "sample":
            return sample_crossnobis(first, counts)
        return crossfold_distances(first, counts > 0, second=second, covariances=self._covariances)

    def _sides(self, means: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return what is multiplied across folds; the second is None where it is the first."""
        if self.measure.metric == "crossnobis":
            return whitened(means, self.whitening), None
        rates = poisson_rates(means, self.measure)
        return rates, np.log(rates)

    @property
    def _covariances(self) -> list[np.ndarray]:
        return [each.covariance for each in self.noises] if self.measure.noise_per_fold else []


def poisson_rates(means: Float[np.ndarray, "*kind unit"], measure: Measure) -> Float[np.ndarray, "*kind unit"]:
    """Return rates shrunk to the prior, all above 0."""
    weight = measure.prior_weight
    rates = (means + weight * measure.prior) / (1 + weight)
    if means.min() < 0 or rates.min() <= 0:
        raise DegenerateInputError(
            f"x must be counts or rates, at least 0 (above 0 without a prior), for {measure.metric!r}. "
            f"Got a mean of {means.min():.3g}."
        )
    return rates


def fit_measure(measure: Measure, found: Responses) -> FittedMeasure:
    """Estimate the noise that a measure needs, and refuse samples that it cannot be taken from."""
    if measure.metric in CROSSVALIDATED and found.n_folds < 2:
        raise ShapeError(f"fold must have at least 2 different values for {measure.metric!r}. Got {found.n_folds}.")
    if measure.metric not in WHITENED or measure.noise == "none":
        return FittedMeasure(measure)
    if measure.noise_per_fold:
        folds = (found.where(found.fold == fold) for fold in range(found.n_folds))
        noises = tuple(noise_covariance(each.x, each.index, shrinkage=measure.noise) for each in folds)
        return FittedMeasure(measure, noises=noises)
    group = found.cell if measure.noise_around == "cell" else found.index
    noise = noise_covariance(found.x, group, shrinkage=measure.noise)
    return FittedMeasure(measure, noise.whitening(), (noise,))
