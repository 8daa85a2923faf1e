"""What a model is taken apart into, for experiments on one part at a time.

    site        layers.0.mlp              a module's whole activation (at one position, if one is given)
    head        layers.0.attention.1      a head's share of what its attention passes on
    position    layers.0.mlp@3            one position of it
    unit        layers.0.mlp.hidden#17    one unit of it, a neuron

Globs over module names choose the components. By head, a glob names single heads too, or an attention for all of its
heads; of the other modules, those that are no part of an attention stay whole, or (`heads_only`) none is a component.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

from torch import Size, Tensor, nn

from mechint_core.errors import ConfigurationError, NotFoundError, ShapeError
from mechint_core.models import split_site
from mechint_core.patching.heads import AttentionHeads, attention_heads
from mechint_core.patching.parts import Slice
from mechint_core.patching.passes import usable_sites

Granularity = Literal["site", "head", "position", "unit"]


@dataclass(frozen=True, slots=True)
class Component:
    """A part of a site's activation, with a name."""

    name: str
    site: str
    part: Slice
    step: int
    """When its site runs."""

    def before(self, other: "Component") -> bool:
        """Say whether this runs first, so that `other` may depend on it."""
        return self.step < other.step


@dataclass(frozen=True, slots=True)
class Components:
    """What the globs chose."""

    parts: tuple[Component, ...]
    """In the model's order: a block before the modules in it."""
    n_skipped: int
    """Modules that a glob matches but that do not give one activation per sample, once per forward."""
    bytes_per_row: int
    """Memory of one sample's activations at all sites."""

    @property
    def names(self) -> tuple[str, ...]:
        """What they are called."""
        return tuple(each.name for each in self.parts)

    @property
    def sites(self) -> tuple[str, ...]:
        """Where they are."""
        return tuple(dict.fromkeys(each.site for each in self.parts))

    @property
    def as_they_run(self) -> tuple[Component, ...]:
        """The parts in the order of one forward pass: none depends on what runs later."""
        return tuple(sorted(self.parts, key=lambda each: each.step))


def check_components(by: str, position: int | None = None, **globs: Sequence[str]) -> None:
    """Raise ConfigurationError if the options do not say what the components are."""
    if by not in get_args(Granularity):
        raise ConfigurationError(f"by must be one of {', '.join(get_args(Granularity))}. Got {by!r}.")
    if by == "position" and position is not None:
        raise ConfigurationError(f"position must be None when every position is a part. Got {position}.")
    for name, each in globs.items():
        if isinstance(each, str) or not each:
            raise ConfigurationError(f"{name} must be a tuple of at least one glob. Got {each!r}.")


def find_components(
    model: nn.Module,
    batch: Tensor,
    globs: Sequence[str],
    *,
    by: Granularity,
    sample_axis: int,
    position: int | None = None,
    n_heads: int | None = None,
    heads_only: bool = False,
) -> Components:
    """Run the model on a small batch to learn which components the globs choose, and when each of them runs.

    Parameters
    ----------
    model
        Any module.
    batch
        A few inputs, in the model's layout.
    globs
        Over module names; by head, over names of heads too.
    by
        What is a component.
    sample_axis
        Where the model keeps its samples.
    position
        Components are their sites' activations at this position; None: at all of them.
    n_heads
        Heads of each attention, where the model does not say.
    heads_only
        By head: whether modules outside attention are left out, rather than being components as they are, whole.

    Raises
    ------
    NotFoundError
        If a glob matches nothing, a module named without a wildcard cannot be changed, or there is no component.
    ShapeError
        If positions are asked for and no site has them.
    ConfigurationError
        If an attention module does not say how many heads it has.
    """
    heads = attention_heads(model, n_heads=n_heads) if by == "head" else ()
    chosen = [(each, head) for each in heads for head in range(each.n_heads) if _names_head(each, head, globs)]
    if heads_only and by == "head" and not chosen:
        raise NotFoundError(_no_heads(globs, heads))
    others = () if heads_only and by == "head" else _other_globs(model, globs, heads, chosen)
    usable = usable_sites(
        model,
        batch,
        (*others, *dict.fromkeys(each.site for each, _ in chosen)),
        sample_axis=sample_axis,
        position=position,
    )
    steps = {site: step for step, site in enumerate(usable.shapes)}
    parts: list[Component] = []
    for site in usable.sites:
        shape, here = usable.shapes[site], [each for each in chosen if each[0].site == site]
        if here:
            named = ((each.label(head), Slice(position, each.units(head, shape[-1]))) for each, head in here)
        elif _inside(split_site(site)[0], heads):
            continue
        else:
            named = _taken_apart(site, shape, by, position)
        parts += [Component(name, site, part, steps[site]) for name, part in named]
    if not parts:
        raise _nothing_left(by, globs, list(usable.shapes.values()))
    return Components(tuple(parts), usable.n_skipped, usable.bytes_per_row)


def find_site(model: nn.Module, batch: Tensor, site: str, *, sample_axis: int, position: int | None) -> Components:
    """Return the one site that `site` names.

    Raises
    ------
    NotFoundError
        If there is no such module, or it cannot be changed.
    ConfigurationError
        If it is a glob that matches several.
    """
    found = find_components(model, batch, (site,), by="site", sample_axis=sample_axis, position=position)
    if len(found.parts) > 1:
        raise ConfigurationError(f"site must name one module. Got {site!r}, which matches {', '.join(found.names)}.")
    return found


def read_place(label: str) -> tuple[str, int | None]:
    """Take `name` or `name@position` apart.

    Raises
    ------
    ConfigurationError
        If it is neither.
    """
    name, at, position = label.partition("@")
    if not name or (at and not position.lstrip("-").isdigit()):
        raise ConfigurationError(f"a site must be a module's name, or name@position. Got {label!r}. Set config.site.")
    return name, int(position) if at else None


def _taken_apart(site: str, shape: Size, by: Granularity, position: int | None) -> Iterator[tuple[str, Slice]]:
    """Yield the names of a site's components, and what they are of its activation."""
    match by:
        case "unit":
            yield from ((f"{site}#{unit}", Slice(position, slice(unit, unit + 1))) for unit in range(shape[-1]))
        case "position":
            if len(shape) == 3:  # (sample, position, unit); an attention pattern is none
                yield from ((f"{site}@{at}", Slice(at)) for at in range(shape[1]))
        case "site" | "head":
            yield site, Slice(position)


def _other_globs(
    model: nn.Module,
    globs: Sequence[str],
    heads: Sequence[AttentionHeads],
    chosen: Sequence[tuple[AttentionHeads, int]],
) -> tuple[str, ...]:
    """Return the globs that choose modules: all but those that name heads and nothing outside attention."""
    outside = [name for name, _ in model.named_modules() if name and not _inside(name, heads)]
    return tuple(
        glob for glob in globs if _matches(outside, glob) or not any(_names_head(*each, [glob]) for each in chosen)
    )


def _names_head(heads: AttentionHeads, head: int, globs: Sequence[str]) -> bool:
    return any(_matches((heads.module, heads.label(head)), glob) for glob in globs)


def _matches(names: Sequence[str], glob: str) -> bool:
    return any(fnmatchcase(name, split_site(glob)[0]) for name in names)


def _inside(name: str, heads: Sequence[AttentionHeads]) -> bool:
    return any(name == each.module or name.startswith(f"{each.module}.") for each in heads)


def _no_heads(globs: Sequence[str], heads: Sequence[AttentionHeads]) -> str:
    there = ", ".join(each.module for each in heads) or "none"
    return f"sites must match an attention module that can be taken apart. Got {', '.join(globs)}. There are: {there}."


def _nothing_left(by: Granularity, globs: Sequence[str], shapes: Sequence[Size]) -> ShapeError | NotFoundError:
    if by == "position":
        return ShapeError(
            f"a site must have positions to be taken apart by. Got shapes {[tuple(each) for each in shapes]}."
        )
    return NotFoundError(f"by head, sites must be heads or lie outside attention. Got {', '.join(globs)}, inside it.")
