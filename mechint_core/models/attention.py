"""Let PyTorch's own attention say what its heads write.

    nn.MultiheadAttention     y = [h_1 ... h_H] W_o + b      computed in one piece: `out_proj` is never called

So its heads pass no hook. While `projecting` lasts, the same computation is made with the identity in the place of
W_o, which gives the concatenated heads bit for bit, and `out_proj` is then called on them as a module. Masks, layouts,
returned weights and extra keys stay PyTorch's own.

Cost: one more product with a (unit x unit) matrix per call.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from mechint_core.errors import ConfigurationError
from mechint_core.models.sites import module_at, split_site

_PROJECTION: Final = "out_proj"


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Generator[None]:
    """Compute `module` by `forward` in this block; its hooks stay on it."""
    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before


@contextmanager
def projecting(model: nn.Module, site: str) -> Generator[None]:
    """Let `site` run in this block if it is the input of the projection of an `nn.MultiheadAttention`.

    Raises
    ------
    ConfigurationError
        During the call of the model, if a subclass computes attention without `out_proj`.
    """
    name, is_input = split_site(site)
    attention = whole_attention(model, name) if is_input else None
    if attention is None or isinstance(attention.forward, _Projecting):
        yield
    else:
        with replaced_forward(attention, _Projecting(attention, name)):
            yield


def whole_attention(model: nn.Module, name: str) -> nn.MultiheadAttention | None:
    """Return the attention whose output projection this module is, if it never calls it as a module."""
    parent, _, child = name.rpartition(".")
    attention = module_at(model, parent) if child == _PROJECTION else None
    return attention if isinstance(attention, nn.MultiheadAttention) else None


class _Projecting:
    """A forward of `attention` that calls its projection as a module."""

    def __init__(self, attention: nn.MultiheadAttention, name: str) -> None:
        self.attention, self.name, self.whole = attention, name, attention.forward
        weight = attention.out_proj.weight
        self.identity = _Identity(torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device))

    def __call__(self, *inputs: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        projection = self.attention.out_proj
        self.identity.used = False
        setattr(self.attention, _PROJECTION, self.identity)
        try:
            heads, weights = self.whole(*inputs, **options)
        finally:
            setattr(self.attention, _PROJECTION, projection)
        if not self.identity.used:
            raise ConfigurationError(
                f"heads must reach {self.name!r}. Got a {type(self.attention).__name__} that computes attention "
                "without it. Choose the whole attention as the site."
            )
        return self._projected(projection, heads), weights

    def _projected(self, projection: nn.Module, heads: Tensor) -> Tensor:
        """Project with positions first, as PyTorch does: the same rows in the same order give the same bits."""
        if not self.attention.batch_first or heads.ndim < 3:
            return projection(heads)
        with replaced_forward(projection, partial(_positions_first, projection.forward)):
            return projection(heads)


def _positions_first(forward: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
    return forward(given.transpose(0, 1)).transpose(0, 1)


class _Identity(nn.Module):
    """A linear map that changes nothing, and knows whether it was asked for."""

    bias = None

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix, self.used = matrix, False

    @property
    def weight(self) -> Tensor:
        """The identity matrix."""
        self.used = True
        return self.matrix

    def forward(self, heads: Tensor) -> Tensor:
        """Return the heads."""
        self.used = True
        return heads
