"""What the latents of a dictionary stand for, in the words of given labels.

For latent j and class c, with a_ij the largest code of j in sample i:

    AUROC_jc = P(a_ij > a_kj) + P(a_ij = a_kj) / 2        i in c, k not in c
    p_jc     = P(so many of j's strongest samples are in c | labels shuffled)        hypergeometric, exact
    q_jc     = p_jc adjusted over all latents and classes                            Benjamini-Hochberg

j's strongest samples are those in which it fires, or the upper half if it fires in more than that. For a continuous
label Spearman's rho takes the place of AUROC, and its p-value comes from drawn permutations.

The concept of a latent (and the latent of a concept) is chosen on one half of the samples. Everything that is reported
comes from the other half, so that the choice flatters nothing [@cox1975].

Source: [@bricken2023] for reading latents by what they tell, [@benjamini1995], [@newcombe2006], [@wilson1927].
Cost: one encoding; (1 + n_null) products of samples x latents x classes. Chunked over: samples, for the encoding.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.features._concept_search import Columns, Found, Half, at, halves, label_columns, search
from mechint_core.features._encoded_blocks import Mask, encoded_blocks
from mechint_core.features._label_statistics import auroc_interval, spearman_interval
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.figure import Bars, Figure, Histogram
from mechint_core.kernels.proportions import wilson_interval
from mechint_core.kernels.resampling import p_value
from mechint_core.parallel import Rows
from mechint_core.result import NAN, Estimate, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConceptDictionaryConfig:
    """How sure to be that a latent stands for a concept."""

    names: tuple[str, ...] = ()
    """Of the classes, in the order of their numbers, or of the label's columns. (): the numbers."""
    false_discovery: float = 0.05
    """Share of false ones among the pairs of latent and concept called found."""
    any_dependence: bool = False
    """Allow any dependence between the tests (Benjamini-Yekutieli): stricter by about the log of their number."""
    min_samples: int = 8
    """A latent that fires in fewer samples, or a class with fewer in it or outside it, is not tested."""
    n_permutations: int = 4999
    """Continuous labels: shuffles from which p-values come; the smallest is 1 / (1 + n_permutations)."""
    n_null: int = 19
    """Shuffles of the labels on which the whole procedure is repeated; 19 allow p = 0.05."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the halves and the shuffles."""

    def __post_init__(self) -> None:
        if not (0 < self.level < 1 and 0 < self.false_discovery < 1):
            raise ConfigurationError(f"level and false_discovery must be in (0, 1). Got {self}.")
        if self.min_samples < 4 or self.n_null < 1 or self.n_permutations < 1 or self.seed < 0:
            raise ConfigurationError(
                "min_samples must be at least 4 (two in each half), n_null and n_permutations at least 1, seed at "
                f"least 0. Got {self}."
            )


@dataclass(frozen=True, slots=True)
class BuildConceptDictionary(Result):
    """The concept of every latent and the latent of every concept, on held-out samples."""

    technique: ClassVar[str] = "build_concept_dictionary"
    evidence: ClassVar[str] = (
        "Chosen on one half of the samples, measured on the other. Interval of a share: Wilson's. Null: labels "
        "shuffled, the whole procedure repeated. q: adjusted over all latents and concepts."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Bars(
            values="concept_effect",
            labels="concept",
            low="concept_low",
            high="concept_high",
            null="no_effect",
            title="How well one latent tells each concept (tick: not at all)",
            value_label="AUROC, or Spearman's rho, held out",
        ),
        Histogram(
            values="effect",
            title="How well each latent tells its concept",
            x_label="AUROC, or Spearman's rho, held out",
        ),
    )

    labelled: Estimate
    """Share of the tested latents whose concept is found."""
    covered: Estimate
    """Share of the tested concepts whose latent is found."""
    concept: Annotated[tuple[str, ...], "class"]
    best_concept: Int[np.ndarray, "latent"]
    """Index into `concept`; -1 if not tested."""
    effect: Float[np.ndarray, "latent"]
    """Of the latent on its concept: AUROC for classes, rho for a continuous label. NaN if not tested."""
    effect_low: Float[np.ndarray, "latent"]
    effect_high: Float[np.ndarray, "latent"]
    q_value: Float[np.ndarray, "latent"]
    precision: Float[np.ndarray, "latent"]
    """Share of the latent's strongest samples that are in its class; NaN for a continuous label."""
    recall: Float[np.ndarray, "latent"]
    """Share of the class that is among the latent's strongest samples."""
    n_active: Int[np.ndarray, "latent"]
    """Samples, of both halves, in which the latent fires."""
    best_latent: Int[np.ndarray, "class"]
    """-1 if the concept is not tested."""
    concept_effect: Float[np.ndarray, "class"]
    concept_low: Float[np.ndarray, "class"]
    concept_high: Float[np.ndarray, "class"]
    concept_q: Float[np.ndarray, "class"]
    concept_f1: Float[np.ndarray, "class"]
    """Of the best latent as a detector, its threshold chosen on the other half; NaN for a continuous label."""
    no_effect: Float[np.ndarray, "class"]
    """AUROC 1/2, or rho 0."""
    effects: Float[np.ndarray, "latent class"]
    """Every pair, held out."""
    q_values: Float[np.ndarray, "latent class"]
    continuous: bool
    n_samples: int
    n_tested: int
    """Latents that fire often enough."""
    n_concepts_tested: int
    false_discovery: float

    def reading(self) -> str:
        """Say how many latents have a meaning in these words, and how many words have a latent."""
        if self.n_tested == 0:
            return "No latent fires in enough samples to be tested."
        n_found, n_covered = (int(np.nansum(q <= self.false_discovery)) for q in (self.q_value, self.concept_q))
        if not n_found and not n_covered:
            return (
                f"None of the {self.n_tested} latents tells any of the {self.n_concepts_tested} concepts, at a false "
                f"discovery rate of {self.false_discovery:.0%} on held-out samples."
            )
        what = "|rho|" if self.continuous else "AUROC"
        middle = np.median(np.abs(self.effect[self.q_value <= self.false_discovery])) if n_found else NAN
        typical = f" (median {what} {middle:.2f} on held-out samples)" if n_found else ""
        chance = "" if self.labelled.p_value <= 1 - self.labelled.level + 1e-9 else ", not distinguishable from chance"
        return (
            f"{n_found} of {self.n_tested} latents stand for a concept{typical}, and {n_covered} of "
            f"{self.n_concepts_tested} concepts have a latent, at a false discovery rate of "
            f"{self.false_discovery:.0%}; shuffled labels give {self.labelled.null:.1%} of the latents{chance}."
        )


def build_concept_dictionary(
    activations: Float[Rows, "sample *position unit"],
    dictionary: SparseDictionary,
    label: Num[np.ndarray, "sample *class"] | Bool[np.ndarray, "sample *class"],
    mask: Mask | None = None,
    *,
    config: BuildConceptDictionaryConfig = BuildConceptDictionaryConfig(),
) -> BuildConceptDictionary:
    """Find which concepts the latents of a dictionary stand for, and which latent tells each concept best.

    Use it to name latents when something is known of the samples. A latent is described by its strongest firing in a
    sample, over all positions. It assumes that samples are independent: sentences of one text in both halves make
    everything look surer. A latent without a concept may stand for something that was not labelled, and one with a
    concept may stand for something that merely goes with it.

    Parameters
    ----------
    activations
        (sample, unit) or (sample, position, unit), in the units the dictionary takes; read block by block.
    dictionary
        A trained dictionary.
    label
        What is known of each sample. Integers: one class each. Booleans (or integers) in columns: one per concept,
        any number of which may hold. Floats, in one column or several: continuous variables.
    mask
        (sample, position): 0 where a position is padding and does not count.
    config
        Names, error rates and draws.

    Returns
    -------
    BuildConceptDictionary
        Effects in [0, 1] (AUROC: 1/2 none, 1 perfect) or [-1, 1] (rho: 0 none), with interval and q-value, for every
        latent and every concept. Only firing more for a class counts as standing for it. What is not tested is NaN,
        its index -1.

    Raises
    ------
    ShapeError
        If the label or the mask does not fit the activations, there are fewer than 4 min_samples samples, or the
        names are not as many as the concepts.
    DegenerateInputError
        If an activation or label is not finite, or there is no concept to test: all samples in one class, no class of
        min_samples, a constant variable.

    Notes
    -----
    Halves are stratified by class. Classes: the p-value is exact, for under shuffling the number of class members
    among any fixed set of samples is hypergeometric; which samples are the strongest depends on no label. Tests of one
    latent on exclusive classes are negatively dependent, which Benjamini-Hochberg tolerates in practice (measured on
    planted and shuffled labels) and `any_dependence` covers in theory.

    References
    ----------
    [@bricken2023]
    [@benjamini1995]
    [@benjamini2001]
    [@newcombe2006]
    [@bonett2000]
    [@cox1975]
    [@wilson1927]

    Examples
    --------
    >>> import torch
    >>> from mechint_core.features import SparseAutoencoder, SparseAutoencoderConfig
    >>> basis = SparseAutoencoder(3, 3, config=SparseAutoencoderConfig(activation="relu"))
    >>> _ = basis.W_enc.data.copy_(torch.eye(3)), basis.W_dec.data.copy_(torch.eye(3))
    >>> label = np.arange(120) % 3
    >>> result = build_concept_dictionary(np.eye(3)[[2, 0, 1]][label], basis, label)  # class 0 fires latent 2, ...
    >>> result.best_concept.tolist(), result.effect.tolist()
    ([1, 2, 0], [1.0, 1.0, 1.0])
    """
    if label.shape[:1] != tuple(activations.shape[:1]) or label.ndim > 2 or len(label) < 4 * config.min_samples:
        raise ShapeError(
            f"label must be (sample[, class]) for at least {4 * config.min_samples} samples. Got shape {label.shape} "
            f"for activations {tuple(activations.shape)}."
        )
    parts = halves(label, config.seed)
    columns = label_columns(label, parts, config.names, config.min_samples)
    blocks = [codes.max(axis=1) for _, codes in encoded_blocks(activations, dictionary, mask)]
    peak = np.concatenate(blocks)
    n_active = (peak > 0).sum(axis=0)
    latents = np.flatnonzero(n_active >= config.min_samples)
    choice, held_out = (Half.of(peak[rows][:, latents], columns.values[rows]) for rows in parts)
    found = search(
        choice,
        held_out,
        n_null=config.n_null,
        n_permutations=config.n_permutations,
        false_discovery=config.false_discovery,
        any_dependence=config.any_dependence,
        seed=config.seed,
    )
    return BuildConceptDictionary(
        labelled=_share(found.labelled, len(latents), config.level),
        covered=_share(found.covered, len(columns.tested), config.level),
        concept=columns.names,
        **_of_latents(found, columns, latents, n_active, config.level),
        **_of_concepts(found, columns, latents, config.level),
        continuous=held_out.continuous,
        n_samples=len(label),
        n_tested=len(latents),
        n_concepts_tested=len(columns.tested),
        false_discovery=config.false_discovery,
    )


def _share(found: Float[np.ndarray, "draw"], n: int, level: float) -> Estimate:
    """Return the first share with its interval, and the others as its null."""
    share, null = float(found[0]), found[1:]
    if np.isnan(share):
        return Estimate(NAN, level=level)
    low, high = wilson_interval(share, n, level)
    return Estimate(share, float(low), float(high), float(null.mean()), p_value(share, null), level)


def _of_latents(
    found: Found,
    columns: Columns,
    latents: Int[np.ndarray, "test"],
    n_active: Int[np.ndarray, "latent"],
    level: float,
) -> dict[str, np.ndarray]:
    """Return what is reported of every latent, and of every pair; NaN and -1 where nothing was tested."""
    n_latents, held_out = len(n_active), found.held_out
    effects = held_out.effects()
    effect = at(effects, found.best_concept)
    low, high = _interval(effect, held_out, found.best_concept, level)
    precision = recall = np.full(len(latents), NAN)
    if not held_out.continuous:
        hits = np.sum(held_out.strong * held_out.truth[:, found.best_concept], axis=0)
        precision = hits / np.maximum(held_out.strong.sum(axis=0), 1)
        recall = hits / held_out.truth.sum(axis=0)[found.best_concept]

    def spread(values: np.ndarray) -> np.ndarray:
        return _scattered(values, latents, n_latents)

    pairs = np.full((2, n_latents, len(columns.names)), NAN)
    pairs[:, latents[:, None], columns.tested] = effects, found.q_values
    return {
        "best_concept": _scattered(columns.tested[found.best_concept], latents, n_latents, nothing=-1),
        "effect": spread(effect),
        "effect_low": spread(low),
        "effect_high": spread(high),
        "q_value": spread(at(found.q_values, found.best_concept)),
        "precision": spread(precision),
        "recall": spread(recall),
        "n_active": n_active,
        "effects": pairs[0],
        "q_values": pairs[1],
    }


def _of_concepts(
    found: Found, columns: Columns, latents: Int[np.ndarray, "test"], level: float
) -> dict[str, np.ndarray]:
    """Return what is reported of every concept; NaN and -1 where nothing was tested."""
    n_concepts, held_out = len(columns.names), found.held_out
    no_effect = np.full(n_concepts, 0.0 if held_out.continuous else 0.5)
    unknown = {name: np.full(n_concepts, NAN) for name in ("effect", "low", "high", "q", "f1")}
    best_latent = np.full(n_concepts, -1)
    if latents.size:
        own = (found.best_latent, np.arange(len(columns.tested)))
        effect = held_out.effects()[own]
        known = (effect, *_interval(effect, held_out, own[1], level), found.q_values[own])
        for name, values in zip(("effect", "low", "high", "q"), known, strict=True):
            unknown[name][columns.tested] = values
        best_latent[columns.tested] = latents[found.best_latent]
        if not held_out.continuous:
            unknown["f1"][columns.tested] = [_f1(found.choice, held_out, *pair) for pair in np.transpose(own)]
    described = {f"concept_{name}": values for name, values in unknown.items()}
    return {"best_latent": best_latent, "no_effect": no_effect, **described}


def _interval(
    effect: Float[np.ndarray, "test"], half: Half, concept: Int[np.ndarray, "test"], level: float
) -> tuple[Float[np.ndarray, "test"], Float[np.ndarray, "test"]]:
    if half.continuous:
        return spearman_interval(effect, len(half.truth), level)
    n_in = half.truth.sum(axis=0)[concept]
    return auroc_interval(effect, n_in, len(half.truth) - n_in, level)


def _f1(choice: Half, held_out: Half, latent: int | np.integer, concept: int | np.integer) -> float:
    """Return F1 on the held-out half at the threshold that is best on the other."""
    score, truth = choice.peak[:, latent], choice.truth[:, concept]
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.diff(score[order], append=-1.0))  # equal codes pass together
    f1 = 2 * truth[order].cumsum()[ends] / (ends + 1 + truth.sum())
    called, truth = held_out.peak[:, latent] >= score[order][ends[f1.argmax()]], held_out.truth[:, concept]
    return float(2 * np.sum(called & truth) / (called.sum() + truth.sum()))


def _scattered(
    values: np.ndarray, places: Int[np.ndarray, "test"], length: int, *, nothing: float | int = NAN
) -> np.ndarray:
    out = np.full(length, nothing)
    out[places] = values
    return out
