"""Training a sparse dictionary, resumable at any step without changing a bit of the result.

    x' = (x - centre) / scale       centre = geometric median,  scale^2 = mean |x - centre|^2 / d,  of a sample
    Adam on x', step size rising over `warmup`, falling over `decay`; the gradient clipped
    threshold = mean over recent steps of the smallest code that batch_topk kept

Everything a step depends on is the weights, Adam's moments, the dead counters, the threshold's mean and two
integers of the loader; there is no other randomness. `save` writes them as one file, replaced atomically. (Same
bits means: on the same kind of processor and with the same number of threads, which decide how sums are split.)

Cost: `n_epochs` reads of the rows. Memory: one shuffle buffer, one batch of codes, three copies of the weights.
"""

import hashlib
from abc import ABC
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechint_core.errors import CheckpointError, DegenerateInputError
from mechint_core.features.config import SparseAutoencoderConfig
from mechint_core.features.dictionary import SparseDictionary, read_config
from mechint_core.features.tensor_file import read_tensors, write_tensors
from mechint_core.kernels.shuffle import BlockShuffle
from mechint_core.parallel import Rows
from mechint_core.random import derive_seed

Model = TypeVar("Model", bound=SparseDictionary)
Run = TypeVar("Run", bound="Trainer[Any]")  # not Self, which beartype cannot check in single methods
OnProgress = Callable[[int, dict[str, float]], None]

METRICS = ("loss", "fvu", "l0", "dead_share")
STATE = "training.safetensors"
MAX_DEAD_VECTORS = 10_000_000
MIN_DEAD_BATCHES = 4
MAX_THRESHOLD_STEPS = 100
SAMPLE_VECTORS = 4096


class Trainer(ABC, Generic[Model]):
    """One training run as an object: step it, save it, resume it.

    Parameters
    ----------
    source
        Activation vectors: an array, or a stored array read block by block.
    config
        What to train and how.

    Raises
    ------
    ShapeError
        If `source` has fewer than two axes, or holds no vector.
    DegenerateInputError
        If the vectors are all the same, or one is not finite.
    """

    model_class: ClassVar[type[SparseDictionary]]
    """What a subclass trains: an instance of `Model`."""

    def __init__(self, source: Rows, *, config: SparseAutoencoderConfig = SparseAutoencoderConfig()) -> None:
        self.source = source
        self._batches = BlockShuffle(source, batch_size=config.batch_size, seed=derive_seed(config.seed, "batches"))
        self.centre, self.scale = _standardisation(source, config.seed)
        device = torch.device(config.device)
        self.model = cast(Model, self.model_class.from_config(config, self._batches.width).to(device))
        self.config = self.model.config
        self.n_steps = config.n_epochs * self._batches.n_batches
        self.n_done = 0
        self.metrics: Float[Tensor, "step metric"] = torch.zeros(self.n_steps, len(METRICS), device=device)
        self._centre = self.centre.to(device)
        self._silent = torch.zeros(self.model.hidden_dim, dtype=torch.int64, device=device)
        self._threshold = torch.zeros(2, dtype=torch.float64, device=device)  # weighted sum, and sum of the weights
        self._peak_lr = config.lr or 1e-3 * (16384 / self.model.hidden_dim) ** 0.5
        self._adam = torch.optim.Adam(self.model.parameters(), lr=self._peak_lr, fused=True)

    @property
    def done(self) -> bool:
        """Whether the last step was made."""
        return self.n_done >= self.n_steps

    def run(
        self, *, folder: Path | str | None = None, save_every: int | None = None, on_progress: OnProgress | None = None
    ) -> None:
        """Make the remaining steps.

        Parameters
        ----------
        folder
            Where to save the state now and then; None: nowhere.
        save_every
            Steps between saves. By default a twentieth of the run.
        on_progress
            Called about a hundred times with the number of steps made and the means of the metrics since the last call.
        """
        save_every = save_every or max(1, self.n_steps // 20)
        report_every = max(1, self.n_steps // 100)
        while not self.done:
            self.step()
            if on_progress and (self.n_done % report_every == 0 or self.done):
                recent = self.metrics[(self.n_done - 1) // report_every * report_every : self.n_done].mean(dim=0)
                on_progress(self.n_done, dict(zip(METRICS, recent.tolist(), strict=True)))
            if folder is not None and (self.n_done % save_every == 0 or self.done):
                self.save(folder)

    def step(self) -> None:
        """Make one step on the next batch."""
        x = self._next_batch()
        share = (self.n_done + 1) / self.n_steps
        rising = min(1.0, share / self.config.warmup) if self.config.warmup else 1.0
        falling = min(1.0, (1 - share + 1 / self.n_steps) / self.config.decay) if self.config.decay else 1.0
        self._adam.param_groups[0]["lr"] = self._peak_lr * min(rising, falling)
        found = self.model.objective(x, penalty=rising, dead=self._dead())
        self._adam.zero_grad()
        found.loss.backward()
        self.model.constrain_gradient()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self._adam.step()
        self.model.constrain_weights()
        self._silent = torch.where(found.fired, 0, self._silent + len(x))
        self._follow(found.threshold)
        fvu = found.error.square().sum() / (x - x.mean(dim=0)).square().sum()
        dead_share = self._dead().double().mean()
        self.metrics[self.n_done] = torch.stack([found.loss.detach(), fvu, found.l0, dead_share.to(fvu.dtype)])
        self.n_done += 1

    def finished(self) -> Model:
        """Return the dictionary as it is now, for vectors as they are in the source."""
        threshold = float(self._threshold[0] / self._threshold[1]) if self._threshold[1] else 0.0
        return self.model.folded(self._centre, self.scale, threshold).cpu()

    def epoch_losses(self) -> list[float]:
        """Return the mean loss of each completed epoch."""
        per_epoch = self._batches.n_batches
        n_epochs = self.n_done // per_epoch
        return self.metrics[: n_epochs * per_epoch, 0].reshape(n_epochs, per_epoch).mean(dim=1).tolist()

    def save(self, folder: Path | str) -> None:
        """Write the state of the run; the former state stays until the new one is complete."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.tensors().items()}
        for name, parameter in self.model.named_parameters():
            moments = self._adam.state.get(parameter, {})
            tensors |= {f"adam.{name}.{key}": value for key, value in moments.items()}
        tensors |= {"centre": self.centre, "silent": self._silent, "threshold": self._threshold}
        tensors |= {"metrics": self.metrics[: self.n_done]}
        about = {"n_done": self.n_done, "scale": self.scale, "loader": self._batches.state()}
        about |= {"config": asdict(self.config), "source": _fingerprint(self.source)}
        write_tensors(Path(folder) / STATE, tensors, about)

    @classmethod
    def start_or_resume(
        cls: type[Run], folder: Path | str | None, source: Rows, *, config: SparseAutoencoderConfig
    ) -> Run:
        """Resume the run saved in `folder` if there is one, else start it.

        Raises
        ------
        CheckpointError
            If the folder holds a run with another config or on other vectors.
        """
        started = cls(source, config=config)
        if folder is None or not (Path(folder) / STATE).exists():
            return started
        resumed = cls.resume(folder, source)
        if resumed.config != started.config:
            raise CheckpointError(
                f"{folder} must hold a run with this config. Got {resumed.config}. Use another folder."
            )
        return resumed

    @classmethod
    def resume(cls: type[Run], folder: Path | str, source: Rows) -> Run:
        """Return the saved run, ready to make the very steps it would have made.

        Raises
        ------
        CheckpointError
            If the folder holds no saved run, or one on other vectors.
        """
        tensors, about = read_tensors(Path(folder) / STATE)
        made = cls(source, config=read_config(about))
        if about["source"] != _fingerprint(source):
            raise CheckpointError(f"source must be what {folder} was trained on. Got other vectors.")
        made._restore(tensors, about)
        return made

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        self.centre, self.scale, self.n_done = tensors["centre"], about["scale"], about["n_done"]
        self._centre.copy_(self.centre)
        self._silent.copy_(tensors["silent"])
        self._threshold.copy_(tensors["threshold"])
        self.metrics[: self.n_done] = tensors["metrics"].to(self.metrics.device)
        self.model.take(_under("model.", tensors))
        for name, parameter in self.model.named_parameters():
            moments = _under(f"adam.{name}.", tensors)
            if moments:
                self._adam.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}
        self._batches.restore(about["loader"])

    def _next_batch(self) -> Float[Tensor, "sample unit"]:
        vectors = torch.from_numpy(next(self._batches).astype(np.float32, copy=False)).to(self._centre.device)
        x = (vectors - self._centre) / self.scale
        if not torch.isfinite(x.sum()):
            raise DegenerateInputError("activations must be finite. Got NaN or infinity in a batch.")
        return x

    def _dead(self) -> Tensor:
        window = self.config.dead_window * self._batches.n_vectors * self.config.n_epochs
        return self._silent >= max(MIN_DEAD_BATCHES * self.config.batch_size, min(window, MAX_DEAD_VECTORS))

    def _follow(self, least: Tensor) -> None:
        """Add one batch's threshold to its running mean."""
        if self.config.activation != "batch_topk" or not torch.isfinite(least):
            return
        weight = 1 / max(1.0, min(self.config.threshold_window * self.n_steps, MAX_THRESHOLD_STEPS))
        new = torch.stack([least.double(), torch.ones_like(least, dtype=torch.float64)])
        self._threshold.lerp_(new, weight)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _fingerprint(source: Rows) -> str:
    """Return a digest of the shape, dtype, first and last rows: enough to notice another array."""
    digest = hashlib.sha256(f"{source.shape} {source.dtype}".encode())
    for rows in (slice(0, 4), slice(max(0, source.shape[0] - 4), source.shape[0])):
        digest.update(np.ascontiguousarray(source[rows]).tobytes())
    return digest.hexdigest()


def _standardisation(source: Rows, seed: int) -> tuple[Float[Tensor, "unit"], float]:
    """Return the geometric median of a sample of vectors, and their root mean square distance from it per unit."""
    rows = BlockShuffle(source, batch_size=SAMPLE_VECTORS, seed=derive_seed(seed, "sample"), buffer_bytes=2**26)
    vectors = next(rows).astype(np.float64)
    if not np.isfinite(vectors).all():
        raise DegenerateInputError("activations must be finite. Got NaN or infinity.")
    centre = vectors.mean(axis=0)
    spread = float(np.sqrt(np.mean((vectors - centre) ** 2)))
    if spread <= 1e-6 * float(np.abs(centre).max()) or spread == 0:
        raise DegenerateInputError("activations must differ. Got vectors that are all the same: nothing to learn.")
    for _ in range(20):  # Weiszfeld's iteration; a vector at the guess itself must not weigh infinitely
        weights = 1 / np.maximum(np.linalg.norm(vectors - centre, axis=1), 1e-3 * spread)
        centre = weights @ vectors / weights.sum()
    scale = float(np.sqrt(np.mean((vectors - centre) ** 2)))
    return torch.from_numpy(centre.astype(np.float32)), scale
