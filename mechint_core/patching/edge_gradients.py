"""How the answer's score would change, to first order, if an edge carried what it carries in the pair's other run.

    effect_{s -> r} = sum over steps k of  weight_k (w_s' - w_s) . dm / dx_r  at  rest' = rest + alpha_k (rest' - rest)

w_s and w_s' are what s writes in the run that is changed and in the other. dm/dx_r is taken where receiver r alone
reads x_r: each head, and each of its query, key and value, by itself. One step at alpha = 0 is edge attribution
patching; several are its integrated gradients, along the straight line between the inputs of the two runs.

One backward reaches the heads and the mlps; from each of these to its own input, only its own part of the model is
gone back through.

Source: [@syed2024], [@hanna2024].
Cost: 2 forwards; and for each step a forward and a backward of the model, and a backward of each attention per head.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from operator import setitem
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechint_core.models import samples_first, visited
from mechint_core.patching.answers import measure
from mechint_core.patching.edge_pass import entered, normed
from mechint_core.patching.edge_runs import Ablation, EdgeRuns
from mechint_core.patching.pair_runs import Block
from mechint_core.patching.pairs import PromptPairs
from mechint_core.patching.recovery import PairScores
from mechint_core.patching.residual_graph import PORTS, Reader, port_modules
from mechint_core.patching.stream_run import Activation, Stream, StreamRun, site_of

Steps = Sequence[tuple[float, float]]
"""(alpha, weight)."""
_GRAPH: Final = 10
"""What a forward keeps for its backward, in runs' writes and rests, about."""


def edge_gradients(
    runs: EdgeRuns,
    pairs: PromptPairs,
    *,
    steps: Steps = ((0.0, 1.0),),
    ablation: Ablation = "corrupted",
    denoising: bool = False,
) -> PairScores:
    """Return the metric of every clean and corrupted run, and what it would be with each edge cut, to first order.

    Call it inside `differentiation(model)`. `patched` has a row per edge, in the order of `graph.edges`.
    """
    with torch.no_grad():
        stream = Stream.of(runs.model, runs.graph)
    clean, corrupted = np.empty((2, len(pairs)))
    patched = np.empty((len(runs.graph.edges), len(pairs)))
    for block, base, donor in _without_gradients(runs, stream, pairs, ablation, denoising):
        clean[block.rows], corrupted[block.rows] = block.clean, block.corrupted
        sent = _Sent.of(stream, base, donor)
        total = sum(
            (weight * _effects(runs, stream, block, sent, alpha) for alpha, weight in steps),
            start=np.zeros((len(runs.graph.edges), len(block.rows))),
        )
        patched[:, block.rows] = (block.corrupted if denoising else block.clean) + total
    return PairScores(clean, corrupted, patched)


@dataclass(frozen=True, slots=True, eq=False)
class _Sent:
    """What every edge carries in the other run, less what it carries in the run that is changed."""

    stream: Stream
    rests: tuple[Activation, ...]
    changes: tuple[Tensor, ...]
    """Of each writer, (sample, sender, ...)."""

    @classmethod
    def of(cls, stream: Stream, base: StreamRun, donor: StreamRun) -> "_Sent":
        pairs = zip(donor.writes, base.writes, strict=True)
        changes = tuple(stream.by_sender(index, other - own) for index, (other, own) in enumerate(pairs))
        return cls(stream, tuple(other - own for other, own in zip(donor.rests, base.rests, strict=True)), changes)

    def along(
        self, index: int, reader: Reader, gradient: Float[Tensor, "sample receiver ..."]
    ) -> Float[Tensor, "sample receiver sender"]:
        """Return each edge's change times the gradient where it arrives."""
        product = gradient * self.rests[index][:, None]
        whole = len(reader.inputs) == 1
        parts = [product.flatten(2).sum(dim=2, keepdim=True) if whole else product.flatten(3).sum(dim=3)]
        read = gradient.flatten(2)
        parts += [torch.bmm(read, self.changes[source].flatten(2).mT) for source in reader.sources]
        return torch.cat(parts, dim=2)


@dataclass(slots=True, eq=False)
class _Taps:
    """The tensors of one forward that gradients are taken of: of each reader."""

    read: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What was read, by site."""
    own: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    """What this reader alone reads."""
    heads: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    """The heads, side by side."""
    ports: dict[int, list[Tensor]] = field(default_factory=dict[int, list[Tensor]])
    """Queries, keys and values: three tensors, or one."""


def _effects(
    runs: EdgeRuns, stream: Stream, block: Block, sent: _Sent, alpha: float
) -> Float[np.ndarray, "edge sample"]:
    """Return every edge's change times the gradient of the metric, at one point between the two runs' inputs."""
    taps = _Taps()
    with ExitStack() as hooks:
        _hang(hooks, runs, sent, alpha, taps)
        values = runs.pair_runs(stream).read(runs.model(block.base))
    total = measure(values, block.answer, runs.config.metric).sum()
    last = {index: taps.heads.get(index, own) for index, own in taps.own.items()}
    given = torch.autograd.grad(total, list(last.values()), retain_graph=True, allow_unused=True)
    arrived = {
        index: torch.zeros_like(last[index]) if each is None else each for index, each in zip(last, given, strict=True)
    }
    effects: list[Tensor] = []
    for index, reader in enumerate(runs.graph.readers):
        gradients = _to_receivers(runs, index, taps, arrived[index])
        by_sample = torch.stack([samples_first(each, runs.config.sample_axis) for each in gradients], dim=1)
        effects.append(sent.along(index, reader, by_sample).permute(1, 2, 0).flatten(0, 1))
    return torch.cat(effects).double().cpu().numpy()


def _hang(hooks: ExitStack, runs: EdgeRuns, sent: _Sent, alpha: float, taps: _Taps) -> None:
    for index, reader in enumerate(runs.graph.readers):
        if reader.norm is not None:
            hooks.enter_context(visited(runs.model, reader.site, partial(setitem, taps.read, reader.site)))
        hooks.enter_context(entered(runs.model, reader.module, partial(_enter, runs, sent, alpha, taps, index)))
    for index, writer in enumerate(runs.graph.writers):
        if writer.heads is not None:
            hooks.enter_context(visited(runs.model, site_of(writer), partial(setitem, taps.heads, index)))
            if runs.graph.granularity == "qkv":
                for module in port_modules(writer.heads) or ():
                    hooks.enter_context(visited(runs.model, module, taps.ports.setdefault(index, []).append))


def _enter(runs: EdgeRuns, sent: _Sent, alpha: float, taps: _Taps, index: int, given: Tensor) -> Tensor:
    """Return what a reader's module is given, a share of the way towards the other run; keep what it reads."""
    reader = runs.graph.readers[index]
    read = given if reader.norm is None else taps.read[reader.site]
    own = read + alpha * sent.rests[index].movedim(0, runs.config.sample_axis)
    taps.own[index] = own if own.requires_grad else own.requires_grad_()
    return normed(runs.model, reader.norm, own)


def _to_receivers(runs: EdgeRuns, index: int, taps: _Taps, arrived: Tensor) -> list[Tensor]:
    """Return the gradient where each receiver reads, from that where its part of the model ends."""
    own = taps.own[index]
    if index not in taps.heads:
        return [arrived]
    heads, n_heads = taps.heads[index], len(runs.graph.writers[index].senders)
    found: list[Tensor] = []
    for only in _slices(arrived, n_heads):
        if index not in taps.ports:
            found.append(_back(heads, own, only))
            continue
        ports = taps.ports[index]
        given = torch.autograd.grad(heads, ports, only, retain_graph=True, allow_unused=True)
        for port, gradient in zip(ports, given, strict=True):
            whole = torch.zeros_like(port) if gradient is None else gradient
            found += [_back(port, own, part) for part in _slices(whole, len(PORTS) // len(ports))]
    return found


def _slices(gradient: Tensor, n_slices: int) -> list[Tensor]:
    """Return the gradient of each of several slices of units, zero at the others."""
    shape = (n_slices, gradient.shape[-1] // n_slices)
    one_hot = torch.eye(n_slices, dtype=gradient.dtype, device=gradient.device)
    return [(gradient.unflatten(-1, shape) * chosen[:, None]).flatten(-2) for chosen in one_hot]


def _back(end: Tensor, start: Tensor, gradient: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(end, [start], gradient, retain_graph=True, allow_unused=True)
    return torch.zeros_like(start) if found is None else found


def _without_gradients(
    runs: EdgeRuns, stream: Stream, pairs: PromptPairs, ablation: Ablation, denoising: bool
) -> Iterator[tuple[Block, StreamRun, StreamRun]]:
    """Yield blocks whose runs leave no graph; memory is for what each sender writes, by itself."""
    n_held = _GRAPH + -(-len(runs.graph.senders) // len(runs.graph.writers))
    blocks = runs.blocks(stream, pairs, ablation, denoising=denoising, n_held=n_held)
    while True:
        with torch.no_grad():
            block = next(blocks, None)
        if block is None:
            return
        yield block
