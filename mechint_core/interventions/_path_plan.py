"""Which paths there are between some components of a model, in a fixed order of rows.

row s R + r      from sender s through receiver r alone; the answer is the last receiver, if it is one
row S R + s      from sender s through all R receivers together, if there are several
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from mechint_core.patching import (
    OUTPUT,
    Block,
    Component,
    Components,
    Granularity,
    PairRuns,
    Path,
    find_components,
    linear_path_effects,
    score_paths,
)


@dataclass(frozen=True, slots=True)
class PathPlan:
    """Which components there are, and which first steps paths take. Make it with `of`."""

    senders: tuple[Component, ...]
    receivers: tuple[Component, ...]
    """Without the answer."""
    columns: tuple[str, ...]
    """Names of the receivers, the answer's last if it is one."""
    held: tuple[str, ...]
    """Sites of all components."""
    bytes_per_row: int
    """Of the senders' activations."""
    n_skipped: int

    @classmethod
    def of(
        cls,
        model: nn.Module,
        few: Tensor,
        globs: tuple[Sequence[str], Sequence[str], Sequence[str]],
        *,
        by: Granularity,
        position: int | None,
        sample_axis: int,
    ) -> "PathPlan":
        """Find the components that globs over senders, receivers and mediators choose, and when each runs."""

        def find(chosen: Sequence[str], position: int | None = None) -> Components:
            return find_components(model, few, chosen, by=by, sample_axis=sample_axis, position=position)

        to_answer = OUTPUT in globs[1]
        modules = tuple(glob for glob in globs[1] if glob != OUTPUT)
        everything = find((*globs[0], *modules, *globs[2]))
        steps = {each.site: each.step for each in everything.parts}
        senders, receivers = find(globs[0], position), find(modules).as_they_run if modules else ()
        return cls(
            senders=tuple(replace(each, step=steps[each.site]) for each in senders.as_they_run),
            receivers=tuple(replace(each, step=steps[each.site]) for each in receivers),
            columns=(*(each.name for each in receivers), *([OUTPUT] if to_answer else [])),
            held=everything.sites,
            bytes_per_row=senders.bytes_per_row,
            n_skipped=everything.n_skipped,
        )

    @property
    def n_single(self) -> int:
        """Rows of paths through one receiver."""
        return len(self.senders) * len(self.columns)

    @property
    def n_rows(self) -> int:
        """All rows."""
        return self.n_single + (len(self.senders) if len(self.columns) > 1 else 0)

    def paths(self) -> dict[int, Path]:
        """Return the paths that exist by their row: none leads to a receiver that runs before its sender."""
        paths: dict[int, Path] = {}
        to_answer = len(self.columns) > len(self.receivers)
        for s, sender in enumerate(self.senders):
            first = s * len(self.columns)
            after = {first + r: each for r, each in enumerate(self.receivers) if sender.before(each)}
            paths |= {row: Path(sender, (each,), to_answer=False) for row, each in after.items()}
            if to_answer:
                paths[first + len(self.receivers)] = Path(sender, (), to_answer=True)
            if len(self.columns) > 1 and (after or to_answer):
                paths[self.n_single + s] = Path(sender, tuple(after.values()), to_answer=to_answer)
        return paths


def path_scores(runs: PairRuns, block: Block, plan: PathPlan, *, linearised: bool) -> Float[np.ndarray, "path sample"]:
    """Return the metric of every pair on every path, by row; a path that does not exist changes nothing."""
    base = block.clean if runs.noising else block.corrupted
    scores = np.tile(base, (plan.n_rows, 1))
    if linearised:
        effects = linear_path_effects(runs, block, plan.senders, plan.receivers, plan.held)[:, : len(plan.columns)]
        joint = effects.sum(axis=1)  # every path has one first step, and derivatives add up
        rows = np.concatenate([effects.reshape(-1, len(base)), joint])
        return scores + rows[: plan.n_rows]
    paths = plan.paths()
    if paths:
        scores[list(paths)] = score_paths(runs, block, list(paths.values()), plan.held)
    return scores
