"""What a stored result says of itself: everything a report, a tracker or a reader in ten years needs.

Written once, when a technique's Result is stored; read by `mechint_core.report` and `tasks`, which know no
technique by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mechint_core.result import Estimate


@dataclass(frozen=True, slots=True)
class ResultKey:
    """Where a result lies: `results/<run>/<step>/<technique>/<name>`."""

    run: str
    technique: str
    name: str
    """The site, or the sites joined by `~`, or a word for a result over all checkpoints."""
    step: int | None = None
    """The checkpoint's step; None for a result over several checkpoints."""


@dataclass(frozen=True, slots=True)
class About:
    """A technique in words, taken from its docstring and its Result class."""

    question: str
    """First line of the technique's docstring."""
    description: str
    """Second paragraph of it: when to use it, what it assumes, what it cannot tell."""
    evidence: str
    """Which interval and which null the Estimates carry."""
    references: tuple[str, ...]
    """Keys of references.bib."""


@dataclass(frozen=True, slots=True)
class StoredResult:
    """One committed result, read back. Arrays are read when first asked for."""

    key: ResultKey
    about: About
    reading: str
    config: Mapping[str, Any]
    estimates: Mapping[str, Estimate]
    flags: Mapping[str, float]
    labels: Mapping[str, tuple[str, ...]]
    axes: Mapping[str, tuple[str, ...]]
    figures: tuple[Mapping[str, Any], ...]
    """As made by `mechint_core.figure.declare`."""
    provenance: Mapping[str, Any]
    """version (of the technique), inputs {argument: digest}, package, commit, cache_key, digest, made_at, seconds."""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
