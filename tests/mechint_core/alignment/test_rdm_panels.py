import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from mechint_core.alignment import RDMConfig, rdm
from mechint_core.alignment._distances import first_pair
from mechint_core.alignment.rdm_panels import rdm_panels
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.kernels.noise_covariance import noise_covariance
from mechint_core.random import generator
from mechint_core.store import ActivationStore

METRICS = ["euclidean", "correlation", "cosine", "mahalanobis", "crossnobis", "poisson", "crossvalidated poisson"]
PEAK = """
import sys
from pathlib import Path
from mechint_core.alignment.rdm_panels import rdm_panels
from mechint_core.random import generator
from mechint_core.store import ActivationStore

def peak():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))

x = ActivationStore(sys.argv[1]).activations("run", 0, "mlp")
list(rdm_panels(generator(0, "warm").normal(size=(300, 200))))
before = peak()
assert sum(len(run) for run in rdm_panels(x)) == 8000 * 7999 // 2
print(peak() - before)
"""


def means(seed=0, n=9, n_folds=1, n_units=4):
    rng = generator(seed, "panels")
    return list(rng.gamma(2.0, size=(n_folds, n, n_units)) + rng.gamma(2.0, size=(n, n_units)))


# Known answer
def test_rdm_panels__of_a_square():
    corners = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])

    runs = list(rdm_panels(corners, metric="euclidean", panel_rows=2, block_rows=1))

    assert [len(run) for run in runs] == [5, 1]
    assert np.concatenate(runs) == pytest.approx([2, 2, 4, 4, 2, 2], abs=1e-12)


# Law
@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=12)
@given(seed=st.integers(0, 2**31), panel_rows=st.integers(1, 12), block_rows=st.integers(1, 12))
def test_rdm_panels__joined_are_the_whole_for_any_chunking(metric, seed, panel_rows, block_rows):
    crossed = metric.startswith("cross")
    folds = means(seed, n_folds=3 if crossed else 1)
    whitening = None
    if metric in {"mahalanobis", "crossnobis"}:
        noise = generator(seed, "noise").normal(size=(30, 4))
        whitening = noise_covariance(noise, np.zeros(30, np.int64)).whitening()
    x = folds if crossed else folds[0]
    runs = list(rdm_panels(x, metric=metric, whitening=whitening, panel_rows=panel_rows, block_rows=block_rows))

    white = np.concatenate(folds) @ (np.eye(4) if whitening is None else whitening)
    config = RDMConfig(
        metric="euclidean" if metric == "mahalanobis" else metric, noise="none", n_bootstrap=0, n_permutations=0
    )
    label, fold = np.tile(np.arange(9), len(folds)), np.repeat(np.arange(len(folds)), 9)
    whole = rdm(white, label, fold if crossed else None, config=config).dissimilarity
    assert np.concatenate(runs) == pytest.approx(whole, rel=1e-9, abs=1e-10)
    starts = [first_pair(start, 9) for start in range(0, 8, panel_rows)]
    assert [len(run) for run in runs] == np.diff([*starts, 36]).tolist()


def test_rdm_panels__keep_distances_far_from_the_origin():
    """A shift of 1e6 would cost 12 digits of a squared distance, if rows were not shifted back."""
    x = means()[0]
    shifted = np.concatenate(list(rdm_panels(x + 1e6, metric="euclidean")))

    assert shifted == pytest.approx(np.concatenate(list(rdm_panels(x, metric="euclidean"))), rel=1e-6)


def test_rdm_panels__of_a_stored_system_are_those_in_memory(tmp_path):
    store, x = ActivationStore(tmp_path), means(n=40)[0].astype(np.float32)
    with store.write_activations("run", 0, "mlp", n_samples=40, source={}) as writer:
        writer.append(x)

    stored = np.concatenate(list(rdm_panels(store.activations("run", 0, "mlp"), panel_rows=7, block_rows=5)))

    assert stored == pytest.approx(np.concatenate(list(rdm_panels(x))), abs=1e-12)


@pytest.mark.calibration
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_rdm_panels__of_8000_stored_conditions_take_less_than_200_mb(tmp_path):
    """The matrix is 512 MB, its condensed half 256."""
    rng = generator(0, "stored")
    with ActivationStore(tmp_path).write_activations("run", 0, "mlp", n_samples=8000, source={}) as writer:
        writer.append(rng.standard_normal((8000, 100), dtype=np.float32))

    run = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)

    assert int(run.stdout) / 1024 < 200


# Bad input
@pytest.mark.parametrize(
    ("x", "options", "error", "match"),
    [
        (np.zeros(4), {}, ShapeError, "must be"),
        (np.zeros((1, 4)), {}, ShapeError, "must be"),
        ([np.zeros((4, 2)), np.zeros((5, 2))], {"metric": "crossnobis"}, ShapeError, "same in every fold"),
        (np.zeros((4, 2)), {"metric": "crossnobis"}, ShapeError, "one per fold. Got 1"),
        ([np.zeros((4, 2))] * 2, {"metric": "euclidean"}, ShapeError, "one array.*Got 2"),
        (np.zeros((4, 2)), {"metric": "mahalanobis"}, ConfigurationError, "whitening must be given"),
        (np.zeros((4, 2)), {"metric": "manhattan"}, ConfigurationError, "metric must be one of"),
        (np.zeros((4, 2)), {"panel_rows": 0}, ConfigurationError, "at least 1"),
        (np.zeros((4, 2)), {"block_rows": 0}, ConfigurationError, "at least 1"),
    ],
)
def test_rdm_panels__raises_at_once_on_what_it_cannot_do(x, options, error, match, without_shape_checks):
    with pytest.raises(error, match=match):
        rdm_panels(x, **options)


@pytest.mark.parametrize(
    ("row", "metric", "match"),
    [(np.nan, "euclidean", "finite"), (3.0, "correlation", "constant row"), (-1.0, "poisson", "counts or rates")],
)
def test_rdm_panels__raises_on_a_condition_without_distances(row, metric, match):
    x = means()[0]
    x[5] = row

    with pytest.raises(DegenerateInputError, match=match):
        list(rdm_panels(x, metric=metric))
