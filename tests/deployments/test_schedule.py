"""The smoke test that neither an import nor a flow run replaces: a deployed schedule yields scheduled runs."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterStateType

ROOT = Path(__file__).resolve().parents[2]


def prefect(*words: str, url: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *words],
        cwd=ROOT,
        env=os.environ | {"PREFECT_API_URL": url, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def deployed(prefect_api: str, tmp_path: Path) -> str:
    """deployments/prefect.yaml, deployed as its comment says."""
    prefect("work-pool", "create", "mechint", "--type", "process", "--overwrite", url=prefect_api)
    environment = {"MECHINT_ROOT": str(ROOT), "MECHINT_CONFIG": str(tmp_path / "run.yaml")}
    prefect("deploy", "--all", "--prefect-file", "deployments/prefect.yaml", url=prefect_api, **environment)
    return prefect_api


def test_schedule__yields_scheduled_runs(deployed: str):
    """With SQLAlchemy 2.1 everything above succeeds, and no run ever appears."""
    wanted = FlowRunFilter(state={"type": FlowRunFilterStateType(any_=["SCHEDULED"])})  # type: ignore[arg-type]
    deadline = time.monotonic() + 120
    found = []
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline and not found:
            found = client.read_flow_runs(flow_run_filter=wanted)
            time.sleep(1)

    assert found, "no scheduled run within 120 s: does the server's log say that schedule_deployments fails?"


def test_deployments__name_flows_that_exist():
    import importlib

    for deployment in yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]:
        path, _, name = deployment["entrypoint"].partition(":")
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))

        assert callable(getattr(module, name))
