"""Which sparse features several sites, models or checkpoints share, and which are one's own.

    f(x_1 .. x_M) = sparsify(sum_m W_enc,m (x_m - b_m) + b_enc),     x_hat_m = W_dec,m^T f + b_m

One code for all: a crosscoder is an autoencoder of the vectors side by side, each site in units of its own size. Its
decoder row has one part per site; a latent that only one site uses has a part there and none elsewhere:

    share_jm = |W_dec,jm| / sum_m' |W_dec,jm'|        in units of each site's size

Source: [@lindsey2024]; [@minder2025] for why not the L1 penalty, which makes exclusive latents out of shared ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from mechint_core.errors import ConfigurationError
from mechint_core.features.dictionaries.config import SparseAutoencoderConfig
from mechint_core.features.dictionaries.dictionary import SparseDictionary, read_config


@final
class Crosscoder(SparseDictionary):
    """A dictionary of several sites at once.

    Parameters
    ----------
    widths
        Units of each site, in the order in which their vectors lie side by side.
    sites
        Their names.
    config
        Size, sparsity and training.

    Raises
    ------
    ConfigurationError
        If there are fewer than two sites, as many names as sites are not given, or weights are to be tied.

    Examples
    --------
    >>> crosscoder = Crosscoder([3, 5], config=SparseAutoencoderConfig(n_latents=40))
    >>> tuple(crosscoder.site_shares().shape)
    (40, 2)
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        sites: Sequence[str] = (),
        config: SparseAutoencoderConfig = SparseAutoencoderConfig(),
    ) -> None:
        names = tuple(sites) or tuple(str(index) for index in range(len(widths)))
        if len(widths) < 2 or len(names) != len(widths) or min(widths) < 1:
            raise ConfigurationError(f"a crosscoder needs two sites or more, each named. Got {widths} and {names}.")
        if config.tied_weights:
            raise ConfigurationError("a crosscoder gives every site its own size. Got tied_weights.")
        super().__init__(sum(widths), config)
        self.widths, self.sites = tuple(widths), names

    @torch.no_grad()
    def site_shares(self) -> Float[Tensor, "latent site"]:
        """Return how much of each latent's decoder lies in each site: in [0, 1], 1 over the sites together."""
        rows = (self.W_dec / self.scale).split(self.widths, dim=1)
        norms = torch.stack([part.norm(dim=1) for part in rows], dim=1)
        return norms / norms.sum(dim=1, keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny)

    def about(self) -> dict[str, Any]:
        """Return what `from_about` needs to make a crosscoder of this shape."""
        return {**super().about(), "widths": list(self.widths), "sites": list(self.sites)}

    @classmethod
    def from_about(cls, about: Mapping[str, Any]) -> "Crosscoder":
        """Return a crosscoder of a saved shape, with its initial weights."""
        return cls(about["widths"], sites=about["sites"], config=read_config(about))
