"""Searchlight: where in a recording conditions are told apart as a model does.

    r_c = corr_{i<j}(D_ij, E_ij(N_c))      D: dissimilarities of the model, E(N): of the recording's channels in N
    N_c = channels within `radius` of centre c, or the k nearest to it: in space, or by the correlation of responses

Every centre is compared with the same relabelled models, so the largest r of each relabelling is the null of the
largest r found, and corrects each centre for all of them; q-values are from each centre's own null.

A neighbourhood's squared Euclidean dissimilarities are the sum of its channels' own, but adding those k n² / 2 numbers
from memory takes longer than the product of its n x k responses, which also serves the other metrics: so each
neighbourhood is one product, those of equal size together.

Source: [@kriegeskorte2006], [@mantel1967] (relabelling), [@westfall1993] (the maximum), [@benjamini1995] (q-values).
Cost: n² (k + draws) / 2 per centre. Memory: 32 MB of matrices and 8 MB of relabelled models per worker, whatever the
number of centres, and the list of neighbourhoods.
Chunked over: centres.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, get_args

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree

from mechint_core.alignment._comparisons import coordinates
from mechint_core.alignment._conditions import ROUNDING, Draws, bootstrap_agreement
from mechint_core.alignment._stacked import (
    ComparedModel,
    DotComparison,
    RowMetric,
    blocks_of,
    check_choices,
    check_conditions,
    corrected_p_values,
    stacked_distances,
)
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Figure, Histogram, Scatter
from mechint_core.kernels.false_discovery import false_discovery_rate
from mechint_core.kernels.resampling import critical_value, percentile_interval
from mechint_core.parallel import map_parallel
from mechint_core.result import NAN, Estimate, Result

Neighbourhood = Literal["space", "correlation"]

PIECE_BYTES = 2 * 2**20
"""Responses of neighbourhoods that are multiplied at once: they stay in the cache."""
CENTRE_ROWS = 256
"""Centres whose correlations with all channels are held at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchlightConfig:
    """How to map the agreement of a model with a recording."""

    metric: RowMetric = "correlation"
    """Dissimilarity of two conditions: euclidean (squared, per channel), correlation or cosine."""
    comparison: DotComparison = "pearson"
    """Agreement of two sets of dissimilarities: pearson, cosine or spearman."""
    neighbourhood: Neighbourhood = "space"
    """What makes channels neighbours: near positions, or correlated responses (no positions needed)."""
    radius: float = 0.0
    """Reach of a neighbourhood in space, in the unit of the positions; 0 takes the nearest `n_neighbours`."""
    n_neighbours: int = 50
    """Channels of a neighbourhood, its centre among them, where no radius is given."""
    stride: int = 1
    """Every how many channels a centre is."""
    min_channels: int = 5
    """Centres with fewer channels are NaN."""
    n_bootstrap: int = 500
    """Bootstrap draws of conditions, for the interval of the strongest centre."""
    n_permutations: int = 500
    """Relabellings of conditions (Mantel), the same for every centre."""
    level: float = 0.95
    """Confidence of the interval; 1 - level is the chance of any false centre."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        check_choices(self.metric, self.comparison)
        if self.neighbourhood not in get_args(Neighbourhood):
            raise ConfigurationError(
                f"neighbourhood must be one of {get_args(Neighbourhood)}. Got {self.neighbourhood!r}."
            )
        if not (math.isfinite(self.radius) and self.radius >= 0):
            raise ConfigurationError(f"radius must be at least 0. Got {self.radius}.")
        if self.radius > 0 and self.neighbourhood == "correlation":
            raise ConfigurationError("radius must be 0 for neighbourhoods by correlation: set n_neighbours.")
        if min(self.n_neighbours, self.stride, self.min_channels) < 1:
            raise ConfigurationError(
                "n_neighbours, stride and min_channels must be at least 1. "
                f"Got {self.n_neighbours}, {self.stride} and {self.min_channels}."
            )
        _ = self.draws

    @property
    def draws(self) -> Draws:
        """The draws that interval and null are made of."""
        return Draws(n_bootstrap=self.n_bootstrap, n_permutations=self.n_permutations, level=self.level, seed=self.seed)


@dataclass(frozen=True, slots=True)
class SearchlightResult(Result):
    """Agreement of a model with the neighbourhood of each centre."""

    technique: ClassVar[str] = "searchlight"
    evidence: ClassVar[str] = (
        "The interval is a bootstrap over conditions at the centre that was strongest, which being chosen flatters; "
        "the null is the largest agreement over all centres after relabelling the conditions (Mantel)."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Scatter(
            points="place", colour="agreement", title="Where the recording agrees with the model",
            colour_label="agreement",
        ),
        Histogram(values="agreement", title="Agreement over all centres", x_label="agreement"),
    )  # fmt: skip

    strongest: Estimate
    """The largest agreement over centres."""
    strongest_centre: int
    """Its channel."""
    n_significant: int
    """Centres with a corrected p-value of at most 1 - level."""
    n_discovered: int
    """Centres with a q-value of at most 1 - level."""
    n_centres: int
    n_too_small: int
    """Centres that are NaN because their neighbourhoods have fewer than `min_channels`."""
    n_undefined: int
    """Centres that are NaN because a condition has no dissimilarity there, or all are alike (dead channels)."""
    threshold: float
    """What an agreement must exceed to be significant over all centres; NaN if the relabellings are too few to say."""
    agreement: Float[np.ndarray, "centre"]
    p_value: Float[np.ndarray, "centre"]
    """Of each centre, corrected for all of them (chance of any false centre)."""
    q_value: Float[np.ndarray, "centre"]
    """Share of false ones among centres called at this value (Benjamini and Hochberg)."""
    n_channels: Int[np.ndarray, "centre"]
    """Channels in each neighbourhood."""
    centre: Int[np.ndarray, "centre"]
    """The channel at each centre."""
    place: Float[np.ndarray, "centre coordinate"]
    """Position of each centre; its channel and 0 without positions."""

    def reading(self) -> str:
        """Say how strong the strongest centre is, and how many are distinguishable from chance."""
        found = self.strongest
        text = f"Of {self.n_centres} centres, channel {self.strongest_centre} agrees most: {found.value:.3f}"
        if not math.isnan(found.low):
            text += f" [{found.low:.3f}, {found.high:.3f}]"
        if math.isnan(found.p_value):
            return f"{text}; no relabelling was done, so nothing says what chance would give."
        text += f", where relabelled conditions reach {found.null:.3f} somewhere (p = {found.p_value:.2g})"
        if not self.n_significant:
            return f"{text}: no centre is distinguishable from chance."
        return f"{text}; {self.n_significant} centres are significant over all, {self.n_discovered} by false discovery."


def searchlight(
    x: Float[np.ndarray, "condition unit"],
    y: Float[np.ndarray, "condition channel"],
    position: Float[np.ndarray, "channel coordinate"] | None = None,
    *,
    config: SearchlightConfig = SearchlightConfig(),
) -> SearchlightResult:
    """Ask where in a recording conditions are told apart as a model does.

    Use it to find the places, or the groups of like-minded channels, that share a model's geometry. It assumes that
    row i of both answers the same condition. A significant centre says that its neighbourhood holds something of the
    model's geometry, not that the centre does, and not that its neighbours do not: a small strong source colours a
    whole sphere, of the size of the searchlight.

    Parameters
    ----------
    x
        The model: one row per condition, at least 4.
    y
        The recording: one row per condition, one column per channel (voxel, electrode, unit).
    position
        Where each channel is, in one to any number of coordinates. Not used for neighbourhoods by correlation, but
        the map is drawn there.
    config
        Which dissimilarity and agreement, which neighbourhoods, and how interval and null are found.

    Returns
    -------
    SearchlightResult
        `agreement` is dimensionless, in [-1, 1] (cosine: in [0, 1]); 1 where the dissimilarities are proportional
        (cosine), linearly related and rising (pearson), or in the same order (spearman).

    Raises
    ------
    ShapeError
        If `x` or `y` is not two-dimensional, their conditions differ or are fewer than 4, or `position` has not one
        finite row per channel.
    ConfigurationError
        If neighbourhoods are spatial and no position is given.
    DegenerateInputError
        If a system holds NaN or infinity, the model's dissimilarities are all the same or undefined, or no centre has
        an agreement.

    Notes
    -----
    With N relabellings no p-value is below 1 / (N + 1), and q-values have that resolution too: where one centre in
    thousands agrees, only the maximum can find it. Neighbourhoods by correlation are made from the recording alone,
    so the null holds for them too.

    References
    ----------
    [@kriegeskorte2006]
    [@mantel1967]
    [@westfall1993]
    [@benjamini1995]

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(12, 3)), rng.normal(size=(12, 40))
    >>> y[:, 10:13] = x
    >>> line = np.arange(40.0)[:, None]
    >>> found = searchlight(x, y, line, config=SearchlightConfig(radius=1.0, min_channels=3))
    >>> found.strongest_centre, round(found.strongest.value, 12), found.n_too_small
    (11, 1.0, 2)
    """
    _check(x, y, position, config)
    centre, draws, n_pairs = np.arange(0, y.shape[1], config.stride), config.draws, len(x) * (len(x) - 1) // 2
    members = _neighbourhoods(y, position, centre, config)
    model = ComparedModel.of(
        stacked_distances(x[:, None].astype(np.float64), config.metric)[0],
        config.comparison,
        permutations=draws.permutations(len(x)),
        counts=draws.counts(len(x)),
    )
    n_channels = np.array([len(each) for each in members])
    large = np.flatnonzero(n_channels >= config.min_channels)
    large = large[np.argsort(n_channels[large], kind="stable")]  # equal sizes side by side
    compare = _CompareCentres(y.astype(np.float64), model, members, config.metric)
    parts = map_parallel(compare, [large[block] for block in blocks_of(len(large), n_pairs)])
    found = _join(large, len(centre), config.n_permutations, *parts)
    if np.all(np.isnan(found.value)):
        raise DegenerateInputError(
            f"a centre must have at least {config.min_channels} channels with dissimilarities that differ. "
            f"Got none of {len(centre)}: the largest has {n_channels.max()} channels."
        )
    at = int(np.nanargmax(found.value))
    threshold = float(critical_value(found.null_maximum, config.level))
    p_value = corrected_p_values(found.value, found.null_maximum)
    alone = (1 + found.n_as_high) / (1 + config.n_permutations) if config.n_permutations else np.full(len(centre), NAN)
    q_value, alpha = false_discovery_rate(alone), 1 - config.level + ROUNDING
    return SearchlightResult(
        strongest=_strongest(found, p_value[at], at, compare, draws),
        strongest_centre=int(centre[at]),
        n_significant=int(np.sum(p_value <= alpha)),
        n_discovered=int(np.sum(q_value <= alpha)),
        n_centres=len(centre),
        n_too_small=len(centre) - len(large),
        n_undefined=int(np.sum(np.isnan(found.value[large]))),
        threshold=threshold if math.isfinite(threshold) else NAN,
        agreement=found.value,
        p_value=p_value,
        q_value=q_value,
        n_channels=n_channels,
        centre=centre,
        place=_place(position, centre),
    )


def _check(x: np.ndarray, y: np.ndarray, position: np.ndarray | None, config: SearchlightConfig) -> None:
    if y.ndim != 2:
        raise ShapeError(f"y must be (condition, channel). Got shape {y.shape}.")
    check_conditions(x, y)
    if position is None:
        if config.neighbourhood == "space":
            raise ConfigurationError(
                "position must be given for neighbourhoods in space. Got None: set neighbourhood to 'correlation'."
            )
    elif position.ndim != 2 or len(position) != y.shape[1] or not np.all(np.isfinite(position)):
        raise ShapeError(f"position must be one finite row per channel, {y.shape[1]}. Got shape {position.shape}.")


def _neighbourhoods(
    y: np.ndarray, position: np.ndarray | None, centre: np.ndarray, config: SearchlightConfig
) -> list[np.ndarray]:
    """Return the channels of each centre's neighbourhood, ascending."""
    k = min(config.n_neighbours, y.shape[1])
    if config.neighbourhood == "correlation" or position is None:
        return _correlated(y, centre, k)
    tree = KDTree(position)
    if config.radius > 0:
        near = KDTree(position[centre]).sparse_distance_matrix(tree, config.radius, output_type="ndarray")
        near = near[np.lexsort((near["j"], near["i"]))]  # 3 times faster than query_ball_point's lists
        return np.split(near["j"], np.searchsorted(near["i"], np.arange(1, len(centre))))
    return list(np.sort(tree.query(position[centre], k)[1].reshape(-1, k), axis=1))


def _correlated(y: np.ndarray, centre: np.ndarray, k: int) -> list[np.ndarray]:
    """Return each centre's k most correlated channels; a channel that is constant correlates with none."""
    channels = y.T - y.T.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(channels, axis=1, keepdims=True)
    channels = np.divide(channels, norms, out=np.zeros_like(channels), where=norms > 0)
    members: list[np.ndarray] = []
    for start in range(0, len(centre), CENTRE_ROWS):
        these = centre[start : start + CENTRE_ROWS]
        likeness = channels[these] @ channels.T
        likeness[np.arange(len(these)), these] = np.inf
        members.extend(np.sort(np.argpartition(-likeness, k - 1, axis=1)[:, :k], axis=1))
    return members


@dataclass(frozen=True, slots=True)
class _Found:
    """Agreement of some centres, and how relabelled models agree with them."""

    value: Float[np.ndarray, "centre"]
    n_as_high: Float[np.ndarray, "centre"]
    """Relabelled models that agree with the centre as well as the model does."""
    null_maximum: Float[np.ndarray, "draw"]
    """The largest agreement of each relabelled model."""


@dataclass(frozen=True, slots=True)
class _CompareCentres:
    """Compare the model with the neighbourhoods of given centres."""

    y: np.ndarray
    model: ComparedModel
    members: Sequence[np.ndarray]
    metric: RowMetric

    def __call__(self, centres: np.ndarray) -> _Found:
        standard = coordinates(self.dissimilarities(centres), self.model.comparison)
        defined = np.isfinite(standard[:, 0])
        standard = standard if defined.all() else standard[defined]
        value, n_as_high = np.full((2, len(centres)), np.nan)
        value[defined] = standard @ self.model.standard
        null = self.model.null(standard)
        n_as_high[defined] = np.sum(null >= value[defined] - ROUNDING, axis=0)
        return _Found(value, n_as_high, null.max(axis=1, initial=-np.inf))

    def dissimilarities(self, centres: np.ndarray) -> Float[np.ndarray, "rdm pair"]:
        """Return the matrix of each centre; NaN where a condition has no dissimilarity."""
        n, sizes = len(self.y), np.array([len(self.members[each]) for each in centres])
        rdms = np.empty((len(centres), n * (n - 1) // 2))
        edges = [0, *(np.flatnonzero(np.diff(sizes)) + 1), len(centres)]
        for start, stop in pairwise(edges):
            step = max(1, PIECE_BYTES // (8 * n * (n + int(sizes[start]))))
            for first in range(start, stop, step):
                piece = slice(first, min(first + step, stop))
                rdms[piece] = self._of_equal_size(np.array([self.members[each] for each in centres[piece]]))
        return rdms

    def _of_equal_size(self, channels: Int[np.ndarray, "centre channel"]) -> np.ndarray:
        try:
            return stacked_distances(self.y[:, channels], self.metric)
        except DegenerateInputError:  # of one of them: found by halves
            if len(channels) == 1:
                return np.full((1, len(self.model.pairs)), np.nan)
            half = len(channels) // 2
            return np.concatenate([self._of_equal_size(channels[:half]), self._of_equal_size(channels[half:])])


def _join(large: np.ndarray, n_centres: int, n_draws: int, *parts: _Found) -> _Found:
    """Put the centres that were compared in their places, and take the largest agreement of each draw."""
    value, n_as_high = np.full((2, n_centres), np.nan)
    null_maximum = np.full(n_draws, -np.inf)
    if parts:
        value[large] = np.concatenate([part.value for part in parts])
        n_as_high[large] = np.concatenate([part.n_as_high for part in parts])
        null_maximum = np.max([part.null_maximum for part in parts], axis=0)
    return _Found(value, n_as_high, null_maximum)


def _strongest(found: _Found, p_value: float, at: int, compare: _CompareCentres, draws: Draws) -> Estimate:
    """Bind the largest agreement to its interval at that centre, and to the largest of relabelled models."""
    model, there = compare.model, compare.dissimilarities(np.array([at]))[0]
    boot = bootstrap_agreement(model.pairs, there, model.comparison, counts=model.counts)
    low, high = percentile_interval(boot, draws.level)
    null = float(found.null_maximum.mean()) if draws.n_permutations else NAN
    return Estimate(float(found.value[at]), low, high, null, float(p_value), draws.level)


def _place(position: np.ndarray | None, centre: np.ndarray) -> np.ndarray:
    """Return where each centre is drawn, in at least two coordinates."""
    place = centre[:, None] if position is None else position[centre]
    missing = max(0, 2 - place.shape[1])
    return np.pad(place.astype(np.float64), ((0, 0), (0, missing)))
