"""What to train, in words that a configuration file can hold; and every kind of dictionary read back from files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mechint_core.errors import CheckpointError, ConfigurationError
from mechint_core.features.crosscoder import Crosscoder
from mechint_core.features.dictionaries.config import SparseAutoencoderConfig
from mechint_core.features.dictionaries.dictionary import WEIGHTS, SparseDictionary
from mechint_core.features.dictionaries.tensor_file import read_tensors
from mechint_core.features.dictionaries.training_pass import Job
from mechint_core.features.hierarchical_sparse_autoencoder import HierarchicalSparseAutoencoder
from mechint_core.features.sparse_autoencoder import SparseAutoencoder
from mechint_core.features.transcoder import Transcoder

KINDS: Final[Mapping[str, type[SparseDictionary]]] = {
    each.__name__: each for each in (SparseAutoencoder, HierarchicalSparseAutoencoder, Transcoder, Crosscoder)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One dictionary to train: what it reads, what it writes, and how."""

    reads: tuple[str, ...]
    """Names of sources. One: an autoencoder, hierarchical if the config has levels, or a transcoder if it writes
    another. Several: a crosscoder."""
    writes: str = ""
    """The source that a transcoder should write; empty: what is read."""
    skip: bool = False
    """Give the transcoder a linear path beside its latents."""
    config: SparseAutoencoderConfig = field(default_factory=SparseAutoencoderConfig)

    def __post_init__(self) -> None:
        if not self.reads or len(set(self.reads)) != len(self.reads):
            raise ConfigurationError(f"reads must name sources, each once. Got {self.reads}.")
        if self.writes and len(self.reads) > 1:
            raise ConfigurationError(f"a dictionary of several sites writes what it reads. Got writes={self.writes!r}.")
        if self.skip and not self.writes:
            raise ConfigurationError("skip is for a transcoder: a path around an autoencoder would leave it nothing.")

    @property
    def kind(self) -> type[SparseDictionary]:
        """What this makes."""
        if len(self.reads) > 1 or self.writes:
            return Crosscoder if len(self.reads) > 1 else Transcoder
        return HierarchicalSparseAutoencoder if self.config.levels else SparseAutoencoder

    def job(self, widths: Mapping[str, int]) -> Job:
        """Return the untrained dictionary for sources of these widths, and what it reads and writes.

        Raises
        ------
        ConfigurationError
            If a source is not there, or the config does not fit its width.
        """
        unknown = [name for name in (*self.reads, self.writes) if name and name not in widths]
        if unknown:
            raise ConfigurationError(f"a dictionary must read and write {', '.join(widths)}. Got {unknown}.")
        return Job(self._dictionary(widths), self.reads, self.writes)

    def _dictionary(self, widths: Mapping[str, int]) -> SparseDictionary:
        site = next(iter(self.reads))
        first = widths[site]
        if len(self.reads) > 1:
            return Crosscoder([widths[name] for name in self.reads], sites=self.reads, config=self.config)
        if self.writes:
            made: SparseDictionary = Transcoder(first, widths[self.writes], skip=self.skip, config=self.config)
        else:
            kind = HierarchicalSparseAutoencoder if self.config.levels else SparseAutoencoder
            made = kind(first, self.config.latents_for(first), config=self.config)
        made.site = site
        return made


def load_dictionary(folder: Path | str) -> SparseDictionary:
    """Read a saved dictionary of any kind.

    Raises
    ------
    CheckpointError
        If the folder holds no dictionary, or one of a kind that this version does not know.
    """
    _, about = read_tensors(Path(folder) / WEIGHTS)
    kind = about.get("kind", SparseAutoencoder.__name__)
    if kind not in KINDS:
        raise CheckpointError(f"{folder} must hold one of {', '.join(KINDS)}. Got {kind}.")
    return KINDS[kind].load(folder)
