"""Progress on a terminal: what, how far, how long still. Silent where nobody looks."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress as Bars,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Advance(Protocol):
    """Move a bar on, and say what is at hand."""

    def __call__(self, detail: str, steps: int = 1, /) -> None:
        """Advance by `steps`."""
        ...


_CONSOLE: ContextVar[Console | None] = ContextVar("mechint_console", default=None)


@contextmanager
def shown_on(console: Console) -> Generator[None]:
    """Show the progress of what runs inside this block; scheduled runs have theirs on Prefect's page."""
    token = _CONSOLE.set(console)
    try:
        yield
    finally:
        _CONSOLE.reset(token)


@contextmanager
def stage(name: str, total: int) -> Generator[Advance]:
    """Show a bar of `total` steps; the yielded function advances it and says what is at hand."""
    console = _CONSOLE.get()
    if console is None or total == 0:
        yield lambda _detail, _steps=1: None
        return
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[detail]}"),
    )
    with Bars(*columns, console=console) as bars:
        task = bars.add_task(name, total=total, detail="")
        yield lambda detail, steps=1: bars.update(task, advance=steps, detail=detail)


def say(line: str) -> None:
    """Print a line, where somebody looks."""
    console = _CONSOLE.get()
    if console is not None:
        console.print(line)
