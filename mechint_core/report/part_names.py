"""Short names for the parts of a model: `attn 0.1` for `layers.0.attention.1`, `mlp 0`, and what is left of a path.

A path that many names share is left out; names that would become equal stay longer.
"""

import re
from collections.abc import Callable, Sequence
from itertools import takewhile

from mechint_core.report.wording import shorten

_PART = re.compile(
    r"(?:.*\.)?(?P<layer>\d+)\.(?:(?P<attention>\w*att\w*)(?:\.(?P<head>\d+))?|\w*(?:mlp|ffn|feed_forward))"
)
PORTS = ("query", "key", "value")
"""Where an edge may enter an attention head."""
_PORT = re.compile(rf"(?P<node>.+):(?P<port>{'|'.join(PORTS)})")
LONGEST = 16
ARROW = " → "
"""Between the ends of an edge."""


def node_of(name: str) -> str:
    """Return the node that an end of an edge belongs to: an attention head reads at three ports."""
    port = _PORT.fullmatch(name)
    return port["node"] if port else name


def port_of(name: str) -> str:
    """Return `query`, `key` or `value`, or nothing for a node that reads at one place."""
    port = _PORT.fullmatch(name)
    return port["port"] if port else ""


def brief_names(names: Sequence[str], *, brief: bool = False) -> tuple[str, ...]:
    """Return short names, all different as long as `names` are; with `brief`, letters stand for kinds of parts."""
    stem = _shared_path(names)
    ways: tuple[Callable[[str], str], ...] = (
        lambda name: shorten(_part(name, brief=brief) or name.removeprefix(stem), LONGEST),
        lambda name: shorten(name.removeprefix(stem), LONGEST),
        lambda name: shorten(name, 2 * LONGEST),
    )
    every = [tuple(way(name) for name in names) for way in ways]
    return next((short for short in every if len(set(short)) == len(set(names))), every[-1])


def fitted_names(names: Sequence[str], length: int) -> tuple[str, ...]:
    """Return names of at most `length` letters: as they are if they fit, parts of models by their short names.

    What is too long loses its middle; its beginning, where that tells more names apart.
    """
    brief = tuple(ARROW.join(_brief_end(end) for end in name.split(ARROW)) for name in names)
    fits = all(len(name) <= length for name in names) or len(set(brief)) < len(set(names))
    chosen = names if fits else brief
    middles = tuple(shorten(name, length) for name in chosen)
    ends = tuple(name if len(name) <= length else f"…{name[1 - length :]}" for name in chosen)
    return ends if len(set(ends)) > len(set(middles)) else middles


def _brief_end(name: str) -> str:
    """Return one end of an edge, or a node by itself, by its short name, with where it is entered."""
    short, port = _part(node_of(name), brief=False), port_of(name)
    return f"{short} {port}" if short and port else short or name.replace("attention", "attn")


def _part(name: str, *, brief: bool) -> str:
    """Return the kind, layer and head of a part of a transformer; nothing for any other name."""
    part = _PART.fullmatch(name)
    if not part:
        return ""
    kind = "attn" if part["attention"] else "mlp"
    place = f"{part['layer']}.{part['head']}" if part["head"] else part["layer"]
    return f"{kind[0]}{place}" if brief else f"{kind} {place}"


def _shared_path(names: Sequence[str]) -> str:
    """Return the path that all names with a path begin with, if something that is no number is left of each."""
    paths = [name.split(".") for name in names if "." in name]
    shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False))]
    worded = all(re.search("[A-Za-z]", ".".join(path[len(shared) :])) for path in paths)
    return "".join(f"{step}." for step in shared) if len(paths) > 1 and worded else ""
