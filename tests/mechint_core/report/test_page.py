"""The page as a browser and a reader get it."""

import math
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechint_core.figure import Bars, Curve, Histogram, declare
from mechint_core.report import Finding, RunSummary, write_report
from mechint_core.report.page import prose
from mechint_core.result import Estimate
from mechint_core.store.record import About, StoredResult

Stored = Callable[..., StoredResult]
SUMMARY = RunSummary(
    title="Grokking",
    run="grok-0",
    model="one-layer transformer",
    dataset="a + b mod 59",
    samples=3481,
    checkpoints=(0, 100, 2000),
    sites=("embed", "blocks.0.mlp"),
    started=datetime(2026, 11, 2, 17, 40, tzinfo=UTC),
    seconds=254.0,
    versions={"torch": "2.13.0"},
    commit="86a5278",
    command="mechint demo",
)
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x00\ud800${{7*7}}"


class Page(HTMLParser):
    """Collects what matters of a page: tags, attributes, ids, text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def is_inert(page: Page) -> bool:
    """No script, no handler, nothing fetched: only links to click, anchors and embedded images."""
    fetched = [value for tag, name, value in page.attributes if name in {"src", "href", "xlink:href"} and tag != "a"]
    return (
        not set(page.tags) & {"script", "iframe", "object", "embed", "link", "base", "form", "img"}
        and not [name for _, name, _ in page.attributes if name.startswith("on")]
        and all(value.startswith(("#", "data:image/png;base64,")) for value in fetched)
        and not re.search(r"url\((?!#)|@import", page.html)
    )


# Known answer


def test_write_report__says_what_was_run_and_what_was_found(tmp_path: Path, stored: Stored):
    found = Finding("Four frequencies", "They hold 83 %.", Estimate(0.83, 0.79, 0.86, 0.14, 0.001), "drift")
    page = Page(write_report(tmp_path / "deep" / "report.html", SUMMARY, [stored()], overview=[found]))
    for said in ("2 November 2026, 17:40 UTC", "4 min 14 s", "torch 2.13.0", "3,481 samples", "steps 0 to 2,000"):
        assert said in page.text
    assert "0.83 (95 % interval 0.79 to 0.86); its null gives 0.14; p = 0.001." in page.text
    assert "#technique-drift" in page.values("href")


def test_write_report__has_question_reading_evidence_limits_and_citation(tmp_path: Path, stored: Stored):
    page = Page(write_report(tmp_path / "r.html", SUMMARY, [stored()]))
    for said in (
        "How far does it move?",
        "It moves at the transition.",
        "the null is a shuffle",
        "It cannot tell why.",
    ):
        assert said in page.text
    assert "Permutation P-values should never be zero" in page.text
    assert "n_draws" in page.text


def test_write_report__an_empty_run_still_has_a_page_that_says_so(tmp_path: Path):
    page = Page(write_report(tmp_path / "r.html", RunSummary(title="Empty", run="r"), []))
    assert "Nothing has been stored" in page.text
    assert "0 results of 0 techniques." in page.text


def test_write_report__an_undefined_estimate_says_why(tmp_path: Path, stored: Stored):
    results = [stored(estimates={"slope": Estimate(math.nan)}, flags={"n_flat_windows": 7.0}, step=s) for s in (0, 1)]
    page = Page(write_report(tmp_path / "r.html", SUMMARY, results))
    assert "undefined: n flat windows = 7" in page.text
    assert "nan" not in re.sub(r"\w*nan\w+|n nan", "", page.text)


def test_prose__keeps_code_and_emphasis_and_drops_citation_marks():
    assert prose("Use `x < y`, *not* 2*3*4 [@a2020].") == "Use <code>x &lt; y</code>, <em>not</em> 2*3*4 ."


# Oracle: a browser, by eye.

# Law


def test_write_report__needs_no_network_and_runs_nothing(tmp_path: Path, stored: Stored):
    page = Page(write_report(tmp_path / "r.html", SUMMARY, [stored(), *(stored("x", step=s) for s in range(4))]))
    assert is_inert(page)
    assert "default-src 'none'" in page.html


def test_write_report__every_id_is_unique_and_every_reference_resolves(
    tmp_path: Path, stored: Stored, every_figure: tuple[dict[str, Any], ...]
):
    results = [stored(name=name, step=step, figures=every_figure) for name in "ab" for step in (None, 0)]
    page = Page(write_report(tmp_path / "r.html", SUMMARY, results))
    ids = page.values("id")
    used = {value[1:] for value in page.values("xlink:href") if value.startswith("#")}
    used |= set(re.findall(r"url\(#([^)]*)\)", page.html))
    assert len(ids) == len(set(ids))
    assert used <= set(ids)


def test_write_report__same_results_give_the_same_bytes(tmp_path: Path, stored: Stored):
    first = write_report(tmp_path / "1.html", SUMMARY, [stored()])
    assert first.read_bytes() == write_report(tmp_path / "2.html", SUMMARY, [stored()]).read_bytes()


def test_write_report__replaces_an_older_report_and_leaves_nothing_else(tmp_path: Path, stored: Stored):
    path = tmp_path / "r.html"
    path.write_text("old")
    write_report(path, SUMMARY, [stored()])
    assert "old" not in path.read_text()[:3]
    assert [each.name for each in tmp_path.iterdir()] == ["r.html"]


@pytest.mark.slow
def test_write_report__six_hundred_results_stay_small(tmp_path: Path, stored: Stored, rng: np.random.Generator):
    figures = (Histogram(values="dimension", title="D"), Bars(values="power", labels="frequency", title="P"))
    results = [
        stored(
            technique,
            f"site.{site}",
            int(1.2**step),
            figures=tuple(declare(figure) for figure in figures),
            labels={"frequency": tuple(str(k) for k in range(29))},
            arrays={"dimension": rng.normal(size=128), "power": rng.random(29)},
            estimates={name: Estimate(*np.sort(rng.random(3))[[1, 0, 2]], 0.1, 0.01) for name in ("a", "b", "c")},
        )
        for technique in ("t1", "t2", "t3")
        for site in range(6)
        for step in range(4, 37)
    ]
    path = tmp_path / "r.html"
    write_report(path, SUMMARY, results)
    assert path.stat().st_size < 8e6  # about 1.5 MB
    assert len(results) == 594


# Bad input


def test_write_report__hostile_names_are_inert(tmp_path: Path, stored: Stored):
    results = [
        stored(
            HOSTILE,
            HOSTILE,
            step,
            about=About(HOSTILE, HOSTILE, HOSTILE, (HOSTILE,)),
            reading=HOSTILE,
            config={HOSTILE: HOSTILE},
            estimates={HOSTILE: Estimate(0.1 * (step or 1))},
            flags={HOSTILE: 1.0},
            labels={"site": (HOSTILE,) * 3},
            figures=(
                declare(Bars(values="recovery", labels="site", title=HOSTILE)),
                {"kind": HOSTILE, "title": HOSTILE},
            ),
            provenance={HOSTILE: HOSTILE, "inputs": {HOSTILE: HOSTILE}},
        )
        for step in (None, 0, 1, 2)
    ]
    summary = RunSummary(
        title=HOSTILE, run=HOSTILE, sites=(HOSTILE,), notes=HOSTILE, command=HOSTILE, versions={HOSTILE: HOSTILE}
    )
    page = Page(
        write_report(tmp_path / "r.html", summary, results, overview=[Finding(HOSTILE, HOSTILE, None, HOSTILE)])
    )
    assert is_inert(page)
    assert "<script>alert(1)</script>" in page.text
    assert "${{7*7}}" in page.text


@pytest.mark.parametrize("n_checkpoints", [1, 2, 100])
def test_write_report__copes_with_any_number_of_checkpoints(tmp_path: Path, stored: Stored, n_checkpoints: int):
    results = [
        stored(step=step, figures=(declare(Curve(y=("drift",), title="D")),), estimates={"a": Estimate(step / 7)})
        for step in range(n_checkpoints)
    ]
    path = write_report(tmp_path / "r.html", SUMMARY, results)
    assert path.stat().st_size < 400_000


def test_write_report__a_result_with_nothing_in_it_is_shown(tmp_path: Path, stored: Stored):
    bare = stored(
        about=About("", "", "", ()),
        reading="",
        config={},
        estimates={},
        flags={},
        labels={},
        figures=(),
        provenance={},
        arrays={},
    )
    assert "Drift" in Page(write_report(tmp_path / "r.html", SUMMARY, [bare])).text


def test_write_report__a_failure_leaves_the_older_report(
    tmp_path: Path, stored: Stored, monkeypatch: pytest.MonkeyPatch
):
    path = write_report(tmp_path / "r.html", SUMMARY, [stored()])
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, SUMMARY, [])
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["r.html"]
