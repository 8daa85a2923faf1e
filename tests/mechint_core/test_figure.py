"""Declarations of figures: plain data that outlives the code which made it."""

import json
from dataclasses import MISSING, FrozenInstanceError, dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar, get_args

import numpy as np
import pytest
from jaxtyping import Bool, Float

from mechint_core.figure import Bars, Curve, Figure, Graph, declare
from mechint_core.report.figures import render_svg
from mechint_core.result import Estimate, Result
from mechint_core.store import About, ActivationStore, ResultKey

CIRCUIT = Graph(sender="sender", receiver="receiver", score="score", kept="kept", title="The circuit", value_label="KL")


@dataclass(frozen=True, slots=True)
class Edges(Result):
    technique: ClassVar[str] = "edges"
    evidence: ClassVar[str] = "No null."
    figures: ClassVar[tuple[Figure, ...]] = (CIRCUIT,)

    total: Estimate
    sender: Annotated[tuple[str, ...], "edge"]
    receiver: Annotated[tuple[str, ...], "edge"]
    score: Float[np.ndarray, "edge"]
    kept: Bool[np.ndarray, "edge"]

    def reading(self) -> str:
        return "Two edges."


# Known answer


def test_declare__is_the_kind_and_the_fields():
    assert declare(Bars(values="v", labels="site", title="T")) == {
        "kind": "Bars", "values": "v", "labels": "site", "title": "T", "low": "", "high": "", "null": "",
        "value_label": "",
    }  # fmt: skip


def test_declare__a_graph_comes_back_from_the_store_and_is_drawn_as_before(tmp_path: Path):
    edges = Edges(
        total=Estimate(1.0),
        sender=("input", "layers.0.attention.1"),
        receiver=("layers.0.attention.1:value", "output"),
        score=np.array([0.5, -0.25]),
        kept=np.array([True, False]),
    )
    store, key = ActivationStore(tmp_path / "store"), ResultKey("run", "edges", "model", 7)
    provenance = {"version": 1, "inputs": {}, "cache_key": "k", "seconds": 0.1}
    store.write_result(key, edges, about=About("Which edges?", "", "", ()), config={}, provenance=provenance)
    stored = store.result(key)
    assert stored.figures == (declare(CIRCUIT),)
    assert stored.arrays["kept"].tolist() == [True, False]
    svg = render_svg(stored.figures[0], stored)
    assert "layers.0.attention.1 → output: −0.250, not kept" in svg


# Oracle: none.

# Law


@pytest.mark.parametrize("kind", get_args(Figure))
def test_declare__is_json_with_every_field(kind: type[Figure]):
    named = {each.name: ("v",) if each.name == "y" else "v" for each in fields(kind) if each.default is MISSING}
    assert json.loads(json.dumps(declare(kind(**named)))).keys() == {"kind", *(each.name for each in fields(kind))}


# Bad input


def test_figure__is_frozen():
    with pytest.raises(FrozenInstanceError):
        CIRCUIT.title = "Another"  # type: ignore[misc]


def test_figure__has_no_fields_by_position():
    with pytest.raises(TypeError, match="positional"):
        Curve(("y",), "T")  # type: ignore[misc]
