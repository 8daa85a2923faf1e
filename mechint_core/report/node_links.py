"""Painter of directed graphs: nodes on levels from the input at the foot to the output at the head, edges as curves.

The sign of an edge is its colour (as in signed maps: red above zero, blue below), its size the width. Names are
short; the full ones, and every score with its interval, show where the pointer rests.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path

from mechint_core.report.canvas import INK, PALETTE, QUIET, RULE, Sheet
from mechint_core.report.fields import Fields
from mechint_core.report.link_plan import LABEL_HEIGHT, PORT_WIDTH, STRAND, Links, Plan, plan_links, read_links
from mechint_core.report.part_names import PORTS
from mechint_core.report.wording import number

POSITIVE, NEGATIVE = PALETTE[5], PALETTE[0]
THIN, THICK, FAINT = 0.8, 4.5, 0.25
BEND_HEIGHT = 12.0
MARGIN, HEADER, FOOT = 10.0, 60.0, 24.0
"""Beside the drawing; above it, for three lines of words; below it, for one."""


def graph(sheet: Sheet, fields: Fields) -> None:
    """Draw kept edges solid and the others faint; where they are many, only the strongest, and say so."""
    links = read_links(fields)
    edges = links.drawn()
    plan = plan_links(links, edges) if edges.size else None
    sheet.spread(
        plan.layers.width + 2 * MARGIN if plan else 0.0, sheet.top + HEADER + FOOT + (plan.top if plan else HEADER)
    )
    sheet.label("", fields.text("value_label"))
    sheet.note(links.count(edges))
    _legend(sheet, links, edges)
    sheet.place(left=MARGIN, right=MARGIN, bottom=FOOT)
    if plan:
        _draw(sheet, links, plan)
    else:
        sheet.say("no edge to draw")
    sheet.axes.set_axis_off()


def _legend(sheet: Sheet, links: Links, edges: np.ndarray) -> None:
    """Name the colours, with the largest score of each sign as the scale of the widths."""
    score = links.score[edges]
    entries: dict[str, Line2D] = {}
    if np.any(score > 0):
        entries[f"positive, up to {number(float(np.nanmax(score)))}"] = Line2D([], [], color=POSITIVE, linewidth=3)
    if np.any(score < 0):
        entries[f"negative, to {number(float(np.nanmin(score)))}"] = Line2D([], [], color=NEGATIVE, linewidth=3)
    if not links.kept[edges].all():
        entries["not kept"] = Line2D([], [], color=QUIET, linewidth=3, alpha=0.45)
    if entries:
        sheet.legend(list(entries.values()), list(entries))


def _draw(sheet: Sheet, links: Links, plan: Plan) -> None:
    """Draw edges, then nodes above them, one unit of the axes to the pixel."""
    box = sheet.axes.get_position()
    width, height = box.width * sheet.size.width, box.height * sheet.size.height
    left = (width - plan.layers.width) / 2
    sheet.axes.set(xlim=(-left, width - left), ylim=(plan.top - height, plan.top))
    largest = float(np.nanmax(np.abs(links.score[plan.edges]), initial=0.0)) or 1.0
    for edge, path in zip(plan.edges.tolist(), _paths(plan), strict=True):
        score, kept = float(links.score[edge]), bool(links.kept[edge])
        share = 0.0 if np.isnan(score) else abs(score) / largest
        colour = POSITIVE if score > 0 else NEGATIVE if score < 0 else QUIET
        line = PathPatch(
            path,
            fill=False,
            edgecolor=colour,
            linewidth=THIN + (THICK - THIN) * share if kept else THIN,
            alpha=0.45 + 0.5 * share if kept else FAINT,
        )
        sheet.axes.add_patch(line)
        sheet.explain(line, links.tip(edge))
    sheet.paper.text(4 / sheet.size.width, 4 / sheet.size.height, "edges lead upwards", va="bottom", color=QUIET)
    for node in range(len(plan.nodes)):
        _draw_node(sheet, plan, node)


def _paths(plan: Plan) -> Iterator[Path]:
    """Return the way of each edge: upright at nodes and bends, curved between levels."""
    x, level, bends = plan.layers.x, plan.layers.level, plan.layers.bends
    ends = zip(plan.source, plan.target, bends, strict=True)
    onward = np.array([bend[0] if bend.size else x[target] for _, target, bend in ends])
    backward = np.array([bend[-1] if bend.size else x[source] for source, bend in zip(plan.source, bends, strict=True)])
    start = x[plan.source] + _fanned(plan.source, onward, plan.width)
    end = x[plan.target] + np.where(plan.ported[plan.target], plan.arrival, _fanned(plan.target, backward, plan.width))
    for edge, (source, target) in enumerate(zip(plan.source, plan.target, strict=True)):
        stops = [(start[edge], plan.y[level[source]] + plan.height[source] / 2)]
        for place, between in zip(bends[edge], plan.y[level[source] + 1 :], strict=False):
            stops += [(place, between - BEND_HEIGHT / 2), (place, between + BEND_HEIGHT / 2)]
        stops.append((end[edge], plan.y[level[target]] - plan.height[target] / 2))
        corners, codes = [stops[0]], [Path.MOVETO]
        for index, (low, high) in enumerate(pairwise(stops)):
            middle = (low[1] + high[1]) / 2
            curved = index % 2 == 0
            corners += [(low[0], middle), (high[0], middle), high] if curved else [high]
            codes += [Path.CURVE4] * 3 if curved else [Path.LINETO]
        yield Path(corners, codes)


def _fanned(node: np.ndarray, toward: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Spread the edges at each node along its side, in the order of where they lead."""
    offset = np.zeros(len(node))
    for each in np.unique(node):
        own = np.flatnonzero(node == each)
        own = own[np.argsort(toward[own], kind="stable")]
        step = min(STRAND, (width[each] - 10) / max(1, len(own) - 1))
        offset[own] = step * (np.arange(len(own)) - (len(own) - 1) / 2)
    return offset


def _draw_node(sheet: Sheet, plan: Plan, node: int) -> None:
    """Draw a node's name in a box; at the foot of an attention head, where it reads."""
    x, y = plan.layers.x[node], plan.y[plan.layers.level[node]]
    width, height = plan.width[node], plan.height[node]
    box = FancyBboxPatch(
        (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=5", fc=RULE, ec="none"
    )
    sheet.axes.add_patch(box)
    middle = y + (height - LABEL_HEIGHT) / 2
    name = sheet.axes.text(x, middle, plan.names[node], ha="center", va="center_baseline", size=10, color=INK)
    for artist in (box, name):
        sheet.explain(artist, plan.nodes[node])
    if plan.ported[node]:
        for place, port in enumerate(PORTS):
            at = x + PORT_WIDTH * (place - 1)
            letter = sheet.axes.text(at, y - height / 2 + 3, port[0], ha="center", va="baseline", size=8.5, color=QUIET)
            sheet.explain(letter, f"{plan.nodes[node]}:{port}")
