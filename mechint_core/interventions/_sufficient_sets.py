"""Look for the smallest set that is enough, when all that can be asked is how good a given set is.

    exhaustive   every set, size by size, until one of a size is enough: no smaller one is, and none is overlooked
    greedy       take away what is missed least while enough is left; from nothing, add what helps most until it is
                 enough, then take away; go on with the smaller; trade two members for one outside while that is enough

Greedy answers can be too large: a set that is enough only as a whole looks useless piece by piece when adding, and
pieces that back each other up look useless when taking away the first.

Cost: exhaustive at most 2^n sets; greedy about n^2 / 2 each way, and at most `max_swaps` per trade.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from jaxtyping import Float

Subset = frozenset[int]
Judge = Callable[[Sequence[Subset]], tuple[Float[np.ndarray, "row"], Float[np.ndarray, "row"]]]
"""Says of each set how good it is, and how good it is at least."""


@dataclass(frozen=True, slots=True)
class Found:
    """A set that is enough."""

    members: Subset
    n_alternatives: int
    """Other sets of this size that are enough too, if all were looked at; otherwise 0."""
    minimal: bool
    """Whether no smaller set is enough."""


@dataclass(frozen=True, slots=True)
class Search:
    """Among `n` things, the whole of which is enough."""

    judge: Judge
    n: int
    enough: float

    def exhaustive(self) -> Found:
        """Look at every set, the smallest first."""
        for size in range(1, self.n):
            best, count = self._best(map(frozenset, combinations(range(self.n), size)))
            if best is not None:
                return Found(best, count - 1, minimal=True)
        return Found(frozenset(range(self.n)), 0, minimal=True)

    def greedy(self, max_swaps: int, rng: np.random.Generator) -> Found:
        """Take away, add, and trade."""
        found = min(self._shrunk(frozenset(range(self.n))), self._shrunk(self._grown()), key=len)
        while (traded := self._best(self._trades(found, max_swaps, rng))[0]) is not None:
            found = self._shrunk(traded)
        return Found(found, 0, minimal=len(found) == 1)

    def _shrunk(self, members: Subset) -> Subset:
        """Take away what is missed least, while what is left is enough."""
        while (smaller := self._best(members - {each} for each in sorted(members))[0]) is not None:
            members = smaller
        return members

    def _grown(self) -> Subset:
        """From nothing, add what helps most, until it is enough."""
        members: Subset = frozenset()
        while len(members) < self.n:
            larger = [members | {each} for each in range(self.n) if each not in members]
            value, low = self.judge(larger)
            at = int(value.argmax())
            members = larger[at]
            if low[at] >= self.enough:
                break
        return members

    def _trades(self, members: Subset, max_swaps: int, rng: np.random.Generator) -> list[Subset]:
        outside = [each for each in range(self.n) if each not in members]
        trades = [members - set(out) | {one} for out in combinations(sorted(members), 2) for one in outside]
        if len(trades) <= max_swaps:
            return trades
        return [trades[each] for each in rng.choice(len(trades), size=max_swaps, replace=False)]

    def _best(self, subsets: Iterable[Subset]) -> tuple[Subset | None, int]:
        """Return the best of the sets that are enough, if any is, and how many are; the empty set never is."""
        candidates = [each for each in subsets if each]
        if not candidates:
            return None, 0
        value, low = self.judge(candidates)
        enough = np.flatnonzero(low >= self.enough)
        if not enough.size:
            return None, 0
        return candidates[enough[value[enough].argmax()]], int(enough.size)


def random_sets(n: int, members: Subset, n_sets: int, draws: np.random.Generator) -> list[Subset]:
    """Return other sets as large as this one, each once: all, if they are few."""
    size = len(members)
    if comb(n, size) - 1 <= n_sets:
        return [each for each in map(frozenset, combinations(range(n), size)) if each != members]
    chosen: dict[Subset, None] = {}
    while len(chosen) < n_sets:
        one = frozenset(draws.choice(n, size=size, replace=False).tolist())
        if one != members:
            chosen[one] = None
    return list(chosen)
