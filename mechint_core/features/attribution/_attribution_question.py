"""What attribution techniques are asked: which samples, which number, which parts, and how sure to be."""

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.random import generator

Objective = Literal["logit", "logit_difference", "loss", "output"]
Kind = Literal["unit", "position", "both"]
Reference = Literal["zeros", "mean"]

_LEAST: Final = {"n_heads": 0, "max_samples": 1, "memory": 1, "n_bootstrap": 1, "n_null": 0, "null_samples": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionConfig:
    """What an answer is attributed to, which answer, and how sure to be."""

    site: str = ""
    """Module whose activation the answer is attributed to, or one position of it as `name@position`. Empty: the site
    the dictionary was trained on, or the model's input, which must be floats then."""
    parts: Kind = "unit"
    """What a part is: a unit (positions summed), a position (units summed), or a unit at a position. With a
    dictionary, a latent takes the place of a unit, and what the latents leave unexplained is one more."""
    n_heads: int = 0
    """If above 0, the units are this many heads side by side, and a head takes the place of a unit."""
    objective: Objective = "logit"
    """The number to explain: the target's logit; that less the mean of the other logits; the cross-entropy in nats;
    or the output of a model that gives one number per sample."""
    answer_position: int = -1
    """Where a model with one row of logits per position gives the answer."""
    sample_axis: int = 0
    """Where the model keeps its samples: 1 for PyTorch layers with `batch_first=False`. The arrays have them first."""
    max_samples: int = 256
    """Of more samples than this, so many are drawn."""
    memory: int = 256 * 2**20
    """Bytes that one batch may keep for the backward pass."""
    n_bootstrap: int = 200
    """Bootstrap draws of the samples, for intervals."""
    n_null: int = 19
    """Copies of the model with shuffled parameters to compare with; 19 allow p = 0.05, 0 leaves the null out."""
    null_samples: int = 32
    """Samples on which these are compared."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names all draws."""

    def __post_init__(self) -> None:
        check_choices(self, parts=Kind, objective=Objective)
        check_least(self, _LEAST)
        if self.sample_axis not in (0, 1):
            raise ConfigurationError(f"sample_axis must be 0 or 1. Got {self.sample_axis}.")
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level must lie strictly between 0 and 1. Got {self.level}.")


def check_choices(config: Any, **choices: Any) -> None:
    """Refuse a field whose value is not among those of its Literal."""
    for name, kind in choices.items():
        if getattr(config, name) not in get_args(kind):
            raise ConfigurationError(
                f"{name} must be one of {', '.join(get_args(kind))}. Got {getattr(config, name)!r}."
            )


def check_least(config: Any, least: dict[str, int]) -> None:
    """Refuse a field below its least value."""
    for name, bound in least.items():
        if getattr(config, name) < bound:
            raise ConfigurationError(f"{name} must be at least {bound}. Got {getattr(config, name)}.")


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples to explain."""

    inputs: np.ndarray
    target: np.ndarray | None
    baseline: np.ndarray | None
    """Inputs to start from: one row for all samples, or one each."""

    def first(self, n: int) -> "Samples":
        """Return the first `n` samples."""
        target = None if self.target is None else self.target[:n]
        return Samples(self.inputs[:n], target, _rows_of(self.baseline, slice(n), len(self.inputs)))


def chosen_samples(
    inputs: np.ndarray, target: np.ndarray | None, baseline: np.ndarray | None, config: AttributionConfig
) -> Samples:
    """Check the arrays, and draw `max_samples` of the samples where there are more."""
    if inputs.ndim < 2 or len(inputs) < 1:
        raise ShapeError(f"inputs must be (sample >= 1, ...). Got shape {inputs.shape}.")
    if target is not None and target.shape != inputs.shape[:1]:
        raise ShapeError(f"target must be one class per sample, ({len(inputs)},). Got shape {target.shape}.")
    if baseline is not None and (
        baseline.shape[1:] != inputs.shape[1:] or baseline.shape[:1] not in ((1,), inputs.shape[:1])
    ):
        raise ShapeError(
            f"baseline must be inputs of the model, (1 or {len(inputs)}, {', '.join(map(str, inputs.shape[1:]))}). "
            f"Got shape {baseline.shape}."
        )
    check_finite("inputs", inputs)
    if baseline is not None:
        check_finite("baseline", baseline)
    if len(inputs) <= config.max_samples:
        return Samples(inputs, target, baseline)
    rows = np.sort(generator(config.seed, "samples").permutation(len(inputs))[: config.max_samples])
    return Samples(inputs[rows], None if target is None else target[rows], _rows_of(baseline, rows, len(inputs)))


def _rows_of(baseline: np.ndarray | None, rows: Any, n_samples: int) -> np.ndarray | None:
    """Return the baselines of some samples; the one of all samples stays."""
    return baseline[rows] if baseline is not None and len(baseline) == n_samples else baseline


def check_finite(name: str, array: np.ndarray) -> None:
    """Refuse NaN and infinity."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DegenerateInputError(
            f"{name} must be finite. Got {int((~np.isfinite(array)).sum())} NaN or infinite values."
        )
