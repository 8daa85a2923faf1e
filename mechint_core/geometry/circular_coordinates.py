"""Circular coordinates: the angle of every point around a loop of the cloud, and which variable it follows.

    loop         a class of H^1 with birth b and death d: the longest, or the next ones
    angle        2 pi f, f: points -> circle, the smoothest map that winds once around the loop
    persistence  (d - b) / R, R the enclosing radius; null: the longest loop of Gaussian clouds of the same covariance
    recovery     max_k |mean_i exp(i (angle_i - 2 pi k label_i / period))|,  k = 1 ... period - 1
    null         the same with the values of the label given to one another's samples, k searched again

Source: [@desilva2011], [@perea2020].
Cost: (1 + n_surrogates + n_resamples) barcodes of the landmarks, and one Fourier transform per permutation.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Complex, Float, Int

from mechint_core.errors import ConfigurationError, DegenerateInputError
from mechint_core.figure import Barcode, Curve, Histogram, Scatter
from mechint_core.geometry._circle_valued import CircleMap, Loops
from mechint_core.geometry._point_cloud import (
    FEWEST_POINTS,
    Cloud,
    Landmarks,
    maxmin_landmarks,
    principal_axes,
    random_copy,
)
from mechint_core.geometry._roundest_plane import plane_of
from mechint_core.geometry._vietoris_rips import PRIMES, RipsBarcode, memory_within
from mechint_core.kernels.resampling import estimate
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

FEWEST_VALUES = 3
"""Two values have no cyclic order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircularCoordinatesConfig:
    """Which loop to follow, on which cloud, and what its angle is compared with."""

    loop: int = 0
    """Which loop: 0 the longest, 1 the next, ..."""
    average: bool = True
    """With a label, make the cloud of the mean of each of its values; otherwise of the samples."""
    period: int = 0
    """After how many values the label begins again; 0 for as many as there are from its least to its greatest."""
    n_components: int = 0
    """Project on so many leading principal components first; 0 keeps the whole space."""
    roundest_plane: bool = False
    """Whiten those, and project on the plane in which the points lie most nearly on a circle; the null searches too."""
    max_points: int = 200
    """Landmarks that carry the loop; every other point gets its angle from those near it."""
    coefficient: int = 47
    """Prime p < 128. The class is found over Z/p and lifted to the integers: a small p may hold torsion."""
    place: float = 0.5
    """Scale of the map between the loop's birth (or twice the cover radius) and its death, in (0, 1)."""
    memory_budget: int = 2**30
    """Bytes that a barcode of the landmarks may take."""
    n_surrogates: int = 19
    """Gaussian clouds of the null of `persistence`; 0 for none."""
    n_resamples: int = 19
    """Halves of the cloud behind the interval of `persistence`; 0 for none."""
    n_permutations: int = 999
    """Rearrangements of the label's values."""
    n_bootstrap: int = 999
    """Draws of the label's values behind the interval of `recovery`."""
    seed: int = 0
    """Draws all of these."""

    def __post_init__(self) -> None:
        if self.coefficient not in PRIMES[1:]:
            raise ConfigurationError(f"coefficient must be a prime in 3 ... 127. Got {self.coefficient}.")
        if self.max_points < FEWEST_POINTS:
            raise ConfigurationError(f"max_points must be at least {FEWEST_POINTS}. Got {self.max_points}.")
        if not 0 < self.place < 1:
            raise ConfigurationError(f"place must be in (0, 1). Got {self.place}.")
        if self.roundest_plane and not self.n_components >= 3:
            raise ConfigurationError(f"roundest_plane must choose among n_components >= 3. Got {self.n_components}.")
        counts = (self.loop, self.period, self.n_components, self.n_surrogates, self.n_resamples, self.memory_budget)
        if min(*counts, self.n_permutations, self.n_bootstrap) < 0:
            raise ConfigurationError(f"loop, period, budget and numbers of draws must not be negative. Got {self}.")


@dataclass(frozen=True, slots=True)
class CircularCoordinates(Result):
    """The angle of every point around one loop, how long that loop is, and how well it follows a label."""

    technique: ClassVar[str] = "circular_coordinates"
    evidence: ClassVar[str] = (
        "Persistence: interval by halves of the points, null the longest loop of Gaussian clouds of the same "
        "covariance. Recovery: interval by drawing the label's values again at the frequency found (95 %; of 40 "
        "values with one noisy sample each it covers 66 to 89 %), null by giving the values to one another's samples "
        "with the frequency searched again."
    )
    figures: ClassVar[tuple[Scatter | Barcode | Curve | Histogram, ...]] = (
        Scatter(points="points", colour="angle", colour_label="angle", title="The cloud, coloured by the angle found"),
        Scatter(points="points", colour="colour", colour_label="label", title="The cloud, coloured by the label"),
        Histogram(values="angle", title="Angles", x_label="radians"),
        Barcode(bars="bars", dimension="dimension", title="Barcode of the landmarks"),
    )

    persistence: Estimate
    """Length of the loop relative to the enclosing radius, in (0, 1)."""
    recovery: Estimate
    """1: the angle turns with the label exactly, at some frequency. NaN without a label."""
    frequency: int
    """Turns of the angle while the label runs through its period; negative: against it. 0 without a label."""
    period: int
    birth: float
    death: float
    scale: float
    """Landmarks up to this distance are joined; units of the points."""
    enclosing_radius: float
    cover_radius: float
    """No point is farther from a landmark."""
    n_landmarks: int
    n_loops: int
    """Loops of the barcode."""
    n_pieces: int
    """Connected pieces at `scale`. Above 1 the angle of each has a zero of its own."""
    n_uncovered: int
    """Points with no landmark within half of `scale`: their angle is NaN."""
    n_duplicates: int
    """Points left out because they equal another."""
    angle: Float[np.ndarray, "row"]
    """In [0, 2 pi); of the samples, or of the means of the label's values. Its zero and its sense are arbitrary."""
    colour: Int[np.ndarray, "row"]
    """Label, or place among the samples."""
    points: Float[np.ndarray, "row coordinate"]
    """Two leading components."""
    agreement: Float[np.ndarray, "frequency"]
    """Recovery at each frequency 1 ... period - 1; empty without a label."""
    bars: Float[np.ndarray, "bar endpoint"]
    dimension: Int[np.ndarray, "bar"]

    def reading(self) -> str:
        """Say how long the loop is, and what runs around it."""
        loop = self.persistence
        text = f"The loop spans {loop.value:.2f} of the cloud's radius"
        if np.isfinite(loop.p_value):
            text += f" (a Gaussian cloud {loop.null:.2f}, p = {loop.p_value:.2g})"
        if self.n_uncovered:
            text += f"; {self.n_uncovered} points are too far from it to have an angle"
        if not self.period:
            return f"{text}."
        found = self.recovery
        times = "once" if abs(self.frequency) == 1 else f"{abs(self.frequency)} times"
        follows = "follows" if found.p_value <= 0.05 else "is not known to follow"
        return (
            f"{text}. Its angle {follows} the label, {times} around per period of {self.period}: recovery "
            f"{found.value:.2f} (values at random {found.null:.2f}, p = {found.p_value:.2g})."
        )


def circular_coordinates(
    points: Float[np.ndarray, "sample unit"],
    label: Int[np.ndarray, "sample"] | None = None,
    *,
    config: CircularCoordinatesConfig = CircularCoordinatesConfig(),
) -> CircularCoordinates:
    """Give every point its angle around a loop of the cloud, and ask whether that angle follows a label.

    Use it when `persistent_homology` has found a loop, to see what runs around it: it needs no plane, so the loop may
    be bent through many dimensions. It assumes that the loop is one, and sampled all around. It gives an angle whether
    or not the loop is more than chance: look at `persistence` first. It cannot tell a variable from another that runs
    around with it.

    Parameters
    ----------
    points
        One activation vector per sample.
    label
        One integer per sample, of a variable that may be cyclic (a residue, an hour). By default the cloud is then
        the mean activation of each of its values.
    config
        Which loop, projection, landmarks, and numbers of draws.

    Returns
    -------
    CircularCoordinates
        `angle` in radians, in [0, 2 pi); `recovery` in [0, 1].

    Raises
    ------
    ShapeError
        If `points` is not two-dimensional, or `label` has another length.
    DegenerateInputError
        If a point is NaN or infinite, or fewer than 4 points (condition means) are distinct.
    DegenerateInputError
        If the cloud has no such loop, or the loop does not lift to the integers.
    DegenerateInputError
        If the label takes fewer than 3 values, or more than its period.
    MemoryBudgetError
        If the estimate of memory for the landmarks exceeds the budget.

    Notes
    -----
    The smoothest map minimises the sum of squared turns over the edges of the complex at `scale`, with weights that
    undo the density of the points (the papers have none): on one circle of noisy points it is the arc length. Every
    frequency is searched in
    the null, so a small p is not a matter of the search. Frequency k and the label times k cannot be told apart.

    References
    ----------
    [@desilva2011]
    [@perea2020]
    [@coifman2006]
    [@langsrud2005]

    Examples
    --------
    Twelve points of a circle in the order of the hours, but every hour five steps on:

    >>> hour = np.arange(12)
    >>> clock = np.stack([np.cos(5 * hour * np.pi / 6), np.sin(5 * hour * np.pi / 6)], axis=1)
    >>> found = circular_coordinates(clock, hour)
    >>> abs(found.frequency), round(found.recovery.value, 6)
    (5, 1.0)
    """
    means = Cloud.of(points, label)  # checks both
    cloud = means if config.average or label is None else Cloud.of(points, None)
    colour = cloud.colour if cloud is means or label is None else label[cloud.kept]
    centre, axes = principal_axes(cloud.points, config.n_components)
    components = (cloud.points - centre) @ axes
    scores = _projected(components, config)
    landmarks = maxmin_landmarks(scores, config.max_points)
    memory_within(config.memory_budget, len(landmarks.index), 1)
    loops = Loops.of(scores[landmarks.index], config.coefficient)
    circle = CircleMap.of(loops, config.loop, _scale(loops, landmarks, config), config.coefficient)
    turns = circle.extended(scores[landmarks.index], scores)
    follows = _Following.of(turns, colour, config) if label is not None else _Following.nothing()
    birth, death = loops.bar(config.loop)
    return CircularCoordinates(
        persistence=_persistence((death - birth) / loops.radius, components, scores, config),
        recovery=follows.recovery,
        frequency=follows.frequency,
        period=follows.period,
        birth=birth,
        death=death,
        scale=circle.scale,
        enclosing_radius=loops.radius,
        cover_radius=landmarks.cover_radius,
        n_landmarks=len(landmarks.index),
        n_loops=len(loops.cocycles),
        n_pieces=circle.n_pieces,
        n_uncovered=int(np.isnan(turns).sum()),
        n_duplicates=cloud.n_duplicates,
        angle=2 * np.pi * turns,
        colour=colour,
        points=np.pad(scores[:, :2], ((0, 0), (0, max(0, 2 - scores.shape[1])))),
        agreement=follows.agreement,
        bars=loops.bars,
        dimension=loops.dimension,
    )


def _projected(
    scores: Float[np.ndarray, "row component"], config: CircularCoordinatesConfig
) -> Float[np.ndarray, "row coordinate"]:
    rng = generator(config.seed, "geometry", "circular_coordinates", "start")
    return scores @ plane_of(scores, rng, roundest=config.roundest_plane)


def _scale(loops: Loops, landmarks: Landmarks, config: CircularCoordinatesConfig) -> float:
    """Return the scale of the map: within the life of the loop, and large enough to reach every point if it can be."""
    if config.loop >= len(loops.cocycles):
        raise DegenerateInputError(f"the cloud must have loop {config.loop}. Got {len(loops.cocycles)} loops.")
    birth, death = loops.bar(config.loop)
    reaching = 2 * landmarks.cover_radius
    least = max(birth, reaching) if reaching < death else birth
    return least + config.place * (death - least)


def _persistence(
    value: float,
    components: Float[np.ndarray, "row component"],
    scores: Float[np.ndarray, "row coordinate"],
    config: CircularCoordinatesConfig,
) -> Estimate:
    """Compare the length of the loop with the longest of Gaussian clouds, and with its own in halves of the points."""
    rng = generator(config.seed, "geometry", "circular_coordinates", "cloud")
    copies = (random_copy(components, rng) for _ in range(config.n_surrogates))
    null = [_length(_projected(copy, config), 0, config) for copy in copies]
    half = max(FEWEST_POINTS, -(-len(scores) // 2))
    halves = (rng.choice(len(scores), half, replace=False) for _ in range(config.n_resamples))
    moved = [abs(_length(scores[each], config.loop, config) - value) for each in halves]
    tested = estimate(value, null=np.array(null))
    if not moved:
        return tested
    reach = float(np.quantile(moved, tested.level))
    return replace(tested, low=max(0.0, value - reach), high=min(1.0, value + reach))


def _length(cloud: Float[np.ndarray, "row coordinate"], loop: int, config: CircularCoordinatesConfig) -> float:
    """Return the relative length of a loop of a cloud; 0 if it has none."""
    barcode = RipsBarcode.of(cloud, max_points=config.max_points, max_dimension=1, coefficient=config.coefficient)
    lengths = barcode.lengths(1)
    return float(lengths[loop]) / barcode.radius if loop < len(lengths) else 0.0


@dataclass(frozen=True, slots=True)
class _Following:
    """How well an angle follows a label."""

    recovery: Estimate
    frequency: int
    period: int
    agreement: Float[np.ndarray, "frequency"]

    @classmethod
    def nothing(cls) -> "_Following":
        return cls(Estimate(NAN), 0, 0, np.empty(0))

    @classmethod
    def of(
        cls, turns: Float[np.ndarray, "row"], colour: Int[np.ndarray, "row"], config: CircularCoordinatesConfig
    ) -> "_Following":
        known = np.isfinite(turns)
        value, which, count = np.unique(colour[known], return_inverse=True, return_counts=True)
        period = config.period or int(np.ptp(value)) + 1 if len(value) else 0
        if len(value) < FEWEST_VALUES or np.ptp(value) >= period:
            raise DegenerateInputError(
                f"label must take at least {FEWEST_VALUES} values within its period {period}. Got {len(value)} values."
            )
        phasor = np.exp(2j * np.pi * turns[known])
        sums = np.bincount(which, np.real(phasor)) + 1j * np.bincount(which, np.imag(phasor))
        place = (value - value[0]).astype(np.int64)
        agreement = _agreement(sums, place, period) / count.sum()
        best = int(agreement.argmax()) + 1
        rng = generator(config.seed, "geometry", "circular_coordinates", "label")
        orders = (rng.permutation(len(sums)) for _ in range(config.n_permutations))
        null = [_agreement(sums[order], place, period).max() / count.sum() for order in orders]
        turned = sums * np.exp(-2j * np.pi * best * place / period)
        drawn = rng.integers(0, len(sums), (config.n_bootstrap, len(sums)))
        draws = np.abs(turned[drawn].sum(axis=1)) / count[drawn].sum(axis=1)
        recovery = estimate(float(agreement.max()), bootstrap=draws, null=np.array(null))
        return cls(recovery, best if 2 * best <= period else best - period, period, agreement)


def _agreement(
    sums: Complex[np.ndarray, "value"], place: Int[np.ndarray, "value"], period: int
) -> Float[np.ndarray, "frequency"]:
    """Return the length of the sum of the turned phasors at every frequency but 0."""
    around = np.zeros(period, dtype=np.complex128)
    around[place] = sums
    return np.abs(np.fft.fft(around))[1:]
