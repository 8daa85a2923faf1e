"""The core that all sparse dictionaries share: weights, encoding, decoding, and files.

    pre_j = W_enc,j . (x - b_dec) + b_enc,j
    f_j   = relu(pre_j)  where pre_j > threshold_j, else 0         relu, gated, jumprelu, batch_topk
    f_j   = relu(pre_j)  where pre_j is among the k largest        topk
    x_hat = sum_j f_j W_dec,j + b_dec

Both weight matrices have one row per latent. Whatever a dictionary was trained with, a trained one has this form and
decoder rows of norm 1: `objectives.py` says what training minimises, and how each kind folds into this. A transcoder
reads one vector and writes another: its encoder does not subtract b_dec, and it may add W_skip x.

The bias b_dec enters the encoder as b_enc - W_enc b_dec: the same numbers and gradients as subtracting it from x,
without the sixth dense product that x's gradient would cost in training.

Source: [@bricken2023; @rajamanoharan2024b] for the two forms.
Cost: two dense products of samples x units x latents.
"""

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from mechint_core.errors import CheckpointError, ConfigurationError, ShapeError
from mechint_core.features.dictionaries.config import SparseAutoencoderConfig
from mechint_core.features.dictionaries.sparse_codes import SparseCodes, batch_topk, sparse_encode, topk
from mechint_core.features.dictionaries.standardisation import Standardisation
from mechint_core.features.dictionaries.tensor_file import read_tensors, replace_durably, write_tensors
from mechint_core.random import torch_generator

Own = TypeVar("Own", bound="SparseDictionary")  # not Self, which beartype cannot check in single methods

WEIGHTS = "dictionary.safetensors"


class SparseDictionary(nn.Module, ABC):
    """Weights of a sparse dictionary and the maths on them; a subclass says what it reads and writes."""

    W_enc: Float[nn.Parameter, "latent unit"]
    W_dec: Float[nn.Parameter, "latent unit"]
    b_enc: Float[nn.Parameter, "latent"]
    b_dec: Float[nn.Parameter, "unit"]
    threshold: Float[Tensor, "latent"]
    """Codes up to this are zero. Set at the end of training."""
    W_skip: nn.Parameter | None
    scale: Float[Tensor, "unit"]
    """What each written unit was divided by in training: its site's root mean square."""
    alive: Bool[Tensor, "latent"]
    """Whether it fires on a sample of the training vectors; all, of a dictionary that was not trained here."""

    def __init__(
        self, input_dim: int, config: SparseAutoencoderConfig, *, output_dim: int | None = None, skip: bool = False
    ) -> None:
        super().__init__()
        n_latents, n_written = config.latents_for(input_dim), output_dim or input_dim
        if min(input_dim, n_written) < 1:
            raise ConfigurationError(f"a vector must have at least 1 unit. Got {input_dim} and {n_written}.")
        if config.activation in ("topk", "batch_topk", "jumprelu") and config.k > n_latents:
            raise ConfigurationError(f"k must be at most the number of latents, {n_latents}. Got {config.k}.")
        config.level_sizes(n_latents)
        self.config = replace(config, n_latents=n_latents)
        self.site = ""
        self.reconstructs = output_dim is None
        rows = torch.randn(n_latents, n_written, generator=torch_generator(config.seed, "weights"))
        rows = functional.normalize(rows, dim=1)
        self.W_dec = nn.Parameter(rows if config.unit_norm else 0.1 * rows)
        self.W_enc = self.W_dec if config.tied_weights else nn.Parameter(self._first_encoder(input_dim))
        self.b_enc = nn.Parameter(torch.zeros(n_latents))
        self.b_dec = nn.Parameter(torch.zeros(n_written))
        self.register_parameter("W_skip", nn.Parameter(torch.zeros(n_written, input_dim)) if skip else None)
        self.register_buffer("threshold", torch.zeros(n_latents))
        self.register_buffer("scale", torch.ones(n_written))
        self.register_buffer("alive", torch.ones(n_latents, dtype=torch.bool))

    @property
    def input_dim(self) -> int:
        """Units of a vector that the dictionary reads."""
        return self.W_enc.shape[1]

    @property
    def output_dim(self) -> int:
        """Units of a vector that the dictionary writes."""
        return self.W_dec.shape[1]

    @property
    def hidden_dim(self) -> int:
        """Latents of the dictionary."""
        return self.W_dec.shape[0]

    def forward(self, x: Float[Tensor, "*sample unit"]) -> Float[Tensor, "*sample other_unit"]:
        """Return what the dictionary writes for x: its reconstruction, unless it is a transcoder."""
        written = self.decode(self.encode(x))
        return written if self.W_skip is None else written + x @ self.W_skip.T

    def encode(self, x: Float[Tensor, "*sample unit"]) -> Float[Tensor, "*sample latent"]:
        """Return the code of each vector: at least 0, and 0 for all but a few latents."""
        if x.shape[-1] != self.input_dim:
            raise ShapeError(f"vectors must have {self.input_dim} units. Got shape {tuple(x.shape)}.")
        if self.config.activation == "topk":
            codes = self.sparse_codes(x.reshape(-1, self.input_dim))
            return codes.dense(self.hidden_dim).reshape(*x.shape[:-1], self.hidden_dim)
        pre = functional.linear(x, self.W_enc, self.encoder_bias())
        return torch.where(pre > self.threshold, functional.relu(pre), 0.0)

    def decode(self, codes: Float[Tensor, "*sample latent"]) -> Float[Tensor, "*sample unit"]:
        """Return the vectors that codes stand for (of a transcoder with a skip: its part from the codes)."""
        return codes @ self.W_dec + self.b_dec

    def encoder_bias(self) -> Float[Tensor, "latent"]:
        """Return b_enc, with what subtracting b_dec from x would add."""
        return self.b_enc - self.W_enc @ self.b_dec if self.reconstructs else self.b_enc

    def sparse_codes(self, x: Float[Tensor, "sample unit"]) -> SparseCodes:
        """Return the k largest codes of each vector, or of the batch, as training sees them."""
        k = self.config.k
        select = topk(int(k)) if self.config.activation == "topk" else batch_topk(k)
        return sparse_encode(x, self.W_enc, self.encoder_bias(), select)

    @torch.no_grad()
    def folded(self: Own, read: Standardisation, written: Standardisation) -> Own:
        """Return the same dictionary for vectors as they are, x = centre + scale x', with decoder rows of norm 1.

        Codes then have the units of what is written. (topk over sites of different size gets one factor for all its
        latents, because several would change which codes are largest: its rows have norm 1 on average only.)
        """
        made = copy.deepcopy(self)
        made.scale.copy_(written.scale)
        if self.config.tied_weights:
            factor: Tensor = written.scale[0]
        else:
            made.W_enc.div_(read.scale)
            made.W_dec.mul_(written.scale)
            norms = made.W_dec.norm(dim=1)
            factor = norms.mean() if self.config.activation == "topk" else norms
            factor = factor.clamp_min(torch.finfo(made.W_dec.dtype).tiny)
            made.W_enc.mul_(factor.reshape(-1, 1))
            made.W_dec.div_(factor.reshape(-1, 1))
        made.b_enc.mul_(factor)
        made.threshold.mul_(factor)
        made.b_dec.mul_(written.scale).add_(written.centre)
        if made.W_skip is not None:
            made.W_skip.mul_(written.scale[:, None]).div_(read.scale)
            made.b_dec.sub_(made.W_skip @ read.centre)
        if not self.reconstructs:
            made.b_enc.sub_(made.W_enc @ read.centre)
        return made

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, threshold and other buffers by name, shared ones once."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy weights, threshold and other buffers from `tensors`.

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
        write_tensors(folder / WEIGHTS, self.tensors(), self.about())
        partial = folder / "config.json.partial"
        partial.write_text(json.dumps(self.about(), indent=2) + "\n")
        replace_durably(partial, folder / "config.json")

    @classmethod
    def load(cls: type[Own], folder: Path | str) -> Own:
        """Read what `save` wrote. (`load_dictionary` reads any kind.)

        Raises
        ------
        CheckpointError
            If the folder holds no dictionary, or one of another kind, or one that does not fit its config.
        """
        tensors, about = read_tensors(Path(folder) / WEIGHTS)
        if about.get("kind", cls.__name__) != cls.__name__:
            raise CheckpointError(
                f"{folder} must hold a {cls.__name__}. Got a {about['kind']}: use load_dictionary, which takes any."
            )
        made = cls.from_about(about)
        made.take(tensors)
        return made

    def about(self) -> dict[str, Any]:
        """Return what `from_about` needs to make a dictionary of this shape."""
        shape = {"input_dim": self.input_dim, "output_dim": self.output_dim, "skip": self.W_skip is not None}
        return {"kind": type(self).__name__, "site": self.site, **shape, "config": asdict(self.config)}

    @classmethod
    @abstractmethod
    def from_about(cls: type[Own], about: Mapping[str, Any]) -> Own:
        """Return a dictionary of a saved shape, with its initial weights.

        Raises
        ------
        CheckpointError
            If it was saved by a version with other fields.
        """

    def _first_encoder(self, input_dim: int) -> Tensor:
        """Return the decoder's rows, so that a latent that fires helps from the start; random for another space."""
        if self.reconstructs:
            return self.W_dec.detach().clone()
        rows = torch.randn(self.hidden_dim, input_dim, generator=torch_generator(self.config.seed, "encoder"))
        return functional.normalize(rows, dim=1)


def read_config(about: Mapping[str, Any]) -> SparseAutoencoderConfig:
    """Return the config recorded in a saved file.

    Raises
    ------
    CheckpointError
        If it was written for other fields than this version has.
    """
    try:
        config: dict[str, Any] = {
            name: tuple(each) if isinstance(each, list) else each for name, each in about["config"].items()
        }
        return SparseAutoencoderConfig(**config)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"a saved config must have this version's fields. Got {sorted(about.get('config', {}))}: {error}."
        ) from error
