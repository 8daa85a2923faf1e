"""Which sparse features a component reads, and what it writes for each of them.

    f(x) = sparsify(W_enc x + b_enc),     y_hat = W_dec^T f(x) + b_dec  (+ W_skip x)

x goes into a component (the input of an MLP layer), y comes out of it. A transcoder is a sparse, wide stand-in for
the component: its latents are read off the input, so that a circuit can be traced through them. With a skip, a
linear path takes what needs no features. The maths and training are those of every sparse dictionary.

Source: [@dunefsky2024]; [@paulo2025b] for the skip.
"""

from collections.abc import Mapping
from typing import Any, final

from mechint_core.errors import ConfigurationError
from mechint_core.features.dictionaries.config import SparseAutoencoderConfig
from mechint_core.features.dictionaries.dictionary import SparseDictionary, read_config


@final
class Transcoder(SparseDictionary):
    """A dictionary that reads one site and writes another.

    Parameters
    ----------
    input_dim, output_dim
        Units of the vectors read and written.
    skip
        Add a linear map of what is read.
    config
        Size, sparsity and training.

    Raises
    ------
    ConfigurationError
        If a size is below 1, `k` is above the number of latents, or weights are to be tied.

    Examples
    --------
    >>> import torch
    >>> transcoder = Transcoder(6, 4, skip=True, config=SparseAutoencoderConfig(n_latents=40))
    >>> tuple(transcoder(torch.zeros(5, 6)).shape)
    (5, 4)
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        *,
        skip: bool = False,
        config: SparseAutoencoderConfig = SparseAutoencoderConfig(),
    ) -> None:
        if config.tied_weights:
            raise ConfigurationError("a transcoder reads and writes different spaces. Got tied_weights.")
        super().__init__(input_dim, config, output_dim=output_dim, skip=skip)

    @classmethod
    def from_about(cls, about: Mapping[str, Any]) -> "Transcoder":
        """Return a transcoder of a saved shape, with its initial weights."""
        made = cls(about["input_dim"], about["output_dim"], skip=about["skip"], config=read_config(about))
        made.site = about.get("site", "")
        return made
