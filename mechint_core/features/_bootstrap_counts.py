"""Bootstrap draws as counts, for statistics made of sums: all draws are then one matrix product.

sum over the rows of a draw  =  counts @ rows
"""

import numpy as np
from jaxtyping import Float


def bootstrap_counts(n_samples: int, n_draws: int, rng: np.random.Generator) -> Float[np.ndarray, "draw sample"]:
    """Return how often each draw holds each sample; before the draws, the samples as they are."""
    drawn = (np.bincount(rng.integers(0, n_samples, n_samples), minlength=n_samples) for _ in range(n_draws))
    return np.array([np.ones(n_samples), *drawn], dtype=np.float32)
