"""The page of one dictionary as a browser and a reader get it."""

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.figure import Bars, Histogram, declare
from mechint_core.report.dictionary_page import DictionaryNames, write_dictionary_page
from mechint_core.result import Estimate
from mechint_core.store.record import StoredResult

Stored = Callable[..., StoredResult]
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x00\ud800{{7*7}}"
TECHNIQUES = ("evaluate_dictionary", "feature_examples", "build_concept_dictionary", "logit_effects")
VOCABULARY = ("[PAD]", "the", "cat", "s", "##leep", "ing", "Ġdog", "<b>")


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

    def script(self) -> str:
        return self.html[self.html.rindex("<script>") + 8 : self.html.rindex("</script>")]

    def card(self, latent: int) -> str:
        found = re.search(rf'<article class="card" id="latent-{latent}".*?</article>', self.html, re.DOTALL)
        return found[0] if found else ""


def examples(n: int = 4) -> dict[str, Any]:
    """Latent 0 fires on sample 2 (the cat sleeping) and, weaker, on sample 0; the last latent is dead."""
    shape = (n, 3)
    sample, value = np.full(shape, -1), np.full(shape, np.nan)
    sample[:-1], value[:-1] = [2, 1, 0], [4.0, 2.0, 1.0]
    token, code = np.full((*shape, 5), -1), np.full((*shape, 5), np.nan)
    token[:-1, 0], code[:-1, 0] = [1, 2, 3, 4, 6], [0.0, 4.0, 0.0, 1.0, 2.0]
    token[:-1, 1:], code[:-1, 1:] = [7, 1, 2, 7, 9], 0.0
    density = np.r_[np.linspace(0.5, 0.01, n - 1), 0.0]
    neighbour = np.stack([np.roll(np.arange(n), -1), np.full(n, -1)], axis=1)
    return {
        "estimates": {"nearest_cosine": Estimate(0.3, 0.2, 0.4, 0.1, 0.05)},
        "flags": {"n_top": 2.0},
        "figures": (declare(Histogram(values="density", title="How often", log_x=True)),),
        "labels": {},
        "arrays": {
            "density": density,
            "mean_activation": density * 10,
            "max_activation": np.r_[np.full(n - 1, 4.0), 0.0],
            "example_sample": sample,
            "example_value": value,
            "example_quantile": np.where(sample >= 0, value / 4, np.nan),
            "context_token": token,
            "context_activation": code,
            "neighbour": neighbour,
            "neighbour_cosine": np.where(neighbour >= 0, 0.7, np.nan),
            "companion": neighbour,
            "companion_correlation": np.where(neighbour >= 0, -0.2, np.nan),
        },
    }


def concepts(n: int = 4, *, continuous: bool = False) -> dict[str, Any]:
    """Latent 1 stands for `pets` beyond doubt, latent 0 perhaps for `verbs`; the last is not tested."""
    best, effect, q = np.zeros(n, dtype=int), np.full(n, 0.6), np.full(n, 0.4)
    best[1], effect[1], q[1] = 1, 0.97, 1e-7
    best[-1], effect[-1], q[-1] = -1, np.nan, np.nan
    return {
        "estimates": {"labelled": Estimate(0.25, 0.05, 0.7, 0.0, 0.05)},
        "flags": {"false_discovery": 0.05, "continuous": float(continuous)},
        "labels": {"concept": ("verbs", "pets")},
        "figures": (declare(Bars(values="concept_effect", labels="concept", title="Concepts")),),
        "arrays": {
            "best_concept": best,
            "effect": effect,
            "effect_low": effect - 0.05,
            "effect_high": effect + 0.02,
            "q_value": q,
            "precision": np.full(n, np.nan if continuous else 0.9),
            "recall": np.full(n, 0.8),
            "concept_effect": np.array([0.6, 0.97]),
        },
    }


def effects(n: int = 4) -> dict[str, Any]:
    moved = np.tile([[1.5, 0.5]], (n, 1))
    ends: dict[str, Any] = {}
    for end, sign in (("promoted", 1), ("suppressed", -1)):
        ends |= {
            end: np.tile([[2, 0]] if sign > 0 else [[1, 3]], (n, 1)),
            f"{end}_effect": sign * moved,
            f"{end}_low": sign * moved - 0.1,
            f"{end}_high": sign * moved + 0.1,
        }
    return {
        "estimates": {"strength": Estimate(1.5, 1.4, 1.6, 0.4, 0.001)},
        "flags": {"n_classes": 4.0},
        "labels": {},
        "figures": (declare(Histogram(values="largest", title="Loudness")),),
        "arrays": ends | {"largest": np.full(n, 1.5)},
    }


def evaluation(n: int = 4) -> dict[str, Any]:
    density = np.linspace(0.4, 0.0, n)
    arrays = {"density": density, "mean_activation": density}
    return {"estimates": {"fvu": Estimate(0.1)}, "flags": {}, "labels": {}, "figures": (), "arrays": arrays}


@pytest.fixture
def every(stored: Stored) -> dict[str, StoredResult]:
    made = (evaluation(), examples(), concepts(), effects())
    return {name: stored(name, "blocks.0.mlp", 100, **fields) for name, fields in zip(TECHNIQUES, made, strict=True)}


# Known answer
def test_write_dictionary_page__says_what_a_latent_is(tmp_path: Path, every: dict[str, StoredResult]):
    names = DictionaryNames(
        vocabulary=VOCABULARY, samples=("first", "second", "a cat"), classes=("red", "blue", "green", "grey")
    )

    page = Page(write_dictionary_page(tmp_path / "deep" / "d.html", "The MLP", list(every.values()), names=names))

    assert "4 latents at blocks.0.mlp, step 100; 1 never fired." in page.text
    card = page.card(1)
    assert "stands for pets" in card
    assert "AUROC 0.970 (0.920 to 0.990), q &lt; 0.0001; precision 90%, recall 80%" in card
    assert "no concept found" in page.card(0)
    assert "Closest: verbs" in page.card(0)
    assert re.search(r"green</span><span>\+1.50<", card)
    assert re.search(r"blue</span><span>−1.50<", card)
    assert 'href="#latent-2">2 <span class="unsure">0.70' in card
    assert "Never fired." in page.card(3)
    assert "the null is a shuffle" in page.text


def test_write_dictionary_page__colours_tokens_and_joins_pieces(tmp_path: Path, every: dict[str, StoredResult]):
    names = DictionaryNames(vocabulary=VOCABULARY, samples=("first", "second", "a cat"))

    page = Page(write_dictionary_page(tmp_path / "d.html", "The MLP", list(every.values()), names=names))

    card = page.card(0)
    assert (
        'the <b class="h9" title="4">cat</b> s<b class="h3" title="1">leep</b> <b class="h5" title="2">dog</b>' in card
    )
    assert "&lt;b&gt; the cat &lt;b&gt; #9" in card  # a token with no text is a number
    assert "a cat</span></span></li>" in card
    assert "first · quantile 25%" in card


def test_write_dictionary_page__without_tokens_names_the_samples(tmp_path: Path, every: dict[str, StoredResult]):
    bare = every["feature_examples"]
    bare.arrays["context_token"][:] = -1  # type: ignore[index]

    named = Page(
        write_dictionary_page(tmp_path / "d.html", "T", [bare], names=DictionaryNames(samples=("one", "two", "three")))
    )
    unnamed = Page(write_dictionary_page(tmp_path / "d.html", "T", [bare]))

    assert "three</span>" in named.card(0)
    assert "sample 2</span>" in unnamed.card(0)


def test_write_dictionary_page__shows_the_named_first_and_the_dead_last(tmp_path: Path, every: dict[str, StoredResult]):
    page = Page(write_dictionary_page(tmp_path / "d.html", "T", list(every.values())))

    assert page.values("data-latent")[:4] == ["1", "0", "2", "3"]


# Oracle: a browser, by eye.


# Law
def test_write_dictionary_page__needs_no_network_and_runs_only_its_script(
    tmp_path: Path, every: dict[str, StoredResult]
):
    page = Page(write_dictionary_page(tmp_path / "d.html", "T", list(every.values())))
    digest = base64.b64encode(hashlib.sha256(page.script().encode()).digest()).decode()

    assert f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'" in page.html
    assert page.tags["script"] == 1
    assert not set(page.tags) & {"iframe", "object", "embed", "link", "base", "form", "img"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"url\((?!#)|@import", page.html)


@pytest.mark.parametrize("given", [each for n in (1, 2, 3, 4) for each in combinations(TECHNIQUES, n)], ids="+".join)
def test_write_dictionary_page__copes_with_any_of_the_results(
    tmp_path: Path, every: dict[str, StoredResult], given: tuple[str, ...]
):
    page = Page(write_dictionary_page(tmp_path / "d.html", "T", [every[name] for name in given]))
    ids = page.values("id")
    links = {value[1:] for tag, name, value in page.attributes if tag == "a" and name == "href" and value[0] == "#"}

    assert len(ids) == len(set(ids))
    assert links <= set(ids)
    assert page.tags["article"] == 4
    assert not re.search(r"\bnan\b", page.text)


def test_write_dictionary_page__is_bounded_and_lists_all(tmp_path: Path, stored: Stored):
    n = 3000
    results = [stored("feature_examples", **examples(n)), stored("build_concept_dictionary", **concepts(n))]

    path = write_dictionary_page(tmp_path / "d.html", "T", results, max_full=50)

    page = Page(path)
    assert page.tags["article"] == 50
    assert len(page.values("data-latent")) == n + 50
    assert path.stat().st_size < 600 * n  # a row of the table is about 450 bytes
    assert {f"latent-{latent}" for latent in range(n)} <= set(page.values("id"))


def test_write_dictionary_page__same_results_give_the_same_bytes(tmp_path: Path, every: dict[str, StoredResult]):
    first, second = (
        write_dictionary_page(tmp_path / f"{copy}.html", "T", list(every.values())).read_bytes() for copy in "ab"
    )

    assert first == second
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.html", "b.html"]


# Bad input
def test_write_dictionary_page__hostile_names_are_inert(tmp_path: Path, stored: Stored):
    hostile = concepts() | {"labels": {"concept": (HOSTILE, HOSTILE)}, "reading": HOSTILE}
    results = [
        stored("build_concept_dictionary", HOSTILE, **hostile),
        stored("feature_examples", HOSTILE, **examples()),
        stored("logit_effects", HOSTILE, **effects()),
    ]
    names = DictionaryNames(vocabulary=(HOSTILE,) * 9, samples=(HOSTILE,) * 3, classes=(HOSTILE,) * 4)

    page = Page(write_dictionary_page(tmp_path / "d.html", HOSTILE, results, names=names))

    assert page.tags["script"] == 1
    assert page.tags["img"] == 0
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text
    assert "{{7*7}}" in page.text


def test_write_dictionary_page__refuses_nothing_and_two_of_one(tmp_path: Path, every: dict[str, StoredResult]):
    with pytest.raises(ConfigurationError, match="must be one each"):
        write_dictionary_page(tmp_path / "d.html", "T", [])
    with pytest.raises(ConfigurationError, match="must be one each"):
        write_dictionary_page(tmp_path / "d.html", "T", [every["logit_effects"]] * 2)


def test_write_dictionary_page__refuses_results_of_two_dictionaries(tmp_path: Path, stored: Stored):
    with pytest.raises(ShapeError, match="of one dictionary"):
        write_dictionary_page(
            tmp_path / "d.html", "T", [stored("feature_examples", **examples(4)), stored("logit_effects", **effects(5))]
        )
