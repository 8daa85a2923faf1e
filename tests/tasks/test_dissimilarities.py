"""The dissimilarities of a stored system: all of them in the store, or none."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mechint_core.alignment import RDMConfig, rdm, rdm_panels
from mechint_core.errors import ShapeError, UncommittedError
from mechint_core.random import generator
from mechint_core.store import ActivationStore
from tasks.dissimilarities import DissimilarityWork, write_dissimilarities
from tasks.references import ArrayReference

ROOT = Path(__file__).parents[2]
HANG = """
import sys, time
from mechint_core.alignment import rdm_panels as panels
from tasks import dissimilarities

def slowly(*args, **options):
    for i, run in enumerate(panels(*args, panel_rows=40, **options)):
        if i == 2:
            print("half", flush=True)
            time.sleep(60)
        yield run

dissimilarities.rdm_panels = slowly
dissimilarities.write_dissimilarities.fn(dissimilarities.DissimilarityWork.model_validate_json(sys.argv[1]))
"""
PEAK = """
import sys
from pathlib import Path
from tasks.dissimilarities import DissimilarityWork, write_dissimilarities

def peak():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))

small, large = (DissimilarityWork.model_validate_json(each) for each in sys.argv[1:])
write_dissimilarities.fn(small)
before = peak()
write_dissimilarities.fn(large)
print(peak() - before)
"""


def stored(folder: Path, site: str = "mlp", n: int = 120, n_units: int = 7) -> ArrayReference:
    store, x = ActivationStore(folder), generator(0, site).standard_normal((n, n_units), dtype=np.float32)
    with store.write_activations("run", 3, site, n_samples=n, source={}) as writer:
        writer.append(x)
    digest = store.activations("run", 3, site).digest
    return ArrayReference(store=str(folder), run="run", step=3, site=site, digest=digest)


def work_on(folder: Path, *arrays: ArrayReference, **options: object) -> DissimilarityWork:
    return DissimilarityWork(folds=list(arrays), store=str(folder), run="run", step=3, site=arrays[0].site, **options)


# Known answer
def test_write_dissimilarities__are_those_of_rdm(tmp_path: Path):
    array = stored(tmp_path)
    work = work_on(tmp_path, array)

    assert write_dissimilarities.fn(work) == 120 * 119 // 2
    found = ActivationStore(tmp_path).dissimilarities("run", 3, "mlp", "correlation")

    assert found.axes == ("pair",)
    config = RDMConfig(n_bootstrap=0, n_permutations=0)
    assert found.read() == pytest.approx(rdm(array.read(), config=config).dissimilarity, abs=1e-12)
    assert found.source["metric"] == "correlation"
    assert write_dissimilarities.fn(work) == 0


def test_write_dissimilarities__across_folds(tmp_path: Path):
    folds = [stored(tmp_path, site) for site in ("one", "two", "three")]

    write_dissimilarities.fn(work_on(tmp_path, *folds, metric="crossnobis", name="cross"))
    found = ActivationStore(tmp_path).dissimilarities("run", 3, "one", "cross").read()

    expected = np.concatenate(list(rdm_panels([each.read() for each in folds], metric="crossnobis")))
    assert found == pytest.approx(expected, abs=1e-12)


# Law
def test_write_dissimilarities__are_made_again_when_and_only_when_they_would_differ(tmp_path: Path):
    array = stored(tmp_path)
    write_dissimilarities.fn(work_on(tmp_path, array, name="rdm"))

    assert work_on(tmp_path, array, name="rdm").is_done()
    assert not work_on(tmp_path, array, name="rdm", metric="cosine").is_done()
    assert not work_on(tmp_path, stored(tmp_path, "other"), name="rdm").is_done()


def test_write_dissimilarities__killed_half_way_leave_nothing(tmp_path: Path):
    work = work_on(tmp_path, stored(tmp_path))
    command = [sys.executable, "-c", HANG, work.model_dump_json()]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        os.kill(process.pid, signal.SIGKILL)
    store = ActivationStore(tmp_path)

    with pytest.raises(UncommittedError, match="must be committed"):
        store.dissimilarities("run", 3, "mlp", "correlation")
    assert not work.is_done()
    assert [entry.kind for entry in store.gc(dry_run=False)] == ["dissimilarities"]
    assert write_dissimilarities.fn(work) == 120 * 119 // 2
    assert all(problem is None for _, problem in store.verify())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_write_dissimilarities__of_8000_conditions_take_less_than_200_mb(tmp_path: Path):
    """256 MB of pairs, after 120 conditions have brought the code into memory."""
    works = [
        work_on(tmp_path, stored(tmp_path, site, n=n, n_units=100)) for site, n in (("small", 120), ("large", 8000))
    ]
    command = [sys.executable, "-c", PEAK, *(each.model_dump_json() for each in works)]

    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    assert int(run.stdout) / 1024 < 200


# Bad input
def test_write_dissimilarities__leaves_nothing_of_what_it_refuses(tmp_path: Path):
    work = work_on(tmp_path, stored(tmp_path), metric="crossnobis")

    with pytest.raises(ShapeError, match="one per fold"):
        write_dissimilarities.fn(work)
    assert not list((tmp_path / "dissimilarities").glob("**/*"))
