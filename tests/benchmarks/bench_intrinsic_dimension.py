"""TwoNN of 10,000 x 512, and what else comes of its graph, against scikit-dimension and against bare neighbours."""

from time import process_time

import numpy as np
import pytest

from mechint_core.geometry import IntrinsicDimensionConfig, intrinsic_dimension
from mechint_core.kernels.neighbour_graph import neighbour_graph
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

N_SAMPLES, N_UNITS = 10_000, 512
N_NEIGHBOURS = 21
REPEATS = 3
TWO_NN = IntrinsicDimensionConfig(
    n_neighbours=3, max_neighbours=2, n_anchors=2, n_surrogates=0, n_calibrations=0, n_bootstrap=0
)


@pytest.fixture(scope="module")
def cloud() -> np.ndarray:
    """A cloud of 10 planted dimensions and a little noise."""
    rng = generator(0, "cloud")
    planted = rng.standard_normal((N_SAMPLES, 10)) @ rng.standard_normal((10, N_UNITS))
    return (planted + 0.1 * rng.standard_normal(planted.shape)).astype(np.float32)


def cpu_ratio(ours, peer) -> float:
    """Return the ratio of the best CPU times of two calls, taken in turn, after one call of ours to compile."""
    ours()
    times = ([], [])
    for _ in range(REPEATS):
        for call, taken in zip((ours, peer), times, strict=True):
            started = process_time()
            call()
            taken.append(process_time() - started)
    return min(times[0]) / min(times[1])


def bare_neighbours(cloud: np.ndarray) -> None:
    """Products in float32, block by block, and the places of the largest: no distances, nothing exact."""
    for start in range(0, len(cloud), 1024):
        products = cloud[start : start + 1024] @ cloud.T
        np.argpartition(-products, N_NEIGHBOURS, axis=1)[:, :N_NEIGHBOURS]


@pytest.mark.benchmark
def test_two_nn__against_scikit_dimension(record, cloud):
    skdim = pytest.importorskip("skdim")
    with compute(Backend(threads=1)):
        ratio = cpu_ratio(lambda: intrinsic_dimension(cloud, config=TWO_NN), lambda: skdim.id.TwoNN().fit(cloud))

    note = "10,000 x 512; ours with duplicates looked for, interval, local PCA and participation ratio"
    record("TwoNN against scikit-dimension", ratio, 0.5, note=note)


@pytest.mark.benchmark
def test_two_nn__against_bare_neighbours(record, cloud):
    with compute(Backend(threads=1)):
        ratio = cpu_ratio(lambda: intrinsic_dimension(cloud, config=TWO_NN), lambda: bare_neighbours(cloud))

    record("TwoNN against bare neighbours", ratio, 1.3, note="10,000 x 512; float32 product and argpartition, k = 21")


@pytest.mark.benchmark
def test_neighbour_graph__against_scikit_learn(record, cloud):
    from sklearn.neighbors import NearestNeighbors

    peer = NearestNeighbors(n_neighbors=N_NEIGHBOURS, algorithm="brute")
    with compute(Backend(threads=1)):
        ratio = cpu_ratio(
            lambda: neighbour_graph(cloud, N_NEIGHBOURS), lambda: peer.fit(cloud).kneighbors(cloud[:], N_NEIGHBOURS)
        )

    record("neighbour graph, k = 21", ratio, 1.0, note="10,000 x 512; scikit-learn, brute force; ours exact in float64")
