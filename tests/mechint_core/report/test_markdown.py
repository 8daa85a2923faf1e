"""The artifact in Markdown."""

import math
from collections.abc import Callable

from mechint_core.report import to_markdown
from mechint_core.result import Estimate
from mechint_core.store.record import StoredResult

Stored = Callable[..., StoredResult]

# Known answer


def test_to_markdown__has_question_reading_and_table(stored: Stored):
    text = to_markdown(stored("linear_cka", "embed", 1300))
    assert text.startswith(
        "### Linear CKA: embed, step 1,300\n\n*How far does it move?*\n\nIt moves at the transition."
    )
    assert "| peak | 0.80 | 0.70 to 0.90 (95%) | 0.10 | 0.005 |" in text
    assert "| total | 3 |  |  |  |" in text
    assert "n nan: 2" in text


# Oracle: none.

# Law


def test_to_markdown__every_row_of_the_table_has_six_bars(stored: Stored):
    rows = [line for line in to_markdown(stored()).splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {6}


# Bad input


def test_to_markdown__hostile_names_stay_text(stored: Stored):
    hostile = "a|b <script> [x](javascript:y) `c`\n# d"
    text = to_markdown(stored(hostile, hostile, reading=hostile, estimates={hostile: Estimate(1.0)}))
    assert "<" not in text
    assert "\n# d" not in text
    assert "](" not in text.replace("\\](", "").replace("\\]\\(", "")


def test_to_markdown__an_undefined_estimate_says_why(stored: Stored):
    text = to_markdown(stored(estimates={"slope": Estimate(math.nan)}, flags={"n_flat": 3.0}))
    assert "undefined: n flat = 3" in text


def test_to_markdown__says_that_there_are_no_estimates(stored: Stored):
    assert "No estimates." in to_markdown(stored(estimates={}))
