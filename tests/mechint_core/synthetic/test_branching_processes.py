import numpy as np
import pytest
from scipy.special import gammaln

from mechint_core.errors import ConfigurationError
from mechint_core.synthetic.branching_processes import driven_branching, separate_avalanches


# Known answer
@pytest.mark.parametrize("m", [0.7, 1.0])
def test_separate_avalanches__sizes_are_borel_distributed(m):
    """20,000 avalanches: standard error 0.0034 at most of a share; 4 of them allowed."""
    made = separate_avalanches(20_000, m, n_units=2, seed=1)
    s = np.arange(1, 8)

    borel = np.exp((s - 1) * np.log(m * s) - m * s - gammaln(s + 1))

    assert [np.mean(made.size == k) for k in s] == pytest.approx(borel, abs=0.014)


def test_separate_avalanches__raster_holds_each_avalanche():
    made = separate_avalanches(300, 0.9, n_units=5, seed=2)
    activity = made.raster.sum(axis=1)

    silent = np.flatnonzero(activity == 0)
    assert silent.size == 299
    runs = np.split(activity, silent)
    assert [run.sum() for run in runs] == made.size.tolist()
    assert [(run > 0).sum() for run in runs] == made.duration.tolist()
    assert made.n_stopped == 0


def test_separate_avalanches__stops_at_the_longest():
    made = separate_avalanches(2000, 1.0, longest=20, seed=3)

    assert made.duration.max() == 20
    assert made.n_stopped == pytest.approx(2000 * 2 / 20, rel=0.3)  # Kolmogorov: 2 / t are still active at t


@pytest.mark.parametrize("m", [0.0, 0.5, 0.9])
def test_driven_branching__has_its_mean_and_autocorrelation(m):
    total = driven_branching(40_000, m, activity=50.0, n_units=10, seed=4).sum(axis=1)
    centred = total - total.mean()

    assert total.mean() == pytest.approx(50, rel=0.05)
    assert np.mean(centred[1:] * centred[:-1]) / np.mean(centred**2) == pytest.approx(m, abs=0.02)


# Law
def test_driven_branching__same_seed_same_bits():
    once, again = (driven_branching(100, 0.5, seed=5) for _ in range(2))

    assert once.tolist() == again.tolist()


# Bad input
def test_branching_processes__raise_on_impossible_numbers():
    with pytest.raises(ConfigurationError, match=r"branching_ratio must lie in \(0, 1\]"):
        separate_avalanches(10, 1.2)
    with pytest.raises(ConfigurationError, match=r"branching_ratio must lie in \[0, 1\)"):
        driven_branching(10, 1.0)
