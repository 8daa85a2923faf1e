"""Which code made a number: the commit of the checkout, if there is one, and the versions of what it rests on."""

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_STACK = ("mechint", "torch", "numpy", "scipy", "zarr", "dask", "prefect", "mlflow", "numba", "ripser")


@cache
def git_commit() -> str:
    """Return the commit of the checkout this code runs from, with `+` if files differ; empty outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        _git(here, "ls-files", "--error-unmatch", __file__)  # an installed copy may lie inside somebody else's checkout
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


@cache
def versions() -> dict[str, str]:
    """Return the versions of the packages a result depends on."""
    found: dict[str, str] = {}
    for name in _STACK:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
