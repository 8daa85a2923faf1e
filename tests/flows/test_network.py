"""No connection and no name look-up leaves this machine: not by us, not by Prefect, not by MLflow."""

import os
import subprocess
import sys
from pathlib import Path

from tests.flows.tiny import ROOT, write_run

WATCH = """
import sys

def watch(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else "unix"
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else str(host)
    if host not in ("unix", "localhost", "None", "::1", "0.0.0.0") and not host.startswith("127."):
        with open(LOG, "a") as log:
            log.write(f"{event} {host} {sys.argv}\\n")

sys.addaudithook(watch)
"""


def test_run__connects_to_this_machine_only(tmp_path: Path):
    log = tmp_path / "outside.log"
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(f"LOG = {str(log)!r}\n{WATCH}")
    environment = {name: value for name, value in os.environ.items() if name not in ("DO_NOT_TRACK",)}
    words = ["--home", str(tmp_path / "home"), "run", str(write_run(tmp_path))]

    done = subprocess.run(
        [sys.executable, "-m", "mechint_core", *words],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": f"{hook}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert not log.exists(), log.read_text()
