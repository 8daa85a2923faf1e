"""Tasks over `mechint_core.features`.

Training a dictionary has a shape of its own (checkpoints, progress, resume), so its task is written by hand; it leaves
an ordinary Result, and a dictionary that other techniques take as an input.
"""

import dataclasses
import shutil
import time
from typing import Any

from prefect import task

from mechint_core import features
from mechint_core.features import DictionaryTraining, SparseAutoencoderConfig
from mechint_core.store import ActivationStore, ResultKey
from tasks._technique import from_json, provenance_of, read_about, technique_task
from tasks.references import ArrayReference, Done, Reference, digest_of

evaluate_dictionary = technique_task(features.evaluate_dictionary, version=1)
match_features = technique_task(features.match_features, version=1)


class DictionaryWork(Reference):
    """One dictionary to train: everything it depends on, and where it goes."""

    activations: ArrayReference
    config: dict[str, Any]
    name: str
    version: int = 1
    technique: str = "dictionary_training"

    @property
    def store(self) -> str:
        """Where the activations are, and the dictionary goes."""
        return self.activations.store

    @property
    def run(self) -> str:
        """The training run."""
        return self.activations.run

    @property
    def step(self) -> int:
        """The checkpoint's step."""
        return self.activations.step

    @property
    def key(self) -> ResultKey:
        """Where the record of the training goes."""
        return ResultKey(run=self.run, technique=self.technique, name=self.label, step=self.step)

    @property
    def label(self) -> str:
        """Site and name, as the report shows them."""
        return self.activations.label if self.name == "default" else f"{self.activations.label}.{self.name}"

    @property
    def cache_key(self) -> str:
        """Digest of what the dictionary depends on."""
        return digest_of([self.technique, self.version, self.config, self.activations.identity])

    def is_done(self) -> bool:
        """Whether the store holds this very dictionary, committed."""
        stored = ActivationStore(self.store).result_provenance(self.key)
        return stored is not None and stored.get("cache_key") == self.cache_key


@task(name="dictionary_training", task_run_name="dictionary_training {work.label} @{work.step}", retries=1)
def train_dictionary(work: DictionaryWork) -> Done:
    """Train a dictionary from the store, saving as it goes; continue where a killed run had got to."""
    store = ActivationStore(work.store)
    started = time.perf_counter()
    source = {"cache_key": work.cache_key}
    with store.write_dictionary(work.run, work.step, work.activations.site, work.label, source=source) as folder:
        state = folder / "training"
        config = from_json(SparseAutoencoderConfig, work.config)
        dictionary, training = features.train_sparse_autoencoder(work.activations.open(), config=config, folder=state)
        dictionary.save(folder)
        shutil.rmtree(state)
    digest = store.write_result(
        work.key,
        training,
        about=read_about(features.train_dictionaries, DictionaryTraining),
        config=dataclasses.asdict(config),
        provenance=provenance_of(work, {"activations": work.activations.identity}, time.perf_counter() - started),
    )
    return Done(
        store=work.store, run=work.run, technique=work.technique, name=work.label, step=work.step, digest=digest
    )
