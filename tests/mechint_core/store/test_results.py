"""Results: what a technique answered comes back whole, and opens without us."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import xarray
from hypothesis import given, strategies as st
from jaxtyping import Float, Int

from mechint_core.errors import ConfigurationError, CorruptStoreError, NotFoundError, ShapeError, UncommittedError
from mechint_core.figure import Curve, Matrix, declare
from mechint_core.result import Estimate, Result
from mechint_core.store import About, ActivationStore, ResultKey
from mechint_core.store.commit import to_float, to_json


@dataclass(frozen=True, slots=True)
class DriftResult(Result):
    technique = "drift"
    evidence = "Bootstrap interval, permutation null."
    figures = (
        Matrix(values="matrix", title="Similarity", x="sites"),
        Curve(y=("drift", "steps"), title="Drift", log_y=True),
    )

    total: Estimate
    bare: Estimate
    n_nan: int
    converged: bool
    largest: float
    matrix: Float[np.ndarray, "checkpoint other_checkpoint"]
    drift: Float[np.ndarray, "checkpoint"]
    steps: Int[np.ndarray, "checkpoint"]
    nothing: Float[np.ndarray, "bar endpoint"]
    scalar: Float[np.ndarray, ""]
    sites: Annotated[tuple[str, ...], "checkpoint"]

    def reading(self) -> str:
        return f"Drift is {self.total}."


@dataclass(frozen=True, slots=True)
class UnnamedResult(DriftResult):
    unnamed: np.ndarray

    def reading(self) -> str:
        return ""


KEY = ResultKey(run="grokking", technique="drift", name="embed@0~mlp", step=100)
ABOUT = About("How far?", "Use it when.", "Bootstrap.", ("phipson2010", "politis1992"))
PROVENANCE = {"version": 1, "inputs": {"x": "abc"}, "cache_key": "k1", "seconds": 0.5}


def answer(**changes: object) -> DriftResult:
    values = {
        "total": Estimate(0.5, 0.1, 0.9, 0.2, 0.01),
        "bare": Estimate(math.inf, low=-math.inf),
        "n_nan": 3,
        "converged": True,
        "largest": math.nan,
        "matrix": np.array([[1.0, np.nan], [-np.inf, 1.0]], np.float32),
        "drift": np.array([0.1, 0.2]),
        "steps": np.array([0, 100]),
        "nothing": np.zeros((0, 2)),
        "scalar": np.array(4.0),
        "sites": ("embed", "mlp"),
    }
    return DriftResult(**{**values, **changes})


def write(store: ActivationStore, result: Result | None = None, key: ResultKey = KEY, **provenance: object) -> str:
    config = {"n_draws": 100, "metric": "cosine", "window": (1, 2), "limit": math.inf}
    return store.write_result(
        key, result or answer(), about=ABOUT, config=config, provenance={**PROVENANCE, **provenance}
    )


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ActivationStore]:
    store = ActivationStore(tmp_path / "store" if request.param == "local" else f"memory://results-{tmp_path.name}")
    yield store
    if request.param == "memory":
        store.place.files.rm(store.place.full(""), recursive=True)


# Known answer


def test_write_result__everything_comes_back(store):
    digest = write(store)
    stored, made = store.result(KEY), answer()
    assert (stored.key, stored.about, stored.reading) == (KEY, ABOUT, made.reading())
    assert stored.config == {"n_draws": 100, "metric": "cosine", "window": [1, 2], "limit": "Infinity"}
    assert repr(stored.estimates) == repr(made.estimates())  # NaN and infinite parts too
    assert repr(stored.flags) == repr(made.flags())
    assert stored.labels == made.labels()
    assert stored.axes == {name: axes for name, axes in DriftResult.axes().items() if name in made.arrays()}
    assert list(stored.figures) == [declare(figure) for figure in made.figures]
    assert set(stored.arrays) == set(made.arrays())
    for name, values in made.arrays().items():
        np.testing.assert_array_equal(stored.arrays[name], values)
        assert stored.arrays[name].dtype == values.dtype
    assert stored.provenance == {**PROVENANCE, "digest": digest, "made_at": stored.provenance["made_at"]}
    assert store.result_provenance(KEY) == stored.provenance


def test_results__are_found_by_run_and_technique(store):
    keys = [
        ResultKey("a", "cka", "embed", 5),
        ResultKey("a", "cka", "embed", 10),
        ResultKey("a", "drift", "embed", 10),
        ResultKey("a", "cka", "embed"),
        ResultKey("b", "cka", "embed", 0),
    ]
    for key in reversed(keys):
        write(store, key=key)
    assert store.results() == keys
    assert store.results(run="b") == keys[4:]
    assert store.results(run="a", technique="cka") == [keys[0], keys[1], keys[3]]
    assert store.results(run="c") == []


# Oracle


@pytest.mark.filterwarnings("ignore:Object at commit.json is not recognized")  # zarr, of every file that is not its own
def test_xarray__opens_a_result_with_named_axes_and_attributes(tmp_path):
    store = ActivationStore(tmp_path)
    write(store)
    path = tmp_path / "results/grokking/0000000100/drift/embed@0~mlp"
    with xarray.open_zarr(path, consolidated=False, chunks=None) as opened:
        assert opened["matrix"].dims == ("checkpoint", "other_checkpoint")
        np.testing.assert_array_equal(opened["matrix"].values, answer().matrix)
        assert opened.attrs["estimates"]["total"]["value"] == 0.5
        assert opened.attrs["provenance"]["cache_key"] == "k1"
    json.loads((path / "zarr.json").read_text(), parse_constant=pytest.fail)  # strict JSON: no bare NaN


# Law


def test_write_result__the_same_answer_has_the_same_digest_whenever_it_is_made(store):
    first = write(store)
    assert write(store, seconds=9.0) == first
    assert store.result(KEY).provenance["seconds"] == 9.0
    assert write(store, answer(n_nan=4)) != first
    assert write(store, answer(drift=np.array([0.1, 0.3]))) != first


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_to_json__is_strict_and_to_float_undoes_it(number):
    written = json.dumps(to_json(number), allow_nan=False)
    assert repr(to_float(json.loads(written))) == repr(number)


# Bad input


def test_result__says_what_there_is_instead(store):
    write(store)
    assert store.result_provenance(ResultKey("grokking", "drift", "mlp", 100)) is None
    with pytest.raises(NotFoundError, match=r"no 'mlp' in results/grokking/0000000100/drift\. There is: embed@0~mlp"):
        store.result(ResultKey("grokking", "drift", "mlp", 100))
    with pytest.raises(NotFoundError, match=r"no 'all' in results/grokking\. There is: 0000000100"):
        store.result(ResultKey("grokking", "drift", "mlp"))


def test_result__refuses_what_was_never_committed(store):
    write(store)
    path = "results/grokking/0000000100/drift/embed@0~mlp"
    store.place.remove(f"{path}/commit.json")
    assert store.results() == []
    assert store.result_provenance(KEY) is None
    with pytest.raises(UncommittedError, match="must be committed"):
        store.result(KEY)


@pytest.mark.parametrize(("old", "new"), [(b'"value": 0.5', b'"value": 0.6'), (b'"k1"', b'"k2"'), (b"{", b"[")])
def test_result__refuses_attributes_that_were_changed(store, old, new):
    write(store)
    path = "results/grokking/0000000100/drift/embed@0~mlp/zarr.json"
    text = store.place.read(path)
    assert old in text
    store.place.write(path, text.replace(old, new))
    with pytest.raises(CorruptStoreError, match="must be as it was written"):
        store.result(KEY)


def test_write_result__refuses_what_cannot_be_stored_and_commits_nothing(store):
    values = {each.name: getattr(answer(), each.name) for each in fields(DriftResult)}
    with pytest.raises(ConfigurationError, match=r"UnnamedResult.unnamed must be annotated with its axes"):
        write(store, UnnamedResult(**values, unnamed=np.zeros(3)))
    with pytest.raises(ConfigurationError, match="must be JSON"):
        write(store, answer(), model=object())
    assert list(store.ls()) == []


def test_write_result__refuses_an_array_without_an_axis_name_for_each_axis(store):
    wrong = answer()
    object.__setattr__(wrong, "drift", np.zeros((2, 2)))
    with pytest.raises(ShapeError, match="drift must have one axis name per axis"):
        write(store, wrong)
    assert list(store.ls()) == []
