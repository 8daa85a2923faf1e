"""Watch a long run of experiments from outside, without handing a callback through every function in between.

with watched(lambda done, total: bar.update(done / total)):
    patch_sites(model, clean, corrupted)
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

OnPass = Callable[[int, int], None]
"""Is told how many rows have run, and of how many; a row is one experiment on one prompt pair."""

_WATCHER: ContextVar[OnPass | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(on_pass: OnPass) -> Generator[None]:
    """Call `on_pass(done, total)` after every pass of experiments in this block."""
    token = _WATCHER.set(on_pass)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def report_pass(done: int, total: int) -> None:
    """Tell the watcher, if there is one."""
    watcher = _WATCHER.get()
    if watcher is not None:
        watcher(done, total)
