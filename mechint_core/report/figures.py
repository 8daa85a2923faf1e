"""Drawing what a Result declares: one painter for each kind of `mechint_core.figure`.

`draw` and `render_svg` draw one figure of one stored result; `render_row` draws the same figure of several results
(checkpoints of one run) with the same axes, so that they can be compared by eye. Large arrays are thinned here, and
only here: a drawing is for eyes, the numbers stay in the store.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mechint_core.errors import NotFoundError
from mechint_core.figure import Figure, declare
from mechint_core.report.canvas import FULL, PANEL, Sheet, Size, house_style, to_png, to_svg
from mechint_core.report.fields import Fields
from mechint_core.report.graphs import bars, curve, histogram
from mechint_core.report.node_links import graph
from mechint_core.report.planes import barcode, matrix, scatter
from mechint_core.report.spaces import space
from mechint_core.store.record import StoredResult

Declaration = Mapping[str, Any] | Figure


def draw(declaration: Declaration, result: StoredResult) -> bytes:
    """Draw one figure of `result` as a PNG on white, title included, for a tracker or an artifact.

    Raises
    ------
    NotFoundError
        If the declaration names a field that the result does not have, or a kind of figure that does not exist.
    ShapeError
        If a field cannot be drawn this way.
    """
    declared = _declared(declaration)
    with house_style():
        return to_png(_paint(declared, result, FULL, title=str(declared.get("title", ""))))


def render_svg(declaration: Declaration, result: StoredResult, *, size: Size = FULL) -> Markup:
    """Draw one figure of `result` as an SVG element for a page, which shows the title itself.

    Raises
    ------
    NotFoundError
        If the declaration names a field that the result does not have, or a kind of figure that does not exist.
    ShapeError
        If a field cannot be drawn this way.
    """
    return render_row(declaration, [result], size=size)[0]


def render_row(declaration: Declaration, results: Sequence[StoredResult], *, size: Size = PANEL) -> list[Markup]:
    """Draw the same figure of several results, with the same axes and colour scale.

    Raises
    ------
    NotFoundError
        If the declaration names a field that a result does not have, or a kind of figure that does not exist.
    ShapeError
        If a field cannot be drawn this way.
    """
    declared = _declared(declaration)
    with house_style():
        sheets = [_paint(declared, result, size) for result in results]
        _share_axes(sheets)
        return [to_svg(sheet, _described(declared, each)) for sheet, each in zip(sheets, results, strict=True)]


def _declared(declaration: Declaration) -> Mapping[str, Any]:
    declared = declaration if isinstance(declaration, Mapping) else declare(declaration)
    if declared.get("kind") not in _PAINTERS:
        raise NotFoundError(f"a figure must be one of {', '.join(_PAINTERS)}. Got {declared.get('kind')!r}.")
    return declared


def _paint(declared: Mapping[str, Any], result: StoredResult, size: Size, title: str = "") -> Sheet:
    sheet = Sheet(size, title)
    _PAINTERS[declared["kind"]](sheet, Fields(declared, result))
    return sheet


def _described(declared: Mapping[str, Any], result: StoredResult) -> str:
    """Say which figure this is, to a reader who hears the page."""
    step = "all of training" if result.key.step is None else f"step {result.key.step}"
    return f"{declared.get('title') or declared['kind']}, {result.key.name}, {step}"


def _share_axes(sheets: Sequence[Sheet]) -> None:
    """Give neighbours the same limits and the same colour scale, where comparing them is the point."""
    for name in ("x", "y"):
        shared = [sheet.axes for sheet in sheets if getattr(sheet, f"share_{name}")]
        limits = [getattr(axes, f"get_{name}lim")() for axes in shared]
        for axes in shared:
            getattr(axes, f"set_{name}lim")(min(low for low, _ in limits), max(high for _, high in limits))
    images = [sheet.image for sheet in sheets if sheet.image is not None]
    scales = [image.get_clim() for image in images]
    for image in images:
        image.set_clim(min(low for low, _ in scales), max(high for _, high in scales))


_PAINTERS: Mapping[str, Callable[[Sheet, Fields], None]] = {
    "Curve": curve,
    "Matrix": matrix,
    "Bars": bars,
    "Scatter": scatter,
    "Space": space,
    "Histogram": histogram,
    "Barcode": barcode,
    "Graph": graph,
}
