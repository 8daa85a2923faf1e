"""What of a directed graph is drawn and where: which edges, nodes of which size on which level, edges to which port."""

from dataclasses import dataclass

import numpy as np

from mechint_core.errors import ShapeError
from mechint_core.report.fields import Fields
from mechint_core.report.layering import Layers, depths, lay_out
from mechint_core.report.part_names import PORTS, brief_names, node_of, port_of
from mechint_core.report.thinning import finite
from mechint_core.report.wording import decimals_supported, in_words, number
from mechint_core.result import Estimate

MAX_EDGES = 80
"""More than this cannot be told apart; the strongest are drawn."""
LABEL_HEIGHT, PORT_HEIGHT, PORT_WIDTH = 18.0, 11.0, 13.0
LETTER = 6.2
"""Width of a letter of a node's name."""
STRAND, MANY_STRANDS = 6.0, 90.0
"""Distance between edges that leave one node, and how wide a node may grow for them."""
WIDEST = 560.0
"""Graphs that would be wider get the briefest names."""
ROOMY, TIGHT, LONG = 46.0, 25.0, 420.0
"""Room between levels: where there are few, where there are many, and what all of it may come to in between."""


@dataclass(frozen=True, slots=True)
class Links:
    """Edges as a result names them, and the nodes they join."""

    sender: tuple[str, ...]
    receiver: tuple[str, ...]
    score: np.ndarray
    interval: np.ndarray
    """(edge, low and high)."""
    kept: np.ndarray
    judged: bool
    """Whether the result says which edges are kept; if not, all are."""
    nodes: tuple[str, ...]
    source: np.ndarray
    """Index of the node that each edge leaves."""
    target: np.ndarray
    """Index of the node that each edge enters."""

    def tip(self, edge: int) -> str:
        """Say what is known of one edge."""
        low, high = self.interval[edge].tolist()
        score = Estimate(float(self.score[edge]), low, high)
        text = in_words(score, decimals_supported([score]))
        interval = f" ({text.interval})" if text.interval else ""
        omitted = "" if self.kept[edge] else ", not kept"
        return f"{self.sender[edge]} → {self.receiver[edge]}: {text.value}{interval}{omitted}"

    def drawn(self) -> np.ndarray:
        """Return the edges to draw, the weakest first: all that are something, or the strongest of the kept."""
        size = np.nan_to_num(np.abs(self.score))
        something = self.kept | (size > 0)
        if something.sum() > MAX_EDGES:
            something = self.kept & (self.judged | (size > 0))
        strongest_last = np.lexsort((size, self.kept))
        return strongest_last[something[strongest_last]][-MAX_EDGES:]

    def count(self, drawn: np.ndarray) -> str:
        """Say how many edges there are, and how many are left out."""
        every, kept, shown = len(self.kept), int(self.kept.sum()), int(self.kept[drawn].sum())
        if not self.judged:
            return "" if shown == every else f"{shown} strongest of {number(every)} edges"
        kept_of = f"{number(kept)} of {number(every)} edges kept"
        return kept_of if shown == kept else f"{shown} strongest of {number(kept)} edges kept"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is drawn and where, in pixels from the lower left."""

    edges: np.ndarray
    """Which of the links, the weakest first."""
    source: np.ndarray
    """Of each, which of the plan's nodes it leaves."""
    target: np.ndarray
    nodes: tuple[str, ...]
    names: tuple[str, ...]
    """Short names of the nodes."""
    width: np.ndarray
    height: np.ndarray
    ported: np.ndarray
    """Whether edges enter each node at query, key and value."""
    arrival: np.ndarray
    """How far from its receiver's middle each edge ends."""
    layers: Layers
    y: np.ndarray
    """Middle of each level."""

    @property
    def top(self) -> float:
        """Return how high the drawing is."""
        return float(self.y[-1] + self.height.max() / 2)


def read_links(fields: Fields) -> Links:
    """Read the edges, and number the nodes in the order in which they are named."""
    sender, receiver = fields.names("sender"), fields.names("receiver")
    score = finite(fields.numbers("score"))
    if not len(sender) == len(receiver) == len(score):
        raise ShapeError(
            f"edges must have a sender, a receiver and a score each. Got {len(sender)}, {len(receiver)}, {len(score)}."
        )
    kept, low, high = (fields.optional(option, score) for option in ("kept", "low", "high"))
    unknown = np.full(len(score), np.nan)
    index = {name: place for place, name in enumerate(dict.fromkeys(map(node_of, (*sender, *receiver))))}
    return Links(
        sender=sender,
        receiver=receiver,
        score=score,
        interval=np.c_[unknown if low is None else low, unknown if high is None else high],
        kept=np.ones(len(score), dtype=bool) if kept is None else kept > 0,
        judged=kept is not None,
        nodes=tuple(index),
        source=np.array([index[node_of(name)] for name in sender], dtype=int),
        target=np.array([index[node_of(name)] for name in receiver], dtype=int),
    )


def plan_links(links: Links, edges: np.ndarray) -> Plan:
    """Place the nodes that these edges join, on the levels that they have among all edges."""
    depth = _depths(links)
    shown, joined = np.unique([links.source[edges], links.target[edges]], return_inverse=True)
    source, target = joined.reshape(2, -1)
    levels, level = np.unique(depth[shown], return_inverse=True)
    nodes = tuple(links.nodes[node] for node in shown)
    ports = [port_of(links.receiver[edge]) for edge in edges]
    arrival = np.array([PORT_WIDTH * (PORTS.index(port) - 1) if port else 0.0 for port in ports])
    ported = np.isin(np.arange(len(nodes)), target[[bool(port) for port in ports]])
    strands = np.maximum(np.bincount(source, minlength=len(nodes)), np.bincount(target, ~ported[target], len(nodes)))
    least = np.maximum(np.minimum(STRAND * strands + 10, MANY_STRANDS), (3 * PORT_WIDTH + 3) * ported)
    for brief in (False, True):
        names = brief_names(nodes, brief=brief)
        width = np.maximum(least, LETTER * np.array([len(name) for name in names]) + 12)
        layers = lay_out(source, target, arrival, level, width)
        if layers.width <= WIDEST:
            break
    height = LABEL_HEIGHT + PORT_HEIGHT * ported
    row = np.array([height[level == each].max() for each in range(len(levels))])
    room = float(np.clip(LONG / len(levels), TIGHT, ROOMY))
    y = np.cumsum(row + room) - room - row / 2
    return Plan(edges, source, target, nodes, names, width, height, ported, arrival, layers, y)


def _depths(links: Links) -> np.ndarray:
    """Return the level of every node; `input` at the foot and `output` at the head, whatever they are joined to."""
    depth = depths(links.source, links.target, len(links.nodes))
    for end, level, inner in (("input", 0, links.target), ("output", depth.max(), links.source)):
        if end in links.nodes and links.nodes.index(end) not in inner:
            depth[links.nodes.index(end)] = level
    return depth
