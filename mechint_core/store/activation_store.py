"""The store: activations, inputs, results, dictionaries and dissimilarities of training runs, each whole or absent.

    <store>/store.json                                        {format, uuid}
    <store>/activations/<run>/<step>/<site>/                  Zarr group: `values` (sample[, position], unit)
    <store>/inputs/<dataset>/                                 Zarr group: one array per field, aligned with the samples
    <store>/results/<run>/<step or "all">/<technique>/<name>/ Zarr group: arrays with axes; the rest as attributes
    <store>/dictionaries/<run>/<step>/<site>/<name>/          files
    <store>/dissimilarities/<run>/<step>/<site>/<name>/       Zarr group: `values` (pair)

Each of them holds a `commit.json`, written last; nothing without one is ever read.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from mechint_core.errors import CorruptStoreError, ShapeError
from mechint_core.result import Result
from mechint_core.store.arrays import StoredArray
from mechint_core.store.commit import VALUES, Commit, to_json
from mechint_core.store.draft import Draft, draft, read_commit
from mechint_core.store.entries import (
    Entry,
    collect_garbage,
    commit_entry,
    committed_names,
    list_entries,
    verify_entries,
    why_absent,
)
from mechint_core.store.folders import StoredFolder, cache_place, read_folder, write_folder
from mechint_core.store.identity import identify
from mechint_core.store.names import (
    ALL_STEPS,
    activations_path,
    check_name,
    dictionary_path,
    dissimilarities_path,
    inputs_path,
    result_path,
    step_name,
    step_number,
)
from mechint_core.store.place import Place
from mechint_core.store.record import About, ResultKey, StoredResult
from mechint_core.store.results import provenance_of, read_result, record_of, write_contents
from mechint_core.store.writing import ActivationWriter, array_digest, check_axes, create_group, write_array

IDLE_S: Final = 3600.0
"""Silence after which a writer that holds no lock is taken for dead."""
_SAMPLE_AXES: Final = ("sample", "position", "unit")


class ActivationStore:
    """A store at a path or at any URL fsspec knows; opened if it exists, made if not.

    Opening costs one small read. Instances hold nothing open: make one wherever it is needed.

    Parameters
    ----------
    location
        A folder, or a URL such as `s3://bucket/run`, `memory://name` or `file:///data/store`.
    create
        If False, a location that holds no store is an error.
    storage_options
        What fsspec needs to connect: credentials, endpoint.

    Raises
    ------
    NotFoundError
        If there is no store and `create` is False.
    ConfigurationError
        If the location is no path or known URL, or the store was made by a newer mechint.

    Examples
    --------
    >>> store = ActivationStore("memory://example")
    >>> with store.write_activations("run", 0, "mlp", n_samples=3, source={"model": "none"}) as writer:
    ...     writer.append(np.eye(3, dtype=np.float32))
    >>> store.activations("run", 0, "mlp")[1:].tolist()
    [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    def __init__(
        self, location: str | Path, *, create: bool = True, storage_options: Mapping[str, Any] | None = None
    ) -> None:
        self.place = Place.at(location, storage_options)
        self.uuid = identify(self.place, create=create)

    def __repr__(self) -> str:
        return f"ActivationStore({self.location!r})"

    @property
    def location(self) -> str:
        """The absolute path or the URL: opens this store again from anywhere."""
        return self.place.url

    # Activations

    @contextmanager
    def write_activations(
        self,
        run: str,
        step: int,
        site: str,
        *,
        n_samples: int,
        axes: tuple[str, ...] = ("sample", "unit"),
        dtype: str = "float32",
        source: Mapping[str, Any],
        shard_rows: int | None = None,
    ) -> Generator[ActivationWriter]:
        """Write one site's activations at one checkpoint; committed when the block ends without an exception.

        Parameters
        ----------
        run, step, site
            Their name.
        n_samples
            Rows in all; fewer or more is an error, and nothing is committed.
        axes
            Names of the axes, samples first.
        dtype
            Of the stored numbers: "float32", "float16", "bfloat16", ...
        source
            Where they come from, as JSON: model digest, data set digest, ...
        shard_rows
            On an object store: rows that go into one object. A good value is the rows of one `append`.
        """
        path = activations_path(run, step, site)
        with self._write_rows(path, source, n_rows=n_samples, axes=axes, dtype=dtype, shard_rows=shard_rows) as writer:
            yield writer

    def activations(self, run: str, step: int, site: str) -> StoredArray:
        """Return one site's activations at one checkpoint.

        Raises
        ------
        NotFoundError
            If there are none; the message lists what there is.
        UncommittedError
            If their writer was stopped before it finished, or is still at work.
        """
        path = activations_path(run, step, site)
        return StoredArray(self.place, path, VALUES, self._committed(path))

    def has_activations(self, run: str, step: int, site: str) -> bool:
        """Say whether they are there, committed."""
        return read_commit(self.place, activations_path(run, step, site)) is not None

    def runs(self) -> list[str]:
        """Return the training runs with committed activations."""
        return [run for run in self.place.subfolders("activations") if self.steps(run)]

    def steps(self, run: str) -> list[int]:
        """Return the steps of a run with committed activations, in order."""
        at_run = f"activations/{check_name('run', run)}"
        committed = (name for name in self.place.subfolders(at_run) if any(self._committed_in(f"{at_run}/{name}")))
        return [step for name in committed if (step := step_number(name)) is not None]

    def sites(self, run: str, step: int) -> list[str]:
        """Return the sites with committed activations at a step, sorted."""
        return list(self._committed_in(f"activations/{check_name('run', run)}/{step_name(step)}"))

    # Inputs

    def write_inputs(
        self,
        dataset: str,
        arrays: Mapping[str, np.ndarray],
        *,
        source: Mapping[str, Any],
        axes: Mapping[str, tuple[str, ...]] | None = None,
    ) -> str:
        """Write a data set: tokens, stimuli, labels, one row per sample. Return its digest.

        A data set that is stored already, with the same numbers and the same source, is left as it is.

        Parameters
        ----------
        dataset
            Its name.
        arrays
            Field name -> array; all with the same number of rows.
        source
            Where they come from, as JSON.
        axes
            Field name -> axis names; by default (sample, position, unit), as far as the array goes.
        """
        path, source = inputs_path(dataset), to_json(source)
        fields = {check_name("field", name): np.asarray(values) for name, values in arrays.items()}
        n_rows = {name: values.shape[:1] for name, values in fields.items()}
        if len(set(n_rows.values())) != 1 or () in n_rows.values() or (0,) in n_rows.values():
            raise ShapeError(f"inputs must have the same number of samples, >= 1. Got {n_rows}.")
        named = {
            name: check_axes((axes or {}).get(name, _SAMPLE_AXES[: values.ndim])) for name, values in fields.items()
        }
        wanted = {name: (array_digest(values), named[name]) for name, values in fields.items()}
        found = read_commit(self.place, path)
        if found and found[0].source == source and _identities(found[0]) == wanted:
            return found[0].sha256
        with self._draft(path) as target:
            create_group(self.place, target, {})
            contents = {
                name: write_array(self.place, target, name, values, named[name]) for name, values in fields.items()
            }
            return commit_entry(self.place, target, contents, len(next(iter(fields.values()))), source)

    def inputs(self, dataset: str) -> dict[str, StoredArray]:
        """Return the fields of a data set."""
        path = inputs_path(dataset)
        commit = self._committed(path)
        return {name: StoredArray(self.place, path, name, commit) for name in commit.contents}

    def datasets(self) -> list[str]:
        """Return the committed data sets, sorted."""
        return list(self._committed_in("inputs"))

    # Results

    def write_result(
        self,
        key: ResultKey,
        result: Result,
        *,
        about: About,
        config: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> str:
        """Write a technique's answer, in place of an older one. Return its digest.

        The digest covers numbers, words and config, but not the provenance: the same answer has the same digest,
        whenever it was made. `provenance` is JSON; `digest` and `made_at` are added to it on reading.
        """
        record, provenance = record_of(result, about, config), to_json(provenance)
        with self._draft(_path_of(key)) as target:
            contents = write_contents(self.place, target, result, record, provenance)
            return commit_entry(self.place, target, contents, None, provenance)

    def result(self, key: ResultKey) -> StoredResult:
        """Return a stored answer; its arrays are read when first asked for."""
        path = _path_of(key)
        commit = self._committed(path)
        try:
            return read_result(self.place, path, key, commit)
        except CorruptStoreError:
            latest = self._committed(path)
            if latest.made_at == commit.made_at:
                raise
            return read_result(self.place, path, key, latest)  # it was replaced between our two reads

    def results(self, run: str | None = None, technique: str | None = None) -> list[ResultKey]:
        """Return the committed answers: those of all runs and techniques, or of one."""
        found: list[ResultKey] = []
        for at_run in self.place.subfolders("results") if run is None else [check_name("run", run)]:
            for step in self.place.subfolders(f"results/{at_run}"):
                if step == ALL_STEPS or step_number(step) is not None:
                    found += self._results_at(at_run, step, technique)
        return found

    def result_provenance(self, key: ResultKey) -> dict[str, Any] | None:
        """Return how an answer was made, with its `digest` and `made_at`; None if it is not there, committed."""
        found = read_commit(self.place, _path_of(key))
        return None if found is None else provenance_of(found[0])

    # Dictionaries

    @contextmanager
    def write_dictionary(
        self, run: str, step: int, site: str, name: str, *, source: Mapping[str, Any]
    ) -> Generator[Path]:
        """Yield a local folder to fill; committed when the block ends without an exception.

        Otherwise, or if the process is killed, the folder stays as it is, and writing the same name with the same
        `source` continues in it: keep the training state there, and remove it before the block ends. Files of
        another `source` are removed first.

        Raises
        ------
        UncommittedError
            If another process is writing it now, or the folder is empty at the end.
        """
        with write_folder(self.place, self._local, dictionary_path(run, step, site, name), source) as folder:
            yield folder

    def dictionary(self, run: str, step: int, site: str, name: str) -> StoredFolder:
        """Return a committed dictionary's folder, fetched to this machine if it lies elsewhere."""
        path = dictionary_path(run, step, site, name)
        return read_folder(self.place, self._local, path, self._committed(path))

    def dictionary_source(self, run: str, step: int, site: str, name: str) -> Mapping[str, Any] | None:
        """Return what a committed dictionary was made of, without fetching it; None if it is not there."""
        found = read_commit(self.place, dictionary_path(run, step, site, name))
        return None if found is None else found[0].source

    def dictionaries(self, run: str, step: int, site: str) -> list[str]:
        """Return the committed dictionaries of a site at a step, sorted."""
        at_step = f"dictionaries/{check_name('run', run)}/{step_name(step)}"
        return list(self._committed_in(f"{at_step}/{check_name('site', site)}"))

    # Dissimilarities

    @contextmanager
    def write_dissimilarities(
        self, run: str, step: int, site: str, name: str, *, n_pairs: int, source: Mapping[str, Any]
    ) -> Generator[ActivationWriter]:
        """Write every pair's dissimilarity, run by run; committed when the block ends without an exception."""
        path = dissimilarities_path(run, step, site, name)
        with self._write_rows(path, source, n_rows=n_pairs, axes=("pair",), dtype="float64") as writer:
            yield writer

    def dissimilarities(self, run: str, step: int, site: str, name: str) -> StoredArray:
        """Return the dissimilarities of a site's pairs i < j, in the order of `numpy.triu_indices`."""
        path = dissimilarities_path(run, step, site, name)
        return StoredArray(self.place, path, VALUES, self._committed(path))

    def dissimilarities_source(self, run: str, step: int, site: str, name: str) -> Mapping[str, Any] | None:
        """Return what committed dissimilarities were made of; None if they are not there."""
        found = read_commit(self.place, dissimilarities_path(run, step, site, name))
        return None if found is None else found[0].source

    # Housekeeping

    def ls(self) -> Iterator[Entry]:
        """Yield everything in the store, committed or not."""
        return list_entries(self.place)

    def verify(self) -> Iterator[tuple[Entry, str | None]]:
        """Read everything again and compare it with its digests: yield each entry and its problem, or None."""
        return verify_entries(self.place)

    def gc(self, *, dry_run: bool = True, idle_s: float = IDLE_S) -> list[Entry]:
        """Remove what was never committed and has no writer any more; return it. A dry run only returns it.

        A writer on the local disk holds a lock, so that its folder is never touched. Where there are no locks (an
        object store), `idle_s` seconds without a sign of life count as its end. Training state that was left in a
        dictionary's folder goes too.
        """
        return list(collect_garbage(self.place, dry_run=dry_run, idle_s=idle_s))

    # What the above share

    @cached_property
    def _local(self) -> Place:
        return self.place if self.place.folder else cache_place(self.uuid)

    @contextmanager
    def _draft(self, path: str) -> Generator[Draft]:
        """Yield a draft; what an exception leaves of it is removed."""
        target = draft(self.place, path)
        try:
            yield target
        except BaseException:
            target.abandon()
            raise

    @contextmanager
    def _write_rows(
        self, path: str, source: Mapping[str, Any], *, n_rows: int, **layout: Any
    ) -> Generator[ActivationWriter]:
        """Yield a writer of one array's rows; committed when the block ends without an exception."""
        source = to_json(source)
        with self._draft(path) as target:
            writer = ActivationWriter(self.place, target, VALUES, n_rows=n_rows, **layout)
            create_group(self.place, target, {})
            yield writer
            commit_entry(self.place, target, {VALUES: writer.finish()}, n_rows, source)

    def _committed(self, path: str) -> Commit:
        """Return the commit at `path`, or say what is there instead."""
        found = read_commit(self.place, path)
        if found is not None:
            return found[0]
        raise why_absent(self.place, path)

    def _committed_in(self, parent: str) -> Iterator[str]:
        return committed_names(self.place, parent)

    def _results_at(self, run: str, step: str, technique: str | None) -> Iterator[ResultKey]:
        at_step = f"results/{run}/{step}"
        for by in self.place.subfolders(at_step) if technique is None else [check_name("technique", technique)]:
            for name in self._committed_in(f"{at_step}/{by}"):
                yield ResultKey(run=run, technique=by, name=name, step=step_number(step))


def _path_of(key: ResultKey) -> str:
    return result_path(key.run, key.step, key.technique, key.name)


def _identities(commit: Commit) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {name: (content.sha256, content.axes) for name, content in commit.contents.items()}
