"""Run experiments on every prompt pair, and score the answers.

Pairs are taken in blocks whose cached activations fit in memory. In a block the clean and the corrupted runs are
made once; the experiments are made on one of them, packed by `run_experiments`.

Cost: (2 + E) forwards of all pairs for E experiments, and one more of the pairs for a control.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechint_core.models import capture, samples_first, samples_to, to_model
from mechint_core.patching.answers import Answer, read_output, score
from mechint_core.patching.edits import Edit, Write
from mechint_core.patching.pairs import PairedConfig, PromptPairs
from mechint_core.patching.parts import Part
from mechint_core.patching.passes import run_experiments
from mechint_core.patching.recovery import PairScores
from mechint_core.random import generator

Rows = Int[np.ndarray, "sample"]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Some pairs: what the model was given and gave, clean and corrupted."""

    rows: Rows
    base: Tensor
    """The inputs that experiments run on, in the model's layout."""
    answer: Answer
    clean: Float[np.ndarray, "sample"]
    """Metric of the clean runs."""
    corrupted: Float[np.ndarray, "sample"]
    base_activations: Mapping[str, Float[Tensor, "sample ..."]]
    """Of the runs that experiments are made on, samples first; none unless they are kept."""
    donor_activations: Mapping[str, Float[Tensor, "sample ..."]]
    """Of the other runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRuns:
    """How pairs are run and scored; use it inside `inference(model)`."""

    model: nn.Module
    config: PairedConfig
    sites: Sequence[str]
    """What is cached of the runs."""
    bytes_per_row: int
    """Of one sample's activations at the sites, as `usable_sites` says."""
    keep_base: bool = False
    """Cache the activations of the runs that experiments are made on, too."""
    noising: bool = False
    """Experiments are made on clean runs, with what corrupted runs give; otherwise the reverse."""

    def blocks(self, pairs: PromptPairs, *, donors: int = 1) -> Iterator[Block]:
        """Yield the pairs in blocks whose activations, of `donors` runs each, fit in memory."""
        config, caches = self.config, donors + self.keep_base
        size = max(1, min(config.batch_rows, config.cache_bytes // max(1, caches * self.bytes_per_row)))
        for rows in np.array_split(np.arange(len(pairs)), -(-len(pairs) // size)):
            yield self.block(pairs, rows)

    def block(self, pairs: PromptPairs, rows: Rows) -> Block:
        """Run some pairs, clean and corrupted."""
        of = pairs.at(rows)
        base, donor = (of.clean, of.corrupted) if self.noising else (of.corrupted, of.clean)
        base_values, base_seen = self.run(base, self.sites if self.keep_base else ())
        donor_values, donor_seen = self.run(donor, self.sites)
        clean, corrupted = (base_values, donor_values) if self.noising else (donor_values, base_values)
        answer = Answer(_classes(of.target, clean), _classes(of.foil, clean), clean)
        return Block(
            rows,
            self.batch(base),
            answer,
            score(clean, answer, self.config.metric),
            score(corrupted, answer, self.config.metric),
            base_seen,
            donor_seen,
        )

    def run(
        self, inputs: np.ndarray, sites: Sequence[str]
    ) -> tuple[Float[Tensor, "sample column"], dict[str, Float[Tensor, "sample ..."]]]:
        """Return what the model answers, and its activations at some sites, samples first."""
        with capture(self.model, sites) as seen:
            values = self.read(self.model(self.batch(inputs)))
        return values, {site: samples_first(seen[site], self.config.sample_axis) for site in sites}

    def score_experiments(
        self, block: Block, experiments: Sequence[Sequence[Edit]]
    ) -> Float[np.ndarray, "experiment sample"]:
        """Return the metric of every row of a block under each experiment."""
        config = self.config
        scores = np.empty((len(experiments), len(block.rows)))
        passes = run_experiments(
            self.model, block.base, experiments, batch_rows=config.batch_rows, sample_axis=config.sample_axis
        )
        for pieces, output in passes:
            values = self.read(output)
            for piece in pieces:
                answer = block.answer.of(piece.rows)
                scores[piece.experiment, piece.rows] = score(values[piece.place], answer, config.metric)
        return scores

    def score_parts(
        self, pairs: PromptPairs, parts: Sequence[tuple[str, Part]], *, control_seed: int | None = None
    ) -> PairScores:
        """Return the metric of every clean, corrupted and patched run; no score depends on the blocks.

        With `control_seed`, another pair's activations are written too, chosen by this seed.
        """

        def experiments(block: Block) -> list[list[Edit]]:
            return [[Write(site, block.donor_activations[site], part)] for site, part in parts]

        others = None if control_seed is None else other_pairs(len(pairs), control_seed)
        found = self.score_pairs(pairs, experiments, others=others)
        own, control = (found.patched, None) if others is None else np.split(found.patched, 2)
        return PairScores(found.clean, found.corrupted, own, control)

    def score_pairs(
        self,
        pairs: PromptPairs,
        experiments: Callable[[Block], Sequence[Sequence[Edit]]],
        *,
        others: Rows | None = None,
    ) -> PairScores:
        """Score the experiments that `experiments` makes for each block; with `others`, those of other donors too."""
        clean, corrupted = np.empty((2, len(pairs)))
        patched: list[np.ndarray] = []
        for block in self.blocks(pairs, donors=1 if others is None else 2):
            clean[block.rows], corrupted[block.rows] = block.clean, block.corrupted
            made = list(experiments(block))
            if others is not None:
                donor = (pairs.corrupted if self.noising else pairs.clean)[others[block.rows]]
                made += experiments(replace(block, donor_activations=self.run(donor, self.sites)[1]))
            patched.append(self.score_experiments(block, made))
        return PairScores(clean, corrupted, np.concatenate(patched, axis=1))

    def batch(self, inputs: np.ndarray) -> Tensor:
        """Return inputs as the model takes them."""
        return samples_to(to_model(inputs, self.model), self.config.sample_axis)

    def read(self, output: object) -> Float[Tensor, "sample column"]:
        """Return the answer in a model's output."""
        config = self.config
        return read_output(
            output, config.metric, answer_position=config.answer_position, sample_axis=config.sample_axis
        )


def other_pairs(n_pairs: int, seed: int) -> Rows:
    """Choose another pair for each: the next one in a random circle of all."""
    circle = generator(seed, "patch_sites", "control").permutation(n_pairs)
    others = np.empty_like(circle)
    others[circle] = np.roll(circle, 1)
    return others


def _classes(classes: np.ndarray | None, like: Tensor) -> Tensor | None:
    return None if classes is None else torch.from_numpy(classes.astype(np.int64)).to(like.device)
