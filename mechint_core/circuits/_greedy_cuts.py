"""Cut edges one after the other, and keep those whose cut does harm; several are run at once, with the same answer.

    order      e1    e2    e3    e4    e5          run at once, as if every one before it went:
    runs       -1   -1-2  -123  ...                H - {e1}, H - {e1, e2}, H - {e1, e2, e3}, ...
    harm       no    no    yes                     e1, e2 go, e3 stays; what was run after it is run again

Source: [@conmy2023] (the order and the rule).
Cost: one run per edge that something intact leads on from; after an edge that stays, at most `most` - 1 again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from mechint_core.patching import Edge, node_of

Mask = Bool[np.ndarray, "edge"]
Score = Callable[[Bool[np.ndarray, "experiment edge"]], Float[np.ndarray, "experiment sample"]]
"""Masks of the edges that are intact -> the metric of every pair."""


@dataclass(frozen=True, slots=True)
class Cuts:
    """What is left, and what each cut did."""

    kept: Mask
    harm: Float[np.ndarray, "edge sample"]
    """When the edge's turn came; 0 if it led nowhere."""
    n_tested: int
    n_runs: int


@dataclass(frozen=True, slots=True)
class _Turn:
    """An edge whose turn comes, and what is left if it goes, and all tested before it."""

    place: int
    """In the order."""
    left: Mask


def greedy_cuts(
    edges: Sequence[Edge], score: Score, whole: Float[np.ndarray, "sample"], *, sign: float, tau: float, most: int
) -> Cuts:
    """Cut the edges from last to first; one stays if the mean of sign x (score before - score after) is above `tau`.

    Parameters
    ----------
    edges
        Such that an edge comes before those that lead on from its receiver.
    score
        Runs the model.
    whole
        Scores of the whole model.
    sign
        1 if a cut that does harm lowers the score, -1 if it raises it.
    tau
        Harm that is accepted.
    most
        Runs made at once, at most.
    """
    kept, harm, before = np.ones(len(edges), dtype=bool), np.zeros((len(edges), len(whole))), whole
    order = np.arange(len(edges))[::-1]
    place, width, n_tested, n_runs = 0, 1, 0, 0
    while place < len(order):
        turns, kept_if_none, place_if_none = _ahead(edges, order, kept, place, width)
        scores = score(np.array([each.left for each in turns])) if turns else np.empty((0, len(whole)))
        n_runs += len(turns)
        kept, place, width = kept_if_none, place_if_none, min(2 * width, most)
        for turn, after in zip(turns, scores, strict=True):
            edge = order[turn.place]
            harm[edge] = sign * (before - after)
            n_tested += 1
            if harm[edge].mean() > tau:  # it stays; what was run after it assumed that it went
                kept, place, width = turn.left.copy(), turn.place + 1, max(1, width // 4)
                kept[edge] = True
                break
            before = after
    return Cuts(kept, harm, n_tested, n_runs)


def _ahead(
    edges: Sequence[Edge], order: np.ndarray, kept: Mask, place: int, width: int
) -> tuple[list[_Turn], Mask, int]:
    """Return the next `width` edges to test, what is left if all of them go, and where the order goes on then."""
    left, turns = kept.copy(), list[_Turn]()
    leading = {node: 0 for node, _ in edges}
    for (sender, _), here in zip(edges, kept, strict=True):
        leading[sender] += int(here)
    while place < len(order) and len(turns) < width:
        edge = order[place]
        sender, receiver = edges[edge]
        left[edge] = False
        leading[sender] -= 1
        if leading.get(node_of(receiver), 1):  # the output leads nowhere, but is where everything leads
            turns.append(_Turn(place, left.copy()))
        place += 1
    return turns, left, place
