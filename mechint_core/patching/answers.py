"""How well a model's output gives the answer: the metrics of experiments on prompt pairs.

    logit difference   z_t - z_f            z_t - mean of the others, if no foil f is given
    loss               -log softmax(z)_t    nats
    probability         softmax(z)_t
    kl                 sum_c p_c (log p_c - log softmax(z)_c)    from the clean distribution p, nats
    distance           mean (z - z_clean)^2
    package.module:function    one's own: (values, answer) -> one number per row; in torch, if gradients are wanted

The foil is given or averaged, never the corrupted run's own best class: choosing a class by a run makes that run's
score extreme, and an untrained model would seem to have an effect.

Source: [@zhang2024].
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import log_softmax

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.models import activation_of, load_factory, samples_first

Metric = Literal["logit_difference", "loss", "probability", "kl", "distance"]
METRICS: Final = get_args(Metric)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the right answer to some rows is."""

    target: Int[Tensor, "sample"] | None
    foil: Int[Tensor, "sample"] | None
    clean: Float[Tensor, "sample column"]
    """What the clean runs gave, as `read_output` returns it."""

    def of(self, rows: slice) -> "Answer":
        """Return the answers to `rows`."""
        target = None if self.target is None else self.target[rows]
        foil = None if self.foil is None else self.foil[rows]
        return Answer(target, foil, self.clean[rows])


def check_metric(metric: str) -> None:
    """Raise ConfigurationError unless `metric` is one of ours or written package.module:function."""
    if metric not in METRICS and ":" not in metric:
        raise ConfigurationError(
            f"metric must be one of {', '.join(METRICS)}, or package.module:function. Got {metric!r}."
        )


def needs_target(metric: str) -> bool:
    """Say whether a metric of ours needs the right answer."""
    return metric in ("logit_difference", "loss", "probability")


def read_output(output: Any, metric: str, *, answer_position: int, sample_axis: int) -> Float[Tensor, "sample column"]:
    """Return the logits of the answer per sample, in float64; the whole output, flat, for the distance.

    Raises
    ------
    ShapeError
        If a metric of classes gets an output without a class axis.
    DegenerateInputError
        If the output is not finite.
    """
    values = samples_first(activation_of(output), sample_axis).double()
    if metric == "distance":
        values = values.flatten(1)
    elif values.ndim == 3:
        if not -values.shape[1] <= answer_position < values.shape[1]:
            raise ShapeError(f"answer_position must lie in 0...{values.shape[1] - 1}. Got {answer_position}.")
        values = values[:, answer_position]
    if values.ndim != 2 or (metric in METRICS and values.shape[1] < (1 if metric == "distance" else 2)):
        raise ShapeError(
            f"the model's output must be (sample[, position], class >= 2) for the metric {metric}. "
            f"Got shape {tuple(values.shape)}. Use metric='distance' for a model without classes."
        )
    if not bool(values.isfinite().all()):
        raise DegenerateInputError("the model's output must be finite. Got NaN or infinity.")
    return values


def measure(values: Float[Tensor, "sample column"], answer: Answer, metric: str) -> Float[Tensor, "sample"]:
    """Return the metric of every row; gradients pass.

    Raises
    ------
    ConfigurationError
        If the metric needs a target and there is none, or a target is not a class of the output.
    ShapeError
        If one's own metric does not give one number per row.
    """
    if metric in METRICS:
        return _METRICS[metric](values, answer)
    measured = load_factory(metric)(values, answer)
    if not isinstance(measured, Tensor) or measured.shape != values.shape[:1]:
        raise ShapeError(
            f"the metric {metric!r} must give one number per row, a tensor of shape ({len(values)},). "
            f"Got {tuple(measured.shape) if isinstance(measured, Tensor) else type(measured).__name__}."
        )
    return measured


def score(values: Float[Tensor, "sample column"], answer: Answer, metric: str) -> Float[np.ndarray, "sample"]:
    """Return the metric of every row, as numbers."""
    return measure(values, answer, metric).detach().cpu().numpy()


def _logit_difference(values: Tensor, answer: Answer) -> Tensor:
    right = _at(values, answer.target)
    if answer.foil is not None:
        return right - _at(values, answer.foil)
    return right - (values.sum(dim=1) - right) / (values.shape[1] - 1)


def _loss(values: Tensor, answer: Answer) -> Tensor:
    return -_at(log_softmax(values, dim=1), answer.target)


def _probability(values: Tensor, answer: Answer) -> Tensor:
    return _at(values.softmax(dim=1), answer.target)


def _kl(values: Tensor, answer: Answer) -> Tensor:
    clean = log_softmax(answer.clean, dim=1)
    return (clean.exp() * (clean - log_softmax(values, dim=1))).sum(dim=1)


def _distance(values: Tensor, answer: Answer) -> Tensor:
    return (values - answer.clean).square().mean(dim=1)


def _at(values: Tensor, classes: Tensor | None) -> Tensor:
    if classes is None:
        raise ConfigurationError(
            "this metric needs the target of every pair. Pass target, or use metric='kl' or 'distance'."
        )
    if int(classes.min()) < 0 or int(classes.max()) >= values.shape[1]:
        raise ConfigurationError(
            f"targets must be classes of the output, 0 to {values.shape[1] - 1}. "
            f"Got {int(classes.min())} to {int(classes.max())}."
        )
    return values.gather(1, classes[:, None])[:, 0]


_METRICS: Final[dict[str, Callable[[Tensor, Answer], Tensor]]] = {
    "logit_difference": _logit_difference,
    "loss": _loss,
    "probability": _probability,
    "kl": _kl,
    "distance": _distance,
}
