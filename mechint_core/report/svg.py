"""Matplotlib's SVG made fit for a page: a third of the bytes, colours from the page's style, ids of its own."""

import re
import zlib

from markupsafe import Markup

from mechint_core.report.wording import clean

INK, QUIET, RULE = "#1c1d1f", "#6b6d71", "#dcdde1"
VARIABLES = {INK: "--ink", QUIET: "--quiet", RULE: "--rule"}
"""Colours that stand for a CSS variable; they are its fallback where an SVG is shown on its own."""
_BLOCKS = re.compile(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", re.DOTALL)
_TAG = re.compile(r"<[^<>]*>")
_CUTS = (
    (re.compile(r'(<g|<text) id="[^"]*"'), r"\1"),
    (re.compile(r"; text-anchor: start|; stroke-linecap: (?:round|square|butt)|; stroke-linejoin: \w+"), ""),
    (re.compile(r"font: (\d+\.?\d*)px [^;\"]*"), r"font-size: \1px"),
    (re.compile(r"; font-family: [^;\"]*"), ""),
    (re.compile(r' transform="rotate\(-0 [^"]*"'), ""),
    (re.compile(r"(\d+\.\d\d)\d+"), r"\1"),
    (re.compile(r"\s*\n\s*"), " "),
)


def slim(svg: str, described: str, widest: float | None = None) -> str:
    """Return matplotlib's SVG without what a page does not need, its ink following the page.

    With `widest`, in rem, it takes a row of the page for itself, up to that width.
    """
    described = clean(described)
    opening, _, rest = _BLOCKS.sub("", svg[svg.index("<svg") :]).partition(">")
    # Ids are page-wide: a definition must never come from another figure, which may be folded away.
    own = f"f{zlib.crc32((described + rest).encode()):08x}"

    def slim_tag(match: re.Match[str]) -> str:
        tag = match[0]
        for pattern, replacement in _CUTS:
            tag = pattern.sub(replacement, tag)
        for colour, variable in VARIABLES.items():
            tag = tag.replace(colour, f"var({variable},{colour})")
        return re.sub(r'( id="|="#|url\(#)', rf"\1{own}-", tag)

    rest = re.sub(r">\s+<", "><", _TAG.sub(slim_tag, rest)).replace("<g/>", "")  # tags only: labels stay as they are
    box = re.search(r'viewBox="[^"]*"', opening)
    label = Markup.escape(described)
    row = "" if widest is None else f'class="wide" style="max-width: {widest:.1f}rem" '
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return (
        f"<svg {row}{box[0] if box else ''} {names} "
        f'font-family="system-ui, sans-serif" stroke-linejoin="round" role="img" aria-label="{label}">{rest.strip()}'
    )
