"""Progress measures: whether a network that adds modulo p has its Fourier circuit yet, and needs it.

Logits of all pairs split into the part that is a function of a + b at the key frequencies F, and the rest:

    z(a, b) = mean + sum_{f in F} [C_f cos(2 pi f (a + b) / p) + S_f sin(2 pi f (a + b) / p)] + rest(a, b)

    restricted loss = loss of mean + key part, on all pairs          falls when the circuit suffices
    excluded loss   = loss of mean + rest, on the training pairs     rises when memory no longer suffices

Both move while the test loss still says that nothing happens.

Source: [@nanda2023].
Cost: n c for n samples and c classes, (n_null + 3) times; plus `fourier_components` where no frequencies are given.
Chunked over: nothing; the logits are held in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Bool, Complex, Float, Int

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Bars, Figure
from mechint_core.kernels.resampling import Tail, estimate, percentile_interval
from mechint_core.meta_dynamics._checkpoints import resampled_sums
from mechint_core.meta_dynamics.fourier_components import FourierComponentsConfig, fourier_components
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressMeasuresConfig:
    """Which frequencies are the circuit's, and the evidence to gather."""

    frequencies: tuple[int, ...] = ()
    """Key frequencies; empty finds those that stand out of a random order in these logits."""
    n_bootstrap: int = 200
    """Bootstrap draws of the samples."""
    n_null: int = 19
    """Random sets of as many other frequencies."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        if any(f < 1 for f in self.frequencies) or len(set(self.frequencies)) != len(self.frequencies):
            raise ConfigurationError(f"frequencies must be distinct and at least 1. Got {self.frequencies}.")
        if self.n_bootstrap < 2 or self.n_null < 1:
            raise ConfigurationError(
                f"n_bootstrap must be at least 2 and n_null at least 1. Got {self.n_bootstrap}, {self.n_null}."
            )


@dataclass(frozen=True, slots=True)
class ProgressMeasures(Result):
    """Losses of the whole network, of its circuit alone, and without its circuit."""

    technique: ClassVar[str] = "progress_measures"
    evidence: ClassVar[str] = (
        "95 % intervals over resampled pairs. Nulls: guessing (losses and accuracies of the network), as many random "
        "other frequencies (restricted and excluded loss, power of the circuit)."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Bars(
            values="losses",
            labels="loss_names",
            title="Loss of the network, of its circuit alone, and without its circuit",
            low="losses_low",
            high="losses_high",
            null="losses_null",
            value_label="nats",
        ),
    )

    train_loss: Estimate
    test_loss: Estimate
    train_accuracy: Estimate
    test_accuracy: Estimate
    restricted_loss: Estimate
    """Loss on all pairs when only the mean and the key frequencies of a + b are kept, in nats."""
    excluded_loss: Estimate
    """Loss on the training pairs when the key frequencies of a + b are removed, in nats."""
    key_power: Estimate
    """Share of the logits' variance that the key frequencies of a + b hold."""
    n_key: int
    key: Int[np.ndarray, "feature"]
    """The key frequencies."""
    loss_names: Annotated[tuple[str, ...], "measure"]
    losses: Float[np.ndarray, "measure"]
    losses_low: Float[np.ndarray, "measure"]
    losses_high: Float[np.ndarray, "measure"]
    losses_null: Float[np.ndarray, "measure"]

    def reading(self) -> str:
        """Say whether the circuit suffices and whether it is needed."""
        known = (
            f"Accuracy is {self.train_accuracy.value:.0%} on training and {self.test_accuracy.value:.0%} on test pairs."
        )
        if not self.n_key:
            return f"{known} No frequency of a + b stands out in the logits: there is no such circuit to test."
        plural = "y" if self.n_key == 1 else "ies"
        return (
            f"{known} The {self.n_key} key frequenc{plural} of a + b alone give a loss of "
            f"{self.restricted_loss.value:.2g} on all pairs (as many others: {self.restricted_loss.null:.2g}); "
            f"without them the loss on training pairs is "
            f"{self.excluded_loss.value:.2g} (without as many others: {self.excluded_loss.null:.2g})."
        )


def progress_measures(
    logits: Float[np.ndarray, "sample class"],
    a: Int[np.ndarray, "sample"],
    b: Int[np.ndarray, "sample"],
    answer: Int[np.ndarray, "sample"],
    train: Int[np.ndarray, "sample"],
    *,
    config: ProgressMeasuresConfig = ProgressMeasuresConfig(),
) -> ProgressMeasures:
    """Measure whether a network that adds modulo p has its Fourier circuit yet, and needs it.

    Use it along the checkpoints of a network that answers a + b modulo the number of classes. Give it the same key
    frequencies at every checkpoint to follow one circuit, or none to ask at each which frequencies stand out. It
    assumes that the samples are all pairs (a, b), once each. It sees the logits only: a loss that falls says that the
    circuit's output suffices, not how the circuit computes it.

    Parameters
    ----------
    logits
        One row per pair.
    a
        First number of each pair, 0 ... classes - 1.
    b
        Second number.
    answer
        The class that is right.
    train
        1 where the pair was trained on, 0 where it was held out.
    config
        Key frequencies, number of draws, and their seed.

    Returns
    -------
    ProgressMeasures
        Losses in nats (guessing: ln classes), accuracies and shares in [0, 1]. Without key frequencies the restricted
        loss is that of the mean logits and the excluded loss is the training loss. A split without pairs gives NaN.

    Raises
    ------
    ShapeError
        If the logits are not (sample, class), or a label array has another length.
    DegenerateInputError
        If a logit is not finite, a number or answer is outside of the classes, or the pairs are not all pairs once.
    ConfigurationError
        If a key frequency is above half the number of classes.

    Notes
    -----
    With all pairs present, the functions cos and sin of 2 pi f (a + b) / p are orthogonal to one another and to the
    constant, so the key part is the Fourier series of the mean logits given (a + b) mod p. The intervals hold the key
    part fixed.

    References
    ----------
    [@nanda2023]

    Examples
    --------
    >>> a, b = np.divmod(np.arange(49), 7)
    >>> c = np.arange(7)
    >>> logits = 50 * np.cos(2 * np.pi * 2 * ((a + b)[:, None] - c) / 7)
    >>> result = progress_measures(logits, a, b, (a + b) % 7, (a < 3).astype(int))
    >>> result.key.tolist(), round(result.excluded_loss.value, 6) == round(float(np.log(7)), 6)
    ([2], True)
    """
    _check(logits, a, b, answer, train)
    pairs = _Pairs.of(logits, (a.astype(np.int64) + b) % logits.shape[1], answer, train != 0)
    key = _key_frequencies(pairs, config)
    others = _random_sets(pairs.n_frequencies, key, config)
    losses = _losses(pairs.logits, answer)
    right = (pairs.logits.argmax(axis=1) == answer).astype(np.float64)
    chance = 1 / pairs.logits.shape[1]
    measured = {
        "train": _mean(losses[pairs.train], config, null=np.array([-np.log(chance)])),
        "test": _mean(losses[~pairs.train], config, null=np.array([-np.log(chance)])),
        "restricted": _mean(pairs.restricted(key), config, null=_over(others, pairs.restricted), tail="less"),
        "excluded": _mean(pairs.excluded(key), config, null=_over(others, pairs.excluded), tail="greater"),
    }
    return ProgressMeasures(
        train_loss=measured["train"],
        test_loss=measured["test"],
        train_accuracy=_mean(right[pairs.train], config, null=np.array([chance])),
        test_accuracy=_mean(right[~pairs.train], config, null=np.array([chance])),
        restricted_loss=measured["restricted"],
        excluded_loss=measured["excluded"],
        key_power=estimate(float(pairs.power(key).mean()), null=_over(others, pairs.power)),
        n_key=len(key),
        key=key,
        loss_names=tuple(measured),
        losses=np.array([each.value for each in measured.values()]),
        losses_low=np.array([each.low for each in measured.values()]),
        losses_high=np.array([each.high for each in measured.values()]),
        losses_null=np.array([each.null for each in measured.values()]),
    )


def _check(
    logits: Float[np.ndarray, "..."],
    a: Int[np.ndarray, "..."],
    b: Int[np.ndarray, "..."],
    answer: Int[np.ndarray, "..."],
    train: Int[np.ndarray, "..."],
) -> None:
    if logits.ndim != 2 or any(each.shape != logits.shape[:1] for each in (a, b, answer, train)):
        raise ShapeError(
            f"logits must be (sample, class) with one a, b, answer and train per sample. Got shapes {logits.shape}, "
            f"{a.shape}, {b.shape}, {answer.shape}, {train.shape}."
        )
    if not np.all(np.isfinite(logits)):
        raise DegenerateInputError("logits must be finite. Got NaN or infinity.")
    p = logits.shape[1]
    if p < 4 or any(each.min(initial=0) < 0 or each.max(initial=0) >= p for each in (a, b, answer)):
        raise DegenerateInputError(f"a, b and answer must lie in 0 ... classes - 1 = {p - 1}, with at least 4 classes.")
    if len(logits) != p * p or len(np.unique(a.astype(np.int64) * p + b)) != p * p:
        raise DegenerateInputError(
            f"the pairs (a, b) must be all {p * p} pairs, once each. Got {len(logits)} samples. "
            "Record the logits on the whole table."
        )


@dataclass(frozen=True, slots=True)
class _Pairs:
    """All pairs, with the Fourier series of their mean logits given a + b."""

    logits: Float[np.ndarray, "sample class"]
    """Minus each row's mean, which the softmax does not see."""
    spectrum: Complex[np.ndarray, "frequency class"]
    """Row 0 is the mean over all pairs."""
    total: Int[np.ndarray, "sample"]
    answer: Int[np.ndarray, "sample"]
    train: Bool[np.ndarray, "sample"]

    @classmethod
    def of(
        cls,
        logits: Float[np.ndarray, "sample class"],
        total: Int[np.ndarray, "sample"],
        answer: Int[np.ndarray, "sample"],
        train: Bool[np.ndarray, "sample"],
    ) -> "_Pairs":
        p = logits.shape[1]
        z = logits.astype(np.float64)
        z -= z.mean(axis=1, keepdims=True)
        by_total = z[np.argsort(total, kind="stable")].reshape(p, p, p)  # each total has p pairs
        return cls(z, np.fft.rfft(by_total.mean(axis=1), axis=0), total, answer, train)

    @property
    def n_frequencies(self) -> int:
        return len(self.spectrum) - 1

    def series(self, frequencies: Int[np.ndarray, "feature"]) -> Float[np.ndarray, "condition class"]:
        """Return the part of the logits at these frequencies, for every value of a + b."""
        kept = np.zeros_like(self.spectrum)
        kept[frequencies] = self.spectrum[frequencies]
        return np.fft.irfft(kept, n=self.logits.shape[1], axis=0)

    def restricted(self, frequencies: Int[np.ndarray, "feature"]) -> Float[np.ndarray, "sample"]:
        """Return the losses of all pairs when only the mean and these frequencies are kept."""
        table = self.series(np.append(frequencies, 0))
        return _log_partition(table)[self.total] - table[self.total, self.answer]

    def excluded(self, frequencies: Int[np.ndarray, "feature"]) -> Float[np.ndarray, "sample"]:
        """Return the losses of the training pairs without these frequencies."""
        rest = self.logits[self.train] - self.series(frequencies)[self.total[self.train]]
        return _losses(rest, self.answer[self.train])

    def power(self, frequencies: Int[np.ndarray, "feature"]) -> Float[np.ndarray, "sample"]:
        """Return the power at these frequencies relative to the variance of the logits; its mean is their share."""
        variance = float(self.logits.var(axis=0).sum())
        power = np.square(self.series(frequencies)).sum(axis=1)[self.total]
        return power / variance if variance > 0 else np.zeros_like(power)


def _key_frequencies(pairs: _Pairs, config: ProgressMeasuresConfig) -> Int[np.ndarray, "feature"]:
    """Return the frequencies asked for, or those that stand out of a random order of a + b."""
    if config.frequencies:
        if max(config.frequencies) > pairs.n_frequencies:
            raise ConfigurationError(
                f"frequencies must be at most classes // 2 = {pairs.n_frequencies}. Got {config.frequencies}."
            )
        return np.array(config.frequencies)
    if not np.any(np.abs(pairs.spectrum[1:]) > 1e-9 * np.abs(pairs.logits).max(initial=0)):
        return np.zeros(0, dtype=np.int64)
    found = fourier_components(pairs.logits, pairs.total, config=FourierComponentsConfig(seed=config.seed))
    return found.key if found.matters else np.zeros(0, dtype=np.int64)


def _random_sets(
    n_frequencies: int, key: Int[np.ndarray, "feature"], config: ProgressMeasuresConfig
) -> list[Int[np.ndarray, "feature"]]:
    """Return sets of frequencies that are not key, as many as the key ones; none where there are too few."""
    rest = np.setdiff1d(np.arange(1, n_frequencies + 1), key)
    if len(key) == 0 or len(rest) < len(key):
        return []
    rng = generator(config.seed, "frequencies")
    return [rng.choice(rest, len(key), replace=False) for _ in range(config.n_null)]


def _over(
    sets: list[Int[np.ndarray, "feature"]],
    measure: Callable[[Int[np.ndarray, "feature"]], Float[np.ndarray, "sample"]],
) -> Float[np.ndarray, "draw"]:
    return np.array([_average(measure(each)) for each in sets], dtype=np.float64)


def _mean(
    values: Float[np.ndarray, "sample"],
    config: ProgressMeasuresConfig,
    *,
    null: Float[np.ndarray, "draw"],
    tail: Tail | None = None,
) -> Estimate:
    """Return the mean with its bootstrap interval; a p-value only where `tail` says that the null is drawn."""
    draws = resampled_sums(values[:, None], n_draws=config.n_bootstrap, rng=generator(config.seed, "bootstrap"))
    draws = draws[:, 0] / max(1, len(values))
    if tail is None:
        return Estimate(_average(values), *percentile_interval(draws), null=float(null[0]))
    return estimate(_average(values), bootstrap=draws, null=null, tail=tail)


def _average(values: Float[np.ndarray, "sample"]) -> float:
    return float(values.mean()) if len(values) else NAN


def _losses(
    logits: Float[np.ndarray, "sample class"], answer: Int[np.ndarray, "sample"]
) -> Float[np.ndarray, "sample"]:
    """Return the cross-entropy of each row."""
    return _log_partition(logits) - logits[np.arange(len(logits)), answer]


def _log_partition(logits: Float[np.ndarray, "row class"]) -> Float[np.ndarray, "row"]:
    """Return log sum exp of each row."""
    top = logits.max(axis=1)
    return top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
