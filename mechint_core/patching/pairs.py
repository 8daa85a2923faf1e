"""Prompt pairs: the same question asked so that one thing, and with it the answer, is different."""

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from jaxtyping import Int

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.patching.answers import check_metric, needs_target


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedConfig:
    """What every technique over prompt pairs can be told: how to score an answer, and how much to pack in one pass."""

    metric: str = "logit_difference"
    """logit_difference: target's logit less that of the corrupted prompt's answer (or, if that is not given, less the
    mean of the other logits); loss: cross-entropy in nats; probability: of the target; kl: from the clean
    distribution, in nats; distance: mean squared difference from the clean output, for any model; or one's own
    function, package.module:function, from (logits, Answer) to one number per row."""
    answer_position: int = -1
    """Where a model with one row of logits per position gives the answer."""
    sample_axis: int = 0
    """Where the model keeps its samples: 1 for PyTorch layers with `batch_first=False`. The arrays have them first."""
    batch_rows: int = 1024
    """Rows of one forward pass; with few pairs, several experiments share a pass."""
    cache_bytes: int = 256 * 2**20
    """Memory for the activations to write; more pairs than fit are taken in blocks."""
    n_draws: int = 1000
    """Bootstrap draws, and sign flips."""
    level: float = 0.95
    """Of the intervals."""
    seed: int = 0
    """Of the controls, draws and flips."""

    def __post_init__(self) -> None:
        check_metric(self.metric)
        if self.sample_axis not in (0, 1):
            raise ConfigurationError(f"sample_axis must be 0 or 1. Got {self.sample_axis!r}.")
        if min(self.batch_rows, self.cache_bytes, self.n_draws) < 1:
            raise ConfigurationError(f"batch_rows, cache_bytes and n_draws must be at least 1. Got {self}.")
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level must lie strictly between 0 and 1. Got {self.level}.")


@dataclass(frozen=True, slots=True, eq=False)
class PromptPairs:
    """Clean and corrupted inputs, row by row, and their answers. Make it with `of`, which checks."""

    clean: np.ndarray
    corrupted: np.ndarray
    target: Int[np.ndarray, "sample"] | None = None
    """The clean prompt's answer, as a class."""
    foil: Int[np.ndarray, "sample"] | None = None
    """The corrupted prompt's."""

    @classmethod
    def of(
        cls,
        clean: np.ndarray,
        corrupted: np.ndarray,
        target: np.ndarray | None,
        corrupted_target: np.ndarray | None,
        metric: str,
    ) -> "PromptPairs":
        """Return the pairs, checked.

        Raises
        ------
        ShapeError
            If the arrays do not pair up, or there are fewer than 2 pairs.
        ConfigurationError
            If the metric needs a target and there is none.
        DegenerateInputError
            If the inputs are not finite.
        """
        if clean.shape != corrupted.shape or clean.ndim < 2 or len(clean) < 2:
            raise ShapeError(
                "clean and corrupted must have the same shape, (sample >= 2, ...), and belong together row by row. "
                f"Got {clean.shape} and {corrupted.shape}."
            )
        for each in (target, corrupted_target):
            if each is not None and each.shape != clean.shape[:1]:
                raise ShapeError(f"targets must be one class per pair, ({len(clean)},). Got shape {each.shape}.")
        if target is None and needs_target(metric):
            raise ConfigurationError(f"the metric {metric} needs a target. Pass one, or use metric='kl' or 'distance'.")
        for name, array in (("clean", clean), ("corrupted", corrupted)):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise DegenerateInputError(
                    f"{name} must be finite. Got {int((~np.isfinite(array)).sum())} NaN or infinite values."
                )
        return cls(clean, corrupted, target, corrupted_target)

    def __len__(self) -> int:
        return len(self.clean)

    def at(self, rows: slice | np.ndarray) -> "PromptPairs":
        """Return some of the pairs."""
        target, foil = (None if each is None else each[rows] for each in (self.target, self.foil))
        return PromptPairs(self.clean[rows], self.corrupted[rows], target, foil)

    def fingerprints(self) -> frozenset[str]:
        """Return a digest of each pair's inputs, to tell whether two sets share pairs.

        A pair turned round, or kept in other integers, is the same pair: who has seen it has seen both prompts.
        """
        return frozenset(self._digests())

    def groups(self) -> Int[np.ndarray, "sample"]:
        """Give each pair a number, 0, 1, ...: the same to those with the same fingerprint."""
        _, which = np.unique(self._digests(), return_inverse=True)
        return which

    def _digests(self) -> list[str]:
        return [
            blake2b(b"".join(sorted(map(_bytes, pair))), digest_size=8).hexdigest()
            for pair in zip(self.clean, self.corrupted, strict=True)
        ]


def _bytes(prompt: np.ndarray) -> bytes:
    return np.ascontiguousarray(prompt, dtype=np.float64 if prompt.dtype.kind == "f" else np.int64).tobytes()
