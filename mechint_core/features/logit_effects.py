"""What the latents of a dictionary do to a model's output: the answers each promotes, and those it suppresses.

    E_jc = W_dec,j . mean_i dz_ic / dx_i  -  mean over c of the same          change of logit c per unit of code j

z_i are the logits of sample i, x_i the activation at the dictionary's site. Where nothing nonlinear lies between the
two this is the logit lens on the decoder; elsewhere it is its first order, averaged over the samples given.

With few classes, one backward pass per class gives the mean Jacobian, and every direction is a product with it; with
fewer directions than classes, one pass per direction gives its effect on all classes at once.

Source: [@nostalgebraist2020] for reading directions by their logits, [@bricken2023] for doing so with a dictionary.
Cost: min(classes, latents + random directions) passes over `n_samples` samples. Chunked over: samples.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.special import stdtrit
from torch import nn

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.features._output_slopes import SlopeRuns
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.figure import Figure, Histogram
from mechint_core.kernels.false_discovery import false_discovery_rate
from mechint_core.kernels.proportions import wilson_interval
from mechint_core.kernels.resampling import p_value
from mechint_core.models import memory_remedy
from mechint_core.random import generator
from mechint_core.result import Estimate, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitEffectsConfig:
    """Where to push, on how many samples, and what to compare with."""

    site: str = ""
    """Module whose output the dictionary writes. "": the site it was trained on."""
    position: int | None = None
    """Push at this position only; None: at the one it was trained on, else at all positions together."""
    answer_position: int = -1
    """Where a model with one row of logits per position gives the answer."""
    sample_axis: int = 0
    """Where the model keeps its samples: 1 for PyTorch layers with `batch_first=False`."""
    n_samples: int = 512
    """Most samples to average over, drawn at random; as many as fill all groups evenly."""
    batch_size: int = 128
    """Samples in one pass."""
    n_shown: int = 5
    """Most promoted, and most suppressed, classes to report of each latent."""
    centred: bool = True
    """Subtract each direction's mean effect over the classes, which changes no probability."""
    n_random: int = 999
    """Random directions of the same norm, for the null; the smallest p-value is 1 / (1 + n_random)."""
    n_groups: int = 10
    """Groups of samples whose spread gives the intervals."""
    false_discovery: float = 0.05
    """Share of false ones among the latents called effective."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the samples and the random directions."""

    def __post_init__(self) -> None:
        if not 2 <= self.n_groups <= self.n_samples or min(self.batch_size, self.n_shown, self.n_random) < 1:
            raise ConfigurationError(
                f"n_groups must be in [2, n_samples], batch_size, n_shown and n_random at least 1. Got {self}."
            )
        if not (0 < self.level < 1 and 0 < self.false_discovery < 1) or self.seed < 0:
            raise ConfigurationError(f"level and false_discovery must be in (0, 1), seed at least 0. Got {self}.")
        if self.sample_axis not in (0, 1):
            raise ConfigurationError(f"sample_axis must be 0 or 1. Got {self.sample_axis}.")


@dataclass(frozen=True, slots=True)
class LogitEffects(Result):
    """The classes that each latent pushes up and down, in logits per unit of its code."""

    technique: ClassVar[str] = "logit_effects"
    evidence: ClassVar[str] = (
        "Interval of the strength and of single effects: Student's, over groups of samples; of the share: Wilson's "
        "over latents. Null: random directions of the same norm."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Histogram(
            values="largest",
            title="How much each latent moves the logit it moves most",
            x_label="logits per unit of code",
        ),
    )

    strength: Estimate
    """Mean over latents of the largest |effect| on a class."""
    effective: Estimate
    """Share of the latents whose largest |effect| is beyond those of random directions. Null: of these themselves."""
    largest: Float[np.ndarray, "latent"]
    """Largest |effect| on a class."""
    p_value: Float[np.ndarray, "latent"]
    q_value: Float[np.ndarray, "latent"]
    promoted: Int[np.ndarray, "latent example"]
    """Classes, the most promoted first."""
    promoted_effect: Float[np.ndarray, "latent example"]
    promoted_low: Float[np.ndarray, "latent example"]
    promoted_high: Float[np.ndarray, "latent example"]
    suppressed: Int[np.ndarray, "latent example"]
    """Classes, the most suppressed first."""
    suppressed_effect: Float[np.ndarray, "latent example"]
    suppressed_low: Float[np.ndarray, "latent example"]
    suppressed_high: Float[np.ndarray, "latent example"]
    n_classes: int
    n_samples: int
    n_effective: int
    false_discovery: float

    def reading(self) -> str:
        """Say how many latents speak to the output, and how loudly."""
        n_latents, times = len(self.largest), self.strength.value / self.strength.null if self.strength.null else np.inf
        loud = (
            f"Per unit of code, a latent moves the logit it moves most by {self.strength.value:.3g} on average, "
            f"{times:.2g} times what random directions do"
        )
        if self.strength.p_value > 1 - self.strength.level + 1e-9:
            loud += f", which is not distinguishable from them (p = {self.strength.p_value:.2g})"
        return (
            f"{loud}. {self.n_effective} of {n_latents} latents move a logit further than random directions, at a "
            f"false discovery rate of {self.false_discovery:.0%}."
        )


def logit_effects(
    model: nn.Module,
    dictionary: SparseDictionary,
    inputs: Num[np.ndarray, "sample ..."],
    *,
    config: LogitEffectsConfig = LogitEffectsConfig(),
) -> LogitEffects:
    """Find which answers each latent of a dictionary promotes, and which it suppresses.

    Use it to read latents by what they cause rather than by what they fire on. It is the first order of a small push,
    averaged over samples: what a latent does when it fires strongly, or in opposite ways in different samples, it
    cannot tell. Random directions are a weak control, for a site's activations fill few of its dimensions.

    Parameters
    ----------
    model
        Any module with one row of logits per sample, or per position; run in eval mode, and left as it was.
    dictionary
        A dictionary whose decoder writes the site's units.
    inputs
        Samples first, passed to `model` as its only argument.
    config
        Site, samples, null.

    Returns
    -------
    LogitEffects
        Effects in logits per unit of code, any sign. `strength` is at least 0; 0 when the logits ignore the site.

    Raises
    ------
    ShapeError
        If there are fewer than 2 samples, the site does not have the decoder's units, or the output is not
        (sample[, position], class >= 2).
    ConfigurationError
        If neither config nor dictionary names a site.
    NotFoundError
        If the model has no such module.
    DegenerateInputError
        If the output does not depend on the site, or is not finite.
    MemoryBudgetError
        If a pass does not fit in memory.

    Notes
    -----
    Random directions are isotropic, each compared at the norm of the latent's decoder row.

    References
    ----------
    [@nostalgebraist2020]
    [@bricken2023]
    [@benjamini1995]

    Examples
    --------
    >>> import torch
    >>> from mechint_core.features import SparseAutoencoder, SparseAutoencoderConfig
    >>> model = nn.Sequential(nn.Identity(), nn.Linear(2, 3, bias=False))
    >>> _ = model[1].weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 3.0], [-3.0, -3.0]]))
    >>> basis = SparseAutoencoder(2, 2, config=SparseAutoencoderConfig(activation="relu"))
    >>> _ = basis.W_dec.data.copy_(torch.eye(2))
    >>> found = logit_effects(model, basis, np.ones((4, 2)), config=LogitEffectsConfig(site="0", n_shown=1))
    >>> found.promoted.tolist(), found.promoted_effect.tolist(), found.suppressed.tolist()
    ([[0], [1]], [[3.0], [3.0]], [[2], [2]])
    """
    if inputs.ndim < 1 or len(inputs) < 2:
        raise ShapeError(f"inputs must hold at least 2 samples, on their first axis. Got shape {inputs.shape}.")
    rng = generator(config.seed, "logit effects")
    n_groups = min(config.n_groups, len(inputs))
    n_samples = min(config.n_samples, len(inputs)) // n_groups * n_groups  # groups of one size: their mean is the mean
    rows = np.sort(rng.permutation(len(inputs))[:n_samples])
    latents = dictionary.W_dec.detach().cpu().numpy().astype(np.float64)
    random = rng.standard_normal((config.n_random, latents.shape[1]))
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    site, position = _place(dictionary, config)
    runs = SlopeRuns(
        model,
        site,
        position=position,
        answer_position=config.answer_position,
        sample_axis=config.sample_axis,
        batch_size=config.batch_size,
        n_groups=n_groups,
    )
    with memory_remedy(f"Use a batch_size below {config.batch_size}."):
        parts = [_describe(slopes, config) for slopes in runs.slopes(inputs[rows], np.concatenate([latents, random]))]
    effects = _Effects(*(np.concatenate([getattr(part, name) for part in parts]) for name in _Effects._fields))
    return _result(effects, np.linalg.norm(latents, axis=1), runs.n_classes, n_samples, config)


class _Effects(NamedTuple):
    """What pushing along some directions does, at their own norm."""

    strongest: Float[np.ndarray, "direction group"]
    """Effect on the class with the largest |effect|, in each group of samples."""
    promoted: Int[np.ndarray, "direction example"]
    promoted_by: Float[np.ndarray, "direction example bound"]
    """Effect, and the bounds of its interval."""
    suppressed: Int[np.ndarray, "direction example"]
    suppressed_by: Float[np.ndarray, "direction example bound"]


def _describe(slopes: Float[np.ndarray, "group direction class"], config: LogitEffectsConfig) -> _Effects:
    """Return the classes that each direction moves most, and how much."""
    if not np.isfinite(slopes).all():
        raise DegenerateInputError("slopes of the logits must be finite. Got NaN or infinity.")
    if config.centred:
        slopes = slopes - slopes.mean(axis=2, keepdims=True)
    effect = slopes.mean(axis=0)

    def of(classes: Int[np.ndarray, "direction example"]) -> Float[np.ndarray, "group direction example"]:
        return np.take_along_axis(slopes, classes[None], axis=2)

    def bounded(classes: Int[np.ndarray, "direction example"]) -> Float[np.ndarray, "direction example bound"]:
        middle, half = of(classes).mean(axis=0), _half_width(of(classes), config.level)
        return np.stack([middle, middle - half, middle + half], axis=2)

    order = np.argsort(-effect, axis=1, kind="stable")
    promoted, suppressed = order[:, : config.n_shown], order[:, : -config.n_shown - 1 : -1]
    strongest = of(np.abs(effect).argmax(axis=1)[:, None])[..., 0].T
    return _Effects(strongest, promoted, bounded(promoted), suppressed, bounded(suppressed))


def _place(dictionary: SparseDictionary, config: LogitEffectsConfig) -> tuple[str, int | None]:
    """Return the site and the position to push at; a dictionary's site may be written `name@position`."""
    name, at, position = dictionary.site.rpartition("@")
    own = (name, int(position)) if at and position.lstrip("-").isdigit() else (dictionary.site, None)
    if not (config.site or own[0]):
        raise ConfigurationError("a site must be named by config or dictionary. Got none. Set site in the config.")
    if config.site and config.site != own[0]:
        return config.site, config.position
    return own[0], own[1] if config.position is None else config.position


def _result(
    effects: _Effects,
    norm: Float[np.ndarray, "latent"],
    n_classes: int,
    n_samples: int,
    config: LogitEffectsConfig,
) -> LogitEffects:
    """Set the effects of the latents, which come first, against those of random directions of length 1."""
    n_latents = len(norm)
    largest = np.abs(effects.strongest.mean(axis=1))
    largest, chance = largest[:n_latents], np.sort(largest[n_latents:])
    p = _beyond(largest / np.where(norm > 0, norm, 1.0), chance, 0)
    q = false_discovery_rate(p)
    n_effective = int(np.sum(q <= config.false_discovery))
    low, high = wilson_interval(n_effective / n_latents, n_latents, config.level)
    among_random = float(np.mean(false_discovery_rate(_beyond(chance, chance, 1)) <= config.false_discovery))
    promoted, suppressed = effects.promoted_by[:n_latents], effects.suppressed_by[:n_latents]
    return LogitEffects(
        strength=_strength(effects.strongest[:n_latents], norm, chance, config),
        effective=Estimate(n_effective / n_latents, float(low), float(high), among_random, level=config.level),
        largest=largest,
        p_value=p,
        q_value=q,
        promoted=effects.promoted[:n_latents],
        promoted_effect=promoted[..., 0],
        promoted_low=promoted[..., 1],
        promoted_high=promoted[..., 2],
        suppressed=effects.suppressed[:n_latents],
        suppressed_effect=suppressed[..., 0],
        suppressed_low=suppressed[..., 1],
        suppressed_high=suppressed[..., 2],
        n_classes=n_classes,
        n_samples=n_samples,
        n_effective=n_effective,
        false_discovery=config.false_discovery,
    )


def _beyond(
    values: Float[np.ndarray, "latent"], chance: Float[np.ndarray, "direction"], n_own: int
) -> Float[np.ndarray, "latent"]:
    """Return the p-value of each value under sorted `chance`, of which `n_own` are the value itself."""
    at_least = len(chance) - np.searchsorted(chance, values * (1 - 1e-12)) - n_own  # rounding hides no tie
    return (1 + at_least) / (1 + len(chance) - n_own)


def _strength(
    strongest: Float[np.ndarray, "latent group"],
    norm: Float[np.ndarray, "latent"],
    chance: Float[np.ndarray, "direction"],
    config: LogitEffectsConfig,
) -> Estimate:
    """Return the mean of the largest effects, its interval over samples, and the same of random dictionaries."""
    by_group = np.mean(strongest * np.sign(strongest.mean(axis=1, keepdims=True)), axis=0)
    value, half = float(by_group.mean()), float(_half_width(by_group, config.level))
    rng = generator(config.seed, "logit effects", "null")
    null = np.array([np.mean(norm * rng.choice(chance, len(norm))) for _ in range(config.n_random)])
    return Estimate(value, value - half, value + half, float(null.mean()), p_value(value, null), config.level)


def _half_width(groups: Float[np.ndarray, "group *test"], level: float) -> Float[np.ndarray, "*test"]:
    """Return half of Student's interval for the mean over groups."""
    n = len(groups)
    return np.asarray(stdtrit(n - 1, (1 + level) / 2) * groups.std(axis=0, ddof=1) / np.sqrt(n))
