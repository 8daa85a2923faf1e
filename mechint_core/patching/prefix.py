"""Do not compute again what no edit can have changed.

    b_0 -> ... -> b_{k-1} -> b_k -> ... -> b_{n-1}        every edit in or after b_k: start at k

What b_{k-1} gave in the unedited run stands in for the first k blocks, which are not computed. Blocks are the members
of a `ModuleList` or `Sequential` that run once each, in order, one feeding the next. That nothing else leaves the
skipped blocks (a skip connection, attention weights, a bias made by the first block and used by all) is not assumed
but tried, on other inputs than the blocks were traced on: with NaN in the skipped blocks and the cached activation at
the boundary, every later block and the output must keep every bit; else nothing is reused at that boundary.

Cost: one forward of a few rows to trace, one to compare with, one for each boundary that is asked for.
"""

from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechint_core.errors import MechintError
from mechint_core.models import (
    activation_of,
    capture,
    find_activation,
    module_at,
    replaced_forward,
    samples_first,
    samples_to,
    with_activation,
)

FEWEST_ROWS: Final = 64
"""A forward of fewer rows is mostly overhead: it is not worth a start of its own."""
_REFUSALS = (MechintError, RuntimeError, ValueError, TypeError, IndexError, AttributeError)
"""What a model raises that does not bear to be started in its middle."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Blocks that run one after the other, as seen in one forward."""

    blocks: tuple[str, ...]
    given: tuple[Any, ...]
    """What each block returned, for all of it that is not the activation."""
    done_by: Mapping[str, int]
    """Site -> how many blocks are finished when it runs."""
    bytes_per_row: int
    """Memory of one sample's activations after all blocks."""


class Prefix:
    """From where in a model experiments can start. Make it with `find_prefix`."""

    def __init__(self, model: nn.Module, chain: Chain, trial: Tensor, sample_axis: int) -> None:
        self.model, self.chain, self.sample_axis = model, chain, sample_axis
        self._trial = trial
        self._wanted: tuple[Tensor, Mapping[str, Tensor]] | None = None
        self._allowed: dict[int, bool] = {0: True}

    def latest(self, sites: Sequence[str]) -> int:
        """Return how many blocks are finished before any of `sites` runs; 0 if that is not known."""
        return min((self.chain.done_by.get(site, 0) for site in sites), default=0)

    def allows(self, start: int) -> bool:
        """Say whether the first `start` blocks can be skipped: tried once, and bit for bit."""
        if start not in self._allowed:
            self._allowed[start] = self._holds(start)
        return self._allowed[start]

    @contextmanager
    def skipping(self, start: int, cached: Float[Tensor, "sample ..."], filler: float | None = None) -> Generator[None]:
        """Let `cached`, what block start - 1 gave, samples first, stand in for the first `start` blocks."""
        last = samples_to(cached, self.sample_axis).contiguous()
        before = last if filler is None else torch.full_like(last, filler)
        with ExitStack() as replaced:
            for block, given in zip(self.chain.blocks[:start], self.chain.given, strict=False):
                values = last if block == self.chain.blocks[start - 1] else before
                forward = partial(_given, with_activation(given, values))
                replaced.enter_context(replaced_forward(module_at(self.model, block), forward))
            yield

    def _holds(self, start: int) -> bool:
        if self._wanted is None:
            self._wanted = self._run(0)
        output, seen = self._wanted
        cached = samples_first(seen[self.chain.blocks[start - 1]], self.sample_axis)
        try:
            with self.skipping(start, cached, filler=torch.nan):
                found, later = self._run(start)
        except _REFUSALS:
            return False
        same = (torch.equal(values, seen[block]) for block, values in later.items())
        return torch.equal(found, output) and all(same)

    def _run(self, start: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        with capture(self.model, self.chain.blocks[start:]) as seen:
            output = activation_of(self.model(self._trial))
        return output, dict(seen)


@dataclass(frozen=True, slots=True)
class Group:
    """Experiments that start at the same block, by their numbers."""

    start: int
    experiments: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Reuse:
    """Where each experiment starts, and what the blocks before gave for the rows at hand."""

    prefix: Prefix
    groups: Sequence[Group]
    cached: Mapping[int, Float[Tensor, "sample ..."]]
    """Start -> what the last skipped block gave in the unedited run, samples first."""

    @contextmanager
    def skipping(self, start: int, rows: Sequence[slice]) -> Generator[None]:
        """Skip the first `start` blocks in a forward of these rows, joined."""
        if start == 0:
            yield
            return
        joined = torch.cat([self.cached[start][each] for each in rows])  # a copy: the model may compute in place
        with self.prefix.skipping(start, joined):
            yield


def find_prefix(model: nn.Module, traced: Tensor, trial: Tensor, *, sample_axis: int) -> Prefix | None:
    """Trace the model's blocks on a few rows; None if it has no two that follow each other.

    `trial` is what boundaries are tried on: other rows, and another number of them.
    """
    chain = _trace(model, traced, sample_axis)
    return None if chain is None else Prefix(model, chain, trial, sample_axis)


def group_by_start(prefix: Prefix | None, places: Sequence[Sequence[str]], n_rows: int) -> list[Group]:
    """Group experiments, which edit `places`, by where they can start; a small group starts with the one before."""
    latest = [0 if prefix is None else prefix.latest(sites) for sites in places]
    groups: list[tuple[int, list[int]]] = []
    for experiment in sorted(range(len(places)), key=latest.__getitem__):
        start = latest[experiment]
        if groups and (groups[-1][0] == start or len(groups[-1][1]) * n_rows < FEWEST_ROWS):
            groups[-1][1].append(experiment)
        else:
            groups.append((start, [experiment]))
    return [Group(start if prefix is not None and prefix.allows(start) else 0, tuple(group)) for start, group in groups]


def _given(output: Any, *_: Any, **__: Any) -> Any:
    return output


class _Calls:
    """When modules begin and end in a forward, and what blocks took and gave."""

    def __init__(self, blocks: frozenset[str]) -> None:
        self.blocks = blocks
        self.clock = 0
        self.at: defaultdict[str, list[int]] = defaultdict(list)
        self.taken: dict[str, Tensor | None] = {}
        self.output: dict[str, Any] = {}
        self.made: dict[str, Tensor | None] = {}

    def begin(self, name: str, _: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self._tick(f"{name}:input")
        if name in self.blocks:
            self.taken[name] = _copy_of((inputs, keywords))

    def end(self, name: str, _: nn.Module, __: Any, output: Any) -> None:
        self._tick(name)
        if name in self.blocks:
            self.output[name], self.made[name] = output, _copy_of(output)

    def follow_each_other(self, blocks: Sequence[str]) -> bool:
        if any(len(self.at[block]) != 1 or self.made[block] is None for block in blocks):
            return False
        return all(
            self.at[one] < self.at[f"{other}:input"] and _same(self.made[one], self.taken[other])
            for one, other in pairwise(blocks)
        )

    def _tick(self, site: str) -> None:
        self.clock += 1
        self.at[site].append(self.clock)


def _trace(model: nn.Module, inputs: Tensor, sample_axis: int) -> Chain | None:
    lists = [blocks for blocks in _lists(model) if len(blocks) > 1]
    calls = _Calls(frozenset(block for blocks in lists for block in blocks))
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(partial(calls.begin, name), with_kwargs=True))
            hooks.enter_context(module.register_forward_hook(partial(calls.end, name)))
        model(inputs)
    blocks = max(filter(calls.follow_each_other, lists), key=len, default=())
    made = [values for values in (calls.made[block] for block in blocks) if values is not None]
    n_rows = inputs.shape[sample_axis]
    if not blocks or any(samples_first(values, sample_axis).shape[0] != n_rows for values in made):
        return None
    ends = [calls.at[block][0] for block in blocks]
    return Chain(
        blocks,
        tuple(calls.output[block] for block in blocks),
        {site: sum(end <= min(times) for end in ends) for site, times in calls.at.items()},
        -(-sum(values.numel() * values.element_size() for values in made) // n_rows),
    )


def _lists(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """Yield the names of the members of every list of modules, the outermost first."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            yield tuple(f"{name}.{child}" if name else child for child, _ in module.named_children())


def _copy_of(output: Any) -> Tensor | None:
    found = find_activation(output)
    return None if found is None else found[1].clone()


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)
