"""Procrustes, shape distances, radial CKA and inter-subject correlation against their arithmetic floors."""

from collections.abc import Callable
from time import process_time

import numpy as np
import pytest

from mechint_core.alignment import (
    CKAConfig,
    InterSubjectCorrelationConfig,
    ProcrustesConfig,
    cka,
    inter_subject_correlation,
    procrustes,
)
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator


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


@pytest.mark.benchmark
def test_procrustes__against_its_products(record):
    """The floor: Xᵀ X, Xᵀ Y, Yᵀ Y in float64, and the singular values of one of them."""
    rng = generator(0, "bench", "procrustes")
    x, y = rng.normal(size=(20_000, 200)), rng.normal(size=(20_000, 200))

    def floor() -> None:
        for one, other in ((x, x), (x, y), (y, y)):
            one.T @ other
        np.linalg.svd(x.T @ y)

    ratio = cpu_ratio(lambda: procrustes(x, y, config=ProcrustesConfig(n_permutations=0)), floor)

    record("Procrustes, 20,000 x 200", ratio, 4.0, unit="x CPU time of the products", note="with intervals, held out")


@pytest.mark.benchmark
def test_cka__with_a_radial_kernel_against_its_two_kernels(record):
    """The floor: both n x n kernels at once, and the three sums of their products."""
    rng = generator(0, "bench", "radial")
    x, y = rng.normal(size=(3000, 100)), rng.normal(size=(3000, 100))

    def floor() -> None:
        k, ell = (np.exp(each @ each.T / 200) for each in (x, y))
        for one, other in ((k, k), (k, ell), (ell, ell)):
            np.vdot(one, other)

    ratio = cpu_ratio(lambda: cka(x, y, config=CKAConfig(kernel="rbf")), floor)

    record("radial CKA, 3000 x 100", ratio, 2.0, unit="x CPU time of both kernels", note="a tile at a time")


@pytest.mark.benchmark
def test_inter_subject_correlation__against_numpys_correlations(record):
    """The floor: one pairwise correlation matrix per channel, per draw of the null."""
    rng = generator(0, "bench", "subjects")
    x = rng.normal(size=(20, 300, 200))
    config = InterSubjectCorrelationConfig(n_bootstrap=0, n_null=20)

    def floor() -> None:
        for _ in range(20):
            for channel in range(x.shape[2]):
                np.corrcoef(x[:, :, channel])

    ratio = cpu_ratio(lambda: inter_subject_correlation(x, config=config), floor)

    record("inter-subject correlation, 20 x 300 x 200, null", ratio, 1.0, unit="x CPU time of numpy.corrcoef")
