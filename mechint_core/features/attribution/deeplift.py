"""DeepLIFT: what each part contributes to the difference between the sample's answer and the baseline's.

    a_j = m_j (z_j - z'_j)        sum_j a_j = f(z) - f(z')  exactly

m are multipliers: the chain rule, with the difference quotient of the two runs in the place of every derivative. The
rules for softmax, normalisation, products and maxima, which close exactly too, are in `_rescale_rules`.

Source: [@shrikumar2017].
Cost: three forward passes and one backward pass per sample; (1 + n_null) times that for `null_samples`.
Chunked over: samples.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from mechint_core.features.attribution._attributed_answer import Answer
from mechint_core.features.attribution._attribution import UnitAttribution, relative_error, summarise
from mechint_core.features.attribution._attribution_question import (
    AttributionConfig,
    Reference,
    Samples,
    check_choices,
    chosen_samples,
)
from mechint_core.features.attribution._baseline import Baseline
from mechint_core.features.attribution._explained import Explained, Gathering
from mechint_core.features.attribution._lockstep import Joining, Listening
from mechint_core.features.attribution._rescale_rules import no_rule
from mechint_core.features.attribution._shuffled_parameters import compare_with_shuffled
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.models import differentiation, memory_remedy

Precision = Literal["float64", "model"]

CLOSED: Final[dict[Precision, float]] = {"float64": 1e-10, "model": 1e-3}
"""How far contributions may miss the change, relative to the answers' size. More is not rounding, but a mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepliftConfig(AttributionConfig):
    """What to attribute to, and from where."""

    baseline: Reference = "zeros"
    """The reference run, if no baseline is given: the site at zero, or at the samples' mean."""
    precision: Precision = "float64"
    """float64 computes on a copy of the model, and contributions add up to its rounding."""

    def __post_init__(self) -> None:
        AttributionConfig.__post_init__(self)
        check_choices(self, baseline=Reference, precision=Precision)


@dataclass(frozen=True, slots=True)
class Deeplift(UnitAttribution):
    """What each part contributes to the difference from the baseline."""

    technique: ClassVar[str] = "deeplift"

    error: Float[np.ndarray, "sample"]
    """Completeness error of each sample."""

    def reading(self) -> str:
        """Say on which parts the answer rests, and that the contributions add up."""
        return f"{self.finding()} Contributions add up to the change within {self.completeness_error:.1e} of it."


def deeplift(
    model: nn.Module,
    inputs: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample"] | None = None,
    baseline: Num[np.ndarray, "..."] | None = None,
    dictionary: SparseDictionary | None = None,
    *,
    config: DeepliftConfig = DeepliftConfig(),
) -> Deeplift:
    """Attribute the difference between two runs of a model to its inputs, a site's units or heads, or latents.

    Use it where many samples are to be explained: it costs a few passes per sample where integrated gradients take
    dozens, and its sum is exact. It follows the two runs only, not what lies between them, and depends on how a
    function is written (a product of a product is not unique); two models that compute the same may differ here.
    A model that passes the answer through a function without a rule is refused, by the name of the function.

    Parameters
    ----------
    model
        Any module; run in eval mode, and left as it was.
    inputs
        Samples first, passed to `model` as its only argument. Integers (tokens) need `config.site`.
    target
        The class to explain for each sample; None: the one the model gives.
    baseline
        Inputs of the reference run, one row for all samples or one each; at a site, what the model computes there.
    dictionary
        Attribute to its latents in place of the site's units; what they leave unexplained is one more part.
    config
        Site, parts, answer.

    Returns
    -------
    Deeplift
        Contributions in units of the answer; `completeness_error` about 1e-12, verified against plain runs of the
        model in every call. Intervals are NaN for one sample; shares NaN if every contribution is 0.

    Raises
    ------
    ShapeError
        If the arrays do not belong together, or do not fit the model, the site, the heads or the dictionary.
    ConfigurationError
        If a function has no rule, or the contributions do not add up (the model depends on its input in a way that
        shows in no function); if integers are to be attributed to, options contradict each other, or a target is not
        a class.
    DegenerateInputError
        If the inputs or the model's outputs are not finite.
    NotFoundError
        If the model has no such site, or does not run it.
    MemoryBudgetError
        If a batch does not fit in memory.

    Notes
    -----
    The rescale rule of the paper; its reveal-cancel rule is not here. Beyond the paper: softmax by the logarithmic
    mean of the two distributions, LayerNorm, RMSNorm, products of two varying quantities (attention) split evenly,
    maxima by the convex combination that closes.

    References
    ----------
    [@shrikumar2017]
    [@adebayo2018]

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=1))
    >>> result = deeplift(model, np.array([[1.0, -2.0]]), np.array([0]), baseline=np.array([[0.5, 1.0]]))
    >>> result.completeness_error < 1e-12
    True
    """
    samples = chosen_samples(inputs, target, baseline, config)
    exact = copy.deepcopy(model).double() if config.precision == "float64" else model
    with memory_remedy(f"Set memory below {config.memory}."):
        found = _explain(exact, samples, dictionary, config)
        compared = compare_with_shuffled(
            exact,
            samples,
            found.target,
            lambda model, few: _explain(model, few, dictionary, config),
            config,
        )
    return Deeplift(
        **summarise(found, compared, config),
        grid=found.grid,
        error=relative_error(found.per_sample.sum(axis=1), found.change),
    )


def _explain(
    model: nn.Module, samples: Samples, dictionary: SparseDictionary | None, config: DeepliftConfig
) -> Explained:
    with differentiation(model):
        precision = torch.float64 if config.precision == "float64" else None
        answer = Answer(model, samples, dictionary, config, precision=precision)
        baseline, gathering = Baseline(answer, config.baseline), Gathering(answer)
        own, start = baseline.ends()  # plain runs: what the contributions must add up to
        for rows in answer.batches(answer.n_samples):
            z = answer.coordinates(answer.inputs[rows])
            gathering.add(_contributions(answer, z, baseline.of(rows, z), rows))
        found = gathering.explained(own - start)
    scale = float((own.abs() + start.abs()).mean())
    off = float(np.abs(found.per_sample.sum(axis=1) - found.change).max())
    if not off <= CLOSED[config.precision] * scale:
        raise no_rule(
            f"contributions that miss the change of the answer by up to {off:.2g}, so it depends on its input past "
            "every function that was met (or, unless precision is float64, by rounding)"
        )
    return found


def _contributions(
    answer: Answer, z: Float[Tensor, "row ..."], start: Float[Tensor, "row ..."], rows: Int[Tensor, "row"]
) -> Float[Tensor, "row ..."]:
    """Return multiplier times difference: the multipliers are a gradient through the rules."""
    with Listening() as baseline_run:
        answer.at(start.detach().clone().requires_grad_(), rows)
    point = z.detach().clone().requires_grad_()
    with Joining(baseline_run.heard):
        value = answer.at(point, rows)
    (multipliers,) = torch.autograd.grad(value.sum(), point)
    return multipliers.double() * (z.double() - start.double())
