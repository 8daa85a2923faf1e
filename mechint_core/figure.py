"""How a Result asks to be drawn: declarations, no drawing.

A Result names its figures in a class variable; each figure names fields of that Result. The store keeps
the declarations beside the numbers, and `mechint_core.report` draws them, so a technique never imports a
plotting library and a stored result can be drawn years later by any program.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Lines of the one-dimensional fields `y` against the field `x` (or their index)."""

    y: tuple[str, ...]
    title: str
    x: str = ""
    x_label: str = ""
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False
    low: str = ""
    """Field with the lower edge of a band around the first line."""
    high: str = ""
    """Field with the upper edge of that band."""
    null: str = ""
    """Field with the level under the null, drawn dashed: one number, or one per point of x."""
    marks: str = ""
    """Field with positions on x to mark by vertical lines (change points, key frequencies)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A two-dimensional field as an image; `x` and `y` name fields (numbers or labels) for its ticks."""

    values: str
    title: str
    x: str = ""
    y: str = ""
    x_label: str = ""
    y_label: str = ""
    value_label: str = ""
    diverging: bool = False
    """Colour around zero, for signed values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """A one-dimensional field as bars, one per label, with an interval and a reference level.

    Where there are many labels that are words, the largest bars are drawn.
    """

    values: str
    labels: str
    title: str
    low: str = ""
    high: str = ""
    null: str = ""
    """Field with each bar's null value, drawn as a tick."""
    value_label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """The rows of a (n, 2 or more) field as points, coloured by the field `colour`."""

    points: str
    title: str
    colour: str = ""
    colour_label: str = ""
    x_label: str = ""
    y_label: str = ""
    """With labels, the axes are two quantities, each at its own scale; without, one plane."""
    closed: bool = False
    """Join the points in their order, and the last to the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The rows of a (n, 3 or more) field as points in space, seen from two sides, coloured by the field `colour`."""

    points: str
    title: str
    colour: str = ""
    colour_label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How the values of a field are distributed."""

    values: str
    title: str
    x_label: str = ""
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Barcode:
    """Persistent homology: bars from birth to death, grouped by homology dimension."""

    bars: str
    dimension: str
    title: str
    band: str = ""
    """Scalar field: bars shorter than this are within the noise band."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Edges from senders to receivers as a layered drawing, from the input at its foot to the output at its head.

    A part of a model is named by its path: `layers.0.attention.1` (head 1 of layer 0), `layers.0.mlp`; where an edge
    enters an attention head, `:query`, `:key` or `:value` may follow. `input` and `output` are the ends. Any other
    names do as well (sites of a causal graph). The edges must not form a cycle.
    """

    sender: str
    """Field with the name of the node each edge leaves."""
    receiver: str
    """Field with the name of the node each edge enters."""
    score: str
    """Field with a number per edge: its sign is the colour, its size the width."""
    title: str
    kept: str = ""
    """Field that is true or 1 for the edges of the circuit; the others are faint, or left out where they are many."""
    low: str = ""
    """Field with the lower end of each score's interval, read where the pointer rests on an edge."""
    high: str = ""
    """Field with the upper end of that interval."""
    value_label: str = ""


Figure = Curve | Matrix | Bars | Scatter | Space | Histogram | Barcode | Graph


def declare(figure: Figure) -> dict[str, Any]:
    """Return `figure` as a JSON object: its kind and its fields."""
    return {"kind": type(figure).__name__, **asdict(figure)}
