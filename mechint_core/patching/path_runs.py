"""Run experiments on paths: a change that some components see, and that is hidden from the others.

Two runs go side by side in one pass. Nothing has changed in the first; in the second the sender has. At every
component both runs then go on with one value, that of the run which the component may see:

    sender      first: as it was          second: changed
    receiver    both: what the second run gives
    others      both: what the first run gives

So the change enters the receivers, and what they change in turn is seen by everything after them. What is no
component (residual sums, norms) is computed in each run anew. The answer is read in the first run, or in the second
if the change reaches it directly.

Source: [@wang2023], [@goldowskydill2023].
Cost: 2 forwards of all rows per path, packed into passes of `batch_rows`.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mechint_core.models import join_rows, samples_first, select, visited
from mechint_core.patching.answers import score
from mechint_core.patching.components import Component
from mechint_core.patching.pair_runs import Block, PairRuns
from mechint_core.patching.passes import Piece, plan_passes


@dataclass(frozen=True, slots=True)
class Path:
    """All paths whose first step is from the sender to one of the receivers."""

    sender: Component
    receivers: tuple[Component, ...]
    to_answer: bool
    """Whether the step from the sender to the answer, past all components, is one of them."""


def score_paths(
    runs: PairRuns, block: Block, paths: Sequence[Path], components: Sequence[str]
) -> Float[np.ndarray, "experiment sample"]:
    """Return the metric of every row under each path experiment.

    `components` are the sites where both runs go on with one value. Senders' donors are the block's.
    """
    axis, n_rows = runs.config.sample_axis, len(block.rows)
    scores = np.empty((len(paths), n_rows))
    for pieces in plan_passes(len(paths), n_rows, max(1, runs.config.batch_rows // 2)):
        rows = [block.base[select(piece.rows, None, axis)] for piece in pieces]
        here = [(piece, paths[piece.experiment]) for piece in pieces]
        senders = [path.sender.site for _, path in here]
        with ExitStack() as hooks:
            for site in dict.fromkeys([*components, *senders]):
                shared = site in components
                hooks.enter_context(visited(runs.model, site, partial(_side_by_side, here, block, site, shared, axis)))
            values = runs.read(runs.model(join_rows(rows + rows, axis)))
        half = pieces[-1].place.stop
        for piece, path in here:
            place = _shifted(piece.place, half) if path.to_answer else piece.place
            scores[piece.experiment, piece.rows] = score(values[place], block.answer.of(piece.rows), runs.config.metric)
    return scores


def _side_by_side(
    paths: Sequence[tuple[Piece, Path]], block: Block, site: str, shared: bool, sample_axis: int, activation: Tensor
) -> Tensor:
    """Return a site's activation in both runs, as the head of this file says."""
    made = activation.clone()
    first, second = samples_first(made, sample_axis).chunk(2)  # views
    for piece, path in paths:
        rows = piece.place
        if site == path.sender.site:
            donor = block.donor_activations[site][piece.rows]
            second[rows] = path.sender.part.put(first[rows], donor)
        elif shared:
            for receiver in path.receivers:
                if receiver.site == site:
                    first[rows] = receiver.part.put(first[rows], second[rows])
            second[rows] = first[rows]
    return made


def _shifted(place: slice, by: int) -> slice:
    return slice(place.start + by, place.stop + by)
