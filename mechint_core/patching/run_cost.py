"""What a set of experiments will cost, before they are run.

    work = sum over passes of  rows x (1 - start / blocks)  +  rows of the clean, corrupted and cached runs

in forwards of one row through the whole model, counting its blocks as all of it. Seconds are those of a few of the
same experiments on a few pairs, in proportion to their work: good to a factor of about 2, since large passes are more
efficient than small ones.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mechint_core.patching.edits import Edit
from mechint_core.patching.pair_runs import Block, PairRuns
from mechint_core.patching.pairs import PromptPairs
from mechint_core.patching.passes import plan_passes
from mechint_core.patching.prefix import Group, Prefix, group_by_start

_PAIRS, _EXPERIMENTS = 8, 24
"""What is tried, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """What experiments on prompt pairs cost."""

    n_experiments: int
    """With those of the control."""
    n_forwards: int
    """Calls of the model."""
    n_rows: int
    """Rows in all of them."""
    whole_rows: float
    """As many rows through the whole model would be as much work: less, where a prefix is not computed again."""
    bytes_held: int
    """Cached activations."""
    seconds: float
    """By the clock, roughly."""

    def __str__(self) -> str:
        return (
            f"{self.n_experiments} experiments: {self.n_forwards} forwards of {self.n_rows} rows, the work of "
            f"{self.whole_rows:.0f} whole ones, {self.bytes_held / 2**20:.0f} MiB of activations, "
            f"about {self.seconds:.2g} s"
        )


def run_cost(
    runs: PairRuns,
    pairs: PromptPairs,
    experiments: Callable[[Block], Sequence[Sequence[Edit]]],
    *,
    control: bool = False,
) -> RunCost:
    """Return what `runs.score_pairs(pairs, experiments)` will cost, having tried a little of it.

    Parameters
    ----------
    runs, pairs, experiments
        As `score_pairs` takes them; use it inside `inference(model)`, too.
    control
        Whether each experiment is made with another pair's activations as well.
    """
    few = runs.block(pairs, np.arange(min(_PAIRS, len(pairs))))
    made = list(experiments(few))
    tried = [made[at] for at in np.unique(np.linspace(0, len(made) - 1, _EXPERIMENTS).astype(int))] if made else []
    runs.score_experiments(few, tried)  # the first run of anything is slow
    started = time.perf_counter()
    runs.score_experiments(few, tried)
    seconds = time.perf_counter() - started
    repeats, donors = (2, 2) if control else (1, 1)
    size = runs.block_rows(few.base, donors=donors)
    blocks = [len(rows) for rows in np.array_split(np.arange(len(pairs)), -(-len(pairs) // size))]
    prefix, rows = runs.prefix(few.base), runs.config.batch_rows
    plans = {n: _Plan.of(prefix, made * repeats, n, rows) for n in set(blocks)}
    sample = _Plan.of(prefix, tried, len(few.rows), rows)
    own = 1 + donors  # the runs that experiments start from, and those they take from
    whole_rows = sum(plans[n].whole_rows + own * n for n in blocks)
    return RunCost(
        n_experiments=len(made) * repeats,
        n_forwards=sum(plans[n].n_forwards + own for n in blocks),
        n_rows=sum(plans[n].n_rows + own * n for n in blocks),
        whole_rows=whole_rows,
        bytes_held=max(blocks) * runs.bytes_per_pair(few.base, donors=donors),
        seconds=seconds * whole_rows / max(sample.whole_rows, 1.0),
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """The passes of experiments on `n` rows."""

    n_forwards: int
    n_rows: int
    whole_rows: float

    @classmethod
    def of(cls, prefix: Prefix | None, experiments: Sequence[Sequence[Edit]], n: int, batch_rows: int) -> "_Plan":
        groups = group_by_start(prefix, [[edit.site for edit in edits] for edits in experiments], n)
        cached = any(group.start for group in groups)
        n_blocks = 1 if prefix is None else len(prefix.chain.blocks)
        n_passes = sum(len(plan_passes(len(group.experiments), n, batch_rows)) for group in groups)
        return cls(
            n_forwards=n_passes + cached,
            n_rows=n * (len(experiments) + cached),
            whole_rows=n * (sum(_work(group, n_blocks) for group in groups) + cached),
        )


def _work(group: Group, n_blocks: int) -> float:
    return len(group.experiments) * (1 - group.start / n_blocks)
