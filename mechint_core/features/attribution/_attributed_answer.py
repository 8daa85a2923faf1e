"""A model's answer as a function of what it is attributed to.

    f(z)        z is the model's input; or the activation of one site, while the rest of the model follows
    z = (c, e)  with a dictionary: the site's activation is decode(c) + e, c its codes, e what they leave unexplained

Whatever reaches the answer past the site (a residual stream around it) stays as it is on the sample itself.

    logit              z_t                                   t: the target, or the class the model itself gives
    logit difference   z_t - mean of the other logits
    loss               -log softmax(z)_t                     nats
    output             the model's only output

Cost: one forward of the whole model per value of f. Memory: what one batch keeps for the backward pass is measured
on two rows, and batches are cut to a stated number of bytes.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.features.attribution._attribution_question import AttributionConfig, Samples
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.models import activation_of, capture, device_of, rewritten, samples_first, samples_to, to_model
from mechint_core.models.running import precision_of

MAX_BATCH_ROWS: Final = 2**16
TOKEN_ROWS: Final = 1024
"""Rows of a batch of integers, of which no backward pass keeps anything that could be measured."""


class Answer:
    """f(z) for the samples of one experiment; use it inside `differentiation(model)`.

    `integers` allows them as inputs: where values are exchanged, and nothing is differentiated. Floats are given the
    model's `precision`, which a model without parameters does not show.

    Raises
    ------
    ConfigurationError
        If integers are to be attributed to, options contradict each other, or a target is not a class of the output.
    ShapeError
        If the output does not fit the objective, or the site's activation not the dictionary.
    NotFoundError
        If there is no such site, or it does not run.
    DegenerateInputError
        If the model's output is not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        dictionary: SparseDictionary | None,
        config: AttributionConfig,
        *,
        integers: bool = False,
        precision: torch.dtype | None = None,
    ) -> None:
        self.model, self.samples, self.config = model, samples, config
        self.precision = precision or precision_of(model)
        self.inputs = self.tensor(samples.inputs)
        named = config.site or (dictionary.site if dictionary is not None else "")
        self.site, _, position = named.partition("@")
        self.position = _position(named, position)
        self.dictionary = _matching(dictionary, self.inputs.device, self.precision)
        self.target: Tensor | None = None
        self._check(integers)
        if config.objective != "output":
            own = samples.target is None
            self.target = self._own_classes() if own else to_model(np.asarray(samples.target), model)
        self.batch_rows = self._rows_that_fit()

    @property
    def n_samples(self) -> int:
        """How many samples are explained."""
        return len(self.inputs)

    def tensor(self, inputs: np.ndarray) -> Num[Tensor, "row ..."]:
        """Return inputs as the model takes them."""
        if inputs.dtype.kind != "f":
            return to_model(inputs, self.model)
        return torch.from_numpy(inputs.astype(np.float64)).to(device_of(self.model), self.precision)

    def coordinates(self, inputs: Tensor) -> Num[Tensor, "row ..."]:
        """Return z of some inputs."""
        if not self.site:
            activation = inputs
        else:
            with torch.no_grad(), capture(self.model, [self.site]) as seen:
                self.model(samples_to(inputs, self.config.sample_axis))
            activation = samples_first(seen[self.site], self.config.sample_axis)
            if activation.ndim < 2 or len(activation) != len(inputs):
                raise ShapeError(
                    f"the activation of {self.site!r} must be (sample = {len(inputs)}, ..., unit). "
                    f"Got shape {tuple(activation.shape)}. Choose another site, or set sample_axis."
                )
        return self._encoded(self._at_position(activation))

    def at(self, z: Num[Tensor, "row ..."], rows: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """Return f(z), in float64, for samples `rows`, which may repeat."""
        z = z.clone()  # for what a model does in place must not meet a leaf of the graph
        if not self.site:
            return self._read(self.model(samples_to(self._decoded(z), self.config.sample_axis)), rows)
        with rewritten(self.model, self.site, lambda activation: self.exchanged(activation, lambda _: z)):
            return self.own(rows)

    def own(self, rows: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """Return the answer on the samples' own inputs."""
        return self._read(self.model(samples_to(self.inputs[rows], self.config.sample_axis)), rows)

    def exchanged(self, activation: Tensor, exchange: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the site's activation with other coordinates, as the model has it."""
        rows = samples_first(activation, self.config.sample_axis)
        decoded = self._decoded(exchange(self._at_position(rows)))
        if self.position is not None:
            columns = list(rows.unbind(1))
            columns[self.position] = decoded
            decoded = torch.stack(columns, dim=1)
        return samples_to(decoded, self.config.sample_axis)

    def values(self, z: Num[Tensor, "row ..."], rows: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """Return f(z) without gradient, and refuse one that is not finite."""
        with torch.no_grad():
            found = self.at(z, rows)
        if not bool(found.isfinite().all()):
            raise DegenerateInputError("the model's output must be finite. Got NaN or infinity.")
        return found

    def batches(self, n_rows: int) -> Iterator[Int[Tensor, "row"]]:
        """Cut `n_rows` rows into runs that fit in memory."""
        yield from torch.arange(n_rows, device=self.inputs.device).split(self.batch_rows)

    def _check(self, integers: bool) -> None:
        config, dictionary = self.config, self.dictionary
        if not (self.site or integers or self.inputs.is_floating_point()):
            raise ConfigurationError(
                "inputs must be floats to be attributed to. Got integers. "
                "Name the site that embeds them: config.site='embed'."
            )
        if dictionary is not None and config.n_heads:
            raise ConfigurationError("parts are heads or latents, not both. Set n_heads to 0, or leave dictionary out.")
        if config.objective == "output" and self.samples.target is not None:
            raise ConfigurationError("the objective output has no classes. Leave target out, or use 'logit'.")

    def _own_classes(self) -> Int[Tensor, "sample"]:
        with torch.no_grad():
            runs = self.inputs.split(1024)
            outputs = [self._logits(self.model(samples_to(each, self.config.sample_axis))) for each in runs]
        return torch.cat(outputs).argmax(dim=1)

    def _at_position(self, activation: Tensor) -> Tensor:
        if self.position is None:
            return activation
        if activation.ndim < 3 or not -activation.shape[1] <= self.position < activation.shape[1]:
            raise ShapeError(
                f"the activation of {self.site!r} must have a position {self.position}, on its second axis. "
                f"Got shape {tuple(activation.shape)}."
            )
        return activation[:, self.position]

    def _encoded(self, activation: Tensor) -> Tensor:
        if self.dictionary is None:
            return activation
        if activation.shape[-1] != self.dictionary.input_dim:
            raise ShapeError(
                f"the activation must have the dictionary's {self.dictionary.input_dim} units. "
                f"Got shape {tuple(activation.shape)}."
            )
        with torch.no_grad():
            codes = self.dictionary.encode(activation)
            return torch.cat([codes, activation - self.dictionary.decode(codes)], dim=-1)

    def _decoded(self, z: Tensor) -> Tensor:
        if self.dictionary is None:
            return z
        latents = self.dictionary.hidden_dim
        return self.dictionary.decode(z[..., :latents]) + z[..., latents:]

    def _read(self, output: Any, rows: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        if self.target is None:
            return self._only_output(output)
        logits, target = self._logits(output), self.target[rows][:, None]
        if self.config.objective == "loss":
            return -log_softmax(logits, dim=1).gather(1, target)[:, 0]
        logit = logits.gather(1, target)[:, 0]
        if self.config.objective == "logit":
            return logit
        return logit - (logits.sum(dim=1) - logit) / (logits.shape[1] - 1)

    def _only_output(self, output: Any) -> Float[Tensor, "row"]:
        values = samples_first(activation_of(output), self.config.sample_axis).double()
        if values[0].numel() != 1:
            raise ShapeError(
                f"the model must give one number per sample for the objective output. Got shape {tuple(values.shape)}. "
                "Use 'logit'."
            )
        return values.flatten()

    def _logits(self, output: Any) -> Float[Tensor, "row class"]:
        values = samples_first(activation_of(output), self.config.sample_axis)
        if values.ndim == 3 and -values.shape[1] <= self.config.answer_position < values.shape[1]:
            values = values[:, self.config.answer_position]
        if values.ndim != 2 or values.shape[1] < 2:
            raise ShapeError(
                f"the model's output must be (sample[, position], class >= 2) for the objective "
                f"{self.config.objective}. Got shape {tuple(values.shape)}. Set answer_position, or use 'output'."
            )
        if self.target is not None and not bool(((self.target >= 0) & (self.target < values.shape[1])).all()):
            raise ConfigurationError(
                f"targets must be classes of the output, 0 to {values.shape[1] - 1}. "
                f"Got {int(self.target.min())} to {int(self.target.max())}."
            )
        return values.double()

    def _rows_that_fit(self) -> int:
        """Measure what the backward pass keeps of one more row than two, and cut batches to it."""
        if not (self.site or self.inputs.is_floating_point()):
            return TOKEN_ROWS
        kept: list[int] = []
        for n_rows in (2, 3):
            rows = torch.zeros(n_rows, dtype=torch.int64, device=self.inputs.device)
            z = self.coordinates(self.inputs[rows]).requires_grad_()
            sizes = [4 * z.numel() * z.element_size()]  # the point, its ends, its gradient
            with torch.autograd.graph.saved_tensors_hooks(_counted(sizes), lambda tensor: tensor):
                self.at(z, rows)
            kept.append(sum(sizes))
        return max(1, min(MAX_BATCH_ROWS, self.config.memory // max(1, kept[1] - kept[0])))


def _counted(sizes: list[int]) -> Any:
    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    return pack


def _position(named: str, position: str) -> int | None:
    try:
        return int(position) if position else None
    except ValueError:
        raise ConfigurationError(f"a site must be a module, or module@position. Got {named!r}.") from None


def _matching(
    dictionary: SparseDictionary | None, device: torch.device, precision: torch.dtype
) -> SparseDictionary | None:
    """Return the dictionary where the model is and in its precision, without gradients for its weights."""
    if dictionary is None:
        return None
    if dictionary.W_dec.shape[1] != dictionary.input_dim:
        raise ShapeError(
            f"the dictionary must write the units it reads, {dictionary.input_dim}. "
            f"Got {dictionary.W_dec.shape[1]}: a transcoder's latents are no parts of one activation."
        )
    made = copy.deepcopy(dictionary).to(device, precision)
    return made.eval().requires_grad_(requires_grad=False)
