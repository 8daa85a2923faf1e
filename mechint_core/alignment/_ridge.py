"""Ridge regression of many targets with a penalty of each target's own, scored on rows that it never saw.

    w = (C + λ I)⁻¹ c,   C = Σ (x - x̄)(x - x̄)ᵀ,   c = Σ (x - x̄)(y - ȳ)      over the training rows

Errors on held-out folds follow from their sums (`_ridge_basis`). Nested: for each outer fold k the penalty has the
smallest error over the other folds j, each predicted from all folds but k and j. The training set without k and j is
that without j and k, so K folds take K (K - 1) / 2 + K decompositions.

Banded: columns of band b are scaled by d_b, which is ridge with the penalty λ / d_b² on that band. The scales tried are
the same for every target and fold, spread evenly over log-ratios, with all bands and with some left out.

Penalties are in units of the mean squared length of a centred row, tr C / n: for predictors and weights without a
preferred direction the best penalty is then the ratio of noise to signal variance, whatever n, p and the scale of X.

Source: [@hoerl1970], [@duprelatour2022] (banded, many targets).
Cost: per set of scales, K (K + 1) / 2 decompositions of p³ and K² (penalties) p² t.
Chunked over: targets.
"""

from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._fold_sums import FoldSums, assign_folds, fold_sums, predictors, row_blocks
from mechint_core.alignment._ridge_basis import Scores, Training, ratio
from mechint_core.errors import ConfigurationError, DegenerateInputError
from mechint_core.parallel import Rows, len_rows

CHUNK = 512
"""Targets solved at once."""
ROUNDING = 1e-12
"""A target that varies by less than this share of its size is constant."""
REACH = 1e3
"""The scales of two bands differ by up to this factor, in variance."""
PREDICTED_ROWS = 1000
"""Rows predicted at once."""


def check_penalties(penalties: tuple[float, ...]) -> None:
    """Refuse penalties that are not positive and rising."""
    if not penalties or min(penalties) <= 0 or any(a >= b for a, b in pairwise(penalties)):
        raise ConfigurationError(f"penalties must be above 0 and rising. Got {penalties}.")


@dataclass(frozen=True, slots=True)
class Nested:
    """The answer of nested cross-validation."""

    scores: Scores
    """Over all outer folds, for every target."""
    weights: Float[np.ndarray, "fold unit target"]
    """Of the model that predicts each outer fold, for the first `n_kept` targets."""
    split: Float[np.ndarray, "band target"]
    """Σ ŷ_b (2 y - ŷ) / Σ (y - ȳ)² per band: adds up to R²."""
    fold_penalty: Int[np.ndarray, "fold target"]
    """Which penalty was chosen for each outer fold."""
    path: Float[np.ndarray, "penalty target"]
    """Cross-validated R² at each penalty, at the best scales of the target."""
    scale: Float[np.ndarray, "band target"]
    """The scales of the bands, chosen over all folds, for the model of all rows."""
    penalty: Int[np.ndarray, "target"]
    """The same for the penalty."""


def band_scales(n_bands: int, n_scales: int) -> Float[np.ndarray, "candidate band"]:
    """Return shares of variance to try: all equal, each band alone, then half of the rest with bands left out."""
    if n_bands == 1:
        return np.ones((1, 1))
    everything = tuple(range(n_bands))
    fewer = [each for size in range(2, n_bands) for each in combinations(everything, size)]
    n_fewer = n_scales // 2 // max(1, len(fewer))
    found = [np.full((1, n_bands), 1 / n_bands), np.eye(n_bands)]
    for kept in [*fewer, everything]:
        n = n_fewer if len(kept) < n_bands else n_scales - n_fewer * len(fewer)
        shares = np.zeros((n, n_bands))
        shares[:, kept] = np.exp(np.column_stack([_evenly_spread(len(kept) - 1, n), np.zeros(n)]))
        found.append(shares / shares.sum(axis=1, keepdims=True))
    return np.vstack(found)


def _evenly_spread(n_ratios: int, n: int) -> Float[np.ndarray, "candidate ratio"]:
    """Return log-ratios up to `REACH` that fill their cube evenly, however many there are."""
    root = 1.5
    for _ in range(50):  # the generalised golden ratio: steps of its powers never come close to each other
        root = (1 + root) ** (1 / (n_ratios + 1))
    steps = root ** -np.arange(1, n_ratios + 1)
    return np.log(REACH) * (2 * ((0.5 + np.outer(np.arange(n), steps)) % 1) - 1)


def nested_ridge(
    sums: FoldSums,
    bands: list[np.ndarray],
    penalties: tuple[float, ...],
    *,
    n_scales: int = 0,
    n_kept: int | None = None,
    relative: bool = True,
) -> Nested:
    """Choose each target's penalty (and scales of bands) inside every training set, and score on what was left out.

    `n_kept` targets, the first ones, also get weights, a split over bands and a model of all rows. With `relative`
    false the penalties are absolute, as those of other programs.
    """
    shares = band_scales(len(bands), n_scales)
    total = np.array([_variance(sums, band) for band in bands])
    if not total.sum() > 0:
        raise DegenerateInputError("x must vary over its rows. Got the same row every time.")
    search = _Search(sums, bands, np.array(penalties), sums.y.shape[1] if n_kept is None else n_kept)
    for share in shares:
        scale = np.sqrt(ratio(share, total)) if len(bands) > 1 else np.ones(1)
        search.consider(np.nan_to_num(scale), relative=relative)
    return search.answer()


def _variance(sums: FoldSums, columns: np.ndarray) -> float:
    every = list(range(len(sums.n)))
    squares = sum(float(np.einsum("aa->a", each)[columns].sum()) for each in sums.xx)
    centre = sums.n.sum() * float(np.sum(sums.mean_x(every)[columns] ** 2))
    return squares - centre if squares - centre > 1e-13 * squares else 0.0


class _Search:
    """The best scales and penalty per outer fold and target, among the candidates considered so far."""

    def __init__(self, sums: FoldSums, bands: list[np.ndarray], penalties: np.ndarray, n_kept: int) -> None:
        k, t, p = len(sums.n), sums.y.shape[1], sums.x.shape[1]
        self.sums, self.bands, self.penalties, self.n_kept = sums, bands, penalties, n_kept
        self.inner = np.full((k, t), np.inf)
        self.fold_penalty = np.zeros((k, t), np.int64)
        self.scores = np.zeros((k, 5, t))
        self.weights = np.zeros((k, p, n_kept))
        self.outer = np.full(n_kept, np.inf)
        self.path = np.full((len(penalties), n_kept), np.nan)
        self.scale = np.zeros((len(bands), n_kept))
        self.penalty = np.zeros(n_kept, np.int64)

    def consider(self, scale_of_band: np.ndarray, *, relative: bool) -> None:
        """Try one set of scales with every penalty."""
        scale = np.zeros(self.sums.x.shape[1])
        for band, each in zip(self.bands, scale_of_band, strict=True):
            scale[band] = each
        inner = self._inner_errors(scale, relative=relative)
        outer = np.zeros((len(self.penalties), self.n_kept))
        for fold in range(len(self.sums.n)):
            outer += self._outer_fold(fold, scale, inner[fold], relative=relative)
        best = outer.min(axis=0)
        better = best < self.outer
        self.outer[better] = best[better]
        self.path[:, better] = outer[:, better]
        self.scale[:, better] = scale_of_band[:, None]
        self.penalty[better] = outer.argmin(axis=0)[better]

    def _inner_errors(self, scale: np.ndarray, *, relative: bool) -> np.ndarray:
        """Return, per outer fold, the error over the other folds at each penalty: (fold, penalty, target)."""
        k, t = len(self.sums.n), self.sums.y.shape[1]
        errors = np.zeros((k, len(self.penalties), t))
        for first in range(k):
            for second in range(first + 1, k):
                training = Training.of(self.sums, [f for f in range(k) if f not in (first, second)], scale)
                absolute = self.penalties * (training.unit if relative else 1.0)
                for outer, inner in ((first, second), (second, first)):
                    held_out = training.held_out(inner)
                    for columns in _chunks(t):
                        errors[outer][:, columns] += held_out.errors(training.project(columns), columns, absolute)
        return errors

    def _outer_fold(self, fold: int, scale: np.ndarray, inner: np.ndarray, *, relative: bool) -> np.ndarray:
        """Score a fold with the best penalties, and return its errors at every penalty for the kept targets."""
        training = Training.of(self.sums, [f for f in range(len(self.sums.n)) if f != fold], scale)
        held_out = training.held_out(fold)
        absolute = self.penalties * (training.unit if relative else 1.0)
        every = np.zeros((len(self.penalties), self.n_kept))
        for columns in _chunks(inner.shape[1]):
            solved = training.project(columns)
            chosen = inner[:, columns].argmin(axis=0)
            coefficients = solved / (training.values[:, None] + absolute[chosen])
            lowest = inner[:, columns].min(axis=0)
            better = lowest < self.inner[fold, columns]
            kept = slice(columns.start, min(columns.stop, self.n_kept))
            self.inner[fold, columns] = np.where(better, lowest, self.inner[fold, columns])
            self.fold_penalty[fold, columns] = np.where(better, chosen, self.fold_penalty[fold, columns])
            fresh = held_out.scores(coefficients, columns)
            self.scores[fold][:, columns] = np.where(better, fresh, self.scores[fold][:, columns])
            if kept.stop > kept.start:
                n = kept.stop - kept.start
                weights = training.basis @ coefficients[:, :n]
                self.weights[fold][:, kept] = np.where(better[:n], weights, self.weights[fold][:, kept])
                every[:, kept] = held_out.errors(solved[:, :n], kept, absolute)
        return every

    def answer(self) -> Nested:
        """Add up the outer folds."""
        total = self.scores.sum(axis=0)
        constant = total[4] <= self.sums.n.sum() * (ROUNDING * self.sums.shift_y) ** 2
        total[:, constant] = 0  # a target that does not vary has no R², and no correlation
        scores = Scores(*total)
        kept = slice(0, self.n_kept)
        return Nested(
            scores=scores,
            weights=self.weights,
            split=_split(self.sums, self.bands, self.weights, scores.spread[kept]),
            fold_penalty=self.fold_penalty[:, kept],
            path=1 - ratio(self.path, scores.spread[kept]),
            scale=self.scale,
            penalty=self.penalty,
        )


def _chunks(n: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]


def _split(sums: FoldSums, bands: list[np.ndarray], weights: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return Σ ŷ_b (2 y - ŷ) / Σ (y - ȳ)² of each band."""
    shared = np.zeros((len(bands), weights.shape[2]))
    for fold, each in enumerate(weights):
        kept = [f for f in range(len(sums.n)) if f != fold]
        mean_x = sums.mean_x(kept)
        xy = sums.xy_about([fold], mean_x, sums.mean_y(kept), slice(0, weights.shape[2]))
        rest = 2 * xy - sums.xx_about([fold], mean_x) @ each
        for i, band in enumerate(bands):
            shared[i] += np.einsum("at,at->t", each[band], rest[band])
    return ratio(shared, np.broadcast_to(spread, shared.shape))


@dataclass(frozen=True, slots=True)
class RidgeModel:
    """The model of all rows."""

    weights: Float[np.ndarray, "unit target"]
    intercept: Float[np.ndarray, "target"]
    penalty: Float[np.ndarray, "band target"]
    """Absolute: what is added to the diagonal of Σ (x - x̄)(x - x̄)ᵀ."""


def fit_all(
    sums: FoldSums,
    bands: list[np.ndarray],
    scale: Float[np.ndarray, "band target"],
    penalty: Float[np.ndarray, "target"],
    *,
    relative: bool = True,
) -> RidgeModel:
    """Fit each of the first targets on all rows, with the scales and the penalty chosen for it."""
    every, t = list(range(len(sums.n))), scale.shape[1]
    weights, absolute = np.zeros((sums.x.shape[1], t)), np.zeros(t)
    distinct, which = np.unique(scale, axis=1, return_inverse=True)
    for i, scale_of_band in enumerate(distinct.T):
        column_scale = np.zeros(len(weights))
        for band, each in zip(bands, scale_of_band, strict=True):
            column_scale[band] = each
        training = Training.of(sums, every, column_scale)
        these = np.flatnonzero(which.ravel() == i)
        absolute[these] = penalty[these] * (training.unit if relative else 1.0)
        solved = training.project(slice(0, t))[:, these] / (training.values[:, None] + absolute[these])
        weights[:, these] = training.basis @ solved
    mean_x, mean_y = sums.mean_x(every) + sums.shift_x, sums.mean_y(every)[:t] + sums.shift_y[:t]
    with np.errstate(divide="ignore"):  # a band that is left out has an infinite penalty
        return RidgeModel(weights, mean_y - mean_x @ weights, absolute / scale**2)


def predict_folds(
    x: Float[Rows, "sample unit"], sums: FoldSums, weights: Float[np.ndarray, "fold unit target"], folds: np.ndarray
) -> Float[np.ndarray, "sample target"]:
    """Predict every row by the model that did not see its fold."""
    t = weights.shape[2]
    predicted = np.empty((len_rows(x), t))
    for fold, each in enumerate(weights):
        kept = [f for f in range(len(weights)) if f != fold]
        mean_x = sums.mean_x(kept) + sums.shift_x
        mean_y = sums.mean_y(kept)[:t] + sums.shift_y[:t]
        for rows, wanted in row_blocks(folds == fold, PREDICTED_ROWS):
            block = np.asarray(x[rows])[wanted].astype(np.float64) - mean_x
            predicted[rows][wanted] = block @ each + mean_y
    return predicted


def predict_all(
    x: Float[Rows, "sample unit"], weights: Float[np.ndarray, "unit target"], intercept: Float[np.ndarray, "target"]
) -> Float[np.ndarray, "sample target"]:
    """Predict every row by one model."""
    predicted = np.empty((len_rows(x), weights.shape[1]))
    for start in range(0, len(predicted), PREDICTED_ROWS):
        rows = slice(start, start + PREDICTED_ROWS)
        predicted[rows] = np.asarray(x[rows]).astype(np.float64) @ weights + intercept
    return predicted


def cross_validated_prediction(
    x: Float[Rows, "sample unit"],
    y: Float[Rows, "sample target"],
    folds: Int[np.ndarray, "sample"] | int,
    penalties: tuple[float, ...],
    *,
    relative: bool = True,
) -> tuple[Float[np.ndarray, "sample target"], Float[np.ndarray, "fold target"]]:
    """Predict every row of Y from X by ridge regression that never saw the row, nor chose its penalty by it.

    `folds` is the fold of each row, or how many runs of rows to make. Returns the predictions, and the penalty chosen
    for each fold and target, in units of the mean squared length of a centred row unless `relative` is false.
    """
    check_penalties(penalties)
    given = predictors(x, ())
    fold = assign_folds(len_rows(x), None, folds, seed=0) if isinstance(folds, int) else folds
    sums = fold_sums(given.rows, y, fold)
    found = nested_ridge(sums, given.bands, penalties, relative=relative)
    return predict_folds(given.rows, sums, found.weights, fold), np.array(penalties)[found.fold_penalty]
