"""Monitor training as it happens: look at the checkpoint folder, analyse what is new."""

import time
from collections.abc import Iterator
from pathlib import Path

from flows.configuration import configuration
from flows.monitor_training import Monitored, monitor_training
from flows.progress import say
from mechint_core.errors import CheckpointError, ConfigurationError, NotFoundError
from mechint_core.models import list_checkpoints


def watch_training(config: Path, *, every: float, until: int | None = None) -> Iterator[Monitored]:
    """Yield what each look at the folder led to, whenever a checkpoint has come or changed.

    Parameters
    ----------
    config
        The run's configuration file. The checkpoint folder may still be empty.
    every
        Seconds between two looks.
    until
        End after the checkpoint of this step; by default go on until interrupted.

    Raises
    ------
    ConfigurationError
        If the configuration is of a single model, without a folder of checkpoints.
    """
    seen: dict[int, float] = {}
    section = configuration(config)
    folder = section.checkpoints
    if folder is None:
        raise ConfigurationError(f"{config} must name a folder of `checkpoints` to watch. Got none.")
    while True:
        found = _checkpoints(folder)
        if found and found != seen:
            yield monitor_training(section)
            seen = found
        elif not seen:
            say(f"[dim]no checkpoint in {folder} yet")
        if until is not None and any(step >= until for step in seen):
            return
        time.sleep(every)


def _checkpoints(folder: Path) -> dict[int, float]:
    """Return step -> time of the last change; nothing while the folder is missing or empty."""
    try:
        return {each.step: each.path.stat().st_mtime for each in list_checkpoints(folder)}
    except (CheckpointError, NotFoundError, FileNotFoundError):
        return {}
