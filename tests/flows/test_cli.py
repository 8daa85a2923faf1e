"""The command in a subprocess, as a person runs it: on a tiny run, killed, with mistakes, from a hostile folder."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from flows.services import free_port
from mechint_core.store import ActivationStore
from tests.flows.tiny import ROOT, STEPS, configuration, write_run


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "mechint_core", *words]


def mechint(
    *words: str, cwd: Path = ROOT, code: int | None = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*words),
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


def test_run__goes_from_checkpoints_to_a_report_and_then_has_nothing_to_do(tmp_path: Path):
    config, home = write_run(tmp_path), tmp_path / "home"

    first = mechint("--home", str(home), "run", str(config))
    second = mechint("--home", str(home), "run", str(config))

    assert f"{2 * len(STEPS)} arrays recorded, 7 results computed, 7 in all" in first.stdout
    assert "0 arrays recorded, 0 results computed, 7 in all" in second.stdout
    assert "Traceback" not in first.stderr + second.stderr
    report = (home / "reports" / "tiny.html").read_text()
    assert "<script src" not in report
    assert "longest" in report


def test_run__killed_continues_where_it_was(tmp_path: Path):
    """kill -9 in the middle: what is committed is kept, the rest is done, nothing half-written is read."""
    config, home = write_run(tmp_path), tmp_path / "home"
    running = subprocess.Popen(
        command("--home", str(home), "run", str(config)), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not list(home.glob("store/results/**/commit.json")):
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    store = ActivationStore(home / "store")
    kept = {entry.path for entry in store.ls() if entry.committed}

    done = mechint("--home", str(home), "run", str(config))

    assert kept
    assert "7 in all" in done.stdout
    left = [entry for entry, problem in store.verify() if problem is not None]
    assert not any(entry.committed for entry in left)  # at most what the killed writer was at, which gc removes
    assert store.gc(dry_run=False) == left
    assert all(problem is None for _, problem in store.verify())


def test_dry_run__says_what_it_would_do_and_does_nothing(tmp_path: Path):
    config, home = write_run(tmp_path), tmp_path / "home"

    done = mechint("--home", str(home), "run", str(config), "--dry-run")

    assert "persistent_homology" in done.stdout
    assert "3, steps 0 to 20" in done.stdout
    assert not list(home.glob("store/activations/**/commit.json"))


def test_run__lists_every_problem_at_once_in_the_files_words(tmp_path: Path):
    content = configuration(
        model={"factory": "no colon"},
        analyses=[{"technique": "persistant_homology"}, {"technique": "cka", "config": {"seeed": 1}}],
        surprise=1,
    )
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))

    done = mechint("--home", str(tmp_path / "home"), "run", str(path), code=2)

    assert "4 problems" in done.stderr
    for words in (
        "did you mean 'persistent_homology'",
        "surprise: there is no such key",
        "package.module:function",
        "seeed",
    ):
        assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_run__missing_file_is_a_sentence(tmp_path: Path):
    done = mechint("--home", str(tmp_path / "home"), "run", str(tmp_path / "none.yaml"), code=2)

    assert "does not exist" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_help__imports_no_heavy_library():
    code = (
        "import sys; sys.argv = ['mechint', '--help']\n"
        "import mechint_core.__main__ as m\n"
        "try: m.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'prefect', 'mlflow', 'zarr', 'dask'} & sys.modules.keys()\n"
        "sys.exit(str(sorted(heavy)) if heavy else 0)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "training run" in done.stdout


def test_command__is_not_shadowed_by_the_users_tasks_module(tmp_path: Path):
    """Every invoke and Celery project has a tasks.py."""
    (tmp_path / "tasks.py").write_text("raise RuntimeError('not ours')\n")
    (tmp_path / "flows.py").write_text("raise RuntimeError('not ours')\n")

    done = mechint("--home", str(tmp_path / "home"), "store", "ls", cwd=tmp_path)

    assert "0 entries" in done.stdout


@pytest.mark.parametrize("words", [("store", "verify"), ("store", "gc"), ("doctor",)])
def test_commands__work_on_an_empty_home(tmp_path: Path, words: tuple[str, ...]):
    done = mechint("--home", str(tmp_path / "home"), *words)

    assert done.stdout
    assert "Traceback" not in done.stderr


def test_cite__prints_bibtex_of_the_techniques_used(tmp_path: Path):
    done = mechint("--home", str(tmp_path / "home"), "cite", str(write_run(tmp_path)))

    assert "@article{kornblith2019" in done.stdout or "@inproceedings{kornblith2019" in done.stdout


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_ui__serves_on_loopback_and_leaves_nothing_running(tmp_path: Path, how: signal.Signals):
    ports = [free_port(), free_port()]
    options = ["--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
    with subprocess.Popen(
        command("--home", str(tmp_path / "home"), "ui", *options), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        lines = [running.stdout.readline() for _ in range(2)]
        os.kill(running.pid, how)
        running.wait(timeout=60)

    assert f"http://127.0.0.1:{ports[0]}" in lines[0]
    assert f"http://127.0.0.1:{ports[1]}" in lines[1]
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline and any(is_listening(port) for port in ports):
        time.sleep(0.5)
    assert not any(is_listening(port) for port in ports)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
