"""Stored results as the report receives them, made up."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest

from mechint_core.figure import Barcode, Bars, Curve, Graph, Histogram, Matrix, Scatter, Space, declare
from mechint_core.result import Estimate
from mechint_core.store.record import About, ResultKey, StoredResult

LABELS = {
    "site": ("embed", "blocks.0.mlp", "unembed"),
    "phase": ("memorisation",) * 15 + ("cleanup",) * 15,
    "sender": ("input", "input", "layers.0.attention.1", "layers.0.attention.1"),
    "receiver": ("layers.0.attention.1:value", "output", "layers.0.mlp", "output"),
}
FIGURES: Final = (
    Curve(y=("drift", "loss"), x="step", low="low", high="high", marks="marks", log_x=True, title="Drift"),
    Matrix(values="cka", x="step", y="step", value_label="CKA", title="Similarity"),
    Matrix(values="signed", x="site", y="site", diverging=True, title="Together"),
    Bars(values="recovery", labels="site", low="less", high="more", null="nothing", title="Recovery"),
    Scatter(points="points", colour="angle", closed=True, title="Cloud"),
    Scatter(points="points", colour="phase", title="Path"),
    Space(points="coil", colour="angle", title="Coil"),
    Histogram(values="dimension", title="Dimension", log_x=True),
    Barcode(bars="bars", dimension="homology", band="band", title="Barcode"),
    Graph(sender="sender", receiver="receiver", score="score", kept="kept", title="Circuit"),
)


def example_arrays() -> dict[str, np.ndarray]:
    turn = np.linspace(0, 2 * np.pi, 30)
    step = np.array([0, *np.geomspace(1, 2000, 29).astype(int)])
    return {
        "step": step,
        "drift": np.sin(turn) + 1,
        "loss": np.exp(-turn),
        "low": np.sin(turn),
        "high": np.sin(turn) + 2,
        "marks": np.array([131.0, 700.0]),
        "cka": np.exp(-np.abs(turn[:, None] - turn)),
        "signed": np.array([[1, -0.5, 0], [-0.5, 1, np.nan], [0, np.nan, 1]]),
        "recovery": np.array([0.1, 0.9, 1.0]),
        "less": np.array([0.0, 0.8, 0.9]),
        "more": np.array([0.2, 1.0, 1.1]),
        "nothing": np.zeros(3),
        "points": np.c_[np.cos(turn), np.sin(turn)],
        "coil": np.c_[np.cos(turn), np.sin(turn), turn / 2],
        "angle": turn,
        "dimension": np.r_[np.linspace(1, 2, 60), np.nan, -1.0],
        "bars": np.array([[0, 0.2], [0, np.inf], [0.3, 1.9], [0.4, 0.5]]),
        "homology": np.array([0, 0, 1, 1]),
        "score": np.array([0.8, -0.1, 0.02, 0.5]),
        "kept": np.array([True, True, False, True]),
    }


@pytest.fixture
def every_figure() -> tuple[dict[str, Any], ...]:
    """Declare one figure of every kind, some twice, over the arrays of `stored`."""
    return tuple(declare(figure) for figure in FIGURES)


@pytest.fixture
def stored() -> Callable[..., StoredResult]:
    """Make a result of `technique` at `name` and `step`; any other field can be given."""

    def make(
        technique: str = "drift", name: str = "blocks.0.mlp", step: int | None = None, **fields: Any
    ) -> StoredResult:
        given: dict[str, Any] = {
            "about": About(
                "How far does it move?",
                "Use it on `aligned` samples. It cannot tell why.",
                "95 % bootstrap interval; the null is a shuffle.",
                ("phipson2010",),
            ),
            "reading": "It moves at the transition.",
            "config": {"n_draws": 200, "seed": 0},
            "estimates": {"peak": Estimate(0.8, 0.7, 0.9, 0.1, 0.005), "total": Estimate(3.0)},
            "flags": {"n_nan": 2.0, "band": 0.15},
            "labels": LABELS,
            "axes": {},
            "figures": (declare(FIGURES[0]),),
            "provenance": {"version": 1, "inputs": {"activations": "ab" * 32}, "seconds": 1.5},
            "arrays": example_arrays(),
        }
        return StoredResult(key=ResultKey("run", technique, name, step), **(given | fields))

    return make
