"""Whether two dictionaries hold the same features.

    cos_ij = |a_i . b_j| / (|a_i| |b_j|)
    MMCS   = mean over j of max over i of cos_ij                 every b_j may choose the same a_i
    MCC    = mean of cos over the best one-to-one pairing        Hungarian algorithm

Between a trained dictionary and planted truth this is recovery; between two seeds, stability. The null is random
directions in the place of a: cosines grow with the number of features and shrink with the number of units.

Source: [@sharkey2022] for MMCS, [@paulo2025] for the pairing.
Cost: (1 + n_null) products and pairings; `_pairing.py` says what bounds them for large dictionaries.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.features._pairing import pair_rows, unit_rows
from mechint_core.figure import Figure, Histogram
from mechint_core.kernels.resampling import bootstrap_rows, estimate
from mechint_core.random import generator
from mechint_core.result import Estimate, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchFeaturesConfig:
    """How sure to be of a match."""

    recovered_above: float = 0.9
    """A feature counts as recovered when its partner's cosine is above this."""
    n_bootstrap: int = 200
    """Bootstrap draws of the features, for intervals."""
    n_null: int = 19
    """Sets of random directions to compare with; 19 allow p = 0.05."""
    null_features: int = 1024
    """Features that random directions are matched to, at most. Fewer features compete less for the same directions,
    so that the null is, if anything, too high."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        if min(self.n_bootstrap, self.n_null, self.null_features) < 1 or self.seed < 0:
            raise ConfigurationError(
                f"n_bootstrap, n_null and null_features must be at least 1, seed at least 0. Got {self}."
            )
        if not (0 < self.level < 1 and 0 < self.recovered_above < 1):
            raise ConfigurationError(f"level and recovered_above must be in (0, 1). Got {self}.")


@dataclass(frozen=True, slots=True)
class MatchFeatures(Result):
    """How well the features of one dictionary are found in another."""

    technique: ClassVar[str] = "match_features"
    evidence: ClassVar[str] = "Intervals: bootstrap over features. Null: random directions, as many as latents."
    figures: ClassVar[tuple[Figure, ...]] = (
        Histogram(
            values="partner_cosine", title="How well each feature is matched", x_label="|cosine| with its partner"
        ),
    )

    mmcs: Estimate
    mcc: Estimate
    recovered: Estimate
    n_unmatched: int
    best_cosine: Float[np.ndarray, "feature"]
    partner_cosine: Float[np.ndarray, "feature"]
    partner: Int[np.ndarray, "feature"]

    def reading(self) -> str:
        """Say whether these are the same features."""
        if self.mcc.p_value > 1 - self.mcc.level + 1e-9:
            return (
                f"The dictionaries share no more than chance: mean |cosine| {self.mcc.value:.3f} one to one, "
                f"{self.mcc.null:.3f} for random directions (p = {self.mcc.p_value:.2g})."
            )
        return (
            f"{self.recovered.value:.0%} of the {len(self.partner)} features have a partner of their own; the mean "
            f"|cosine| is {self.mcc.value:.3f} one to one, where random directions give {self.mcc.null:.3f}."
        )


def match_features(
    a: Float[np.ndarray, "latent unit"],
    b: Float[np.ndarray, "feature unit"],
    *,
    config: MatchFeaturesConfig = MatchFeaturesConfig(),
) -> MatchFeatures:
    """Find how many of the features in `b` the dictionary `a` holds.

    Use it for recovery of planted features, or for stability between seeds, sites or checkpoints. Sign is ignored,
    and so is how often a feature is used. Two dictionaries may span the same space and share no feature.

    Parameters
    ----------
    a
        Directions that may match, one per row, none of length zero.
    b
        Directions to be found, in the same units.
    config
        Draws and confidence.

    Returns
    -------
    MatchFeatures
        `mmcs` and `mcc` in [0, 1]: 1 when each row of `b` is a row of `a` up to order, sign and length. `recovered`
        is the share with a partner above `recovered_above`. `partner` is the row of `a` matched to each row of `b`,
        -1 (cosine 0) for the `n_unmatched` ones when `b` is larger; `best_cosine` is each row's best without pairing.

    Raises
    ------
    ShapeError
        If either is not a matrix with at least one row, or their numbers of units differ.
    DegenerateInputError
        If a row is zero or not finite.

    Notes
    -----
    If both dictionaries have more than 2000 rows, a feature's partner is sought among its 32 best latents only, and
    `mcc` is a lower bound: equal to four digits where both were computed.

    References
    ----------
    [@sharkey2022]
    [@paulo2025]

    Examples
    --------
    >>> directions = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> result = match_features(-2 * directions[::-1], directions)
    >>> (result.mcc.value, result.partner.tolist())
    (1.0, [1, 0])
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise ShapeError(f"a and b must be (row >= 1, unit) with equal units. Got shapes {a.shape} and {b.shape}.")
    features, rng = unit_rows(b, "b"), generator(config.seed, "bootstrap")
    best, partner, cosine = pair_rows(unit_rows(a, "a"), features)
    null = np.array([_chance(len(a), features, draw, config) for draw in range(config.n_null)])

    def mean(values: Float[np.ndarray, "feature"], null: Float[np.ndarray, "draw"]) -> Estimate:
        draws = None
        if len(values) > 1:
            draws = bootstrap_rows(
                lambda rows: float(values[rows].mean()), len(values), n_draws=config.n_bootstrap, rng=rng
            )
        return estimate(float(values.mean()), bootstrap=draws, null=null, tail="greater", level=config.level)

    return MatchFeatures(
        mmcs=mean(best, null[:, 0]),
        mcc=mean(cosine, null[:, 1]),
        recovered=mean((cosine > config.recovered_above).astype(np.float64), null[:, 2]),
        n_unmatched=int(np.sum(partner < 0)),
        best_cosine=best,
        partner_cosine=cosine,
        partner=partner,
    )


def _chance(
    n_latents: int, features: Float[np.ndarray, "feature unit"], draw: int, config: MatchFeaturesConfig
) -> tuple[float, float, float]:
    """Return the three means for random directions."""
    rng = generator(config.seed, "null", draw)
    random = unit_rows(rng.standard_normal((n_latents, features.shape[1])), "null")
    if len(features) > config.null_features:
        features = features[rng.choice(len(features), config.null_features, replace=False)]
    found = pair_rows(random, features)
    return float(found.best.mean()), float(found.cosine.mean()), float(np.mean(found.cosine > config.recovered_above))
