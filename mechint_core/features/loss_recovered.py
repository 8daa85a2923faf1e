"""How much of a model's answer survives when a dictionary's reconstruction takes an activation's place.

The model runs with y_hat written at the dictionary's site, and with two ends to compare with: zero and the mean.

    recovered       = (L_end - L_dictionary) / (L_end - L_clean)        L: cross-entropy with the target
    kept            = 1 - D_dictionary / D_end                          D: divergence from the clean output

D is the Kullback-Leibler divergence KL(clean || spliced) for outputs that are classes, and the mean squared difference
for outputs that are values. Numerator and denominator are summed over samples (all their positions) before they are
divided, and nothing is clipped: below 0 the reconstruction does worse than the end, above 1 better than the activation.

The null is random directions with the dictionary's size and L0, spliced in the same way (`_control_dictionaries.py`).

Source: [@bricken2023], [@gao2024] for the loss; [@marks2024] for the spliced runs.
Cost: 5 forwards of all samples, and (2 + n_null) of `control_samples`. Chunked over: samples.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.features._bootstrap_counts import bootstrap_counts
from mechint_core.features._control_dictionaries import fit_control, random_directions, untrained_directions
from mechint_core.features._run_ratios import RUNS, RunRatios
from mechint_core.features._spliced_runs import Batch, Output, Place, Scores, SplicedRuns, Write, next_tokens, place_of
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.figure import Bars, Figure
from mechint_core.models import inference, memory_remedy
from mechint_core.random import generator
from mechint_core.result import Estimate, Result

ROUNDING: Final = 32 * float(np.finfo(np.float32).eps)
"""Differences of losses below this share of the losses are rounding of float32 forwards."""
CONTROL_CODES: Final = 2**24
"""Codes that a control is fitted to, at most: vectors are thinned out beyond that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossRecoveredConfig:
    """Where to splice, and how to score the output."""

    site: str = ""
    """Module whose output the dictionary reads, or `name@position` for one position. Empty: the dictionary's own."""
    written_site: str = ""
    """Module whose output it replaces, for a transcoder. Empty: the one it reads."""
    output: Output = "classes"
    """classes: the output is (sample[, position], class), logits. values: any numbers."""
    next_token: bool = False
    """The target is the next position of the inputs, as for language models. Leave `target` out then."""
    answer_position: int | None = None
    """Score one position of the output; None: all of them (where the mask is not 0)."""
    mask_name: str = "attention_mask"
    """Parameter of the model's forward that takes `mask`."""
    sample_axis: int = 0
    """Where the model keeps its samples: 1 for PyTorch layers with `batch_first=False`. The arrays have them first."""
    batch_size: int = 256
    """Samples per forward."""
    n_bootstrap: int = 200
    """Bootstrap draws of the samples, for intervals."""
    n_null: int = 19
    """Random dictionaries to splice; 19 allow p = 0.05."""
    control_samples: int = 256
    """Samples that means and controls are fitted to, and random dictionaries spliced on, at most."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        if self.output not in ("classes", "values"):
            raise ConfigurationError(f"output must be classes or values. Got {self.output!r}.")
        if self.output == "values" and self.next_token:
            raise ConfigurationError("next_token must be False for an output of values: they are no classes. Got True.")
        if self.sample_axis not in (0, 1):
            raise ConfigurationError(f"sample_axis must be 0 or 1. Got {self.sample_axis}.")
        if min(self.batch_size, self.n_bootstrap, self.n_null) < 1 or self.control_samples < 2 or self.seed < 0:
            raise ConfigurationError(
                "batch_size, n_bootstrap and n_null must be at least 1, control_samples at least 2, seed at least 0. "
                f"Got {self}."
            )
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level must be in (0, 1). Got {self.level}.")


@dataclass(frozen=True, slots=True)
class LossRecovered(Result):
    """What a model loses by running on a dictionary's reconstructions."""

    technique: ClassVar[str] = "loss_recovered"
    evidence: ClassVar[str] = (
        "Intervals: bootstrap over samples. "
        "Null: random dictionaries of equal size and L0, at their best scale, spliced in the same way."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Bars(
            values="divergence_of",
            labels="control",
            low="divergence_low",
            high="divergence_high",
            title="How far the output moves with each in the activation's place",
            value_label="divergence from the clean output",
        ),
    )

    recovered: Estimate
    """Of the loss that zero ablation adds. NaN without a target."""
    recovered_from_mean: Estimate
    """Of the loss that mean ablation adds."""
    kept: Estimate
    """1 less the divergence, as a share of zero ablation's."""
    kept_from_mean: Estimate
    loss_added: Estimate
    """Mean loss with the dictionary less the clean one, nats."""
    divergence: Estimate
    """Mean KL in nats, or mean squared difference of values."""
    l0: float
    """Mean active latents per vector on the control samples."""
    n_samples: int
    has_target: bool
    loss_defined: bool
    """False, and `recovered` NaN, if zero ablation does not raise the loss beyond its noise."""
    loss_defined_from_mean: bool
    kept_defined: bool
    kept_defined_from_mean: bool
    control: Annotated[tuple[str, ...], "control"]
    loss_of: Float[np.ndarray, "control"]
    """Mean cross-entropy, nats; NaN without a target. The random dictionaries' is on their samples."""
    divergence_of: Float[np.ndarray, "control"]
    divergence_low: Float[np.ndarray, "control"]
    divergence_high: Float[np.ndarray, "control"]

    def reading(self) -> str:
        """Say how much of the answer the reconstruction carries, and whether random directions would do."""
        of_loss = self.has_target and self.loss_defined
        main, what = (self.recovered, "the loss") if of_loss else (self.kept, "the output's divergence")
        if not (of_loss or self.kept_defined):
            return "Zero ablation of this site does not change the model's answer beyond noise: nothing to recover."
        mean = self.recovered_from_mean if of_loss else self.kept_from_mean
        chance = (
            f"random dictionaries of equal size and L0 give {main.null:.1%}"
            if main.p_value <= 1 - main.level + 1e-9
            else f"not distinguishable from random dictionaries of equal size and L0 (p = {main.p_value:.2g})"
        )
        from_mean = "undefined" if math.isnan(mean.value) else f"{mean.value:.2%}"
        added = self.loss_added
        change = f" The loss changes by {added.value:.3g} [{added.low:.3g}, {added.high:.3g}] nats."
        return (
            f"Of what zero ablation does to {what}, running on reconstructions with {self.l0:.3g} active latents "
            f"avoids {main.value:.2%} [{main.low:.2%}, {main.high:.2%}] (of mean ablation: {from_mean}); {chance}."
            f"{change if self.has_target else ''}"
        )


def loss_recovered(
    model: nn.Module,
    dictionary: SparseDictionary,
    inputs: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample *position"] | None = None,
    mask: Num[np.ndarray, "sample position"] | None = None,
    *,
    config: LossRecoveredConfig = LossRecoveredConfig(),
) -> LossRecovered:
    """Measure how much of a model's answer survives when the dictionary's reconstruction replaces the activation.

    Use it with the variance explained: a small error may hit what the model reads, and a large one may miss it. It
    says that the dictionary carries what the answer needs, not that its latents mean anything. Zero ablation is a
    harsh end, from which nearly any reconstruction recovers much: look at the mean's, and at the loss added.

    Parameters
    ----------
    model
        Any module; run in eval mode, and left as it was.
    dictionary
        A dictionary trained on a site of this model.
    inputs
        At least two samples, preferably not trained on; the model's first argument.
    target
        Classes: one per sample, or one per position (below 0: none). Without it, and without `next_token`, only the
        divergence is measured.
    mask
        Passed to the model as `mask_name`; positions where it is 0 do not count.
    config
        Where to splice, how to score, and how sure to be.

    Returns
    -------
    LossRecovered
        `recovered` and `kept` (dimensionless): 1 when the model runs as on the activation itself, 0 as on the end. Both
        may leave [0, 1]. Losses in nats.

    Raises
    ------
    ShapeError
        If there are fewer than two samples, arrays do not belong together, the output has not the shape that the
        config says, or the site has not the dictionary's units.
    ConfigurationError
        If no site is known, or targets are not classes of the output.
    DegenerateInputError
        If inputs or outputs are not finite, or no position counts.
    NotFoundError
        If the model has no such site, or it does not run.
    MemoryBudgetError
        If a batch does not fit in memory.

    Notes
    -----
    A ratio is NaN, and its flag False, where the bootstrap interval of its denominator is not above rounding: the end
    does no harm then, and there is nothing to recover. Means and controls are fitted to at most `control_samples`.

    References
    ----------
    [@bricken2023]
    [@gao2024]
    [@marks2024]

    Examples
    --------
    >>> from mechint_core.features import SparseAutoencoder, SparseAutoencoderConfig
    >>> basis = SparseAutoencoder(4, 8, config=SparseAutoencoderConfig(activation="relu"))
    >>> axes = torch.cat([torch.eye(4), -torch.eye(4)])
    >>> _ = basis.W_enc.data.copy_(axes), basis.W_dec.data.copy_(axes)  # it reconstructs every vector exactly
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    >>> x = generator(0, "example").normal(size=(20, 3))
    >>> result = loss_recovered(model, basis, x, config=LossRecoveredConfig(site="0"))
    >>> round(result.kept.value, 6)
    1.0
    """
    data = _checked(inputs, target, mask, config)
    runs = SplicedRuns(
        model=model,
        place=_place(dictionary, config),
        like=dictionary.W_dec,
        output=config.output,
        answer_position=config.answer_position,
        mask_name=config.mask_name,
        sample_axis=config.sample_axis,
        batch_size=config.batch_size,
    )
    chosen = generator(config.seed, "control samples").permutation(len(inputs))[: config.control_samples]
    with inference(model), memory_remedy(f"Use a batch_size below {config.batch_size}."):
        seen = _seen(runs, data.at(chosen), dictionary)
        scores = runs.score(data, _writes(dictionary, seen, config))
        null = runs.score(data.at(chosen), _random_writes(dictionary, seen, config))
    return _result(scores, null, chosen, seen.l0, config)


class _Seen(NamedTuple):
    """Vectors of the control samples at the two sites, the mean of what is written, and the dictionary's L0."""

    read: Float[Tensor, "vector unit"]
    written: Float[Tensor, "vector other_unit"]
    mean: Float[Tensor, "other_unit"]
    l0: float


def _checked(
    inputs: np.ndarray, target: np.ndarray | None, mask: np.ndarray | None, config: LossRecoveredConfig
) -> Batch:
    if inputs.ndim < 1 or len(inputs) < 2:
        raise ShapeError(f"inputs must be (sample >= 2, ...). Got shape {inputs.shape}.")
    if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
        raise DegenerateInputError("inputs must be finite. Got NaN or infinity.")
    if target is not None and (config.output == "values" or config.next_token):
        raise ConfigurationError("target must be left out for an output of values, and with next_token. Got one.")
    for name, each in (("target", target), ("mask", mask)):
        if each is not None and len(each) != len(inputs):
            raise ShapeError(f"{name} must have one row per sample, {len(inputs)}. Got shape {each.shape}.")
    return Batch(inputs, next_tokens(inputs, mask) if config.next_token else target, mask)


def _place(dictionary: SparseDictionary, config: LossRecoveredConfig) -> Place:
    if not (config.site or dictionary.site):
        raise ConfigurationError(
            "a site must be known to splice at. Got a dictionary without one. Set config.site to a module's name."
        )
    if not (dictionary.reconstructs or config.written_site):
        raise ConfigurationError("written_site must say where a transcoder writes. Got none.")
    return place_of(config.site or dictionary.site, config.written_site)


def _seen(runs: SplicedRuns, data: Batch, dictionary: SparseDictionary) -> _Seen:
    read, written = runs.activations(data)
    if read.shape[1] != dictionary.input_dim or written.shape[1] != dictionary.output_dim:
        raise ShapeError(
            f"the sites must have the dictionary's units, {dictionary.input_dim} read and {dictionary.output_dim} "
            f"written. Got {read.shape[1]} at {runs.place.read!r} and {written.shape[1]} at {runs.place.written!r}."
        )
    every = slice(None, None, -(-len(read) * dictionary.hidden_dim // CONTROL_CODES))
    l0 = (dictionary.encode(read[every]) > 0).sum(dim=1).double().mean()
    return _Seen(read[every], written[every], written.mean(dim=0), float(l0))


def _writes(dictionary: SparseDictionary, seen: _Seen, config: LossRecoveredConfig) -> list[Write]:
    """Return what each run after the clean one writes for the vectors it reads."""
    untrained = fit_control(untrained_directions(dictionary, config.seed), seen.read, seen.written, seen.l0).control
    zero = torch.zeros_like(seen.mean)
    return [
        dictionary,
        untrained.write,
        lambda x: seen.mean.expand(*x.shape[:-1], -1),
        lambda x: zero.expand(*x.shape[:-1], -1),
    ]


def _random_writes(dictionary: SparseDictionary, seen: _Seen, config: LossRecoveredConfig) -> list[Write]:
    drawn = (random_directions(dictionary, config.seed, draw) for draw in range(config.n_null))
    return [fit_control(each, seen.read, seen.written, seen.l0).control.write for each in drawn]


def _result(
    scores: Scores, null: Scores, chosen: Int[np.ndarray, "chosen"], l0: float, config: LossRecoveredConfig
) -> LossRecovered:
    draws = bootstrap_counts(len(scores.n_outputs), config.n_bootstrap, generator(config.seed, "bootstrap"))
    loss = RunRatios(scores.loss, scores.n_targets, null.loss, null.n_targets, draws, chosen, config.level)
    moved = RunRatios(scores.divergence, scores.n_outputs, null.divergence, null.n_outputs, draws, chosen, config.level)
    # A Kullback-Leibler divergence is a difference of log-probabilities, whose size is about 1; a square has no such.
    noise = ROUNDING * float(scores.n_outputs.sum()) if config.output == "classes" else 0.0
    loss_noise = ROUNDING * float(np.abs(scores.loss).sum(axis=1).max())
    recovered, from_mean = (loss.recovered(end, loss_noise) for end in ("zero", "mean"))
    kept, kept_from_mean = (moved.recovered(end, noise) for end in ("zero", "mean"))
    low, high = moved.intervals()
    return LossRecovered(
        recovered=recovered,
        recovered_from_mean=from_mean,
        kept=kept,
        kept_from_mean=kept_from_mean,
        loss_added=loss.added(),
        divergence=moved.added(),
        l0=l0,
        n_samples=len(scores.n_outputs),
        has_target=bool(scores.n_targets.sum() > 0),
        loss_defined=not math.isnan(recovered.value),
        loss_defined_from_mean=not math.isnan(from_mean.value),
        kept_defined=not math.isnan(kept.value),
        kept_defined_from_mean=not math.isnan(kept_from_mean.value),
        control=(*RUNS, "random dictionaries"),
        loss_of=loss.means(),
        divergence_of=moved.means(),
        divergence_low=low,
        divergence_high=high,
    )
