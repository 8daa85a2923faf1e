"""Partial least squares: which directions of two systems covary most, and how well one predicts the other by them.

    max cov(X w_k, Y c_k),      |w_k| = |c_k| = 1,      then deflate: svd, canonical or regression

Unlike canonical correlation it stays away from directions that hardly vary, so it needs no inverse and works with more
units than samples. Headline: correlation of the scores, and R² of predicting Y, on samples that had no part in the fit.

Source: [@wold1984], [@wegelin2000], [@mcintosh2004] (svd, test), [@stone1974] (held out).
Cost: n (p + q)² / 2 for the covariances, folds included; p q min(p, q) per component and fold; n p q per relabelling.
Chunked over: samples.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, final, get_args

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._canonical import correlations_of
from mechint_core.alignment._coordinates import AlignedCoordinates, aligned_coordinates, unit_weights
from mechint_core.alignment._covariance_test import covariance_test
from mechint_core.alignment._held_out import correlation_interval, held_out, jackknife_reach
from mechint_core.alignment._latent_directions import Latent, Mode, latent_directions
from mechint_core.alignment._paired_directions import Fitted, PairedDirections
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Curve, Figure, Scatter
from mechint_core.kernels.joint_covariance import FoldedCovariance, JointCovariance, joint_covariance, picked_rows
from mechint_core.parallel import Rows, len_rows
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class PLSConfig:
    """How to relate two systems by partial least squares."""

    n_components: int = 10
    """Pairs of directions, those that covary most first; fewer if nothing is left to covary."""
    mode: Mode = "svd"
    """svd: singular pairs of the cross-covariance. canonical: both systems lose their own scores. regression: Y loses
    what X's scores predict of it."""
    n_folds: int = 5
    """Runs of neighbouring samples that are held out in turn."""
    n_permutations: int = 500
    """Relabellings of samples in the step-down test; 0 for no test."""
    n_inference: int = 2000
    """Samples, drawn at random, that the test is made on."""
    level: float = 0.95
    """Confidence of the intervals."""
    memory_budget: int = 2**31
    """Refuse to decompose rows that would take more bytes than this (no fewer units than samples)."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigurationError(f"mode must be one of {get_args(Mode)}. Got {self.mode!r}.")
        if self.n_components < 1:
            raise ConfigurationError(f"n_components must be at least 1. Got {self.n_components}.")
        if self.n_folds < 3:
            raise ConfigurationError(f"n_folds must be at least 3. Got {self.n_folds}.")
        if self.n_permutations < 0 or self.n_inference < 4:
            raise ConfigurationError(
                f"n_permutations must be at least 0 and n_inference at least 4. "
                f"Got {self.n_permutations} and {self.n_inference}."
            )
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level must be between 0 and 1. Got {self.level}.")


@dataclass(frozen=True, slots=True)
class PLSResult(Result):
    """Covarying directions of two systems, on held-out samples and within the sample."""

    technique: ClassVar[str] = "pls"
    evidence: ClassVar[str] = (
        "The interval is the jackknife over folds, fits included; the null is every relabelling of held-out samples (0 "
        "on average, exactly), for R² the training mean; the p-value is the first of a step-down permutation test of "
        "the squared covariance."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Curve(
            y=("held_out", "within_sample"), title="Correlation of the scores", x_label="component",
            y_label="correlation",
        ),
        Curve(y=("covariances", "held_out_covariances"), title="Covariance of the scores", x_label="component"),
        Scatter(points="first_pair", title="First pair of scores", x_label="first system", y_label="second system"),
    )  # fmt: skip
    invariances: ClassVar[tuple[str, ...]] = ("orthogonal", "isotropic scaling", "translation")
    """Changes of either system that leave correlations and R² as they are."""

    similarity: Estimate
    """Mean held-out correlation of the components' scores."""
    r_squared: Estimate
    """Share of the second system's variance, on held-out samples, that the first system's scores predict."""
    n_components: int
    n_significant: int
    """Components whose family-wise p-value is at most 1 - level; at most 1 of a regression."""
    n_samples: int
    n_samples_per_unit: float
    """Samples per unit of both systems together."""
    n_inference: int
    """Samples that the test was made on."""
    held_out: Float[np.ndarray, "component"]
    """Correlation of the scores on held-out samples."""
    held_out_covariances: Float[np.ndarray, "component"]
    within_sample: Float[np.ndarray, "component"]
    """Correlation of the scores of all samples: too high."""
    covariances: Float[np.ndarray, "component"]
    """What was maximised, in all samples."""
    p_values: Float[np.ndarray, "component"]
    """Of the step-down test: the chance of any false discovery is at most that. Of a regression the first only: how
    many components predict is for `r_squared` to tell."""
    weights_x: Float[np.ndarray, "unit component"]
    """Scores are the centred first system times these."""
    weights_y: Float[np.ndarray, "other_unit component"]
    scores_x: Float[np.ndarray, "sample component"]
    """Scores of the shown samples."""
    scores_y: Float[np.ndarray, "sample component"]
    first_pair: Float[np.ndarray, "sample coordinate"]
    """The first scores of the shown samples: first system, second system."""
    shown: Int[np.ndarray, "sample"]
    """Which samples those are."""

    def reading(self) -> str:
        """Say how far covariance and prediction hold on new samples, and how much of it is more than chance."""
        found = self.similarity
        text = (
            f"On held-out samples the scores of {self.n_components} components correlate by {found.value:.3f} "
            f"[{found.low:.3f}, {found.high:.3f}] on average, and predict {100 * self.r_squared.value:.0f} % of the "
            "second system's variance"
        )
        if math.isnan(found.p_value):
            return f"{text}; no relabelling was done, so nothing says what unrelated systems would give."
        if self.n_significant == 0:
            return f"{text}: not distinguishable from unrelated systems (p = {found.p_value:.2g})."
        if np.isnan(self.p_values[1:]).all():
            return f"{text}; the first is more than chance (p = {found.p_value:.2g})."
        text += f"; {self.n_significant} of them are more than chance"
        return f"{text} (step-down p = {found.p_value:.2g} for the first)."


@final
class PLS(PairedDirections):
    """Partial least squares as an object: `PLS(n_components=5, mode="regression").fit(X, Y).predict(X_test)`.

    Parameters
    ----------
    n_components, mode, memory_budget
        As in `PLSConfig`.
    """

    def __init__(self, n_components: int = 10, mode: Mode = "svd", *, memory_budget: int = 2**31) -> None:
        self.config = PLSConfig(n_components=n_components, mode=mode, memory_budget=memory_budget)
        super().__init__()
        self._coefficients: np.ndarray | None = None

    def fit(self, x: Float[Rows, "sample unit"], y: Float[Rows, "sample other_unit"]) -> "PLS":
        """Find the directions, in one pass over the rows."""
        data = _coordinates(x, y, self.config, n_folds=1)
        found = _nonempty(latent_directions(data.whole, self.config.n_components, self.config.mode))
        self._found = Fitted(data, found.weights_x, found.weights_y, found.covariances)
        self._coefficients = found.coefficients(data.whole)
        return self

    @property
    def covariances(self) -> Float[np.ndarray, "component"]:
        """What was maximised, in the samples that were fitted."""
        return self._fitted.strengths

    def predict(self, x: Float[Rows, "sample unit"]) -> Float[np.ndarray, "sample other_unit"]:
        """Predict the second system from the first system's scores, by least squares on the fitted samples."""
        data = self._fitted.data
        centred = data.x.of(np.asarray(x[:])) - data.whole.mean_x
        predicted = centred @ self._coefficients + data.whole.mean_y
        if data.y.inverse is None:
            return predicted
        return predicted @ data.y.inverse + data.y.mean


def pls(
    x: Float[Rows, "sample unit"], y: Float[Rows, "sample other_unit"], *, config: PLSConfig = PLSConfig()
) -> PLSResult:
    """Ask which directions of two systems covary, and how well one predicts the other, on held-out samples.

    Use it where there are many units, correlated among themselves, and few samples. It assumes that row i of both
    systems answers the same sample, that samples are independent, and that what matters varies much: units weigh by
    their variance, so standardise those that have different scales. It cannot find a shared direction of small variance
    (`cca` does), and its components are not causes.

    Parameters
    ----------
    x, y
        One row per sample, at least four per fold, aligned between the systems. Read block by block and summed in
        float64; a system with no fewer units than samples is read whole.
    config
        How many components, how they are deflated, and how interval and null are found.

    Returns
    -------
    PLSResult
        Correlations are in [-1, 1]; R² is at most 1, and below 0 where the training mean predicts better.

    Raises
    ------
    ShapeError
        If a system is not two-dimensional, their numbers of samples differ, or a fold has fewer than four.
    DegenerateInputError
        If a system holds NaN or infinity, is constant over samples, or the two do not covary at all.
    MemoryBudgetError
        If a system must be decomposed by its rows and that takes more than `memory_budget`.

    Notes
    -----
    R² is that of all the second system's units together, around the training mean; in every mode the prediction is the
    least squares fit of Y on the first system's scores. `weights_y` of a regression are not rotated: they are weights
    on Y as it is, so that one target works with any number of components.

    References
    ----------
    [@wold1984]
    [@wegelin2000]
    [@mcintosh2004]
    [@stone1974]

    Examples
    --------
    >>> x = np.column_stack([np.tile([0.0, 1.0, 3.0, 2.0], 10), np.repeat(np.arange(10.0), 4)])
    >>> y = x @ np.array([[0.0, 2.0], [-2.0, 0.0]]) + 1
    >>> round(pls(x, y, config=PLSConfig(mode="regression", n_permutations=0)).r_squared.value, 12)
    1.0
    """
    n = len_rows(x)
    if n < 4 * config.n_folds:
        raise ShapeError(f"x must have at least 4 samples for each of {config.n_folds} folds. Got shape {x.shape}.")
    data = _coordinates(x, y, config, n_folds=config.n_folds)
    fit = _Fit(config.n_components, config.mode)
    whole = _nonempty(fit(data.whole))
    k = len(whole.covariances)
    scored = held_out(data.folds, _Evaluate(data.folds, fit, k))
    similarity, low, high = _with_interval(scored.scores[:k], scored.without[:, :k], config.level)
    predicted, least, most = _explained(scored.scores, scored.without, config.level)
    picked, p_values = _tested(data, config, k)
    scores_x = (picked_rows(data.x.rows, picked) - data.whole.mean_x) @ whole.weights_x
    scores_y = (picked_rows(data.y.rows, picked) - data.whole.mean_y) @ whole.weights_y
    first_p = float(p_values[0])
    return PLSResult(
        similarity=Estimate(similarity, low, high, 0.0, first_p, config.level),
        r_squared=Estimate(predicted, least, most, 0.0, first_p, config.level),
        n_components=k,
        n_significant=int(np.sum(p_values <= 1 - config.level)),
        n_samples=n,
        n_samples_per_unit=n / (x.shape[1] + y.shape[1]),
        n_inference=len(picked),
        held_out=scored.scores[:k],
        held_out_covariances=scored.scores[k : 2 * k],
        within_sample=correlations_of(data.whole, whole.weights_x, whole.weights_y),
        covariances=whole.covariances,
        p_values=p_values,
        weights_x=unit_weights(data.x, whole.weights_x),
        weights_y=unit_weights(data.y, whole.weights_y),
        scores_x=scores_x,
        scores_y=scores_y,
        first_pair=np.column_stack([scores_x[:, 0], scores_y[:, 0]]),
        shown=picked,
    )


def _coordinates(x: Rows, y: Rows, config: PLSConfig, *, n_folds: int) -> AlignedCoordinates:
    return aligned_coordinates(x, y, n_folds=n_folds, whitened=False, memory_budget=config.memory_budget)


@dataclass(frozen=True, slots=True)
class _Fit:
    n_components: int
    mode: Mode

    def __call__(self, covariance: JointCovariance) -> Latent:
        return latent_directions(covariance, self.n_components, self.mode)


def _nonempty(found: Latent) -> Latent:
    if not len(found.covariances):
        raise DegenerateInputError("systems must covary in some direction. Got a cross-covariance of 0.")
    return found


def _of_width(weights: np.ndarray, n_components: int) -> np.ndarray:
    """Fill up with components that predict nothing: some rows may covary along fewer directions than all do."""
    return np.pad(weights, ((0, 0), (0, max(n_components - weights.shape[1], 0))))[:, :n_components]


@dataclass(frozen=True, slots=True)
class _Evaluate:
    """Folds -> on each of them, correlations and covariances of the scores, squared error and variance of Y."""

    folds: FoldedCovariance
    fit: _Fit
    n_components: int

    def __call__(self, left_out: tuple[int, ...]) -> np.ndarray:
        training = self.folds.without(*left_out)
        found = self.fit(training)
        a, b = (_of_width(each, self.n_components) for each in (found.weights_x, found.weights_y))
        coefficients = found.coefficients(training)
        rows: list[np.ndarray] = []
        for each in left_out:
            fold = self.folds.fold(each)
            around = fold.around(training.mean_x, training.mean_y)
            total = float(np.trace(around.yy))
            gained = 2 * np.vdot(coefficients, around.xy) - np.vdot(coefficients, around.xx @ coefficients)
            covariances = np.einsum("ak,ak->k", a, fold.xy @ b)
            rows.append(np.concatenate([correlations_of(fold, a, b), covariances, [total - gained, total]]))
        return np.stack(rows)


def _with_interval(correlations: np.ndarray, without: np.ndarray, level: float) -> tuple[float, float, float]:
    value = float(correlations.mean())
    return value, *correlation_interval(value, without.mean(axis=1), level)


def _explained(scores: np.ndarray, without: np.ndarray, level: float) -> tuple[float, float, float]:
    """Return R² and its interval; the last two scores are the error and the variance."""
    value, reach = (
        float(1 - scores[-2] / scores[-1]),
        float(jackknife_reach(1 - without[:, -2] / without[:, -1], level)),
    )
    return value, value - reach, min(value + reach, 1.0)


def _tested(data: AlignedCoordinates, config: PLSConfig, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples that the test is made on, and its p-values."""
    n = data.whole.n
    picked = np.sort(generator(config.seed, "pls").choice(n, min(n, config.n_inference), replace=False))
    rows_x, rows_y = picked_rows(data.x.rows, picked), picked_rows(data.y.rows, picked)
    these = data.whole if len(picked) == n else joint_covariance(rows_x, rows_y).whole
    found = latent_directions(these, n_components, config.mode)
    p_values = covariance_test(
        rows_x, rows_y, found, config.mode, n_permutations=config.n_permutations, seed=config.seed
    )
    return picked, np.pad(p_values, (0, n_components - len(p_values)), constant_values=NAN)
