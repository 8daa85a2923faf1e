"""The cross-barcode of two distances between the same points: what is joined in one and not yet in the other.

    X_r, Y_r      Vietoris-Rips complexes at r of the distances w, and of min(w, v): X_r lies in Y_r
    cone          Y_r with a cone over X_r; H_1 of it: components of X_r that are one in Y_r, and loops new in Y_r
    graph         a flag complex of 2 n + 1 points with that homology, so that ripser does it all:
                  A_i A_j min(w, v)_ij     A'_i A'_j w_ij     A_i A'_j w_ij for i < j     A_i A'_i 0     O A'_i 0

Why the graph will do: added from the last to the first, A'_j is joined to A_i, i < j, and to A'_k, k > j, at w only,
where A_j is joined to all of them. So its link is a cone, and adding it changes nothing: the A and A' together are
still Y, in which the A' are X moved through the prism; O makes the cone over X.

From the enclosing radius of w on both complexes are cones: everything ends there, exactly.

Source: [@barannikov2022].
Cost: ripser on 2 n + 1 points.
"""

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import squareform

from mechint_core.geometry._vietoris_rips import engine, read_back, tied_ranks


def cross_barcode(
    first: Float[np.ndarray, "pair"], second: Float[np.ndarray, "pair"]
) -> Float[np.ndarray, "bar endpoint"]:
    """Return the bars of dimension 1: joined at birth by the smaller of both distances, at death by the first."""
    values, rank = tied_ranks(np.concatenate([first, np.minimum(first, second)]))
    own, least = (squareform(part.astype(np.float64)) for part in np.split(rank, 2))
    n, never = len(own), float(rank.max()) + 1
    prism = np.where(np.triu(np.ones((n, n), dtype=bool)), own, never)  # A_i down, A'_j across
    ranks = np.full((2 * n + 1, 2 * n + 1), never)
    ranks[:n, :n], ranks[n : 2 * n, n : 2 * n] = least, own
    ranks[:n, n : 2 * n], ranks[n : 2 * n, :n] = prism, prism.T
    ranks[n : 2 * n, -1] = ranks[-1, n:] = 0.0
    cut = own.max(axis=1).min()
    found = engine(ranks, max_dimension=1, coefficient=2, cut=cut)
    bars, dimension = read_back(found["dgms"], np.append(values, np.inf))
    return bars[dimension == 1]
