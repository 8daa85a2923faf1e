"""What a section means by its patterns: which recorded sites, which checkpoints."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from flows.sections import Steps
from mechint_core.errors import ConfigurationError


def site_labels(
    sites: Mapping[str, tuple[int, ...]], patterns: Sequence[str], asked_by: str, *, whole: bool = False
) -> list[str]:
    """Return the recorded sites, with a position where one was asked for, that `patterns` name.

    A site with positions needs one, unless it may be taken `whole`.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        glob, at, position = pattern.partition("@")
        names = [name for name in sites if fnmatchcase(name, glob)]
        if not names:
            raise ConfigurationError(
                f"{asked_by}: no recorded site matches {pattern!r}. There are: {', '.join(sites)}."
            )
        for name in names:
            found[name if whole and not at else _label(name, sites[name], at, position, asked_by)] = None
    return list(found)


def _label(name: str, shape: tuple[int, ...], at: str, position: str, asked_by: str) -> str:
    if len(shape) == 1 and not at:
        return name
    if len(shape) == 1 or not position.lstrip("-").isdigit() or not -shape[0] <= int(position) < shape[0]:
        n = f"{shape[0]} positions" if len(shape) > 1 else "no positions"
        raise ConfigurationError(
            f"{asked_by}: site {name} has {n}; write "
            + (f"{name}@0 to {name}@{shape[0] - 1}." if len(shape) > 1 else f"{name}.")
        )
    return f"{name}@{int(position) % shape[0]}"


def chosen_steps(steps: Steps | None, all_steps: Sequence[int]) -> set[int]:
    """Return the steps that a section means."""
    if steps is None:
        return set(all_steps)
    ends = {"first": all_steps[0], "last": all_steps[-1]}
    chosen = {ends[step] if isinstance(step, str) else step for step in steps}
    if unknown := chosen - set(all_steps):
        raise ConfigurationError(
            f"steps must be those of checkpoints: {', '.join(map(str, all_steps))}. Got {', '.join(map(str, unknown))}."
        )
    return chosen
