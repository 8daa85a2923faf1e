"""How an Estimate moves through training: a line per site, its interval as a band, its null dashed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from mechint_core.report.axis import plain_axis, rules, training_axis
from mechint_core.report.canvas import PANEL, Sheet, house_style, line_style, to_svg
from mechint_core.report.thinning import finite
from mechint_core.result import Estimate

MAX_BANDS = 8
"""With more lines than this, bands and nulls would hide each other and are left out."""


@dataclass(frozen=True, slots=True)
class Series:
    """One estimate of one site, checkpoint by checkpoint."""

    name: str
    colour: int
    """Which colour of the palette; the same for this site in every figure."""
    steps: tuple[int, ...]
    estimates: tuple[Estimate, ...]

    def part(self, name: str) -> np.ndarray:
        """Return `value`, `low`, `high`, `null` or `p_value` at each step."""
        numbers = np.array([getattr(estimate, name) for estimate in self.estimates], dtype=np.float64)
        return finite(numbers)


def render_evolution(series: Sequence[Series], described: str) -> Markup:
    """Draw the values of one estimate over the steps of training as an SVG element."""
    with house_style():
        sheet = Sheet(PANEL)
        for each in series:
            _draw(sheet, each, banded=len(series) <= MAX_BANDS)
        rules(sheet.axes)
        plain_axis(sheet.axes.yaxis)
        sheet.label("training step", "")
        training_axis(sheet.axes, np.array(sorted({step for each in series for step in each.steps}), dtype=float))
        _limit(sheet, series)
        sheet.place()
        return to_svg(sheet, described)


def _draw(sheet: Sheet, series: Series, *, banded: bool) -> None:
    steps, value = np.array(series.steps, dtype=float), series.part("value")
    colour, dash = line_style(series.colour)
    lonely = "o" if np.isfinite(value).sum() < 2 else ""
    sheet.axes.plot(steps, value, color=colour, linestyle=dash, marker=lonely, markersize=4)
    low, high, null = series.part("low"), series.part("high"), series.part("null")
    if banded and np.isfinite(low).any():
        sheet.axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
    if banded and np.isfinite(null).any():
        sheet.axes.plot(steps, null, color=colour, linestyle=(0, (2, 2.5)), linewidth=1.0, alpha=0.9)
    beyond = series.part("p_value") <= 0.05
    if banded and beyond.any():
        sheet.axes.plot(steps[beyond], value[beyond], "o", color=colour, markersize=3.2)


def _limit(sheet: Sheet, series: Sequence[Series]) -> None:
    """Show every value and null; let one enormous interval leave the panel rather than flatten the rest."""
    core = np.concatenate([each.part(part) for each in series for part in ("value", "null")])
    band = np.concatenate([each.part(part) for each in series for part in ("low", "high")])
    if not np.isfinite(core).any():
        sheet.say("undefined at every checkpoint")
        return
    low, high = float(np.nanmin(core)), float(np.nanmax(core))
    room = (high - low) or abs(high) * 0.1 or 1.0
    known = band[np.isfinite(band)]
    bottom = max(low - room, float(known.min(initial=low)))
    top = min(high + room, float(known.max(initial=high)))
    edge = 0.06 * (top - bottom or room)
    sheet.axes.set_ylim(bottom - edge, top + edge)
