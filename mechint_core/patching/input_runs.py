"""Run experiments on inputs that have no counterpart; the intact model's own run is what they are compared with.

The blocks are those of `PairRuns`, whose clean and corrupted runs are one and the same here. So every metric means
what it means there; kl and distance are taken from the intact run.

Cost: 1 forward of all inputs, beside the experiments.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
from jaxtyping import Float

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.models import to_model
from mechint_core.patching.answers import Answer, needs_target, score
from mechint_core.patching.pair_runs import Block, PairRuns
from mechint_core.patching.pairs import PromptPairs

WORSE_WHEN_LARGER: Final = ("loss", "kl", "distance")


def own_pairs(inputs: np.ndarray, target: np.ndarray | None, foil: np.ndarray | None, metric: str) -> PromptPairs:
    """Return inputs as their own counterparts, checked.

    Raises
    ------
    ShapeError
        If there are fewer than 2 samples, or targets are not one class per sample.
    ConfigurationError
        If the metric needs a target and there is none.
    DegenerateInputError
        If the inputs are not finite.
    """
    if inputs.ndim < 2 or len(inputs) < 2:
        raise ShapeError(f"inputs must have the shape (sample >= 2, ...). Got {inputs.shape}.")
    for each in (target, foil):
        if each is not None and each.shape != inputs.shape[:1]:
            raise ShapeError(f"targets must be one class per sample, ({len(inputs)},). Got shape {each.shape}.")
    if target is None and needs_target(metric):
        raise ConfigurationError(f"the metric {metric} needs a target. Pass one, or use metric='kl' or 'distance'.")
    if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
        raise DegenerateInputError(
            f"inputs must be finite. Got {int((~np.isfinite(inputs)).sum())} NaN or infinite values."
        )
    return PromptPairs(inputs, inputs, target, foil)


def intact_blocks(runs: PairRuns, inputs: PromptPairs, *, caches: int = 1) -> Iterator[Block]:
    """Yield `own_pairs` in blocks of which `caches` sets of activations fit in memory, with those of the intact run."""
    size = runs.block_rows(runs.batch(inputs.clean[:3]), donors=caches)
    for rows in np.array_split(np.arange(len(inputs)), -(-len(inputs) // size)):
        of = inputs.at(rows)
        values, seen = runs.run(of.clean, runs.sites)
        target, foil = (None if each is None else to_model(each, runs.model) for each in (of.target, of.foil))
        answer = Answer(target, foil, values)
        intact = score(values, answer, runs.config.metric)
        yield Block(rows, runs.batch(of.clean), answer, intact, intact, seen, seen)


def damage(
    intact: Float[np.ndarray, "sample"], scores: Float[np.ndarray, "experiment sample"], metric: str
) -> Float[np.ndarray, "experiment sample"]:
    """Return how much worse the answer is: positive whichever way the metric runs; one's own counts as larger, better.

    A logit difference or a probability falls, a loss or a distance rises.
    """
    return scores - intact if metric in WORSE_WHEN_LARGER else intact - scores
