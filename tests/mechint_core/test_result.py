"""A Result's annotations say everything that storage, tracking and report need."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pytest
from jaxtyping import Float

from mechint_core import errors
from mechint_core.result import NAN, Estimate, Result


@dataclass(frozen=True, slots=True)
class Example(Result):
    technique: ClassVar[str] = "example"
    evidence: ClassVar[str] = "None."

    slope: Estimate
    n_nan: int
    converged: bool
    matrix: Float[np.ndarray, "checkpoint other_checkpoint"]
    site: Annotated[tuple[str, ...], "site"]

    def reading(self) -> str:
        return f"The slope is {self.slope}."


def example() -> Example:
    slope = Estimate(1.0, 0.5, 1.5, 0.0, 0.01)
    return Example(slope=slope, n_nan=3, converged=True, matrix=np.eye(2), site=("a", "b"))


def test_scalars__are_flat_and_leave_out_what_does_not_apply():
    assert example().scalars() == {
        "slope": 1,
        "slope.low": 0.5,
        "slope.high": 1.5,
        "slope.null": 0,
        "slope.p_value": 0.01,
        "n_nan": 3,
        "converged": 1,
    }
    assert Estimate(2.0).parts() == {"": 2}


def test_arrays_and_labels__have_named_axes():
    assert list(example().arrays()) == ["matrix"]
    assert Example.axes() == {"matrix": ("checkpoint", "other_checkpoint")}
    assert example().labels() == {"site": ("a", "b")}


def test_estimate__reads_as_a_sentence_part():
    assert str(example().slope) == "1 [0.5, 1.5], null 0, p = 0.01"
    assert str(Estimate(0.25)) == "0.25"
    assert np.isnan(NAN)


def test_result__is_frozen():
    with pytest.raises(AttributeError):
        example().n_nan = 4  # type: ignore[misc]


def test_errors__are_builtins_too_and_are_drawn_in_the_docstring():
    raised = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]

    for each in raised:
        assert issubclass(each, errors.MechintError)
        assert each.__name__ in (errors.__doc__ or "")
    assert issubclass(errors.ShapeError, ValueError)
    assert issubclass(errors.NotFoundError, LookupError)
