"""What a model is taken apart into, for experiments on one part at a time.

site        layers.0.mlp              the whole activation (at one position, if one is given)
head        layers.0.attention.1      a head's share of what its attention passes on
position    layers.0.mlp@3            one position
unit        layers.0.mlp.hidden#17    one unit, a neuron
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

from torch import Tensor, nn

from mechint_core.errors import ConfigurationError, NotFoundError, ShapeError
from mechint_core.models import capture, samples_first
from mechint_core.patching import Slice, Usable, attention_heads, usable_sites

Granularity = Literal["site", "head", "position", "unit"]


@dataclass(frozen=True, slots=True)
class NamedPart:
    """One part of the model."""

    label: str
    site: str
    part: Slice


def check_granularity(granularity: str, sites: Sequence[str], position: int | None) -> None:
    """Raise ConfigurationError if the options do not say what the parts are."""
    if granularity not in get_args(Granularity):
        raise ConfigurationError(f"by must be one of {', '.join(get_args(Granularity))}. Got {granularity!r}.")
    if isinstance(sites, str) or not sites:
        raise ConfigurationError(f"sites must be a tuple of at least one glob. Got {sites!r}.")
    if granularity == "position" and position is not None:
        raise ConfigurationError(f"position must be None when every position is a part. Got {position}.")


def named_parts(
    model: nn.Module,
    few: Tensor,
    sites: Sequence[str],
    granularity: Granularity,
    *,
    sample_axis: int,
    position: int | None,
    n_heads: int | None = None,
) -> tuple[Usable, tuple[NamedPart, ...]]:
    """Run the model on `few` inputs, and return its usable sites and its parts, in its order.

    Raises
    ------
    NotFoundError
        If no module matches, none can be patched, or none has heads.
    ShapeError
        If positions are asked for and no site has them.
    """
    if granularity == "head":
        return _heads(model, few, sites, sample_axis, position, n_heads)
    usable = usable_sites(model, few, sites, sample_axis=sample_axis, position=position)
    if granularity == "site":
        return usable, tuple(NamedPart(site, site, Slice(position)) for site in usable.sites)
    with capture(model, usable.sites) as seen:
        model(few)
    shapes = {site: samples_first(seen[site], sample_axis).shape for site in usable.sites}
    if granularity == "unit":
        parts = [
            NamedPart(f"{site}#{unit}", site, Slice(position, slice(unit, unit + 1)))
            for site, shape in shapes.items()
            for unit in range(shape[-1])
        ]
        return usable, tuple(parts)
    parts = [
        NamedPart(f"{site}@{at}", site, Slice(at))
        for site, shape in shapes.items()
        if len(shape) == 3  # (sample, position, unit); an attention pattern is none
        for at in range(shape[1])
    ]
    if not parts:
        raise ShapeError(f"a site must have positions to be taken apart by. Got shapes {[*shapes.values()]}.")
    return usable, tuple(parts)


def one_site(model: nn.Module, few: Tensor, site: str, *, sample_axis: int, position: int | None) -> Usable:
    """Return the one site that `site` names.

    Raises
    ------
    NotFoundError
        If there is no such module, or it cannot be patched.
    ConfigurationError
        If it is a glob that matches several.
    """
    usable = usable_sites(model, few, (site,), sample_axis=sample_axis, position=position)
    if len(usable.sites) > 1:
        raise ConfigurationError(f"site must name one module. Got {site!r}, which matches {', '.join(usable.sites)}.")
    return usable


def _heads(
    model: nn.Module, few: Tensor, globs: Sequence[str], sample_axis: int, position: int | None, n_heads: int | None
) -> tuple[Usable, tuple[NamedPart, ...]]:
    every = attention_heads(model, n_heads=n_heads)
    chosen = [each for each in every if any(fnmatchcase(each.module, glob) for glob in globs)]
    if not chosen:
        raise NotFoundError(
            f"sites must match an attention module that can be taken apart. Got {', '.join(globs)}. "
            f"There are: {', '.join(each.module for each in every) or 'none'}."
        )
    where = tuple(each.site for each in chosen)
    usable = usable_sites(model, few, where, sample_axis=sample_axis, position=position)
    with capture(model, where) as seen:
        model(few)
    parts = [
        NamedPart(each.label(head), each.site, Slice(position, each.units(head, seen[each.site].shape[-1])))
        for each in chosen
        for head in range(each.n_heads)
    ]
    return usable, tuple(parts)
