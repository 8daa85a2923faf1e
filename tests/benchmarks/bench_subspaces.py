"""CCA and PLS against their arithmetic floor and the peers; the step-down test against one decomposition per step."""

import warnings
from collections.abc import Callable
from time import process_time

import numpy as np
import pytest

from mechint_core.alignment import CCA, PLS, _step_down
from mechint_core.kernels.relabelling import relabelled
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

REPEATS = 7


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """2000 samples of 500 and 300 units."""
    rng = generator(0, "bench", "subspaces")
    x = rng.normal(size=(2000, 500))
    return x, x[:, :300] + rng.normal(size=(2000, 300))


def cpu_ratio(ours: Callable[[], object], floor: Callable[[], object], repeats: int = REPEATS) -> float:
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
def test_cca__against_its_three_products(record, pair):
    x, y = pair

    ratio = cpu_ratio(lambda: CCA(n_components=20).fit(x, y), lambda: (x.T @ x, x.T @ y, y.T @ y))

    record("CCA(20), 2000 x 500 and 300", ratio, 3, unit="x CPU time of XᵀX, XᵀY and YᵀY")


@pytest.mark.benchmark
def test_cca__against_scikit_learn(record, pair):
    from sklearn.cross_decomposition import CCA as TheirCCA

    x, y = pair

    def theirs() -> None:
        with warnings.catch_warnings():  # most components do not converge in its 500 iterations
            warnings.simplefilter("ignore")
            TheirCCA(n_components=20).fit(x, y)

    ratio = cpu_ratio(lambda: CCA(n_components=20).fit(x, y), theirs, repeats=1)

    record("CCA(20), 2000 x 500 and 300", ratio, 0.01, note="scikit-learn: CCA(20), most of it not converged")


@pytest.mark.benchmark
@pytest.mark.oracle
def test_cca__against_statsmodels(record, pair):
    from statsmodels.multivariate.cancorr import CanCorr

    x, y = pair

    ratio = cpu_ratio(lambda: CCA(n_components=20).fit(x, y), lambda: CanCorr(y, x), repeats=3)

    record("CCA(20), 2000 x 500 and 300", ratio, 0.5, note="statsmodels: CanCorr")


@pytest.mark.benchmark
@pytest.mark.parametrize("mode", ["canonical", "regression"])
def test_pls__against_scikit_learn(record, pair, mode):
    from sklearn.cross_decomposition import PLSCanonical, PLSRegression

    x, y = pair
    peer = PLSCanonical if mode == "canonical" else PLSRegression

    def theirs() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer(n_components=20, scale=False).fit(x, y)

    ratio = cpu_ratio(lambda: PLS(n_components=20, mode=mode).fit(x, y), theirs, repeats=3)

    record(f"PLS {mode} (20), 2000 x 500 and 300", ratio, 1, note=f"scikit-learn: {peer.__name__}")


@pytest.mark.benchmark
def test_step_down__against_singular_values_of_each_step(record):
    """As the paper has it: in each relabelling, canonical correlations anew for each of the 20 steps."""
    rng = generator(0, "bench", "step down")
    u, v = (np.linalg.qr(rng.normal(size=(500, size)))[0] for size in (60, 40))
    statistic = _step_down._Wilks.of(u, v)

    def every_step(order: np.ndarray) -> np.ndarray:
        core = u.T @ v[order]
        values = [np.linalg.svd(core[k:, k:], compute_uv=False) for k in range(40)]
        return np.array([-np.sum(np.log(1 - each**2)) for each in values])

    def run(each: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return relabelled(each, 500, n_permutations=20, seed=0, word="bench")

    ratio = cpu_ratio(lambda: run(statistic), lambda: run(every_step), repeats=5)

    record("step-down test, 60 and 40 directions", ratio, 0.2, note="singular values anew for each of 40 steps")
