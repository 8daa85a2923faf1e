"""The samples to show of every latent, kept while the data stream by: the strongest, and a few from the whole range.

A sample's value for a latent is its largest code, at the position where it is reached. Kept per latent:

    the n_top samples with the largest values
    a uniform draw of RESERVOIR of the samples in which it fires, from which evenly spaced quantiles are taken

Only samples in which a latent fires, and that beat the last one kept, are ever sorted. Which are kept does not depend
on how the samples come in blocks: of equal values, the earlier samples are kept.

Cost: one comparison per code; a sort of the few that pass.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

RESERVOIR = 64
SAMPLES_AT_ONCE = 256


class Entries(NamedTuple):
    """Samples kept for latents, sorted by latent, then by key, the largest first."""

    latent: Int[np.ndarray, "entry"]
    key: Float[np.ndarray, "entry"]
    value: Float[np.ndarray, "entry"]
    sample: Int[np.ndarray, "entry"]
    position: Int[np.ndarray, "entry"]

    def taken(self, which: np.ndarray | slice) -> "Entries":
        """Return some of them, or all in another order."""
        return Entries(*(part[which] for part in self))


class Examples(NamedTuple):
    """What is shown of each latent."""

    value: Float[np.ndarray, "latent example"]
    """NaN where there is no further example."""
    quantile: Float[np.ndarray, "latent example"]
    sample: Int[np.ndarray, "latent example"]
    """-1 where there is no further example."""
    position: Int[np.ndarray, "latent example"]


class _Best:
    """The `size` entries of every latent with the largest keys."""

    def __init__(self, n_latents: int, size: int) -> None:
        self.size, self._starts = size, np.arange(n_latents)
        self.kept = Entries(*(np.empty(0, dtype) for dtype in (int, float, float, int, int)))
        self._least = np.full(n_latents, -np.inf)
        """Keys up to this are not kept."""

    def add(self, first: int, key: np.ndarray, value: np.ndarray, position: np.ndarray, fires: np.ndarray) -> None:
        """Look at the samples `first`, `first + 1`, ...; all arrays are (sample, latent)."""
        row, latent = np.nonzero(fires & (key > self._least))
        new = Entries(latent, key[row, latent], value[row, latent], first + row, position[row, latent])
        both = Entries(*(np.concatenate(parts) for parts in zip(self.kept, new, strict=True)))
        both = both.taken(np.lexsort((both.sample, -both.key, both.latent)))
        rank = np.arange(len(both.latent)) - np.searchsorted(both.latent, self._starts)[both.latent]
        self.kept = both.taken(rank < self.size)
        last = rank[rank < self.size] == self.size - 1
        self._least[self.kept.latent[last]] = self.kept.key[last]

    def of(self, latent: int) -> Entries:
        """Return the entries of one latent."""
        start, stop = np.searchsorted(self.kept.latent, (latent, latent + 1))
        return self.kept.taken(slice(start, stop))


class KeptExamples:
    """What has been kept so far; feed it every block once, in order.

    Parameters
    ----------
    n_latents
        Latents of the dictionary.
    n_top
        Strongest samples to keep.
    n_spread
        Samples to take from the rest of the range.
    rng
        Draws them.
    """

    def __init__(self, n_latents: int, *, n_top: int, n_spread: int, rng: np.random.Generator) -> None:
        self._n_latents, self._n_spread, self._rng = n_latents, n_spread, rng
        self._top, self._drawn = _Best(n_latents, n_top), _Best(n_latents, RESERVOIR)

    def add(self, first: int, codes: Float[np.ndarray, "sample position latent"]) -> None:
        """Look at the samples `first`, `first + 1`, ..."""
        for start in range(0, len(codes), SAMPLES_AT_ONCE):
            some = codes[start : start + SAMPLES_AT_ONCE]
            position, value = some.argmax(axis=1), some.max(axis=1).astype(np.float64)
            fires: Bool[np.ndarray, "sample latent"] = value > 0
            lot = self._rng.random(value.shape)  # in the order of the samples: blocks do not matter
            self._top.add(first + start, value, value, position, fires)
            self._drawn.add(first + start, lot, value, position, fires)

    def chosen(self) -> Examples:
        """Return the strongest samples, then those from the range below, each strongest first.

        The quantile of a sample is the share of the drawn ones that are not stronger.
        """
        shape = (self._n_latents, self._top.size + self._n_spread)
        shown = Examples(np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, -1), np.zeros(shape, int))
        for latent in range(self._n_latents):
            top, drawn = self._top.of(latent), self._drawn.of(latent)
            drawn = drawn.taken(np.lexsort((drawn.sample, -drawn.value)))
            below = drawn.taken(~np.isin(drawn.sample, top.sample))
            n_spread = min(self._n_spread, len(below.value))
            below = below.taken(((np.arange(n_spread) + 0.5) * len(below.value) / max(1, n_spread)).astype(int))
            for start, entries in ((0, top), (self._top.size, below)):
                places = (latent, slice(start, start + len(entries.value)))
                shown.value[places], shown.sample[places] = entries.value, entries.sample
                shown.position[places] = entries.position
                not_stronger = len(drawn.value) - np.searchsorted(-drawn.value, -entries.value)
                shown.quantile[places] = not_stronger / max(1, len(drawn.value))
        return shown
