"""Which latents of a crosscoder its sites share, and which are one site's own.

    share_jm = |W_dec,jm| / sum_m' |W_dec,jm'|        in units of each site's size
    exclusive to m:   share_jm > `exclusive_above`         shared:   no site holds that much

For sites of equal width (two checkpoints, two seeds of one architecture) the cosine between a latent's parts says
whether it is not only shared but also kept its direction. The null pairs the parts of different latents: as many
long and short parts on every site, without regard to what goes together.

Source: [@lindsey2024], [@minder2025].
Cost: one pass over the decoder's rows.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch.nn import functional

from mechint_core.errors import ConfigurationError, DegenerateInputError
from mechint_core.features.crosscoder import Crosscoder
from mechint_core.figure import Figure, Histogram
from mechint_core.kernels.resampling import bootstrap_rows, estimate
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSharingConfig:
    """What counts as exclusive, and how sure to be."""

    exclusive_above: float = 0.9
    """A latent whose decoder lies in one site by more than this share is that site's own."""
    n_draws: int = 199
    """Bootstrap draws of the latents, and pairings of parts of different latents."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        if not (0.5 <= self.exclusive_above < 1 and 0 < self.level < 1):
            raise ConfigurationError(f"exclusive_above must be in [0.5, 1), level in (0, 1). Got {self}.")
        if self.n_draws < 1 or self.seed < 0:
            raise ConfigurationError(f"n_draws must be at least 1, seed at least 0. Got {self}.")


@dataclass(frozen=True, slots=True)
class LatentSharing(Result):
    """What the sites of a crosscoder have in common."""

    technique: ClassVar[str] = "latent_sharing"
    evidence: ClassVar[str] = "Intervals: bootstrap over latents. Null: parts of different latents put together."
    figures: ClassVar[tuple[Figure, ...]] = (
        Histogram(values="first_share", title="How much of each latent lies in the first site", x_label="share"),
        Histogram(values="cosine", title="How alike a latent's directions are in both sites", x_label="cosine"),
    )

    shared: Estimate
    """Share of the latents that no site has for itself."""
    mean_cosine: Estimate
    """Of the shared latents' parts in the first two sites; NaN where the sites differ in width."""
    n_living: int
    """Latents that fire; the others keep the random rows they began with, as long in every site."""
    n_dead: int
    n_exclusive: Int[np.ndarray, "site"]
    first_share: Float[np.ndarray, "latent"]
    cosine: Float[np.ndarray, "latent"]
    site_share: Float[np.ndarray, "latent site"]

    def reading(self) -> str:
        """Say what is shared."""
        own = ", ".join(str(n) for n in self.n_exclusive)
        text = (
            f"{self.shared.value:.0%} of the {self.n_living} living latents are shared "
            f"({self.shared.null:.0%} if the sites' parts were put together at random); exclusive to each site: {own}."
        )
        if np.isnan(self.mean_cosine.value):
            return text
        return text + f" Shared latents point the same way in both with a cosine of {self.mean_cosine.value:.2f}."


def latent_sharing(dictionary: Crosscoder, *, config: LatentSharingConfig = LatentSharingConfig()) -> LatentSharing:
    """Tell the latents that several sites, models or checkpoints share from those that are one's own.

    Use it on a crosscoder that explains all its sites well (see its training). It judges decoder norms: a latent can
    be shared and mean little, and an L1 penalty makes latents look exclusive that are not, so prefer batch_topk.

    Parameters
    ----------
    dictionary
        A trained crosscoder.
    config
        What counts as exclusive; draws and confidence.

    Returns
    -------
    LatentSharing
        `shared` in [0, 1], of the living latents; `site_share` per latent, summing to 1 over sites, NaN if dead;
        `cosine` in [-1, 1], NaN where the widths of the first two sites differ.

    Raises
    ------
    DegenerateInputError
        If no latent is alive.

    References
    ----------
    [@lindsey2024]
    [@minder2025]

    Examples
    --------
    >>> from mechint_core.features import SparseAutoencoderConfig
    >>> made = Crosscoder([1, 1], config=SparseAutoencoderConfig(n_latents=3, k=1))
    >>> _ = made.W_dec.data.copy_(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]))
    >>> found = latent_sharing(made)
    >>> (round(found.shared.value, 3), found.n_exclusive.tolist())
    (0.333, [1, 1])
    """
    alive = (dictionary.alive & (dictionary.W_dec.norm(dim=1) > 0)).cpu().numpy()
    if not alive.any():
        raise DegenerateInputError("a crosscoder must have a latent that fires. Got none.")
    every_share, every_cosine = dictionary.site_shares().double().cpu().numpy(), _cosines(dictionary)
    shares, cosine = every_share[alive], every_cosine[alive]
    rng = generator(config.seed, "latent_sharing")
    together = shares.max(axis=1) <= config.exclusive_above

    def shared_of(rows: Int[np.ndarray, "sample"]) -> float:
        return float(together[rows].mean())

    def cosine_of(rows: Int[np.ndarray, "sample"]) -> float:
        return float(cosine[rows][together[rows]].mean()) if together[rows].any() else NAN

    every = np.arange(len(shares))
    bootstraps = [
        bootstrap_rows(of, len(shares), n_draws=config.n_draws, rng=rng) if len(shares) > 1 else None
        for of in (shared_of, cosine_of)
    ]
    null = np.array([_shared_at_random(shares, config.exclusive_above, rng) for _ in range(config.n_draws)])
    return LatentSharing(
        shared=estimate(shared_of(every), bootstrap=bootstraps[0], null=null, level=config.level),
        mean_cosine=estimate(cosine_of(every), bootstrap=bootstraps[1], level=config.level),
        n_living=len(shares),
        n_dead=int((~alive).sum()),
        n_exclusive=(shares > config.exclusive_above).sum(axis=0),
        first_share=np.where(alive, every_share[:, 0], NAN),
        cosine=np.where(alive, every_cosine, NAN),
        site_share=np.where(alive[:, None], every_share, NAN),
    )


@torch.no_grad()
def _cosines(dictionary: Crosscoder) -> Float[np.ndarray, "latent"]:
    """Return the cosine between each latent's parts in the first two sites."""
    first, second = dictionary.W_dec.split(dictionary.widths, dim=1)[:2]
    if first.shape != second.shape:
        return np.full(len(first), NAN)
    return functional.cosine_similarity(first, second, dim=1).double().cpu().numpy()


def _shared_at_random(shares: Float[np.ndarray, "latent site"], above: float, rng: np.random.Generator) -> float:
    """Return the share of shared latents after putting parts of different latents together."""
    mixed = rng.permuted(shares, axis=0)
    return float((mixed.max(axis=1) <= above * mixed.sum(axis=1)).mean())
