"""The layout of a store: which names are allowed, and which path each thing has.

    activations/<run>/<step>/<site>               results/<run>/<step or "all">/<technique>/<name>
    inputs/<dataset>                              dictionaries/<run>/<step>/<site>/<name>
    dissimilarities/<run>/<step>/<site>/<name>

A name becomes one path segment on a disk or an object store, so it may hold neither a separator nor anything a
glob, a URL or a shell would read as something else. Steps are zero-padded: their alphabetical order is their order.
"""

import re
from typing import Final, Literal

from mechint_core.errors import ConfigurationError

Kind = Literal["activations", "inputs", "results", "dictionaries", "dissimilarities"]

DEPTH: Final[dict[Kind, int]] = {
    "activations": 3,
    "inputs": 1,
    "results": 4,
    "dictionaries": 4,
    "dissimilarities": 4,
}
"""How many path segments name one entry of each kind."""
STORE_FILE: Final = "store.json"
COMMIT_FILE: Final = "commit.json"
WRITER_FILE: Final = "writer.json"
PARTIAL: Final = ".partial"
"""What ends the name of a folder that is still being written."""
ALL_STEPS: Final = "all"
"""In place of a step: a result over several checkpoints."""

_STEP_DIGITS: Final = 10
_ALLOWED: Final = re.compile(r"[\w~+=@,()-][\w~+=@,() .-]*", re.ASCII)
_RESERVED: Final = frozenset({COMMIT_FILE, WRITER_FILE, "zarr.json"})
_LONGEST: Final = 200  # bytes: file systems allow 255, and a partial folder's name is longer


def check_name(kind: str, name: str) -> str:
    """Return `name` if it can be one path segment; `kind` says in the error what it should have named."""
    fits = isinstance(name, str) and len(name) <= _LONGEST and _ALLOWED.fullmatch(name)
    if not fits or name in _RESERVED or name.startswith("__") or name.endswith((PARTIAL, ".", " ")):
        raise ConfigurationError(
            f"{kind} must be a name of 1 to {_LONGEST} letters, digits, spaces or characters of . _ - ~ + = @ , ( ), "
            f"not starting with '.' or '__' and not ending with '.', ' ' or '{PARTIAL}'. Got {name!r}. Rename it."
        )
    return name


def step_name(step: int) -> str:
    """Return the folder name of a step."""
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 10**_STEP_DIGITS:
        raise ConfigurationError(f"step must be an integer >= 0 of at most {_STEP_DIGITS} digits. Got {step!r}.")
    return f"{step:0{_STEP_DIGITS}d}"


def step_number(name: str) -> int | None:
    """Return the step that a folder name stands for; None for `all`, and for a folder that is not ours."""
    return int(name) if name.isascii() and name.isdigit() else None


def activations_path(run: str, step: int, site: str) -> str:
    """Return the path of one site's activations at one checkpoint."""
    return "/".join(("activations", check_name("run", run), step_name(step), check_name("site", site)))


def inputs_path(dataset: str) -> str:
    """Return the path of a data set."""
    return f"inputs/{check_name('dataset', dataset)}"


def result_path(run: str, step: int | None, technique: str, name: str) -> str:
    """Return the path of one result; `step` None stands for all checkpoints."""
    when = ALL_STEPS if step is None else step_name(step)
    return "/".join(
        ("results", check_name("run", run), when, check_name("technique", technique), check_name("name", name))
    )


def dictionary_path(run: str, step: int, site: str, name: str) -> str:
    """Return the path of one trained dictionary."""
    return _of_a_site("dictionaries", run, step, site, name)


def dissimilarities_path(run: str, step: int, site: str, name: str) -> str:
    """Return the path of one dissimilarity matrix."""
    return _of_a_site("dissimilarities", run, step, site, name)


def _of_a_site(kind: Kind, run: str, step: int, site: str, name: str) -> str:
    segments = (check_name("run", run), step_name(step), check_name("site", site), check_name("name", name))
    return "/".join((kind, *segments))
