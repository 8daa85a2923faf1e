"""How good a sparse dictionary is: how few latents explain how much.

    L0        = mean number of active latents per vector
    FVU       = sum |x - x_hat|^2 / sum |x - mean|^2                        share of variance unexplained
    shrinkage = sum |x_hat - b|^2 / sum (x_hat - b).(x - b)                 1: none, below 1: codes too small

b is the decoder's bias. The null is a dictionary of as many random directions, given the same L0, the data's mean
and the one scale that serves it best: what size and sparsity explain without learning.

Source: [@rajamanoharan2024] for shrinkage, [@gao2024] for the rest.
Cost: (1 + n_null) dense products of samples x units x latents. Chunked over: samples.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.features.dictionary import SparseDictionary
from mechint_core.features.sparse_codes import batch_topk, sparse_encode
from mechint_core.figure import Curve, Figure, Histogram
from mechint_core.kernels.resampling import bootstrap_rows, estimate
from mechint_core.random import generator, torch_generator
from mechint_core.result import NAN, Estimate, Result

CHUNK_VALUES = 2**24
"""Codes computed at once."""
MEASURES = ("active latents", "|x - x_hat|^2", "|x - mean|^2", "(x_hat - b).(x - b)", "|x_hat - b|^2")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateDictionaryConfig:
    """How sure to be of a dictionary's quality."""

    n_bootstrap: int = 200
    """Bootstrap draws of the samples, for intervals."""
    n_null: int = 19
    """Random dictionaries to compare with; 19 allow p = 0.05."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        if self.n_bootstrap < 1 or self.n_null < 1 or self.seed < 0 or not 0 < self.level < 1:
            raise ConfigurationError(
                f"n_bootstrap and n_null must be at least 1, level in (0, 1), seed at least 0. Got {self}."
            )


@dataclass(frozen=True, slots=True)
class EvaluateDictionary(Result):
    """Quality of one dictionary on one set of vectors."""

    technique: ClassVar[str] = "evaluate_dictionary"
    evidence: ClassVar[str] = (
        "Intervals: bootstrap over samples; dead share: Wilson's over latents. "
        "Null: random dictionaries of equal size and L0, at their best scale."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Histogram(
            values="density",
            title="How often the latents fire",
            x_label="share of samples a latent is active in",
            log_x=True,
        ),
        Curve(
            y=("sorted_density",),
            title="From the busiest latent to the rarest",
            x_label="latent, by rank",
            y_label="share of samples",
            log_y=True,
        ),
    )

    fvu: Estimate
    l0: Estimate
    dead_share: Estimate
    shrinkage: Estimate
    n_vectors: int
    n_latents: int
    density: Float[np.ndarray, "latent"]
    sorted_density: Float[np.ndarray, "latent"]
    mean_activation: Float[np.ndarray, "latent"]

    def reading(self) -> str:
        """Say what the dictionary explains, and with how much."""
        better = self.fvu.p_value <= 1 - self.fvu.level + 1e-9
        verdict = (
            f"a random dictionary of the same size and sparsity explains {1 - self.fvu.null:.0%}"
            if better
            else f"no better than random dictionaries of the same size and sparsity (p = {self.fvu.p_value:.2g})"
        )
        return (
            f"{self.l0.value:.3g} of {self.n_latents} latents are active per vector and explain "
            f"{1 - self.fvu.value:.1%} of the variance; {verdict}. {self.dead_share.value:.1%} of the latents never "
            f"fired on these {self.n_vectors} vectors, and reconstructions have {self.shrinkage.value:.0%} of the "
            f"size they should have."
        )


def evaluate_dictionary(
    activations: Float[np.ndarray, "sample *position unit"],
    dictionary: SparseDictionary,
    *,
    config: EvaluateDictionaryConfig = EvaluateDictionaryConfig(),
) -> EvaluateDictionary:
    """Measure how much of the activations how few latents of the dictionary explain.

    Use it on vectors that the dictionary was not trained on. Several dictionaries compare fairly only at equal L0.
    It says nothing about whether latents mean something, nor whether the model would run on the reconstructions.

    Parameters
    ----------
    activations
        At least two samples that differ, in the units the dictionary takes. Further axes before the last are
        flattened to vectors; the bootstrap keeps those of a sample together.
    dictionary
        A trained dictionary.
    config
        Draws and confidence.

    Returns
    -------
    EvaluateDictionary
        `fvu` in [0, inf): 0 when reconstruction is perfect, 1 when it is as good as the mean. `l0` in
        [0, n_latents]. `dead_share` in [0, 1]: it falls as more samples are given. `shrinkage` in [0, inf), 1 when
        unbiased; NaN if no latent is active. `density` and `mean_activation` (over the samples in which the latent
        is active, 0 if there is none) per latent.

    Raises
    ------
    ShapeError
        If there are fewer than two samples, or they have not the dictionary's number of units.
    DegenerateInputError
        If a value is not finite, or all vectors are the same.

    References
    ----------
    [@rajamanoharan2024]
    [@gao2024]

    Examples
    --------
    >>> from mechint_core.features import SparseAutoencoder, SparseAutoencoderConfig
    >>> basis = SparseAutoencoder(2, 4, config=SparseAutoencoderConfig(activation="relu"))
    >>> axes = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> _ = basis.W_enc.data.copy_(axes), basis.W_dec.data.copy_(axes)
    >>> result = evaluate_dictionary(np.array([[1.0, 2.0], [-3.0, 1.0], [1.0, -1.0]]), basis)
    >>> (result.l0.value, result.fvu.value, result.shrinkage.value)
    (2.0, 0.0, 1.0)
    """
    x = _checked(activations, dictionary)
    found = _measure(x, dictionary)
    n_latents = len(found.density)
    measures = found.per_vector.reshape(len(activations), -1, len(MEASURES)).sum(axis=1)
    l0, error, deviation, cross, power = measures.T
    n_vectors = np.full(len(l0), len(x) / len(l0))
    null = [
        _random_dictionary(x, n_latents, float(l0.sum() / len(x)), draw, config.seed) for draw in range(config.n_null)
    ]
    null_fvu, null_dead = np.array(null).T
    rng = generator(config.seed, "bootstrap")

    def ratio(
        top: Float[np.ndarray, "sample"], bottom: Float[np.ndarray, "sample"], null: Float[np.ndarray, "draw"] | None
    ) -> Estimate:
        def of(rows: Int[np.ndarray, "sample"] | slice) -> float:
            return float(top[rows].sum() / bottom[rows].sum()) if bottom[rows].sum() > 0 else NAN

        draws = bootstrap_rows(of, len(top), n_draws=config.n_bootstrap, rng=rng)
        return estimate(of(slice(None)), bootstrap=draws, null=null, tail="less", level=config.level)

    return EvaluateDictionary(
        fvu=ratio(error, deviation, null_fvu),
        l0=ratio(l0, n_vectors, None),
        dead_share=_proportion(found.density == 0, float(null_dead.mean()), config.level),
        shrinkage=ratio(power, cross, None),
        n_vectors=len(x),
        n_latents=n_latents,
        density=found.density,
        sorted_density=np.sort(found.density)[::-1].copy(),
        mean_activation=found.mean_activation,
    )


class _Measured(NamedTuple):
    per_vector: Float[np.ndarray, "sample measure"]
    """`MEASURES`."""
    density: Float[np.ndarray, "latent"]
    mean_activation: Float[np.ndarray, "latent"]


@torch.no_grad()
def _measure(x: Float[Tensor, "sample unit"], dictionary: SparseDictionary) -> _Measured:
    """Encode and decode chunk by chunk."""
    bias, mean = dictionary.b_dec, x.double().mean(dim=0)
    counts, sums = (mean.new_zeros(dictionary.hidden_dim) for _ in range(2))
    rows: list[Tensor] = []
    for chunk in x.split(max(1, CHUNK_VALUES // dictionary.hidden_dim)):
        codes = dictionary.encode(chunk)
        explained, target = (dictionary.decode(codes) - bias).double(), (chunk - bias).double()
        active = codes > 0
        counts += active.sum(dim=0)
        sums += codes.sum(dim=0, dtype=torch.float64)
        error, deviation = (target - explained).square().sum(dim=1), (chunk.double() - mean).square().sum(dim=1)
        cross, power = (explained * target).sum(dim=1), explained.square().sum(dim=1)
        rows.append(torch.stack([active.sum(dim=1).double(), error, deviation, cross, power], dim=1))
    density, mean_activation = counts / len(x), sums / counts.clamp_min(1)
    return _Measured(torch.cat(rows).cpu().numpy(), density.cpu().numpy(), mean_activation.cpu().numpy())


@torch.no_grad()
def _random_dictionary(
    x: Float[Tensor, "sample unit"], n_latents: int, l0: float, draw: int, seed: int
) -> tuple[float, float]:
    """Return FVU and dead share of random directions that keep the `l0` best matches per vector."""
    rows = torch.randn(n_latents, x.shape[1], generator=torch_generator(seed, "null", draw)).to(x)
    rows, mean = functional.normalize(rows, dim=1), x.mean(dim=0)
    fired = torch.zeros(n_latents, dtype=torch.bool, device=x.device)
    deviation = cross = power = 0.0
    for chunk in x.split(max(1, CHUNK_VALUES // n_latents)):
        codes = sparse_encode(chunk, rows, -rows @ mean, batch_topk(l0))
        explained, target = codes.matmul(rows).double(), (chunk - mean).double()
        fired[codes.latents[codes.values > 0]] = True
        deviation += float(target.square().sum())
        cross += float((explained * target).sum())
        power += float(explained.square().sum())
    unexplained = 1 - cross**2 / (power * deviation) if power else 1.0  # at the scale cross / power
    return unexplained, 1 - float(fired.double().mean())


def _proportion(hits: np.ndarray, null: float, level: float) -> Estimate:
    """Return the share of hits with Wilson's interval, which is not empty even when there is none."""
    n, share = len(hits), float(hits.mean())
    z2 = float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64))) ** 2
    middle, half = (share + z2 / (2 * n)), np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2)))
    low, high = ((middle + side * half) / (1 + z2 / n) for side in (-1, 1))
    return Estimate(share, max(0.0, float(low)), min(1.0, float(high)), null, level=level)


def _checked(
    activations: Float[np.ndarray, "sample *position unit"], dictionary: SparseDictionary
) -> Float[Tensor, "vector unit"]:
    """Return the vectors, which the dictionary can encode and whose variance can be explained."""
    if activations.ndim < 2 or len(activations) < 2 or activations.shape[-1] != dictionary.input_dim:
        raise ShapeError(
            f"activations must be (sample >= 2, ..., unit = {dictionary.input_dim}). Got shape {activations.shape}."
        )
    vectors = activations.reshape(-1, dictionary.input_dim)
    if not np.isfinite(vectors).all():
        raise DegenerateInputError("activations must be finite. Got NaN or infinity.")
    if (vectors == vectors[0]).all():
        raise DegenerateInputError(
            "activations must differ. Got vectors that are all the same: no variance to explain."
        )
    return torch.tensor(vectors).to(dictionary.W_dec)
