"""The local Prefect server: started for a command, stopped with it, reachable from this machine only.

Where PREFECT_API_URL names a server, that one is used and nothing is started. The server runs as a child process
that ends by itself when its parent is gone, so that a killed command leaves nothing running.

This module must be imported, and the server started, before Prefect is: Prefect reads its API address once.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from mechint_core.errors import MechintError
from tasks.settings import settings

_START_SECONDS = 120.0
"""A loaded machine with two cores has needed 40."""


class ServiceError(MechintError, ConnectionError):
    """A service that the command needs did not start, or does not answer."""


@contextmanager
def prefect_server() -> Generator[str]:
    """Yield the address of a Prefect API: the configured one, or a local server that ends with this block."""
    configured = settings().prefect_api_url
    if configured:
        yield configured
        return
    with server_process(free_port()) as url:
        os.environ["PREFECT_API_URL"] = url
        try:
            yield url
        finally:
            send_what_is_left()
            del os.environ["PREFECT_API_URL"]


@contextmanager
def server_process(port: int) -> Generator[str]:
    """Start a Prefect server on the loopback `port`; stop it at the end. It need not answer yet: see `wait_for`."""
    environment = os.environ | {"PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT__SERVER_FINAL": "1"}
    environment.pop("PREFECT_API_URL", None)
    app = ["--factory", "prefect.server.api.server:create_app", "--timeout-keep-alive", "5", "--log-level", "warning"]
    command = [sys.executable, "-P", "-m", "uvicorn", *app, "--host", "127.0.0.1", "--port", str(port)]
    with _child(command, environment, settings().root / "prefect" / "server.log"):
        yield f"http://127.0.0.1:{port}/api"


@contextmanager
def mlflow_process(port: int) -> Generator[str]:
    """Serve MLflow's pages on the loopback `port`; stop at the end."""
    command = [sys.executable, "-P", "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": settings().mlflow_uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 250 MB that nothing here uses
    }
    with _child(command, environment, settings().root / "mlflow" / "server.log"):
        yield f"http://127.0.0.1:{port}"


def wait_for(url: str, *, seconds: float = _START_SECONDS) -> None:
    """Return when the server at `url` answers on its `/health` page.

    Raises
    ------
    ServiceError
        If it does not answer within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise ServiceError(
        f"the server at {url} must answer within {seconds:.0f} s. It did not. The logs are server.log "
        f"in {settings().root}/prefect and mlflow; to use a running Prefect server, set PREFECT_API_URL."
    )


def send_what_is_left() -> None:
    """Let Prefect send its logs and events while the server still answers: later it would retry for a minute."""
    if "prefect" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        APILogWorker.drain_all(timeout=10)
        EventsWorker.drain_all(timeout=10)


@contextmanager
def _child(command: list[str], environment: dict[str, str], log: Path) -> Generator[None]:
    """Run a server with its output in `log`; stop it, and what it started, at the end."""
    log.parent.mkdir(parents=True, exist_ok=True)
    guard = [sys.executable, "-P", str(Path(__file__).with_name("_guard.py")), str(os.getpid())]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*guard, *command], stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        yield
    finally:
        _stop(server)


def _stop(server: subprocess.Popen[bytes]) -> None:
    for ask in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, ask)
            server.wait(timeout=15)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            server.wait()
        return


def free_port() -> int:
    """Return a loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
