"""Run experiments on every prompt pair, and score the answers.

Pairs are taken in blocks whose cached activations fit in memory. In a block the clean and the corrupted runs are
made once; the experiments are made on one of them, packed by `run_experiments`, which starts each at the first block
of the model that it changes, where the model allows it (`prefix`).

Cost: (2 + E) forwards of all pairs for E experiments, one more of the pairs for a control, and one for the prefix,
which saves half of the E where they are spread evenly over the model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

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
from mechint_core.patching.prefix import Prefix, Reuse, find_prefix, group_by_start
from mechint_core.patching.progress import report_pass
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
    _prefix: list[Prefix | None] = field(default_factory=list[Prefix | None], init=False, repr=False, compare=False)
    """Found at the first need."""

    def blocks(self, pairs: PromptPairs, *, donors: int = 1) -> Iterator[Block]:
        """Yield the pairs in blocks whose activations, of `donors` runs each, fit in memory."""
        size = self.block_rows(self.batch(self._base_of(pairs)[:3]), donors=donors)
        for rows in np.array_split(np.arange(len(pairs)), -(-len(pairs) // size)):
            yield self.block(pairs, rows)

    def block_rows(self, base: Tensor, *, donors: int = 1) -> int:
        """Return how many pairs fit in memory; `base` is any input, in the model's layout."""
        held = self.bytes_per_pair(base, donors=donors)
        return max(1, min(self.config.batch_rows, self.config.cache_bytes // max(1, held)))

    def bytes_per_pair(self, base: Tensor, *, donors: int = 1) -> int:
        """Return the memory that one pair's cached activations take, those of a prefix included."""
        prefix = self.prefix(base)
        return (donors + self.keep_base) * self.bytes_per_row + (0 if prefix is None else prefix.chain.bytes_per_row)

    def prefix(self, base: Tensor) -> Prefix | None:
        """Return what of the model experiments can skip, found on a few rows of `base` the first time."""
        if not self._prefix:
            axis = self.config.sample_axis
            few = [base.index_select(axis, torch.arange(n, device=base.device) % base.shape[axis]) for n in (2, 3)]
            self._prefix.append(find_prefix(self.model, few[0], few[1].flip(axis), sample_axis=axis))
        return self._prefix[0]

    def block(self, pairs: PromptPairs, rows: Rows) -> Block:
        """Run some pairs, clean and corrupted."""
        of = pairs.at(rows)
        base, donor = self._base_of(of), of.corrupted if self.noising else of.clean
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
        return self._scores(block, experiments, 0, len(experiments) * len(block.rows))

    def score_parts(
        self, pairs: PromptPairs, parts: Sequence[tuple[str, Part]], *, control_seed: int | None = None
    ) -> PairScores:
        """Return the metric of every clean, corrupted and patched run; no score depends on the blocks.

        With `control_seed`, another pair's activations are written too, chosen by this seed.
        """
        others = None if control_seed is None else other_pairs(len(pairs), control_seed)
        found = self.score_pairs(pairs, writing(parts), others=others)
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
            patched.append(self._scores(block, made, len(made) * int(block.rows[0]), len(made) * len(pairs)))
        return PairScores(clean, corrupted, np.concatenate(patched, axis=1))

    def _scores(
        self, block: Block, experiments: Sequence[Sequence[Edit]], done: int, total: int
    ) -> Float[np.ndarray, "experiment sample"]:
        config = self.config
        scores = np.empty((len(experiments), len(block.rows)))
        passes = run_experiments(
            self.model,
            block.base,
            experiments,
            batch_rows=config.batch_rows,
            sample_axis=config.sample_axis,
            reuse=self._reuse(block, experiments),
        )
        for pieces, output in passes:
            values = self.read(output)
            for piece in pieces:
                answer = block.answer.of(piece.rows)
                scores[piece.experiment, piece.rows] = score(values[piece.place], answer, config.metric)
            done += pieces[-1].place.stop
            report_pass(done, total)
        return scores

    def _reuse(self, block: Block, experiments: Sequence[Sequence[Edit]]) -> Reuse | None:
        """Return where the experiments start, and what the blocks before that give, from a run without edits."""
        prefix = self.prefix(block.base)
        groups = group_by_start(prefix, [[edit.site for edit in edits] for edits in experiments], len(block.rows))
        starts = {group.start for group in groups} - {0}
        if prefix is None or not starts:
            return None
        last = {start: prefix.chain.blocks[start - 1] for start in starts}
        with capture(self.model, list(last.values())) as seen:
            self.model(block.base)
        cached = {start: samples_first(seen[name], self.config.sample_axis) for start, name in last.items()}
        return Reuse(prefix, groups, cached)

    def batch(self, inputs: np.ndarray) -> Tensor:
        """Return inputs as the model takes them."""
        return samples_to(to_model(inputs, self.model), self.config.sample_axis)

    def _base_of(self, pairs: PromptPairs) -> np.ndarray:
        return pairs.clean if self.noising else pairs.corrupted

    def read(self, output: object) -> Float[Tensor, "sample column"]:
        """Return the answer in a model's output."""
        config = self.config
        return read_output(
            output, config.metric, answer_position=config.answer_position, sample_axis=config.sample_axis
        )


def writing(parts: Sequence[tuple[str, Part]]) -> Callable[[Block], list[list[Edit]]]:
    """Return what makes the experiments of a block: each writes one part of the other run's activation at one site."""
    return partial(_written, parts)


def _written(parts: Sequence[tuple[str, Part]], block: Block) -> list[list[Edit]]:
    return [[Write(site, block.donor_activations[site], part)] for site, part in parts]


def other_pairs(n_pairs: int, seed: int) -> Rows:
    """Choose another pair for each: the next one in a random circle of all."""
    circle = generator(seed, "patch_sites", "control").permutation(n_pairs)
    others = np.empty_like(circle)
    others[circle] = np.roll(circle, 1)
    return others


def _classes(classes: np.ndarray | None, like: Tensor) -> Tensor | None:
    return None if classes is None else torch.from_numpy(classes.astype(np.int64)).to(like.device)
