"""Dissimilarities against the arithmetic floor and rsatoolbox, from samples to Result."""

import numpy as np
import pytest

from mechint_core.alignment import RDMConfig, rdm, rdm_panels
from mechint_core.alignment._measures import Measure, fit_measure
from mechint_core.alignment._responses import responses
from mechint_core.kernels.noise_covariance import noise_covariance
from mechint_core.random import generator
from tests.benchmarks.bench_alignment import cpu_ratio


@pytest.fixture(scope="module")
def runs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four runs of 2000 conditions, 1000 units."""
    x = generator(0, "bench", "rdm").standard_normal((8000, 1000))
    return x, np.tile(np.arange(2000), 4), np.repeat(np.arange(4), 2000)


@pytest.mark.benchmark
def test_crossnobis__against_one_float64_product(record, runs):
    x, label, fold = runs
    means, measure = x[:2000], Measure(metric="crossnobis", noise="none")

    def every_pair() -> np.ndarray:
        found = responses(x, label, fold, missing="refuse", conditions=())
        return fit_measure(measure, found)(found)

    ratio = cpu_ratio(every_pair, lambda: means @ means.T, repeats=5)

    note = "from samples to pairs; rsatoolbox 21"
    record("crossnobis distances, 4 runs of 2000 x 1000", ratio, 6, unit="x CPU time of X Xᵀ", note=note)


@pytest.mark.benchmark
def test_crossnobis__with_all_its_evidence(record, runs):
    x, label, fold = runs
    means, config = x[:2000], RDMConfig(metric="crossnobis", noise="none")

    ratio = cpu_ratio(lambda: rdm(x, label, fold, config=config), lambda: means @ means.T, repeats=3)

    note = "with interval, null and reliability, on 300 conditions"
    record("crossnobis RDM, 4 runs of 2000 x 1000", ratio, 12, unit="x CPU time of X Xᵀ", note=note)


@pytest.mark.benchmark
@pytest.mark.oracle
def test_crossnobis__against_rsatoolbox(record, runs):
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm

    x, label, fold = (each[np.concatenate([np.arange(500) + 2000 * r for r in range(4)])] for each in runs)
    words = {"label": [f"{each:04d}" for each in label], "fold": [f"{each}" for each in fold]}
    theirs = Dataset(x, obs_descriptors={name: np.array(each) for name, each in words.items()})
    config = RDMConfig(metric="crossnobis", noise="none", n_bootstrap=0, n_permutations=0)

    ratio = cpu_ratio(
        lambda: rdm(x, label, fold, config=config),
        lambda: calc_rdm(theirs, "crossnobis", "label", cv_descriptor="fold"),
        repeats=3,
    )

    record("crossnobis RDM, 4 runs of 500 x 1000", ratio, 0.5, note="rsatoolbox: calc_rdm without noise")


@pytest.mark.benchmark
@pytest.mark.oracle
def test_noise_covariance__against_rsatoolbox(record, runs):
    from rsatoolbox.data.noise import cov_from_residuals

    x = runs[0][:600, :300]
    one = np.zeros(len(x), np.int64)

    ratio = cpu_ratio(
        lambda: noise_covariance(x, one, shrinkage="shrunk to diagonal"),
        lambda: cov_from_residuals(x, method="shrinkage_diag"),
        repeats=3,
    )

    record(
        "shrunk noise covariance, 600 x 300", ratio, 0.05, note="rsatoolbox: cov_from_residuals, an outer product a row"
    )


@pytest.mark.benchmark
def test_rdm_panels__against_the_whole(record, runs):
    x = runs[0][:4000]
    config = RDMConfig(n_bootstrap=0, n_permutations=0)

    ratio = cpu_ratio(lambda: sum(float(run.sum()) for run in rdm_panels(x)), lambda: rdm(x, config=config), repeats=3)

    record("RDM run by run, 4000 x 1000", ratio, 1.5, note="rdm, which holds all pairs")
