"""Pair the rows of two dictionaries one to one, so that the mean |cosine| of the pairs is largest.

Up to `EXACT` rows in the smaller dictionary all pairs are considered [@kuhn1955]. Beyond that the matrix of cosines
would grow with the square of the rows and the pairing with their cube, so a row may only choose among its
`CANDIDATES` best: the mean is then a lower bound, which equalled the exact one to four digits wherever both were
computed (2000 rows in 128 units, alike or independent, even with 16 candidates).

Cost: one product of rows x rows x units, and a pairing: 0.3 s for 2000 rows (all pairs); with candidates 0.8 s for
4000 and 10 s for 16,000, on one core. Memory: the candidates, and one block of cosines.
"""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from mechint_core.errors import DegenerateInputError

EXACT: Final = 2000
CANDIDATES: Final = 32
BLOCK_VALUES: Final = 2**24
"""Cosines held at once."""


class Pairing(NamedTuple):
    """For each row of b, what it finds in a."""

    best: Float[np.ndarray, "feature"]
    """The largest |cosine| with any row of a."""
    partner: Int[np.ndarray, "feature"]
    """The row of a it is paired with; -1 if none is left for it."""
    cosine: Float[np.ndarray, "feature"]
    """The |cosine| with its partner; 0 without one."""


def pair_rows(a: Float[np.ndarray, "latent unit"], b: Float[np.ndarray, "feature unit"]) -> Pairing:
    """Pair rows of norm 1, sign ignored."""
    if min(len(a), len(b)) > EXACT:
        return _pair_candidates(a, b)
    cosine = np.minimum(np.abs(b @ a.T), 1.0)
    rows, columns = linear_sum_assignment(cosine, maximize=True)
    return _pairing(cosine.max(axis=1), rows, columns, cosine[rows, columns])


def unit_rows(rows: Float[np.ndarray, "row unit"], name: str) -> Float[np.ndarray, "row unit"]:
    """Return the rows at length 1.

    Raises
    ------
    DegenerateInputError
        If a row is zero or not finite.
    """
    length = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    if not np.isfinite(length).all() or (length == 0).any():
        raise DegenerateInputError(f"rows of {name} must be finite and not zero: they have no direction otherwise.")
    return rows / length


def _pair_candidates(a: Float[np.ndarray, "latent unit"], b: Float[np.ndarray, "feature unit"]) -> Pairing:
    """Pair rows of b with their best rows of a only. A row may also stay alone, at cosine 0: a column of its own."""
    n, m = len(b), len(a)
    latents, cosines = _candidates(a.astype(np.float32), b.astype(np.float32))
    alone = m + np.arange(n)[:, None]
    columns, worth = np.hstack([latents, alone]), np.hstack([cosines, np.zeros((n, 1))])
    starts = np.arange(0, columns.size + 1, columns.shape[1])
    # 2 - cosine, for an entry of 0 would count as no edge
    graph = csr_array((2.0 - worth.ravel(), columns.ravel(), starts), shape=(n, m + n))
    rows, chosen = min_weight_full_bipartite_matching(graph)
    rows, chosen = rows[chosen < m], chosen[chosen < m]
    exact = np.minimum(np.abs(np.einsum("ru,ru->r", b[rows], a[chosen])), 1.0)
    return _pairing(cosines.max(axis=1), rows, chosen, exact)


def _candidates(
    a: Float[np.ndarray, "latent unit"], b: Float[np.ndarray, "feature unit"]
) -> tuple[Int[np.ndarray, "feature candidate"], Float[np.ndarray, "feature candidate"]]:
    """Return each row's best rows of a and their |cosine|, block by block."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    step = max(1, BLOCK_VALUES // len(a))
    for start in range(0, len(b), step):
        cosine = np.minimum(np.abs(b[start : start + step] @ a.T), np.float32(1))
        latents = np.argpartition(cosine, -CANDIDATES, axis=1)[:, -CANDIDATES:]
        found.append((latents, np.take_along_axis(cosine, latents, axis=1).astype(np.float64)))
    return np.vstack([each for each, _ in found]), np.vstack([each for _, each in found])


def _pairing(
    best: Float[np.ndarray, "feature"],
    rows: Int[np.ndarray, "pair"],
    columns: Int[np.ndarray, "pair"],
    cosine: Float[np.ndarray, "pair"],
) -> Pairing:
    partner, matched = np.full(len(best), -1), np.zeros(len(best))
    partner[rows], matched[rows] = columns, cosine
    return Pairing(best, partner, matched)
