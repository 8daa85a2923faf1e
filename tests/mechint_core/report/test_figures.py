"""Drawing declarations."""

import io
import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from mechint_core.errors import NotFoundError, ShapeError
from mechint_core.figure import Barcode, Bars, Curve, Figure, Histogram, Matrix, Scatter, Space, declare
from mechint_core.report.figures import draw, render_row, render_svg
from mechint_core.report.thinning import MAX_LINE_POINTS, pooled, thinned
from mechint_core.store.record import About, ResultKey, StoredResult

Stored = Callable[..., StoredResult]
HOSTILE = ("<script>alert(1)</script>", "$\\frac{$", "a & b --> ]]>", "名前\x00\x1b\ud800", '" onload="alert(1)')


def of_arrays(labels: dict[str, tuple[str, ...]] | None = None, **fields: np.ndarray) -> StoredResult:
    return StoredResult(
        ResultKey("r", "t", "n"), About("", "", "", ()), "", {}, {}, {}, labels or {}, {}, (), {}, fields
    )


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


# Known answer


@pytest.mark.parametrize("index", range(10))
def test_draw__every_declared_kind_becomes_a_png_and_well_formed_svg(
    stored: Stored, every_figure: tuple[dict[str, Any], ...], index: int
):
    result = stored(figures=every_figure)
    image = Image.open(io.BytesIO(draw(result.figures[index], result)))
    assert image.width > 600
    assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 10
    assert ElementTree.fromstring(render_svg(result.figures[index], result)).tag.endswith("svg")


def test_render_svg__draws_a_line_through_the_points_given():
    x, y = np.array([0.0, 1.0, 2.0]), np.array([0.0, 4.0, 2.0])
    svg = render_svg(Curve(y=("y",), x="x", title=""), of_arrays(x=x, y=y))
    path = re.search(r'd="(M [^"]*)"[^>]*stroke: #0077bb', svg)
    assert path
    points = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path[1]), dtype=float)
    height = (points[:, 1] - points[0, 1]) / (points[1, 1] - points[0, 1])
    assert np.allclose(height, [0, 1, 0.5], atol=1e-3)  # coordinates are rounded to 0.01 pixel of some 200


def test_render_svg__writes_in_the_font_of_the_page(stored: Stored):
    assert "DejaVu" not in render_svg(stored().figures[0], stored())


def test_render_svg__marks_step_zero_on_a_logarithmic_axis():
    steps = np.array([0, 1, 10, 100, 1000])
    shown = texts(render_svg(Curve(y=("y",), x="s", log_x=True, title=""), of_arrays(s=steps, y=steps * 1.0)))
    assert {"0", "1", "10", "100", "1k"} <= set(shown)


def test_render_svg__says_how_many_values_a_histogram_leaves_out():
    values = np.array([1.0, 2.0, 3.0, np.nan, np.inf])
    assert "2 of 5 not finite" in texts(render_svg(Histogram(values="v", title=""), of_arrays(v=values)))


def test_render_svg__keeps_the_longest_bars_of_a_barcode_and_says_so():
    bars = np.c_[np.zeros(500), np.linspace(0.1, 5, 500)]
    svg = render_svg(Barcode(bars="b", dimension="d", title=""), of_arrays(b=bars, d=np.ones(500)))
    assert "H1 (50 longest of 500)" in texts(svg)


def test_render_svg__draws_the_largest_of_many_bars_in_their_order_and_says_so():
    values = np.where(np.arange(150) % 10 == 0, -5.0, 0.1)
    labels = tuple(f"head {index}" for index in range(150))
    shown = texts(render_svg(Bars(values="v", labels="head", title=""), of_arrays({"head": labels}, v=values)))
    assert "24 largest of 150" in shown
    assert [text for text in shown if text.startswith("head")] == [
        f"head {i}" for i in range(150) if i % 10 == 0 or i < 10
    ]


def test_render_svg__no_bars_at_all_are_said_to_be_none():
    empty = of_arrays({"edge": ()}, v=np.empty(0))
    assert "there are none" in texts(render_svg(Bars(values="v", labels="edge", title=""), empty))


def test_render_svg__draws_bars_of_numbers_upright_and_all():
    frequencies = tuple(str(index) for index in range(150))
    result = of_arrays({"frequency": frequencies}, v=np.ones(150))
    assert not [
        text for text in texts(render_svg(Bars(values="v", labels="frequency", title=""), result)) if " of " in text
    ]


@pytest.mark.parametrize("null", ["none", "untrained"])
def test_render_svg__draws_the_null_of_a_dose_response_dashed(null: str):
    dose = np.linspace(-2, 2, 5)
    result = of_arrays(dose=dose, effect=3 * dose, low=3 * dose - 1, high=3 * dose + 1, untrained=np.zeros(5))
    result = replace(result, flags={"none": 0.0})
    svg = render_svg(Curve(y=("effect",), x="dose", low="low", high="high", null=null, title=""), result)
    assert {"effect", "null"} <= set(texts(svg))
    assert "stroke-dasharray" in svg
    assert "fill-opacity: 0.16" in svg


def test_render_svg__tells_an_undefined_cell_of_a_signed_map_from_zero():
    labels = {"layer": ("layer 0", "layer 1"), "head": ("head 0", "head 1")}
    figure = Matrix(values="m", x="head", y="layer", diverging=True, title="")
    hole = of_arrays(labels, m=np.array([[0.0, np.nan], [1.0, -0.5]]))
    assert "undefined" in " ".join(texts(render_svg(figure, hole)))
    assert "undefined" not in " ".join(texts(render_svg(figure, of_arrays(labels, m=np.eye(2)))))


def test_render_svg__centres_a_signed_map_of_zeros_at_zero():
    shown = texts(render_svg(Matrix(values="m", diverging=True, title=""), of_arrays(m=np.zeros((1, 4)))))
    assert {"−1", "0", "1"} <= set(shown)


def test_render_svg__a_map_of_one_row_is_low():
    low, high = (render_svg(Matrix(values="m", title=""), of_arrays(m=np.ones((rows, 4)))) for rows in (1, 12))
    assert _height(low) < 0.5 * _height(high)


def _height(svg: str) -> float:
    return float(ElementTree.fromstring(svg).attrib["viewBox"].split()[3])


def test_render_row__gives_neighbours_the_same_axis():
    small, large = of_arrays(y=np.array([0.0, 1.0])), of_arrays(y=np.array([0.0, 100.0]))
    first, second = render_row(Curve(y=("y",), title=""), [small, large])
    assert texts(first) == texts(second)
    assert "100" in texts(first)


# Oracle


def test_pooled__equals_the_mean_of_equal_blocks(rng: np.random.Generator):
    values = rng.normal(size=(400, 600))
    assert np.allclose(pooled(values), values.reshape(200, 2, 200, 3).mean((1, 3)), rtol=1e-12)


# Law


def test_thinned__keeps_the_single_peak_of_a_million_points():
    y = np.zeros(1_000_000)
    y[123_457] = 1.0
    keep = thinned(len(y), y)
    assert len(keep) <= MAX_LINE_POINTS + 2
    assert y[keep].max() == 1.0


@settings(max_examples=18)
@given(
    arrays(np.float64, array_shapes(min_dims=1, max_dims=1, min_side=1, max_side=40)),
    st.sampled_from(
        [
            Curve(y=("v",), title="", log_y=True),
            Histogram(values="v", title="", log_x=True),
            Bars(values="v", labels="", title=""),
        ]
    ),
)
def test_render_svg__draws_any_numbers_without_a_warning(values: np.ndarray, figure: Figure):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ElementTree.fromstring(render_svg(figure, of_arrays(v=values))) is not None


@settings(max_examples=6)
@given(arrays(np.float64, array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=9)))
def test_render_svg__draws_any_matrix_and_any_cloud(values: np.ndarray):
    for figure in (Matrix(values="v", title="", diverging=True), Scatter(points="v", title="")):
        assert ElementTree.fromstring(render_svg(figure, of_arrays(v=values))) is not None


@settings(max_examples=6)
@given(arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(3, 4))))
def test_render_svg__draws_any_cloud_in_space(values: np.ndarray):
    assert ElementTree.fromstring(render_svg(Space(points="v", title=""), of_arrays(v=values))) is not None


def test_render_svg__looks_at_space_from_where_it_says():
    """From azimuth 35 and elevation 25 degrees, an axis at angle t to the line of sight is drawn sin t long."""
    svg = render_svg(Space(points="v", title=""), of_arrays(v=np.eye(3)))
    lines = re.findall(r'd="M ([\d.]+) ([\d.]+) L ([\d.]+) ([\d.]+) "[^>]*--rule', svg)[:3]
    x0, y0, x1, y1 = np.array(lines, dtype=float).T
    length, (a, e) = np.hypot(x1 - x0, y1 - y0), np.radians([35, 25])

    sight = np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])

    np.testing.assert_allclose(length / np.sqrt((length**2).sum() / 2), np.sqrt(1 - sight**2), atol=1e-3)


def test_render_svg__same_result_gives_the_same_bytes(stored: Stored):
    assert render_svg(stored().figures[0], stored()) == render_svg(stored().figures[0], stored())


def test_render_svg__a_drawing_of_large_arrays_stays_small(rng: np.random.Generator):
    big = of_arrays(y=rng.normal(size=1_000_000), m=rng.normal(size=(2000, 2000)), p=rng.normal(size=(100_000, 2)))
    figures = (Curve(y=("y",), title=""), Matrix(values="m", title=""), Scatter(points="p", title=""))
    assert all(len(render_svg(figure, big)) < 250_000 for figure in figures)


def test_draw__threads_do_not_disturb_each_other(stored: Stored):
    result, drawn = stored(), []
    workers = [threading.Thread(target=lambda: drawn.append(draw(result.figures[0], result))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(set(drawn)) == 1


# Bad input


@pytest.mark.parametrize("label", HOSTILE)
def test_render_svg__hostile_labels_are_text_and_nothing_else(label: str):
    result = of_arrays({"site": (label, label, label)}, v=np.arange(3.0), m=np.eye(3))
    for figure in (
        Bars(values="v", labels="site", title=label),
        Matrix(values="m", x="site", y="site", title=label, value_label=label),
    ):
        tree = ElementTree.fromstring(render_svg(figure, result))
        assert not [node for node in tree.iter() if node.tag.endswith("script") or "onload" in node.attrib]
        assert draw(figure, result).startswith(b"\x89PNG")


def test_render_svg__keeps_numbers_inside_labels_as_they_are():
    result = of_arrays({"site": ("v1.23456", "b", "c")}, v=np.arange(3.0))
    assert "v1.23456" in texts(render_svg(Bars(values="v", labels="site", title=""), result))


@pytest.mark.parametrize(
    ("figure", "error", "match"),
    [
        (Curve(y=("nothing_here",), title=""), NotFoundError, "'nothing_here' is not among the arrays"),
        (Curve(y=("cka",), title=""), ShapeError, "must be numbers along 1 axes"),
        (Curve(y=("drift", "recovery"), title=""), ShapeError, "must have one length"),
        (Curve(y=("drift",), x="recovery", title=""), ShapeError, "must have length 30"),
        (Bars(values="recovery", labels="phase", title=""), ShapeError, "a label each"),
        (Matrix(values="drift", title=""), ShapeError, "along 2 axes"),
        (Scatter(points="points", colour="recovery", title=""), ShapeError, "one number per point"),
        (Scatter(points="points", colour="site", title=""), ShapeError, "one label per point"),
        (Space(points="points", title=""), ShapeError, "three coordinates or more"),
        (Barcode(bars="points", dimension="homology", title=""), ShapeError, "birth, death"),
        (Curve(y=("drift",), null="nothing_here", title=""), NotFoundError, "neither an array nor a number"),
        (Curve(y=("drift",), null="recovery", title=""), ShapeError, "must have length 30"),
        (Histogram(values="nothing_here", title=""), NotFoundError, "'nothing_here' is not among the arrays"),
    ],
)
def test_draw__says_what_cannot_be_drawn(stored: Stored, figure: Figure, error: type[Exception], match: str):
    with pytest.raises(error, match=match):
        draw(figure, stored())


def test_draw__refuses_an_unknown_kind(stored: Stored):
    declared: dict[str, Any] = declare(Histogram(values="dimension", title="")) | {"kind": "Pie"}
    with pytest.raises(NotFoundError, match="a figure must be one of Curve"):
        draw(declared, stored())


def test_draw__an_empty_scatter_column_is_refused(stored: Stored):
    result = replace(stored(), arrays={"points": np.zeros((4, 1))})
    with pytest.raises(ShapeError, match="two coordinates or more"):
        draw(Scatter(points="points", title=""), result)
