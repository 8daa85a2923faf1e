"""`record`: write a ratio into docs/reference/benchmarks.md, with machine and versions, and hold it to its bar."""

import json
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "benchmarks.md"
FIGURES = PAGE.with_suffix(".json")
STACK = ("torch", "numpy", "scipy", "numba", "zarr", "dask", "prefect", "mlflow", "antropy", "rsatoolbox")

Record = Callable[..., None]


@pytest.fixture
def record() -> Record:
    """`record(name, ratio, bar, *, unit, note)`: smaller is better; above the bar the benchmark fails."""

    def write(name: str, ratio: float, bar: float, *, unit: str = "x peer's CPU time", note: str = "") -> None:
        figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
        figures[name] = {
            "ratio": round(ratio, 3),
            "bar": bar,
            "unit": unit,
            "note": note,
            "load": round(os.getloadavg()[0], 1),
            "at": datetime.now(UTC).strftime("%Y-%m-%d"),
        }
        FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
        PAGE.write_text(page(figures))
        assert ratio <= bar, f"{name}: {ratio:.3f} {unit}, bar {bar}"

    return write


def page(figures: dict[str, dict[str, object]]) -> str:
    columns = ("ratio", "bar", "unit", "note", "load", "at")
    rows = [
        "| " + " | ".join([name, *(str(each[column]) for column in columns)]) + " |"
        for name, each in sorted(figures.items())
    ]
    stack = ", ".join(f"{name} {version(name)}" for name in STACK)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    return (
        f"""# Benchmarks

Written by `make bench`. Each figure is a ratio to a named peer or to the arithmetic floor, measured in the same run;
smaller is better. Load is the machine's one-minute load when the figure was taken: far above 1, distrust it.

Machine: {machine}.
Versions: {stack}.

| what | ratio | bar | unit | note | load | date |
|---|---|---|---|---|---|---|
"""
        + "\n".join(rows)
        + "\n"
    )
