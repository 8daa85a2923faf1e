"""Every error this package raises on purpose.

MechintError
├── ShapeError (also ValueError)              an array has the wrong shape or axis length
├── DtypeError (also TypeError)               an array holds the wrong kind of number
├── DegenerateInputError (also ValueError)    the answer is undefined for this input
├── ConfigurationError (also ValueError)      an option, or a combination of options, makes no sense
├── NotFoundError (also LookupError)          nothing is stored, or no module exists, under this name
├── UncommittedError (also OSError)           a writer was stopped before it finished this array
├── CorruptStoreError (also OSError)          stored bytes do not match what their commit recorded
├── CheckpointError (also ValueError)         a checkpoint does not fit its model
│   └── UnsafeCheckpointError                 a checkpoint would run code when loaded
├── RecordingError (also ValueError)          a file of brain responses does not hold what a recording needs
├── MemoryBudgetError (also MemoryError)      the computation would need more memory than it may use
└── MissingExtraError (also ImportError)      an optional dependency is not installed

A message reads: subject must be expected. Got actual. Then the remedy, where there is one.
"""

from collections.abc import Sequence


class MechintError(Exception):
    """Base class: catch this to catch everything raised on purpose."""


class ShapeError(MechintError, ValueError):
    """An array has the wrong number of axes, or an axis of the wrong length."""


class DtypeError(MechintError, TypeError):
    """An array holds the wrong kind of number (complex, object, integer where real is needed, ...)."""


class DegenerateInputError(MechintError, ValueError):
    """The quantity asked for is undefined for this input (zero variance, one sample, NaN, ...)."""


class ConfigurationError(MechintError, ValueError):
    """An option has an impossible value, or two options contradict each other."""


class NotFoundError(MechintError, LookupError):
    """Nothing is stored, or no module exists, under this name. The message lists the names that do exist."""


class UncommittedError(MechintError, OSError):
    """An array or result was never committed: its writer was stopped, so its rows cannot be trusted."""


class CorruptStoreError(MechintError, OSError):
    """Stored bytes differ from the digest recorded when they were committed."""


class CheckpointError(MechintError, ValueError):
    """A checkpoint cannot be read, or its parameters do not fit the model."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint holds pickled code. It is refused, because loading it would run that code."""


class RecordingError(MechintError, ValueError):
    """Brain responses, or the file they are in, are not what a recording needs. The message lists all that is wrong."""

    @classmethod
    def of(cls, subject: str, problems: Sequence[str]) -> "RecordingError":
        """Return one error that says all problems, each in a line of its own."""
        head = f"{subject} must be complete and consistent. Got {len(problems)} problem(s):"
        return cls("\n".join([head, *problems]))


class MemoryBudgetError(MechintError, MemoryError):
    """The computation would need more memory than its budget allows."""


class MissingExtraError(MechintError, ImportError):
    """An optional dependency is missing. The message names the extra that installs it."""
