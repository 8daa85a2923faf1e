"""Persistence vineyard: when during training loops arise, how long they live, and when they vanish.

    barcode     of every checkpoint, on the same samples; lengths relative to its enclosing radius
    vine        bars of successive checkpoints that the best 2-Wasserstein matching pairs, chained
    longest     l_c = the longest bar at checkpoint c;  peak = max_c l_c
    null        the same after one random rotation of the samples (not of the units) at all checkpoints: Gaussian
                clouds with each covariance and between any two, reduced to landmarks alike; of the peak: max too
    onset       first step of the run of checkpoints, up to the peak, whose longest bar is beyond 95 % of their null

Source: [@cohensteiner2006] (vines), [@cohensteiner2007], [@langsrud2005].
Cost: (1 + n_surrogates + n_resamples) barcodes and n_surrogates rotations per checkpoint, and one assignment between
neighbours.
Chunked over: checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import cdist

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Curve, Matrix
from mechint_core.geometry._point_cloud import FEWEST_POINTS, Conditions, maxmin_landmarks, principal_axes
from mechint_core.geometry._rotated_samples import drawn_samples, rotated_landmarks
from mechint_core.geometry._vietoris_rips import PRIMES, RipsBarcode, memory_within
from mechint_core.geometry._vines import Vines
from mechint_core.geometry.persistence_summaries import PersistenceSummariesConfig, persistence_summaries
from mechint_core.kernels.resampling import critical_value, estimate
from mechint_core.parallel import Rows, map_parallel
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

FEWEST_SURROGATES: Final = 19
"""Fewer cannot reach p = 0.05."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistenceVineyardConfig:
    """Which bars to follow, and what to compare them with."""

    dimension: int = 1
    """Homology dimension of the vines: 1 for loops, 2 for voids."""
    coefficient: int = 2
    """Prime p < 128 of the coefficient field Z/p."""
    n_components: int = 0
    """Project every checkpoint on so many of its leading principal components; 0 keeps the whole space."""
    max_points: int = 100
    """Use so many samples (or means), the same at every checkpoint: maxmin landmarks of the last one (of 500 drawn
    at random, where there are more)."""
    n_vines: int = 20
    """Vines to return, those of most length over all checkpoints."""
    n_surrogates: int = 19
    """Rotations of the samples, at least 19; 0 for none."""
    n_resamples: int = 19
    """Halves of the samples, or resampled means, behind the intervals; 0 for none."""
    memory_budget: int = 2**30
    """Bytes that one barcode may take."""
    seed: int = 0
    """Draws both."""

    def __post_init__(self) -> None:
        if self.dimension not in (1, 2):
            raise ConfigurationError(f"dimension must be 1 or 2. Got {self.dimension}.")
        if self.coefficient not in PRIMES or self.max_points < FEWEST_POINTS or self.n_vines < 1:
            raise ConfigurationError(
                f"coefficient must be a prime below 128, max_points at least {FEWEST_POINTS}, n_vines at least 1. "
                f"Got {self.coefficient}, {self.max_points} and {self.n_vines}."
            )
        if min(self.n_components, self.n_resamples, self.memory_budget) < 0:
            raise ConfigurationError(f"n_components, n_resamples and memory_budget must not be negative. Got {self}.")
        if self.n_surrogates != 0 and self.n_surrogates < FEWEST_SURROGATES:
            raise ConfigurationError(
                f"n_surrogates must be 0 or at least {FEWEST_SURROGATES}. Got {self.n_surrogates}."
            )


@dataclass(frozen=True, slots=True)
class PersistenceVineyard(Result):
    """The loops of every checkpoint, followed through training."""

    technique: ClassVar[str] = "persistence_vineyard"
    evidence: ClassVar[str] = (
        "Intervals: halves of the samples, or resampled condition means, the same at every checkpoint (95 %). Null: "
        "Gaussian clouds with the covariances of checkpoints and between them, reduced to landmarks alike; for the "
        "peak their maximum over checkpoints."
    )
    figures: ClassVar[tuple[Curve | Matrix, ...]] = (
        Curve(
            x="step",
            y=("longest",),
            low="longest_low",
            high="longest_high",
            null="band",
            title="Longest loop over training",
            x_label="step",
            y_label="share of the radius",
            log_x=True,
        ),
        Matrix(values="length", y="step", title="Lives of the loops", x_label="vine", y_label="step"),
        Matrix(values="betti", x="scale", y="step", title="Betti curves over training", x_label="scale"),
    )

    peak: Estimate
    """Longest bar of all checkpoints, relative to the enclosing radius."""
    final: Estimate
    """Longest bar of the last checkpoint."""
    onset: Estimate
    """Step from which on the longest loop is beyond its null, up to the peak. NaN if it is not at the peak."""
    peak_step: int
    longest_life: int
    """Checkpoints through which the vine of most length lives."""
    n_vines: int
    """Vines in all, also those not returned."""
    n_points: int
    """Samples, or condition means, used at every checkpoint."""
    step: Int[np.ndarray, "checkpoint"]
    longest: Float[np.ndarray, "checkpoint"]
    longest_low: Float[np.ndarray, "checkpoint"]
    longest_high: Float[np.ndarray, "checkpoint"]
    band: Float[np.ndarray, "checkpoint"]
    """Length that only 5 % of a checkpoint's null clouds reach; NaN without a null."""
    movement: Float[np.ndarray, "checkpoint"]
    """2-Wasserstein distance of the barcode from that of the checkpoint before; 0 for the first."""
    enclosing_radius: Float[np.ndarray, "checkpoint"]
    cover_radius: Float[np.ndarray, "checkpoint"]
    """No sample is farther from one that is used; in units of the activations."""
    birth: Float[np.ndarray, "checkpoint vine"]
    """Relative to the enclosing radius; NaN where a vine is not alive. Vines of most length first."""
    death: Float[np.ndarray, "checkpoint vine"]
    length: Float[np.ndarray, "checkpoint vine"]
    """0 where a vine is not alive."""
    vine_start: Int[np.ndarray, "vine"]
    """Step at which a vine is first seen."""
    vine_end: Int[np.ndarray, "vine"]
    """Step at which it is last seen."""
    scale: Float[np.ndarray, "scale"]
    betti: Int[np.ndarray, "checkpoint scale"]
    """Bars alive at each scale, from 0 to the enclosing radius."""

    def reading(self) -> str:
        """Say when the longest loop arises, and how long it lives."""
        peak = self.peak
        text = f"The longest loop of training spans {peak.value:.2f} of the radius, at step {self.peak_step}"
        if np.isnan(peak.p_value):
            return f"{text}. No null was drawn."
        against = f"Gaussian clouds reach {peak.null:.2f} somewhere, p = {peak.p_value:.2g}"
        if peak.p_value > 0.05 or np.isnan(self.onset.value):
            return f"No loop of training is beyond chance: {text[0].lower()}{text[1:]} ({against})."
        lives = f"the most persistent loop lives through {self.longest_life} of {len(self.step)} checkpoints"
        return f"{text} ({against}). It stands out from step {self.onset.value:.0f}; {lives}."


def persistence_vineyard(
    activations: Sequence[Float[Rows, "sample unit"]],
    step: Int[np.ndarray, "checkpoint"],
    label: Int[np.ndarray, "sample"] | None = None,
    *,
    config: PersistenceVineyardConfig = PersistenceVineyardConfig(),
) -> PersistenceVineyard:
    """Ask when during training activations close into loops, and whether one loop persists.

    Use it to date the moment at which a cyclic variable gets its ring: before and after it the barcodes of single
    checkpoints say there is none, or one. It assumes the same samples at every checkpoint; units may differ. Vines are
    matched by birth and length only, so two loops that swap between checkpoints are not told apart, and checkpoints
    far apart match what has nothing in common.

    Parameters
    ----------
    activations
        One (sample, unit) array per checkpoint, in memory or stored, for the same samples in the same order.
    step
        Training step of each checkpoint, increasing.
    label
        One integer per sample. If given, the points are the mean activations of its values.
    config
        Dimension, projection, landmarks, number of vines and draws.

    Returns
    -------
    PersistenceVineyard
        Lengths relative to each checkpoint's enclosing radius, in [0, 1); steps of onset, start and end.

    Raises
    ------
    ShapeError
        If there are fewer than 2 checkpoints, their samples or the steps or labels do not align.
    DegenerateInputError
        If the steps do not increase, or a checkpoint is not finite or has fewer than 4 distinct points.
    MemoryBudgetError
        If the estimate of memory for one barcode exceeds the budget.

    Notes
    -----
    A vine in the sense of the paper follows one class through a continuous change; between checkpoints it is only
    guessed, by the matching that moves bars least. The null rotates the samples of all checkpoints alike, which is an
    exact test of "samples are independent and jointly Gaussian over all checkpoints".

    References
    ----------
    [@cohensteiner2006]
    [@cohensteiner2007]
    [@langsrud2005]
    [@bauer2021]

    Examples
    --------
    A line that bends until it closes:

    >>> turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    >>> bent = [np.stack([np.cos(share * turn), np.sin(share * turn)], axis=1) for share in (0.3, 0.6, 1.0)]
    >>> config = PersistenceVineyardConfig(n_surrogates=0, n_resamples=0)
    >>> persistence_vineyard(bent, np.array([0, 10, 100]), config=config).longest.round(2)
    array([0.  , 0.  , 0.74])
    """
    _check(activations, step, label)
    n_points = len(activations[-1][:]) if label is None else len(np.unique(label))
    memory_within(config.memory_budget, min(n_points, config.max_points), config.dimension)
    drawn = drawn_samples(n_points, config.seed, least=config.max_points)
    points = _points(activations[-1], label)[drawn]
    last = points @ principal_axes(points, config.n_components)[1]
    used = maxmin_landmarks(last, config.max_points).index
    follow = _Checkpoint(activations, label, drawn, used, last, config)
    seen = map_parallel(follow, range(len(activations)))
    vines = Vines.of([each.bars for each in seen])
    shown = vines.strongest(config.n_vines)
    longest = np.array([each.longest for each in seen])
    null = np.stack([each.null for each in seen], axis=1)
    resampled = np.stack([each.resampled for each in seen], axis=1)
    band = _band(null)
    reach = np.quantile(np.abs(resampled - longest), 0.95, axis=0) if len(resampled) else np.full(len(seen), NAN)
    peak = int(longest.argmax())
    curves = persistence_summaries(
        [each.bars for each in seen], config=PersistenceSummariesConfig(largest=1.0, n_landscapes=1)
    )
    return PersistenceVineyard(
        peak=_bounded(estimate(float(longest[peak]), null=null.max(axis=1)), reach[peak]),
        final=_bounded(estimate(float(longest[-1]), null=null[:, -1]), reach[-1]),
        onset=_onset(longest, resampled, band, step),
        peak_step=int(step[peak]),
        longest_life=int(np.isfinite(shown.birth[:, 0]).sum()) if shown.n_vines else 0,
        n_vines=vines.n_vines,
        n_points=len(used),
        step=step,
        longest=longest,
        longest_low=np.maximum(longest - reach, 0.0),
        longest_high=np.minimum(longest + reach, 1.0),
        band=band,
        movement=vines.movement,
        enclosing_radius=np.array([each.radius for each in seen]),
        cover_radius=np.array([each.cover_radius for each in seen]),
        birth=shown.birth,
        death=shown.death,
        length=np.nan_to_num(shown.death - shown.birth),
        vine_start=step[shown.first()],
        vine_end=step[shown.last()],
        scale=curves.scale,
        betti=curves.betti,
    )


def _check(
    activations: Sequence[Float[Rows, "sample unit"]],
    step: Int[np.ndarray, "checkpoint"],
    label: Int[np.ndarray, "sample"] | None,
) -> None:
    shapes = [each.shape for each in activations]
    if len(shapes) < 2 or step.shape != (len(shapes),):
        raise ShapeError(
            f"step must have one entry for each of 2 checkpoints or more. Got {len(shapes)}, {step.shape}."
        )
    if any(len(shape) != 2 or 0 in shape for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ShapeError(f"activations must be (sample, unit), with the same samples. Got shapes {shapes}.")
    if label is not None and label.shape != (shapes[0][0],):
        raise ShapeError(f"label must hold one integer for each of {shapes[0][0]} samples. Got shape {label.shape}.")
    if np.any(np.diff(step) <= 0):
        raise DegenerateInputError(f"step must increase. Got {step.tolist()}. Sort the checkpoints.")


def _points(activations: Rows, label: Int[np.ndarray, "sample"] | None) -> Float[np.ndarray, "row unit"]:
    """Return the samples of a checkpoint, or the means of the label's values."""
    samples = np.asarray(activations[:], dtype=np.float64)
    n_bad = int(np.sum(~np.isfinite(samples)))
    if n_bad:
        raise DegenerateInputError(f"activations must be finite. Got {n_bad} NaN or infinite values at a checkpoint.")
    points = samples if label is None else Conditions.of(samples, label).means()
    n_distinct = len(np.unique(points, axis=0))
    if n_distinct < FEWEST_POINTS:
        raise DegenerateInputError(
            f"a checkpoint must have at least {FEWEST_POINTS} distinct points. Got {n_distinct}."
        )
    return points


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is known of one checkpoint; lengths are relative to its radius."""

    bars: Float[np.ndarray, "bar endpoint"]
    longest: float
    radius: float
    cover_radius: float
    null: Float[np.ndarray, "draw"]
    resampled: Float[np.ndarray, "resample"]


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """See one checkpoint: a callable that pickles."""

    activations: Sequence[Rows]
    label: Int[np.ndarray, "sample"] | None
    drawn: Int[np.ndarray, "row"]
    """Points that landmarks are chosen from."""
    used: Int[np.ndarray, "landmark"]
    """The landmarks among them."""
    last: Float[np.ndarray, "row coordinate"]
    """The last checkpoint, whose landmarks they are."""
    config: PersistenceVineyardConfig

    def __call__(self, checkpoint: int) -> _Seen:
        points = _points(self.activations[checkpoint], self.label)
        centre, axes = principal_axes(points[self.drawn], self.config.n_components)
        scores = (points[self.drawn] - centre) @ axes
        barcode = self._barcode(scores[self.used])
        return _Seen(
            bars=barcode.bars[barcode.dimension == self.config.dimension] / barcode.radius,
            longest=barcode.longest(self.config.dimension),
            radius=barcode.radius,
            cover_radius=float(cdist(points, points[self.drawn[self.used]]).min(axis=1).max()),
            null=self._null(scores),
            resampled=self._resampled(checkpoint, scores[self.used], centre, axes),
        )

    def _null(self, scores: Float[np.ndarray, "row coordinate"]) -> Float[np.ndarray, "draw"]:
        """Return the longest bars of rotated samples: the same rotations, and their landmarks, at every checkpoint."""
        n_draws, seed = self.config.n_surrogates, self.config.seed
        clouds = rotated_landmarks(scores, self.last, n_landmarks=len(self.used), n_draws=n_draws, seed=seed)
        return np.array([self._barcode(each).longest(self.config.dimension) for each in clouds])

    def _barcode(self, cloud: Float[np.ndarray, "row coordinate"]) -> RipsBarcode:
        return RipsBarcode.of(
            cloud, max_points=len(cloud), max_dimension=self.config.dimension, coefficient=self.config.coefficient
        )

    def _resampled(
        self,
        checkpoint: int,
        scores: Float[np.ndarray, "row coordinate"],
        centre: Float[np.ndarray, "unit"],
        axes: Float[np.ndarray, "unit coordinate"],
    ) -> Float[np.ndarray, "resample"]:
        """Return the longest bars of resampled clouds: the same draws at every checkpoint."""
        rng = generator(self.config.seed, "geometry", "persistence_vineyard", "resample")
        n_draws, dimension = self.config.n_resamples, self.config.dimension
        if self.label is None:
            half = max(FEWEST_POINTS, -(-len(scores) // 2))
            halves = (scores[rng.choice(len(scores), half, replace=False)] for _ in range(n_draws))
            return np.array([self._barcode(each).longest(dimension) for each in halves])
        samples = np.asarray(self.activations[checkpoint][:], dtype=np.float64)
        conditions = Conditions.of((samples - centre) @ axes, self.label)
        if conditions.size.min() < 2:
            return np.empty(0)
        means = (conditions.resampled(rng).means()[self.drawn[self.used]] for _ in range(n_draws))
        return np.array([self._barcode(each).longest(dimension) for each in means])


def _band(null: Float[np.ndarray, "draw checkpoint"]) -> Float[np.ndarray, "checkpoint"]:
    """Return the length that only 5 % of the null reach at each checkpoint."""
    return critical_value(null) if len(null) else np.full(null.shape[1], NAN)


def _bounded(tested: Estimate, reach: float) -> Estimate:
    return replace(tested, low=max(0.0, tested.value - reach), high=min(1.0, tested.value + reach))


def _onset(
    longest: Float[np.ndarray, "checkpoint"],
    resampled: Float[np.ndarray, "resample checkpoint"],
    band: Float[np.ndarray, "checkpoint"],
    step: Int[np.ndarray, "checkpoint"],
) -> Estimate:
    draws = np.array([_first_beyond(each, band, step) for each in resampled])
    return estimate(_first_beyond(longest, band, step), bootstrap=draws)


def _first_beyond(
    longest: Float[np.ndarray, "checkpoint"], band: Float[np.ndarray, "checkpoint"], step: Int[np.ndarray, "checkpoint"]
) -> float:
    """Return the first step of the run beyond the band that ends at the peak."""
    peak = int(longest.argmax())
    within = np.flatnonzero(~(longest[: peak + 1] > band[: peak + 1]))
    first = int(within[-1]) + 1 if len(within) else 0
    return float(step[first]) if first <= peak else NAN
