"""Many interventions in few forward passes.

An experiment is a set of edits made together; it is run on every row of a batch. All (experiment, row) pairs are laid
out in one line and cut into passes of `batch_rows`, so that sixteen experiments on one prompt cost one pass of sixteen
rows, and one experiment on ten thousand prompts costs passes that fit in memory:

    experiment 0   rows 0 1 2 | experiment 1   rows 0 1 2 | ...
    pass 0 ----------------------> pass 1 ---------------------->

Rows must not influence one another, as in every network whose batch normalisation is in eval mode. With `reuse`,
experiments that edit nothing in the first blocks of the model share passes that skip those blocks.

Cost: ceil(experiments x rows / batch_rows) forward passes, or one more for each start.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from mechint_core.errors import NotFoundError, ShapeError
from mechint_core.models import (
    capture,
    count_calls,
    join_rows,
    match_sites,
    samples_first,
    select,
    visited,
)
from mechint_core.patching.edits import Edit
from mechint_core.patching.prefix import Group, Reuse


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a pass: `experiment` made on `rows` of the batch, which are `place` of the pass."""

    experiment: int
    rows: slice
    place: slice


@dataclass(frozen=True, slots=True)
class Usable:
    """The sites that can be patched one by one, and what it takes."""

    sites: tuple[str, ...]
    """In the model's order."""
    shapes: Mapping[str, torch.Size]
    """Of each site's activation of the batch, samples first; in the order they run."""
    n_skipped: int
    """Modules that a glob matches but that do not give one activation per sample, once per forward."""
    bytes_per_row: int
    """Memory of one sample's activations at all sites."""


def run_experiments(
    model: nn.Module,
    batch: Tensor,
    experiments: Sequence[Sequence[Edit]],
    *,
    batch_rows: int,
    sample_axis: int,
    reuse: Reuse | None = None,
) -> Iterator[tuple[list[Piece], object]]:
    """Run the model on `batch` once per experiment, packed; yield what each pass holds, and the model's output.

    Edits of one experiment at one site are made in their order. The passes come in the order of their starts.
    """
    groups = [Group(0, tuple(range(len(experiments))))] if reuse is None else reuse.groups
    for start, pieces in plan_grouped(groups, batch.shape[sample_axis], batch_rows):
        rows = [batch[select(piece.rows, None, sample_axis)] for piece in pieces]
        changes: dict[str, list[tuple[Piece, Edit]]] = {}
        for piece in pieces:
            for edit in experiments[piece.experiment]:
                changes.setdefault(edit.site, []).append((piece, edit))
        with ExitStack() as hooks:
            if reuse is not None:
                hooks.enter_context(reuse.skipping(start, [piece.rows for piece in pieces]))
            for site, here in changes.items():
                hooks.enter_context(visited(model, site, partial(_changed, here, sample_axis)))
            output = model(join_rows(rows, sample_axis))
        yield pieces, output


def plan_grouped(groups: Sequence[Group], n_rows: int, batch_rows: int) -> Iterator[tuple[int, list[Piece]]]:
    """Yield the passes of each group, and the block it starts at."""
    for group in groups:
        for pieces in plan_passes(len(group.experiments), n_rows, batch_rows):
            yield group.start, [replace(piece, experiment=group.experiments[piece.experiment]) for piece in pieces]


def plan_passes(n_experiments: int, n_rows: int, batch_rows: int) -> list[list[Piece]]:
    """Cut experiments x rows, laid out in one line, into passes of `batch_rows`."""
    total = n_experiments * n_rows
    return [_pieces(start, min(start + batch_rows, total), n_rows) for start in range(0, total, batch_rows)]


def usable_sites(
    model: nn.Module, batch: Tensor, globs: Sequence[str], *, sample_axis: int, position: int | None
) -> Usable:
    """Run the model on a small batch to learn which of the modules that `globs` match can be patched.

    Raises
    ------
    NotFoundError
        If a glob matches nothing, a module named without a wildcard cannot be patched, or none can.
    """
    matched = match_sites(model, globs)
    with count_calls(model, matched) as calls:
        model(batch)
    once = [site for site in matched if calls[site] == 1]
    with capture(model, once) as seen:
        model(batch)
    n_rows = batch.shape[sample_axis]
    given = {site: samples_first(activation, sample_axis).shape for site, activation in seen.items()}
    shapes = {site: each for site, each in given.items() if each[0] == n_rows and _has_position(each, position)}
    sites = tuple(site for site in once if site in shapes)
    named = [site for site in matched if site in globs and site not in sites]
    if named or not sites:
        raise NotFoundError(_unusable(named or list(matched), sites, position))
    size = sum(seen[site].numel() * seen[site].element_size() for site in sites)
    return Usable(sites, shapes, len(matched) - len(sites), -(-size // n_rows))


def _changed(changes: Sequence[tuple[Piece, Edit]], sample_axis: int, activation: Tensor) -> Tensor:
    """Return the activation of a pass, in the model's layout, with every piece changed by its edits."""
    made = activation.clone()
    rows = samples_first(made, sample_axis)  # a view
    for piece, edit in changes:
        here = rows[piece.place]
        changed = edit.apply(here, piece.rows)
        if changed.shape != here.shape:
            raise ShapeError(
                f"what is written at {edit.site!r} must have its shape, {tuple(here.shape)}. "
                f"Got {tuple(changed.shape)}."
            )
        rows[piece.place] = changed
    return made


def _pieces(start: int, stop: int, n_rows: int) -> list[Piece]:
    pieces: list[Piece] = []
    at = start
    while at < stop:
        experiment, row = divmod(at, n_rows)
        count = min(n_rows - row, stop - at)
        pieces.append(Piece(experiment, slice(row, row + count), slice(at - start, at - start + count)))
        at += count
    return pieces


def _has_position(shape: torch.Size, position: int | None) -> bool:
    return position is None or (len(shape) > 2 and -shape[1] <= position < shape[1])


def _unusable(sites: list[str], usable: tuple[str, ...], position: int | None) -> str:
    at = "" if position is None else f" with a position {position}"
    others = f" Sites that do: {', '.join(usable)}." if usable else ""
    return (
        f"a site must give one activation per sample{at}, once per forward. Got {', '.join(sites)}: it does not run, "
        f"runs several times, or has another shape.{others}"
    )
