"""Higuchi's dimension and DFA of 1000 series of 4096 steps, against antropy on the same series, one by one."""

from collections.abc import Callable
from time import process_time

import numpy as np
import pytest

from mechint_core.fractals import DetrendedFluctuationAnalysis, HiguchiFractalDimension
from mechint_core.parallel import Backend, compute
from mechint_core.synthetic.fractional_noise import fractional_gaussian_noise

N_STEPS, N_SERIES = 4096, 1000
REPEATS = 7


@pytest.fixture(scope="module")
def series() -> np.ndarray:
    return fractional_gaussian_noise(N_STEPS, 0.6, n_series=N_SERIES, seed=0)


def cpu_ratio(ours: Callable[[], object], peer: Callable[[], object], repeats: int) -> float:
    """Return the ratio of the best CPU times of two calls, taken in turn, after one call each to compile."""
    times: list[list[float]] = [[], []]
    for round_ in range(repeats + 1):
        for call, taken in zip((ours, peer), times, strict=True):
            started = process_time()
            call()
            if round_:
                taken.append(process_time() - started)
    return min(times[0]) / min(times[1])


@pytest.mark.benchmark
def test_higuchi_fractal_dimension__against_antropy(record, series):
    import antropy

    walks = np.cumsum(series, axis=0)
    each = np.ascontiguousarray(walks.T)

    with compute(Backend(threads=1)):
        ratio = cpu_ratio(
            lambda: HiguchiFractalDimension(kmax=10)(walks),
            lambda: [antropy.higuchi_fd(walk, kmax=10) for walk in each],
            REPEATS,
        )

    record("Higuchi, 1000 series x 4096, kmax 10", ratio, 0.65, note="antropy, one thread each")


@pytest.mark.benchmark
def test_detrended_fluctuation_analysis__against_antropy(record, series):
    import antropy

    each = np.ascontiguousarray(series.T)
    scales = tuple(sorted({int(4 * 1.2**i) for i in range(30) if 4 * 1.2**i <= 0.1 * N_STEPS}))  # antropy's own

    with compute(Backend(threads=1)):
        ratio = cpu_ratio(
            lambda: DetrendedFluctuationAnalysis(scales=scales)(series),
            lambda: [antropy.detrended_fluctuation(noise) for noise in each],
            REPEATS,
        )

    record("DFA, 1000 series x 4096, 25 window lengths", ratio, 0.13, note="antropy, one thread each, equal windows")
