"""Run experiments on edges: what each edge of a graph carries is chosen, for every experiment and every prompt pair.

    kept edge     what its sender writes in this very run
    cut edge      what the ablation puts there

    corrupted     what its sender wrote in the pair's other run
    zero          nothing
    mean          what its sender wrote in corrupted runs, averaged over a reference
    other         what its sender wrote in another pair's clean run

With all edges kept a run is the clean run, with all cut by `corrupted` it is the corrupted run. Experiments x pairs are
packed into passes, each row with its own edges cut. Gradients of the score with respect to what every edge carries
come from one backward.

Source: [@goldowskydill2023] (paths), [@nanda2023b], [@syed2024] (gradients).
Cost: (2 + E) forwards of all pairs for E experiments, heads' inputs multiplied where experiments differ in them; for
gradients 2 forwards, and a forward and a backward for each step.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import nn

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.models import join_rows, select
from mechint_core.parallel import Rows
from mechint_core.patching.answers import score
from mechint_core.patching.edge_copies import Copies, EdgeTable
from mechint_core.patching.edge_pass import EdgePass
from mechint_core.patching.pair_runs import Block, PairRuns, other_pairs
from mechint_core.patching.pairs import PairedConfig, PromptPairs
from mechint_core.patching.passes import plan_passes
from mechint_core.patching.progress import report_pass
from mechint_core.patching.recovery import PairScores
from mechint_core.patching.residual_graph import ResidualGraph
from mechint_core.patching.stream_run import Activation, Stream, StreamRun

Ablation = Literal["corrupted", "zero", "mean", "other"]
ABLATIONS: Final = get_args(Ablation)
Kept = Bool[Rows, "experiment edge"] | Float[Rows, "experiment edge"]
"""Which edges each experiment keeps; read by row slices, so that it need not be whole in memory."""

_TABLE: Final = 2**22
"""Entries of a table of experiments x edges that is worked on at once."""
_LIVE: Final = 8
"""Tensors as large as what was read that an attention holds at once, about: queries, keys, values, heads, ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeRuns:
    """How pairs are run with edges cut; use it inside `inference(model)`."""

    model: nn.Module
    graph: ResidualGraph
    config: PairedConfig

    def score(
        self,
        pairs: PromptPairs,
        kept: Kept,
        *,
        ablation: Ablation = "corrupted",
        reference: PromptPairs | None = None,
        denoising: bool = False,
    ) -> PairScores:
        """Return the metric of every clean and corrupted run, and of every experiment, as `patched`.

        Parameters
        ----------
        pairs
            What to run.
        kept
            Which edges are kept, in the order of `graph.edges`; numbers between keep a share of an edge.
        ablation
            What cut edges carry.
        reference
            Pairs over whose corrupted runs means are taken; these pairs, if not given.
        denoising
            Cut edges of corrupted runs, which then carry clean writes, instead of the reverse.

        Raises
        ------
        ShapeError
            If `kept` has not one column per edge.
        ConfigurationError
            If the ablation is not known, or has no meaning when denoising.
        """
        stream = Stream.of(self.model, self.graph)
        blocks = self.blocks(stream, pairs, ablation, reference=reference, denoising=denoising)
        return self._score(stream, blocks, len(pairs), kept)

    def scorer(self, pairs: PromptPairs, *, ablation: Ablation = "corrupted") -> Callable[[Kept], PairScores]:
        """Return what scores experiments as `score` does, for many calls: pairs that fit in memory are run once."""
        stream = Stream.of(self.model, self.graph)
        if len(self._cut_rows(stream, pairs, n_held=2)) > 1:
            return lambda kept: self.score(pairs, kept, ablation=ablation)
        held = list(self.blocks(stream, pairs, ablation))
        return partial(self._score, stream, held, len(pairs))

    def _score(
        self, stream: Stream, blocks: Iterable[tuple[Block, StreamRun, StreamRun]], n_pairs: int, kept: Kept
    ) -> PairScores:
        self._check(kept.shape)
        clean, corrupted = np.empty((2, n_pairs))
        patched = np.empty((kept.shape[0], n_pairs))
        at_once, done = max(1, _TABLE // kept.shape[1]), 0
        for block, base, donor in blocks:
            clean[block.rows], corrupted[block.rows] = block.clean, block.corrupted
            for start in range(0, len(patched), at_once):
                chosen = slice(start, start + at_once)
                cut = 1.0 - kept[chosen].astype(np.float64)
                patched[chosen, block.rows] = self._score_block(stream, block, cut, base, donor)
                done += len(cut) * len(block.rows)
                report_pass(done, patched.size)
        return PairScores(clean, corrupted, patched)

    def blocks(
        self,
        stream: Stream,
        pairs: PromptPairs,
        ablation: Ablation = "corrupted",
        *,
        reference: PromptPairs | None = None,
        denoising: bool = False,
        n_held: int = 2,
    ) -> Iterator[tuple[Block, StreamRun, StreamRun]]:
        """Yield pairs in blocks of which `n_held` runs fit in memory; with the run that is changed, and the donor.

        Raises
        ------
        ConfigurationError
            If the ablation is not known, or has no meaning when denoising.
        """
        _check_ablation(ablation, denoising)
        mean = self._mean(stream, reference or pairs) if ablation == "mean" else None
        others = other_pairs(len(pairs), self.config.seed)
        runs = replace(self.pair_runs(stream), keep_base=True, noising=not denoising)
        for rows in self._cut_rows(stream, pairs, n_held):
            block = runs.block(pairs, rows)
            base, donor = stream.run(block.base_activations), stream.run(block.donor_activations)
            if ablation == "zero":
                donor = base.each(torch.zeros_like)
            elif ablation == "other":
                donor = stream.run(runs.run(pairs.clean[others[rows]], stream.sites)[1])
            elif mean is not None:
                donor = mean.each(partial(_repeated, len(rows)))
            yield block, base, donor

    def pair_runs(self, stream: Stream) -> PairRuns:
        """Return what runs pairs without any experiment."""
        return PairRuns(model=self.model, config=self.config, sites=stream.sites, bytes_per_row=1)

    def _score_block(
        self, stream: Stream, block: Block, cut: Float[np.ndarray, "experiment edge"], base: StreamRun, donor: StreamRun
    ) -> Float[np.ndarray, "experiment sample"]:
        """Return the metric of the rows of a block under each experiment."""
        device, runs = block.base.device, self.pair_runs(stream)
        copies = EdgeTable.of(self.graph).copies(cut, device)
        scores = np.empty((len(cut), len(block.rows)))
        for pieces in plan_passes(len(cut), len(block.rows), self._pass_rows(base, copies, cut)):
            numbers = [(piece.experiment, row) for piece in pieces for row in range(piece.rows.start, piece.rows.stop)]
            experiments, rows = torch.tensor(numbers, device=device).unbind(1)
            here = EdgePass(
                model=self.model,
                stream=stream,
                sample_axis=self.config.sample_axis,
                copies=[None if each is None else each.of(experiments) for each in copies],
                donor=donor.at(rows),
                rests=base.at(rows).rests,
            )
            parts = [block.base[select(piece.rows, None, self.config.sample_axis)] for piece in pieces]
            with here.hooked():
                values = runs.read(self.model(join_rows(parts, self.config.sample_axis)))
            for piece in pieces:
                answer = block.answer.of(piece.rows)
                scores[piece.experiment, piece.rows] = score(values[piece.place], answer, self.config.metric)
        return scores

    def _pass_rows(
        self, base: StreamRun, copies: Sequence[Copies | None], cut: Float[np.ndarray, "experiment edge"]
    ) -> int:
        """Return how many rows of a pass fit in memory, given how much its experiments cut at once."""
        size = max(each[0].numel() * each.element_size() for each in base.rests)
        widest = max((each.n_rows for each in copies if each is not None), default=1)
        sender = np.array([self.graph.senders.index(one) for one, _ in self.graph.edges])
        cuts = np.stack([cut[:, sender == each].any(axis=1) for each in range(len(self.graph.senders))], axis=1)
        rows, n_rows = self.config.batch_rows, len(base.rests[0])
        while rows > 1:
            n_together = -(-rows // n_rows) + 1
            together = max(int(cuts[i : i + n_together].any(axis=0).sum()) for i in range(0, len(cuts), n_together))
            if rows * size * (together + _LIVE * widest) <= self.config.cache_bytes:
                break
            rows //= 2
        return rows

    def _mean(self, stream: Stream, pairs: PromptPairs) -> StreamRun:
        """Return the mean of the corrupted runs, as one row."""
        sums: StreamRun | None = None
        for _, _, corrupted in self.blocks(stream, pairs, "corrupted"):
            more = corrupted.each(lambda kept: kept.sum(dim=0, keepdim=True))
            sums = more if sums is None else sums.plus(more)
        if sums is None:
            raise ShapeError("a mean must be of at least one pair. Got none.")
        return sums.each(lambda total: total / len(pairs))

    def _cut_rows(self, stream: Stream, pairs: PromptPairs, n_held: int) -> list[Int[np.ndarray, "sample"]]:
        """Cut the pairs into blocks of which `n_held` runs fit in memory."""
        one = self.pair_runs(stream).run(pairs.clean[:1], stream.sites)[1]
        held = n_held * sum(each.numel() * each.element_size() for each in one.values())
        size = max(1, min(self.config.batch_rows, self.config.cache_bytes // max(1, held)))
        return np.array_split(np.arange(len(pairs)), -(-len(pairs) // size))

    def _check(self, shape: tuple[int, ...]) -> None:
        n_edges = len(self.graph.edges)
        if len(shape) != 2 or shape[1] != n_edges or not shape[0]:
            raise ShapeError(f"kept must be (experiment >= 1, edge), with {n_edges} edges. Got {shape}.")


def _check_ablation(ablation: str, denoising: bool) -> None:
    if ablation not in ABLATIONS:
        raise ConfigurationError(f"ablation must be one of {', '.join(ABLATIONS)}. Got {ablation!r}.")
    if denoising and ablation not in ("corrupted", "other"):
        raise ConfigurationError(
            f"when denoising, cut edges carry clean writes: ablation must be corrupted or other. Got {ablation!r}."
        )


def _repeated(n_rows: int, one: Activation) -> Activation:
    return one.expand(n_rows, *one.shape[1:])
