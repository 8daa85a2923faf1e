"""Training sparse dictionaries: one task is one pass over the data for all the dictionaries that can share it.

Training has a shape of its own (checkpoints, progress, resume), so its task is written by hand. It leaves ordinary
Results, and dictionaries that other techniques take as an input; every dictionary is a child of one MLflow run, which
sees it learn.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from prefect import task

from mechint_core import features
from mechint_core.features import DictionaryTraining, Recipe, SparseAutoencoderConfig, Trained
from mechint_core.parallel import Rows
from mechint_core.store import ActivationStore, ResultKey
from tasks._technique import as_json, from_json, provenance_of, read_about
from tasks._tracking import DictionaryRun, child_runs
from tasks.references import ArrayReference, DictionaryReference, Done, Reference, digest_of
from tasks.settings import settings

TECHNIQUE = DictionaryTraining.technique


class DictionaryWork(Reference):
    """One dictionary to train: everything it depends on, and where it goes."""

    store: str
    run: str
    step: int
    label: str
    """What it reads and its name, as the report shows them."""
    sources: dict[str, ArrayReference]
    """Each source that the recipe names."""
    recipe: dict[str, Any]
    version: int = 2
    technique: str = TECHNIQUE

    @property
    def site(self) -> str:
        """The (first) site that it reads, under which the store keeps it."""
        return next(iter(self.sources.values())).site

    @property
    def key(self) -> ResultKey:
        """Where the record of the training goes."""
        return ResultKey(run=self.run, technique=self.technique, name=self.label, step=self.step)

    @property
    def inputs(self) -> dict[str, str]:
        """The content of what it is trained on, by name."""
        return {name: each.identity for name, each in self.sources.items()}

    @property
    def cache_key(self) -> str:
        """Digest of what the dictionary depends on."""
        return digest_of([self.technique, self.version, self.recipe, self.inputs])

    @property
    def pass_key(self) -> str:
        """What dictionaries must have in common to be trained in one pass."""
        config = self.what().config
        order = [config.n_epochs, config.batch_size, config.data_seed, config.buffer_bytes]
        vectors = {(each.stored().shape[:-1], each.kept and each.kept.identity) for each in self.sources.values()}
        return digest_of([self.run, self.step, order, sorted(map(str, vectors))])

    def what(self) -> Recipe:
        """Return the recipe."""
        config = from_json(SparseAutoencoderConfig, self.recipe["config"])
        return from_json(Recipe, {**self.recipe, "config": config})

    def is_done(self) -> bool:
        """Whether the store holds this very dictionary, committed."""
        stored = ActivationStore(self.store).result_provenance(self.key)
        return stored is not None and stored.get("cache_key") == self.cache_key

    def reference(self) -> DictionaryReference:
        """Name the trained dictionary."""
        stored = ActivationStore(self.store).dictionary(self.run, self.step, self.site, self.label)
        return DictionaryReference(
            store=self.store, run=self.run, step=self.step, site=self.site, name=self.label, digest=stored.digest
        )


def recipe_json(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as JSON."""
    return as_json(dataclasses.asdict(recipe))


class Seen(NamedTuple):
    """Where the training of a pass is."""

    n_done: int
    n_steps: int
    memory_bytes: int
    vectors_per_second: float
    """0 before the first step."""
    metrics: Mapping[str, float]
    """Since last time; none before the first step."""


WATCHER: ContextVar[Callable[[Seen], None] | None] = ContextVar("mechint_training_watcher", default=None)
"""Who is told, besides MLflow, how training goes."""


@task(name=TECHNIQUE, task_run_name="train {work[0].label} @{work[0].step}")
def train_dictionaries(work: Sequence[DictionaryWork], flow_run_id: str = "") -> list[Done]:
    """Train dictionaries in one pass from the store, saving as it goes; continue where a killed run had got to."""
    works = sorted(work, key=lambda each: each.label)
    store, together = ActivationStore(works[0].store), digest_of([each.cache_key for each in works])
    recipes = {each.label: each.what() for each in works}
    started = time.perf_counter()
    with ExitStack() as writing:
        folders = {
            each.label: writing.enter_context(
                store.write_dictionary(
                    each.run, each.step, each.site, each.label, source={"cache_key": each.cache_key, "pass": together}
                )
            )
            for each in works
        }
        state = folders[works[0].label] / "training"
        runs = child_runs(
            settings().mlflow_uri, works[0].run, store.uuid, flow_run_id, {w.label: _params(w) for w in works}
        )
        trained = _train(_sources(works), recipes, state, runs)
        for label, made in trained.items():
            made.dictionary.save(folders[label])
        shutil.rmtree(state)
    seconds = time.perf_counter() - started
    return [_record(store, each, trained[each.label], runs[each.label], seconds / len(works)) for each in works]


def _train(
    sources: Mapping[str, Rows], recipes: Mapping[str, Recipe], state: Path, runs: Mapping[str, DictionaryRun]
) -> dict[str, Trained]:
    """Make the remaining steps, telling MLflow and whoever watches."""
    training = features.start_training(sources, recipes)
    training.resume(state)
    started, first, per_step = time.perf_counter(), training.n_done, training.length.n_vectors / training.length.n_steps
    watch = WATCHER.get() or _nobody
    watch(Seen(first, training.length.n_steps, training.memory_bytes, 0.0, {}))

    def tell(n_done: int, metrics: dict[str, float]) -> None:
        for label, run in runs.items():
            prefix = f"{label}/" if len(runs) > 1 else ""
            own = {name.removeprefix(prefix): each for name, each in metrics.items() if name.startswith(prefix)}
            run.log(n_done, own)
        rate = (n_done - first) * per_step / (time.perf_counter() - started)
        watch(Seen(n_done, training.length.n_steps, training.memory_bytes, rate, metrics))

    training.run(folder=state, on_progress=tell)
    return {
        name: Trained(one.finished(), features.training_record(training, name))
        for name, one in training.trainers.items()
    }


def _nobody(_: Seen) -> None:
    """Look away."""


def _record(store: ActivationStore, work: DictionaryWork, made: Trained, run: DictionaryRun, seconds: float) -> Done:
    """Write the Result of a training, and finish its MLflow run."""
    digest = store.write_result(
        work.key,
        made.training,
        about=read_about(features.train_dictionaries, DictionaryTraining),
        config=work.recipe,
        provenance=provenance_of(work, work.inputs, seconds),
    )
    run.finish(
        store.result(work.key), ActivationStore(work.store).dictionary(work.run, work.step, work.site, work.label).path
    )
    return Done(store=work.store, run=work.run, technique=TECHNIQUE, name=work.label, step=work.step, digest=digest)


def _sources(works: Sequence[DictionaryWork]) -> dict[str, Rows]:
    """Open what the dictionaries read and write, each source once."""
    named = {name: each for work in works for name, each in work.sources.items()}
    return {name: reference.open() for name, reference in named.items()}


def _params(work: DictionaryWork) -> dict[str, str]:
    """Return what an MLflow run says of a dictionary."""
    recipe = work.recipe
    said = {f"config.{name}": str(value) for name, value in recipe["config"].items()}
    said |= {"reads": ", ".join(recipe["reads"]), "writes": recipe["writes"] or "what it reads"}
    return (
        said
        | {"step": str(work.step), "cache_key": work.cache_key}
        | {f"data.{name}": identity for name, identity in work.inputs.items()}
    )
