"""The page of one dictionary: a table of its latents to sort and search, and what is known of each.

One HTML file, made from stored results only, that needs nothing else and asks nothing of any network. Its few lines
of script sort, search and filter; without script it is the same page in the order of the file. The page's policy
allows that script alone, by its digest.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from mechint_core import __version__
from mechint_core.errors import ConfigurationError, MechintError
from mechint_core.report import wording
from mechint_core.report.canvas import PANEL
from mechint_core.report.citations import cite
from mechint_core.report.figures import render_svg
from mechint_core.report.latent_cards import Latents
from mechint_core.report.page import prose
from mechint_core.report.sections import Drawing
from mechint_core.report.whole_file import write_whole
from mechint_core.store.record import StoredResult

TECHNIQUES = {
    "evaluate_dictionary": "evaluation",
    "feature_examples": "examples",
    "build_concept_dictionary": "concepts",
    "logit_effects": "effects",
}
MAX_FULL = 1000
MAX_BARS = 60
"""Concepts that are drawn as bars; more would be unreadable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DictionaryNames:
    """Words for the numbers in the results, where there are any."""

    vocabulary: Sequence[str] | Mapping[int, str] | None = None
    """Text of every token."""
    samples: Sequence[str] | None = None
    """What is known of each sample: its text, or its label."""
    classes: Sequence[str] | None = None
    """The model's outputs."""


def write_dictionary_page(
    path: Path | str,
    title: str,
    results: Sequence[StoredResult],
    *,
    names: DictionaryNames = DictionaryNames(),
    max_full: int = MAX_FULL,
) -> Path:
    """Write the page of one dictionary, whole or not at all, and return where it is.

    Parameters
    ----------
    path
        The HTML file. Its folder is made if it does not exist; an older page is replaced in one step.
    title
        What the dictionary is of.
    results
        Stored results of evaluate_dictionary, feature_examples, build_concept_dictionary and logit_effects for this
        dictionary: at most one of each, at least one. Others are ignored.
    names
        Words for tokens, samples and classes.
    max_full
        Latents shown with everything; the others, those of least interest, have a row in the table.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ConfigurationError
        If there is no result of these techniques, or two of one.
    ShapeError
        If the results are not of the same number of latents.
    """
    return write_whole(path, render_dictionary_page(title, results, names=names, max_full=max_full))


def render_dictionary_page(
    title: str,
    results: Sequence[StoredResult],
    *,
    names: DictionaryNames = DictionaryNames(),
    max_full: int = MAX_FULL,
) -> str:
    """Return the page as HTML; parameters as for `write_dictionary_page`."""
    given = [result for result in results if result.key.technique in TECHNIQUES]
    by_technique = {TECHNIQUES[result.key.technique]: result for result in given}
    if not given or len(by_technique) < len(given):
        raise ConfigurationError(
            f"results must be one each of some of {', '.join(TECHNIQUES)}. "
            f"Got {[result.key.technique for result in results]}."
        )
    latents = Latents(**by_technique, vocabulary=names.vocabulary, samples=names.samples, classes=names.classes)
    order = latents.by_interest()
    script = (files("mechint_core.report") / "templates" / "dictionary.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("mechint_core.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "prose": prose,
        "clean": wording.clean,
        "number": wording.number,
        "probability": wording.probability,
    }
    return environment.get_template("dictionary.html.j2").render(
        title=title,
        lead=_lead(latents, given),
        facts=_facts(given),
        results=given,
        drawings=_drawings(by_technique),
        cards=[latents.card(latent, full=place < max_full) for place, latent in enumerate(order)],
        effect_name="rho" if latents.no_effect == 0 else "AUROC",
        has={name: name in by_technique for name in TECHNIQUES.values()},
        references=[cite(key) for key in dict.fromkeys(key for each in given for key in each.about.references)],
        script=script,
        script_digest=_digest(script),
        version=__version__,
    )


def _lead(latents: Latents, given: Sequence[StoredResult]) -> str:
    """Say in one sentence what this is a page of."""
    key = given[0].key
    where = f"at {wording.clean(key.name)}" + ("" if key.step is None else f", step {wording.number(key.step)}")
    dead = int((latents.density == 0).sum())
    living = f"; {wording.number(dead)} never fired" if dead else ""
    return f"{wording.number(latents.count)} latents {where}{living}."


def _facts(given: Sequence[StoredResult]) -> list[tuple[str, str]]:
    """Return the headline numbers of every result, and how sure they are."""
    return [
        (wording.heading(name), wording.how_sure(estimate))
        for result in given
        for name, estimate in result.estimates.items()
    ]


def _drawings(by_technique: Mapping[str, StoredResult]) -> list[Drawing]:
    """Draw the declared figures of the results; one that cannot be drawn says why in its place."""
    drawings: list[Drawing] = []
    for name, result in by_technique.items():
        for declared in result.figures:
            crowded = declared.get("kind") == "Bars" and len(result.labels.get("concept", ())) > MAX_BARS
            repeated = name == "evaluation" and "examples" in by_technique and "density" in str(declared)
            if crowded or repeated:
                continue
            caption = wording.clean(declared.get("title", ""))
            try:
                drawings.append(Drawing(caption, render_svg(declared, result, size=PANEL)))
            except MechintError as problem:
                drawings.append(Drawing(caption, problem=wording.clean(problem)))
    return drawings


def _digest(script: str) -> str:
    """Return the digest by which the page's policy allows the script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
