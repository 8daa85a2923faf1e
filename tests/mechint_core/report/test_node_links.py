"""Drawing directed graphs."""

import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from mechint_core.errors import NotFoundError, ShapeError
from mechint_core.figure import Graph
from mechint_core.report.figures import draw, render_svg
from mechint_core.report.link_plan import MAX_EDGES
from mechint_core.store.record import About, ResultKey, StoredResult

SVG = "{http://www.w3.org/2000/svg}"
GRAPH = Graph(
    sender="sender", receiver="receiver", score="score", kept="kept", low="low", high="high", title="", value_label="KL"
)
INDUCTION = (
    ("input", "layers.0.attention.1:value", 0.9),
    ("layers.0.attention.1", "layers.1.attention.0:key", 0.8),
    ("input", "layers.1.attention.0:query", 0.6),
    ("input", "layers.0.mlp", 0.01),
    ("layers.1.attention.0", "output", 0.95),
    ("layers.0.mlp", "output", -0.3),
)


def circuit(edges: tuple[tuple[str, str, float], ...] = INDUCTION, **fields: Any) -> StoredResult:
    """Store edges; those beyond 0.1 are kept."""
    score = np.array([value for _, _, value in edges])
    given_arrays = {"score": score, "kept": np.abs(score) > 0.1, "low": score - 0.05, "high": score + 0.05}
    labels = {"sender": tuple(edge[0] for edge in edges), "receiver": tuple(edge[1] for edge in edges)}
    about = About("", "", "", ())
    return StoredResult(ResultKey("r", "t", "n"), about, "", {}, {}, {}, labels, {}, (), {}, {**given_arrays, **fields})


def many(layers: int, heads: int, rng: np.random.Generator) -> tuple[tuple[str, str, float], ...]:
    """Return every edge of a transformer without MLPs."""
    edges: list[tuple[str, str, float]] = []
    before = ["input"]
    for layer in range(layers):
        here = [f"layers.{layer}.attention.{head}" for head in range(heads)]
        for head in here:
            edges += [(each, f"{head}:{port}", rng.normal()) for each in before for port in ("query", "key", "value")]
        before += here
    return (*edges, *((each, "output", rng.normal()) for each in before))


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def lines(svg: str) -> dict[str, tuple[str, float]]:
    """Return colour and width of every edge, by what shows where the pointer rests on it."""
    drawn: dict[str, tuple[str, float]] = {}
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        tip, path = group.find(f"{SVG}title"), group.find(f"{SVG}path")
        if tip is not None and path is not None and "→" in (tip.text or ""):
            style = path.attrib["style"]
            colour, width = re.search(r"stroke: ([^;]+)", style), re.search(r"stroke-width: ([\d.]+)", style)
            drawn[tip.text or ""] = (colour[1] if colour else "", float(width[1]) if width else 1.0)
    return drawn


# Known answer


def test_graph__names_nodes_briefly_and_in_full_where_the_pointer_rests():
    svg = render_svg(GRAPH, circuit())
    assert {"input", "attn 0.1", "attn 1.0", "mlp 0", "output", "KL", "5 of 6 edges kept"} <= set(texts(svg))
    tips = [node.text for node in ElementTree.fromstring(svg).iter(f"{SVG}title")]
    assert {"layers.0.attention.1", "layers.0.mlp", "layers.1.attention.0:key"} <= set(tips)


def test_graph__sign_is_colour_and_size_is_width():
    drawn = lines(render_svg(GRAPH, circuit()))
    strong = drawn["layers.1.attention.0 → output: 0.95 (0.90 to 1.00)"]
    weak = drawn["input → layers.1.attention.0:query: 0.60 (0.55 to 0.65)"]
    against = drawn["layers.0.mlp → output: −0.30 (−0.35 to −0.25)"]
    assert strong[0] == weak[0] != against[0]
    assert strong[1] > weak[1] > against[1]


def test_graph__edges_that_are_not_kept_are_faint():
    tip = "input → layers.0.mlp: 0.01 (−0.04 to 0.06), not kept"
    svg = render_svg(GRAPH, circuit())
    assert lines(svg)[tip][1] < 1
    assert "not kept" in texts(svg)


def test_graph__the_input_lies_below_the_output():
    words = ElementTree.fromstring(render_svg(GRAPH, circuit())).iter(f"{SVG}text")
    height = {node.text: float(node.attrib["y"]) for node in words if "y" in node.attrib}
    assert height["input"] > height["attn 0.1"] > height["attn 1.0"] > height["output"]  # SVG counts downwards


def test_graph__of_many_edges_draws_the_strongest_and_says_so(rng: np.random.Generator):
    edges = many(3, 4, rng)
    svg = render_svg(Graph(sender="sender", receiver="receiver", score="score", title=""), circuit(edges))
    assert f"{MAX_EDGES} strongest of {len(edges)} edges" in texts(svg)
    strongest = sorted(edges, key=lambda edge: -abs(edge[2]))[:MAX_EDGES]
    assert {tip.rsplit(": ", 1)[0] for tip in lines(svg)} == {f"{edge[0]} → {edge[1]}" for edge in strongest}


def test_graph__of_many_edges_leaves_out_those_that_are_not_kept(rng: np.random.Generator):
    edges = many(3, 4, rng)
    kept = np.arange(len(edges)) < 20
    svg = render_svg(GRAPH, circuit(edges, kept=kept))
    assert len(lines(svg)) == 20
    assert f"20 of {len(edges)} edges kept" in texts(svg)


def test_graph__a_kept_edge_without_a_score_is_drawn_all_the_same():
    undefined = circuit(score=np.full(6, np.nan), kept=np.array([True, True, False, False, True, False]))
    drawn = lines(render_svg(GRAPH, undefined))
    assert len(drawn) == 3
    assert all(": undefined" in tip for tip in drawn)


def test_graph__an_edge_of_no_effect_is_drawn_among_few_and_left_out_of_many(rng: np.random.Generator):
    figure = Graph(sender="sender", receiver="receiver", score="score", title="")
    few = circuit((("input", "a", 0.0), ("a", "output", 1.0)))
    assert len(lines(render_svg(figure, few))) == 2
    edges = many(3, 4, rng)
    sparse = circuit(edges, score=np.where(np.arange(len(edges)) < 12, 1.0, 0.0))
    assert f"12 strongest of {len(edges)} edges" in texts(render_svg(figure, sparse))


def test_graph__says_that_nothing_is_kept():
    nothing = circuit((("input", "output", 0.0),), kept=np.array([0.0]))
    assert {"no edge to draw", "0 of 1 edges kept"} <= set(texts(render_svg(GRAPH, nothing)))


# Oracle: none; a drawing. The layout's own are in test_layering.py.

# Law


@settings(max_examples=15)
@given(arrays(np.float64, 6, elements=st.floats(allow_nan=True, allow_infinity=True)))
def test_graph__draws_any_scores(score: np.ndarray):
    assert ElementTree.fromstring(render_svg(GRAPH, circuit(score=score))) is not None


def test_graph__same_result_gives_the_same_bytes():
    assert render_svg(GRAPH, circuit()) == render_svg(GRAPH, circuit())


def test_graph__every_edge_of_a_large_model_makes_a_small_drawing(rng: np.random.Generator):
    assert len(render_svg(GRAPH, circuit(many(6, 8, rng)))) < 120_000


def test_graph__is_a_picture_for_a_tracker_too():
    assert draw(GRAPH, circuit()).startswith(b"\x89PNG")


# Bad input


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "$\\frac{$", "a & b --> ]]>", '" onload="alert(1)'])
def test_graph__hostile_names_are_text_and_nothing_else(name: str):
    tree = ElementTree.fromstring(render_svg(GRAPH, circuit(((name, "output", 1.0),))))
    assert not [node for node in tree.iter() if node.tag.endswith("script") or "onload" in node.attrib]
    assert name in {node.text for node in tree.iter(f"{SVG}title")}


def test_graph__refuses_a_cycle():
    with pytest.raises(ShapeError, match="must not form a cycle"):
        render_svg(GRAPH, circuit((("a", "b", 1.0), ("b", "a", 1.0))))


def test_graph__refuses_scores_that_are_not_one_per_edge():
    with pytest.raises(ShapeError, match="a sender, a receiver and a score each"):
        render_svg(GRAPH, circuit(score=np.ones(3)))


def test_graph__refuses_intervals_that_are_not_one_per_edge():
    with pytest.raises(ShapeError, match="must have length 6"):
        render_svg(GRAPH, circuit(low=np.ones(3)))


def test_graph__refuses_names_that_are_not_there():
    with pytest.raises(NotFoundError, match="'nodes' is not among"):
        render_svg(Graph(sender="nodes", receiver="receiver", score="score", title=""), circuit())
