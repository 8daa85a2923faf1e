"""Numbers and names as a person writes them: rounded to what is known, never p = 0, never a bare `nan`."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mechint_core.result import Estimate

ACRONYMS = frozenset({"cca", "cka", "dfa", "h0", "h1", "h2", "mle", "nn", "pca", "rdm", "rsa", "sae"})
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Characters that XML refuses, that cannot be written as UTF-8, or that reorder the text around them."""
SMALLEST_P = 1e-4
MOST_REASONS = 4
"""Flags that are named beside an undefined estimate."""


@dataclass(frozen=True, slots=True)
class EstimateText:
    """An Estimate in words, each part empty where it does not apply."""

    value: str
    interval: str
    null: str
    p_value: str


def number(value: float | int, digits: int = 3) -> str:
    """Write `value` with `digits` significant digits: `0.931`, `12,400`, `1.20 × 10⁻⁷`, `undefined` for NaN."""
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if value == int(value) and size < 1e7:
        return _minus(f"{value:,.0f}")
    if size >= 1e6 or size < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{_minus(mantissa)} × 10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    return fixed(value, max(0, digits - 1 - math.floor(math.log10(size))))


def fixed(value: float | int, decimals: int) -> str:
    """Write `value` with that many decimals and a true minus sign."""
    return _minus(f"{value:,.{decimals}f}")


def probability(p_value: float) -> str:
    """Write a p-value after its sign: `= 0.012`, `< 0.0001`. Empty for NaN; never zero."""
    if math.isnan(p_value):
        return ""
    if p_value < SMALLEST_P:
        return "< 0.0001"
    decimals = 4 if p_value < 0.001 else 3 if p_value < 0.1 else 2
    return f"= {p_value:.{decimals}f}"


def in_words(estimate: Estimate, decimals: int | None = None) -> EstimateText:
    """Write an Estimate; with `decimals` of `decimals_supported`, or three significant digits without."""

    def rounded(value: float) -> str:
        if decimals is None or not math.isfinite(value) or (value != 0 and abs(value) < 0.5 * 10.0**-decimals):
            return number(value)
        return fixed(value, decimals)

    bounded = not (math.isnan(estimate.low) and math.isnan(estimate.high))
    return EstimateText(
        value=rounded(estimate.value),
        interval=f"{rounded(estimate.low)} to {rounded(estimate.high)}" if bounded else "",
        null="" if math.isnan(estimate.null) else rounded(estimate.null),
        p_value=probability(estimate.p_value),
    )


def decimals_supported(estimates: Iterable[Estimate]) -> int | None:
    """Return the decimals that the narrowest of the intervals supports; None where significant digits read better.

    One digit of the half width is kept, two where it starts with 1 or 2, as physicists round.
    """
    every = list(estimates)
    widths = [(each.high - each.low) / 2 for each in every]
    known = [width for width in widths if math.isfinite(width) and width > 0]
    if not known or min(known) < 1e-6 or any(abs(each.value) >= 1e6 for each in every):
        return None
    half_width = float(f"{min(known):.3g}")
    leading = math.floor(math.log10(half_width))
    return min(6, max(0, -leading + (half_width < 3 * 10.0**leading)))


def certainty(estimate: Estimate) -> str:
    """Return `undefined`, `beyond` (its null), `within` (its null), `interval` or `bare`: how sure, in one word."""
    if math.isnan(estimate.value):
        return "undefined"
    if not math.isnan(estimate.p_value):
        return "beyond" if estimate.p_value <= 0.05 else "within"
    bounded = not (math.isnan(estimate.low) or math.isnan(estimate.high))
    if bounded and not math.isnan(estimate.null):
        return "within" if estimate.low <= estimate.null <= estimate.high else "beyond"
    return "interval" if bounded else "bare"


def how_sure(estimate: Estimate) -> str:
    """Say in one line what is known of an Estimate."""
    text, kind = in_words(estimate, decimals_supported([estimate])), certainty(estimate)
    if kind == "undefined":
        return "Undefined for these data."
    parts = [text.value]
    if text.interval:
        parts[0] += f" ({estimate.level:.0%} interval {text.interval})".replace("%", " %")
    if text.null:
        parts.append(f"its null gives {text.null}")
    if text.p_value:
        parts.append(f"p {text.p_value}")
    verdict = {
        "beyond": " Distinguishable from the null.",
        "within": " Not distinguishable from the null.",
        "interval": " No null was computed.",
        "bare": " Neither an interval nor a null was computed.",
    }[kind]
    return "; ".join(parts) + "." + verdict


def why_undefined(name: str, flags: Mapping[str, float]) -> str:
    """Return the flags that may say why the estimate `name` is NaN, or that none does."""
    raised = {flag: value for flag, value in flags.items() if (value == 0) == (flag == "converged")}
    own = {flag: value for flag, value in raised.items() if name in flag}
    known = {flag: value for flag, value in (own or raised).items() if math.isfinite(value)}
    told = [f"{spaced(flag)} = {number(value)}" for flag, value in known.items()]
    more = [f"{len(told) - MOST_REASONS} more flags below"] if len(told) > MOST_REASONS else []
    return ", ".join(told[:MOST_REASONS] + more) or "no flag says why"


def duration(seconds: float | int) -> str:
    """Write a length of time in its two largest units."""
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 60:
        return f"{number(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def spaced(name: str) -> str:
    """Write an identifier as words: `n_flat_windows` becomes `n flat windows`."""
    return " ".join(word.upper() if word in ACRONYMS else word for word in clean(name).split("_") if word)


def heading(name: str) -> str:
    """Write an identifier as a heading."""
    words = spaced(name)
    return words[:1].upper() + words[1:]


def clean(text: object) -> str:
    """Return `text` without the characters that no page can show."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(text))


def shorten(text: object, length: int = 26) -> str:
    """Return `text` on one line, its middle left out if it is longer than `length`."""
    line = " ".join(clean(text).split())
    head = (length - 1) // 2
    return line if len(line) <= length else f"{line[:head]}…{line[head + 1 - length :]}"


def _minus(text: str) -> str:
    return text.replace("-", "−")
