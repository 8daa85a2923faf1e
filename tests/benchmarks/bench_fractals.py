"""Fractal estimators of 1000 series of 4096 steps, against antropy, MFDFA or their Fourier transforms alone."""

import warnings
from collections.abc import Callable
from time import process_time

import numpy as np
import pytest

from mechint_core.fractals import (
    CriticalityConfig,
    DetrendedFluctuationAnalysis,
    GraphFractalDimensionConfig,
    HiguchiFractalDimension,
    HurstExponent,
    MultifractalSpectrumConfig,
    SpectralSlope,
    criticality,
    graph_fractal_dimension,
    multifractal_spectrum,
)
from mechint_core.fractals._zeta_tail import TailRange, ZetaTail
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.synthetic.branching_processes import separate_avalanches
from mechint_core.synthetic.fractal_sets import lattice_graph
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


@pytest.mark.benchmark
def test_multifractal_spectrum__against_mfdfa(record, series):
    from MFDFA import MFDFA

    few = series[:, :50]
    config = MultifractalSpectrumConfig(n_bootstrap=0, n_surrogates=0)
    scale, q = config.windows(N_STEPS), np.array([each for each in config.moments if each != 0])

    with compute(Backend(threads=1)):
        ratio = cpu_ratio(
            lambda: multifractal_spectrum(few, config=config),
            lambda: [MFDFA(noise, lag=scale, q=q, order=1) for noise in few.T],
            3,
        )

    record("MFDFA, 50 series x 4096, 7 window lengths, both ends", ratio, 0.2, note="MFDFA from one end, 10 moments")


@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("name", "estimator", "bar"),
    [
        ("Whittle", HurstExponent(), 6.0),
        ("spectral slope", SpectralSlope(), 5.0),
        ("spectral slope without peaks", SpectralSlope(without_peaks=True), 20.0),
    ],
)
def test_spectral_estimators__against_their_fourier_transform(record, series, name, estimator, bar):
    with compute(Backend(threads=1)):
        ratio = cpu_ratio(lambda: estimator(series), lambda: np.abs(np.fft.rfft(series, axis=0)) ** 2, 3)

    record(f"{name}, 1000 series x 4096", ratio, bar, unit="x CPU time of the periodogram alone")


@pytest.mark.benchmark
def test_graph_fractal_dimension__against_distances_from_some_nodes(record):
    """The floor: breadth-first distances from a twentieth of the 10,000 nodes of a grid, in compiled code."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import shortest_path

    grid = lattice_graph(100, 100)
    shape = (grid.n_nodes, grid.n_nodes)
    matrix = coo_array((np.ones(len(grid.edges)), grid.edges.T), shape=shape).tocsr()
    some = np.arange(0, grid.n_nodes, 20)

    ratio = cpu_ratio(
        lambda: graph_fractal_dimension(grid.edges, config=GraphFractalDimensionConfig(n_surrogates=0)),
        lambda: shortest_path(matrix, directed=False, unweighted=True, indices=some),
        3,
    )

    record("box covering, grid of 10,000 nodes, 10 radii, 2 orders", ratio, 4.0, unit="x CPU time of 500 searches")


@pytest.mark.benchmark
def test_criticality__against_the_sum_over_units(record):
    """The floor: numpy's sum over units of a million steps of 100 units, without draws."""
    raster = generator(0, "raster").poisson(0.02, (10**6, 100)).astype(np.int16)
    config = CriticalityConfig(n_bootstrap=0, n_simulations=0, n_surrogates=0)

    with compute(Backend(threads=1)):
        ratio = cpu_ratio(lambda: criticality(raster, config=config), lambda: raster.sum(axis=1, dtype=np.int64), 3)

    record("criticality without draws, 1,000,000 steps x 100 units", ratio, 15.0, unit="x CPU time of the sum")


@pytest.mark.benchmark
def test_criticality__power_law_fit_against_powerlaw(record):
    numbers = separate_avalanches(3000, 1.0, seed=0).duration
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import powerlaw

        ratio = cpu_ratio(
            lambda: [ZetaTail.fit(numbers, TailRange(fewest=2)) for _ in range(100)],
            lambda: powerlaw.Fit(numbers.astype(float), discrete=True, estimate_discrete=False, verbose=0),
            3,
        )

    record("discrete power law with every x_min, 3000 durations", ratio / 100, 0.01, note="powerlaw, exact likelihood")
