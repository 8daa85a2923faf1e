"""Training sparse dictionaries: one task is one pass over the data for all the dictionaries that can share it.

Training has a shape of its own (checkpoints, progress, resume), so its task is written by hand. It leaves ordinary
Results, and dictionaries that other techniques take as an input; every dictionary is a child of one MLflow run, which
sees it learn.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from prefect import task

from mechint_core import features
from mechint_core.features import DictionaryTraining, Recipe, SparseAutoencoderConfig, TrainingPass
from mechint_core.parallel import Rows
from mechint_core.store import ActivationStore, ResultKey
from tasks._technique import as_json, from_json, provenance_of, read_about
from tasks._tracking import DictionaryRun, child_runs, dictionary_tag, finished_dictionaries, log_study
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
        store = ActivationStore(self.store)
        stored, source = store.result_provenance(self.key), self.source(store)
        keys = [each.get("cache_key") if each else None for each in (stored, source)]
        return keys == [self.cache_key, self.cache_key]

    def source(self, store: ActivationStore) -> Mapping[str, Any] | None:
        """Return what the committed dictionary of this name was made of, if there is one."""
        return store.dictionary_source(self.run, self.step, self.site, self.label)

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
    store, recipes = ActivationStore(works[0].store), {each.label: each.what() for each in works}
    started = time.perf_counter()
    training = features.start_training(_sources(works), recipes)
    params = {each.label: _params(each) for each in works}
    runs = child_runs(settings().mlflow_uri, works[0].run, store.uuid, flow_run_id, params)
    with ExitStack() as writing:
        for run in runs.values():
            writing.enter_context(run)
        folders = {each.label: writing.enter_context(_folder(store, each)) for each in works}
        states = {label: folder / "training" for label, folder in folders.items()}
        training.resume(states)
        _train(training, states, runs)
        seconds = (time.perf_counter() - started) / len(works)
        done = [_finish(store, each, training, folders[each.label], seconds) for each in works]
        for state in states.values():
            shutil.rmtree(state)
    return done


def _folder(store: ActivationStore, work: DictionaryWork) -> AbstractContextManager[Path]:
    return store.write_dictionary(work.run, work.step, work.site, work.label, source={"cache_key": work.cache_key})


def _train(training: TrainingPass, states: Mapping[str, Path], runs: Mapping[str, DictionaryRun]) -> None:
    """Make the remaining steps, telling MLflow and whoever watches."""
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

    training.run(folder=states, on_progress=tell)


def _nobody(_: Seen) -> None:
    """Look away."""


def _finish(store: ActivationStore, work: DictionaryWork, training: TrainingPass, folder: Path, seconds: float) -> Done:
    """Write a dictionary and the record of its training. It counts as done when its folder is committed, too."""
    training.finished(work.label).save(folder)
    digest = store.write_result(
        work.key,
        features.training_record(training, work.label),
        about=read_about(features.train_dictionaries, DictionaryTraining),
        config=work.recipe,
        provenance=provenance_of(work, work.inputs, seconds),
    )
    return Done(store=work.store, run=work.run, technique=TECHNIQUE, name=work.label, step=work.step, digest=digest)


@task(name="publish-dictionaries", retries=2, retry_delay_seconds=[1, 5], persist_result=False)
def publish_dictionaries(work: Sequence[DictionaryWork], compared: Sequence[ResultKey]) -> None:
    """Give every trained dictionary's MLflow run what came out, once, and their parent what compares them."""
    trained = [each for each in work if each.is_done()]
    if not trained:
        return
    store, uri, run = ActivationStore(trained[0].store), settings().mlflow_uri, trained[0].run
    finished = finished_dictionaries(uri, run, store.uuid)
    for each in trained:
        if dictionary_tag(run, store.uuid, each.label, each.cache_key) not in finished:
            child = child_runs(uri, run, store.uuid, "", {each.label: _params(each)})[each.label]
            child.finish(store.result(each.key), each.reference().folder())
    log_study(uri, run, store.uuid, [store.result(key) for key in compared])


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
