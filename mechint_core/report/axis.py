"""Axes as a reader likes them: few round ticks, plain numbers, names where places have names."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, Formatter, FuncFormatter, MaxNLocator, NullLocator

from mechint_core.report.canvas import RULE
from mechint_core.report.part_names import fitted_names
from mechint_core.report.wording import SUPERSCRIPTS, fixed, number


class PlainTicks(Formatter):
    """Tick labels with the decimals that tell neighbours apart, thousands separators and no offsets."""

    def __call__(self, x: Any, pos: Any = None) -> str:  # noqa: ARG002 - matplotlib's signature
        """Return the label of one place, such as the one under the mouse."""
        return number(x)

    def format_ticks(self, values: Sequence[float] | np.ndarray) -> list[str]:
        """Return one label per tick."""
        steps = np.diff(np.asarray(values, dtype=float))
        largest = float(np.max(np.abs(values), initial=0.0))
        step = float(np.min(np.abs(steps))) if steps.size else largest
        if largest >= 1e6 or not step > 1e-4:
            return [number(value, 2) for value in values]
        first = max(0, -math.floor(math.log10(step) + 1e-9))
        decimals = next(
            (d for d in (first, first + 1) if np.allclose(np.round(values, d), values, atol=step / 50)), first
        )
        return [fixed(round(value, decimals) + 0.0, decimals) for value in values]  # + 0.0: no negative zero


def plain_axis(axis: Any, count: int = 5, *, whole: bool = False) -> None:
    """Give a linear axis few, round ticks."""
    axis.set_major_locator(MaxNLocator(count, integer=whole, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(PlainTicks())


def log_axis(axis: Any, low: float, high: float, *, zero: bool = False) -> None:
    """Give a logarithmic axis ticks at powers of ten between two positive numbers, and at zero if it holds zero."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = [10.0**power for power in range(first, last + 1, max(1, math.ceil((last - first) / 5)))]
    inside = [power for power in powers if low / 1.02 <= power <= high * 1.02]
    if len(inside) < 2:
        inside = sorted({*inside, low, high})
    axis.set_major_locator(FixedLocator([0.0, *inside] if zero else inside))
    axis.set_major_formatter(PowerTicks())
    axis.set_minor_locator(NullLocator())


class PowerTicks(Formatter):
    """Tick labels of a logarithmic axis: 0.1, 1, 10, 1k, 10⁶."""

    def __call__(self, x: Any, pos: Any = None) -> str:  # noqa: ARG002 - matplotlib's signature
        """Return the label of one tick."""
        power = math.log10(x) if x > 0 else 0.5
        if not math.isclose(power, round(power), abs_tol=1e-9):
            return number(x, 2)
        if -3 < power < 3:
            return f"{x:g}"
        return f"{x / 1000:.0f}k" if 3 <= power < 6 else f"10{str(round(power)).translate(SUPERSCRIPTS)}"


def training_axis(axes: Axes, steps: np.ndarray, ratio: float = 30.0) -> None:
    """Make x an axis of training steps: logarithmic, with room for step 0, where they span this ratio, else linear."""
    positive = steps[steps > 0]
    if positive.size < 2 or positive.max() / positive.min() < ratio:
        plain_axis(axes.xaxis, whole=bool(np.all(steps % 1 == 0)))
        return
    low, high, zero = float(positive.min()), float(positive.max()), bool((steps <= 0).any())
    if zero:
        axes.set_xscale("symlog", linthresh=low, linscale=0.4)
    else:
        axes.set_xscale("log")
    log_axis(axes.xaxis, low, high, zero=zero)
    axes.set_xlim(min(0.0, float(steps.min())) if zero else low / 1.05, high * 1.08)


def name_ticks(axis: Any, names: Sequence[str], count: int, length: int = 26) -> None:
    """Put at most `count` of the names on an axis whose places are 0, 1, 2, ..."""
    if not names:
        plain_axis(axis, whole=True)
        return
    step = -(-len(names) // max(1, count))
    fitted = fitted_names(names, length)
    shown = {place: fitted[place] for place in range(0, len(names), step)}
    axis.set_major_locator(FixedLocator(list(shown)))

    def name(place: Any, _: object) -> str:
        return shown.get(round(place), "")

    axis.set_major_formatter(FuncFormatter(name))


def room(labels: Sequence[str], longest: int = 26) -> float:
    """Return the margin in pixels that these labels need."""
    return 16 + max([6.2 * min(len(label), longest) for label in labels] or [30.0])


def rules(axes: Axes, across: Literal["x", "y"] = "y") -> None:
    """Draw faint rules across one axis, and not the line of that axis itself."""
    axes.grid(visible=True, axis=across, color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
