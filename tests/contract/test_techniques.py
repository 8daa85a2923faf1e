"""What every technique obeys, checked over the whole catalogue: a new technique is tested here without a line."""

import dataclasses
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest

import mechint_core
from mechint_core.axes import AXES
from mechint_core.report.citations import references
from mechint_core.result import Result
from tasks._technique import Technique
from tasks.catalogue import CATALOGUE

technique = pytest.mark.parametrize("technique", CATALOGUE, ids=lambda each: each.name)

FAMILIES = ("features", "interventions", "circuits", "alignment", "fractals", "geometry", "meta_dynamics")


@technique
def test_result__is_frozen_and_named_like_the_function(technique: Technique):
    assert issubclass(technique.result, Result)
    assert technique.result.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert technique.result.technique == technique.name


@technique
def test_result__says_its_evidence_and_has_a_reading(technique: Technique):
    assert technique.result.evidence.endswith(".")
    assert technique.result.reading is not Result.reading


@technique
def test_result__has_a_headline_estimate(technique: Technique):
    hints = get_type_hints(technique.result)

    assert any(hint.__name__ == "Estimate" for hint in hints.values() if inspect.isclass(hint))


@technique
def test_axes__come_from_the_vocabulary(technique: Technique):
    named = {axis for axes in technique.result.axes().values() for axis in axes}
    labelled = {
        get_args(hint)[1]
        for hint in get_type_hints(technique.result, include_extras=True).values()
        if get_origin(hint) is Annotated
    }

    assert named | labelled <= AXES.keys()


@technique
def test_figures__name_fields_of_the_result(technique: Technique):
    fields = {field.name for field in dataclasses.fields(technique.result)}
    words = {"kind", "title", "x_label", "y_label", "value_label", "colour_label"}
    for figure in technique.result.figures:
        for name, value in dataclasses.asdict(figure).items():
            names = value if isinstance(value, tuple) else (value,)
            if name not in words and all(isinstance(each, str) for each in names):
                assert {each for each in names if each} <= fields, (figure, name)


@technique
def test_config__is_keyword_only_frozen_and_default_constructible(technique: Technique):
    parameter = inspect.signature(technique.compute).parameters["config"]

    assert parameter.kind is parameter.KEYWORD_ONLY
    assert technique.config.__dataclass_params__.frozen
    assert isinstance(technique.config(), technique.config)


@technique
def test_config__survives_json(technique: Technique):
    work = technique.work({}, technique.config(), store="s", run="r", name="n", step=None)
    from tasks._technique import from_json

    assert (
        from_json(technique.config, type(work).model_validate_json(work.model_dump_json()).config) == technique.config()
    )


@technique
def test_docstring__has_a_question_and_sections(technique: Technique):
    text = inspect.getdoc(technique.compute) or ""

    assert technique.about.question[-1] in "?."
    assert len(technique.about.question) < 120
    assert len(technique.about.description) > 40
    for section in ("Parameters", "Returns", "Raises", "References", "Examples"):
        assert re.search(rf"^{section}\n-+$", text, re.MULTILINE), section


@technique
def test_citations__are_in_the_bibliography(technique: Technique):
    assert technique.about.references
    assert set(technique.about.references) <= references().keys()


def test_catalogue__holds_every_technique_of_every_family():
    """A public function of a family that takes a config and returns a Result is a technique."""
    listed = {each.compute for each in CATALOGUE}
    for family in FAMILIES:
        package = importlib.import_module(f"mechint_core.{family}")
        for name, member in vars(package).items():
            if inspect.isfunction(member) and not name.startswith("_"):
                returned = get_type_hints(member).get("return")
                if (
                    inspect.isclass(returned)
                    and issubclass(returned, Result)
                    and "config" in inspect.signature(member).parameters
                ):
                    assert member in listed, f"{family}.{name} is not in tasks/catalogue.py"


def test_references__used_anywhere_exist():
    known = references().keys()
    root = Path(mechint_core.__file__).parent
    for path in root.rglob("*.py"):
        for key in re.findall(r"\[@([a-z]+\d{4}[a-z]?)", path.read_text()):
            assert key in known, f"{path.relative_to(root)} cites {key}"


def test_modules__import_without_prefect_or_mlflow():
    """The core is usable where neither is installed: importing all of it must not import them."""
    import subprocess
    import sys

    names = [each.name for each in pkgutil.walk_packages(mechint_core.__path__, "mechint_core.")]
    code = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
    code += "sys.exit(bool({'prefect', 'mlflow'} & sys.modules.keys()))"

    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0
