"""Codes of which few are not zero: kept as a list, multiplied as a list.

    codes @ D        = for each sample, the sum of its few dictionary rows                (embedding bag)
    codes^T @ G      = for each latent, the sum of the gradients of its few samples       (embedding bag)

With k of F latents active, decoding and both weight gradients cost k / F of a dense product. Measured on one
core at 4096 samples, d = 512, F = 4096, k = 64, in units of one dense product: decode 0.06, its gradients 0.3,
the encoder's gradient 0.1. Only the encoder's forward product stays dense.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class SparseCodes:
    """A (sample, latent) matrix as its entries, ordered by sample."""

    values: Float[Tensor, "entry"]
    latents: Int[Tensor, "entry"]
    starts: Int[Tensor, "sample"]
    """Where the entries of each sample begin."""

    def matmul(self, table: Float[Tensor, "latent unit"]) -> Float[Tensor, "sample unit"]:
        """Return this matrix times `table`; differentiable in the values and the table."""
        return functional.embedding_bag(self.latents, table, self.starts, mode="sum", per_sample_weights=self.values)

    def nested(self, table: Float[Tensor, "latent unit"], sizes: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the product of each group of latents with its rows of `table`: one bag per sample and group."""
        if len(sizes) == 1:
            return (self.matmul(table),)
        ends = torch.tensor(sizes, device=table.device).cumsum(0)
        groups = torch.searchsorted(ends, self.latents, right=True)
        bags = self.samples() * len(sizes) + groups
        order = torch.sort(bags, stable=True).indices
        counts = torch.bincount(bags, minlength=len(sizes) * len(self.starts))
        grouped = SparseCodes(self.values[order], self.latents[order], counts.cumsum(0) - counts)
        return grouped.matmul(table).reshape(len(self.starts), len(sizes), -1).unbind(1)

    def samples(self) -> Int[Tensor, "entry"]:
        """Return the sample of each entry."""
        return _samples(self.starts, len(self.latents))

    def transpose(self, n_latents: int) -> "SparseCodes":
        """Return the (latent, sample) matrix."""
        order = torch.sort(self.latents, stable=True).indices
        counts = torch.bincount(self.latents, minlength=n_latents)
        return SparseCodes(self.values[order], self.samples()[order], counts.cumsum(0) - counts)

    def dense(self, n_latents: int) -> Float[Tensor, "sample latent"]:
        """Return the whole matrix."""
        whole = self.values.new_zeros(len(self.starts), n_latents)
        whole[self.samples(), self.latents] = self.values
        return whole


def _samples(starts: Int[Tensor, "sample"], n_entries: int) -> Int[Tensor, "entry"]:
    """Return the sample of each entry, given where the entries of each sample begin."""
    ends = torch.cat([starts[1:], starts.new_tensor([n_entries])])
    return torch.repeat_interleave(ends - starts, output_size=n_entries)


Select = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Pre-activations (sample, latent) -> the latents kept, ordered by sample, and where each sample's begin."""


def topk(k: int) -> Select:
    """Keep the k largest of each sample [@makhzani2014; @gao2024]."""

    def select(pre: Tensor) -> tuple[Tensor, Tensor]:
        latents = pre.topk(k, dim=1, sorted=False).indices
        return latents.flatten(), torch.arange(0, latents.numel(), k, device=pre.device)

    return select


def batch_topk(k: int | float) -> Select:
    """Keep the k * samples largest of the whole batch [@bussmann2024]."""

    def select(pre: Tensor) -> tuple[Tensor, Tensor]:
        n_samples, n_latents = pre.shape
        kept = _largest(pre.flatten(), min(pre.numel(), max(1, round(k * n_samples))))
        counts = torch.bincount(kept // n_latents, minlength=n_samples)
        return kept % n_latents, counts.cumsum(0) - counts

    return select


def _largest(values: Float[Tensor, "entry"], n: int) -> Int[Tensor, "kept"]:
    """Return the places of exactly the n largest, in order of place.

    A guess of the threshold from every 257th value (a prime, so that no column is favoured) leaves few candidates:
    0.03 of a five-product step at n = 64 of 4096 per sample, where sorting them all costs 0.44.
    """
    sample = values[::257]
    n_sampled = min(len(sample), int(1.3 * n / len(values) * len(sample)) + 10)
    candidates = (values >= sample.topk(n_sampled).values[-1]).nonzero().squeeze(1)
    if len(candidates) < n:  # an unlucky sample
        candidates = torch.arange(len(values), device=values.device)
    height = values[candidates]
    threshold = height.topk(n, sorted=False).values.min()
    above, level = height > threshold, height == threshold
    return candidates[above | _first(level, n - int(above.sum()))]


def _first(mask: Bool[Tensor, "entry"], n: int) -> Bool[Tensor, "entry"]:
    """Keep the first n places of a mask: ties go to the earliest."""
    return mask & (mask.cumsum(0) <= n)


def sparse_encode(
    x: Float[Tensor, "sample unit"],
    weight: Float[Tensor, "latent unit"],
    bias: Float[Tensor, "latent"],
    select: Select,
) -> SparseCodes:
    """Return ReLU(x @ weight.T + bias) at the entries that `select` keeps, and zero elsewhere."""
    values, latents, starts = cast("tuple[Tensor, Tensor, Tensor]", _SelectedLinear.apply(x, weight, bias, select))
    return SparseCodes(functional.relu(values), latents, starts)


class _SelectedLinear(torch.autograd.Function):
    """A few entries of x @ weight.T + bias. The gradient is as sparse as they are, so no dense product follows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, select: Select) -> tuple[Tensor, Tensor, Tensor]:
        pre = torch.addmm(bias, x, weight.T)
        latents, starts = select(pre)
        ctx.save_for_backward(x, weight, latents, starts)
        ctx.mark_non_differentiable(latents, starts)
        kept = pre[_samples(starts, len(latents)), latents]
        return kept.to(weight.dtype), latents, starts  # from the lower precision of an autocast

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight, latents, starts = ctx.saved_tensors
        grad = SparseCodes(grad_outputs[0].contiguous(), latents, starts)
        grad_x = grad.matmul(weight) if ctx.needs_input_grad[0] else None
        by_latent = grad.transpose(len(weight))
        grad_weight = by_latent.matmul(x)
        grad_bias = grad_weight.new_zeros(len(weight)).index_add_(0, latents, grad.values)
        return grad_x, grad_weight, grad_bias, None
