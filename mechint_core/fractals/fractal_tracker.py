"""Follow hidden states through training: every few steps, measure every unit and hand the Results on.

    series (time, sequence x unit)  <-  hidden (sequence, time, unit)          when step is a multiple of `every`

The tracker knows no store and no tracking server: what to do with a Result is the caller's (`tasks.fractal_tracking`
writes it to a store and to MLflow).

Cost: that of the techniques, once every `every` steps.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.fractals._power_law import Detachable
from mechint_core.result import Result

Measure = Callable[[np.ndarray], Result]
"""What measures a series (time, unit): a technique of this family, or `partial(technique, config=...)`."""


class TrackedResult(NamedTuple):
    """One Result on the way through training."""

    step: int
    result: Result
    digest: str
    """Of the series that was measured."""
    seconds: float


@final
class FractalTracker:
    """Measure hidden states at every `every`-th step, and hand each Result to `write`.

    Parameters
    ----------
    techniques
        What to measure, each with its own config.
    write
        Given each Result as it is made. What it raises ends the step that called.
    every
        Steps between measurements.
    time_axis
        Which axis of the hidden states is time, as for `SpectralPrior`.

    Raises
    ------
    ConfigurationError
        If there is no technique, or `every` is below 1.

    Examples
    --------
    >>> tracker = FractalTracker([higuchi_fractal_dimension], every=10)
    >>> [len(tracker(step, np.random.default_rng(0).normal(size=(2, 64, 3)))) for step in (10, 15, 20)]
    [1, 0, 1]
    """

    def __init__(
        self,
        techniques: Sequence[Measure],
        write: Callable[[TrackedResult], None] | None = None,
        *,
        every: int = 100,
        time_axis: int = -2,
    ) -> None:
        if not techniques or every < 1:
            raise ConfigurationError(f"a tracker needs a technique and every >= 1. Got {len(techniques)} and {every}.")
        self.techniques, self.write, self.every, self.time_axis = tuple(techniques), write, every, time_axis

    def due(self, step: int) -> bool:
        """Return whether `step` is measured: ask before running the network for this alone."""
        return step % self.every == 0

    def __call__(self, step: int, hidden: np.ndarray | Detachable) -> list[TrackedResult]:
        """Measure `hidden` if it is due, and return what was found.

        Parameters
        ----------
        step
            Of training.
        hidden
            Array or tensor: (time, unit), (batch, time, unit), or as `time_axis` says. Gradients are left alone.

        Raises
        ------
        ShapeError
            If it has no such time axis.
        MechintError
            As the techniques do: too few steps, values that are not finite.
        """
        if not self.due(step):
            return []
        series = series_of_hidden(hidden, self.time_axis)
        digest = hashlib.sha256(f"{series.dtype} {series.shape}".encode() + series.tobytes()).hexdigest()
        found: list[TrackedResult] = []
        for technique in self.techniques:
            started = time.perf_counter()
            result = technique(series)
            found.append(TrackedResult(step, result, digest, time.perf_counter() - started))
            if self.write is not None:
                self.write(found[-1])
        return found


def series_of_hidden(hidden: np.ndarray | Detachable, time_axis: int = -2) -> Float[np.ndarray, "time unit"]:
    """Return every unit of every sequence as one series.

    Raises
    ------
    ShapeError
        If `hidden` has no such time axis.
    """
    values = hidden.detach().cpu().double().numpy() if isinstance(hidden, Detachable) else np.asarray(hidden)
    axis = time_axis if values.ndim > 1 else 0
    if values.ndim == 0 or not -values.ndim <= axis < values.ndim:
        raise ShapeError(f"hidden must have time on axis {time_axis}. Got shape {values.shape}.")
    moved = np.moveaxis(values, axis, 0)
    return np.ascontiguousarray(moved.reshape(len(moved), -1))
