"""Who writes to a model's residual stream, and who reads from it: the graph whose edges a circuit is made of.

    x_r = R_r + sum over s before r of w_s          w_s: what sender s writes;  x_r: what receiver r reads

A receiver reads where the norm before it does (`layers.1.attention_norm:input`), a sender writes where its output is
added; a head's write is the output projection of its slice, without the bias. R_r is all the rest, the write of the
sender `input`: embeddings, biases, whatever shape they have. Names, from the coarsest granularity to the finest:

    block    layers.1.attention                  layers.0.mlp      input      output
    head     layers.1.attention.0
    qkv      layers.1.attention.0:query          (a head reads three times; it still writes once)

With grouped queries, `:key` and `:value` are those that this head attends with, though other heads share their weights.

The graph is measured, not declared: all writes are held at fixed values, then one of them is perturbed, and what every
later receiver reads must change by this perturbation (an edge) or not at all (no edge: parallel blocks). A model for
which this does not hold, because it normalises or scales the stream itself, is refused.

Source: [@elhage2021].
Cost: three forwards of as many rows as the model has components.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final, Literal, get_args

from torch import Tensor, nn

from mechint_core.errors import ConfigurationError
from mechint_core.patching.heads import AttentionHeads
from mechint_core.patching.residual_stream import Read, Station, Trace, find_stations, trace_stream

EdgeGranularity = Literal["qkv", "head", "block"]
EDGE_GRANULARITIES: Final = get_args(EdgeGranularity)
Edge = tuple[str, str]
"""(sender, receiver)."""

INPUT_NODE: Final = "input"
OUTPUT_NODE: Final = "output"
PORTS: Final = ("query", "key", "value")
_SIDE_BY_SIDE: Final = ("c_attn", "qkv", "Wqkv")
"""Projections whose output is all queries, then all keys, then all values, as many of each."""


@dataclass(frozen=True, slots=True)
class Writer:
    """A component that adds to the stream."""

    name: str
    site: str
    """The module whose output is added."""
    heads: AttentionHeads | None
    """Its heads, if each is a sender of its own."""
    n_units: int
    """Of what is projected: of the heads side by side."""
    senders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reader:
    """A place where the stream is read."""

    name: str
    module: str
    """The module that is given what was read, normalised or not; "" if the model's own output is the stream."""
    norm: str | None
    """The module through which it is given."""
    sources: tuple[int, ...]
    """The writers whose writes it reads, by their place in the graph."""
    inputs: tuple[str, ...]
    """The senders that its rest is made of: `input`, or its positions."""
    receivers: tuple[str, ...]

    @property
    def site(self) -> str:
        """Where what it reads is seen."""
        place = self.module if self.norm is None else self.norm
        return f"{place}:input" if place else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualGraph:
    """The senders, receivers and edges of a model."""

    granularity: EdgeGranularity
    writers: tuple[Writer, ...]
    """In the order they run."""
    readers: tuple[Reader, ...]
    """Of each writer in turn, then the output's."""
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    edges: tuple[Edge, ...]
    """By receiver, then by sender, both in the order they run."""

    def senders_to(self, reader: Reader) -> tuple[str, ...]:
        """Return the senders that a reader's receivers have edges from."""
        return reader.inputs + tuple(sender for source in reader.sources for sender in self.writers[source].senders)

    def columns_of(self, reader: Reader) -> list[tuple[int, slice]]:
        """Return the writers a reader reads from, and where their senders stand among those that send to it."""
        ends = list(accumulate([len(reader.inputs), *(len(self.writers[source].senders) for source in reader.sources)]))
        return [(source, slice(*ends[i : i + 2])) for i, source in enumerate(reader.sources)]


def residual_graph(
    model: nn.Module,
    inputs: Tensor,
    *,
    granularity: EdgeGranularity = "qkv",
    components: Sequence[str] = (),
    split_input: bool = False,
    sample_axis: int = 0,
) -> ResidualGraph:
    """Measure the graph of a model; call it inside `inference(model)`.

    Parameters
    ----------
    model
        Any module.
    inputs
        Two samples or more, different ones, as the model takes them. Two are used.
    granularity
        qkv, head or block.
    components
        Globs over the modules that write to the stream; none: all attentions, and modules named mlp, ffn and the like.
    split_input
        Whether the input is a sender per position, `input@0`, `input@1`, ..., for receivers that have positions.
    sample_axis
        Where the model keeps its samples.

    Raises
    ------
    NotFoundError
        If a glob matches nothing, or no component is found.
    ConfigurationError
        If a component does not add to a stream that later ones read, runs not once per forward, or its heads cannot be
        told apart as the granularity asks.
    """
    if granularity not in EDGE_GRANULARITIES:
        raise ConfigurationError(f"granularity must be one of {', '.join(EDGE_GRANULARITIES)}. Got {granularity!r}.")
    found = find_stations(model, components, whole=granularity == "block")
    trace = trace_stream(model, inputs, found, sample_axis=sample_axis)
    stations, reads = trace.stations, trace.reads
    if granularity == "qkv":
        _check_ports(trace)
    writers = tuple(
        Writer(each.name, each.exit, each.heads, trace.given[each.exit], _senders_of(each)) for each in stations
    )
    receivers = (*(_receivers_of(each, granularity) for each in stations), (OUTPUT_NODE,))
    names = (*(each.name for each in stations), OUTPUT_NODE)
    readers = tuple(
        Reader(name, read.module, read.norm, read.sources, _inputs_of(read, split_input), received)
        for name, read, received in zip(names, reads, receivers, strict=True)
    )
    return _joined(granularity, writers, readers)


def node_of(receiver: str) -> str:
    """Return the node that an end of an edge belongs to: `layers.0.attention.1` of `layers.0.attention.1:query`."""
    return receiver.partition(":")[0]


def is_input(sender: str) -> bool:
    """Say whether a node is the input, or one of its positions, `input@2`."""
    return sender == INPUT_NODE or sender.startswith(f"{INPUT_NODE}@")


def port_modules(heads: AttentionHeads) -> tuple[str, ...] | None:
    """Return the modules that give queries, keys and values: three, or one that gives them side by side; else None."""
    inputs = heads.inputs
    side_by_side = len(inputs) == 1 and inputs[0].rpartition(".")[2] in _SIDE_BY_SIDE
    return inputs if len(inputs) == len(PORTS) or side_by_side else None


def _joined(granularity: EdgeGranularity, writers: tuple[Writer, ...], readers: tuple[Reader, ...]) -> ResidualGraph:
    inputs = dict.fromkeys(name for reader in readers for name in reader.inputs)
    graph = ResidualGraph(
        granularity=granularity,
        writers=writers,
        readers=readers,
        senders=(*inputs, *(sender for writer in writers for sender in writer.senders)),
        receivers=tuple(receiver for reader in readers for receiver in reader.receivers),
        edges=(),
    )
    edges = tuple(
        (sender, receiver) for reader in readers for receiver in reader.receivers for sender in graph.senders_to(reader)
    )
    return replace(graph, edges=edges)


def _senders_of(station: Station) -> tuple[str, ...]:
    heads = station.heads
    return (station.name,) if heads is None else tuple(heads.label(head) for head in range(heads.n_heads))


def _receivers_of(station: Station, granularity: EdgeGranularity) -> tuple[str, ...]:
    senders = _senders_of(station)
    if station.heads is None or granularity != "qkv":
        return senders
    return tuple(f"{head}:{port}" for head in senders for port in PORTS)


def _inputs_of(read: Read, split_input: bool) -> tuple[str, ...]:
    if not split_input or read.n_positions is None:
        return (INPUT_NODE,)
    return tuple(f"{INPUT_NODE}@{position}" for position in range(read.n_positions))


def _check_ports(trace: Trace) -> None:
    for each in trace.stations:
        if each.heads is None:
            continue
        ports = port_modules(each.heads)
        if ports is None or (len(ports) == 1 and trace.gave[ports[0]] != len(PORTS) * trace.given[each.exit]):
            raise ConfigurationError(
                f"granularity 'qkv' needs queries, keys and values of {each.name!r} from modules of their own, or side "
                f"by side from one. Got {', '.join(each.heads.inputs) or 'none that run'}. Use granularity='head'."
            )
