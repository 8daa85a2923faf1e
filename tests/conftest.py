"""Fixtures of the whole suite."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before anything imports prefect or mlflow: no telemetry, no look-up of an outside host, a Prefect home of our own.
_HOME = tempfile.TemporaryDirectory(prefix="mechint-tests-", ignore_cleanup_errors=True)
os.environ.update(
    DO_NOT_TRACK="1",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    MLFLOW_DISABLE_TELEMETRY="true",
    MLFLOW_LOGGING_LEVEL="WARNING",
    PREFECT_HOME=f"{_HOME.name}/prefect",
    MECHINT_HOME=_HOME.name,
    PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="CRITICAL",
    MPLBACKEND="agg",
)
for _name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "MECHINT_STORE"):
    os.environ.pop(_name, None)

import hypothesis
import jaxtyping
import numpy as np
import pytest

from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

hypothesis.settings.register_profile("mechint", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("mechint")


@pytest.fixture(autouse=True)
def _weights_that_do_not_depend_on_the_order_of_tests() -> None:
    """Modules draw their first weights from torch's own generator: every test finds it in the same state."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.manual_seed(0)


@pytest.fixture(autouse=True)
def _calibrations_leave_threads_alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Thousands of calls of milliseconds: starting threads for each takes a quarter of them."""
    with compute(Backend(threads=1 if request.node.get_closest_marker("calibration") else 0)):
        yield


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """Call as users do: the tests' own shape checks would refuse these inputs first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def rng() -> np.random.Generator:
    return generator(0, "test")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder of the test's own."""
    from tasks.settings import settings

    monkeypatch.setenv("MECHINT_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    yield tmp_path / "home"
    settings.cache_clear()


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """One Prefect server for the session: started on a free port, stopped at the end."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.services import free_port, send_what_is_left, server_process, wait_for

    with server_process(free_port()) as url:
        wait_for(url)
        with temporary_settings({PREFECT_API_URL: url}):
            yield url
            send_what_is_left()
