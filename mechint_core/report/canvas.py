"""The house style of every figure: one palette, words on the axes, light in bytes, legible in light and in dark.

Matplotlib draws (Agg and SVG canvases, no pyplot, no global state beyond a lock). Ink and rules are drawn in
colours that `svg.slim` replaces by CSS variables, so that a figure follows the page into the dark. One point is one
CSS pixel.
"""

import io
import math
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, cast

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Paper

from mechint_core.report.svg import INK, QUIET, RULE, slim
from mechint_core.report.wording import clean, shorten

PALETTE = ("#0077bb", "#ee7733", "#009988", "#ee3377", "#33bbee", "#cc3311", "#8877bb", "#99a02b")
"""Paul Tol's vibrant scheme, with two more: distinct for colour-blind readers, on white and on black."""
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"
RASTER_DPI = 144

_LOCK = Lock()
"""rcParams are global to the process, and tasks draw in threads."""
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mechint",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.parse_math": False,  # a label with a dollar sign is a label
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": QUIET,
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "path.simplify": True,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "legend.handlelength": 1.4,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.2,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
}


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height in CSS pixels."""

    width: float
    height: float


PANEL = Size(290.0, 205.0)
"""One of several side by side."""
FULL = Size(420.0, 285.0)
"""A figure of its own."""
FULL_REM = 34.0
"""Width of such a figure on the page, in the page's unit."""


class Sheet:
    """One figure with one pair of axes, placed by margins in pixels."""

    def __init__(self, size: Size, title: str = "") -> None:
        self.size = size
        self.paper = Paper(figsize=(size.width / 72, size.height / 72), dpi=72)
        self.axes: Axes = self.paper.add_axes((0.1, 0.1, 0.8, 0.8))
        self.title = clean(title)
        self.top = 26.0 if title else 4.0
        """Pixels used above the axes, so far."""
        self._used = 0.0
        """Pixels used of the current line above the axes."""
        self.image: Any = None
        """What carries a colour scale, if anything does."""
        self.tips: list[str] = []
        """What shows where the pointer rests on an artist, by the number in the artist's id."""
        self.wide = False
        """Whether it wants a row of the page for itself."""
        self.share_x = self.share_y = False
        """Whether neighbours showing other checkpoints should have the same axis."""

    def resize(self, height: float) -> None:
        """Change the height, before anything is placed."""
        self.size = Size(self.size.width, height)
        self.paper.set_size_inches(self.size.width / 72, height / 72)

    def spread(self, width: float, height: float) -> None:
        """Take a row of the page, at least as wide as planned, before anything is placed."""
        self.size = Size(max(self.size.width, width), height)
        self.paper.set_size_inches(self.size.width / 72, height / 72)
        self.wide = True

    def explain(self, artist: Any, text: str) -> None:
        """Show this text where the pointer rests on `artist`."""
        artist.set_gid(f"tip{len(self.tips)}")
        self.tips.append(clean(text))

    def label(self, x: str, y: str) -> None:
        """Say in words what the axes show; y reads horizontally, above the axes."""
        if x:
            self.axes.set_xlabel(clean(x), labelpad=3)
        if y:
            self.paper.text(4 / self.size.width, self.line(), clean(y), va="top", color=QUIET)
            self._used = text_width(y)

    def note(self, text: str) -> None:
        """Say something above the axes, at the right; nothing if there is nothing to say."""
        if not text:
            return
        self._make_room(text_width(text))
        right = 1 - 4 / self.size.width
        self.paper.text(right, self.line(), shorten(text, 40), va="top", ha="right", color=QUIET)
        self._used = self.size.width  # from the right, where a legend would go

    def keep_line(self) -> None:
        """Keep a line free above the axes, unless the label has one already."""
        self._used = self._used or 1.0

    def line(self) -> float:
        """Return the height of the current line above the axes, in parts of the figure."""
        return 1 - self.top / self.size.height

    def legend(self, handles: Sequence[Any], names: Sequence[str]) -> None:
        """List the names above the axes: beside the label if there is room, else below it in columns."""
        widths = [text_width(name) + 34 for name in names]
        beside = self._make_room(sum(widths))
        columns = next(n for n in range(len(names), 0, -1) if n == 1 or _columns_width(widths, n) <= self.size.width)
        self.paper.legend(
            handles,
            list(names),
            loc="upper right" if beside else "upper left",
            bbox_to_anchor=(1 - 4 / self.size.width if beside else 4 / self.size.width, self.line()),
            ncols=columns,
        )
        self.top += 16.5 * (math.ceil(len(names) / columns) - 1)
        self._used = self.size.width

    def place(self, *, left: float = 46.0, right: float = 14.0, bottom: float = 36.0) -> None:
        """Put the axes inside these margins; the top margin is what labels and legend have used."""
        width, height = self.size.width, self.size.height
        self._make_room(width)
        top = self.top + 7
        self.axes.set_position(
            (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
        )
        if self.title:
            self.paper.text(4 / width, 1 - 6 / height, self.title, va="top", size=12.5, color=INK)

    def say(self, message: str) -> None:
        """Write a remark in the middle of otherwise empty axes."""
        self.axes.text(0.5, 0.5, message, transform=self.axes.transAxes, ha="center", va="center", color=QUIET)
        self.axes.set(xticks=[], yticks=[])

    def _make_room(self, width: float) -> bool:
        """Start a new line above the axes unless this width fits on the current one; say whether it shares one."""
        if self._used and self._used + width + 16 > self.size.width:
            self.top += 17
            self._used = 0.0
        return self._used > 0


def text_width(text: str) -> float:
    """Return about how many pixels a label takes."""
    return 6.4 * len(text)


def _columns_width(widths: Sequence[float], columns: int) -> float:
    """Return the width of a legend that fills columns downwards."""
    rows = math.ceil(len(widths) / columns)
    return sum(max(widths[start : start + rows]) for start in range(0, len(widths), rows))


def line_style(index: int) -> tuple[str, Any]:
    """Return the colour and the dash of line number `index`: past the palette, dashes tell lines apart."""
    return PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)]


@contextmanager
def house_style() -> Generator[None]:
    """Draw in the house style; one thread at a time."""
    with _LOCK, mpl.rc_context(cast("Any", _STYLE)), warnings.catch_warnings():
        # A label in a script that the font lacks still shows in SVG, whose text the browser draws.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        yield


def to_png(sheet: Sheet) -> bytes:
    """Return the sheet as PNG on white."""
    buffer = io.BytesIO()
    FigureCanvasAgg(sheet.paper)
    sheet.paper.savefig(buffer, format="png", dpi=RASTER_DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def to_svg(sheet: Sheet, described: str) -> Markup:
    """Return the sheet as SVG that fits its container, in the page's font and colours.

    `described` is read out to those who cannot see it.
    """
    buffer = io.StringIO()
    FigureCanvasSVG(sheet.paper)
    sheet.paper.savefig(buffer, format="svg", dpi=RASTER_DPI, metadata=_NO_METADATA)
    drawn = buffer.getvalue()
    for index, tip in enumerate(sheet.tips):
        opening = f'<g id="tip{index}">'
        drawn = drawn.replace(opening, f"{opening}<title>{Markup.escape(tip)}</title>", 1)
    widest = sheet.size.width * FULL_REM / FULL.width if sheet.wide else None
    return Markup(slim(drawn, described, widest))  # matplotlib escapes text: tested with hostile labels
