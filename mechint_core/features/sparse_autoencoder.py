"""Which sparse features the activations are made of.

    f(x) = sparsify(W_enc (x - b_dec) + b_enc),     x_hat = W_dec^T f(x) + b_dec,     |W_dec,j| = 1

A sparse autoencoder learns more directions than there are units, of which each vector uses few. The maths is in
`dictionary.py`, the training in `training.py`; this file gives them the notebook's names, and a Result.

Source: [@bricken2023; @bussmann2024; @gao2024].
Cost: see `dictionary.py`. Chunked over: blocks of samples; memory does not grow with their number.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechint_core.errors import ConfigurationError
from mechint_core.features.config import SparseAutoencoderConfig
from mechint_core.features.dictionary import SparseDictionary
from mechint_core.features.evaluate_dictionary import EvaluateDictionaryConfig, evaluate_dictionary
from mechint_core.features.training import METRICS, OnProgress, Trainer
from mechint_core.figure import Curve, Figure
from mechint_core.kernels.shuffle import BlockShuffle
from mechint_core.parallel import Rows
from mechint_core.random import derive_seed
from mechint_core.result import Estimate, Result

CURVE_POINTS = 200
"""Points at most along a training curve."""
EVALUATED = 2048
"""Vectors that the final estimates are made on."""
SAMPLE_BYTES = 2**26
"""Memory for drawing them."""


@final
class SparseAutoencoder(SparseDictionary):
    """A dictionary of sparse features of one kind of activation vector.

    Parameters
    ----------
    input_dim
        Units of a vector.
    hidden_dim
        Latents; usually 4 to 64 per unit.
    sparsity_coef
        If given, the L1 autoencoder (activation "relu") with this penalty: more is sparser. If not, what `config`
        says: the batch's largest codes.
    tied_weights
        Encode with the decoder's weights, transposed.
    config
        Everything else.

    Raises
    ------
    ConfigurationError
        If a size is below 1, or `k` is above `hidden_dim`.

    Examples
    --------
    >>> model = SparseAutoencoder(input_dim=8, hidden_dim=32, sparsity_coef=0.01)
    >>> losses = model.train_on_activations(np.random.default_rng(0).normal(size=(256, 8)), num_epochs=3)
    >>> (len(losses), tuple(model.get_feature_activations(np.zeros((5, 8))).shape))
    (3, (5, 32))
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        sparsity_coef: float | None = None,
        tied_weights: bool = False,
        *,
        config: SparseAutoencoderConfig = SparseAutoencoderConfig(),
    ) -> None:
        chosen = replace(config, n_latents=hidden_dim, tied_weights=tied_weights or config.tied_weights)
        if sparsity_coef is not None:
            chosen = replace(chosen, activation="relu", sparsity_coef=sparsity_coef)
        super().__init__(input_dim, chosen)

    @classmethod
    def from_config(cls, config: SparseAutoencoderConfig, input_dim: int) -> "SparseAutoencoder":
        """Return the autoencoder that `config` describes for vectors of `input_dim` units, untrained."""
        return cls(input_dim, config.latents_for(input_dim), config=config)

    def train_on_activations(
        self,
        activations: np.ndarray | Tensor,
        num_epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        *,
        on_progress: OnProgress | None = None,
    ) -> list[float]:
        """Train from fresh weights, and return the mean loss of each epoch.

        For data larger than memory, or a run that may be interrupted, use `train_sparse_autoencoder`.

        Parameters
        ----------
        activations
            (sample, unit), or more axes before the last.
        num_epochs, batch_size, lr
            In place of the config's.
        on_progress
            Called with the step and its metrics.

        Returns
        -------
        list of float
            Dimensionless: 1 is the error of the data's centre, and the penalties are added to it.
        """
        asked = {"n_epochs": num_epochs, "batch_size": batch_size, "lr": lr}
        given = {name: value for name, value in asked.items() if value is not None}
        config = replace(self.config, device=str(self.W_dec.device), **given)
        vectors = activations.detach().cpu().numpy() if isinstance(activations, Tensor) else activations
        trainer = SparseAutoencoderTrainer(vectors, config=config)
        if trainer.model.input_dim != self.input_dim:
            raise ConfigurationError(f"activations must have {self.input_dim} units. Got {trainer.model.input_dim}.")
        trainer.run(on_progress=on_progress)
        self.take(trainer.finished().tensors())
        self.config = config
        return trainer.epoch_losses()

    @torch.no_grad()
    def get_feature_activations(self, x: np.ndarray | Tensor) -> Float[Tensor, "*sample latent"]:
        """Return the codes of vectors: on the CPU and without gradient, ready to plot."""
        return self.encode(torch.as_tensor(x).to(self.W_dec)).cpu()


@dataclass(frozen=True, slots=True)
class SparseAutoencoderTraining(Result):
    """How a sparse autoencoder learned, and how good it ended."""

    technique: ClassVar[str] = "sparse_autoencoder"
    evidence: ClassVar[str] = (
        "Final numbers on a sample of the training vectors; intervals: bootstrap over samples (dead share: Wilson's "
        "over latents); null: random dictionaries of equal size and L0, at their best scale."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Curve(y=("loss", "fvu_curve"), x="step", title="Learning", x_label="step", y_label="loss, FVU", log_y=True),
        Curve(y=("l0_curve",), x="step", title="Active latents per vector", x_label="step", y_label="L0"),
        Curve(y=("dead_curve",), x="step", title="Dead latents", x_label="step", y_label="share"),
    )

    fvu: Estimate
    l0: Estimate
    dead_share: Estimate
    shrinkage: Estimate
    n_steps: int
    n_latents: int
    step: Float[np.ndarray, "pass"]
    loss: Float[np.ndarray, "pass"]
    fvu_curve: Float[np.ndarray, "pass"]
    l0_curve: Float[np.ndarray, "pass"]
    dead_curve: Float[np.ndarray, "pass"]

    def reading(self) -> str:
        """Say what was learned, and whether it had stopped improving."""
        tail = self.fvu_curve[-max(2, len(self.fvu_curve) // 10) :]
        falling = "was still improving" if tail[-1] < 0.95 * tail[0] else "had settled"
        return (
            f"After {self.n_steps} steps {self.l0.value:.3g} of {self.n_latents} latents per vector explain "
            f"{1 - self.fvu.value:.1%} of the variance (random directions: {1 - self.fvu.null:.1%}), and "
            f"{self.dead_share.value:.1%} of the latents are dead; the error {falling} at the end."
        )


@final
class SparseAutoencoderTrainer(Trainer[SparseAutoencoder]):
    """One training run of a sparse autoencoder: step it, save it, resume it."""

    model_class = SparseAutoencoder

    def history(self) -> SparseAutoencoderTraining:
        """Return the curves up to now, and estimates of the model as it is now on a sample of the source.

        Raises
        ------
        ConfigurationError
            If no step was made.
        """
        if self.n_done == 0:
            raise ConfigurationError("a history needs at least one step. Got 0. Call `run` or `step` first.")
        seed = derive_seed(self.config.seed, "evaluation")
        sample = next(BlockShuffle(self.source, batch_size=EVALUATED, seed=seed, buffer_bytes=SAMPLE_BYTES))
        config = EvaluateDictionaryConfig(seed=self.config.seed)
        final = evaluate_dictionary(sample.astype(np.float32), self.finished(), config=config)
        metrics = self.metrics[: self.n_done].double().cpu().numpy()
        runs = np.array_split(np.arange(self.n_done), min(CURVE_POINTS, self.n_done))
        curves = dict(zip(METRICS, np.stack([metrics[run].mean(axis=0) for run in runs], axis=1), strict=True))
        return SparseAutoencoderTraining(
            fvu=final.fvu,
            l0=final.l0,
            dead_share=final.dead_share,
            shrinkage=final.shrinkage,
            n_steps=self.n_done,
            n_latents=self.model.hidden_dim,
            step=np.array([run[-1] + 1.0 for run in runs]),
            loss=curves["loss"],
            fvu_curve=curves["fvu"],
            l0_curve=curves["l0"],
            dead_curve=curves["dead_share"],
        )


def train_sparse_autoencoder(
    source: Float[Rows, "sample *position unit"],
    *,
    config: SparseAutoencoderConfig = SparseAutoencoderConfig(),
    folder: Path | str | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[SparseAutoencoder, SparseAutoencoderTraining]:
    """Find the sparse features that these activations are made of.

    Use it when units respond to many unrelated things. It assumes that vectors are sums of few directions with
    non-negative strength. A dictionary always comes out: whether its features mean something, `evaluate_dictionary`
    against random directions, `match_features` between seeds and interventions have to show.

    Parameters
    ----------
    source
        Activation vectors, in memory or stored. Further axes before the last are flattened.
    config
        Size, sparsity and training.
    folder
        Where the state of training is kept. If it holds a run, that run is finished: the result is the same, bit
        for bit, as if it had never been stopped.
    on_progress
        Called about a hundred times with the number of steps made and {"loss", "fvu", "l0", "dead_share"}.

    Returns
    -------
    SparseAutoencoder
        On the CPU, in the units of `source`, with decoder rows of norm 1 (unless relu with tied weights).
    SparseAutoencoderTraining
        Curves over training, and final estimates on training vectors.

    Raises
    ------
    ShapeError
        If `source` has fewer than two axes, or holds no vector.
    DegenerateInputError
        If the vectors are all the same, or one is not finite.
    ConfigurationError
        If `k` is above the number of latents.
    CheckpointError
        If `folder` holds a run with another config or on other vectors.

    References
    ----------
    [@bricken2023]
    [@bussmann2024]
    [@gao2024]
    """
    trainer = SparseAutoencoderTrainer.start_or_resume(folder, source, config=config)
    trainer.run(folder=folder, on_progress=on_progress)
    return trainer.finished(), trainer.history()
