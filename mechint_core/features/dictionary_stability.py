"""Whether dictionaries trained from different seeds hold the same features.

    cos_st,j  = |W_s,j . W_t,partner(j)|        partners: the best one-to-one pairing of dictionaries s and t
    stable    = share of latents j, over all s, with cos_st,j > c for every other t
    MCC_st    = mean over j of cos_st,j

A latent that only one seed finds is a choice among several ways to write the same activations, not a fact about them.
The null is sets of random directions in the dictionaries' place.

Source: [@paulo2025], [@song2025].
Cost: (1 + n_null) S (S - 1) / 2 products and pairings for S dictionaries, the null's of at most `null_latents` rows;
`_pairing.py` says what bounds the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.features._pairing import pair_rows, unit_rows
from mechint_core.figure import Figure, Histogram, Matrix
from mechint_core.kernels.resampling import estimate
from mechint_core.parallel import Rows
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class DictionaryStabilityConfig:
    """How sure to be of stability."""

    stable_above: float = 0.7
    """A latent counts as stable when its partner's cosine in every other dictionary is above this [@paulo2025]."""
    n_bootstrap: int = 200
    """Bootstrap draws of the latents, for intervals."""
    n_null: int = 19
    """Sets of random directions to compare with; 19 allow p = 0.05."""
    null_latents: int = 1024
    """Latents of a random dictionary, at most: more would find closer partners, by less than 0.02 per doubling."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        if min(self.n_bootstrap, self.n_null, self.null_latents) < 1 or self.seed < 0:
            raise ConfigurationError(
                f"n_bootstrap, n_null and null_latents must be at least 1, seed at least 0. Got {self}."
            )
        if not (0 < self.level < 1 and 0 < self.stable_above < 1):
            raise ConfigurationError(f"level and stable_above must be in (0, 1). Got {self}.")


@dataclass(frozen=True, slots=True)
class DictionaryStability(Result):
    """How much of what one seed finds, every other seed finds too."""

    technique: ClassVar[str] = "dictionary_stability"
    evidence: ClassVar[str] = (
        "Intervals: bootstrap over latents, as many per draw as one dictionary has. "
        "Null: as many sets of random directions of the same sizes."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Matrix(values="pair_mcc", title="Mean |cosine| of paired latents", x_label="dictionary", y_label="dictionary"),
        Histogram(
            values="least_cosine",
            title="How well each latent is found by the seed that finds it worst",
            x_label="smallest |cosine| with its partners",
        ),
    )

    stable: Estimate
    mcc: Estimate
    n_dictionaries: int
    least_cosine: Float[np.ndarray, "latent"]
    """The latents of the first dictionary, then those of the second, ..."""
    pair_mcc: Float[np.ndarray, "dictionary other_dictionary"]

    def reading(self) -> str:
        """Say how much of a dictionary is there for every seed."""
        if self.mcc.p_value > 1 - self.mcc.level + 1e-9:
            return (
                f"The {self.n_dictionaries} dictionaries share no more than random directions would: mean |cosine| "
                f"{self.mcc.value:.3f}, {self.mcc.null:.3f} by chance (p = {self.mcc.p_value:.2g})."
            )
        return (
            f"{self.stable.value:.0%} [{self.stable.low:.0%}, {self.stable.high:.0%}] of the latents are found by all "
            f"{self.n_dictionaries} dictionaries (by chance {self.stable.null:.0%}); paired latents have a mean "
            f"|cosine| of {self.mcc.value:.3f}, random directions {self.mcc.null:.3f}."
        )


def dictionary_stability(
    decoders: Sequence[Float[Rows, "_ unit"]],
    *,
    config: DictionaryStabilityConfig = DictionaryStabilityConfig(),
) -> DictionaryStability:
    """Find how many latents every one of several dictionaries holds.

    Use it on dictionaries of one site trained alike from different seeds, before giving latents names. It compares
    directions, not when they are active. Stable latents are not thereby true ones: dictionaries can agree on an
    artefact of the sparsity they share.

    Parameters
    ----------
    decoders
        The decoder rows of at least two dictionaries over the same units; none of length zero. Their numbers of rows
        may differ.
    config
        What counts as stable, and how sure to be.

    Returns
    -------
    DictionaryStability
        `stable`, the share of latents with a partner in every other dictionary, and `mcc`, the mean |cosine| of
        partners (latents without one count as 0), in [0, 1]: 1 when all hold the same rows up to order, sign and
        length. `least_cosine` per latent; `pair_mcc` per pair, 1 on the diagonal.

    Raises
    ------
    ShapeError
        If there are fewer than two dictionaries, one is not a matrix with at least one row, or their units differ.
    DegenerateInputError
        If a row is zero or not finite.

    References
    ----------
    [@paulo2025]
    [@song2025]

    Examples
    --------
    >>> rows = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> other = np.array([[0.0, 0.0, 2.0], [3.0, 0.0, 0.0]])
    >>> result = dictionary_stability([rows, rows[::-1], other])
    >>> (result.stable.value, result.least_cosine.tolist())
    (0.5, [1.0, 0.0, 0.0, 1.0, 0.0, 1.0])
    """
    shapes = [each.shape for each in decoders]
    if len(shapes) < 2 or any(len(shape) != 2 or 0 in shape or shape[1] != shapes[0][1] for shape in shapes):
        raise ShapeError(f"decoders must be at least two (latent >= 1, unit) with equal units. Got shapes {shapes}.")
    cosines = _partner_cosines([unit_rows(each[:], f"decoder {index}") for index, each in enumerate(decoders)])
    null = np.array([_chance(shapes, draw, config) for draw in range(config.n_null)])
    rng, largest = generator(config.seed, "bootstrap"), max(shape[0] for shape in shapes)
    # One feature that S seeds find is S rows but one piece of evidence: a draw holds no more rows than a dictionary.
    draws = rng.integers(0, sum(shape[0] for shape in shapes), (config.n_bootstrap, largest))

    def mean(values: Float[np.ndarray, "latent"], null: Float[np.ndarray, "draw"]) -> Estimate:
        return estimate(float(values.mean()), bootstrap=values[draws].mean(axis=1), null=null, level=config.level)

    return DictionaryStability(
        stable=mean(_stable(cosines, config).astype(np.float64), null[:, 0]),
        mcc=mean(np.concatenate([np.nanmean(each, axis=0) for each in cosines]), null[:, 1]),
        n_dictionaries=len(shapes),
        least_cosine=np.concatenate([np.nanmin(each, axis=0) for each in cosines]),
        pair_mcc=_pair_means(cosines),
    )


def _partner_cosines(
    dictionaries: Sequence[Float[np.ndarray, "_ unit"]],
) -> list[Float[np.ndarray, "other_dictionary _"]]:
    """Return for each dictionary the |cosine| of its latents with their partners in each other one, NaN in itself."""
    cosines = [np.full((len(dictionaries), len(each)), NAN) for each in dictionaries]
    for s, t in combinations(range(len(dictionaries)), 2):
        found = pair_rows(dictionaries[s], dictionaries[t])
        paired = found.partner >= 0
        cosines[t][s], cosines[s][t] = found.cosine, 0.0
        cosines[s][t, found.partner[paired]] = found.cosine[paired]
    return cosines


def _stable(
    cosines: Sequence[Float[np.ndarray, "other_dictionary _"]], config: DictionaryStabilityConfig
) -> Bool[np.ndarray, "latent"]:
    return np.concatenate([np.nanmin(each, axis=0) > config.stable_above for each in cosines])


def _pair_means(
    cosines: Sequence[Float[np.ndarray, "other_dictionary _"]],
) -> Float[np.ndarray, "dictionary other_dictionary"]:
    """Return the mean over the latents of both dictionaries of a pair."""
    total = np.array([each.sum(axis=1) for each in cosines])
    sizes = np.array([each.shape[1] for each in cosines])
    means = (total + total.T) / (sizes[:, None] + sizes)
    np.fill_diagonal(means, 1.0)
    return means


def _chance(shapes: Sequence[tuple[int, ...]], draw: int, config: DictionaryStabilityConfig) -> tuple[float, float]:
    """Return the share of stable latents and the mean |cosine| of partners for random directions."""
    rng = generator(config.seed, "null", draw)
    random = [
        unit_rows(rng.standard_normal((min(n_latents, config.null_latents), n_units)), "null")
        for n_latents, n_units in shapes
    ]
    cosines = _partner_cosines(random)
    means = np.concatenate([np.nanmean(each, axis=0) for each in cosines])
    return float(_stable(cosines, config).mean()), float(means.mean())
