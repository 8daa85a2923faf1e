"""A result in a screenful of Markdown: the artifact a scheduler shows beside a task."""

import re

from mechint_core.report.wording import (
    certainty,
    clean,
    decimals_supported,
    heading,
    in_words,
    number,
    spaced,
    why_undefined,
)
from mechint_core.store.record import StoredResult

SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~$])")
ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def to_markdown(result: StoredResult) -> str:
    """Return the question, what the numbers mean, and the table of Estimates with their intervals and nulls."""
    key = result.key
    when = "all of training" if key.step is None else f"step {number(key.step)}"
    blocks = [
        f"### {plain(heading(key.technique))}: {plain(key.name)}, {when}",
        f"*{plain(result.about.question)}*" if result.about.question else "",
        plain(result.reading),
        _table(result),
        _flags(result),
        plain(result.about.evidence) if result.estimates else "",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def plain(text: object) -> str:
    """Return `text` as one line of Markdown that means just these characters."""
    return SPECIAL.sub(r"\\\1", " ".join(clean(text).split()).translate(ENTITIES))


def _table(result: StoredResult) -> str:
    if not result.estimates:
        return "No estimates."
    rows = ["| | value | interval | null | p |", "|---|---:|---:|---:|---:|"]
    for name, estimate in result.estimates.items():
        text = in_words(estimate, decimals_supported([estimate]))
        value = text.value
        if certainty(estimate) == "undefined":
            value = f"undefined: {plain(why_undefined(name, result.flags))}"
        interval = f"{text.interval} ({estimate.level:.0%})" if text.interval else ""
        rows.append(f"| {plain(spaced(name))} | {value} | {interval} | {text.null} | {text.p_value.lstrip('= ')} |")
    return "\n".join(rows)


def _flags(result: StoredResult) -> str:
    return ", ".join(f"{plain(spaced(name))}: {number(value)}" for name, value in result.flags.items())
