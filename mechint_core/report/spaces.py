"""The painter of what lies in space: one cloud, seen from two sides.

    view    right and up of an eye that looks down on the cloud from `ELEVATION`, at `AZIMUTHS` a quarter turn apart

All three axes have one scale, so that distances mean what they mean in the data. Nearer points are larger and
stronger, and cover those behind them.
"""

from typing import Final

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.patches import Patch

from mechint_core.errors import ShapeError
from mechint_core.report.canvas import PALETTE, QUIET, RULE, Sheet
from mechint_core.report.fields import Fields
from mechint_core.report.planes import MAX_POINTS, MAX_VECTOR_POINTS, colour_scale, colouring, point_colours
from mechint_core.report.thinning import finite
from mechint_core.report.wording import shorten, spaced

AZIMUTHS: Final = (35.0, 125.0)
ELEVATION: Final = 25.0
REACH: Final = 1.15
"""How far each view reaches from its centre, in radii of the cloud."""
APART: Final = 2.5
"""Distance of the two views' centres, in radii of the cloud."""


def space(sheet: Sheet, fields: Fields) -> None:
    """Draw the first three coordinates of points from two sides."""
    points = fields.numbers("points", ndim=2)
    if points.shape[1] < 3:
        raise ShapeError(f"points must have three coordinates or more. Got shape {points.shape}.")
    keep = np.linspace(0, len(points) - 1, min(len(points), MAX_POINTS)).astype(int)
    inside = _in_unit_ball(points[keep, :3])
    colours, names = colouring(fields, len(points))
    graded = colours is not None and not names
    filling = _rgba(colours if colours is None else colours[keep], len(keep), graded=graded)
    for centre, azimuth in zip((0.0, APART), AZIMUTHS, strict=True):
        _view(sheet, inside, filling, centre, azimuth)
    right = 74.0 if graded else 8.0
    sheet.resize(
        min(sheet.size.height, sheet.top + 32 + (sheet.size.width - 8 - right) * 2 * REACH / (APART + 2 * REACH))
    )
    sheet.axes.set(
        xlim=(-REACH, APART + REACH), ylim=(-REACH, REACH), xticks=[], yticks=[], aspect="equal", anchor="SW"
    )
    sheet.axes.spines[["left", "bottom"]].set_visible(False)
    if names:
        sheet.legend([Patch(color=PALETTE[i]) for i in range(len(names))], [shorten(name) for name in names])
    if graded:
        sheet.keep_line()  # for the name of the colour scale
    sheet.place(left=8.0, right=right, bottom=8.0)
    if graded and colours is not None:
        known = finite(colours)
        marks = sheet.axes.scatter([], [], c=[], cmap=point_colours(), vmin=np.nanmin(known), vmax=np.nanmax(known))
        colour_scale(sheet, marks, fields.text("colour_label") or spaced(fields.text("colour")))


def _in_unit_ball(points: np.ndarray) -> np.ndarray:
    """Centre the points, and scale all axes alike so that the farthest is 1 away."""
    known = finite(points)
    centred = known - np.nanmean(known, axis=0) if np.isfinite(known).any() else known
    radius = np.sqrt(np.nansum(centred**2, axis=1)).max(initial=0.0)
    return centred / (radius or 1.0)


def _rgba(colours: np.ndarray | None, count: int, *, graded: bool) -> np.ndarray:
    """Return the colour of every point."""
    if colours is None:
        return np.tile(to_rgba(PALETTE[0]), (count, 1))
    if not graded:
        return np.array(colours)
    low, high = np.nanmin(colours), np.nanmax(colours)
    return point_colours()((colours - low) / ((high - low) or 1.0))


def _view(sheet: Sheet, points: np.ndarray, colours: np.ndarray, centre: float, azimuth: float) -> None:
    eye = _eye(np.radians(azimuth), np.radians(ELEVATION))
    right, up, near = eye @ points.T
    order = np.argsort(near)
    shade = colours.copy()
    shade[:, 3] = 0.35 + 0.3 * (1 + near)
    size = 26 if len(points) < 80 else 13 if len(points) < 400 else 7
    for axis, (dx, dy, _) in enumerate(eye.T, start=1):
        sheet.axes.plot([centre - dx, centre + dx], [-dy, dy], color=RULE, linewidth=0.8, zorder=0)
        sheet.axes.text(centre + 1.08 * dx, 1.08 * dy, str(axis), color=QUIET, size=9, ha="center", va="center")
    sheet.axes.scatter(
        centre + right[order],
        up[order],
        s=size * (0.7 + 0.3 * (1 + near[order])),
        c=np.clip(shade[order], 0, 1),
        linewidths=0,
        rasterized=len(points) > MAX_VECTOR_POINTS,
    )


def _eye(azimuth: float, elevation: float) -> np.ndarray:
    """Return right, up and towards the eye as rows."""
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    near = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    return np.stack([right, np.cross(near, right), near])
