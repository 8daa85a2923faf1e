from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.meta_dynamics import PhasesConfig, phases
from mechint_core.random import generator

QUICK = PhasesConfig(n_null=99, n_bootstrap=2)


def steps_of(levels, length, d=1):
    return np.repeat(np.array(levels, dtype=float), length)[:, None] * np.ones(d)


def autoregressive(rng, memory, n, d):
    noise = rng.normal(size=(n + 100, d))
    for t in range(1, len(noise)):
        noise[t] += memory * noise[t - 1]
    return noise[100:]


# Known answer
def test_phases__finds_noiseless_steps_exactly():
    result = phases(steps_of([0, 5, 1, 4], 10), 100 * np.arange(40))

    assert result.boundary.tolist() == [1000, 2000, 3000]
    assert result.explained.value == pytest.approx(1, abs=1e-12)
    assert result.phase_name == ("0 to 900", "1000 to 1900", "2000 to 2900", "3000 to 3900")
    assert result.phase.tolist() == np.repeat([0, 1, 2, 3], 10).tolist()
    np.testing.assert_array_equal(result.boundary_low, result.boundary)


@pytest.mark.parametrize("seed", range(10))
def test_phases__finds_planted_change_points_within_one_checkpoint(seed):
    """Steps of 4 standard deviations: a shift by two checkpoints would cost 2 x 16 against noise of 2."""
    y = steps_of([0, 4, 1, 5], 12, d=3) + generator(seed, "test").normal(size=(48, 3))
    found = phases(y, np.arange(48), config=QUICK).boundary

    nearest = np.abs(np.array([12, 24, 36])[:, None] - found).min(axis=1)
    assert np.all(nearest <= 1)


def test_phases__seldom_finds_more_phases_than_were_planted():
    """Each boundary is tested at 5 %: of 40 series, at most 9 have one too many (binomial at 10 %, chance 0.01)."""
    counts = []
    for seed in range(40):
        y = steps_of([0, 3, 1], 15) + generator(seed, "test").normal(size=(45, 1))
        counts.append(phases(y, np.arange(45), config=QUICK).n_phases)

    assert np.sum(np.array(counts) > 3) <= 9
    assert np.median(counts) == 3


def test_phases__finds_none_in_noise_at_the_nominal_rate():
    """Level 5 %, 200 series: 10 expected, 2 to 20 within 3 standard deviations."""
    found = [
        phases(generator(seed, "test").normal(size=(30, 3)), np.arange(30), config=QUICK).n_phases > 1
        for seed in range(200)
    ]

    assert 2 <= np.sum(found) <= 20


def test_phases__against_memory_finds_none_in_noise_that_remembers():
    """At most the nominal rate: 5 of 100 expected at most, 12 is 3 standard deviations above."""
    config = PhasesConfig(noise="autoregressive", n_null=99, n_bootstrap=2)
    found = [
        phases(autoregressive(generator(seed, "test"), 0.6, 40, 2), np.arange(40), config=config).n_phases > 1
        for seed in range(100)
    ]

    assert np.sum(found) <= 12


def test_phases__interval_covers_the_planted_boundary():
    """95 % intervals over 60 series: at least 48 cover (80 %; the grid is coarse and the residuals are fitted)."""
    covered = 0
    for seed in range(60):
        y = steps_of([0, 1.5], 15, d=2) + generator(seed, "test").normal(size=(30, 2))
        result = phases(y, np.arange(30), config=PhasesConfig(n_null=99, n_bootstrap=100, max_boundaries=1))
        covered += bool(len(result.boundary) == 1 and result.boundary_low[0] <= 15 <= result.boundary_high[0])

    assert covered >= 48


def test_phases__takes_the_logarithm_of_the_measures_named():
    y = np.exp(steps_of([0, -12, -20], 8))
    result = phases(y, np.arange(24), config=PhasesConfig(names=("loss",), logarithmic=("loss",)))

    assert result.boundary.tolist() == [8, 16]


def test_phases__says_that_there_are_none(rng):
    result = phases(rng.normal(size=(20, 1)), np.arange(20), config=PhasesConfig(alpha=0.001))

    assert result.n_phases == 1
    assert result.explained.value == 0
    assert result.boundary.shape == (0,)
    assert result.reading().startswith("No phases")


# Oracle
@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(5))
def test_phases__equals_ruptures(seed):
    from ruptures import Dynp, KernelCPD

    y = steps_of([0, 4, 1, 5], 12, d=3) + generator(seed, "test").normal(size=(48, 3))
    result = phases(y, np.arange(48), config=QUICK)
    z, n = result.standardised.T, len(result.boundary)

    assert Dynp("l2", min_size=2, jump=1).fit(z).predict(n_bkps=n)[:-1] == result.boundary.tolist()
    assert KernelCPD("linear", min_size=2).fit(z).predict(n_bkps=n)[:-1] == result.boundary.tolist()


def test_phases__is_the_best_of_all_partitions(rng):
    """Against the enumeration of every pair of change points in 12 checkpoints."""
    y = steps_of([0, 3, 0], 4) + 0.5 * rng.normal(size=(12, 1))
    result = phases(y, np.arange(12), config=QUICK)

    def cost(edges):
        return sum(np.square(y[a:b] - y[a:b].mean(axis=0)).sum() for a, b in pairwise(edges))

    best = min(((i, j) for i in range(2, 9) for j in range(i + 2, 11)), key=lambda cut: cost([0, *cut, 12]))
    assert result.boundary.tolist() == list(best)


# Law
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
@settings(max_examples=15)
def test_phases__ignores_the_units_of_a_measure(seed, scale, shift):
    y = generator(seed, "test").normal(size=(20, 2)) + steps_of([0, 3], 10, d=2)
    a, b = phases(y, np.arange(20), config=QUICK), phases(scale * y + shift, np.arange(20), config=QUICK)

    assert a.boundary.tolist() == b.boundary.tolist()
    assert a.explained.value == pytest.approx(b.explained.value, abs=1e-9)
    assert 0 <= a.explained.value <= 1


def test_phases__of_time_reversed_measures_are_reversed(rng):
    y = steps_of([0, 4, 1], 10) + rng.normal(size=(30, 1))
    forward, backward = (phases(each, np.arange(30), config=QUICK).boundary for each in (y, y[::-1].copy()))

    assert forward.tolist() == (30 - backward[::-1]).tolist()


def test_phases__same_seed_same_bits(rng):
    y = rng.normal(size=(20, 2)) + steps_of([0, 3], 10, d=2)
    a, b = (phases(y, np.arange(20)) for _ in range(2))

    assert a.scalars() == b.scalars()
    assert a.boundary_low.tobytes() == b.boundary_low.tobytes()


def test_phases__does_not_depend_on_how_draws_are_chunked(rng, monkeypatch):
    y = rng.normal(size=(20, 2)) + steps_of([0, 3], 10, d=2)
    whole = phases(y, np.arange(20))
    monkeypatch.setattr("mechint_core.meta_dynamics._partition.CHUNK_BYTES", 20_000)

    assert phases(y, np.arange(20)).scalars() == whole.scalars()


# Bad input
def test_phases__refuses_five_checkpoints(rng):
    with pytest.raises(ShapeError, match="at least 6 checkpoints"):
        phases(rng.normal(size=(5, 1)), np.arange(5))


def test_phases__refuses_names_that_do_not_match(rng):
    with pytest.raises(ShapeError, match="names must be one per measure"):
        phases(rng.normal(size=(9, 2)), np.arange(9), config=PhasesConfig(names=("loss",)))


def test_phases__refuses_missing_values(rng):
    y = rng.normal(size=(9, 1))
    y[3] = np.nan
    with pytest.raises(DegenerateInputError, match="measures must be finite"):
        phases(y, np.arange(9))


def test_phases__refuses_constants():
    with pytest.raises(DegenerateInputError, match="must change during training"):
        phases(np.full((9, 2), 0.1), np.arange(9))


def test_phases__refuses_the_logarithm_of_zero():
    config = PhasesConfig(names=("loss",), logarithmic=("loss",))
    with pytest.raises(DegenerateInputError, match="must be above 0"):
        phases(np.arange(9.0)[:, None], np.arange(9), config=config)


def test_phases__refuses_steps_out_of_order(rng):
    with pytest.raises(DegenerateInputError, match="step must increase"):
        phases(rng.normal(size=(9, 1)), np.arange(9)[::-1].copy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"penalty": 0.0}, "penalty must be above 0"),
        ({"max_boundaries": 0}, "max_boundaries and least_checkpoints"),
        ({"n_null": 5}, "n_null must be at least 19"),
        ({"logarithmic": ("loss",)}, "logarithmic must be among the names"),
    ],
)
def test_phases_config__refuses(change, message):
    with pytest.raises(ConfigurationError, match=message):
        PhasesConfig(**change)
