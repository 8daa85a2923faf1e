"""What a statistic of two row-aligned systems becomes when the second one's rows are relabelled.

Relabellings are drawn in a fixed number of substreams, whatever the number of workers, so that the same seed gives the
same bits everywhere.

Source: [@phipson2010] (p-values that are never 0: `mechint_core.kernels.resampling.p_value`).
Cost: that of the statistic, per relabelling.
Chunked over: relabellings.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechint_core.parallel import map_parallel
from mechint_core.random import generator

SUBSTREAMS = 8
"""Runs of relabellings that may be made at once."""
ROUNDING = 1e-10
"""Statistics closer than this share of their size are equal: a relabelling that changes nothing counts as a tie."""

Statistic = Callable[[Int[np.ndarray, "sample"]], Float[np.ndarray, "*_"]]
"""Order of the second system's rows -> one number, or one per component. Where processes are used it must pickle."""


def relabelled(
    statistic: Statistic, n_rows: int, *, n_permutations: int, seed: int, word: str
) -> Float[np.ndarray, "draw *_"]:
    """Evaluate `statistic` on random orders of `n_rows` rows, drawn from the stream `word` of `seed`.

    Examples
    --------
    >>> x = np.arange(4.0)
    >>> relabelled(lambda order: np.array([x @ x[order]]), 4, n_permutations=100, seed=0, word="doc").max().item()
    14.0
    """
    counts = [len(part) for part in np.array_split(np.arange(n_permutations), SUBSTREAMS)]
    run = _Run(statistic, n_rows, seed, word)
    return np.concatenate(map_parallel(run, [(i, count) for i, count in enumerate(counts) if count]))


def step_down_p_values(
    observed: Float[np.ndarray, "component"], null: Float[np.ndarray, "draw component"]
) -> Float[np.ndarray, "component"]:
    """Return p-values of tests made in order, each raised to those before it: the family-wise error is then theirs."""
    ties = null >= observed - ROUNDING * np.abs(observed)
    return np.maximum.accumulate((1 + ties.sum(axis=0)) / (1 + len(null)))


@dataclass(frozen=True, slots=True)
class _Run:
    statistic: Statistic
    n_rows: int
    seed: int
    word: str

    def __call__(self, task: tuple[int, int]) -> np.ndarray:
        stream, count = task
        rng = generator(self.seed, self.word, stream)
        return np.stack([self.statistic(rng.permutation(self.n_rows)) for _ in range(count)])
