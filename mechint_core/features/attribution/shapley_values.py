"""Shapley values: the one division of an answer among parts that is efficient, symmetric, linear, and fair to dummies.

    phi_i = sum_{S without i} |S|! (n - |S| - 1)! / n! (v(S + i) - v(S))            v(S): the answer if only S is there

A part that is absent takes its baseline value. Up to `max_exact` parts all 2^n coalitions are asked for; beyond, orders
and their reverses are drawn, or coalitions for a weighted regression (kernel SHAP): `_coalitions` has the estimators.

Source: [@shapley1953; @lundberg2017].
Cost: forwards per sample: 2^n, or 2 n n_pairs, or n_coalitions. No gradients.
Chunked over: coalitions of all samples.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import nn

from mechint_core.errors import ConfigurationError
from mechint_core.features.attribution._attribution import Attribution, summarise
from mechint_core.features.attribution._attribution_question import (
    AttributionConfig,
    Reference,
    Samples,
    check_choices,
    check_least,
    chosen_samples,
)
from mechint_core.features.attribution._coalitions import Shapley, Worth, by_kernel, by_permutations, exact
from mechint_core.features.attribution._explained import Explained
from mechint_core.features.attribution._players import PartsGame, SitesGame
from mechint_core.features.attribution._shuffled_parameters import compare_with_shuffled
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.models import differentiation, memory_remedy
from mechint_core.random import generator

Method = Literal["auto", "exact", "permutation", "kernel"]

EXACT_AT_MOST: Final = 20
"""Players whose coalitions, a million, can be enumerated at all."""
BLOCK_SAMPLES: Final = 32
"""Samples whose games are played together."""
_ROUGH: Final[dict[str, Any]] = {"n_pairs": 2, "max_exact": 5}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapleyValuesConfig(AttributionConfig):
    """Who plays, and how many coalitions to ask."""

    players: Literal["parts", "sites"] = "parts"
    """sites: each module that the glob `site` matches is one player, and `parts` is not used."""
    baseline: Reference = "zeros"
    """What an absent player gives, if no baseline is given: zero, or the samples' mean."""
    method: Method = "auto"
    """auto: exact up to `max_exact` players, permutation beyond."""
    max_exact: int = 12
    """Players, other than those that equal their baseline in every sample, up to which auto enumerates."""
    n_pairs: int = 8
    """permutation: orders drawn per sample, each with its reverse."""
    n_coalitions: int = 2048
    """kernel: coalitions per sample, half of them complements of the others."""
    max_samples: int = 64
    """Of more samples than this, so many are drawn."""
    null_samples: int = 8
    """Samples on which the model is compared with shuffled copies."""

    def __post_init__(self) -> None:
        AttributionConfig.__post_init__(self)
        check_choices(self, players=Literal["parts", "sites"], baseline=Reference, method=Method)
        check_least(self, {"max_exact": 1, "n_pairs": 2, "n_coalitions": 4})
        if self.max_exact > EXACT_AT_MOST:
            raise ConfigurationError(f"max_exact must be at most {EXACT_AT_MOST}. Got {self.max_exact}.")


@dataclass(frozen=True, slots=True)
class ShapleyValues(Attribution):
    """What each part adds to the answer, averaged over all orders in which parts may come."""

    technique: ClassVar[str] = "shapley_values"

    standard_error: Float[np.ndarray, "part"]
    """Of the mean attribution, by the drawn orders or coalitions (the intervals are by the samples). 0 if exact."""
    exact: bool
    """Whether all coalitions were asked for."""
    n_coalitions: float
    """Coalitions asked for, per sample."""
    n_idle: int
    """Parts that equal their baseline in every sample: their value is 0."""

    def reading(self) -> str:
        """Say on which parts the answer rests, and how exact that is."""
        how = f"Exact: all {self.n_coalitions:.0f} coalitions of every sample."
        if not self.exact:
            size = float(np.abs(self.attribution).max())
            noise = f"{self.standard_error.max() / size:.1%} of the largest value" if size else "0"
            how = f"Estimated from {self.n_coalitions:.0f} coalitions per sample: standard errors are at most {noise}."
        return f"{self.finding()} {how}"


def shapley_values(
    model: nn.Module,
    inputs: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample"] | None = None,
    baseline: Num[np.ndarray, "..."] | None = None,
    dictionary: SparseDictionary | None = None,
    *,
    config: ShapleyValuesConfig = ShapleyValuesConfig(),
) -> ShapleyValues:
    """Divide a model's answer fairly among inputs, units, positions, heads, sites or dictionary features.

    Use it with few parts (heads, positions, sites), or as the reference for cheaper techniques. It needs no gradients,
    and counts interactions: what two parts do only together is shared between them. Coalitions are mixtures of sample
    and baseline that the model may never have met, and the answer depends on the baseline as much as on the sample.

    Parameters
    ----------
    model
        Any module; run in eval mode, and left as it was.
    inputs
        Samples first, passed to `model` as its only argument. Integers (tokens) need `config.site`, or a `baseline`
        and `parts='position'`: then tokens are exchanged for the baseline's.
    target
        The class to explain for each sample; None: the one the model gives.
    baseline
        Inputs whose values absent parts take, one row for all samples or one each; at a site, what the model computes
        there from them.
    dictionary
        Attribute to its latents in place of the site's units; what they leave unexplained is one more part.
    config
        Players, answer, method.

    Returns
    -------
    ShapleyValues
        Values in units of the answer; they add up to its change to rounding, whatever the method. Intervals are over
        samples, `standard_error` over draws. Intervals are NaN for one sample; shares NaN if every value is 0.

    Raises
    ------
    ShapeError
        If the arrays do not belong together, or do not fit the model, the site, the heads or the dictionary.
    ConfigurationError
        If options contradict each other, a target is not a class, or there are too many players for `method='exact'`.
    DegenerateInputError
        If the inputs or the model's outputs are not finite.
    NotFoundError
        If the model has no such site, or does not run it.
    MemoryBudgetError
        If a batch does not fit in memory.

    Notes
    -----
    Beyond the papers: orders are drawn anew for every sample, so that their errors average out over samples too (the
    coalitions of the kernel are shared); and parts that equal their baseline in a sample take no part in its orders,
    which makes the latents of a sparse dictionary affordable.

    References
    ----------
    [@shapley1953]
    [@lundberg2017]
    [@adebayo2018]

    Examples
    --------
    >>> class Product(nn.Module):
    ...     def forward(self, x):
    ...         return 6 * x[:, 0] * x[:, 1] + x[:, 2]
    >>> result = shapley_values(Product(), np.ones((1, 3)), config=ShapleyValuesConfig(objective="output"))
    >>> result.attribution.round(6).tolist()  # what two do together is shared
    [3.0, 3.0, 1.0]
    """
    samples = chosen_samples(inputs, target, baseline, config)
    roughly = replace(config, method="auto", **_ROUGH)
    with memory_remedy(f"Set memory below {config.memory}."):
        played = _play(model, samples, dictionary, config)
        compared = compare_with_shuffled(
            model,
            samples,
            played.found.target,
            lambda model, few: _play(model, few, dictionary, roughly).found,
            config,
        )
    return ShapleyValues(
        **summarise(played.found, compared, config),
        standard_error=np.sqrt((played.standard_error**2).sum(axis=0)) / len(played.standard_error),
        exact=played.exact,
        n_coalitions=played.n_coalitions,
        n_idle=played.n_idle,
    )


class _Played(NamedTuple):
    found: Explained
    standard_error: Float[np.ndarray, "sample part"]
    exact: bool
    n_coalitions: float
    n_idle: int


def _play(
    model: nn.Module, samples: Samples, dictionary: SparseDictionary | None, config: ShapleyValuesConfig
) -> _Played:
    with differentiation(model):
        game = (PartsGame if config.players == "parts" else SitesGame)(
            model, samples, dictionary, config, config.baseline
        )
        blocks = torch.arange(game.answer.n_samples, device=game.answer.inputs.device).split(BLOCK_SAMPLES)
        differs = np.concatenate([game.differs(rows) for rows in blocks])
        players = np.flatnonzero(differs.any(axis=0))
        method = _method(len(players), config)
        value, error = np.zeros(differs.shape), np.zeros(differs.shape)
        change, asked, complete = np.zeros(len(differs)), 0.0, True
        for index, rows in enumerate(blocks if len(players) else ()):
            here, worth = rows.cpu().numpy(), game.worth(rows, players)
            found = _estimated(method, worth, differs[here][:, players], index, config)
            value[np.ix_(here, players)], error[np.ix_(here, players)] = found.value, found.standard_error
            change[here] = found.change
            asked, complete = asked + found.n_coalitions * len(here) / len(differs), complete and found.complete
        target = None if game.answer.target is None else game.answer.target.cpu().numpy()
    grid = value.mean(axis=0, keepdims=True)
    n_idle = differs.shape[1] - len(players)
    return _Played(Explained(value, change, game.names, target, grid), error, complete, asked, n_idle)


def _method(n_players: int, config: ShapleyValuesConfig) -> Method:
    """Return the method to use, and refuse one that this many players make impossible."""
    if config.method == "exact" and n_players > EXACT_AT_MOST:
        raise ConfigurationError(
            f"method='exact' is for at most {EXACT_AT_MOST} players. Got {n_players}. Use 'permutation'."
        )
    if config.method == "kernel" and config.n_coalitions < min(4 * n_players, 2**n_players - 2):
        raise ConfigurationError(
            f"n_coalitions must be at least four times the number of players, {n_players}. Got {config.n_coalitions}."
        )
    if n_players <= 1 or (config.method == "auto" and n_players <= config.max_exact):
        return "exact"
    return "permutation" if config.method == "auto" else config.method


def _estimated(
    method: Method,
    worth: Worth,
    differs: Bool[np.ndarray, "sample player"],
    block: int,
    config: ShapleyValuesConfig,
) -> Shapley:
    n_samples, n_players = differs.shape
    if method == "exact":
        return exact(worth, n_samples, n_players)
    if method == "kernel":
        rng = generator(config.seed, "shapley_values", "kernel")  # for all blocks the same coalitions
        return by_kernel(worth, n_samples, n_players, n_coalitions=config.n_coalitions, rng=rng)
    rng = generator(config.seed, "shapley_values", "permutation", block)
    return by_permutations(worth, differs, n_pairs=config.n_pairs, rng=rng)
