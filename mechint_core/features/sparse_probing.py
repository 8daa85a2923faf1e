"""Whether a few latents of a dictionary say what a label says.

For each class, the k latents that tell it best from the rest on training samples; a linear probe on them; its area
under the ROC curve on held-out samples, averaged over classes. A continuous label is one target, and its score R2.
(`_linear_probes.py` has the formulas.) The score against k is compared with the same for

    k raw units               what the activations show without a dictionary
    k random latents          random dictionaries of equal size and L0: what width and sparsity show without learning
    permuted labels           the null: what choosing the best of many latents shows by chance
    all units                 the linear probe: what is there to be found

Source: [@gurnee2023]; [@gao2024] and [@karvonen2025] for dictionaries.
Cost: (n_null + n_random + 2) products of latents x samples x classes, up to `max_vectors` samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, ClassVar, Final

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from scipy.special import ndtri
from torch import Tensor

from mechint_core.errors import ConfigurationError, DegenerateInputError, DtypeError, ShapeError
from mechint_core.features._control_dictionaries import Directions, fit_control, random_directions
from mechint_core.features._linear_probes import (
    Features,
    Scored,
    features_of,
    full_predictions,
    sparse_predictions,
)
from mechint_core.features._probing_task import Kind, ProbingTask, probing_task
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.figure import Bars, Curve, Figure
from mechint_core.kernels.resampling import p_value
from mechint_core.random import generator
from mechint_core.result import Estimate, Result

ENCODED_AT_ONCE: Final = 2**24
"""Codes computed at once."""
LEAST_SAMPLES: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseProbingConfig:
    """How many features a probe may use, and how sure to be of its score."""

    k: tuple[int, ...] = (1, 2, 5, 10)
    """Numbers of features that a probe may use, growing."""
    kind: Kind = "auto"
    """What the label is; auto: classes if its numbers are whole."""
    held_out: int = 3
    """Every so many-th sample in the order of the label is held out: 3 means a third."""
    min_per_class: int = 6
    """Classes with fewer samples are left out, and counted."""
    max_vectors: int = 4096
    """Vectors used, at most; samples are drawn at random beyond that."""
    ridge: float = 0.01
    """Share of each feature's variance that is added to it, against overfitting."""
    n_random: int = 3
    """Random dictionaries to compare with."""
    n_null: int = 19
    """Permutations of the labels; 19 allow p = 0.05."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        if not self.k or any(b <= a for a, b in pairwise((0, *self.k))):
            raise ConfigurationError(f"k must be growing numbers, at least 1. Got {self.k}.")
        if self.kind not in ("auto", "classes", "continuous"):
            raise ConfigurationError(f"kind must be auto, classes or continuous. Got {self.kind!r}.")
        if min(self.n_random, self.n_null) < 1 or min(self.held_out, self.min_per_class) < 2 or self.seed < 0:
            raise ConfigurationError(
                "n_random and n_null must be at least 1, held_out and min_per_class at least 2, seed at least 0. "
                f"Got {self}."
            )
        if self.max_vectors < 10 or not self.ridge > 0 or not 0 < self.level < 1:
            raise ConfigurationError(
                f"max_vectors must be at least 10, ridge above 0, and level in (0, 1). Got {self}."
            )


@dataclass(frozen=True, slots=True)
class SparseProbing(Result):
    """How well a few latents tell a label."""

    technique: ClassVar[str] = "sparse_probing"
    evidence: ClassVar[str] = (
        "Intervals: infinitesimal jackknife over held-out samples. "
        "Null: probes chosen, fitted and scored with permuted labels; the linear probe's is chance, a difference's 0."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Curve(
            y=("latents", "units", "random_latents", "permuted", "all_units"),
            x="k",
            low="latents_low",
            high="latents_high",
            log_x=True,
            title="What probes on a few features tell of the label",
            x_label="features a probe may use",
            y_label="held-out score",
        ),
        Bars(values="score_of", labels="condition", title="What the best latent tells of each class"),
    )

    one: Estimate
    """Held-out score of probes on the fewest latents."""
    most: Estimate
    """The same for the most."""
    over_units: Estimate
    """`one`, less the score of as many raw units."""
    over_random: Estimate
    """`one`, less the score of as many latents of random dictionaries."""
    linear_probe: Estimate
    """Score of a linear probe on all units."""
    classes: bool
    """True: scores are areas under the ROC curve, chance 0.5. False: R2, chance 0."""
    n_train: int
    n_test: int
    n_rare_classes: int
    """Classes left out for having too few samples."""
    k: Int[np.ndarray, "sparsity"]
    latents: Float[np.ndarray, "sparsity"]
    latents_low: Float[np.ndarray, "sparsity"]
    latents_high: Float[np.ndarray, "sparsity"]
    units: Float[np.ndarray, "sparsity"]
    random_latents: Float[np.ndarray, "sparsity"]
    permuted: Float[np.ndarray, "sparsity"]
    """Mean over permutations."""
    all_units: Float[np.ndarray, "sparsity"]
    """The linear probe's, the same for every k."""
    condition: Annotated[tuple[str, ...], "condition"]
    """The classes, or the label as a whole."""
    best_latent: Int[np.ndarray, "condition"]
    """The latent that tells each class best on the training samples."""
    score_of: Float[np.ndarray, "condition"]
    """Held-out score of each class with the fewest latents."""

    def reading(self) -> str:
        """Say whether single latents stand for the label, and whether it takes a dictionary to see it."""
        score = "AUC" if self.classes else "R2"
        which = "one latent" if self.k[0] == 1 else f"{self.k[0]} latents"
        if self.one.p_value > 1 - self.one.level + 1e-9:
            return (
                f"A probe on {which} does not tell the label better than one with permuted labels: held-out {score} "
                f"{self.one.value:.3f}, {self.one.null:.3f} by chance (p = {self.one.p_value:.2g})."
            )
        rivals = ", ".join(
            f"{name} {rival[0]:.3f} ({_beside(gain)})"
            for name, rival, gain in (
                ("as many raw units", self.units, self.over_units),
                ("latents of random dictionaries", self.random_latents, self.over_random),
            )
        )
        return (
            f"A probe on {which} has a held-out {score} of {self.one.value:.3f} [{self.one.low:.3f}, "
            f"{self.one.high:.3f}]; {rivals}, permuted labels {self.one.null:.3f}. {self.k[-1]} latents reach "
            f"{self.most.value:.3f}, a linear probe on all units {self.linear_probe.value:.3f}."
        )


def _beside(gain: Estimate) -> str:
    return "worse" if gain.low > 0 else "better" if gain.high < 0 else "no different"


def sparse_probing(
    activations: Float[np.ndarray, "sample *position unit"],
    dictionary: SparseDictionary,
    label: Num[np.ndarray, "sample *position"],
    *,
    config: SparseProbingConfig = SparseProbingConfig(),
) -> SparseProbing:
    """Measure how much of a label a few latents of the dictionary tell.

    Use it where you know something that a good dictionary should have found: a class, a token, a number. It assumes
    that the label is linear in the features, one class against the rest. A label that no latent tells may be spread
    over many or absent (look at the linear probe); one that a latent tells need not be used by the model. Labels
    that differ in few samples give wide intervals.

    Parameters
    ----------
    activations
        Vectors that the dictionary takes.
    dictionary
        A trained dictionary.
    label
        One number per vector: whole numbers are classes, others a continuous label.
    config
        Sizes of the probes, and how sure to be.

    Returns
    -------
    SparseProbing
        Held-out scores. Classes: area under the ROC curve in [0, 1], 0.5 by chance, 1 when every member of a class is
        above all others. Continuous: R2 in (-inf, 1]. `condition` names the classes: of two, the larger.

    Raises
    ------
    ShapeError
        If there are fewer than 12 samples, the vectors have not the dictionary's units, or the label has not one number
        per vector.
    DtypeError
        If the label holds no numbers.
    DegenerateInputError
        If a number is not finite, the label is the same everywhere, or fewer than two classes are large enough.

    Notes
    -----
    Features are chosen by their r2 with the label, which orders them as the F statistic does, and probes are ridge
    regressions, for a class Fisher's discriminant. Where a whole latent dictionary is silent on the training samples,
    its score is chance. An interval is empty where a score is perfect.

    References
    ----------
    [@gurnee2023]
    [@gao2024]
    [@karvonen2025]
    [@delong1988]

    Examples
    --------
    >>> from mechint_core.features import SparseAutoencoder, SparseAutoencoderConfig
    >>> basis = SparseAutoencoder(2, 4, config=SparseAutoencoderConfig(activation="relu"))
    >>> axes = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> _ = basis.W_enc.data.copy_(axes), basis.W_dec.data.copy_(axes)
    >>> x = generator(0, "example").normal(size=(60, 2))
    >>> result = sparse_probing(x, basis, (x[:, 0] < 0).astype(int))
    >>> (result.one.value, result.best_latent.tolist())
    (1.0, [1])
    """
    vectors, labels, samples = _checked(activations, dictionary, label, config)
    task = probing_task(
        labels,
        samples,
        kind=config.kind,
        every=config.held_out,
        min_per_class=config.min_per_class,
        seed=config.seed,
    )
    read = torch.from_numpy(vectors).to(dictionary.W_enc)
    codes = _encoded(dictionary.encode, read, dictionary.hidden_dim)
    latents, units = features_of(codes, task.is_test), features_of(vectors, task.is_test)
    l0 = float((codes > 0).sum(axis=1).mean())
    predicted, best = sparse_predictions(latents, task.goals, config.k, config.ridge)
    of_latents = [task.score(each) for each in predicted]
    of_units = [task.score(each) for each in sparse_predictions(units, task.goals, config.k, config.ridge)[0]]
    of_random = [_random_scores(dictionary, read, l0, draw, task, config) for draw in range(config.n_random)]
    return _result(
        task,
        latents=of_latents,
        units=of_units,
        random=of_random,
        linear=task.score(full_predictions(units, task.goals, config.ridge)),
        null=_permuted_scores(latents, task, config),
        best=best,
        config=config,
    )


def _checked(
    activations: np.ndarray, dictionary: SparseDictionary, label: np.ndarray, config: SparseProbingConfig
) -> tuple[Float[np.ndarray, "vector unit"], Num[np.ndarray, "vector"], Int[np.ndarray, "vector"]]:
    """Return vectors, labels, and the sample of each: all, or as many random samples as `max_vectors` allow."""
    if activations.ndim < 2 or len(activations) < LEAST_SAMPLES or activations.shape[-1] != dictionary.input_dim:
        raise ShapeError(
            f"activations must be (sample >= {LEAST_SAMPLES}, ..., unit = {dictionary.input_dim}). "
            f"Got shape {activations.shape}."
        )
    if label.shape != activations.shape[:-1]:
        raise ShapeError(f"label must be one number per vector, {activations.shape[:-1]}. Got shape {label.shape}.")
    if label.dtype.kind not in "biuf":
        raise DtypeError(f"label must hold numbers. Got {label.dtype}.")
    per_sample = label[0].size
    n_used = max(LEAST_SAMPLES, config.max_vectors // per_sample)
    chosen = np.sort(generator(config.seed, "samples").permutation(len(activations))[:n_used])
    vectors, labels = activations[chosen].reshape(-1, activations.shape[-1]), label[chosen].reshape(-1)
    if not (np.isfinite(vectors).all() and np.isfinite(labels).all()):
        raise DegenerateInputError("activations and label must be finite. Got NaN or infinity.")
    if (labels == labels[0]).all():
        raise DegenerateInputError("label must differ between vectors. Got the same everywhere: nothing to tell.")
    return np.ascontiguousarray(vectors, dtype=np.float32), labels, np.repeat(np.arange(len(chosen)), per_sample)


@torch.no_grad()
def _encoded(
    encode: Callable[[Tensor], Tensor], vectors: Float[Tensor, "vector unit"], n_latents: int
) -> Float[np.ndarray, "vector latent"]:
    chunks = vectors.split(max(1, ENCODED_AT_ONCE // n_latents))
    return np.concatenate([encode(chunk).float().cpu().numpy() for chunk in chunks])


def _random_scores(
    dictionary: SparseDictionary,
    vectors: Float[Tensor, "vector unit"],
    l0: float,
    draw: int,
    task: ProbingTask,
    config: SparseProbingConfig,
) -> list[Scored]:
    """Return the scores of a random dictionary's latents, for every k."""
    reads = random_directions(dictionary, config.seed, draw).reads
    some = vectors[:: -(-len(vectors) * dictionary.hidden_dim // ENCODED_AT_ONCE)]
    control = fit_control(Directions(reads, reads), some, some, l0).control
    features = features_of(_encoded(control.encode, vectors, dictionary.hidden_dim), task.is_test)
    return [task.score(each) for each in sparse_predictions(features, task.goals, config.k, config.ridge)[0]]


def _permuted_scores(
    latents: Features, task: ProbingTask, config: SparseProbingConfig
) -> Float[np.ndarray, "draw sparsity"]:
    """Return the scores of probes chosen, fitted and scored with permuted labels."""
    scores = np.empty((config.n_null, len(config.k)))
    for draw in range(config.n_null):
        shuffled = task.permuted(generator(config.seed, "null", draw))
        predicted, _ = sparse_predictions(latents, shuffled.goals, config.k, config.ridge)
        scores[draw] = [shuffled.score(each).value for each in predicted]
    return scores


def _result(
    task: ProbingTask,
    *,
    latents: list[Scored],
    units: list[Scored],
    random: list[list[Scored]],
    linear: Scored,
    null: Float[np.ndarray, "draw sparsity"],
    best: Int[np.ndarray, "condition"],
    config: SparseProbingConfig,
) -> SparseProbing:
    of_random = [_mean_of([draw[index] for draw in random]) for index in range(len(config.k))]
    bounds = np.array([_interval(each, config.level) for each in latents])
    return SparseProbing(
        one=_estimate(latents[0], config.level, null[:, 0]),
        most=_estimate(latents[-1], config.level, null[:, -1]),
        over_units=_estimate(_less(latents[0], units[0]), config.level, np.zeros(0)),
        over_random=_estimate(_less(latents[0], of_random[0]), config.level, np.zeros(0)),
        linear_probe=replace(_estimate(linear, config.level, np.zeros(0)), null=0.5 if task.classes else 0.0),
        classes=task.classes,
        n_train=len(task.goals),
        n_test=int(task.is_test.sum()),
        n_rare_classes=task.n_rare,
        k=np.array(config.k),
        latents=np.array([each.value for each in latents]),
        latents_low=bounds[:, 0],
        latents_high=bounds[:, 1],
        units=np.array([each.value for each in units]),
        random_latents=np.array([each.value for each in of_random]),
        permuted=null.mean(axis=0),
        all_units=np.full(len(config.k), linear.value),
        condition=task.condition,
        best_latent=best,
        score_of=latents[0].each,
    )


def _mean_of(scored: Sequence[Scored]) -> Scored:
    return Scored(*(np.mean(parts, axis=0) for parts in zip(*scored, strict=True)))


def _less(a: Scored, b: Scored) -> Scored:
    return Scored(a.value - b.value, a.influence - b.influence, a.each - b.each)


def _estimate(scored: Scored, level: float, null: Float[np.ndarray, "draw"]) -> Estimate:
    """Bind a score to its interval and its null; 0 is the null of a difference."""
    low, high = _interval(scored, level)
    if not null.size:
        return Estimate(float(scored.value), low, high, 0.0, level=level)
    return Estimate(float(scored.value), low, high, float(null.mean()), p_value(float(scored.value), null), level)


def _interval(scored: Scored, level: float) -> tuple[float, float]:
    half = float(ndtri((1 + level) / 2)) * float(np.linalg.norm(scored.influence))
    return float(scored.value) - half, float(scored.value) + half
