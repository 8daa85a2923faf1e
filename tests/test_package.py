"""The wheel: one top-level package, and a command that works from it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_wheel__installs_one_name(unpacked: Path):
    names = {each.name for each in unpacked.iterdir() if not each.name.endswith(".dist-info")}

    assert names == {"mechint_core"}
    assert (unpacked / "mechint_core" / "_workflows" / "flows" / "grokking.yaml").exists()
    assert (unpacked / "mechint_core" / "references.bib").exists()
    assert not list(unpacked.rglob("__pycache__"))


def test_wheel__command_finds_its_flows_beside_a_users_tasks_module(unpacked: Path, tmp_path: Path):
    (tmp_path / "tasks.py").write_text("raise RuntimeError('not ours')\n")
    words = [sys.executable, "-m", "mechint_core", "--home", str(tmp_path / "home"), "store", "ls"]

    done = subprocess.run(
        words,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "0 entries" in done.stdout
