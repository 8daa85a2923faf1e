"""The core that all sparse dictionaries share: weights, encoding, decoding and what training minimises.

    codes = sparsify(W_enc (x - b_dec) + b_enc)        x_hat = W_dec^T codes + b_dec

    loss  = |x - x_hat|^2 / d  +  sparsity_coef sum_j codes_j |W_dec,j|                        relu
          = |x - x_hat|^2 / d  +  auxiliary_coef |e - e_hat|^2 / var(e)                        topk, batch_topk

e = x - x_hat, held constant, is what the living latents leave; e_hat is what the best d/2 dead ones make of it,
without the decoder's bias. Unlike in [@gao2024] they hear x minus the batch's mean, without their own bias: no
gradient passes a ReLU that never opens, so a latent that training has driven below zero could not come back.
(Planted 128 features in 64 units, 12 seeds of 1960 steps: none dead; with their own bias, 1 in every other run.)

Both weight matrices have one row per latent. The decoder's rows are kept at norm 1
(topk, batch_topk), or their norm is charged for, and divided out at the end (relu).

The bias b_dec enters the encoder as b_enc - W_enc b_dec: the same numbers and gradients as subtracting it from x,
without the sixth dense product that x's gradient would cost.

Source: [@bricken2023; @conerly2024; @gao2024; @bussmann2024].
Cost: relu, five dense products of samples x units x latents per step; topk and batch_topk, one and some sparse.
"""

import copy
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from mechint_core.errors import CheckpointError, ConfigurationError, ShapeError
from mechint_core.features.config import SparseAutoencoderConfig
from mechint_core.features.sparse_codes import SparseCodes, batch_topk, sparse_encode, topk
from mechint_core.features.tensor_file import read_tensors, replace_durably, write_tensors
from mechint_core.random import torch_generator

Own = TypeVar("Own", bound="SparseDictionary")  # not Self, which beartype cannot check in single methods

WEIGHTS = "dictionary.safetensors"


class Objective(NamedTuple):
    """What one training pass over a batch found."""

    loss: Tensor
    error: Float[Tensor, "sample unit"]
    """x - x_hat, without gradient."""
    l0: Tensor
    """Mean number of active latents."""
    fired: Bool[Tensor, "latent"]
    threshold: Tensor
    """Smallest active code: what batch_topk used in place of a threshold. NaN for the others."""


class SparseDictionary(nn.Module, ABC):
    """Weights of a sparse dictionary and the maths on them; a subclass says what it is called and trained on.

    After training, `threshold` replaces the batch in batch_topk, so that a sample's codes depend on it alone.
    """

    W_enc: Float[nn.Parameter, "latent unit"]
    W_dec: Float[nn.Parameter, "latent unit"]
    b_enc: Float[nn.Parameter, "latent"]
    b_dec: Float[nn.Parameter, "unit"]
    threshold: Float[Tensor, "latent"]

    def __init__(self, input_dim: int, config: SparseAutoencoderConfig) -> None:
        super().__init__()
        n_latents = config.latents_for(input_dim)
        if input_dim < 1:
            raise ConfigurationError(f"input_dim must be at least 1. Got {input_dim}.")
        if config.activation != "relu" and config.k > n_latents:
            raise ConfigurationError(f"k must be at most the number of latents, {n_latents}. Got {config.k}.")
        self.config = replace(config, n_latents=n_latents)
        rows = torch.randn(n_latents, input_dim, generator=torch_generator(config.seed, "weights"))
        rows = functional.normalize(rows, dim=1) * (1.0 if self.unit_norm else 0.1)
        self.W_dec = nn.Parameter(rows)
        self.W_enc = self.W_dec if config.tied_weights else nn.Parameter(rows.clone())
        self.b_enc = nn.Parameter(torch.zeros(n_latents))
        self.b_dec = nn.Parameter(torch.zeros(input_dim))
        self.register_buffer("threshold", torch.zeros(n_latents))

    @property
    def input_dim(self) -> int:
        """Units of an activation vector."""
        return self.W_dec.shape[1]

    @property
    def hidden_dim(self) -> int:
        """Latents of the dictionary."""
        return self.W_dec.shape[0]

    @property
    def unit_norm(self) -> bool:
        """Whether training keeps the decoder's rows at norm 1."""
        return self.config.activation != "relu"

    def forward(self, x: Float[Tensor, "*sample unit"]) -> Float[Tensor, "*sample unit"]:
        """Return the reconstruction of x."""
        return self.decode(self.encode(x))

    def encode(self, x: Float[Tensor, "*sample unit"]) -> Float[Tensor, "*sample latent"]:
        """Return the code of each vector: at least 0, and 0 for all but a few latents."""
        if x.shape[-1] != self.input_dim:
            raise ShapeError(f"vectors must have {self.input_dim} units. Got shape {tuple(x.shape)}.")
        if self.config.activation == "topk":
            flat = x.reshape(-1, self.input_dim)
            return self._sparse_codes(flat).dense(self.hidden_dim).reshape(*x.shape[:-1], self.hidden_dim)
        pre = functional.linear(x, self.W_enc, self._encoder_bias())
        return torch.where(pre > self.threshold, functional.relu(pre), 0.0)

    def decode(self, codes: Float[Tensor, "*sample latent"]) -> Float[Tensor, "*sample unit"]:
        """Return the vectors that codes stand for."""
        return codes @ self.W_dec + self.b_dec

    def objective(self, x: Float[Tensor, "sample unit"], *, penalty: float, dead: Bool[Tensor, "latent"]) -> Objective:
        """Return the loss on a batch; `penalty` is the share of the L1 weight reached by its warm-up."""
        if self.config.activation == "relu":
            return self._penalised(x, self.config.sparsity_coef * penalty)
        codes = self._sparse_codes(x)
        error = x - (codes.matmul(self.W_dec) + self.b_dec)
        loss = error.square().mean() + self.config.auxiliary_coef * self._auxiliary(x, error.detach(), dead)
        active = codes.values.detach() > 0
        fired = torch.zeros_like(dead)
        fired[codes.latents[active]] = True
        least = torch.where(active, codes.values.detach(), torch.inf).min()
        return Objective(loss, error.detach(), active.sum() / len(x), fired, least)

    @torch.no_grad()
    def constrain_gradient(self) -> None:
        """Take from the decoder's gradient the part that would only change the norm of its rows."""
        if self.unit_norm and self.W_dec.grad is not None:
            along = torch.einsum("lu,lu->l", self.W_dec.grad, self.W_dec)
            self.W_dec.grad.addcmul_(along[:, None], self.W_dec, value=-1)

    @torch.no_grad()
    def constrain_weights(self) -> None:
        """Bring the decoder's rows back to norm 1 after a step."""
        if self.unit_norm:
            self.W_dec.copy_(functional.normalize(self.W_dec, dim=1))

    @torch.no_grad()
    def folded(self: Own, centre: Float[Tensor, "unit"], scale: float, threshold: float) -> Own:
        """Return the same dictionary for x = centre + scale x', codes in the units of x.

        Decoder rows have norm 1 then, unless tied weights of relu forbid to move their norm to the encoder.
        """
        made = copy.deepcopy(self)
        made.threshold.fill_(threshold)
        if not (made.unit_norm or made.config.tied_weights):
            norm = made.W_dec.norm(dim=1).clamp_min(torch.finfo(made.W_dec.dtype).tiny)
            made.W_dec.div_(norm[:, None])
            made.W_enc.mul_(norm[:, None])
            made.b_enc.mul_(norm)
        made.b_dec.mul_(scale).add_(centre)
        made.b_enc.mul_(scale)
        made.threshold.mul_(scale)
        return made

    def tensors(self) -> dict[str, Tensor]:
        """Return weights and threshold by name, shared ones once."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    @torch.no_grad()
    def take(self, tensors: dict[str, Tensor]) -> None:
        """Copy weights and threshold from `tensors`.

        Raises
        ------
        CheckpointError
            If one is missing or has another shape.
        """
        for name, own in self.tensors().items():
            if name not in tensors or tensors[name].shape != own.shape:
                got = tuple(tensors[name].shape) if name in tensors else "nothing"
                raise CheckpointError(f"{name} must have shape {tuple(own.shape)}. Got {got}.")
            own.copy_(tensors[name])

    def save(self, folder: Path | str) -> None:
        """Write `dictionary.safetensors`, which holds all, and its config for human readers as `config.json`."""
        folder = Path(folder)
        about: dict[str, Any] = {"input_dim": self.input_dim, "config": asdict(self.config)}
        write_tensors(folder / WEIGHTS, self.tensors(), about)
        partial = folder / "config.json.partial"
        partial.write_text(json.dumps(about, indent=2) + "\n")
        replace_durably(partial, folder / "config.json")

    @classmethod
    def load(cls: type[Own], folder: Path | str) -> Own:
        """Read what `save` wrote.

        Raises
        ------
        CheckpointError
            If the folder holds no dictionary, or one that does not fit its config.
        """
        tensors, about = read_tensors(Path(folder) / WEIGHTS)
        made = cls.from_config(read_config(about), about["input_dim"])
        made.take(tensors)
        return made

    @classmethod
    @abstractmethod
    def from_config(cls: type[Own], config: SparseAutoencoderConfig, input_dim: int) -> Own:
        """Return a dictionary for activations of `input_dim` units, with its initial weights."""

    def _encoder_bias(self) -> Float[Tensor, "latent"]:
        return self.b_enc - self.W_enc @ self.b_dec

    def _sparse_codes(self, x: Float[Tensor, "sample unit"]) -> SparseCodes:
        k = self.config.k
        select = topk(int(k)) if self.config.activation == "topk" else batch_topk(k)
        return sparse_encode(x, self.W_enc, self._encoder_bias(), select)

    def _penalised(self, x: Float[Tensor, "sample unit"], coefficient: float) -> Objective:
        codes = functional.relu(torch.addmm(self._encoder_bias(), x, self.W_enc.T))
        error = x - torch.addmm(self.b_dec, codes, self.W_dec)
        mean_codes = codes.sum(dim=0) / len(x)  # not mean(): its gradient would be one more dense array
        loss = error.square().mean() + coefficient * (mean_codes @ self.W_dec.norm(dim=1))
        l0 = torch.count_nonzero(codes.detach() > 0) / len(x)  # 7 times faster on booleans
        return Objective(loss, error.detach(), l0, mean_codes.detach() > 0, x.new_tensor(torch.nan))

    def _auxiliary(
        self, x: Float[Tensor, "sample unit"], residual: Float[Tensor, "sample unit"], dead: Bool[Tensor, "latent"]
    ) -> Tensor:
        """Return the share of the residual that the best dead latents fail to explain; 0 when none is dead."""
        latents = dead.nonzero().squeeze(1)
        variance = (residual - residual.mean(dim=0)).square().mean()
        if len(latents) == 0 or variance == 0:
            return x.new_zeros(())
        most = max(1, min(len(latents), self.input_dim // 2))
        weight = self.W_enc[latents]  # on x - mean(x), not on x - b_dec: see the top of this file
        codes = sparse_encode(x, weight, -weight @ x.mean(dim=0), topk(most))
        return (residual - codes.matmul(self.W_dec[latents])).square().mean() / variance


def read_config(about: dict[str, Any]) -> SparseAutoencoderConfig:
    """Return the config recorded in a saved file.

    Raises
    ------
    CheckpointError
        If it was written for other fields than this version has.
    """
    try:
        return SparseAutoencoderConfig(**about["config"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"a saved config must have this version's fields. Got {sorted(about)}: {error}."
        ) from error
