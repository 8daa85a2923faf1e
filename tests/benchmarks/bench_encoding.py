"""Encoding models against the arithmetic floor and himalaya, and the memory of one from the store."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time

import numpy as np
import pytest

from mechint_core.alignment._fold_sums import fold_sums
from mechint_core.alignment._ridge import nested_ridge
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.store import ActivationStore

PENALTIES = tuple(10.0 ** np.arange(-5, 5))
ENCODE = """
import sys, time
from pathlib import Path
from mechint_core.alignment import encoding_model
from mechint_core.random import generator
from mechint_core.store import ActivationStore

def peak():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))

x = ActivationStore(sys.argv[1]).activations("run", 0, "x")
rng = generator(0, "bench", "responses")
y = x[:][:, :30] + 3 * rng.standard_normal((20_000, 30))
warm = rng.normal(size=(200, 50))
encoding_model(warm, warm[:, :5])
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before, started = peak(), time.process_time()
encoding_model(x, y)
print(peak() - before, time.process_time() - started)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Predictors of 20,000 rows and 1000 columns, 80 MB."""
    folder = tmp_path_factory.mktemp("encoding")
    rng = generator(0, "bench", "store")
    with ActivationStore(folder).write_activations("run", 0, "x", n_samples=20_000, source={}) as writer:
        for _ in range(20):
            writer.append(rng.standard_normal((1000, 1000), dtype=np.float32))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = generator(0, "bench", "encoding")
    x = rng.normal(size=(4000, 500))
    return x, x @ rng.normal(size=(500, 100)) / 20 + rng.normal(size=(4000, 100))


def cpu_ratio(ours: Callable[[], object], floor: Callable[[], object], repeats: int = 3) -> float:
    """Return the ratio of the best CPU times of two calls, taken in turn, on one worker thread."""
    times: list[list[float]] = [[], []]
    with compute(Backend(threads=1)):
        for _ in range(repeats):
            for call, taken in zip((ours, floor), times, strict=True):
                started = process_time()
                call()
                taken.append(process_time() - started)
    return min(times[0]) / min(times[1])


def nested(x: np.ndarray, y: np.ndarray) -> None:
    sums = fold_sums(x, y, np.arange(len(x)) * 5 // len(x))
    nested_ridge(sums, [np.arange(x.shape[1])], PENALTIES, relative=False)


@pytest.mark.benchmark
def test_fold_sums__against_one_float64_product(record, data):
    x, y = data

    ratio = cpu_ratio(lambda: fold_sums(x, y, np.arange(4000) * 5 // 4000), lambda: (x.T @ x, x.T @ y))

    record("sums of 5 folds, 4000 x 500, 100 targets", ratio, 2.0, unit="x CPU time of XᵀX and XᵀY")


@pytest.mark.benchmark
def test_nested_ridge__against_one_float64_product(record, data):
    x, y = data

    ratio = cpu_ratio(lambda: nested(x, y), lambda: (x.T @ x, x.T @ y))

    note = "15 decompositions of 500 x 500 and 10 penalties on 20 inner folds"
    record("nested ridge, 4000 x 500, 100 targets", ratio, 60, unit="x CPU time of XᵀX and XᵀY", note=note)


@pytest.mark.benchmark
@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")  # the peer's own
def test_nested_ridge__against_himalaya(record, data):
    from himalaya.ridge import RidgeCV
    from sklearn.model_selection import KFold

    x, y = data

    def one_fold() -> None:
        RidgeCV(alphas=PENALTIES, fit_intercept=True, cv=KFold(4)).fit(x[800:], y[800:]).predict(x[:800])

    ratio = cpu_ratio(lambda: nested(x, y), one_fold, repeats=2) / 5

    record("nested ridge, 4000 x 500, 100 targets, 5 folds", ratio, 0.2, note="himalaya: RidgeCV of one fold, times 5")


@pytest.mark.benchmark
def test_encoding_model__memory_from_the_store(record, store):
    """In a process of its own, after one small model: what the peak of its memory rises by."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of resident memory is read from /proc, which this system lacks")
    run = subprocess.run([sys.executable, "-c", ENCODE, str(store)], capture_output=True, text=True, check=True)
    kilobytes, seconds = (float(each) for each in run.stdout.split())

    record(
        "encoding model of 20,000 x 1000 from the store: memory",
        kilobytes / 1024,
        200,
        unit="MB above the targets",
        note=f"30 targets, 2000 null targets, {seconds:.0f} CPU s; x in float64 would take 160 MB",
    )
