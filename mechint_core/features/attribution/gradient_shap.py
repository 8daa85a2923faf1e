"""Gradient SHAP (expected gradients): integrated gradients over a whole background set instead of one baseline.

    a_j = E_{z' ~ background, t ~ U(0, 1)} [ (z_j - z'_j) df/dz_j (z' + t (z - z')) ]
    sum_j a_j = f(z) - E f(z')                                                          in expectation

The draws of a sample take every background row equally often, and one t from each of n equal parts of (0, 1): unbiased,
and less noisy than independent draws. The standard error is that of independent draws, so it is rather too large.

Source: [@erion2021], after [@lundberg2017].
Cost: n_draws forward and backward passes and n_draws forward passes per sample.
Chunked over: draws of all samples.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from mechint_core.errors import ShapeError
from mechint_core.features.attribution._attributed_answer import Answer
from mechint_core.features.attribution._attribution import UnitAttribution, summarise
from mechint_core.features.attribution._attribution_question import (
    AttributionConfig,
    Samples,
    check_finite,
    check_least,
    chosen_samples,
)
from mechint_core.features.attribution._explained import Explained, Gathering
from mechint_core.features.attribution._shuffled_parameters import compare_with_shuffled
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.models import differentiation, memory_remedy
from mechint_core.random import generator

ROUGH_DRAWS = 8
"""Draws per sample for the null."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientShapConfig(AttributionConfig):
    """What to attribute to, and how many draws to take."""

    n_draws: int = 64
    """Points per sample, each with a background row of its own."""
    max_background: int = 128
    """Of more background rows than this, so many are drawn."""

    def __post_init__(self) -> None:
        AttributionConfig.__post_init__(self)
        check_least(self, {"n_draws": 2, "max_background": 1})


@dataclass(frozen=True, slots=True)
class GradientShap(UnitAttribution):
    """What each part adds to the answer, compared with a background."""

    technique: ClassVar[str] = "gradient_shap"

    standard_error: Float[np.ndarray, "part"]
    """Of the mean attribution, by the draws (the intervals are by the samples)."""
    completeness_z: float
    """Root mean square over samples of (sum of attributions - change) / standard error. At most about 1 if the
    standard errors are right."""
    n_background: int

    def reading(self) -> str:
        """Say on which parts the answer rests, and how much noise the draws leave."""
        size = float(np.abs(self.attribution).max())
        noise = f"{self.standard_error.max() / size:.1%} of the largest attribution" if size else "0"
        return (
            f"{self.finding()} Against {self.n_background} background rows; the draws leave a standard error of at "
            f"most {noise}, and a sample's sum off by up to {self.completeness_error:.1e} of its change."
        )


def gradient_shap(
    model: nn.Module,
    inputs: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample"] | None = None,
    background: Num[np.ndarray, "row ..."] | None = None,
    dictionary: SparseDictionary | None = None,
    *,
    config: GradientShapConfig = GradientShapConfig(),
) -> GradientShap:
    """Attribute what sets a sample's answer apart from the answers to a background set.

    Use it when no single baseline is neutral: the background says what is usual. It approximates Shapley values of
    the units, exactly so where the model is linear between background and sample; `shapley_values` is the reference.
    Like them it explains the deviation from the background, so a part that never varies gets nothing.

    Parameters
    ----------
    model
        Any differentiable module; run in eval mode, and left as it was.
    inputs
        Samples first, passed to `model` as its only argument. Integers (tokens) need `config.site`.
    target
        The class to explain for each sample; None: the one the model gives.
    background
        Inputs of the model to compare with; None: the samples themselves.
    dictionary
        Attribute to its latents in place of the site's units; what they leave unexplained is one more part.
    config
        Site, parts, answer, draws.

    Returns
    -------
    GradientShap
        Attributions in units of the answer, with intervals over samples and standard errors over draws. Intervals
        are NaN for one sample; shares NaN if every attribution is 0.

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
    Of a site that does not carry the whole answer, f(z') has the background's activation at the site and the sample's
    own everywhere else; the change is measured on the very rows that were drawn.

    References
    ----------
    [@erion2021]
    [@lundberg2017]
    [@adebayo2018]

    Examples
    --------
    >>> from mechint_core.synthetic.linear_network import LinearNetwork
    >>> model = LinearNetwork((1.0,), n_inputs=3)
    >>> slope = (model.readout.weight @ model.routes[0].weight)[0].detach().numpy()
    >>> x, usual = np.array([[1.0, -2.0, 0.5]]), np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> result = gradient_shap(model, x, np.array([0]), usual)
    >>> bool(np.allclose(result.attribution, slope * (x[0] - usual.mean(axis=0))))  # of a linear model
    True
    """
    samples = chosen_samples(inputs, target, None, config)
    usual = _background(samples, background, config)
    roughly = replace(config, n_draws=min(ROUGH_DRAWS, config.n_draws))
    with memory_remedy(f"Set memory below {config.memory}."):
        found, standard_error, completeness_z = _explain(model, samples, usual, dictionary, config)
        compared = compare_with_shuffled(
            model,
            samples,
            found.target,
            lambda model, few: _explain(model, few, usual, dictionary, roughly).found,
            config,
        )
    return GradientShap(
        **summarise(found, compared, config),
        grid=found.grid,
        standard_error=standard_error,
        completeness_z=completeness_z,
        n_background=len(usual),
    )


def _background(samples: Samples, background: np.ndarray | None, config: GradientShapConfig) -> np.ndarray:
    usual = samples.inputs if background is None else background
    if usual.ndim < 2 or usual.shape[1:] != samples.inputs.shape[1:] or len(usual) < 1:
        raise ShapeError(
            f"background must be inputs of the model, (row >= 1, {', '.join(map(str, samples.inputs.shape[1:]))}). "
            f"Got shape {usual.shape}."
        )
    check_finite("background", usual)
    order = generator(config.seed, "gradient_shap", "background").permutation(len(usual))
    return usual[np.sort(order[: config.max_background])]


class _Draws(NamedTuple):
    found: Explained
    standard_error: Float[np.ndarray, "part"]
    completeness_z: float


def _explain(
    model: nn.Module,
    samples: Samples,
    usual: np.ndarray,
    dictionary: SparseDictionary | None,
    config: GradientShapConfig,
) -> _Draws:
    with differentiation(model):
        answer = Answer(model, samples, dictionary, config)
        gathering, starts = Gathering(answer), _coordinates_of(answer, usual)
        which, t = (torch.from_numpy(each).to(starts.device) for each in _draws(answer.n_samples, len(usual), config))
        changes, variances, scores = list[Tensor](), list[Tensor](), list[Tensor]()
        for rows in answer.batches(answer.n_samples):
            z = answer.coordinates(answer.inputs[rows])
            moments = _Moments(answer, gathering, z, rows, config.n_draws)
            for batch in answer.batches(len(rows) * config.n_draws):
                of, draw = batch // config.n_draws, batch % config.n_draws
                moments.add(of, starts[which[rows[of], draw]], t[rows[of], draw])
            gathering.add(moments.mean)
            changes.append(moments.change)
            variances.append(moments.variance)
            scores.append(moments.score)
        per_part = torch.cat(variances).sum(dim=0).sqrt() / answer.n_samples
        z_score = float(torch.cat(scores).square().mean().sqrt())
        return _Draws(gathering.explained(torch.cat(changes)), per_part.cpu().numpy(), z_score)


class _Moments:
    """Mean and variance over the draws of a few samples."""

    def __init__(
        self,
        answer: Answer,
        gathering: Gathering,
        z: Float[Tensor, "row ..."],
        rows: Int[Tensor, "row"],
        n_draws: int,
    ) -> None:
        self._answer, self._parts, self._z, self._rows, self._n = answer, gathering.parts, z, rows, n_draws
        self._end = answer.values(z, rows)
        self.mean = torch.zeros_like(z, dtype=torch.float64)
        self._start = torch.zeros_like(self._end)
        self._first = self._start.new_zeros(len(z), len(self._parts.names))
        self._second, self._off = torch.zeros_like(self._first), torch.zeros_like(self._start)

    def add(self, of: Int[Tensor, "draw"], start: Float[Tensor, "draw ..."], t: Float[Tensor, "draw"]) -> None:
        """Take one draw each of the samples `of`: a background row's coordinates, and how far to go from it."""
        end, rows = self._z[of], self._rows[of]
        t = t.to(end.dtype).reshape(-1, *[1] * (end.ndim - 1))
        point = torch.lerp(start, end, t).requires_grad_()
        (gradient,) = torch.autograd.grad(self._answer.at(point, rows).sum(), point)
        drawn = gradient.double() * (end.double() - start.double())
        value, parts = self._answer.values(start, rows), self._parts.sums(drawn)
        self.mean.index_add_(0, of, drawn / self._n)
        self._start.index_add_(0, of, value / self._n)
        self._first.index_add_(0, of, parts / self._n)
        self._second.index_add_(0, of, parts.square() / self._n)
        off = parts.sum(dim=1) - (self._end[of] - value)
        self._off.index_add_(0, of, off.square() / self._n)

    @property
    def change(self) -> Float[Tensor, "row"]:
        """f(z) less the mean of f over the background rows drawn."""
        return self._end - self._start

    @property
    def variance(self) -> Float[Tensor, "row part"]:
        """Squared standard error of the mean over draws."""
        return (self._second - self._first.square()).clamp_min(0) / (self._n - 1)

    @property
    def score(self) -> Float[Tensor, "row"]:
        """(Sum of attributions - change) / its standard error; 0 where both are rounding."""
        off = self._first.sum(dim=1) - self.change
        error = ((self._off - off.square()).clamp_min(0) / (self._n - 1)).sqrt()
        rounding = torch.finfo(self._z.dtype).eps * (self._end.abs() + self._start.abs() + self._first.abs().sum(dim=1))
        return torch.where(error > rounding, off / error.clamp_min(torch.finfo(error.dtype).tiny), 0)


def _coordinates_of(answer: Answer, usual: np.ndarray) -> Float[Tensor, "row ..."]:
    given = answer.tensor(usual)
    return torch.cat([answer.coordinates(given[rows]) for rows in answer.batches(len(given))])


def _draws(
    n_samples: int, n_background: int, config: GradientShapConfig
) -> tuple[Int[np.ndarray, "sample draw"], Float[np.ndarray, "sample draw"]]:
    """Return for each draw its background row, each as often as the others, and its t, one in each of n parts."""
    rng, n = generator(config.seed, "gradient_shap", "draws"), config.n_draws
    rounds = [np.tile(np.arange(n_background), (n_samples, 1)) for _ in range(-(-n // n_background))]
    which = np.concatenate([rng.permuted(each, axis=1) for each in rounds], axis=1)[:, :n]
    return which, (np.arange(n) + rng.random((n_samples, n))) / n
