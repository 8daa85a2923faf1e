"""What the mean agreement with several subjects is where the models know nothing of the conditions.

Every comparison of `DrawnComparison` is a sum Σ_ij A_ij B_ij over square matrices of unit norm, so its mean over
subjects is one with the mean of theirs, B̄. Relabelling the conditions by π keeps A and turns B̄_ij into B̄_π(i)π(j):

    null       Σ_ij A_ij B̄_π(i)π(j), for random π
    its mean   tr A tr B̄ / n + Σ_{i≠j} A_ij Σ_{i≠j} B̄_ij / (n (n - 1)), over all π, exactly

0 for the comparisons that take the mean out, not for the cosines, which distances' being positive keeps above 0.

Source: [@mantel1967], [@hubert1976].
Cost: (1 + m) n² per relabelling for m models.
Chunked over: relabellings.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechint_core.alignment._distances import square_form
from mechint_core.alignment._drawn_products import CENTRED, PLAIN, RANKED, DrawnComparison
from mechint_core.alignment._ranks import mid_ranks
from mechint_core.alignment._whitening import Whitening
from mechint_core.parallel import LANES, map_parallel


def unit_squares(
    rdms: Float[np.ndarray, "rdm pair"], comparison: DrawnComparison
) -> Float[np.ndarray, "rdm row column"]:
    """Return square matrices of unit norm whose inner products are the comparison; 0 where pairs are missing."""
    return np.stack([_unit_square(each, comparison) for each in rdms])


def _unit_square(condensed: np.ndarray, comparison: DrawnComparison) -> np.ndarray:
    held = np.isfinite(condensed)
    values = mid_ranks(condensed[held]) if comparison in RANKED else condensed[held]
    if comparison in RANKED or comparison in CENTRED:
        values = values - values.mean()
    filled = np.zeros_like(condensed)
    filled[held] = values
    square = square_form(filled)
    if comparison not in (*PLAIN, *RANKED):
        at = np.flatnonzero(square_form(held.astype(np.float64)).any(axis=1))
        centred = Whitening.of(None, len(at))(square[np.ix_(at, at)])
        square = np.zeros_like(square)
        square[np.ix_(at, at)] = centred
    n = len(values)
    return square / (np.sqrt((n**3 - n) / 6) if comparison == "rho-a" else np.linalg.norm(square))


def relabelled_means(
    models: Float[np.ndarray, "model row column"],
    mean: Float[np.ndarray, "row column"],
    permutations: Int[np.ndarray, "draw condition"],
) -> Float[np.ndarray, "draw model"]:
    """Return each model's agreement with the relabelled mean of the subjects."""
    relabel = _Relabel(models.reshape(len(models), -1), mean)
    return np.concatenate(map_parallel(relabel, np.array_split(permutations, LANES)))


@dataclass(frozen=True, slots=True)
class _Relabel:
    models: np.ndarray
    mean: np.ndarray

    def __call__(self, permutations: np.ndarray) -> np.ndarray:
        relabelled = (self.models @ self.mean[each].take(each, axis=1).ravel() for each in permutations)
        return np.array(list(relabelled)).reshape(-1, len(self.models))


def relabelled_between(
    squares: Float[np.ndarray, "subject row column"], permutations: Int[np.ndarray, "draw subject condition"]
) -> Float[np.ndarray, "draw subject other_subject"]:
    """Return the agreements of subjects with one another, the conditions of each relabelled on their own."""
    parts = map_parallel(_RelabelEach(squares), np.array_split(permutations, LANES))
    return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class _RelabelEach:
    squares: np.ndarray

    def __call__(self, permutations: np.ndarray) -> np.ndarray:
        s = len(self.squares)
        found = np.empty((len(permutations), s, s))
        for draw, orders in enumerate(permutations):
            pairs = zip(self.squares, orders, strict=True)
            rows = np.stack([square[order].take(order, axis=1).ravel() for square, order in pairs])
            found[draw] = rows @ rows.T
        return found


def expected_means(
    models: Float[np.ndarray, "model row column"], mean: Float[np.ndarray, "row column"]
) -> Float[np.ndarray, "model"]:
    """Return the mean of `relabelled_means` over all relabellings."""
    n = len(mean)
    trace, whole = np.einsum("mii->m", models), models.sum(axis=(1, 2))
    own = np.trace(mean)
    expected = trace * own / n + (whole - trace) * (mean.sum() - own) / (n * (n - 1))
    return np.where(np.abs(expected) > np.finfo(np.float64).eps, expected, 0.0)
