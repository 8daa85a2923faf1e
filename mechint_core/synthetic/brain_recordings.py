"""Simulated brain recordings whose alignment with the features behind them, noise and ceilings are known.

    mean response of channel c to condition i    s_ic = Σ_k sqrt(a_rk) f_ki · w_kc + sqrt(1 - Σ_k a_rk) e_ic
    one presentation                             y_ic = g_r(t) s_ic + noise

f_k: feature space k, centred and scaled to mean square length 1; w: independent standard normal weights; a_rk: the
share of region r's variance that space k explains; e: the channel's own, independent of everything; g_r: a bump in time
at the region's latency, at most 1. Then, with v the variance of s_c over conditions and σ² that of the noise,

    explainable share of one presentation    v / (v + σ²)
    ceiling of the mean of n presentations   corr(s, mean y) → sqrt(v / (v + σ² / n))
    distances of many channels               E D_ij = Σ_k a_rk |f_ki - f_kj|² + constant

so the Pearson correlation of a space's squared Euclidean distances with a region's is known, whatever the noise.

Source: the definitions above; [@walther2016] (what noise adds to distances).
Cost: one normal (or Poisson) number per response.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.spatial.distance import pdist

from mechint_core.errors import ConfigurationError, DegenerateInputError
from mechint_core.random import generator

Noise = Literal["gaussian", "poisson"]
WIDTH_S: Final = 0.05
"""Standard deviation in time of the response around its latency."""
MIXTURES: Final[Mapping[str, Mapping[str, float]]] = {
    "early": {"low": 0.8},
    "middle": {"low": 0.4, "high": 0.4},
    "late": {"high": 0.8},
}
"""Region -> feature space -> the share of the region's variance that the space explains."""
LATENCIES_S: Final[Mapping[str, float]] = {"early": 0.08, "middle": 0.14, "late": 0.2}
"""Region -> when its response is largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainRecordings:
    """Responses of several simulated subjects, as one would record them, and what is true of them."""

    responses: Float[np.ndarray, "sample channel"] | Float[np.ndarray, "sample time channel"]
    """NaN where a subject's presentation was lost."""
    condition: Int[np.ndarray, "sample"]
    repetition: Int[np.ndarray, "sample"]
    subject: Int[np.ndarray, "channel"]
    region: Shaped[np.ndarray, "channel"]
    time: Float[np.ndarray, "time"]
    """Seconds; empty where responses have no time."""
    units: str
    features: Mapping[str, Float[np.ndarray, "condition _"]]
    """Each space, centred, of mean square length 1."""
    regions: tuple[str, ...]
    shares: Float[np.ndarray, "model region"]
    """The share of a region's variance, summed over many channels, that each feature space explains."""
    channel_shares: Float[np.ndarray, "model channel"]
    """The same of each channel: the variance of the space's part of its signal, over that of its signal."""
    signal: Float[np.ndarray, "condition channel"]
    """Mean response to each condition, above the channel's baseline, where time is the latency."""
    signal_variance: Float[np.ndarray, "channel"]
    """Of `signal`, over conditions."""
    noise_variance: Float[np.ndarray, "channel"]
    """Of one presentation, averaged over conditions, where time is the latency."""
    presentations: Float[np.ndarray, "condition channel"]
    """How often each condition was recorded of each channel."""
    ceiling: Float[np.ndarray, "channel"]
    """Correlation of `signal` with the mean over the recorded presentations, in expectation over the noise."""
    rdm_correlation: Float[np.ndarray, "model region"]
    """Correlation of a space's squared Euclidean distances with those of infinitely many channels of a region."""
    course: Float[np.ndarray, "region time"]
    """How large a region's response is in time: 1 at its latency. Empty where responses have no time."""

    @property
    def explainable_share(self) -> Float[np.ndarray, "channel"]:
        """The share of the variance of single presentations that is not noise."""
        return self.signal_variance / (self.signal_variance + self.noise_variance)

    def ceiling_of(self, n_presentations: int) -> Float[np.ndarray, "channel"]:
        """Return the ceiling for the mean over this many presentations of every condition."""
        return np.sqrt(self.signal_variance / (self.signal_variance + self.noise_variance / n_presentations))


def brain_recordings(
    features: Mapping[str, Float[np.ndarray, "condition _"]] | None = None,
    *,
    mixtures: Mapping[str, Mapping[str, float]] = MIXTURES,
    n_conditions: int = 60,
    n_units: int = 8,
    n_subjects: int = 3,
    n_channels: int = 20,
    n_repetitions: int = 4,
    snr: float = 0.5,
    snr_spread: float = 0.0,
    missing: float = 0.0,
    noise: Noise = "gaussian",
    baseline: float = 10.0,
    latencies: Mapping[str, float] | None = None,
    time: Float[np.ndarray, "time"] | None = None,
    seed: int = 0,
) -> BrainRecordings:
    """Simulate recordings of several subjects and regions.

    Parameters
    ----------
    features
        Name -> features of each condition, at least 2 rows that differ. If not given, of independent normal
        numbers, one space for each name in `mixtures`.
    mixtures
        Region -> feature space -> the share of the region's variance it explains. The rest is each channel's own.
    n_conditions, n_units
        Size of made features.
    n_subjects, n_channels
        Subjects, and channels of each in each region.
    n_repetitions
        Presentations of each condition to each subject.
    snr, snr_spread
        Variance of signal over variance of noise of one presentation: its median over channels, and the standard
        deviation of its logarithm.
    missing
        Share of a subject's presentations that are lost; every condition keeps one.
    noise
        Independent normal numbers, or counts of spikes.
    baseline
        Mean response; of counts the least mean, raised where a channel's ratio asks for more.
    latencies
        Region -> seconds at which its response is largest; those of `LATENCIES_S` if not given. Without `time` unused.
    time
        Seconds of each time step, rising. Left out: responses have no time.
    seed
        Names the draw.

    Raises
    ------
    ConfigurationError
        If shares are negative or sum to more than 1, a mixture names no known space, a size is below 1 or `snr` not
        positive, `missing` is not in [0, 1), `noise` is unknown, a region has no latency, or times do not rise.
    DegenerateInputError
        If a feature space has NaN or is the same for all conditions, or spaces have different numbers of conditions.

    Examples
    --------
    >>> made = brain_recordings(n_conditions=40, n_subjects=2, n_channels=5, snr=1.0)
    >>> made.responses.shape
    (160, 30)
    >>> np.round(made.ceiling[:2], 12).tolist()
    [0.894427191, 0.894427191]
    """
    _check(mixtures, noise, snr, missing, (n_conditions, n_units, n_subjects, n_channels, n_repetitions))
    rng = generator(seed, "brain_recordings", "signal")
    spaces = _features(features, mixtures, n_conditions, n_units, rng)
    names, regions = tuple(spaces), tuple(mixtures)
    shares = np.array([[mixtures[region].get(name, 0.0) for region in regions] for name in names])
    course = _course(regions, LATENCIES_S if latencies is None else latencies, time)
    n = len(next(iter(spaces.values())))
    in_region = np.tile(np.repeat(np.arange(len(regions)), n_channels), n_subjects)
    of_subject = np.repeat(np.arange(n_subjects), len(regions) * n_channels)
    signal, parts = _signal(spaces, shares[:, in_region], rng)
    channel_shares = parts / signal.var(axis=0)
    ratio = snr * np.exp(snr_spread * rng.normal(size=len(in_region)))
    gain = course.T[:, in_region] if time is not None else np.ones((1, len(in_region)))
    signal, noise_variance, means = _levels(signal, ratio, baseline, gain, noise)
    drawn = _drawn(means, noise_variance, n_repetitions, noise, generator(seed, "brain_recordings", "noise"))
    lost = _lost(n_subjects, n_repetitions, n, missing, generator(seed, "brain_recordings", "missing"))[of_subject]
    drawn[np.broadcast_to(lost.transpose(1, 2, 0)[:, :, None], drawn.shape)] = np.nan
    presentations = n_repetitions - lost.sum(axis=1).T.astype(np.float64)
    of_mean = noise_variance * (1 / presentations).mean(axis=0)
    flat = drawn.reshape(-1, *gain.shape)
    return BrainRecordings(
        responses=flat if time is not None else flat[:, 0],
        condition=np.tile(np.arange(n), n_repetitions),
        repetition=np.repeat(np.arange(n_repetitions), n),
        subject=of_subject,
        region=np.array(regions)[in_region],
        time=np.empty(0) if time is None else np.asarray(time, np.float64),
        units="spikes" if noise == "poisson" else "a.u.",
        features=spaces,
        regions=regions,
        shares=shares,
        channel_shares=channel_shares,
        signal=signal,
        signal_variance=signal.var(axis=0),
        noise_variance=noise_variance,
        presentations=presentations,
        ceiling=np.sqrt(signal.var(axis=0) / (signal.var(axis=0) + of_mean)),
        rdm_correlation=_rdm_correlation(spaces, shares),
        course=course,
    )


def _check(
    mixtures: Mapping[str, Mapping[str, float]], noise: str, snr: float, missing: float, sizes: tuple[int, ...]
) -> None:
    for region, shares in mixtures.items():
        if min(shares.values(), default=0.0) < 0 or sum(shares.values()) > 1 + 1e-12:
            raise ConfigurationError(f"shares of {region} must be at least 0 and sum to at most 1. Got {dict(shares)}.")
    if not mixtures or min(sizes) < 1:
        raise ConfigurationError(f"there must be at least one of everything. Got {len(mixtures)} regions, {sizes}.")
    if not snr > 0:
        raise ConfigurationError(f"snr must be above 0. Got {snr}.")
    if not 0 <= missing < 1:
        raise ConfigurationError(f"missing must be at least 0 and below 1. Got {missing}.")
    if noise not in ("gaussian", "poisson"):
        raise ConfigurationError(f"noise must be gaussian or poisson. Got {noise!r}.")


def _features(
    given: Mapping[str, np.ndarray] | None,
    mixtures: Mapping[str, Mapping[str, float]],
    n_conditions: int,
    n_units: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Return the feature spaces, centred and scaled to mean square length 1."""
    used = list(dict.fromkeys(name for shares in mixtures.values() for name in shares))
    spaces = {name: rng.normal(size=(n_conditions, n_units)) for name in used} if given is None else dict(given)
    unknown = sorted(set(used) - set(spaces))
    if unknown:
        raise ConfigurationError(f"mixtures must be of {sorted(spaces)}. Got {unknown}.")
    if len({len(values) for values in spaces.values()}) != 1:
        raise DegenerateInputError("feature spaces must be of the same conditions. Got different numbers, or none.")
    for name, values in spaces.items():
        centred = values - values.mean(axis=0)
        scale = np.sqrt((centred**2).sum(axis=1).mean())
        if not scale > 0:
            raise DegenerateInputError(f"features {name} must be finite and differ. Got NaN or one value throughout.")
        spaces[name] = centred / scale
    return spaces


def _signal(
    spaces: Mapping[str, np.ndarray], shares: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean response to each condition of each channel, centred, and the variance of each space's part."""
    n_channels = shares.shape[1]
    own = np.maximum(0.0, 1 - shares.sum(axis=0))
    signal = np.sqrt(own) * rng.normal(size=(len(next(iter(spaces.values()))), n_channels))
    variances = np.empty_like(shares)
    for place, (share, values) in enumerate(zip(shares, spaces.values(), strict=True)):
        part = np.sqrt(share) * (values @ rng.normal(size=(values.shape[1], n_channels)))
        variances[place] = part.var(axis=0)
        signal += part
    return signal - signal.mean(axis=0), variances


def _levels(
    signal: np.ndarray, ratio: np.ndarray, baseline: float, gain: np.ndarray, noise: Noise
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the signal, the variance of the noise, and the means (condition, time, channel) that have the ratio."""
    if noise == "gaussian":
        return signal, signal.var(axis=0) / ratio, baseline + gain * signal[:, None]
    unit = signal / signal.std(axis=0)
    variance = np.maximum(baseline, ratio * unit.min(axis=0) ** 2)  # of counts: their mean, which must not fall below 0
    signal = unit * np.sqrt(ratio * variance)
    return signal, variance, variance + gain * signal[:, None]


def _drawn(
    means: np.ndarray, variance: np.ndarray, n_repetitions: int, noise: Noise, rng: np.random.Generator
) -> np.ndarray:
    """Return presentations (repetition, condition, time, channel) around their means."""
    shape = (n_repetitions, *means.shape)
    if noise == "poisson":
        return rng.poisson(np.maximum(means, 0.0), size=shape).astype(np.float64)  # rounding may go below 0
    return means + np.sqrt(variance) * rng.normal(size=shape)


def _lost(n_subjects: int, n_repetitions: int, n: int, missing: float, rng: np.random.Generator) -> np.ndarray:
    """Return which presentations each subject lost (subject, repetition, condition), one of each condition kept."""
    lost = rng.random(size=(n_subjects, n_repetitions, n)) < missing
    kept = rng.integers(n_repetitions, size=(n_subjects, n))
    np.put_along_axis(lost, kept[:, None], values=False, axis=1)
    return lost


def _course(regions: tuple[str, ...], latencies: Mapping[str, float], time: np.ndarray | None) -> np.ndarray:
    """Return the size of each region's response in time."""
    if time is None:
        return np.empty((len(regions), 0))
    unknown = [region for region in regions if region not in latencies]
    if unknown:
        raise ConfigurationError(f"latencies must name every region. Got none for {', '.join(unknown)}.")
    if not np.all(np.diff(time) > 0):
        raise ConfigurationError("time must rise from step to step. Got times that do not.")
    peaks = np.array([latencies[region] for region in regions])
    return np.exp(-0.5 * ((np.asarray(time) - peaks[:, None]) / WIDTH_S) ** 2)


def _rdm_correlation(spaces: Mapping[str, np.ndarray], shares: np.ndarray) -> np.ndarray:
    """Return the correlation over pairs of conditions of each space's distances with Σ_k a_rk D_k."""
    distances = np.stack([pdist(values, "sqeuclidean") for values in spaces.values()])
    mixed = shares.T @ distances
    centred, target = (each - each.mean(axis=1, keepdims=True) for each in (distances, mixed))
    norms = np.linalg.norm(centred, axis=1)[:, None] * np.linalg.norm(target, axis=1)
    return np.divide(centred @ target.T, norms, out=np.full(norms.shape, np.nan), where=norms > 0)
