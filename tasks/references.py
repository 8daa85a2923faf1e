"""What a task is given in place of arrays and models: small, hashable names with a content digest.

A cache key is made of digests, so the same bytes under another path are the same input, and a changed byte is
another one. Nothing large, and no open file handle, ever passes through Prefect.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from mechint_core.circuits import Circuit
from mechint_core.errors import ConfigurationError
from mechint_core.features import SparseDictionary, load_dictionary
from mechint_core.kernels.row_views import KeptVectors
from mechint_core.parallel import Rows
from mechint_core.store import ActivationStore, ResultKey, StoredArray

READ_ROWS = 256
"""Rows kept of one block, when only some are."""


class Reference(BaseModel):
    """Base of all references: frozen, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ArrayReference(Reference):
    """A committed array of a store."""

    kind: Literal["array"] = "array"
    store: str
    run: str = ""
    step: int = 0
    site: str = ""
    """A recorded site, with `run` and `step`; or empty for an input."""
    dataset: str = ""
    field: str = ""
    position: int | None = None
    """Take this position of (sample, position, unit)."""
    kept: "ArrayReference | None" = None
    """(sample, position): the vectors that count, which are then taken one after the other."""
    every: int = 1
    """Read whole, take only every so many-th row: for what would not fit in memory."""
    digest: str

    @property
    def label(self) -> str:
        """The site as a person writes it: `residual`, `embed@0`."""
        return self.site if self.position is None else f"{self.site}@{self.position}"

    @property
    def identity(self) -> str:
        """The content this names."""
        place = self.digest if self.position is None else f"{self.digest}@{self.position}"
        place = place if self.kept is None else f"{place} where {self.kept.identity}"
        return place if self.every == 1 else f"{place} every {self.every}"

    def open(self) -> Rows:
        """Return the stored rows, which are read when asked for."""
        stored = self.stored()
        return stored if self.kept is None else KeptVectors(stored, self.kept.read().astype(bool))

    def read(self) -> np.ndarray:
        """Return the whole array, or as much of it as is wanted."""
        if self.every == 1:
            return self.stored().read() if self.kept is None else self.open()[:]
        rows, block = self.open(), READ_ROWS * self.every
        return np.concatenate([rows[i : i + block][:: self.every] for i in range(0, rows.shape[0], block)])

    def stored(self) -> StoredArray:
        """Return the stored array, with the vectors that do not count."""
        store = ActivationStore(self.store)
        array = (
            store.activations(self.run, self.step, self.site) if self.site else store.inputs(self.dataset)[self.field]
        )
        return array if self.position is None else array.at_position(self.position)


class ModelReference(Reference):
    """A model: who builds it, and the checkpoint its parameters come from."""

    kind: Literal["model"] = "model"
    factory: str
    arguments: dict[str, Any] = {}
    checkpoint: str = ""
    digest: str
    """sha256 of the checkpoint file; empty for a freshly built model."""
    device: str = "cpu"

    @property
    def identity(self) -> str:
        """The content this names."""
        return digest_of({"factory": self.factory, "arguments": self.arguments, "checkpoint": self.digest})


class DictionaryReference(Reference):
    """A committed sparse dictionary of a store."""

    kind: Literal["dictionary"] = "dictionary"
    store: str
    run: str
    step: int
    site: str
    name: str
    digest: str

    @property
    def identity(self) -> str:
        """The content this names."""
        return self.digest

    def open(self) -> SparseDictionary:
        """Return the dictionary."""
        return load_dictionary(self.folder())

    def folder(self) -> Path:
        """Return where its files are on this machine."""
        return ActivationStore(self.store).dictionary(self.run, self.step, self.site, self.name).path


class DecoderReference(Reference):
    """The decoder rows of a committed dictionary, as an array."""

    kind: Literal["decoder"] = "decoder"
    dictionary: DictionaryReference

    @property
    def identity(self) -> str:
        """The content this names."""
        return digest_of(["decoder", self.dictionary.identity])

    def open(self) -> np.ndarray:
        """Return the rows: (latent, unit)."""
        return self.dictionary.open().W_dec.detach().numpy()


class ResultArrayReference(Reference):
    """One array of a stored result."""

    kind: Literal["result array"] = "result array"
    store: str
    run: str
    technique: str
    name: str
    step: int | None
    field: str
    digest: str
    """Of the result."""

    @property
    def identity(self) -> str:
        """The content this names."""
        return digest_of([self.digest, self.field])

    def open(self) -> np.ndarray:
        """Return the array."""
        key = ResultKey(run=self.run, technique=self.technique, name=self.name, step=self.step)
        return ActivationStore(self.store).result(key).arrays[self.field]


class CircuitReference(Reference):
    """A circuit that a stored result found."""

    kind: Literal["circuit"] = "circuit"
    store: str
    run: str
    technique: str
    name: str
    step: int | None
    digest: str

    @property
    def identity(self) -> str:
        """The content this names."""
        return self.digest

    def open(self) -> Circuit:
        """Return the circuit."""
        key = ResultKey(run=self.run, technique=self.technique, name=self.name, step=self.step)
        found = ActivationStore(self.store).result(key)
        return Circuit.from_fields({**found.arrays, **found.labels}, config=found.config, method=self.technique)


class CircuitFile(Reference):
    """A circuit saved in a file."""

    kind: Literal["circuit file"] = "circuit file"
    path: str
    digest: str

    @property
    def identity(self) -> str:
        """The content this names."""
        return self.digest

    def open(self) -> Circuit:
        """Return the circuit."""
        return Circuit.load(self.path)


class CircuitSequence(Reference):
    """Circuits to compare, in order."""

    kind: Literal["circuits"] = "circuits"
    circuits: list[CircuitReference | CircuitFile]

    @property
    def identity(self) -> str:
        """The content this names."""
        return digest_of([each.identity for each in self.circuits])


class Literals(Reference):
    """Numbers small enough to be named by themselves: steps, a table of measures."""

    kind: Literal["literals"] = "literals"
    values: list[Any]

    @property
    def identity(self) -> str:
        """The content this names."""
        return digest_of(self.values)


class ArraySequence(Reference):
    """One array per checkpoint (or per system, or dictionary), in order."""

    kind: Literal["sequence"] = "sequence"
    arrays: list[ArrayReference | DecoderReference | ResultArrayReference]

    @property
    def identity(self) -> str:
        """The content this names."""
        return digest_of([array.identity for array in self.arrays])


Input = (
    ArrayReference
    | ModelReference
    | DictionaryReference
    | CircuitReference
    | CircuitFile
    | Literals
    | ArraySequence
    | CircuitSequence
)


class Work(Reference):
    """One call of one technique: everything its answer depends on, and where the answer goes."""

    technique: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, Input]
    store: str
    run: str
    name: str
    step: int | None = None

    @property
    def key(self) -> ResultKey:
        """Where the answer goes."""
        return ResultKey(run=self.run, technique=self.technique, name=self.name, step=self.step)

    @property
    def label(self) -> str:
        """What it is applied to, as a person reads it."""
        return self.name

    @property
    def cache_key(self) -> str:
        """Digest of what the answer depends on: technique, its version, its config, the content of its inputs."""
        inputs = {name: each.identity for name, each in self.inputs.items()}
        return digest_of([self.technique, self.version, self.config, inputs])

    def is_done(self) -> bool:
        """Whether the store holds this very answer, committed."""
        stored = ActivationStore(self.store).result_provenance(self.key)
        return stored is not None and stored.get("cache_key") == self.cache_key


class Done(Reference):
    """A committed answer: its name and the digest of its content."""

    store: str
    run: str
    technique: str
    name: str
    step: int | None
    digest: str

    @property
    def key(self) -> ResultKey:
        """Where the answer lies."""
        return ResultKey(run=self.run, technique=self.technique, name=self.name, step=self.step)


def digest_of_file(path: Path) -> str:
    """Return the sha256 of a file's bytes.

    Raises
    ------
    ConfigurationError
        If it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as problem:
        raise ConfigurationError(f"the file {path} cannot be read: {problem.strerror}.") from problem


def digest_of(value: Any) -> str:
    """Return the sha256 of a JSON value, with its keys in order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
