"""Which sparse features the activations of one site are made of.

    f(x) = sparsify(W_enc (x - b_dec) + b_enc),     x_hat = W_dec^T f(x) + b_dec,     |W_dec,j| = 1

A sparse autoencoder learns more directions than there are units, of which each vector uses few. The maths is in
`dictionary.py` and `objectives.py`, the training in `training.py`; this file gives them the notebook's names.

Source: [@bricken2023; @bussmann2024; @gao2024].
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechint_core.features.dictionaries.config import SparseAutoencoderConfig
from mechint_core.features.dictionaries.dictionary import SparseDictionary, read_config
from mechint_core.features.dictionaries.training import OnProgress
from mechint_core.features.dictionaries.training_pass import retimed, train_alone


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
    def from_about(cls, about: Mapping[str, Any]) -> "SparseAutoencoder":
        """Return an autoencoder of a saved shape, with its initial weights."""
        config = read_config(about)
        made = cls(about["input_dim"], config.latents_for(about["input_dim"]), config=config)
        made.site = about.get("site", "")
        return made

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
        config = retimed(self.config, num_epochs, batch_size, lr, str(self.W_dec.device))
        fresh = SparseAutoencoder(self.input_dim, self.hidden_dim, config=config)
        trained, losses = train_alone(fresh, activations, on_progress)
        self.take(trained.tensors())
        self.config = config
        return losses

    @torch.no_grad()
    def get_feature_activations(self, x: np.ndarray | Tensor) -> Float[Tensor, "*sample latent"]:
        """Return the codes of vectors: on the CPU and without gradient, ready to plot."""
        return self.encode(torch.as_tensor(x).to(self.W_dec)).cpu()
