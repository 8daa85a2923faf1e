"""Find where a model's components read its residual stream and write to it, by watching two forwards.

    where a component reads    the input of the module whose output is, as an object, the component's input (its norm);
                               the component's own input, if there is none
    what it reads from         writes w are held fixed, and one perturbed by d: the read changes by d, or by 0
    where the answer reads     the first module after all components whose input holds all writes; the output, if none

Rows of one batch are perturbed in one component each, so that one forward measures all of them.

Cost: three forwards of one row more than there are components.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.models import find_activation, match_sites, samples_first, visited
from mechint_core.patching.heads import AttentionHeads, attention_heads
from mechint_core.random import torch_generator

_FEED_FORWARD: Final = re.compile(r"(?:.*\.)?(?:\w*mlp|ffn?|feed_?forward)")
_ENCODER_LAYERS: Final = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_NOTHING: Final = torch.empty(0)
_ROUNDING: Final = 1024
"""Of an exact addition: this many times the precision, beside the size of what is added."""


@dataclass(frozen=True, slots=True)
class Station:
    """A component that reads the stream and adds to it."""

    name: str
    entry: str
    """The module that is given what the component reads, normalised or not."""
    exit: str
    """The module whose output is added to the stream."""
    heads: AttentionHeads | None
    """Its heads, if they are to be told apart."""

    def holds(self, module: str) -> bool:
        """Say whether `module` is this component, or inside it."""
        return any(module == each or module.startswith(f"{each}.") for each in (self.name, self.entry, self.exit))


@dataclass(frozen=True, slots=True)
class Read:
    """Where the stream is read."""

    module: str
    """The module that is given it; "" if the model's own output is the stream."""
    norm: str | None
    sources: tuple[int, ...]
    """The stations whose writes are in it."""
    n_positions: int | None
    """Second axis of what is read, if it has units besides."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The stations of a model in the order they run, and how they meet the stream."""

    stations: tuple[Station, ...]
    reads: tuple[Read, ...]
    """Of each station, and last of the answer."""
    given: Mapping[str, int]
    """Units that each module is given, on its last axis: an output projection, its heads side by side."""
    gave: Mapping[str, int]
    """Units that each module gives."""


@dataclass(slots=True, eq=False)
class _Call:
    """One call of a module while the model runs."""

    name: str
    start: int
    given: Tensor
    """The very object, to tell what is passed on unchanged; empty if it is no activation."""
    seen: Tensor
    """A copy of it: the model may go on to change it in place."""
    n_given: int
    end: int = -1
    gave: Tensor = _NOTHING


@dataclass(slots=True)
class _Watch:
    """The calls of a forward, in the order they begin."""

    calls: list[_Call] = field(default_factory=list[_Call])
    clock: int = 0
    output: Tensor = _NOTHING

    def begin(self, name: str, _: nn.Module, given: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        found = find_activation((given, keywords))
        tensor = _NOTHING if found is None else found[1]
        n_given = sum(isinstance(each, Tensor) for each in (*given, *keywords.values()))
        self.calls.append(_Call(name, self._tick(), tensor, tensor.clone(), n_given))

    def end(self, name: str, _: nn.Module, __: Any, output: Any) -> None:
        call = next(each for each in reversed(self.calls) if each.name == name and each.end < 0)
        found = find_activation(output)
        call.end, call.gave = self._tick(), _NOTHING if found is None else found[1]

    def only(self, name: str) -> _Call:
        """Return the one call of a module."""
        calls = [each for each in self.calls if each.name == name]
        if len(calls) != 1 or not (calls[0].given.numel() and calls[0].gave.numel()):
            raise ConfigurationError(
                f"a component must run once per forward, on an activation. Got {len(calls)} calls of {name!r}."
            )
        return calls[0]

    def _tick(self) -> int:
        self.clock += 1
        return self.clock


def find_stations(model: nn.Module, globs: Sequence[str], *, whole: bool) -> tuple[Station, ...]:
    """Return the components that `globs` name; without any, attentions and what is named mlp, ffn or feed_forward.

    With `whole`, attentions are not divided into heads.

    Raises
    ------
    NotFoundError
        If a glob matches nothing, or there is no component.
    """
    heads = {} if whole else {each.module: each for each in attention_heads(model)}
    pairs = {
        f"{name}.mlp": Station(f"{name}.mlp", f"{name}.linear1", f"{name}.linear2", None)
        for name, module in model.named_modules()
        if isinstance(module, _ENCODER_LAYERS)
    }
    names = [name for name, _ in model.named_modules() if name]
    if globs:
        lost = [glob for glob in globs if not any(fnmatchcase(name, glob) for name in (*pairs, *names))]
        if lost:
            match_sites(model, lost)  # which says what there is
        chosen = [name for name in (*pairs, *names) if any(fnmatchcase(name, glob) for glob in globs)]
    else:
        attentions = {each.module for each in attention_heads(model)}
        chosen = [*pairs, *(name for name in names if name in attentions or _FEED_FORWARD.fullmatch(name))]
    outermost = [name for name in chosen if not any(name.startswith(f"{other}.") for other in chosen)]
    if not outermost:
        raise NotFoundError(
            "the model must have attentions, or modules named mlp, ffn or feed_forward. Got none. Give components."
        )
    return tuple(_station(name, heads.get(name), pairs) for name in outermost)


def trace_stream(model: nn.Module, inputs: Tensor, stations: Sequence[Station], *, sample_axis: int) -> Trace:
    """Return the stations in the order they run; and where each of them, and last the answer, reads the stream.

    Raises
    ------
    ShapeError
        If there are fewer than two samples.
    DegenerateInputError
        If the model's output is not finite.
    ConfigurationError
        If a station does not run once per forward, or what it writes is not added to the stream.
    """
    samples = samples_first(inputs, sample_axis)
    if len(samples) < 2:
        raise ShapeError(f"two samples must be given, to trace the stream with. Got {len(samples)}.")
    batch = samples[:1].expand(len(stations) + 1, *samples.shape[1:]).movedim(0, sample_axis)
    calm = _watched(model, batch, stations, {})
    if not bool(calm.output.isfinite().all()):
        raise DegenerateInputError("the model's output must be finite. Got NaN or infinity.")
    ordered = tuple(sorted(stations, key=lambda each: calm.only(each.entry).start))
    pushed = _watched(model, batch, ordered, _pushes(calm, ordered, sample_axis))
    stream = _Stream(model, calm, pushed, ordered, sample_axis)
    reads = (*(stream.read_of(each) for each in ordered), stream.answer_read(samples[:2]))
    given = {call.name: call.given.shape[-1] for call in calm.calls}
    gave = {call.name: call.gave.shape[-1] for call in calm.calls}
    return Trace(ordered, reads, given, gave)


@dataclass(frozen=True, slots=True)
class _Stream:
    """Two forwards of a model: as it is, and with each row perturbed in what one station writes."""

    model: nn.Module
    calm: _Watch
    pushed: _Watch
    stations: tuple[Station, ...]
    sample_axis: int

    def read_of(self, station: Station) -> Read:
        """Return where a station reads, and from which others."""
        entry = self.calm.only(station.entry)
        norm = self._norm_of(entry)
        seen = self.pushed.only(norm or station.entry).seen
        before = [i for i, each in enumerate(self.stations) if self.calm.only(each.exit).end < entry.start]
        changes = {i: self._change(seen, i) for i in before}
        for i, change in changes.items():
            if change is None:
                raise ConfigurationError(_not_additive(self.stations[i].name, station.name))
        sources = tuple(i for i, change in changes.items() if change)
        return Read(station.entry, norm, sources, self._n_positions(seen))

    def answer_read(self, samples: Tensor) -> Read:
        """Return where the answer reads the stream: from there on, the output depends on nothing else."""
        every = tuple(range(len(self.stations)))
        last = max(self.calm.only(each.exit).end for each in self.stations)
        later = [call for call in self.pushed.calls if call.start > last and call.seen.numel()]
        places = [(f"{call.name}:input", call.seen) for call in later] + [("", self.pushed.output)]
        for site, seen in places:
            if all(self._change(seen, i) for i in every) and self._decides(site, samples):
                return Read(site.removesuffix(":input"), None, every, self._n_positions(seen))
        lost = next(
            (each.name for i, each in enumerate(self.stations) if not self._change(places[0][1], i)), "the model"
        )
        raise ConfigurationError(_not_additive(lost, "the read-out"))

    def _norm_of(self, entry: _Call) -> str | None:
        """Return the module that gave the station its input, if it is none that holds stations itself."""
        begins = [self.calm.only(each.entry).start for each in self.stations]
        gave = [
            call
            for call in self.calm.calls
            if call.gave is entry.given
            and call.end < entry.start
            and call.seen.shape == entry.given.shape
            and call.n_given == 1
            and not any(call.start <= begin <= call.end for begin in begins)
        ]
        return max(gave, key=lambda call: call.end).name if gave else None

    def _change(self, seen: Tensor, station: int) -> bool | None:
        """Say whether what is seen has changed by what was added to the station's write; None: by something else."""
        write = samples_first(self.pushed.only(self.stations[station].exit).gave, self.sample_axis)
        rows = samples_first(seen, self.sample_axis)
        row, push = station + 1, write[station + 1] - write[0]
        if len(rows) != len(write):
            return None
        change = rows[row] - rows[0]
        tolerance = _ROUNDING * torch.finfo(seen.dtype).eps * float(rows[0].abs().max() + push.abs().max())
        if float(change.abs().max()) <= tolerance:
            return False
        return True if change.shape == push.shape and float((change - push).abs().max()) <= tolerance else None

    def _decides(self, site: str, samples: Tensor) -> bool:
        """Say whether two samples exchange their outputs when what is seen at `site` is exchanged."""
        axis = self.sample_axis
        inputs = samples.movedim(0, axis)
        own = _output_of(self.model(inputs), axis)
        with visited(self.model, site, lambda seen: seen.flip(axis)):
            exchanged = _output_of(self.model(inputs), axis)
        tolerance = _ROUNDING * torch.finfo(own.dtype).eps * float(own.abs().max())
        return own.shape == exchanged.shape and float((own.flip(0) - exchanged).abs().max()) <= tolerance

    def _n_positions(self, seen: Tensor) -> int | None:
        rows = samples_first(seen, self.sample_axis)
        return rows.shape[1] if rows.ndim > 2 else None


def _station(name: str, heads: AttentionHeads | None, pairs: dict[str, Station]) -> Station:
    if name in pairs:
        return pairs[name]
    return Station(name, name, name if heads is None else heads.projection, heads)


def _watched(model: nn.Module, batch: Tensor, stations: Sequence[Station], writes: dict[str, Tensor]) -> _Watch:
    """Run the model, watching every module, with the given writes in the place of those it computes."""
    watch = _Watch()
    with ExitStack() as hooks:
        for each in stations:
            if each.heads is not None:  # so that the projection of PyTorch's own attention runs
                hooks.enter_context(visited(model, each.heads.site, lambda _: None))
            if each.exit in writes:
                hooks.enter_context(visited(model, each.exit, lambda _, write=writes[each.exit]: write))
        for name, module in model.named_modules():
            before = module.register_forward_pre_hook(partial(watch.begin, name), with_kwargs=True)
            hooks.callback(before.remove)
            hooks.callback(module.register_forward_hook(partial(watch.end, name)).remove)
        found = find_activation(model(batch))
    watch.output = _NOTHING if found is None else found[1]
    return watch


def _pushes(calm: _Watch, stations: Sequence[Station], sample_axis: int) -> dict[str, Tensor]:
    """Return each station's write, as it was, but perturbed in the row that is this station's."""
    draws = torch_generator(0, "residual_stream")
    writes: dict[str, Tensor] = {}
    for row, each in enumerate(stations, start=1):
        call = calm.only(each.exit)
        made = call.gave.clone()
        here = samples_first(made, sample_axis)[row]
        size = max(float(here.abs().mean()), float(calm.only(each.entry).given.abs().mean())) or 1.0
        here += size * torch.randn(here.shape, generator=draws, dtype=torch.float64).to(here)
        writes[each.exit] = made
    return writes


def _output_of(output: Any, sample_axis: int) -> Tensor:
    found = find_activation(output)
    return samples_first(_NOTHING if found is None else found[1], sample_axis)


def _not_additive(writer: str, reader: str) -> str:
    return (
        f"what {writer!r} writes must be added, as it is, to the stream that {reader} reads. Got another change there: "
        "the model normalises or scales its stream (post-norm), or something between them reads it that is not among "
        "the components. Name all that write to the stream by components, or use interventions on sites."
    )
