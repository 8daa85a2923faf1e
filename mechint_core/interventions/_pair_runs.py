"""Run every patch of a patching experiment on every prompt pair, and score the answers.

Pairs are taken in blocks whose cached activations fit in memory. In a block, the source runs (clean ones when
denoising) are cached once; every site is then patched into the base runs, packed by `run_experiments`.

Cost: (3 + S) forwards of all pairs for S sites, (4 + 2 S) with controls.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechint_core.interventions._answer_metrics import Answer, Metric, read_output, score
from mechint_core.interventions._batched import Edit, Usable, run_experiments
from mechint_core.interventions._recovery import PairScores
from mechint_core.models import capture, samples_to, to_model
from mechint_core.random import generator

Rows = Int[np.ndarray, "sample"]
Inputs = np.ndarray | Tensor
"""Samples first; to the model they go in its own layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRuns:
    """How pairs are run and scored; use it inside `inference(model)`."""

    model: nn.Module
    usable: Usable
    metric: Metric
    noising: bool = False
    position: int | None = None
    answer_position: int = -1
    sample_axis: int = 0
    batch_rows: int = 1024
    cache_bytes: int = 256 * 2**20
    control_seed: int | None = None
    """Patch another pair's activations too, chosen by this seed."""

    def score_pairs(
        self, clean: Inputs, corrupted: Inputs, target: np.ndarray | None = None, foil: np.ndarray | None = None
    ) -> PairScores:
        """Return the metric of every clean, corrupted and patched run; no score depends on the blocks."""
        n_pairs, n_sites = len(clean), len(self.usable.sites)
        others = None if self.control_seed is None else other_pairs(n_pairs, self.control_seed)
        plain = np.empty((2, n_pairs))
        patched = np.empty((1 if others is None else 2, n_sites, n_pairs))
        for rows in np.array_split(np.arange(n_pairs), -(-n_pairs // self._block_rows())):
            sources = [rows] if others is None else [rows, others[rows]]
            answers = (None if each is None else each[rows] for each in (target, foil))
            plain[:, rows], patched[:, :, rows] = self._score_block(clean, corrupted, rows, sources, *answers)
        return PairScores(plain[0], plain[1], patched[0], None if others is None else patched[1])

    def _score_block(
        self,
        clean: Inputs,
        corrupted: Inputs,
        rows: Rows,
        sources: list[Rows],
        target: np.ndarray | None,
        foil: np.ndarray | None,
    ) -> tuple[Float[np.ndarray, "2 sample"], Float[np.ndarray, "source site sample"]]:
        base, source = (clean, corrupted) if self.noising else (corrupted, clean)
        batch = self._batch(base, rows)
        base_values = self._read(self.model(batch))
        source_values, experiments = base_values, list[list[Edit]]()
        for of in reversed(sources):  # the pairs' own last, for their output is scored
            with capture(self.model, self.usable.sites) as seen:
                source_values = self._read(self.model(self._batch(source, of)))
            edits = [[Edit(site, seen[site], self.position)] for site in self.usable.sites]
            experiments = edits + experiments
        of_clean, of_corrupted = (base_values, source_values) if self.noising else (source_values, base_values)
        answer = Answer(_classes(target, of_clean), _classes(foil, of_clean), of_clean)
        plain = np.stack([score(values, answer, self.metric) for values in (of_clean, of_corrupted)])
        return plain, self._score_experiments(batch, experiments, answer).reshape(len(sources), -1, len(rows))

    def _score_experiments(
        self, batch: Tensor, experiments: list[list[Edit]], answer: Answer
    ) -> Float[np.ndarray, "draw sample"]:
        scores = np.empty((len(experiments), len(answer.clean)))
        passes = run_experiments(
            self.model, batch, experiments, batch_rows=self.batch_rows, sample_axis=self.sample_axis
        )
        for pieces, output in passes:
            values = self._read(output)
            for piece in pieces:
                scores[piece.experiment, piece.rows] = score(values[piece.place], answer.of(piece.rows), self.metric)
        return scores

    def _batch(self, inputs: Inputs, rows: Rows) -> Tensor:
        return samples_to(to_model(inputs[rows], self.model), self.sample_axis)

    def _read(self, output: object) -> Float[Tensor, "sample column"]:
        return read_output(output, self.metric, answer_position=self.answer_position, sample_axis=self.sample_axis)

    def _block_rows(self) -> int:
        caches = 1 if self.control_seed is None else 2
        return max(1, min(self.batch_rows, self.cache_bytes // (caches * self.usable.bytes_per_row)))


def other_pairs(n_pairs: int, seed: int) -> Rows:
    """Choose another pair for each: the next one in a random circle of all."""
    circle = generator(seed, "patch_sites", "control").permutation(n_pairs)
    others = np.empty_like(circle)
    others[circle] = np.roll(circle, 1)
    return others


def _classes(classes: np.ndarray | None, like: Tensor) -> Tensor | None:
    return None if classes is None else torch.from_numpy(classes.astype(np.int64)).to(like.device)
