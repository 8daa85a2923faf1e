"""Run a model with single latents of a dictionary removed or added at its site, and score the answers.

    removed    x <- x - f_j(x) d_j                  the error x - x_hat stays
    added      x <- x + t_j d_j  where f_j(x) = 0   t_j the mean code of the vectors on which j is active

A latent that is removed changes only the samples on which it is active, and only those are run: sparse codes are cheap.

Cost: one row of a forward pass per (latent, sample) that changes.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechint_core.errors import DegenerateInputError, ShapeError
from mechint_core.models import differentiation, inference, samples_first, visited
from mechint_core.patching import (
    Answer,
    Codes,
    Component,
    PairedConfig,
    derivatives,
    measure,
    nodes,
    read_output,
    score,
)
from mechint_core.patching.parts import where

Vectors = Float[Tensor, "sample position unit"]
"""Of a site: its positions, or a single one."""
LatentCodes = Float[Tensor, "sample position latent"]
Rows = Int[Tensor, "row"]
Change = Callable[[Int[Tensor, "row"], Rows], Float[Tensor, "row position unit"]]
"""What is added to the site's vectors, given which latent and which sample each row is."""


class Seen(NamedTuple):
    """The model as it is, on all samples."""

    vectors: Vectors
    """What the site gives."""
    gradient: Vectors
    """Of each sample's metric."""
    answer: Answer
    intact: Float[np.ndarray, "sample"]
    """The metric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentRuns:
    """A model, its inputs, and the site of a dictionary."""

    model: nn.Module
    config: PairedConfig
    inputs: Tensor
    """In the model's layout."""
    target: Int[Tensor, "sample"] | None
    place: Component
    """What the dictionary reads: a site, or one position of it."""

    def observe(self, dictionary: Codes) -> Seen:
        """Run the model as it is: one forward and one backward.

        Raises
        ------
        ShapeError
            If the dictionary does not read and write the site's units.
        DegenerateInputError
            If the site's activations are not finite.
        """
        found = [self._differentiated(rows, None, None) for rows in self._blocks(self._n_samples)]
        vectors, gradient, values = (torch.cat(parts) for parts in zip(*found, strict=True))
        _check(vectors, dictionary)
        answer = Answer(self.target, None, values)
        return Seen(vectors, gradient, answer, score(values, answer, self.config.metric))

    def gradient_towards(self, seen: Seen, away: Vectors, *, n_steps: int) -> Vectors:
        """Return the mean gradient at the midpoints of the way on which the site comes to give `away` more."""
        total = torch.zeros_like(away)
        for k in range(n_steps):
            shift = (k + 0.5) / n_steps * away
            found = [self._differentiated(rows, seen.answer, shift)[1] for rows in self._blocks(self._n_samples)]
            total += torch.cat(found) / n_steps
        return total

    def removed(
        self, seen: Seen, codes: LatentCodes, writes: Float[Tensor, "latent unit"]
    ) -> Float[np.ndarray, "latent sample"]:
        """Return what each latent contributes: the intact metric less that without the latent."""
        active = (codes > 0).any(dim=1).T
        return -self._changed(seen, active, lambda j, i: -codes[i, :, j, None] * writes[j, None])

    def added(
        self, seen: Seen, codes: LatentCodes, writes: Float[Tensor, "latent unit"], typical: Float[Tensor, "latent"]
    ) -> Float[np.ndarray, "latent sample"]:
        """Return what each latent would add: the metric with its typical code where it is silent, less the intact."""
        silent = codes <= 0
        step = typical[:, None] * writes
        return self._changed(seen, silent.any(dim=1).T, lambda j, i: silent[i, :, j, None] * step[j, None])

    def shifted(self, seen: Seen, shift: Vectors) -> Float[np.ndarray, "sample"]:
        """Return the metric while the site gives `shift` more, less the intact one."""
        every = torch.ones(1, len(shift), dtype=torch.bool, device=shift.device)
        return self._changed(seen, every, lambda _, i: shift[i])[0]

    def _changed(
        self, seen: Seen, runs: Bool[Tensor, "latent sample"], change: Change
    ) -> Float[np.ndarray, "latent sample"]:
        """Return the metric of the marked (latent, sample) runs less the intact one; 0 for the others."""
        latents, samples = runs.nonzero(as_tuple=True)
        scores = np.empty(len(samples))
        with inference(self.model):
            for rows in self._blocks(len(samples)):
                here = samples[rows]
                add = partial(self._add, change(latents[rows], here))
                with visited(self.model, self.place.site, add):
                    values = self._read(self.model(self._batch(here)))
                scores[rows.cpu().numpy()] = score(values, _of(seen.answer, here), self.config.metric)
        effects = np.zeros(tuple(runs.shape))
        at = samples.cpu().numpy()
        effects[latents.cpu().numpy(), at] = scores - seen.intact[at]
        return effects

    def _differentiated(
        self, rows: Rows, answer: Answer | None, shift: Vectors | None
    ) -> tuple[Vectors, Vectors, Float[Tensor, "sample column"]]:
        """Return vectors, gradient and answers of some samples; without an answer, the run's own is the clean one."""
        with differentiation(self.model), ExitStack() as hooks:
            if shift is not None:
                hooks.enter_context(visited(self.model, self.place.site, partial(self._add, shift[rows])))
            seen = hooks.enter_context(nodes(self.model, [self.place.site]))
            values = self._read(self.model(self._batch(rows)))
            clean = values.detach() if answer is None else answer.clean[rows]
            goal = Answer(None if self.target is None else self.target[rows], None, clean)
            (gradient,) = derivatives(measure(values, goal, self.config.metric), [seen[self.place.site]])
            return self._vectors(seen[self.place.site].detach()), self._vectors(gradient), values.detach()

    def _add(self, change: Float[Tensor, "row position unit"], activation: Tensor) -> Tensor:
        made = activation.clone()
        rows = samples_first(made, self.config.sample_axis)  # a view
        place = where(rows, self.place.part.position, None)
        rows[place] += change.reshape(rows[place].shape).to(made)
        return made

    def _vectors(self, activation: Tensor) -> Vectors:
        rows = samples_first(activation, self.config.sample_axis)
        chosen = rows[where(rows, self.place.part.position, None)]
        return chosen.reshape(len(rows), -1, chosen.shape[-1])

    def _read(self, output: object) -> Float[Tensor, "sample column"]:
        config = self.config
        return read_output(
            output, config.metric, answer_position=config.answer_position, sample_axis=config.sample_axis
        )

    @property
    def _n_samples(self) -> int:
        return self.inputs.shape[self.config.sample_axis]

    def _batch(self, rows: Rows) -> Tensor:
        return self.inputs.index_select(self.config.sample_axis, rows)

    def _blocks(self, n: int) -> tuple[Rows, ...]:
        return torch.arange(n, device=self.inputs.device).split(self.config.batch_rows) if n else ()


@torch.no_grad()
def ablation_of_all(dictionary: Codes, vectors: Vectors) -> Vectors:
    """Return - sum_j f_j d_j."""
    return -(dictionary.encode(vectors.to(dictionary.W_dec)) @ dictionary.W_dec).to(vectors)


@torch.no_grad()
def reconstruction_error(dictionary: Codes, vectors: Vectors) -> Vectors:
    """Return x - x_hat."""
    return vectors - dictionary.decode(dictionary.encode(vectors.to(dictionary.W_dec))).to(vectors)


def _check(vectors: Vectors, dictionary: Codes) -> None:
    units = vectors.shape[-1]
    if dictionary.W_dec.shape[1:] != (units,) or dictionary.W_enc.shape != dictionary.W_dec.shape:
        raise ShapeError(
            f"the dictionary must read and write the site's {units} units. Got encoder rows of "
            f"{tuple(dictionary.W_enc.shape[1:])} and decoder rows of {tuple(dictionary.W_dec.shape[1:])}."
        )
    if not bool(vectors.isfinite().all()):
        raise DegenerateInputError("activations at the dictionary's site must be finite. Got NaN or infinity.")


def _of(answer: Answer, rows: Rows) -> Answer:
    target = None if answer.target is None else answer.target[rows]
    return Answer(target, None, answer.clean[rows])
