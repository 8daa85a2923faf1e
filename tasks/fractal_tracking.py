"""Follow a network's fractals while it trains: into the store as Results, into MLflow as curves.

    with track_fractals({"spectral_slope": SpectralSlopeConfig()}, run="gru", params={"seed": 0}) as tracker:
        for step in range(1, n_steps + 1):
            ...
            tracker(step, hidden, loss=loss.item())

A training that was killed and is resumed from its checkpoint goes over some steps again: the store replaces their
Results, and MLflow keeps what it has. The Results are ordinary ones: the report and the store's readers know them.
"""

import dataclasses
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, final

from mechint_core.errors import ConfigurationError
from mechint_core.fractals import FractalTracker, TrackedResult
from mechint_core.store import ActivationStore, ResultKey
from tasks._technique import Technique, as_json, provenance_of
from tasks._tracking import TrainingRun, allowed, training_run
from tasks.catalogue import TECHNIQUES
from tasks.references import digest_of
from tasks.settings import settings


@contextmanager
def track_fractals(
    measures: Mapping[str, Any],
    *,
    run: str,
    name: str = "hidden",
    every: int = 100,
    time_axis: int = -2,
    params: Mapping[str, object] | None = None,
    store: str = "",
    mlflow_uri: str = "",
) -> Generator["TrainingTracker"]:
    """Track a training as long as the block lasts.

    Parameters
    ----------
    measures
        Technique name -> its config; each technique must take one array, a series.
    run
        Name of the training, in the store and in MLflow.
    name
        What the hidden states are called: the site.
    every
        Steps between measurements.
    time_axis
        Which axis of the hidden states is time.
    params
        What tells this training from another of the same name (seed, weight of a prior): shown in MLflow. With other
        parameters it is another MLflow run, with the same ones the same run goes on.
    store, mlflow_uri
        Where to write; by default as the settings say.

    Raises
    ------
    ConfigurationError
        If a measure is no technique of one array, or its config that of another.
    """
    configs = {_technique(each, config): config for each, config in measures.items()}
    opened = ActivationStore(store or settings().store_location)
    said = {each: str(value) for each, value in (params or {}).items()}
    with training_run(mlflow_uri or settings().mlflow_uri, run, opened.uuid, said) as mlflow:
        yield TrainingTracker(configs, opened, mlflow, run=run, name=name, every=every, time_axis=time_axis)


@final
class TrainingTracker:
    """Measures hidden states every few steps; made by `track_fractals`."""

    def __init__(
        self,
        configs: Mapping[Technique, Any],
        store: ActivationStore,
        mlflow: TrainingRun,
        *,
        run: str,
        name: str,
        every: int,
        time_axis: int,
    ) -> None:
        self._techniques = {each.name: (each, as_json(dataclasses.asdict(config))) for each, config in configs.items()}
        self._store, self._mlflow, self._run, self._name = store, mlflow, run, name
        measures = [partial(each.compute, config=config) for each, config in configs.items()]
        self._tracker = FractalTracker(measures, self._write, every=every, time_axis=time_axis)

    def due(self, step: int) -> bool:
        """Return whether `step` is measured."""
        return self._tracker.due(step)

    def __call__(self, step: int, hidden: Any, **metrics: float) -> list[TrackedResult]:
        """Measure `hidden` and log `metrics` (the loss) if `step` is due; return what was found.

        Parameters
        ----------
        step
            Of training.
        hidden
            Array or tensor, (time, unit) or (batch, time, unit).
        **metrics
            Shown in MLflow beside the exponents.
        """
        found = self._tracker(step, hidden)
        if found and metrics:
            self._mlflow.log(step, metrics)
        return found

    def _write(self, tracked: TrackedResult) -> None:
        """Write a Result to the store, then its numbers to MLflow."""
        result = tracked.result
        technique, config = self._techniques[result.technique]
        key = ResultKey(run=self._run, technique=result.technique, name=self._name, step=tracked.step)
        made = Measured(technique.version, digest_of([technique.name, technique.version, config, tracked.digest]))
        provenance = provenance_of(made, {"series": tracked.digest}, tracked.seconds)
        self._store.write_result(key, result, about=technique.about, config=config, provenance=provenance)
        named = {allowed(f"{result.technique}/{self._name}/{each}"): it for each, it in result.scalars().items()}
        self._mlflow.log(tracked.step, named)


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """What makes a tracked Result the same: the technique's version, and a digest of it, its config and the series."""

    version: int
    cache_key: str


def _technique(name: str, config: Any) -> Technique:
    """Return the technique of a measure, if it takes one array and this config."""
    technique = TECHNIQUES.get(name)
    if technique is None:
        raise ConfigurationError(f"measures must name techniques. Got {name!r}. There are {', '.join(TECHNIQUES)}.")
    needed = [each for each in technique.parameters if not each.optional]
    if [each.shape for each in needed] != ["array"]:
        raise ConfigurationError(f"a tracked technique must take one array. Got {name}.")
    if not isinstance(config, technique.config):
        raise ConfigurationError(f"{name} must have a {technique.config.__name__}. Got {type(config).__name__}.")
    return technique
