"""How well one number tells a label: effect sizes from ranks, their intervals, and exact chances under shuffling.

    AUROC    = P(a_i > a_k) + P(a_i = a_k) / 2,  i in the class, k not      = 1/2 + r.y / (n_1 n_0)
    rho      = r.s / (|r| |s|)                                              Spearman
    p        = P(K >= k),  K hypergeometric                                 k of the s strongest samples in the class

r are a latent's mid-ranks less their mean, y marks the class, s are the ranks of a continuous label less their mean.

Source: [@newcombe2006] for the interval of AUROC, [@bonett2000] for that of rho.
Cost: one product of samples x latents x classes each.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import gammaln, ndtri
from scipy.stats import rankdata

Interval = tuple[Float[np.ndarray, "*test"], Float[np.ndarray, "*test"]]


def centred_ranks(values: Float[np.ndarray, "sample column"]) -> Float[np.ndarray, "sample column"]:
    """Return the mid-ranks of every column, less their mean."""
    return rankdata(values, axis=0) - (len(values) + 1) / 2


def auroc(
    ranks: Float[np.ndarray, "sample latent"], members: Bool[np.ndarray, "sample class"]
) -> Float[np.ndarray, "latent class"]:
    """Return how well each latent tells each class from the rest: 1/2 is nothing, 1 is perfect."""
    n_in = members.sum(axis=0)
    return 0.5 + ranks.T @ members.astype(np.float64) / (n_in * (len(members) - n_in))


def spearman(
    ranks: Float[np.ndarray, "sample latent"], label_ranks: Float[np.ndarray, "sample class"]
) -> Float[np.ndarray, "latent class"]:
    """Return the rank correlation of each latent with each variable; 0 where a latent is constant."""
    length = np.linalg.norm(ranks, axis=0)[:, None] * np.linalg.norm(label_ranks, axis=0)
    return (ranks.T @ label_ranks) / np.where(length > 0, length, np.inf)


def auroc_interval(
    found: Float[np.ndarray, "*test"], n_in: Int[np.ndarray, "*test"], n_out: Int[np.ndarray, "*test"], level: float
) -> Interval:
    """Return the score interval of AUROC, which has a width at 0 and at 1 too.

    Its bounds t solve |found - t| = z sd(t), with Hanley and McNeil's variance and the mean of the two sizes in it.
    """
    z, more = ndtri((1 + level) / 2), (n_in + n_out) / 2 - 1

    def beyond(t: Float[np.ndarray, "*test"]) -> Float[np.ndarray, "*test"]:
        shape = 1 + more * (1 - t) / (2 - t) + more * t / (1 + t)
        return np.abs(found - t) - z * np.sqrt(t * (1 - t) * shape / (n_in * n_out))

    bounds: list[Float[np.ndarray, "*test"]] = []
    for end in (0.0, 1.0):
        outside, inside = np.full_like(found, end), found.copy()
        for _ in range(50):
            middle = (outside + inside) / 2
            out = beyond(middle) > 0
            outside, inside = np.where(out, middle, outside), np.where(out, inside, middle)
        bounds.append(outside)
    return bounds[0], bounds[1]


def spearman_interval(found: Float[np.ndarray, "*test"], n_samples: int, level: float) -> Interval:
    """Return the interval of rho by Fisher's z, with Bonett and Wright's standard error."""
    half = ndtri((1 + level) / 2) * np.sqrt((1 + found**2 / 2) / (n_samples - 3))
    z = np.arctanh(np.clip(found, -1 + 1e-15, 1 - 1e-15))
    return np.tanh(z - half), np.tanh(z + half)


def hypergeometric_tails(
    sizes: Int[np.ndarray, "latent"], n_in: int, n_samples: int
) -> Float[np.ndarray, "latent count"]:
    """Return P(at least k of a random `sizes[j]` samples are among the `n_in` of a class), k = 0, ..., n_in.

    It is what shuffling the labels gives, exactly: each order is as likely as any other.
    """
    log_factorial = gammaln(np.arange(n_samples + 1) + 1.0)

    def log_choose(n: np.ndarray | int, k: np.ndarray | int) -> np.ndarray:
        """Return log C(n, k), -inf where there is no such choice."""
        n, k = np.broadcast_arrays(n, k)
        possible = (k >= 0) & (k <= n)
        k = np.where(possible, k, 0)
        return np.where(possible, log_factorial[n] - log_factorial[k] - log_factorial[n - k], -np.inf)

    k, s = np.arange(n_in + 1), sizes[:, None]
    log_chance = log_choose(s, k) + log_choose(n_samples - s, n_in - k) - log_choose(n_samples, n_in)
    return np.minimum(np.exp(log_chance)[:, ::-1].cumsum(axis=1)[:, ::-1], 1.0)
