"""Painters of what lies in a plane: matrices, point clouds and the barcodes of persistent homology."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mechint_core.errors import ShapeError
from mechint_core.report.axis import name_ticks, plain_axis, room
from mechint_core.report.canvas import DIVERGING, PALETTE, QUIET, RULE, SEQUENTIAL, Sheet, text_width
from mechint_core.report.fields import Fields
from mechint_core.report.thinning import finite, pooled
from mechint_core.report.wording import number, shorten, spaced

LONGEST = 16
"""Letters of the name of a row or column."""
MAX_ROW_HEIGHT = 44.0
"""Few rows make a low figure."""
MAX_POINTS = 3000
MAX_VECTOR_POINTS = 250
"""More points than this are drawn as pixels: a circle in SVG costs 100 bytes."""
MAX_FEATURES = 50
"""Bars of persistent homology drawn per dimension: the longest."""


def matrix(sheet: Sheet, fields: Fields) -> None:
    """Draw cells as colours; rows named by numbers rise like an axis, rows named by words descend like a table."""
    values = fields.numbers("values", ndim=2)
    if values.size == 0:
        raise ShapeError(f"a matrix must have rows and columns. Got shape {values.shape}.")
    (rows, columns), small = values.shape, pooled(finite(values))
    worded = fields.text("y") in fields.result.labels
    bottom = rows - 0.5 if worded else -0.5
    low, high = _colour_limits(small, diverging=fields.on("diverging"))
    foot = 14 + 0.66 * room(fields.names("x"), LONGEST) if fields.text("x") in fields.result.labels else 36.0
    sheet.resize(min(sheet.size.height, sheet.top + 24 + MAX_ROW_HEIGHT * rows + foot))
    sheet.image = sheet.axes.imshow(
        small,
        cmap=DIVERGING if fields.on("diverging") else SEQUENTIAL,
        vmin=low,
        vmax=high,
        interpolation="none",  # in SVG: the cells themselves, enlarged by the browser
        extent=(-0.5, columns - 0.5, bottom, rows - 1.0 - bottom),
        origin="upper" if worded else "lower",
        aspect="equal" if 0.5 < rows / columns < 2 else "auto",
    )
    sheet.axes.set_anchor("SW")
    taken = _name_cells(sheet, fields, foot, worded=worded)
    colour_scale(sheet, sheet.image, fields.text("value_label"), taken)
    if fields.on("diverging") and np.isnan(small).any():
        _hatch(sheet)


def _colour_limits(values: np.ndarray, *, diverging: bool) -> tuple[float, float]:
    """Return the values at both ends of the colour scale; around zero for signed values."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    largest = max(-low, high) or 1.0
    return (-largest, largest) if diverging else (low, high)


def _name_cells(sheet: Sheet, fields: Fields, foot: float, *, worded: bool) -> float:
    """Name rows and columns; column names that are words are slanted. Return what is used of the line above."""
    sheet.axes.spines[["left", "bottom"]].set_visible(False)
    slanted = fields.text("x") in fields.result.labels
    columns, rows = fields.names("x"), fields.names("y")
    x_label = fields.text("x_label") or ("" if slanted else spaced(fields.text("x")))
    y_label = fields.text("y_label") or ("" if worded else spaced(fields.text("y")))
    sheet.label(x_label, y_label)
    sheet.keep_line()  # for the name of the colour scale
    name_ticks(sheet.axes.xaxis, columns, 24 if slanted else 5, LONGEST)
    name_ticks(sheet.axes.yaxis, rows, 24 if worded else 6, LONGEST)
    if slanted:
        sheet.axes.tick_params(axis="x", labelrotation=40)
        for text in sheet.axes.get_xticklabels():
            text.set(horizontalalignment="right", rotation_mode="anchor")
    sheet.place(left=room(rows if worded else (), LONGEST), right=74.0, bottom=foot)
    return text_width(y_label)


def _hatch(sheet: Sheet) -> None:
    """Mark the cells without a value, which would look like zeros."""
    sheet.axes.patch.set(hatch="////", edgecolor=RULE, linewidth=0.0)
    box = sheet.axes.get_position()
    x, y = box.x1 + 12 / sheet.size.width, box.y0 - 8 / sheet.size.height
    sheet.paper.text(x, y, "hatched:\nundefined", va="top", size=9.5, color=QUIET)


def colour_scale(sheet: Sheet, image: Any, label: str, taken: float = 0.0) -> None:
    """Draw the colour scale to the right of the axes, its name above it; `taken` pixels of that line are not free."""
    sheet.axes.apply_aspect()
    box, width = sheet.axes.get_position(), sheet.size.width
    left = box.x1 + 14 / width
    scale = sheet.paper.colorbar(image, cax=sheet.paper.add_axes((left, box.y0, 10 / width, box.height)))
    scale.outline.set_visible(False)
    plain_axis(scale.ax.yaxis, 4 if box.height * sheet.size.height > 60 else 2)
    name = shorten(label, max(12, int((width - taken - 20) / text_width("x"))))
    fits = left + text_width(name) / width < 1
    where, side = (left, "left") if fits else (1 - 4 / width, "right")
    sheet.paper.text(where, box.y1 + 6 / sheet.size.height, name, ha=side, va="bottom", color=QUIET)


def scatter(sheet: Sheet, fields: Fields) -> None:
    """Draw the first two coordinates of points, with equal scales unless they are two labelled quantities."""
    points = fields.numbers("points", ndim=2)
    if points.shape[1] < 2:
        raise ShapeError(f"points must have two coordinates or more. Got shape {points.shape}.")
    keep = np.linspace(0, len(points) - 1, min(len(points), MAX_POINTS)).astype(int)
    x, y = finite(points[keep, :2]).T
    if fields.on("closed"):
        sheet.axes.plot([*x, *x[:1]], [*y, *y[:1]], color=QUIET, linewidth=0.8, alpha=0.6, zorder=1)
    colours, names = colouring(fields, len(points))
    marks = sheet.axes.scatter(
        x,
        y,
        s=26 if len(keep) < 80 else 13 if len(keep) < 400 else 7,
        c=PALETTE[0] if colours is None else colours[keep],
        cmap=point_colours() if colours is not None and not names else None,
        linewidths=0,
        alpha=0.85,
        rasterized=len(keep) > MAX_VECTOR_POINTS,
    )
    if names:
        sheet.legend([Patch(color=PALETTE[i]) for i in range(len(names))], [shorten(name) for name in names])
    graded = colours is not None and not names
    if graded:
        sheet.keep_line()  # for the name of the colour scale
    labelled = bool(fields.text("x_label") or fields.text("y_label"))
    if labelled:
        sheet.label(fields.text("x_label"), fields.text("y_label"))
    else:
        sheet.axes.set_aspect("equal", adjustable="datalim")
    for axis in (sheet.axes.xaxis, sheet.axes.yaxis):
        plain_axis(axis, 4)
    sheet.place(right=74.0 if graded else 14.0, **({} if labelled else {"bottom": 24.0}))
    if graded:
        name = fields.text("colour_label") or spaced(fields.text("colour"))
        colour_scale(sheet, marks, name, text_width(fields.text("y_label")))


def point_colours() -> ListedColormap:
    """Return the middle of the sequential scale: its ends vanish as points on black and on white."""
    return ListedColormap(colormaps[SEQUENTIAL](np.linspace(0.22, 0.92, 128)))


def colouring(fields: Fields, count: int) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Return a colour or number per point, and the names of the colours where they stand for categories."""
    name = fields.text("colour")
    if not name:
        return None, ()
    labels = fields.result.labels.get(name)
    if labels is None:
        values = fields.numbers("colour")
        if len(values) != count:
            raise ShapeError(f"field {name!r} must have one number per point, {count}. Got {len(values)}.")
        return finite(values), ()
    if len(labels) != count:
        raise ShapeError(f"field {name!r} must have one label per point, {count}. Got {len(labels)}.")
    kinds = tuple(dict.fromkeys(labels))
    colours = np.array([to_rgba(PALETTE[kinds.index(label) % len(PALETTE)]) for label in labels])
    return colours, kinds if len(kinds) <= len(PALETTE) else ()


def barcode(sheet: Sheet, fields: Fields) -> None:
    """Draw a bar from birth to death per class, dimension under dimension, the noise faint."""
    bars, dimension = fields.numbers("bars", ndim=2), fields.numbers("dimension")
    if bars.shape != (len(dimension), 2):
        raise ShapeError(f"bars must be (birth, death) for each of {len(dimension)} dimensions. Got {bars.shape}.")
    known = np.isfinite(bars[:, 0]) & ~np.isnan(bars[:, 1]) & np.isfinite(dimension)
    bars, dimension = bars[known], dimension[known]
    noise = fields.scalar("band")
    deaths = bars[np.isfinite(bars[:, 1]), 1]
    end = 1.04 * float(deaths.max()) if deaths.size else 1.0  # a class that never dies reaches the edge
    legend: dict[str, Line2D] = {}
    place = 0
    for colour, homology in zip(PALETTE, np.unique(dimension), strict=False):
        group = bars[dimension == homology]
        drawn = _longest(np.minimum(group, end))
        _draw_bars(sheet, drawn, place, colour, noise)
        place += len(drawn) + 3
        cut = f"{len(drawn)} longest of " if len(drawn) < len(group) else ""
        legend[f"H{homology:.0f} ({cut}{number(len(group))})"] = Line2D([], [], color=colour, linewidth=2)
    if not np.isnan(noise):
        legend[f"faint: noise, below {number(noise)}"] = Line2D([], [], color=QUIET, linewidth=2, alpha=0.4)
    if legend:
        sheet.legend(list(legend.values()), list(legend))
    sheet.label("scale, birth to death", "")
    start = float(np.min(bars[:, 0], initial=0.0))
    sheet.axes.set(ylim=(max(place, 1) - 1, -2), xlim=(start, end if end > start else start + 1.0), yticks=[])
    sheet.axes.spines["left"].set_visible(False)
    plain_axis(sheet.axes.xaxis)
    sheet.share_x = True
    sheet.place(left=14.0)


def _longest(bars: np.ndarray) -> np.ndarray:
    """Return the longest bars, by birth."""
    longest = bars[np.argsort(bars[:, 0] - bars[:, 1], kind="stable")[:MAX_FEATURES]]
    return longest[np.lexsort((longest[:, 1], longest[:, 0]))]


def _draw_bars(sheet: Sheet, bars: np.ndarray, place: int, colour: str, noise: float) -> None:
    rows = place + np.arange(len(bars))
    faint = np.diff(bars)[:, 0] <= (-np.inf if np.isnan(noise) else noise)
    for part, alpha in ((~faint, 1.0), (faint, 0.28)):
        sheet.axes.hlines(rows[part], bars[part, 0], bars[part, 1], color=colour, linewidth=1.1, alpha=alpha)
