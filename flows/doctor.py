"""Is this installation able to do its work? One finding per thing that has gone wrong somewhere."""

import os
import platform
import socket
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from packaging.version import Version

from mechint_core.errors import MechintError
from mechint_core.store import ActivationStore
from tasks.provenance import versions
from tasks.settings import settings

PINS = {"fastapi": "0.151", "sqlalchemy": "2.1"}
"""Package -> first version that prefect 3.8 does not work with; the second fails without an error message."""
TELEMETRY_OFF = ("DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED", "MLFLOW_DISABLE_TELEMETRY")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    ok: bool
    detail: str


def examine() -> Iterator[Finding]:
    """Yield what was found, in the order in which one thing rests on the other."""
    yield Finding("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name, number in versions().items():
        yield Finding(name, number != "not installed", number)
    for name, limit in PINS.items():
        number = version(name)
        yield Finding(
            name, Version(number) < Version(limit), f"{number} (must be below {limit}: pip install '{name}<{limit}')"
        )
    for name in TELEMETRY_OFF:
        yield Finding("telemetry", name in os.environ, f"{name}={os.environ.get(name, 'not set')}")
    yield _accelerator()
    yield from _services()


def _accelerator() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("accelerator", True, torch.cuda.get_device_name(0))
    return Finding("accelerator", True, f"none; {os.cpu_count()} cores")


def _services() -> Iterator[Finding]:
    chosen = settings()
    yield _writable("data folder", chosen.root)
    yield _store(chosen.store_location)
    yield _tracking(chosen.mlflow_uri)
    yield _reachable("prefect", chosen.prefect_api_url, "none configured: each command starts its own, on loopback")
    yield _reachable("dask", chosen.dask_address, "none configured: threads in this process")


def _writable(subject: str, folder: Path) -> Finding:
    probe = folder / f".mechint-doctor-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as problem:
        return Finding(subject, False, f"{folder}: {problem.strerror}. Set MECHINT_HOME to a folder you can write.")
    return Finding(subject, True, str(folder))


def _store(location: str) -> Finding:
    try:
        entries = list(ActivationStore(location).ls())
    except (MechintError, OSError) as problem:
        return Finding("store", False, f"{location}: {problem}")
    torn = sum(not entry.committed for entry in entries)
    detail = f"{location}: {len(entries)} entries" + (f", {torn} not committed (mechint store gc)" if torn else "")
    return Finding("store", True, detail)


def _tracking(uri: str) -> Finding:
    scheme = urllib.parse.urlparse(uri).scheme
    if scheme in ("http", "https"):
        return _reachable("mlflow", uri, "")
    return Finding(
        "mlflow", scheme == "sqlite", uri if scheme == "sqlite" else f"{uri}: use sqlite:///FILE or a server"
    )


def _reachable(subject: str, address: str, otherwise: str) -> Finding:
    if not address:
        return Finding(subject, True, otherwise)
    place = urllib.parse.urlparse(address)
    port = place.port or {"http": 80, "https": 443}.get(place.scheme, 8786)
    try:
        with socket.create_connection((place.hostname or "", port), timeout=5):
            return Finding(subject, True, address)
    except OSError as problem:
        return Finding(subject, False, f"{address} does not answer: {problem}")
