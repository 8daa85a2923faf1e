"""What the latents of a dictionary fire on: examples for a reader, and each latent's nearest relatives.

    value_ij     = max over positions of the code of latent j in sample i
    cosine_jk    = W_dec,j . W_dec,k / (|W_dec,j| |W_dec,k|)                  what they write
    together_jk  = corr(fires_j, fires_k) over vectors (phi)                  when they fire

Shown are the samples with the largest values and some from the whole range below: a latent that looks like one thing
at its strongest is often another at its usual strength. Of each, the codes around the position of the largest.

Two latents with the same direction or the same firing say the same thing twice. The null of the nearest cosine is as
many random directions: in few units, some are close to each other by chance.

Source: [@bricken2023].
Cost: two encodings (one without positions); a product of latents x latents x units for each null.
Chunked over: samples.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int, Integer

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.features._encoded_blocks import Mask, encoded_blocks
from mechint_core.features._kept_examples import Examples, KeptExamples
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.figure import Figure, Histogram
from mechint_core.kernels.resampling import bootstrap_rows, estimate
from mechint_core.parallel import Rows
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

TWIN = 0.9
"""Cosine above which two latents write the same."""
SPARSE_BELOW = 0.2
"""Density of firing below which counting pairs is cheaper than a dense product."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureExamplesConfig:
    """How much to show of each latent."""

    n_top: int = 10
    """Samples on which it fires most."""
    n_spread: int = 5
    """Samples from the range below, at evenly spaced quantiles."""
    context: int = 8
    """Positions to show on either side of the strongest."""
    n_neighbours: int = 5
    """Nearest other latents, by direction and by firing."""
    n_bootstrap: int = 200
    """Bootstrap draws of the latents, for intervals."""
    n_null: int = 19
    """Sets of random directions to compare with; 19 allow p = 0.05."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        if min(self.n_top, self.n_neighbours, self.n_bootstrap, self.n_null) < 1 or not 0 < self.level < 1:
            raise ConfigurationError(
                f"n_top, n_neighbours, n_bootstrap and n_null must be at least 1, level in (0, 1). Got {self}."
            )
        if min(self.n_spread, self.context, self.seed) < 0:
            raise ConfigurationError(f"n_spread, context and seed must be at least 0. Got {self}.")


@dataclass(frozen=True, slots=True)
class FeatureExamples(Result):
    """Examples of every latent: first the strongest, then some from the range below."""

    technique: ClassVar[str] = "feature_examples"
    evidence: ClassVar[str] = "Interval: bootstrap over latents. Null: random directions, as many as living latents."
    figures: ClassVar[tuple[Figure, ...]] = (
        Histogram(
            values="density", title="How often the latents fire", x_label="share of vectors it is active in", log_x=True
        ),
        Histogram(
            values="nearest", title="How close the nearest other latent is", x_label="cosine of the decoder's rows"
        ),
    )

    nearest_cosine: Estimate
    """Mean, over living latents, of the cosine with the nearest other living one."""
    twin_share: Estimate
    """Share of the living latents with another at a cosine above 0.9."""
    density: Float[np.ndarray, "latent"]
    """Share of the vectors in which it fires."""
    mean_activation: Float[np.ndarray, "latent"]
    """Over the vectors in which it fires; 0 if there is none."""
    max_activation: Float[np.ndarray, "latent"]
    nearest: Float[np.ndarray, "latent"]
    """Cosine with the nearest other living latent; NaN if dead."""
    example_value: Float[np.ndarray, "latent example"]
    """Largest code of the latent in the sample; NaN where there is no further example."""
    example_quantile: Float[np.ndarray, "latent example"]
    """Share of the samples in which it fires that are not stronger; from a draw of them if there are many."""
    example_sample: Int[np.ndarray, "latent example"]
    """-1 where there is no further example."""
    example_position: Int[np.ndarray, "latent example"]
    """Where the largest code is."""
    context_start: Int[np.ndarray, "latent example"]
    """Position of the first of the codes shown."""
    context_activation: Float[np.ndarray, "latent example position"]
    """Codes around the largest; NaN where the mask is 0 or there is no example."""
    context_token: Int[np.ndarray, "latent example position"]
    """Their tokens; -1 where unknown."""
    neighbour: Int[np.ndarray, "latent neighbour"]
    """Nearest by direction; -1 where there is none."""
    neighbour_cosine: Float[np.ndarray, "latent neighbour"]
    companion: Int[np.ndarray, "latent neighbour"]
    """Nearest by firing; -1 where there is none."""
    companion_correlation: Float[np.ndarray, "latent neighbour"]
    n_top: int
    """Examples that are strongest; the others are from the range below."""
    n_samples: int
    n_vectors: int
    n_dead: int

    def reading(self) -> str:
        """Say how alike the latents are."""
        n_latents = len(self.density)
        if n_latents - self.n_dead < 2:
            return f"{n_latents - self.n_dead} of {n_latents} latents fires on these {self.n_vectors} vectors."
        more = self.nearest_cosine.p_value <= 1 - self.nearest_cosine.level + 1e-9
        verdict = "more alike than" if more else "not distinguishable from"
        return (
            f"{n_latents - self.n_dead} of {n_latents} latents fire on these {self.n_vectors} vectors, the median one "
            f"in {np.median(self.density[self.density > 0]):.2%} of them. The nearest other latent has a cosine of "
            f"{self.nearest_cosine.value:.2f} on average, {verdict} random directions "
            f"({self.nearest_cosine.null:.2f}); {self.twin_share.value:.1%} have a near twin."
        )


def feature_examples(
    activations: Float[Rows, "sample *position unit"],
    dictionary: SparseDictionary,
    tokens: Integer[np.ndarray, "sample position"] | None = None,
    mask: Mask | None = None,
    *,
    config: FeatureExamplesConfig = FeatureExamplesConfig(),
) -> FeatureExamples:
    """Show what the latents of a dictionary fire on, and which latents are alike.

    Use it to read a dictionary: the examples are what a person, or another model, names latents by. A sample stands
    for a latent by its strongest position, so that one text does not fill the list. The strongest examples alone
    mislead; those from the range below show what the latent usually is.

    Parameters
    ----------
    activations
        (sample, unit) or (sample, position, unit), in the units the dictionary takes; read block by block.
    dictionary
        A trained dictionary.
    tokens
        What stands at each position.
    mask
        (sample, position): 0 where a position is padding and does not count.
    config
        How many examples, how much context.

    Returns
    -------
    FeatureExamples
        Values in the units of the codes, at least 0. `nearest_cosine` in [-1, 1]: 1 when every latent has a copy.

    Raises
    ------
    ShapeError
        If activations, tokens and mask do not fit each other or the dictionary.
    DegenerateInputError
        If an activation that counts is not finite.

    Notes
    -----
    Samples with equal values are shown in their order. Quantiles and the examples of the range below are those of a
    uniform draw of 64 samples in which the latent fires. Directions are those the dictionary writes; signs count.

    References
    ----------
    [@bricken2023]

    Examples
    --------
    >>> import torch
    >>> from mechint_core.features import SparseAutoencoder, SparseAutoencoderConfig
    >>> basis = SparseAutoencoder(2, 2, config=SparseAutoencoderConfig(activation="relu"))
    >>> _ = basis.W_enc.data.copy_(torch.eye(2)), basis.W_dec.data.copy_(torch.eye(2))
    >>> shown = feature_examples(np.array([[0.0, 3.0], [1.0, 0.0], [2.0, 0.0]]), basis)
    >>> shown.example_sample[:, :3].tolist(), shown.example_value[0, :2].tolist()
    ([[2, 1, -1], [0, -1, -1]], [2.0, 1.0])
    """
    if tokens is not None and tokens.shape != tuple(activations.shape[:-1]):
        raise ShapeError(
            f"tokens must be (sample, position) like the activations {tuple(activations.shape)}. "
            f"Got shape {tokens.shape}."
        )
    seen = _look(activations, dictionary, mask, config)
    directions = _unit_rows(dictionary.W_dec.detach().cpu().numpy().astype(np.float64))
    lives = seen.counts > 0
    cosine = _between(directions, lives)
    nearest_cosine, twin_share = _redundancy(_first(cosine)[lives], directions.shape[1], config)
    return FeatureExamples(
        nearest_cosine=nearest_cosine,
        twin_share=twin_share,
        density=seen.counts / seen.n_vectors,
        mean_activation=seen.sums / np.maximum(seen.counts, 1),
        max_activation=np.nan_to_num(seen.chosen.value[:, 0]),
        nearest=_first(cosine),
        example_value=seen.chosen.value,
        example_quantile=seen.chosen.quantile,
        example_sample=seen.chosen.sample,
        example_position=seen.chosen.position,
        **_contexts(activations, dictionary, tokens, mask, seen.chosen, config.context),
        **_nearest("neighbour", "neighbour_cosine", cosine, config.n_neighbours),
        **_nearest("companion", "companion_correlation", _phi(seen), config.n_neighbours),
        n_top=config.n_top,
        n_samples=activations.shape[0],
        n_vectors=seen.n_vectors,
        n_dead=int(np.sum(~lives)),
    )


class _Seen(NamedTuple):
    """What one pass over the data finds."""

    chosen: Examples
    counts: Int[np.ndarray, "latent"]
    """Vectors in which each latent fires."""
    sums: Float[np.ndarray, "latent"]
    together: Float[np.ndarray, "latent other_latent"]
    """Vectors in which both fire."""
    n_vectors: int


def _look(
    activations: Float[Rows, "sample *position unit"],
    dictionary: SparseDictionary,
    mask: Mask | None,
    config: FeatureExamplesConfig,
) -> _Seen:
    """Encode everything once: keep examples, count firing."""
    n_latents = dictionary.hidden_dim
    kept = KeptExamples(
        n_latents, n_top=config.n_top, n_spread=config.n_spread, rng=generator(config.seed, "examples", "spread")
    )
    sums, together, n_vectors = np.zeros(n_latents), np.zeros((n_latents, n_latents)), 0
    for rows, codes in encoded_blocks(activations, dictionary, mask):
        kept.add(rows.start, codes)
        fires = codes.reshape(-1, n_latents) > 0
        sums += codes.sum(axis=(0, 1), dtype=np.float64)
        together += _joint_counts(fires)
        n_vectors += len(fires) if mask is None else int(np.count_nonzero(mask[rows]))
    return _Seen(kept.chosen(), np.diag(together).astype(np.int64), sums, together, max(1, n_vectors))


def _joint_counts(fires: Bool[np.ndarray, "vector latent"]) -> Float[np.ndarray, "latent other_latent"]:
    """Return in how many vectors each pair of latents fires."""
    if fires.mean() < SPARSE_BELOW:
        sparse = scipy.sparse.csr_matrix(fires, dtype=np.float32)  # exact: counts below 2^24
        return (sparse.T @ sparse).toarray()
    dense = fires.astype(np.float32)
    return dense.T @ dense


def _phi(seen: _Seen) -> Float[np.ndarray, "latent other_latent"]:
    """Return the correlation of firing; -inf with itself, with dead latents, and with those that never rest."""
    n, counts = seen.n_vectors, seen.counts.astype(np.float64)
    spread = np.sqrt(counts * (n - counts))
    scale = np.where(spread > 0, spread, np.inf)
    phi = (n * seen.together - np.outer(counts, counts)) / np.outer(scale, scale)
    phi[spread == 0] = phi[:, spread == 0] = -np.inf
    np.fill_diagonal(phi, -np.inf)
    return phi


def _unit_rows(rows: Float[np.ndarray, "latent unit"]) -> Float[np.ndarray, "latent unit"]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)


def _between(
    directions: Float[np.ndarray, "latent unit"], lives: Bool[np.ndarray, "latent"]
) -> Float[np.ndarray, "latent other_latent"]:
    """Return cosines; -inf with itself and with dead latents."""
    cosine = np.clip(directions @ directions.T, -1.0, 1.0)
    cosine[~lives] = cosine[:, ~lives] = -np.inf
    np.fill_diagonal(cosine, -np.inf)
    return cosine


def _first(likeness: Float[np.ndarray, "latent other_latent"]) -> Float[np.ndarray, "latent"]:
    """Return the likeness of the nearest other; NaN where there is none."""
    best = likeness.max(axis=1)
    return np.where(np.isfinite(best), best, NAN)


def _nearest(who: str, how: str, likeness: Float[np.ndarray, "latent other_latent"], n: int) -> dict[str, np.ndarray]:
    """Return the `n` others most like each latent and how much; -1 and NaN where there are fewer."""
    order = np.argsort(-likeness, axis=1, kind="stable")[:, :n]
    value = np.take_along_axis(likeness, order, axis=1)
    known = np.isfinite(value)
    return {who: np.where(known, order, -1), how: np.where(known, value, NAN)}


def _redundancy(
    nearest: Float[np.ndarray, "latent"], n_units: int, config: FeatureExamplesConfig
) -> tuple[Estimate, Estimate]:
    """Return mean nearest cosine and share of near twins, and what random directions have."""
    if len(nearest) < 2:
        return Estimate(NAN, level=config.level), Estimate(NAN, level=config.level)
    null = np.empty((config.n_null, len(nearest)))
    for draw in range(config.n_null):
        rows = generator(config.seed, "examples", "null", draw).standard_normal((len(nearest), n_units))
        null[draw] = _first(_between(_unit_rows(rows), np.ones(len(nearest), dtype=bool)))
    rng = generator(config.seed, "examples", "bootstrap")

    def mean(values: Float[np.ndarray, "latent"], null: Float[np.ndarray, "draw latent"]) -> Estimate:
        draws = bootstrap_rows(
            lambda rows: float(values[rows].mean()), len(values), n_draws=config.n_bootstrap, rng=rng
        )
        return estimate(float(values.mean()), bootstrap=draws, null=null.mean(axis=1), level=config.level)

    return mean(nearest, null), mean((nearest > TWIN).astype(np.float64), (null > TWIN).astype(np.float64))


def _contexts(
    activations: Float[Rows, "sample *position unit"],
    dictionary: SparseDictionary,
    tokens: Integer[np.ndarray, "sample position"] | None,
    mask: Mask | None,
    chosen: Examples,
    context: int,
) -> dict[str, np.ndarray]:
    """Return codes and tokens around the strongest position of every example."""
    sample, position = chosen.sample, chosen.position
    n_positions = activations.shape[1] if len(activations.shape) == 3 else 1
    width = min(2 * context + 1, n_positions)
    start = np.clip(position - context, 0, n_positions - width)
    shown = start[..., None] + np.arange(width)
    exists = np.broadcast_to((sample >= 0)[..., None], shown.shape)
    if mask is not None:
        exists = exists & (mask[sample[..., None], shown] != 0)
    if n_positions == 1:
        codes = chosen.value[..., None]
    else:
        codes = np.full(shown.shape, NAN)
        for rows, block in encoded_blocks(activations, dictionary, mask):
            here = (rows.start <= sample) & (sample < rows.stop)
            latent = np.nonzero(here)[0][:, None]
            codes[here] = block[sample[here][:, None] - rows.start, shown[here], latent]
    at = (sample[..., None], shown)
    return {
        "context_start": start,
        "context_activation": np.where(exists, codes, NAN),
        "context_token": np.full(shown.shape, -1) if tokens is None else np.where(exists, tokens[at], -1),
    }
