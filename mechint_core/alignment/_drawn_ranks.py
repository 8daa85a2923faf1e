"""Mid-ranks of samples in which every value occurs some number of times, for many sets of values sorted once.

    rank of value p = (values below, each as often as it occurs) + (how often its ties occur + 1) / 2

Source: [@kendall1990] (ranks with ties).
Cost: one sort per set of values; then one pass over the sorted values per draw.
Chunked over: nothing.
"""

from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Float, Int
from numba import njit


@dataclass(frozen=True, slots=True)
class DrawnRanks:
    """Sets of values, sorted, that can be ranked with any multiplicities."""

    order: Int[np.ndarray, "rdm pair"]
    last: Bool[np.ndarray, "rdm pair"]
    """Where a run of equal values ends, in that order."""

    @classmethod
    def of(cls, values: Float[np.ndarray, "rdm pair"]) -> "DrawnRanks":
        """Sort each set and find its ties."""
        order = np.argsort(values, axis=1, kind="stable")
        rising = np.diff(np.take_along_axis(values, order, axis=1), axis=1) > 0
        return cls(order, np.concatenate([rising, np.ones((len(values), 1), np.bool_)], axis=1))

    def __call__(self, times: Float[np.ndarray, "pair"]) -> Float[np.ndarray, "rdm pair"]:
        """Return the ranks less their mean, where value p occurs `times[p]` times."""
        return _centred_ranks(self.order, self.last, times)


@no_type_check
@njit(cache=True, nogil=True)
def _centred_ranks(order, last, times):
    middle = (times.sum() + 1) / 2
    ranks = np.empty(order.shape)
    for k in range(order.shape[0]):
        below, mass, start = 0.0, 0.0, 0
        for q in range(order.shape[1]):
            mass += times[order[k, q]]
            if last[k, q]:
                rank = below + (mass + 1) / 2 - middle
                for tied in range(start, q + 1):
                    ranks[k, order[k, tied]] = rank
                below += mass
                mass = 0.0
                start = q + 1
    return ranks
