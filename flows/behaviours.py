"""A behaviour as prompt pairs: made from a data set where it has none, and split before anything looks at them.

    discovery   the pairs on which a circuit is looked for
    held out    the pairs on which it is judged

No pair is in both, turned round or not: pairs that are there twice are kept once, a pair and its reverse stay together,
and pairs whose change changes no answer are left out.
"""

from collections.abc import Mapping

import numpy as np

from flows.sections import CircuitSection, CorruptionSection
from mechint_core.errors import ConfigurationError
from mechint_core.patching import PromptPairs
from mechint_core.random import generator

Pairs = dict[str, np.ndarray]
FEWEST = 4
"""Pairs in each set: fewer have no interval worth the name."""


def prompt_sets(section: CircuitSection, arrays: Mapping[str, np.ndarray]) -> tuple[Pairs, Pairs]:
    """Return the discovery and the held-out pairs: `clean`, `corrupted` and, where they are known, their targets.

    Raises
    ------
    ConfigurationError
        If fields are missing or do not fit, or fewer than 8 different pairs are left.
    """
    given = {role: _field(source, arrays, section.name, role) for role, source in section.sources.items()}
    pairs = given if section.corruption is None else _corrupted(given, section.corruption)
    clean, corrupted = pairs["clean"], pairs["corrupted"]
    if clean.shape != corrupted.shape or clean.ndim < 2:
        raise ConfigurationError(
            f"circuits: clean and corrupted of {section.name} must have one shape, (sample, ...). "
            f"Got {clean.shape} and {corrupted.shape}."
        )
    kept = _different(pairs)
    which = PromptPairs(clean[kept], corrupted[kept]).groups()
    n_groups = len(np.unique(which))
    order = generator(section.seed, "behaviour", "held out").permutation(n_groups)
    judging = np.isin(which, order[: round(section.held_out * n_groups)])
    if min(judging.sum(), (~judging).sum()) < FEWEST:
        raise ConfigurationError(
            f"circuits: {section.name} must have at least {FEWEST} pairs to look at and {FEWEST} held out, all "
            f"different and with an answer that changes. Got {len(kept)} in all, of {len(clean)} rows."
        )
    return _at(pairs, kept[~judging]), _at(pairs, kept[judging])


def _corrupted(given: Pairs, how: CorruptionSection) -> Pairs:
    """Give each sample another one's values, at some positions or at all; the other must have another answer."""
    inputs, target = given["clean"], given.get("target")
    draws = generator(how.seed, "behaviour", "corruption")
    rows = draws.permutation(len(inputs))[: how.n_pairs]
    donors = draws.integers(0, len(inputs), size=len(rows))
    clean, corrupted = inputs[rows], inputs[rows].copy()
    if how.positions:
        if inputs.ndim < 2 or max(how.positions) >= inputs.shape[1] or min(how.positions) < -inputs.shape[1]:
            raise ConfigurationError(
                f"corruption.positions must be positions of the inputs, which have shape {inputs.shape}. "
                f"Got {how.positions}."
            )
        corrupted[:, how.positions] = inputs[donors][:, how.positions]
    else:
        corrupted = inputs[donors]
    made = {"clean": clean, "corrupted": corrupted}
    if target is None:
        return made
    answers = _answers(inputs, target, corrupted)
    return made | {"target": target[rows]} | ({} if answers is None else {"corrupted_target": answers})


def _answers(inputs: np.ndarray, target: np.ndarray, asked: np.ndarray) -> np.ndarray | None:
    """Look up the answers to inputs that the data set may hold; None if it lacks some."""
    known = {row.tobytes(): answer for row, answer in zip(np.ascontiguousarray(inputs), target, strict=True)}
    found = [known.get(row.tobytes()) for row in np.ascontiguousarray(asked)]
    return None if any(each is None for each in found) else np.asarray(found, dtype=target.dtype)


def _different(pairs: Pairs) -> np.ndarray:
    """Return the rows of pairs that differ from each other, and in what they ask and what is answered."""
    flat = np.concatenate([each.reshape(len(each), -1) for each in (pairs["clean"], pairs["corrupted"])], axis=1)
    _, first = np.unique(flat, axis=0, return_index=True)
    half = flat.shape[1] // 2
    changes = (flat[:, :half] != flat[:, half:]).any(axis=1)
    if "target" in pairs and "corrupted_target" in pairs:
        changes &= pairs["target"] != pairs["corrupted_target"]
    return np.sort(first[changes[first]])


def _field(source: str, arrays: Mapping[str, np.ndarray], name: str, role: str) -> np.ndarray:
    field = source.partition(".")[2]
    if field not in arrays:
        raise ConfigurationError(f"circuits: {role} of {name}: {source!r} is not there. There are {', '.join(arrays)}.")
    return arrays[field]


def _at(pairs: Pairs, rows: np.ndarray) -> Pairs:
    return {role: each[rows] for role, each in pairs.items()}
