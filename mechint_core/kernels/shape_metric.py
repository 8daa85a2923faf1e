"""Angles between the shapes of two systems, from Procrustes to canonical correlations.

    X -> Xφ = X (a I + (1 - a) C^(-1/2)),   C = Xᵀ X r / tr(Xᵀ X)          a = 1: as it is;  a = 0: whitened
    theta   = arccos( ||Xφᵀ Yφ||_* / (||Xφ|| ||Yφ||) )                     the angle left after the best rotation

r is the rank of X: with mean variance 1 the mixture of I and C^(-1/2) does not depend on the scale of X or on n.
For every a, theta is a metric on systems up to what it ignores: the geodesic distance of a sphere modulo rotations.

Everything is a function f of Xᵀ X, Xᵀ Y, Yᵀ Y, so that one pass over rows has it. The influence of row i is
n (x_iᵀ G_xx x_i + x_iᵀ G_xy y_i + y_iᵀ G_yy y_i), where G is the derivative of f: of the nuclear norm U Wᵀ, of the
inverse root in its eigenbasis -1 / (√λ_i √λ_j (√λ_i + √λ_j)).

Source: [@williams2021], [@schonemann1966], [@langsrud2005] (random rotations as a null).
Cost: (p + q)³ beside the moments; p q min(p, q) per null draw.
Chunked over: nothing here; the moments are chunked over rows.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.linalg import solve_triangular

from mechint_core.errors import DegenerateInputError
from mechint_core.kernels.halved_moments import Moments
from mechint_core.parallel import LANES, Reduction, Rows, map_parallel, reduce_rows
from mechint_core.random import generator

RANK = 1e-12
"""A direction with less than this share of the largest variance is rounding, and is not blown up by whitening."""
NEARLY_ALIKE = 1e-5
"""Below this 1 - cosine, the angle is taken from the chord: the arc cosine loses half of the digits there."""
CONSTANT = 1e-26
"""A variance below this share of the mean's square is rounding."""


@dataclass(frozen=True, slots=True)
class Whitening:
    """How one system is read: coordinates u = Vᵀ x, each with its variance and with the weight it is given."""

    basis: Float[np.ndarray, "unit direction"]
    """V, scaled so that variances are 1 on average."""
    values: Float[np.ndarray, "direction"]
    """Σ u² of each direction."""
    weights: Float[np.ndarray, "direction"]
    alpha: float

    @classmethod
    def of(cls, moment: Float[np.ndarray, "unit unit"], alpha: float) -> "Whitening":
        """Read the weights from Xᵀ X. At alpha 1 the units are as good a basis as any."""
        if alpha == 1:
            values, vectors = np.diag(moment), np.eye(len(moment))
        else:
            values, vectors = np.linalg.eigh(moment)
            kept = values > RANK * values[-1]
            values, vectors = values[kept], vectors[:, kept]
        total = float(values.sum())
        if not total > 0:
            raise DegenerateInputError("every system must vary over its samples. Got the same row every time.")
        scale = len(values) / total
        values = values * scale
        weights = np.ones_like(values) if alpha == 1 else alpha + (1 - alpha) / np.sqrt(values)
        return cls(vectors * math.sqrt(scale), values, weights, alpha)

    @property
    def size(self) -> float:
        """||Xφ||."""
        return math.sqrt(float(self.weights**2 @ self.values))

    @property
    def map(self) -> Float[np.ndarray, "unit direction"]:
        """From the units to the coordinates of Xφ, divided by its size."""
        return self.basis * (self.weights / self.size)

    def derivative(self, gradient: Float[np.ndarray, "direction direction"], cosine: float) -> np.ndarray:
        """Return the derivative in Xᵀ X, given that of the nuclear norm (per size) in the weights' matrix."""
        found = np.diag(-cosine * self.alpha * self.weights / (2 * self.size**2))
        if self.alpha < 1:
            root = np.sqrt(self.values)
            divided = -(1 - self.alpha) / (np.outer(root, root) * (root[:, None] + root))
            found += divided * (gradient + gradient.T) / 2
        return found


@dataclass(frozen=True, slots=True)
class ShapePair:
    """The shapes of two systems on the same rows, turned onto each other."""

    x: Whitening
    y: Whitening
    cross: Float[np.ndarray, "direction other_direction"]
    """Σ u vᵀ."""
    left: Float[np.ndarray, "direction component"]
    right: Float[np.ndarray, "other_direction component"]
    cosine: float

    @classmethod
    def of(cls, moments: Moments, n_units: int, alpha: float) -> "ShapePair":
        """Turn two systems, side by side in `moments`, the first with `n_units`, onto each other."""
        c = moments.cross
        x, y = Whitening.of(c[:n_units, :n_units], alpha), Whitening.of(c[n_units:, n_units:], alpha)
        cross = x.basis.T @ c[:n_units, n_units:] @ y.basis
        left, values, right = np.linalg.svd(x.weights[:, None] * cross * y.weights, full_matrices=False)
        return cls(x, y, cross, left, right.T, float(values.sum()) / (x.size * y.size))

    @property
    def turn(self) -> Float[np.ndarray, "direction other_direction"]:
        """The best rotation, from the coordinates of the second system to those of the first: u ≈ turn v."""
        return self.left @ self.right.T

    def influence(self, rows: Float[np.ndarray, "draw unit"], n: int) -> Float[np.ndarray, "draw"]:
        """Return n times what single rows (side by side, centred) add to the cosine of all n."""
        p = len(self.x.basis)
        u, v = rows[:, :p] @ self.x.basis, rows[:, p:] @ self.y.basis
        turn, sizes = self.turn, self.x.size * self.y.size
        weighted = self.x.weights[:, None] * turn * self.y.weights / sizes
        grad_x = self.x.derivative((turn * self.y.weights) @ self.cross.T / sizes, self.cosine)
        grad_y = self.y.derivative((turn.T * self.x.weights) @ self.cross / sizes, self.cosine)
        found = np.einsum("ia,ia->i", u @ weighted, v)
        for each, gradient, values in ((u, grad_x, self.x.values), (v, grad_y, self.y.values)):
            # A cosine does not depend on the scale of X: what the derivative of the scale adds follows from the rest.
            by_scale = -(values @ np.diag(gradient) + np.vdot(self.cross, weighted) / 2) / len(values)
            found += np.einsum("ia,ia->i", each @ gradient, each) + by_scale * np.einsum("ia,ia->i", each, each)
        return n * found


def shape_angle(
    pair: ShapePair, rows: Float[Rows, "sample unit"], mean: np.ndarray, *, block_rows: int | None = None
) -> float:
    """Return the angle in radians: from the cosine, or from the rows once more where they nearly agree."""
    if 1 - pair.cosine > NEARLY_ALIKE:
        return math.acos(pair.cosine)
    to_x, to_y = pair.x.map @ pair.left, pair.y.map @ pair.right
    if len(pair.x.weights) <= len(pair.y.weights):
        to_x, to_y = pair.x.map @ pair.turn, pair.y.map  # the narrower one is turned into the wider one
    else:
        to_x, to_y = pair.x.map, pair.y.map @ pair.turn.T
    chord = reduce_rows(Reduction(_Chord(to_x, to_y, mean), _add, _root), rows, block_rows=block_rows)
    return 2 * math.asin(min(1.0, chord / 2))


@dataclass(frozen=True, slots=True)
class _Chord:
    """Σ ||x_i A - y_i B||² over a block of rows."""

    to_x: np.ndarray
    to_y: np.ndarray
    mean: np.ndarray

    def __call__(self, block: np.ndarray) -> float:
        centred, p = block - self.mean, len(self.to_x)
        apart = centred[:, :p] @ self.to_x - centred[:, p:] @ self.to_y
        return float(np.vdot(apart, apart))


def _add(left: float, right: float) -> float:
    return left + right


def _root(total: float) -> float:
    return math.sqrt(total)


def null_cosines(
    pair: ShapePair,
    moments: Moments,
    rows: Float[np.ndarray, "sample unit"] | None,
    *,
    n_draws: int,
    seed: int,
    stream: tuple[str | int, ...] = (),
) -> Float[np.ndarray, "draw"]:
    """Return cosines of the two systems with the samples of one exchanged.

    With `rows` (side by side, centred) they are relabelled. Without, the samples are rotated at random in the n - 1
    dimensions they span, which needs the moments only: a block of a random rotation is A (Aᵀ A + W)^(-1/2), A Gaussian
    and W Wishart. The two agree where there are many more samples than units.
    """
    p = len(pair.x.basis)
    if rows is not None:
        draw: _Relabelled | _Rotated = _Relabelled(rows[:, :p] @ pair.x.map, rows[:, p:] @ pair.y.map)
    else:
        draw = _Rotated(
            _spectrum(moments.cross[:p, :p], pair.x), _spectrum(moments.cross[p:, p:], pair.y), moments.freedom
        )
    chunks = [(seed, (*stream, lane), len(part)) for lane, part in enumerate(np.array_split(np.arange(n_draws), LANES))]
    return np.concatenate(map_parallel(_Draws(draw), chunks))


def _spectrum(moment: np.ndarray, whitening: Whitening) -> np.ndarray:
    """Return the standard deviations of Xφ, divided by its size."""
    if whitening.alpha < 1:
        return whitening.weights * np.sqrt(whitening.values) / whitening.size
    values = np.maximum(np.linalg.eigvalsh(moment), 0)
    return np.sqrt(values / values.sum())


@dataclass(frozen=True, slots=True)
class _Draws:
    """Some draws of the null, from a stream of their own: the same whatever runs beside them."""

    draw: "_Relabelled | _Rotated"

    def __call__(self, chunk: tuple[int, tuple[str | int, ...], int]) -> np.ndarray:
        seed, stream, n = chunk
        rng = generator(seed, "null", *stream)
        crosses = (self.draw(rng) for _ in range(n))
        return np.array([np.linalg.svd(each, compute_uv=False).sum() for each in crosses], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _Relabelled:
    x: np.ndarray
    y: np.ndarray

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        return self.x.T @ self.y[rng.permutation(len(self.y))]


@dataclass(frozen=True, slots=True)
class _Rotated:
    x: np.ndarray
    y: np.ndarray
    freedom: int

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        p, q = len(self.x), len(self.y)
        block = rng.normal(size=(p, q))
        root = np.tril(rng.normal(size=(q, q)), -1)  # Bartlett's form of a Wishart matrix
        np.fill_diagonal(root, np.sqrt(rng.chisquare(self.freedom - p - np.arange(q))))
        total = np.linalg.cholesky(block.T @ block + root @ root.T)
        rotated = solve_triangular(total, block.T, lower=True).T
        return self.x[:, None] * rotated * self.y
