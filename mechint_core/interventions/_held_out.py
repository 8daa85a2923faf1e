"""Keep the pairs that judge a finding apart from those it was made on."""

import numpy as np

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.patching import PromptPairs
from mechint_core.random import generator


def given_pairs(
    clean: np.ndarray | None,
    corrupted: np.ndarray | None,
    target: np.ndarray | None,
    corrupted_target: np.ndarray | None,
    metric: str,
) -> PromptPairs | None:
    """Return held-out pairs, checked, if they are given.

    Raises
    ------
    ConfigurationError
        If only clean or only corrupted inputs are given.
    """
    if clean is None and corrupted is None:
        return None
    if clean is None or corrupted is None:
        raise ConfigurationError("held_out_clean and held_out_corrupted must be given both or not at all. Got one.")
    return PromptPairs.of(clean, corrupted, target, corrupted_target, metric)


def held_out_pairs(
    pairs: PromptPairs, given: PromptPairs | None, *, share: float, seed: int
) -> tuple[PromptPairs, PromptPairs]:
    """Return the pairs to discover on and those to judge on, which share none; equal pairs stay together.

    Raises
    ------
    ConfigurationError
        If given pairs are among those to discover on.
    ShapeError
        If there are fewer than 2 pairs on a side.
    """
    if given is not None:
        shared = pairs.fingerprints() & given.fingerprints()
        if shared:
            raise ConfigurationError(f"held-out pairs must not be discovered on too. Got {len(shared)} shared.")
        return pairs, given
    which = pairs.groups()
    n_different = int(which.max()) + 1
    order = generator(seed, "minimal_circuit", "held out").permutation(n_different)
    judging = np.isin(which, order[: round(share * n_different)])
    if min(judging.sum(), (~judging).sum()) < 2:
        raise ShapeError(
            "there must be at least 2 pairs to discover on, and 2 different ones to judge on. "
            f"Got {int((~judging).sum())} and {int(judging.sum())}. Pass more pairs, or held-out ones."
        )
    return pairs.at(np.flatnonzero(~judging)), pairs.at(np.flatnonzero(judging))
