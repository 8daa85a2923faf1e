"""Rank the latents of a dictionary by what they do to a model's answer.

    ablated    e_j = mean_i  m(x_i) - m(x_i - f_j(x_i) d_j)             the dictionary's error stays in x
    inserted   a_j = mean_i  m(x_i + t_j d_j where f_j(x_i) = 0) - m(x_i)

x is the activation at the dictionary's site (all its positions), f_j and d_j code and decoder row of latent j, t_j its
mean code where it is active, m the metric. All latents are screened by the gradient of m; the strongest are ablated
one by one. What the whole dictionary does is beside them, as the scale to read them on:

    unexplained   mean_i  m(x_i) - m(x_hat_i)                           the reconstruction, spliced in without the error
    together      mean_i  m(x_i) - m(x_i - sum_j f_j(x_i) d_j)          all latents ablated, the error kept

The null is dictionaries that know nothing of the data: this one, turned at random (`_turned_dictionary.py`), screened
and ablated the same way. A latent's p-value is its rank among the candidates of all of them.

Source: [@marks2024] for ablating latents with the error kept and for the screen; [@bricken2023].
Cost: 1 forward and 1 backward of all inputs; for kl and distance, or with n_steps, as many more as steps. Then, with p
the share of inputs on which a latent is active, (1 + n_null) n_exact p forwards for ablations and about n_exact for
insertions; two products of vectors x units x latents per dictionary.
Chunked over: inputs, and (latent, input) runs.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import nn

from mechint_core.errors import ConfigurationError, DegenerateInputError
from mechint_core.figure import Bars, Figure, Scatter
from mechint_core.interventions._latent_ranking import Encoder, Ranking, codes_of, estimated_effects, rank_latents
from mechint_core.interventions._latent_runs import LatentRuns, Seen, ablation_of_all, reconstruction_error
from mechint_core.interventions._turned_dictionary import turned_dictionaries
from mechint_core.kernels.false_discovery import false_discovery_rate
from mechint_core.models import inference, memory_remedy, samples_to, to_model
from mechint_core.patching import (
    ROUNDING,
    Agreement,
    Codes,
    MeanEffects,
    PairedConfig,
    agreement_of,
    find_site,
    mean_effects,
    own_pairs,
    read_place,
)
from mechint_core.patching.agreement import TRUSTED_CORRELATION
from mechint_core.random import generator
from mechint_core.result import Estimate, Result

_FLAT: Final = ("kl", "distance")
"""Metrics that are least at the intact run, where their gradient is 0."""
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureEffectsConfig(PairedConfig):
    """Where the dictionary belongs, how many latents to ablate, and what to compare with."""

    site: str = ""
    """Module whose output the dictionary reads, or name@position. "": the site it was trained on."""
    n_samples: int = 512
    """Most inputs to use, drawn at random."""
    n_exact: int = 16
    """Latents to ablate and insert one by one: the strongest by the screen."""
    n_random: int = 8
    """Latents drawn from the others and ablated too, to see what the screen misses. They are not ranked."""
    n_null: int = 20
    """Dictionaries turned at random. To call a single latent causal takes 1 / false_discovery of them."""
    n_steps: int = 0
    """Screen by the gradient at the model as it is (0; for kl and distance halfway to all latents ablated, because at
    the model as it is their gradient is 0), or averaged over so many midpoints of that way."""
    false_discovery: float = 0.05
    """Share of false ones among the latents called causal."""

    def __post_init__(self) -> None:
        PairedConfig.__post_init__(self)
        if min(self.n_samples - 1, self.n_exact, self.n_null) < 1 or min(self.n_random, self.n_steps) < 0:
            raise ConfigurationError(
                "n_samples must be at least 2, n_exact and n_null at least 1, n_random and n_steps at least 0. "
                f"Got {self}."
            )
        if not 0 < self.false_discovery < 1:
            raise ConfigurationError(f"false_discovery must lie strictly between 0 and 1. Got {self.false_discovery}.")


@dataclass(frozen=True, slots=True)
class FeatureEffects(Result):
    """What the strongest latents of a dictionary do to the answer, beside what the whole dictionary does."""

    technique: ClassVar[str] = "feature_effects"
    evidence: ClassVar[str] = (
        "Interval: bootstrap over inputs (of the agreement: over the random latents, too). Null: latents of the "
        "same rank of the dictionary turned at random; of unexplained and together: no change; of the agreement: "
        "shuffled latents. q: false discovery rate among the latents that were ablated; p of the strongest: share of "
        "turned dictionaries with one as strong."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Bars(
            values="effect",
            labels="latent",
            low="low",
            high="high",
            null="null",
            title="What the strongest latents contribute to the answer (tick: a turned dictionary's)",
            value_label="metric, intact less ablated",
        ),
        Scatter(
            points="compared_points",
            title="Effect by the gradient against the exact one, of the ablated latents",
            x_label="estimated",
            y_label="exact",
        ),
    )

    strongest: Estimate
    """Largest effect of an ablated latent, either sign, in units of the metric; positive: it supports the metric."""
    unexplained: Estimate
    """What the answer loses if the reconstruction takes the activation's place: what the dictionary leaves out."""
    together: Estimate
    """What it loses if all latents are ablated and the error is kept."""
    screen_correlation: Estimate
    """Pearson's, of estimated and exact effects over the ablated latents (random ones too); NaN for fewer than 3."""
    screen_error: Estimate
    """|estimated - exact| / |exact| over the same latents: 1 is no better than nothing."""
    latent: Annotated[tuple[str, ...], "example"]
    """The ablated latents, the strongest first."""
    latent_index: Int[np.ndarray, "example"]
    effect: Float[np.ndarray, "example"]
    """Mean metric of the intact less the ablated model: what the latent contributes."""
    low: Float[np.ndarray, "example"]
    high: Float[np.ndarray, "example"]
    null: Float[np.ndarray, "example"]
    """Mean size of the effect of this rank in turned dictionaries, with the sign of the effect."""
    p_value: Float[np.ndarray, "example"]
    """Rank of the effect's size among the candidates of all turned dictionaries."""
    q_value: Float[np.ndarray, "example"]
    inserted: Float[np.ndarray, "example"]
    """Mean metric with the latent's typical code wherever it is silent, less that of the intact model."""
    inserted_low: Float[np.ndarray, "example"]
    inserted_high: Float[np.ndarray, "example"]
    compared_points: Float[np.ndarray, "part coordinate"]
    """Estimated, then exact effect of the ablated latents: the ranked ones, then the random ones."""
    screen: Float[np.ndarray, "latent"]
    """Estimated effect of every latent."""
    density: Float[np.ndarray, "latent"]
    """Share of the vectors on which each latent is active."""
    n_causal: int
    """Ablated latents with q at most `false_discovery`."""
    n_latents: int
    n_silent: int
    """Latents that are active on no input."""
    n_samples: int
    screen_trusted: bool
    """Whether the screen orders latents as exact ablations do: a correlation of at least 0.9 (where there is one)."""

    def reading(self) -> str:
        """Name the causal latents, what all of them do together, and whether the screen can have missed some."""
        causal = [
            f"{self.latent[k]} {self.effect[k]:+.3g} [{self.low[k]:.3g}, {self.high[k]:.3g}]"
            for k in range(self.n_causal)
        ]
        more = f" and {len(causal) - _SHOWN} more" if len(causal) > _SHOWN else ""
        found = (
            f"{len(causal)} of {len(self.latent)} ablated latents do more than those of an untrained dictionary: "
            f"{', '.join(causal[:_SHOWN])}{more}."
            if causal
            else "No latent does more to the answer than those of an untrained dictionary "
            f"(smallest q = {self.q_value.min():.2g}, {self.n_samples} inputs)."
        )
        scale = (
            f" Ablating all latents takes {self.together.value:.3g} from the metric, "
            f"dropping what the dictionary leaves out {self.unexplained.value:.3g}."
        )
        missed = (
            "" if self.screen_trusted else " The screen agrees poorly with exact ablations: it may have missed some."
        )
        return f"{found}{scale}{missed}"


def feature_effects(
    model: nn.Module,
    inputs: Num[np.ndarray, "sample ..."],
    dictionary: Codes,
    target: Int[np.ndarray, "sample"] | None = None,
    *,
    config: FeatureEffectsConfig = FeatureEffectsConfig(),
) -> FeatureEffects:
    """Find the dictionary features that a model's answer rests on.

    Use it on a trained dictionary whose latents are to be more than descriptions. An effect is that of one latent with
    all others at work, on these inputs: latents that stand in for each other look idle, and an ablation may take the
    model where it never is. A latent is called causal only if it does more than those of the same dictionary turned at
    random, which are active as often; an effect below what the dictionary leaves unexplained is still an effect of
    a small part of the activation.

    Parameters
    ----------
    model
        Any differentiable module; run in eval mode, and left as it was.
    inputs
        Samples first, passed to `model` as its only argument. At least 2, better 100.
    dictionary
        Trained on the output of a module. A transcoder or a crosscoder does not write what it reads and does not fit.
    target
        The right class of each input. Needed unless the metric is kl or distance.
    config
        Site, metric, candidates, null.

    Returns
    -------
    FeatureEffects
        Effects in units of the metric, of the strongest latents, with interval, null and q-value; what the dictionary
        does as a whole; the screen's estimate for every latent.

    Raises
    ------
    ShapeError
        If there are fewer than 2 inputs, targets or the dictionary's units do not fit, or the output is not
        (sample[, position], class).
    ConfigurationError
        If there is no site, the metric needs a target and there is none, or a target is not a class of the output.
    DegenerateInputError
        If inputs, activations or outputs are not finite, or no latent is active.
    NotFoundError
        If the model has no such module, or it does not give one activation per sample (with this position).
    MemoryBudgetError
        If a pass does not fit in memory.

    Notes
    -----
    Where the site has positions and the dictionary names none, a latent is ablated or inserted at all of them at once.
    The candidates of dictionary and controls are chosen and ablated alike, so the p-values hold however good the
    screen is; a poor screen only finds less.

    References
    ----------
    [@marks2024]
    [@bricken2023]
    [@nanda2023b]

    Examples
    --------
    >>> import torch
    >>> from types import SimpleNamespace
    >>> from mechint_core.random import generator
    >>> from mechint_core.synthetic.linear_network import LinearNetwork
    >>> model, inputs = LinearNetwork((1.0,)), generator(0, "example").normal(size=(40, 8))
    >>> axes = torch.cat([torch.eye(8), -torch.eye(8)]).double()  # a latent for either side of each unit
    >>> dictionary = SimpleNamespace(
    ...     site="total", W_enc=axes, W_dec=axes, encode=lambda x: (x @ axes.T).relu(), decode=lambda f: f @ axes
    ... )
    >>> config = FeatureEffectsConfig(metric="distance", n_null=1)
    >>> found = feature_effects(model, inputs, dictionary, config=config)
    >>> (found.unexplained.value, found.n_latents, len(found.latent))
    (0.0, 16, 16)
    """
    data = own_pairs(inputs, target, None, config.metric)
    kept, (site, position) = _kept(len(data), config), read_place(config.site or dictionary.site)
    with memory_remedy(f"Use batch_rows below {config.batch_rows}, or fewer n_samples."):
        few = samples_to(to_model(data.clean[:2], model), config.sample_axis)
        with inference(model):
            (found,) = find_site(model, few, site, sample_axis=config.sample_axis, position=position).parts
        runs = LatentRuns(
            model=model,
            config=config,
            inputs=samples_to(to_model(data.clean[kept], model), config.sample_axis),
            target=None if data.target is None else to_model(data.target[kept], model),
            place=found,
        )
        seen = runs.observe(dictionary)
        return _result(_measured(runs, seen, dictionary, config), seen, config)


class _Measured(NamedTuple):
    """All that was run."""

    own: Ranking
    null: Float[np.ndarray, "draw example"]
    """Sizes of the mean effects of turned dictionaries, the largest first."""
    inserted: Float[np.ndarray, "example sample"]
    estimated: Float[np.ndarray, "part sample"]
    """Of the ranked latents, then of the random ones."""
    exact: Float[np.ndarray, "part sample"]
    unexplained: Float[np.ndarray, "sample"]
    together: Float[np.ndarray, "sample"]


def _kept(n_inputs: int, config: FeatureEffectsConfig) -> Int[np.ndarray, "sample"]:
    if n_inputs <= config.n_samples:
        return np.arange(n_inputs)
    return np.sort(generator(config.seed, "feature_effects", "inputs").permutation(n_inputs)[: config.n_samples])


def _measured(runs: LatentRuns, seen: Seen, dictionary: Codes, config: FeatureEffectsConfig) -> _Measured:
    at_once = max(1, config.cache_bytes // 16)  # codes of 4 bytes, and three arrays of their size beside them
    away = ablation_of_all(dictionary, seen.vectors)
    n_steps = config.n_steps or (1 if config.metric in _FLAT else 0)
    gradient = runs.gradient_towards(seen, away, n_steps=n_steps) if n_steps else seen.gradient

    def ranked(each: Encoder, n_exact: int) -> Ranking:
        return rank_latents(each, runs, seen, gradient, n_exact=n_exact, codes_at_once=at_once)

    own = ranked(dictionary, config.n_exact)
    n = len(own.latents)
    if n == 0:
        raise DegenerateInputError("some latent must be active on the inputs. Got none that is.")
    null = np.zeros((config.n_null, n))
    for turned, sizes in zip(
        turned_dictionaries(dictionary, seen.vectors, config.n_null, config.seed), null, strict=True
    ):
        effects = ranked(turned, n).effects.mean(axis=1)
        sizes[: len(effects)] = np.abs(effects)
    ablated = np.concatenate([own.latents, own.others(config.n_random, config.seed)])
    codes, writes = codes_of(dictionary, seen.vectors, ablated, at_once), dictionary.W_dec.detach()[ablated]
    typical = torch.from_numpy(own.screen.typical[own.latents]).to(writes)
    return _Measured(
        own=own,
        null=null,
        inserted=runs.added(seen, codes[..., :n], writes[:n], typical),
        estimated=estimated_effects(codes, writes, gradient),
        exact=np.concatenate([own.effects, runs.removed(seen, codes[..., n:], writes[n:])]),
        unexplained=-runs.shifted(seen, -reconstruction_error(dictionary, seen.vectors)),
        together=-runs.shifted(seen, away),
    )


def _result(found: _Measured, seen: Seen, config: FeatureEffectsConfig) -> FeatureEffects:
    own, scale = found.own, float(np.abs(seen.intact).mean())
    effect, inserted, whole = (
        mean_effects(each, config=config, scale=scale)
        for each in (own.effects, found.inserted, np.stack([found.unexplained, found.together]))
    )
    sizes = np.abs(effect.value)
    p = (1 + (found.null[None] >= sizes[:, None, None]).sum(axis=(1, 2))) / (1 + found.null.size)
    q = false_discovery_rate(p)
    agreement = _agreement(found, scale, config)
    return FeatureEffects(
        strongest=_strongest(effect, found.null),
        unexplained=whole[0],
        together=whole[1],
        screen_correlation=agreement.correlation,
        screen_error=agreement.error,
        latent=tuple(f"latent {j}" for j in own.latents),
        latent_index=own.latents,
        effect=effect.value,
        low=effect.low,
        high=effect.high,
        null=np.copysign(found.null.mean(axis=0), effect.value),
        p_value=p,
        q_value=q,
        inserted=inserted.value,
        inserted_low=inserted.low,
        inserted_high=inserted.high,
        compared_points=np.stack([found.estimated.mean(axis=1), found.exact.mean(axis=1)], axis=1),
        screen=own.screen.effect,
        density=own.screen.density,
        n_causal=int((q <= config.false_discovery).sum()),
        n_latents=len(own.screen.effect),
        n_silent=int((own.screen.density == 0).sum()),
        n_samples=len(seen.intact),
        screen_trusted=not agreement.correlation.value < TRUSTED_CORRELATION,
    )


def _agreement(found: _Measured, scale: float, config: FeatureEffectsConfig) -> Agreement:
    return agreement_of(
        found.estimated,
        found.exact,
        sampled=np.arange(len(found.exact)) >= len(found.own.latents),
        rounding=ROUNDING * scale,
        n_draws=config.n_draws,
        level=config.level,
        seed=config.seed,
    )


def _strongest(effect: MeanEffects, null: Float[np.ndarray, "draw example"]) -> Estimate:
    """Return the largest effect, beside the largest of turned dictionaries."""
    largest = null[:, 0]
    p = (1 + int((largest >= abs(effect.value[0])).sum())) / (1 + len(largest))
    typical = float(np.copysign(largest.mean(), effect.value[0]))
    return Estimate(float(effect.value[0]), float(effect.low[0]), float(effect.high[0]), typical, p, effect.level)
