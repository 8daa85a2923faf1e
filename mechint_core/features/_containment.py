"""Which latents fire wherever which others do: counted on sparse firing, and tested against independence.

    n_ij        = vectors that both fire in                                      (sparse) firing @ firing^T
    containment = P(i fires | j fires) = n_ij / n_j
    excess      = (containment - P(i)) / (1 - P(i))
    p           = P(H >= n_ij),   H ~ Hypergeometric(N, n_i, n_j)                Fisher's exact test

Cost: samples x L0^2, whatever the number of latents; where more than a tenth of the codes are active, a dense product.
Memory: 8 bytes per active code (4 per code where dense), and one block of pairs.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array, csr_array, vstack
from scipy.special import gammaln

from mechint_core.features._encoded_blocks import encoded_blocks
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.parallel import Rows
from mechint_core.random import generator

BLOCK_VALUES = 2**22
"""Pairs of latents held at once."""
DENSE = 0.1
"""Share of active codes above which a dense product is cheaper than a sparse one."""


class Firing(NamedTuple):
    """Which vectors each latent fires in."""

    matrix: csr_array
    """(latent, vector), 1 where it fires."""
    counts: Int[np.ndarray, "latent"]
    """Vectors each latent fires in."""
    n_vectors: int


class Contained(NamedTuple):
    """Pairs of which the first latent fires mostly where the second does."""

    child: Int[np.ndarray, "edge"]
    parent: Int[np.ndarray, "edge"]
    together: Int[np.ndarray, "edge"]
    """Vectors that both fire in."""


def read_firing(activations: Float[Rows, "sample *position unit"], dictionary: SparseDictionary) -> Firing:
    """Return which vectors each latent fires in.

    Raises
    ------
    ShapeError
        If the activations are not (sample, ..., unit of the dictionary).
    DegenerateInputError
        If one is not finite.
    """
    blocks = [
        csr_array(codes.reshape(-1, codes.shape[-1]) > 0, dtype=np.float32)  # counts are exact up to 2^24 vectors
        for _, codes in encoded_blocks(activations, dictionary)
    ]
    by_vector = csr_array(vstack(blocks))
    counts = np.bincount(by_vector.indices, minlength=dictionary.hidden_dim)
    return Firing(csr_array(by_vector.T.tocsr()), counts, len(by_vector.indptr) - 1)


def shuffled_firing(firing: Firing, seed: int, draw: int) -> Firing:
    """Return firing in which each latent has as many vectors as before, drawn at random."""
    rng = generator(seed, "null", draw)
    drawn = [rng.choice(firing.n_vectors, n, replace=False, shuffle=False) for n in firing.counts]
    shuffled = (firing.matrix.data, np.concatenate(drawn), firing.matrix.indptr)
    return firing._replace(matrix=csr_array(shuffled, shape=firing.matrix.shape))


def contained_pairs(firing: Firing, *, min_excess: float, breadth: float, min_firings: int) -> Contained:
    """Return all pairs with that excess, whose parent fires `breadth` times as often as the child."""
    matrix, counts, n_vectors = firing
    n_latents, chance = len(counts), counts / n_vectors
    dense = matrix.nnz > DENSE * n_latents * n_vectors
    by_latent = matrix.toarray() if dense else matrix
    by_vector = by_latent.T if dense else matrix.T.tocsr()
    found: list[np.ndarray] = []
    step = max(1, BLOCK_VALUES // n_latents)
    for start in range(0, n_latents, step):
        pairs = coo_array(by_latent[start : start + step] @ by_vector)
        likely = pairs.data >= min_excess * counts[start : start + step][pairs.row]  # excess is below containment
        child, parent, together = pairs.row[likely] + start, pairs.col[likely], pairs.data[likely]
        broad = (counts[parent] >= breadth * counts[child]) & (counts[child] >= min_firings)
        room = 1 - chance[parent]  # multiplied with, not divided by: it is 0 for a latent that always fires
        enough = together / counts[child] - chance[parent] >= min_excess * room - 1e-12
        kept = broad & enough & (room > 0)
        found.append(np.stack([child[kept], parent[kept], together[kept]]).astype(np.int64))
    child, parent, together = np.concatenate(found, axis=1)
    return Contained(child, parent, together)


def count_pairs(counts: Int[np.ndarray, "latent"], breadth: float) -> int:
    """Return in how many pairs one latent fires `breadth` times as often as the other."""
    ascending = np.sort(counts)
    return int(np.sum(len(counts) - np.searchsorted(ascending, breadth * ascending)))


def fisher_p(
    together: Int[np.ndarray, "edge"], n_i: Int[np.ndarray, "edge"], n_j: Int[np.ndarray, "edge"], n: int
) -> Float[np.ndarray, "edge"]:
    """Return P(H >= together): the chances of together, together + 1, ..., each from the one before.

    Relative error 1e-8 for a million vectors: that of the logarithm of a factorial.
    """
    k = together.astype(np.float64)
    first = _log_choose(n_i, k) + _log_choose(n - n_i, n_j - k) - _log_choose(n, n_j)
    term, total = np.ones(len(k)), np.ones(len(k))
    while np.any(term > 1e-17 * total):
        term = term * (n_i - k) * (n_j - k) / ((k + 1) * (n - n_i - n_j + k + 1))
        total, k = total + term, k + 1
    return np.minimum(1.0, np.exp(first + np.log(total)))


def _log_choose(n: np.ndarray | int, k: np.ndarray) -> Float[np.ndarray, "edge"]:
    return gammaln(np.add(n, 1.0)) - gammaln(k + 1.0) - gammaln(n - k + 1.0)
