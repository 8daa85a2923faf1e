"""Curves over training."""

import math
from xml.etree import ElementTree

import pytest

from mechint_core.report.evolution import Series, render_evolution
from mechint_core.result import Estimate


def series(values: list[float], name: str = "mlp", **parts: float) -> Series:
    steps = tuple(0 if i == 0 else 2**i for i in range(len(values)))
    return Series(name, 0, steps, tuple(Estimate(value, **parts) for value in values))


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


# Known answer


def test_render_evolution__shows_value_interval_and_null():
    svg = render_evolution([series([0.1, 0.5, 0.9], low=0.0, high=1.0, null=0.2, p_value=0.001)], "gini over training")
    assert "fill-opacity: 0.16" in svg
    assert "stroke-dasharray" in svg
    assert 'aria-label="gini over training"' in svg
    assert "training step" in texts(svg)


def test_render_evolution__one_enormous_interval_does_not_flatten_the_rest():
    estimates = [Estimate(0.1, 0.0, 0.2), Estimate(0.9, 0.8, 1e9)]
    shown = texts(render_evolution([Series("mlp", 0, (1, 2), tuple(estimates))], ""))
    assert not [text for text in shown if "⁹" in text]


# Oracle: none; a drawing.

# Law


@pytest.mark.parametrize("count", [1, 2, 9, 100])
def test_render_evolution__draws_any_number_of_checkpoints_and_series(count: int):
    many = [series([float(i + j) for i in range(count)], name=str(j), low=0.0, high=9.0) for j in range(count // 8 + 1)]
    assert len(render_evolution(many, "")) < 120_000


# Bad input


def test_render_evolution__says_that_nothing_is_defined():
    assert "undefined at every checkpoint" in texts(render_evolution([series([math.nan, math.nan])], ""))


def test_render_evolution__skips_undefined_and_infinite_values():
    assert ElementTree.fromstring(render_evolution([series([0.1, math.nan, math.inf, 0.3])], "")) is not None
