"""Searchlight and time-resolved RSA against rsatoolbox, with and without the null that it does not have."""

from collections.abc import Callable
from time import process_time

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from mechint_core.alignment import (
    RSAConfig,
    SearchlightConfig,
    TimeResolvedRSAConfig,
    rsa,
    searchlight,
    time_resolved_rsa,
)
from mechint_core.alignment._stacked import stacked_distances
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

RADIUS = 2.0


def cpu_seconds(call: Callable[[], object], repeats: int) -> float:
    """Return the best CPU time of a call, on one worker thread."""
    taken: list[float] = []
    with compute(Backend(threads=1)):
        for _ in range(repeats):
            started = process_time()
            call()
            taken.append(process_time() - started)
    return min(taken)


@pytest.mark.benchmark
@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")  # the peer's own
def test_searchlight__against_rsatoolbox(record):
    """2000 centres and 60 conditions; the peer is given its neighbourhoods, ours are found on the way."""
    from rsatoolbox.inference import eval_fixed
    from rsatoolbox.model import ModelFixed
    from rsatoolbox.rdm import RDMs
    from rsatoolbox.util.searchlight import evaluate_models_searchlight, get_searchlight_RDMs

    rng = generator(0, "bench", "searchlight")
    position = np.stack(np.meshgrid(*[np.arange(13.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[:2000]
    x, y = rng.normal(size=(60, 20)), rng.normal(size=(60, 2000))
    neighbours = [np.flatnonzero(each <= RADIUS) for each in cdist(position, position)]
    model = ModelFixed("model", RDMs(stacked_distances(x[:, None], "correlation")))

    def theirs() -> np.ndarray:
        rdms = get_searchlight_RDMs(y, np.arange(2000), neighbours, np.arange(60), method="correlation")
        every = evaluate_models_searchlight(rdms, model, eval_fixed, method="corr")
        return np.array([each.evaluations.ravel()[0] for each in every])

    def ours(n_permutations: int) -> np.ndarray:
        config = SearchlightConfig(radius=RADIUS, n_permutations=n_permutations)
        return searchlight(x, y, position, config=config).agreement

    assert ours(0) == pytest.approx(theirs(), abs=1e-10)
    bare, tested, peer = (
        cpu_seconds(lambda: ours(0), 3), cpu_seconds(lambda: ours(500), 3), cpu_seconds(theirs, 2)
    )  # fmt: skip

    what, note = "searchlight, 2000 centres x 60 conditions", "rsatoolbox: get_searchlight_RDMs and eval_fixed"
    record(what, bare / peer, 0.1, note=note)
    record(f"{what}, tested", tested / peer, 0.13, note=f"{note}; ours with 500 relabellings, p and q per centre")


@pytest.mark.benchmark
def test_time_resolved_rsa__against_a_loop_of_rsa(record):
    rng = generator(0, "bench", "time")
    x, y = rng.normal(size=(60, 20)), rng.normal(size=(60, 200, 32))
    config = TimeResolvedRSAConfig()

    def loop() -> None:
        for at in range(20):
            rsa(x, y[:, at], config=RSAConfig())

    ratio = cpu_seconds(lambda: time_resolved_rsa(x, y, config=config), 3) / (10 * cpu_seconds(loop, 3))

    note = "500 draws of both kinds; ours also has generalisation and latencies; the loop is timed on 20 windows"
    record("time-resolved RSA, 200 windows x 60 conditions", ratio, 0.5, unit="x CPU time of rsa in a loop", note=note)
