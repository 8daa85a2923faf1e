"""The components of a model that are changed one by one: sites, attention heads or units, in the order they run.

    site    every module that a glob matches, whole
    head    the same, but attention modules head by head; a glob may name heads: "layers.*.attention.1"
    unit    every coordinate of every module that a glob matches: "layers.0.mlp.hidden#17"

The order is that of one forward pass: what has run cannot depend on what runs later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal, get_args

from torch import Tensor, nn

from mechint_core.errors import ConfigurationError
from mechint_core.models import capture, split_site
from mechint_core.patching.heads import AttentionHeads, attention_heads
from mechint_core.patching.parts import Slice
from mechint_core.patching.passes import Usable, usable_sites

Granularity = Literal["site", "head", "unit"]
GRANULARITIES: Final = get_args(Granularity)


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
    """In the order they run."""
    sites: tuple[str, ...]
    """Where they are."""
    n_skipped: int
    """Modules that a glob matches but that do not give one activation per sample, once per forward."""
    bytes_per_row: int
    """Memory of one sample's activations at all sites."""


def check_granularity(by: str) -> None:
    """Raise ConfigurationError unless the granularity is one of ours."""
    if by not in GRANULARITIES:
        raise ConfigurationError(f"by must be one of {', '.join(GRANULARITIES)}. Got {by!r}.")


def check_globs(**globs: Sequence[str]) -> None:
    """Raise ConfigurationError unless each is a tuple of at least one glob."""
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
) -> Components:
    """Run the model on a small batch to learn which components the globs choose, and when each of them runs.

    With `position`, the components are their sites' activations at this position.

    Raises
    ------
    NotFoundError
        If a glob matches nothing, a module named without a wildcard cannot be changed, or none can.
    ConfigurationError
        If an attention module does not say how many heads it has.
    """
    heads = attention_heads(model) if by == "head" else ()
    chosen = [(each, head) for each in heads for head in range(each.n_heads) if _names_head(each, head, globs)]
    outside = [name for name, _ in model.named_modules() if name and not _inside(name, heads)]
    wholes = [
        glob for glob in globs if _matches(outside, glob) or not any(_names_head(*each, [glob]) for each in chosen)
    ]
    usable = [
        usable_sites(model, batch, each, sample_axis=sample_axis, position=position)
        for each in (wholes, list(dict.fromkeys(each.site for each, _ in chosen)))
        if each
    ]
    found = [site for each in usable for site in each.sites]
    with capture(model, found) as seen:
        model(batch)
    parts: list[Component] = []
    for step, (site, activation) in enumerate(seen.items()):
        n_units, here = activation.shape[-1], [each for each in chosen if each[0].site == site]
        if by == "unit":
            parts += [Component(f"{site}#{u}", site, Slice(position, slice(u, u + 1)), step) for u in range(n_units)]
        elif here:
            parts += [
                Component(each.label(head), site, Slice(position, each.units(head, n_units)), step)
                for each, head in here
            ]
        elif not _inside(split_site(site)[0], heads):
            parts.append(Component(site, site, Slice(position), step))
    return _summary(parts, usable)


def _summary(parts: Sequence[Component], usable: Sequence[Usable]) -> Components:
    return Components(
        parts=tuple(parts),
        sites=tuple(dict.fromkeys(each.site for each in parts)),
        n_skipped=sum(each.n_skipped for each in usable),
        bytes_per_row=sum(each.bytes_per_row for each in usable),
    )


def _names_head(heads: AttentionHeads, head: int, globs: Sequence[str]) -> bool:
    return any(_matches((heads.module, heads.label(head)), glob) for glob in globs)


def _matches(names: Sequence[str], glob: str) -> bool:
    return any(fnmatchcase(name, split_site(glob)[0]) for name in names)


def _inside(name: str, heads: Sequence[AttentionHeads]) -> bool:
    return any(name == each.module or name.startswith(f"{each.module}.") for each in heads)
