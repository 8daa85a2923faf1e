"""Change what a model computes: write values into activations by hooks that are always removed.

    with patched(model, [Patch("layers.0.mlp", values, selection=(slice(0, 8),))]):
        output = model(inputs)

The counterpart of `capture`, with the same rule for which tensor of an output is the activation. A patch writes into a
copy: neither its values nor the module's own output change, whatever later operations do in place.

Cost: a copy of each patched activation.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import EllipsisType

import torch
from torch import Tensor, nn

from mechint_core.errors import ShapeError
from mechint_core.models.hooks import visited

Selection = tuple[int | slice | Tensor | EllipsisType, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """Values to write into part of one site's activation."""

    site: str
    values: Tensor
    """Of the shape that `selection` selects."""
    selection: Selection = ()
    """Index into the activation, in the model's own layout; () is all of it."""


@contextmanager
def patched(model: nn.Module, patches: Sequence[Patch]) -> Generator[None]:
    """Write `patches` into every forward of this block; at one site, in their order.

    Raises
    ------
    NotFoundError
        If the model has no such module, or its output holds no activation.
    ShapeError
        During the call of the model, if values do not have the shape of their selection.
    """
    by_site: dict[str, list[Patch]] = {}
    for patch in patches:
        by_site.setdefault(patch.site, []).append(patch)
    with ExitStack() as hooks:
        for site, here in by_site.items():
            hooks.enter_context(visited(model, site, partial(_written, here)))
        yield


@contextmanager
def rewritten(model: nn.Module, site: str, rewrite: Callable[[Tensor], Tensor]) -> Generator[None]:
    """Let `rewrite` decide what `site` gives, from what it computed, in every forward of this block.

    Gradients pass. The activation comes in the model's own layout and must keep its shape.

    Raises
    ------
    NotFoundError
        If the model has no such module, or its output holds no activation.
    ShapeError
        During the call of the model, if the shape changes.
    """
    with visited(model, site, partial(_checked, site, rewrite)):
        yield


def select(rows: slice, position: int | None, sample_axis: int) -> Selection:
    """Index `rows` of the samples, and one position if given, of an activation in the model's layout.

    Samples and positions are the first two axes, samples first unless `sample_axis` is 1.
    """
    positions = slice(None) if position is None else position
    if sample_axis == 0:
        return (rows,) if position is None else (rows, positions)
    return (positions, rows)


def _checked(site: str, rewrite: Callable[[Tensor], Tensor], activation: Tensor) -> Tensor:
    made = rewrite(activation)
    if made.shape != activation.shape:
        raise ShapeError(
            f"what replaces {site!r} must have its shape, {tuple(activation.shape)}. Got {tuple(made.shape)}."
        )
    return made


def _written(patches: Sequence[Patch], activation: Tensor) -> Tensor:
    activation = activation.clone()
    for patch in patches:
        selected = activation[patch.selection]
        if selected.shape != patch.values.shape:
            raise ShapeError(
                f"the patch at {patch.site!r} must have the shape of what it replaces, {tuple(selected.shape)}. "
                f"Got {tuple(patch.values.shape)}."
            )
        activation[patch.selection] = patch.values.to(activation)
    return activation


def join_rows(tensors: Sequence[Tensor], sample_axis: int) -> Tensor:
    """Join tensors along the axis that holds samples."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=sample_axis)
