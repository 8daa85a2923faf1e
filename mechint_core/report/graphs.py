"""Painters of graphs over one axis: curves, bars and histograms."""

import numpy as np
from matplotlib.lines import Line2D

from mechint_core.errors import NotFoundError, ShapeError
from mechint_core.report.axis import log_axis, name_ticks, plain_axis, room, rules, training_axis
from mechint_core.report.canvas import INK, PALETTE, QUIET, Sheet, line_style
from mechint_core.report.fields import Fields
from mechint_core.report.part_names import fitted_names
from mechint_core.report.thinning import finite, thinned
from mechint_core.report.wording import number, shorten, spaced

DOTTED = (0, (2, 2.5))
MAX_MARKS = 120
MAX_FLAT_BARS = 24
"""Of more bars than this, the largest are drawn if their labels are words; numbers in their order stand upright."""
MAX_NUMBER_LETTERS = 4
"""Labels no longer than this are taken for numbers."""


def curve(sheet: Sheet, fields: Fields) -> None:
    """Draw lines over x, with a band around the first, the null dashed and marks on x."""
    lines = {name: fields.array(name) for name in fields.declared.get("y", ())}
    length = {len(line) for line in lines.values()}
    if len(length) != 1:
        raise ShapeError(f"the lines of a curve must have one length. Got {sorted(length)} for {sorted(lines)}.")
    first = next(iter(lines.values()))
    labelled = fields.text("x") in fields.result.labels
    x = None if labelled else fields.optional("x", first)
    x = np.arange(len(first), dtype=float) if x is None else x
    sheet.label(fields.text("x_label") or spaced(fields.text("x")), fields.text("y_label"))
    handles = {spaced(name): _line(sheet, x, line, index) for index, (name, line) in enumerate(lines.items())}
    low, high = fields.optional("low", first), fields.optional("high", first)
    if low is not None and high is not None:
        keep = thinned(len(x))
        sheet.axes.fill_between(
            finite(x)[keep], finite(low)[keep], finite(high)[keep], color=PALETTE[0], alpha=0.16, linewidth=0
        )
    null = _null(fields, first)
    if null is not None:
        keep = thinned(len(x), null)
        (handles["null"],) = sheet.axes.plot(finite(x)[keep], null[keep], color=QUIET, linestyle=DOTTED, linewidth=1.0)
    if fields.text("marks"):
        for mark in finite(fields.numbers("marks")[:MAX_MARKS]):
            sheet.axes.axvline(mark, color=QUIET, linewidth=0.8, linestyle=(0, (3, 2)), zorder=0.5)
    if len(handles) > 1:
        sheet.legend(list(handles.values()), [shorten(name) for name in handles])
    _scale(sheet, fields, x, np.concatenate([np.atleast_1d(line) for line in lines.values()]))
    if labelled:
        name_ticks(sheet.axes.xaxis, fields.names("x"), 6)
    sheet.share_x = sheet.share_y = True
    sheet.place()


def _line(sheet: Sheet, x: np.ndarray, y: np.ndarray, index: int) -> Line2D:
    """Draw one line; a point alone becomes a dot, so that it does not vanish."""
    keep = thinned(len(x), y)
    colour, dash = line_style(index)
    marker = "o" if np.isfinite(y).sum() < 2 else ""
    (handle,) = sheet.axes.plot(finite(x)[keep], finite(y)[keep], marker=marker, color=colour, linestyle=dash)
    return handle


def _null(fields: Fields, like: np.ndarray) -> np.ndarray | None:
    """Return the null at each point: an array of the result, or one of its numbers; None if none is declared."""
    name = fields.text("null")
    if not name or name in fields.result.arrays:
        null = fields.optional("null", like)
        return null if null is None else finite(null)
    if name not in fields.result.flags and name not in fields.result.estimates:
        raise NotFoundError(f"field {name!r} is neither an array nor a number of the result.")
    return finite(np.full(len(like), fields.scalar("null")))


def _scale(sheet: Sheet, fields: Fields, x: np.ndarray, y: np.ndarray) -> None:
    """Choose linear or logarithmic axes; a logarithmic axis without two positive numbers stays linear."""
    axes = sheet.axes
    rules(axes)
    plain_axis(axes.yaxis)
    positive = y[np.isfinite(y) & (y > 0)]
    if fields.on("log_y") and positive.size and positive.max() > positive.min():
        axes.set_yscale("log")
        log_axis(axes.yaxis, float(positive.min()), float(positive.max()))
    if fields.on("log_x"):
        training_axis(axes, x[np.isfinite(x)], ratio=1.5)
    else:
        plain_axis(axes.xaxis, whole=bool(np.all(x[np.isfinite(x)] % 1 == 0)))
    if not np.isfinite(y).any():
        sheet.say("all values are undefined")


def bars(sheet: Sheet, fields: Fields) -> None:
    """Draw a bar per label, lying down where labels are words; with whiskers and null levels."""
    every = fields.numbers("values")
    names = fields.names("labels") or tuple(str(index) for index in range(len(every)))
    if len(names) != len(every):
        raise ShapeError(f"bars must have a label each. Got {len(every)} and {len(names)} labels.")
    if every.size == 0:
        sheet.say("there are none")
        sheet.place()
        return
    flat = max(len(name) for name in names) > MAX_NUMBER_LETTERS
    drawn = _largest(every) if flat else np.arange(len(every))
    options = (fields.optional(option, every) for option in ("null", "low", "high"))
    null, low, high = (None if option is None else option[drawn] for option in options)
    values, labels = every[drawn], tuple(names[index] for index in drawn)
    if flat:
        sheet.resize(height=sheet.top + 19.0 * len(values) + (72 if low is not None or null is not None else 55))
    sheet.label(
        "" if flat else spaced(fields.text("labels")), fields.text("value_label") or spaced(fields.text("values"))
    )
    if len(drawn) < len(every):
        sheet.note(f"{len(drawn)} largest of {number(len(every))}")
    places = np.arange(len(values))
    (sheet.axes.barh if flat else sheet.axes.bar)(places, np.nan_to_num(finite(values)), 0.68, color=PALETTE[0])
    along, across = (sheet.axes.hlines, sheet.axes.vlines) if flat else (sheet.axes.vlines, sheet.axes.hlines)
    handles: dict[str, Line2D] = {}
    if low is not None and high is not None:
        along(places, finite(low), finite(high), color=INK, linewidth=1.2)
        handles["interval"] = Line2D([], [], color=INK, linewidth=1.2)
    if null is not None:
        across(finite(null), places - 0.42, places + 0.42, color=PALETTE[1], linewidth=2)
        handles["null"] = Line2D([], [], color=PALETTE[1], linewidth=2)
    if handles:
        sheet.legend(list(handles.values()), list(handles))
    _bar_axes(sheet, labels, flat=flat)


def _largest(values: np.ndarray) -> np.ndarray:
    """Return which bars to draw, in their order: the largest, whatever their sign."""
    size = np.nan_to_num(np.abs(values), nan=-1.0)
    return np.sort(np.argsort(-size, kind="stable")[:MAX_FLAT_BARS])


def _bar_axes(sheet: Sheet, labels: tuple[str, ...], *, flat: bool) -> None:
    axes = sheet.axes
    sheet.share_x, sheet.share_y = flat, not flat
    rules(axes, "x" if flat else "y")
    if not flat:
        plain_axis(axes.yaxis)
        name_ticks(axes.xaxis, labels, 10)
        sheet.place()
        return
    longest = int(0.42 * sheet.size.width / 6.2)
    labels = fitted_names(labels, longest)
    left = room(labels, longest)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.spines["bottom"].set_visible(False)
    axes.axvline(0, color=QUIET, linewidth=0.8)
    plain_axis(axes.xaxis, int((sheet.size.width - left) // 50))
    name_ticks(axes.yaxis, labels, len(labels), longest)
    sheet.place(left=left, bottom=24.0)


def histogram(sheet: Sheet, fields: Fields) -> None:
    """Draw how many values fall in each bin, and say how many could not be drawn."""
    name = fields.text("values")
    every = fields.array(name, ndim=None).ravel()
    log = fields.on("log_x")
    kept = every[np.isfinite(every) & ((every > 0) if log else True)]
    sheet.label(fields.text("x_label") or spaced(name), "count")
    if kept.size == 0:
        sheet.say("all values are undefined")
        sheet.place()
        return
    scaled = np.log10(kept) if log else kept
    counts, edges = np.histogram(scaled, _bin_count(scaled), range=_bin_range(scaled))
    edges = 10.0**edges if log else edges
    sheet.axes.stairs(counts, edges, fill=True, color=PALETTE[0], alpha=0.85)
    rules(sheet.axes)
    plain_axis(sheet.axes.yaxis, 4, whole=True)
    if log:
        sheet.axes.set_xscale("log")
        log_axis(sheet.axes.xaxis, float(edges[0]), float(edges[-1]))
    else:
        plain_axis(sheet.axes.xaxis)
    if fields.on("log_y"):
        sheet.axes.set_yscale("log")
        log_axis(sheet.axes.yaxis, 1.0, max(10.0, float(counts.max())))
    if kept.size < every.size:
        missing = f"{number(every.size - kept.size)} of {number(every.size)} not {'positive' if log else 'finite'}"
        sheet.note(missing)
    sheet.share_x = True
    sheet.place()


def _bin_count(values: np.ndarray) -> int:
    """Freedman and Diaconis' rule, between 8 and 60 bins."""
    spread = float(np.subtract(*np.percentile(values, [75, 25])))
    width = 2 * spread / len(values) ** (1 / 3)
    return int(np.clip(np.ptp(values) / width, 8, 60)) if width > 0 else 12


def _bin_range(values: np.ndarray) -> tuple[float, float]:
    """Return the range of the values, widened where they are all the same."""
    low, high = float(values.min()), float(values.max())
    room = max(abs(low), abs(high), 1e-9) / 2
    return (low, high) if high - low > 1e-9 * room else (low - room, high + room)
