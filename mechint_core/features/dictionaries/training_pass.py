"""One pass over the data for several dictionaries: who reads what, the loader, the saved state."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mechint_core.errors import CheckpointError, ConfigurationError
from mechint_core.features.dictionaries.config import SparseAutoencoderConfig
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.features.dictionaries.standardisation import Standardisation, standardisation
from mechint_core.features.dictionaries.tensor_file import read_tensors, write_tensors
from mechint_core.features.dictionaries.training import METRICS, Length, OnProgress, Trainer
from mechint_core.kernels.row_views import SideBySide
from mechint_core.kernels.shuffle import BlockShuffle
from mechint_core.parallel import Rows
from mechint_core.random import derive_seed, generator

STATE = "training.safetensors"
WORKSPACE = 100 * 2**20
"""What torch's kernels and the reading of stored chunks take besides; measured, as the copies of the codes are."""
SAMPLE_VECTORS = 4096
EVALUATED = 2048
"""Vectors that say which latents fire, and how good a dictionary is."""
SAMPLE_BLOCK = 64
"""Neighbouring vectors that are read together for it."""
SHARED = ("n_epochs", "batch_size", "data_seed", "buffer_bytes")
"""What the dictionaries of one pass have in common: what decides which vectors come when."""


class Job(NamedTuple):
    """One dictionary to train, and the sources it reads and writes."""

    dictionary: SparseDictionary
    reads: tuple[str, ...]
    """Several for a dictionary of several sites, which lie side by side for it."""
    writes: str = ""
    """The source it should write; empty: what it reads."""


class TrainingPass:
    """Dictionaries in training on the same vectors: step them, save them, resume them.

    Parameters
    ----------
    sources
        Activation vectors by name: arrays, or stored arrays that are read block by block. Their axes before the
        units agree.
    jobs
        What to train, by name. The dictionaries are trained in place, in the units of training.

    Raises
    ------
    ShapeError
        If a source has fewer than two axes or holds no vector, or the sources do not agree.
    ConfigurationError
        If a job names no source, or does not fit it, or the jobs differ in what decides the order of the data.
    DegenerateInputError
        If the vectors of a site are all the same, or one is not finite.
    """

    def __init__(self, sources: Mapping[str, Rows], jobs: Mapping[str, Job]) -> None:
        self.sources, self.jobs = dict(sources), dict(jobs)
        config = self._shared_config()
        self._joint = SideBySide(list(self.sources.values()))
        self._batches = BlockShuffle(
            self._joint,
            batch_size=config.batch_size,
            seed=derive_seed(config.data_seed, "batches"),
            buffer_bytes=config.buffer_bytes,
        )
        ends = np.cumsum([0, *(rows.shape[-1] for rows in self.sources.values())])
        self._columns = {name: slice(int(ends[i]), int(ends[i + 1])) for i, name in enumerate(self.sources)}
        self.length = Length(config.n_epochs * self._batches.n_batches, config.n_epochs * self._batches.n_vectors)
        self.n_done = 0
        self._sample = self._drawn(SAMPLE_VECTORS, "sample")  # the units of training are measured on these
        self.trainers = {name: self._trainer(job) for name, job in self.jobs.items()}

    @property
    def done(self) -> bool:
        """Whether the last step was made."""
        return self.n_done >= self.length.n_steps

    @property
    def memory_bytes(self) -> int:
        """Memory that training needs at most: workspace, buffer, one batch, its codes, four copies of the weights."""
        config = self._shared_config()
        row = 4 * sum(rows.shape[-1] for rows in self.sources.values())
        buffer = min(config.buffer_bytes, self._batches.n_vectors * row)
        weights = sum(4 * 4 * each.numel() for one in self.trainers.values() for each in one.parameters().values())
        dense = {"topk": 2.5, "batch_topk": 2.5, "gated": 9}  # copies of (sample, latent) alive at once
        codes = max(
            4 * config.batch_size * one.dictionary.hidden_dim * dense.get(one.config.activation, 5)
            for one in self.trainers.values()
        )
        return int(WORKSPACE + buffer + 6 * config.batch_size * row + codes + weights)

    def run(
        self,
        *,
        folder: Path | str | Mapping[str, Path] | None = None,
        save_every: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Make the remaining steps.

        Parameters
        ----------
        folder
            Where to save the state now and then, as for `save`; None: nowhere.
        save_every
            Steps between saves. By default a twentieth of the run.
        on_progress
            Called about a hundred times with the number of steps made and the means of the metrics since the last
            call: `loss`, `fvu`, `l0`, `dead_share`, parts of the loss; with several dictionaries `name/loss`, ...
        """
        save_every = save_every or max(1, self.length.n_steps // 20)
        report_every = max(1, self.length.n_steps // 100)
        while not self.done:
            self.step()
            if on_progress and (self.n_done % report_every == 0 or self.done):
                on_progress(self.n_done, self.recent((self.n_done - 1) % report_every + 1))
            if folder is not None and (self.n_done % save_every == 0 or self.done):
                self.save(folder)

    def step(self) -> None:
        """Make one step of every dictionary on the next batch."""
        batch = torch.from_numpy(next(self._batches).astype(np.float32, copy=False))
        for name, trainer in self.trainers.items():
            if trainer.n_done > self.n_done:
                continue
            job = self.jobs[name]
            read = [batch[:, self._columns[each]] for each in job.reads]
            x = read[0] if len(read) == 1 else torch.cat(read, dim=1)
            trainer.step(x, batch[:, self._columns[job.writes]] if job.writes else x)
        self.n_done += 1

    def recent(self, n_steps: int) -> dict[str, float]:
        """Return the means of the metrics over the last steps."""
        found: dict[str, float] = {}
        for name, trainer in self.trainers.items():
            means = trainer.metrics[self.n_done - n_steps : self.n_done].mean(dim=0).tolist()
            prefix = f"{name}/" if len(self.trainers) > 1 else ""
            found |= {f"{prefix}{metric}": mean for metric, mean in zip(METRICS, means, strict=True)}
        return found

    def epoch_losses(self, name: str) -> list[float]:
        """Return the mean loss of each completed epoch."""
        per_epoch = self._batches.n_batches
        n_epochs = self.n_done // per_epoch
        losses = self.trainers[name].metrics[: n_epochs * per_epoch, 0]
        return losses.reshape(n_epochs, per_epoch).mean(dim=1).tolist()

    @torch.no_grad()
    def finished(self, name: str) -> SparseDictionary:
        """Return a dictionary as it is now, for vectors as they are stored, on the CPU; it knows which latents fire."""
        made = self.trainers[name].finished()
        fires = made.encode(torch.from_numpy(self.read_by(name, self.sample(EVALUATED, "evaluation")))) > 0
        made.alive.copy_(fires.any(dim=0))
        return made

    def read_by(self, name: str, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return what a dictionary reads of the vectors of every source."""
        return np.concatenate([vectors[each] for each in self.jobs[name].reads], axis=1)

    def sample(self, n_vectors: int, *stream: str) -> dict[str, np.ndarray]:
        """Return random vectors of every source, the same ones of each."""
        return {name: values.astype(np.float32) for name, values in self._drawn(n_vectors, *stream).items()}

    def save(self, folder: Path | str | Mapping[str, Path]) -> None:
        """Write the state of every dictionary; its former state stays until the new one is complete.

        Parameters
        ----------
        folder
            A folder for all, or one for each by name. A dictionary's state depends on no other's, so that one may be
            resumed with others than it was begun with.
        """
        for name, trainer in self.trainers.items():
            if trainer.n_done <= self.n_done:  # the others are ahead, and saved
                about = {"n_done": trainer.n_done, "loader": self._batches.state(), **self._about(name)}
                write_tensors(_place(folder, name) / STATE, trainer.state(), about)

    def resume(self, folder: Path | str | Mapping[str, Path]) -> bool:
        """Go to where the dictionaries saved in `folder` were; return whether there was one.

        Of several at different steps, those ahead wait for the last.

        Raises
        ------
        CheckpointError
            If the folder holds a run with another config or on other vectors.
        """
        loaders: dict[int, Mapping[str, int]] = {}
        found = False
        for name, trainer in self.trainers.items():
            path = _place(folder, name) / STATE
            if not path.exists():
                loaders[0] = {"epoch": 0, "batch": 0}
                continue
            tensors, about = read_tensors(path)
            own = self._about(name)
            if about["job"] != own["job"]:
                raise CheckpointError(
                    f"{path} must be of a run with this config. Got {about['job']}. Use another folder."
                )
            if about["sources"] != own["sources"]:
                raise CheckpointError(f"the sources must be what {path} was trained on. Got other vectors.")
            trainer.restore(tensors, int(about["n_done"]))
            found = True
            loaders[trainer.n_done] = about["loader"]
        self.n_done = min(loaders)
        if not self.done:
            self._batches.restore(loaders[self.n_done])
        return found

    def _trainer(self, job: Job) -> Trainer:
        unknown = [name for name in (*job.reads, job.writes) if name and name not in self.sources]
        if unknown or not job.reads:
            raise ConfigurationError(f"a job must read some of {', '.join(self.sources)}. Got {job.reads}, {unknown}.")
        read = self._units(job.reads)
        written = self._units((job.writes,)) if job.writes else read
        dictionary = job.dictionary
        writes = (job.writes,) if job.writes else job.reads
        for names, units, n in ((job.reads, read, dictionary.input_dim), (writes, written, dictionary.output_dim)):
            if len(units.centre) != n:
                raise ConfigurationError(f"{', '.join(names)} must have {n} units. Got {len(units.centre)}.")
        return Trainer(dictionary, read, written, self.length)

    def _units(self, names: tuple[str, ...]) -> Standardisation:
        parts = [self._sample[name] for name in names]
        return standardisation(np.concatenate(parts, axis=1), [part.shape[1] for part in parts])

    def _about(self, name: str) -> dict[str, Any]:
        """Return what tells one dictionary's run from another, as JSON gives it back."""
        job = self.jobs[name]
        named = (*job.reads, job.writes) if job.writes else job.reads
        sources = [self._fingerprints[each] for each in named]
        return json.loads(json.dumps({"job": [job.dictionary.about(), job.reads, job.writes], "sources": sources}))

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        return {name: _fingerprint(rows) for name, rows in self.sources.items()}

    def _drawn(self, n_vectors: int, *stream: str) -> dict[str, np.ndarray]:
        """Read vectors at random places, which depend on the number of rows alone and not on who else is read."""
        n_rows, per_row = self._joint.shape[0], self._batches.n_vectors // self._joint.shape[0]
        block = min(n_rows, max(1, SAMPLE_BLOCK // per_row))
        rng = generator(self._shared_config().data_seed, *stream)
        order = rng.permutation(-(-n_rows // block))[: -(-n_vectors // (block * per_row))]
        runs = [self._joint[slice(int(i) * block, (int(i) + 1) * block)] for i in np.sort(order)]
        vectors = np.concatenate([run.reshape(-1, run.shape[-1]) for run in runs])
        vectors = vectors[rng.permutation(len(vectors))[:n_vectors]]
        return {name: vectors[:, columns] for name, columns in self._columns.items()}

    def _shared_config(self) -> SparseAutoencoderConfig:
        configs = [job.dictionary.config for job in self.jobs.values()]
        if not configs:
            raise ConfigurationError("a pass needs at least one dictionary. Got none.")
        for name in SHARED:
            values = {getattr(config, name) for config in configs}
            if len(values) > 1:
                raise ConfigurationError(f"dictionaries of one pass must have the same {name}. Got {sorted(values)}.")
        return configs[0]


def train_alone(
    fresh: SparseDictionary, activations: np.ndarray | Tensor, on_progress: OnProgress | None = None
) -> tuple[SparseDictionary, list[float]]:
    """Train one dictionary on vectors in memory; return it in their units, and the mean loss of each epoch."""
    vectors = activations.detach().cpu().numpy() if isinstance(activations, Tensor) else activations
    training = TrainingPass({"activations": vectors}, {"": Job(fresh, ("activations",))})
    training.run(on_progress=on_progress)
    return training.finished(""), training.epoch_losses("")


def retimed(
    config: SparseAutoencoderConfig, num_epochs: int | None, batch_size: int | None, lr: float | None, device: str
) -> SparseAutoencoderConfig:
    """Return the config with what the notebook's call says in place of its own."""
    asked = {"n_epochs": num_epochs, "batch_size": batch_size, "lr": lr}
    return replace(config, device=device, **{name: value for name, value in asked.items() if value is not None})


def _place(folder: Path | str | Mapping[str, Path], name: str) -> Path:
    """Return where the state of one dictionary is kept."""
    return folder[name] if isinstance(folder, Mapping) else Path(folder) / name


def _fingerprint(source: Rows) -> str:
    """Return a digest of the shape, dtype, first and last rows: enough to notice another array."""
    digest = hashlib.sha256(f"{source.shape} {source.dtype}".encode())
    for rows in (slice(0, 4), slice(max(0, source.shape[0] - 4), source.shape[0])):
        digest.update(np.ascontiguousarray(source[rows]).tobytes())
    return digest.hexdigest()
