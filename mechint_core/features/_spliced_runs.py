"""Run a model with something else in an activation's place, and score its output against the clean one.

    read site  --->  write(vectors)  --->  written site          one forward; both may be the same module

The loss is the cross-entropy with a target; the divergence is KL(clean || spliced) for outputs that are classes and the
mean squared difference for outputs that are values. Both are summed over the positions that count, per sample.

Cost: one forward of all samples per run. Chunked over: samples.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.models import activation_of, capture, rewritten, samples_first, samples_to, select, to_model
from mechint_core.result import NAN

Output = Literal["classes", "values"]
Write = Callable[[Tensor], Tensor]

IGNORED: Final = -100
"""A target below 0 is none; this is the customary one."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples: what the model is given, and what it should answer."""

    inputs: np.ndarray
    target: np.ndarray | None
    mask: np.ndarray | None

    def at(self, rows: slice | np.ndarray) -> "Batch":
        """Return some of the samples."""
        target, mask = (None if each is None else each[rows] for each in (self.target, self.mask))
        return Batch(self.inputs[rows], target, mask)


class Place(NamedTuple):
    """Where vectors are read and written: modules, and one position of them or all."""

    read: str
    written: str
    position: int | None


class Scores(NamedTuple):
    """Sums over the positions of each sample, run by run, and how many positions they hold."""

    loss: Float[np.ndarray, "run sample"]
    n_targets: Float[np.ndarray, "sample"]
    divergence: Float[np.ndarray, "run sample"]
    n_outputs: Float[np.ndarray, "sample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplicedRuns:
    """How a model is run and its output scored; use it inside `inference(model)`."""

    model: nn.Module
    place: Place
    like: Tensor
    """Vectors are read in its precision, where it is."""
    output: Output
    answer_position: int | None
    mask_name: str
    sample_axis: int
    batch_size: int

    def activations(self, data: Batch) -> tuple[Float[Tensor, "vector unit"], Float[Tensor, "vector other_unit"]]:
        """Return the vectors at both sites of the model as it is, where the mask is not 0."""
        found: dict[str, list[Tensor]] = {self.place.read: [], self.place.written: []}
        for rows in self._batches(data):
            batch = data.at(rows)
            with capture(self.model, list(found)) as seen:
                self._call(batch)
            for site, vectors in found.items():
                activation = _at(samples_first(seen[site], self.sample_axis), self.place.position)
                vectors.append(_counted(activation, batch.mask))
        read, written = (torch.cat(found[site]).to(self.like) for site in (self.place.read, self.place.written))
        if len(read) != len(written) or len(read) < 2:
            raise ShapeError(
                f"both sites must give as many vectors, at least 2. Got {len(read)} at {self.place.read!r} and "
                f"{len(written)} at {self.place.written!r}."
            )
        if not (bool(read.isfinite().all()) and bool(written.isfinite().all())):
            raise DegenerateInputError("activations at the sites must be finite. Got NaN or infinity.")
        return read, written

    def score(self, data: Batch, writes: Sequence[Write]) -> Scores:
        """Return the loss and the divergence of the clean run, then of one run per entry of `writes`."""
        n_samples = len(data.inputs)
        loss, divergence = np.full((1 + len(writes), n_samples), NAN), np.zeros((1 + len(writes), n_samples))
        n_targets, n_outputs = np.zeros(n_samples), np.zeros(n_samples)
        for rows in self._batches(data):
            batch = data.at(rows)
            clean = self._read(self._call(batch))
            counts = self._counts(clean, batch.mask)
            n_outputs[rows] = counts.sum(dim=1).cpu().numpy()
            goal = None if batch.target is None else self._classes(batch.target, clean)
            if goal is not None:
                n_targets[rows] = ((goal >= 0) * counts).sum(dim=1).cpu().numpy()
                loss[0, rows] = (_cross_entropy(clean, goal) * counts).sum(dim=1).cpu().numpy()
            for run, write in enumerate(writes, start=1):
                with self._spliced(write):
                    made = self._read(self._call(batch))
                divergence[run, rows] = (self._divergence(made, clean) * counts).sum(dim=1).cpu().numpy()
                if goal is not None:
                    loss[run, rows] = (_cross_entropy(made, goal) * counts).sum(dim=1).cpu().numpy()
        return Scores(loss, n_targets, divergence, n_outputs)

    @contextmanager
    def _spliced(self, write: Write) -> Generator[None]:
        """Let `write` decide what the written site gives, from what the read site gave in the same forward."""
        seen: list[Tensor] = []
        where = select(slice(None), self.place.position, self.sample_axis)

        def keep(activation: Tensor) -> Tensor:
            seen[:] = [activation]
            return activation

        def put(activation: Tensor) -> Tensor:
            made = activation.clone()
            made[where] = write(seen[0][where].to(self.like)).to(made)
            return made

        with rewritten(self.model, self.place.read, keep), rewritten(self.model, self.place.written, put):
            yield

    def _call(self, batch: Batch) -> Any:
        inputs = samples_to(to_model(batch.inputs, self.model), self.sample_axis)
        if batch.mask is None:
            return self.model(inputs)
        return self.model(inputs, **{self.mask_name: to_model(batch.mask, self.model)})

    def _batches(self, data: Batch) -> list[slice]:
        return [slice(start, start + self.batch_size) for start in range(0, len(data.inputs), self.batch_size)]

    def _read(self, output: Any) -> Float[Tensor, "sample position column"]:
        """Return one row per sample and position of the answer: log-probabilities of classes, or values."""
        values = samples_first(activation_of(output), self.sample_axis)
        if values.ndim == 2 or (values.ndim > 3 and self.output == "values"):
            values = values.flatten(1)[:, None]
        if values.ndim != 3 or (self.output == "classes" and values.shape[-1] < 2):
            raise ShapeError(
                f"the model's output must be (sample[, position], class >= 2). Got shape {tuple(values.shape)}. "
                "Set output='values' for a model without classes."
            )
        if self.answer_position is not None:
            if not -values.shape[1] <= self.answer_position < values.shape[1]:
                raise ShapeError(f"answer_position must be in 0...{values.shape[1] - 1}. Got {self.answer_position}.")
            values = values[:, [self.answer_position]]
        if not bool(values.isfinite().all()):
            raise DegenerateInputError("the model's output must be finite. Got NaN or infinity.")
        values = values if values.dtype == torch.float64 else values.float()
        return log_softmax(values, dim=-1) if self.output == "classes" else values

    def _counts(
        self, values: Float[Tensor, "sample position column"], mask: np.ndarray | None
    ) -> Float[Tensor, "sample position"]:
        """Return 1 where an output counts, 0 where it is masked."""
        counts = values.new_ones(values.shape[:2], dtype=torch.float64)
        if mask is None or self.answer_position is not None or counts.shape != mask.shape:
            return counts
        return torch.from_numpy(mask != 0).to(counts)

    def _classes(
        self, target: np.ndarray, values: Float[Tensor, "sample position column"]
    ) -> Int[Tensor, "sample position"]:
        """Return the class of each output, below 0 where there is none."""
        if target.ndim == 2 and self.answer_position is not None:
            target = target[:, [self.answer_position]]
        goal = torch.from_numpy(target.astype(np.int64)).to(values.device)
        goal = goal[:, None] if goal.ndim == 1 else goal
        if goal.shape != values.shape[:2]:
            raise ShapeError(
                f"target must be one class per output, {tuple(values.shape[:2])}. Got {tuple(goal.shape)}. "
                "Set answer_position if one position gives the answer."
            )
        if int(goal.max()) >= values.shape[2]:
            raise ConfigurationError(
                f"targets must be classes of the output, below {values.shape[2]}. Got {int(goal.max())}."
            )
        return goal

    def _divergence(
        self, made: Float[Tensor, "sample position column"], clean: Float[Tensor, "sample position column"]
    ) -> Float[Tensor, "sample position"]:
        if self.output == "values":
            return (made - clean).double().square().mean(dim=2)
        return (clean.exp() * (clean - made)).sum(dim=2, dtype=torch.float64)


def place_of(label: str, written_label: str) -> Place:
    """Read `name` or `name@position`; the second says where a transcoder writes, if not where it reads.

    Raises
    ------
    ConfigurationError
        If a position is not a whole number, or the two differ in it.
    """
    read, at, position = label.partition("@")
    written, _, other = (written_label or label).partition("@")
    if at and not position.lstrip("-").isdigit():
        raise ConfigurationError(f"a position must be a whole number, as in 'name@2'. Got {label!r}.")
    if position != other:
        raise ConfigurationError(f"both sites must name the same position. Got {label!r} and {written_label!r}.")
    return Place(read, written, int(position) if at else None)


def next_tokens(inputs: np.ndarray, mask: np.ndarray | None) -> Int[np.ndarray, "sample position"]:
    """Return the input of the next position, or `IGNORED` where there is none.

    Raises
    ------
    ShapeError
        If the inputs are not whole numbers, (sample, position).
    """
    if inputs.ndim != 2 or inputs.dtype.kind not in "iu":
        raise ShapeError(
            f"next_token needs inputs (sample, position) of whole numbers. Got {inputs.dtype} {inputs.shape}."
        )
    following = np.full(inputs.shape, IGNORED, dtype=np.int64)
    following[:, :-1] = inputs[:, 1:]
    if mask is not None and mask.shape == inputs.shape:
        following[:, :-1][mask[:, 1:] == 0] = IGNORED
    return following


def _at(activation: Tensor, position: int | None) -> Tensor:
    """Return the vectors of one position, if one is named."""
    if position is None:
        return activation
    if activation.ndim < 3 or not -activation.shape[1] <= position < activation.shape[1]:
        raise ShapeError(f"the site must have a position {position}. Got an activation of {tuple(activation.shape)}.")
    return activation[:, position]


def _counted(activation: Tensor, mask: np.ndarray | None) -> Float[Tensor, "vector unit"]:
    """Return the vectors, without the positions that do not count."""
    if mask is not None and activation.shape[:-1] == mask.shape:
        return activation[torch.from_numpy(mask != 0).to(activation.device)]
    return activation.flatten(0, -2)


def _cross_entropy(
    log_p: Float[Tensor, "sample position class"], goal: Int[Tensor, "sample position"]
) -> Float[Tensor, "sample position"]:
    """Return -log p of the target, 0 where there is none."""
    picked = log_p.gather(2, goal.clamp_min(0)[..., None])[..., 0].double()
    return torch.where(goal >= 0, -picked, 0.0)
