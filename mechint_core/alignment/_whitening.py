"""Dissimilarity matrices in coordinates where the noise of their entries is white.

Where the responses to conditions have covariance S, the entries of a squared distance matrix have covariance
V = (C S Cᵀ)∘² up to a factor, with C the contrasts of pairs. V has no need to be made:

    dᵀ V⁻¹ e = <W D Wᵀ, W E Wᵀ> / 4,     W = S^(-1/2) (I - 1 1ᵀ S⁻¹ / 1ᵀ S⁻¹ 1)

so without S it is the inner product of the centred kernels, and its cosine is linear CKA. Pairs that are missing take
the values that make ||W D Wᵀ|| least, which is the same as leaving their rows and columns out of V.

Source: [@diedrichsen2020] (the whitened comparison), and the identity above.
Cost: n² per matrix, n³ where S is a full matrix or pairs are missing.
Chunked over: matrices.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse.linalg import LinearOperator, cg

from mechint_core.alignment._distances import n_of_pairs, square_form
from mechint_core.errors import DegenerateInputError, ShapeError

TOLERANCE = 1e-14
"""Relative residual at which a missing pair counts as found."""


@dataclass(frozen=True, slots=True)
class Whitening:
    """S^(-1/2), and what S⁻¹ weighs conditions by when it takes out their mean."""

    root: Float[np.ndarray, "..."]
    """The inverse of a square root of S: a row if S is diagonal, else a matrix."""
    mean: Float[np.ndarray, "condition"]
    """S⁻¹ 1 / 1ᵀ S⁻¹ 1."""

    @classmethod
    def of(cls, sigma: np.ndarray | None, n: int) -> "Whitening":
        """Take S as nothing (the identity), variances, or a covariance matrix of `n` conditions."""
        if sigma is None:
            return cls(np.ones(n), np.full(n, 1 / n))
        if sigma.shape not in ((n,), (n, n)):
            raise ShapeError(f"sigma must be ({n},) or ({n}, {n}), as there are {n} conditions. Got {sigma.shape}.")
        if sigma.ndim == 1:
            if not np.all(sigma > 0):
                raise DegenerateInputError(f"variances in sigma must be above 0. Got {sigma.min()}.")
            root, precision = 1 / np.sqrt(sigma), 1 / sigma
        else:
            root, precision = _inverse_root(sigma)
        return cls(root, precision / precision.sum())

    def __call__(self, square: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row column"]:
        """Return -W D Wᵀ / 2."""
        rows = square @ self.mean
        centred = -(square - rows[:, None] - rows + self.mean @ rows) / 2
        if self.root.ndim == 1:
            return centred * self.root[:, None] * self.root
        return self.root @ centred @ self.root.T

    def dual(self, square: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row column"]:
        """Return Wᵀ W D Wᵀ W: half the derivative of ||W D Wᵀ||² in D."""
        white = -2 * self(square)
        back = white * self.root[:, None] * self.root if self.root.ndim == 1 else self.root.T @ white @ self.root
        rows = back.sum(axis=1)
        return (
            back - np.outer(rows, self.mean) - np.outer(self.mean, rows) + rows.sum() * np.outer(self.mean, self.mean)
        )


def _inverse_root(sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the inverse of the Cholesky factor of S, and S⁻¹ 1."""
    try:
        root = np.linalg.inv(np.linalg.cholesky(sigma))
    except np.linalg.LinAlgError as error:
        raise DegenerateInputError("sigma must be positive definite. Got a singular or indefinite matrix.") from error
    return root, root.T @ root.sum(axis=1)


def whitened(
    condensed: Float[np.ndarray, "rdm pair"], keep: Bool[np.ndarray, "pair"], sigma: np.ndarray | None
) -> Float[np.ndarray, "rdm coordinate"]:
    """Return each matrix in white coordinates: the upper triangle, which counts twice, and the diagonal."""
    n = n_of_pairs(condensed.shape[1])
    whitening, upper = Whitening.of(sigma, n), np.triu_indices(n, 1)
    filled = condensed if keep.all() else _filled(condensed, keep, whitening)
    coordinates = np.empty((len(condensed), condensed.shape[1] + n))
    for each, row in zip(filled, coordinates, strict=True):
        white = whitening(square_form(each))
        row[: len(each)] = np.sqrt(2) * white[upper]
        row[len(each) :] = np.diagonal(white)
    return coordinates


def _filled(condensed: np.ndarray, keep: np.ndarray, whitening: Whitening) -> np.ndarray:
    filled = np.where(keep, condensed, 0.0)
    if whitening.root.ndim == 1:
        return np.where(keep, condensed, _least_diagonal(filled, keep, whitening.root**2))
    for row in filled:
        row[~keep] = _least(row, keep, whitening)
    return filled


def _least_diagonal(filled: np.ndarray, keep: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Return the fill for a diagonal S, where G_ij = u_i + u_j - D_ij / 2 and all that is missing has G_ij = 0.

    The u make Σ_ij w_ij G_ij² least, with w_ij = 1 / (S_ii S_jj): n equations for all matrices at once.
    """
    i, j = np.triu_indices(len(precision), 1)
    weights = square_form(keep.astype(np.float64)) * np.outer(precision, precision)
    equations = weights + np.diag(weights.sum(axis=1) + 2 * precision**2)
    right = np.array([np.sum(weights * square_form(each), axis=1) / 2 for each in filled])
    u = np.linalg.solve(equations, right.T).T
    return 2 * (u[:, i] + u[:, j])


def _least(row: np.ndarray, keep: np.ndarray, whitening: Whitening) -> np.ndarray:
    """Return the missing pairs of one matrix for a full S, by conjugate gradients."""
    n_missing, upper = int(np.sum(~keep)), np.triu_indices(len(whitening.mean), 1)

    def pull(missing: np.ndarray) -> np.ndarray:
        given = np.zeros(len(keep))
        given[~keep] = missing.ravel()
        return whitening.dual(square_form(given))[upper][~keep]

    target = -whitening.dual(square_form(row))[upper][~keep]
    operator = LinearOperator((n_missing, n_missing), matvec=pull, dtype=np.float64)  # pyright: ignore
    found, stopped = cg(operator, target, rtol=TOLERANCE, maxiter=20 * n_missing)
    if stopped:
        raise DegenerateInputError("sigma must be well conditioned where pairs are missing. Got no convergence.")
    return found
