"""How a model's logits change when its activation at one site is pushed along given directions.

    slope_gdc = mean over the samples i of group g of  d z_ic / d epsilon,    x_i -> x_i + epsilon direction_d

By one backward pass per class, whose gradients J are then multiplied with all directions; or, where that is fewer, by
one pass per direction: g(u) = J^T u is linear in the weights u of the classes, so its own backward pass gives J d for
every sample at once, exactly.

Source: [@townsend2017] for the second.
Cost: min(classes, directions) backward passes over the samples.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mechint_core.errors import DegenerateInputError, ShapeError
from mechint_core.models import (
    activation_of,
    call,
    capture,
    differentiation,
    inference,
    rewritten,
    samples_first,
    samples_to,
    select,
    to_model,
)

SLOPES_AT_ONCE = 2**23


class SlopeRuns:
    """The passes of one model over one set of samples.

    Parameters
    ----------
    model, site
        Where to push.
    position
        The position to push at; None pushes all positions together.
    answer_position
        Where a model with one row of logits per position gives the answer.
    sample_axis
        Where the model keeps its samples.
    batch_size
        Samples in one pass.
    n_groups
        Groups of samples to average over: sample i is in group i modulo this, which must divide their number.
    """

    def __init__(
        self,
        model: nn.Module,
        site: str,
        *,
        position: int | None,
        answer_position: int,
        sample_axis: int,
        batch_size: int,
        n_groups: int,
    ) -> None:
        self._model, self._site, self._position = model, site, position
        self._answer_position, self._sample_axis = answer_position, sample_axis
        self._batch_size, self._n_groups = batch_size, n_groups
        self.n_classes = 0
        """Of the model; known once it has run."""

    def slopes(
        self, inputs: Num[np.ndarray, "sample ..."], directions: Float[np.ndarray, "direction unit"]
    ) -> Iterator[Float[np.ndarray, "group direction class"]]:
        """Yield the slopes for runs of directions, by whichever mode takes fewer passes."""
        n_classes = self.n_classes = self._check(inputs[:2], directions.shape[1])
        step = max(1, SLOPES_AT_ONCE // (n_classes * self._n_groups))
        parts = [directions[start : start + step] for start in range(0, len(directions), step)]
        if n_classes > len(directions):
            yield from (self.by_direction(inputs, part) for part in parts)
            return
        jacobian = self.by_class(inputs)
        yield from (np.einsum("du,gcu->gdc", part, jacobian, optimize=True) for part in parts)

    def by_class(self, inputs: Num[np.ndarray, "sample ..."]) -> Float[np.ndarray, "group class unit"]:
        """Return the mean Jacobian of each group, by one backward pass per class."""
        totals = [self._gradients(first, batch) for first, batch in self._batches(inputs)]
        return torch.stack(totals).sum(dim=0).cpu().numpy() * (self._n_groups / len(inputs))

    def by_direction(
        self, inputs: Num[np.ndarray, "sample ..."], directions: Float[np.ndarray, "direction unit"]
    ) -> Float[np.ndarray, "group direction class"]:
        """Return the slopes by one backward pass per direction."""
        totals = [self._tangents(first, batch, directions) for first, batch in self._batches(inputs)]
        return torch.stack(totals).sum(dim=0).cpu().numpy() * (self._n_groups / len(inputs))

    def _gradients(self, first: int, batch: Tensor) -> Float[Tensor, "group class unit"]:
        """Return the gradient of every class at the site, added up over the samples of each group."""
        with differentiation(self._model):
            logits, activation = self._run(batch)
            sums = [logits[:, c].sum() for c in range(logits.shape[1])]
            gradients = (torch.autograd.grad(each, activation, retain_graph=True)[0] for each in sums)
            return torch.stack([self._summed(self._at_position(each), first) for each in gradients], dim=1)

    def _tangents(
        self, first: int, batch: Tensor, directions: Float[np.ndarray, "direction unit"]
    ) -> Float[Tensor, "group direction class"]:
        """Return the change of every class along each direction, added up over the samples of each group."""
        # The fused attention kernels can be differentiated only once.
        with differentiation(self._model), sdpa_kernel(SDPBackend.MATH):
            logits, activation = self._run(batch)
            weights = torch.zeros_like(logits, requires_grad=True)
            gradient = torch.autograd.grad(logits, activation, weights, create_graph=True)[0]
            pushes = (self._push(activation, direction) for direction in directions)
            slopes = (torch.autograd.grad(gradient, weights, push, retain_graph=True)[0] for push in pushes)
            return torch.stack([self._summed(each, first) for each in slopes], dim=1)

    def _run(self, batch: Tensor) -> tuple[Float[Tensor, "sample class"], Tensor]:
        """Return the logits, and the activation that they can be differentiated by."""
        leaves: list[Tensor] = []

        def leaf(activation: Tensor) -> Tensor:
            leaves.append(activation.detach().requires_grad_())
            return leaves[0].clone()  # what follows may work in place

        with rewritten(self._model, self._site, leaf):
            logits = self._logits(call(self._model, {"input": batch}, positional=True))
        if not logits.requires_grad:
            raise DegenerateInputError(
                f"the model's output must depend on {self._site}. Got one that does not. Choose a site before it."
            )
        return logits, leaves[0]

    def _push(self, activation: Tensor, direction: Float[np.ndarray, "unit"]) -> Tensor:
        """Return the direction where it is to be added, zero elsewhere."""
        push = torch.zeros_like(activation)
        where = (slice(None),) if activation.ndim == 2 else select(slice(None), self._position, self._sample_axis)
        push[where] = torch.from_numpy(direction).to(activation)
        return push

    def _check(self, few: Num[np.ndarray, "sample ..."], n_units: int) -> int:
        """Return the number of classes, once it is sure that site and output have the shapes needed."""
        batch = samples_to(to_model(few, self._model), self._sample_axis)
        with inference(self._model), capture(self._model, [self._site]) as seen:
            output = call(self._model, {"input": batch}, positional=True)
        shape = tuple(seen[self._site].shape)
        if len(shape) not in (2, 3) or shape[-1] != n_units:
            raise ShapeError(
                f"{self._site} must be (sample[, position], unit = {n_units}), as the decoder writes. Got {shape}."
            )
        if len(shape) == 3 and self._position is not None:
            n_positions = shape[1 - self._sample_axis]
            if not -n_positions <= self._position < n_positions:
                raise ShapeError(f"position must be one of the {n_positions} of {self._site}. Got {self._position}.")
        return self._logits(output).shape[1]

    def _batches(self, inputs: Num[np.ndarray, "sample ..."]) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, len(inputs), self._batch_size):
            some = to_model(inputs[start : start + self._batch_size], self._model)
            yield start, samples_to(some, self._sample_axis)

    def _logits(self, output: object) -> Float[Tensor, "sample class"]:
        values = samples_first(activation_of(output), self._sample_axis)
        if values.ndim == 3 and -values.shape[1] <= self._answer_position < values.shape[1]:
            values = values[:, self._answer_position]
        if values.ndim != 2 or values.shape[1] < 2:
            raise ShapeError(
                f"the model's output must be (sample[, position], class >= 2), answer_position one of the positions. "
                f"Got shape {tuple(values.shape)} and answer_position {self._answer_position}."
            )
        return values

    def _at_position(self, gradient: Tensor) -> Float[Tensor, "sample unit"]:
        """Return the gradient for a push at the position, or at all."""
        if gradient.ndim == 2:
            return gradient
        gradient = samples_first(gradient, self._sample_axis)
        return gradient.sum(dim=1) if self._position is None else gradient[:, self._position]

    def _summed(self, per_sample: Float[Tensor, "sample *rest"], first: int) -> Float[Tensor, "group *rest"]:
        """Add the samples of each group up, in double precision; `first` is the number of the first sample."""
        group = (torch.arange(len(per_sample), device=per_sample.device) + first) % self._n_groups
        sums = per_sample.new_zeros((self._n_groups, *per_sample.shape[1:]), dtype=torch.float64)
        return sums.index_add_(0, group, per_sample.double())
