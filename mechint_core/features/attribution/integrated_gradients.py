"""Integrated gradients: what each part adds to the answer on the straight way from a baseline to the sample.

    a_j = (z_j - z'_j) integral_0^1 df/dz_j (z' + t (z - z')) dt            sum_j a_j = f(z) - f(z')

    midpoint          t_k = (k - 1/2) / n,  weights 1 / n
    Gauss-Legendre    t_k, w_k of n points: exact for smooth f, no better than midpoint across the kinks of ReLU

The number of points n is doubled for the samples whose sum is still off.

Source: [@sundararajan2017].
Cost: at most 2 n forward and backward passes per sample, and n_null x null_samples x `steps` of them for the null.
Chunked over: points on the paths of all samples.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Final, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from mechint_core.errors import ConfigurationError
from mechint_core.features.attribution._attributed_answer import Answer
from mechint_core.features.attribution._attribution import UnitAttribution, relative_error, summarise
from mechint_core.features.attribution._attribution_question import (
    AttributionConfig,
    Reference,
    Samples,
    check_choices,
    check_least,
    chosen_samples,
)
from mechint_core.features.attribution._baseline import Baseline
from mechint_core.features.attribution._explained import Explained, Gathering
from mechint_core.features.attribution._shuffled_parameters import compare_with_shuffled
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.models import differentiation, memory_remedy

Quadrature = Literal["midpoint", "gauss_legendre"]

ROUNDING: Final = 16
"""A sum that is off by less than so many units in the last place of the answer cannot come closer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegratedGradientsConfig(AttributionConfig):
    """What to attribute to, and how close the integral must come."""

    baseline: Reference = "zeros"
    """Where the paths start, if no baseline is given: at zero, or at the samples' mean."""
    quadrature: Quadrature = "midpoint"
    """gauss_legendre needs fewer points in networks without kinks (GELU, tanh)."""
    steps: int = 16
    """Points on each path at first."""
    max_steps: int = 1024
    """Points on a path at most."""
    tolerance: float = 0.01
    """Completeness error of a sample that is small enough: a share of the change of its answer (or, where that is
    smaller, of the mean change)."""

    def __post_init__(self) -> None:
        AttributionConfig.__post_init__(self)
        check_choices(self, baseline=Reference, quadrature=Quadrature)
        check_least(self, {"steps": 1, "max_steps": self.steps})
        if not self.tolerance > 0:
            raise ConfigurationError(f"tolerance must be above 0. Got {self.tolerance}.")


@dataclass(frozen=True, slots=True)
class IntegratedGradients(UnitAttribution):
    """What each part adds to the answer along the straight path from the baseline."""

    technique: ClassVar[str] = "integrated_gradients"

    error: Float[np.ndarray, "sample"]
    """Completeness error of each sample."""
    steps: Int[np.ndarray, "sample"]
    """Points used."""
    converged: bool
    """Whether every sample's completeness error is within the tolerance, or within rounding."""
    n_unconverged: int

    def reading(self) -> str:
        """Say on which parts the answer rests, and whether the integral closed."""
        closed = f"attributions add up to the change within {self.completeness_error:.1e} of it"
        if not self.converged:
            closed = (
                f"for {self.n_unconverged} of {self.n_samples} samples they do not add up to the change (error up to "
                f"{self.completeness_error:.1e}): raise max_steps"
            )
        fewest, most = int(self.steps.min()), int(self.steps.max())
        return f"{self.finding()} With {fewest if fewest == most else f'{fewest} to {most}'} points per path, {closed}."


def integrated_gradients(
    model: nn.Module,
    inputs: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample"] | None = None,
    baseline: Num[np.ndarray, "..."] | None = None,
    dictionary: SparseDictionary | None = None,
    *,
    config: IntegratedGradientsConfig = IntegratedGradientsConfig(),
) -> IntegratedGradients:
    """Attribute a model's answer to its inputs, to the units or heads of a site, or to dictionary features.

    Use it first among the attribution techniques: it asks only for gradients, and its sum is known. It explains the
    change from a baseline, so the baseline is part of the question: zeros may be far from anything the model knows,
    the mean or a counterfactual input is often better. Along the path the model may meet activations it never
    produces. It says what the answer is sensitive to and by how much, not which change of the input would be natural.

    Parameters
    ----------
    model
        Any differentiable module; run in eval mode, and left as it was.
    inputs
        Samples first, passed to `model` as its only argument. Integers (tokens) need `config.site`.
    target
        The class to explain for each sample; None: the one the model gives.
    baseline
        Inputs to start from, one row for all samples or one each; at a site, what the model computes there from them.
    dictionary
        Attribute to its latents in place of the site's units; what they leave unexplained is one more part.
    config
        Site, parts, answer, accuracy.

    Returns
    -------
    IntegratedGradients
        Attributions in units of the answer, summing to its change within `completeness_error`; shares in [0, 1].
        Intervals are NaN for one sample; shares NaN if every attribution is 0.

    Raises
    ------
    ShapeError
        If the arrays do not belong together, or do not fit the model, the site, the heads or the dictionary.
    ConfigurationError
        If integers are to be attributed to, options contradict each other, or a target is not a class.
    DegenerateInputError
        If the inputs or the model's outputs are not finite.
    NotFoundError
        If the model has no such site, or does not run it.
    MemoryBudgetError
        If a batch does not fit in memory.

    Notes
    -----
    The error of a sample is |sum of attributions - change| / max(|change|, mean |change|), so that a sample whose
    answer hardly moves is not held to an impossible accuracy. Sums are float64, gradients in the model's precision.

    References
    ----------
    [@sundararajan2017]
    [@adebayo2018]

    Examples
    --------
    >>> from mechint_core.synthetic.linear_network import LinearNetwork
    >>> model = LinearNetwork((1.0,), n_inputs=3)
    >>> slope = (model.readout.weight @ model.routes[0].weight)[0].detach().numpy()
    >>> x = np.array([[1.0, -2.0, 0.5]])
    >>> result = integrated_gradients(model, x, np.array([0]))
    >>> bool(np.allclose(result.attribution, slope * x[0]))  # of a linear model: weight times input
    True
    """
    samples = chosen_samples(inputs, target, baseline, config)
    roughly = replace(config, max_steps=config.steps)
    with memory_remedy(f"Set memory below {config.memory}."):
        found, steps, closed = _explain(model, samples, dictionary, config)
        compared = compare_with_shuffled(
            model,
            samples,
            found.target,
            lambda model, few: _explain(model, few, dictionary, roughly).found,
            config,
        )
    return IntegratedGradients(
        **summarise(found, compared, config),
        grid=found.grid,
        error=relative_error(found.per_sample.sum(axis=1), found.change),
        steps=steps,
        converged=bool(closed.all()),
        n_unconverged=int((~closed).sum()),
    )


class _Paths(NamedTuple):
    found: Explained
    steps: Int[np.ndarray, "sample"]
    closed: Bool[np.ndarray, "sample"]


def _explain(
    model: nn.Module, samples: Samples, dictionary: SparseDictionary | None, config: IntegratedGradientsConfig
) -> _Paths:
    with differentiation(model):
        answer = Answer(model, samples, dictionary, config)
        baseline, gathering = Baseline(answer, config.baseline), Gathering(answer)
        own, start = baseline.ends()
        change, (steps, closed) = own - start, (list[Tensor](), list[Tensor]())
        allowed = config.tolerance * change.abs().clamp_min(float(change.abs().mean()))
        allowed += ROUNDING * torch.finfo(answer.precision).eps * (own.abs() + start.abs())
        for rows in answer.batches(answer.n_samples):
            attribution, used, off = _until_closed(answer, baseline, rows, change[rows], allowed[rows], config)
            gathering.add(attribution)
            steps.append(used)
            closed.append(off <= allowed[rows])
        return _Paths(gathering.explained(change), torch.cat(steps).cpu().numpy(), torch.cat(closed).cpu().numpy())


def _until_closed(
    answer: Answer,
    baseline: Baseline,
    rows: Int[Tensor, "row"],
    change: Float[Tensor, "row"],
    allowed: Float[Tensor, "row"],
    config: IntegratedGradientsConfig,
) -> tuple[Float[Tensor, "row ..."], Int[Tensor, "row"], Float[Tensor, "row"]]:
    """Return attributions to the coordinates, the points used, and by how much their sum is off."""
    z = answer.coordinates(answer.inputs[rows])
    start = baseline.of(rows, z)
    attribution, off = torch.zeros_like(z, dtype=torch.float64), torch.full_like(change, torch.inf)
    steps, n = torch.zeros_like(rows), config.steps
    while n <= config.max_steps and bool((off > allowed).any()):
        again = torch.nonzero(off > allowed)[:, 0]
        nodes, weights = (torch.from_numpy(each).to(z.device) for each in _points(config.quadrature, n))
        slope = _mean_slope(answer, rows[again], start[again], z[again], nodes, weights)
        attribution[again] = slope * (z[again].double() - start[again].double())
        off[again] = (attribution[again].flatten(1).sum(dim=1) - change[again]).abs()
        steps[again] = n
        n *= 2
    return attribution, steps, off


def _mean_slope(
    answer: Answer,
    rows: Int[Tensor, "row"],
    start: Float[Tensor, "row ..."],
    end: Float[Tensor, "row ..."],
    nodes: Float[Tensor, "point"],
    weights: Float[Tensor, "point"],
) -> Float[Tensor, "row ..."]:
    """Return the weighted mean of df/dz over the points of every path, batch by batch."""
    slope = torch.zeros_like(end, dtype=torch.float64)
    for batch in answer.batches(len(rows) * len(nodes)):
        of, at = batch // len(nodes), batch % len(nodes)
        t = nodes[at].to(end.dtype).reshape(-1, *[1] * (end.ndim - 1))
        point = torch.lerp(start[of], end[of], t).requires_grad_()
        (gradient,) = torch.autograd.grad(answer.at(point, rows[of]).sum(), point)
        slope.index_add_(0, of, gradient.double() * weights[at].reshape(t.shape))
    return slope


@lru_cache(maxsize=32)
def _points(quadrature: Quadrature, n: int) -> tuple[Float[np.ndarray, "point"], Float[np.ndarray, "point"]]:
    """Return points in (0, 1) and weights that sum to 1."""
    if quadrature == "midpoint":
        return (np.arange(n) + 0.5) / n, np.full(n, 1 / n)
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return (nodes + 1) / 2, weights / 2
