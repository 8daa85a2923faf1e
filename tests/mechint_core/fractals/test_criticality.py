import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from jaxtyping import TypeCheckError
from scipy import special, stats

from mechint_core.errors import ConfigurationError, DegenerateInputError, DtypeError, ShapeError
from mechint_core.fractals import CriticalityConfig, criticality
from mechint_core.fractals._avalanches import Avalanches, Events, in_bins, mean_interval, silent_level
from mechint_core.fractals._branching_ratio import Branching, Decay
from mechint_core.fractals._crackling import Ranges, resampled
from mechint_core.fractals._tail_alternatives import ALTERNATIVES, Comparisons
from mechint_core.fractals._zeta_tail import TailRange, ZetaTail, zeta_numbers, zeta_sum
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.synthetic.branching_processes import driven_branching, separate_avalanches

EVERY = TailRange(fewest=2)
QUICK = CriticalityConfig(n_bootstrap=20, n_simulations=0, n_surrogates=0)


class Stored:
    """An array that is read by runs of rows, in blocks of its own."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.values[rows].copy()


def exponential_avalanches(n: int, seed: int) -> np.ndarray:
    """A raster of avalanches whose sizes are geometric: one bin each, between silent ones."""
    rng = generator(seed, "exponential")
    raster = np.zeros((2 * n + 1, 4), dtype=np.int64)
    raster[1::2] = rng.multinomial(rng.geometric(0.02, n), np.full(4, 0.25))
    return raster


# Known answer
def test_criticality__of_a_critical_branching_process():
    """3/2, 2 and 2, one event per event, and exponents that belong together; durations come near -2 slowly."""
    planted = separate_avalanches(30_000, 1.0, seed=1)
    config = CriticalityConfig(longest_duration=999, n_simulations=39, n_bootstrap=100, n_surrogates=0)

    result = criticality(planted.raster, config=config)

    assert result.avalanche_size.tolist() == planted.size[1:-1].tolist()
    assert result.avalanche_duration.tolist() == planted.duration[1:-1].tolist()
    assert (result.n_cut, result.n_silent) == (2, 29_999)
    assert result.size_exponent.value == pytest.approx(1.5, abs=0.02)
    assert result.size_exponent.low < 1.5 < result.size_exponent.high
    assert result.duration_exponent.value == pytest.approx(2, abs=0.1)
    assert result.growth_exponent.value == pytest.approx(2, abs=0.15)
    assert result.predicted_growth.value == pytest.approx(
        (result.duration_exponent.value - 1) / (result.size_exponent.value - 1)
    )
    assert result.exponents_consistent
    assert "belong together" in result.reading()
    assert min(result.size_distance.p_value, result.duration_distance.p_value) > 0.1
    assert result.descendants.value == pytest.approx(1, abs=0.005)
    assert result.branching_ratio.value == pytest.approx(1, abs=0.005)
    assert result.size_likelihood_ratio[0] > 0  # exponential
    assert result.size_ratio_p_value[0] < 1e-6


@pytest.mark.parametrize("branching_ratio", [0.5, 0.8, 0.95])
def test_criticality__descendants_of_separate_avalanches_are_m(branching_ratio):
    planted = separate_avalanches(20_000, branching_ratio, seed=2)

    result = criticality(planted.raster, config=QUICK)

    assert result.descendants.value == pytest.approx(branching_ratio, abs=0.01)
    assert result.descendants.low < branching_ratio < result.descendants.high


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_criticality__branching_ratio_of_a_tenth_of_the_units(seed):
    """m = 0.9: found within 0.02 and within its interval, where the naive slope is about a third."""
    raster = driven_branching(100_000, 0.9, n_units=100, seed=seed)

    some, every = (criticality(x, config=QUICK) for x in (raster[:, :10], raster))

    assert some.branching_ratio.value == pytest.approx(0.9, abs=0.02)
    assert some.branching_ratio.low < 0.9 < some.branching_ratio.high
    assert some.naive_branching_ratio.value < 0.4
    assert every.branching_ratio.value == pytest.approx(0.9, abs=0.02)
    assert every.naive_branching_ratio.value == pytest.approx(0.9, abs=0.01)
    assert some.branching_applies
    assert some.ratio_with_offset == pytest.approx(0.9, abs=0.03)
    assert some.autocorrelation_time.value == pytest.approx(-1 / np.log(some.branching_ratio.value))


def test_criticality__exponential_sizes_are_no_power_law():
    result = criticality(exponential_avalanches(20_000, 3), config=CriticalityConfig(n_surrogates=0, n_bootstrap=0))
    whole = ZetaTail.fit(result.avalanche_size, TailRange(fewest=20_000))
    against = Comparisons.of(whole)

    assert whole.start == 1
    assert (against.ratio < 0).all()
    assert (against.p_value < 1e-10).all()
    assert np.isnan(result.duration_exponent.value)  # all last one bin
    assert result.n_in_size_tail < 0.1 * result.n_avalanches  # the fit flees into the tail
    assert not result.exponents_consistent


def test_criticality__of_independent_units_is_that_of_units_shifted_apart():
    raster = generator(4, "raster").poisson(0.02, (20_000, 20))

    result = criticality(raster, config=CriticalityConfig(n_simulations=0, n_bootstrap=50))

    assert result.silent_share.value == pytest.approx(np.exp(-0.4), abs=0.01)
    assert result.silent_share.low < np.exp(-0.4) < result.silent_share.high
    assert result.silent_share.p_value > 0.05
    assert result.size_exponent.p_value > 0.05
    assert result.naive_branching_ratio.p_value > 0.05
    assert result.n_usable_surrogates == 39
    assert "not known to carry over" in result.reading()


def test_criticality__coordination_is_told_from_units_shifted_apart():
    """The avalanches of a critical process fill the silence once its units are shifted: none are left."""
    result = criticality(separate_avalanches(2000, 1.0, seed=5).raster)

    assert result.silent_share.value > 10 * result.silent_share.null
    assert result.silent_share.p_value == pytest.approx(1 / 40)
    assert result.n_usable_surrogates == 0
    assert np.isnan(result.size_exponent.p_value)


def test_criticality__activity_that_never_stops_has_a_branching_ratio_and_no_exponents():
    raster = driven_branching(20_000, 0.9, seed=6)

    result = criticality(raster)

    assert (result.n_silent, result.n_avalanches, result.n_cut) == (0, 0, 1)
    assert np.isnan([result.size_exponent.value, result.crackling_difference.value, result.descendants.value]).all()
    assert result.branching_ratio.value == pytest.approx(0.9, abs=0.03)
    assert "too few avalanches" in result.reading()


def test_criticality__silence_by_decree():
    raster = driven_branching(20_000, 0.9, seed=6)

    result = criticality(raster, config=CriticalityConfig(silence=0.4, n_surrogates=0, n_simulations=0, n_bootstrap=0))

    activity = raster.sum(axis=1)
    assert result.silent_level == np.sort(activity)[int(0.4 * 20_000) - 1]
    assert result.n_silent / result.n_bins == pytest.approx(0.4, abs=0.02)
    assert result.avalanche_size.sum() <= np.maximum(activity - result.silent_level, 0).sum()
    assert result.n_avalanches > 500


def test_avalanches__are_runs_between_silence():
    found = Avalanches.of(np.array([3, 0, 1, 4, 0, 0, 2, 0, 5, 5]), 0)

    assert (found.size.tolist(), found.duration.tolist(), found.first.tolist()) == ([5, 2], [2, 1], [1, 2])
    assert (found.n_cut, found.n_silent) == (2, 4)
    assert found.descendants() == pytest.approx(4 / 7)


def test_avalanches__above_a_level_count_what_is_above():
    found = Avalanches.of(np.array([0, 3, 5, 2, 9, 1]), 2)

    assert (found.size.tolist(), found.duration.tolist(), found.n_silent) == ([4, 7], [2, 1], 3)


def test_criticality__bins_join_steps_and_may_follow_the_events():
    raster = np.zeros((2000, 3), dtype=np.int64)
    raster[5::4, 1] = generator(7, "raster").integers(1, 4, len(raster[5::4]))

    result = criticality(raster, config=CriticalityConfig(bin_width=0, n_surrogates=0, n_simulations=0, n_bootstrap=0))

    assert result.bin_width == 4
    assert result.n_bins == 500
    assert mean_interval(np.array([0, 1, 0, 0, 1, 0])) == 3
    assert in_bins(np.arange(7), 3).tolist() == [3, 12]
    assert silent_level(np.array([5, 1, 3, 9]), 0.5) == 3


def test_criticality__continuous_activity_becomes_events():
    x = generator(8, "raster").normal(size=(5000, 3))
    x[:, 2] = 7.0
    config = CriticalityConfig(threshold=2.0, n_surrogates=0, n_simulations=0, n_bootstrap=0)

    result = criticality(x, config=config)

    assert result.n_events == np.sum(x[:, :2] > x[:, :2].mean(axis=0) + 2 * x[:, :2].std(axis=0))
    assert (result.n_units, result.n_flat, result.n_nan) == (2, 1, 0)


def test_criticality__omits_units_that_are_not_finite():
    x = generator(9, "raster").normal(size=(5000, 4))
    x[0, 1], x[77, 3] = np.nan, np.inf
    config = CriticalityConfig(threshold=2.0, nan_policy="omit", n_surrogates=0, n_simulations=0, n_bootstrap=0)

    result = criticality(x, config=config)

    assert (result.n_units, result.n_nan) == (2, 2)
    assert result.n_events == criticality(x[:, [0, 2]], config=config).n_events


def test_criticality__says_when_activity_does_not_fade_as_branching_does():
    """A rhythm of 20 bins: r_k rises and falls."""
    rate = 5 * (1 + np.sin(2 * np.pi * np.arange(20_000) / 20))
    raster = generator(10, "raster").poisson(rate[:, None] / 10, (20_000, 10))

    result = criticality(raster, config=CriticalityConfig(max_lag=40, n_simulations=0, n_surrogates=19, n_bootstrap=50))

    assert not result.branching_applies
    assert "do not trust this number" in result.reading()


def test_criticality__says_when_the_recording_drifts():
    rate = np.linspace(1, 10, 20_000)
    raster = generator(11, "raster").poisson(rate[:, None] / 10, (20_000, 10))

    result = criticality(raster, config=CriticalityConfig(n_simulations=0, n_surrogates=19, n_bootstrap=50))

    assert result.branching_ratio.value > 0.99
    assert result.ratio_with_offset < result.branching_ratio.low
    assert "does the recording drift?" in result.reading()


@pytest.mark.parametrize(("exponent", "start"), [(1.5, 1.0), (2.5, 1.0), (2.0, 7.0), (4.0, 40.0)])
def test_zeta_tail__finds_the_law_that_made_the_numbers(exponent, start):
    """Within four standard errors (a - 1) / sqrt(n) of the tail."""
    rng = generator(12, "numbers")
    numbers = np.concatenate([zeta_numbers(exponent, start, np.inf, 20_000, rng), np.arange(1.0, start).repeat(50)])

    found = ZetaTail.fit(numbers, TailRange(fewest=100))

    assert found.exponent == pytest.approx(exponent, abs=4 * (exponent - 1) / np.sqrt(found.n_tail))
    assert found.start >= start


@pytest.mark.parametrize("largest", [np.inf, 30.0])
@pytest.mark.parametrize(("exponent", "start"), [(1.5, 1.0), (2.5, 1.0), (2.0, 7.0)])
def test_zeta_numbers__follow_their_law(exponent, start, largest):
    """Chi squared of 20 numbers and the rest: a p-value below 1e-4 has a chance of 1e-4."""
    drawn = zeta_numbers(exponent, start, largest, 50_000, generator(13, "numbers"))
    x = start + np.arange(20)
    expected = x**-exponent / zeta_sum(exponent, start, largest)
    counts = np.array([np.sum(drawn == each) for each in x])

    statistic = np.sum((counts - 50_000 * expected) ** 2 / (50_000 * expected))
    rest, far = np.sum(drawn > x[-1]), 50_000 * (1 - expected.sum())
    statistic += (rest - far) ** 2 / far

    assert drawn.max() <= largest
    assert stats.chi2.sf(statistic, 20) > 1e-4


def test_zeta_tail__limit_leaves_out_the_pile_of_stopped_avalanches():
    """Stopped at 50: their pile bends the fit, a fit up to 49 does not see it."""
    numbers = np.minimum(zeta_numbers(1.6, 1.0, np.inf, 20_000, generator(14, "numbers")), 50)

    found = ZetaTail.fit(numbers, TailRange(largest=49.0, fewest=1000))

    assert found.exponent == pytest.approx(1.6, abs=0.03)
    assert found.goodness(39, 0, "limit")[1] > 0.05


def test_zeta_tail__too_few_numbers_have_no_law():
    law = ZetaTail.fit(np.arange(1, 50), TailRange(fewest=50))

    assert np.isnan([law.exponent, law.start, law.distance]).all()
    assert law.n_tail == 0
    assert np.isnan(law.goodness(9, 0, "few")).all()
    assert np.isnan(Comparisons.of(law).p_value).all()


@pytest.mark.parametrize("largest", [np.inf, 60.0])
def test_comparisons__know_which_law_made_the_numbers(largest):
    rng = generator(15, "numbers")
    made = {
        "exponential": rng.geometric(0.1, 4000),
        "lognormal": np.maximum(1, np.round(rng.lognormal(2.0, 0.6, 4000))),
        "power_law": zeta_numbers(2.5, 1.0, largest, 4000, rng),
    }
    found = {
        name: Comparisons.of(
            ZetaTail.fit(x[x <= largest], TailRange(fewest=int(np.sum(x <= largest)), largest=largest))
        )
        for name, x in made.items()
    }

    for name in ("exponential", "lognormal"):
        assert found[name].ratio[ALTERNATIVES.index(name)] < -50
        assert found[name].p_value[ALTERNATIVES.index(name)] < 1e-6
    assert found["lognormal"].ratio.argmin() == 1
    assert found["power_law"].ratio[0] > 50
    assert found["power_law"].p_value[2] > 0.01


def test_comparisons__exponential_is_a_truncated_power_law_without_power():
    """The larger family reaches what the exponential reaches: it holds it at a = 0."""
    x = generator(16, "numbers").geometric(0.1, 4000)
    found = Comparisons.of(ZetaTail.fit(x, TailRange(fewest=4000)))

    assert found.ratio[2] <= found.ratio[0] + 1e-6


# Oracle
@pytest.mark.parametrize("a", [1.01, 1.5, 2.0, 3.0, 6.0, 12.0])
def test_zeta_sum__is_that_of_scipy(a):
    for start in (1.0, 2.0, 7.0, 29.0, 30.0, 31.0, 1000.0):
        assert zeta_sum(a, start, np.inf) == pytest.approx(special.zeta(a, start), rel=3e-9)
        assert zeta_sum(a, start, start + 50) == pytest.approx(
            np.sum((start + np.arange(51.0)) ** -a), rel=1e-8 * max(1, start / 50)
        )


def power_law_numbers(name: str) -> np.ndarray:
    rng = generator(17, "oracle", name)
    return {
        "zeta from 1": zeta_numbers(2.2, 1.0, np.inf, 3000, rng),
        "zeta from 5": zeta_numbers(1.8, 5.0, np.inf, 3000, rng),
        "lognormal": np.maximum(1, np.round(rng.lognormal(3, 1, 3000))),
        "avalanches": separate_avalanches(3000, 1.0, seed=17).duration.astype(float),
    }[name]


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["zeta from 1", "zeta from 5", "lognormal", "avalanches"])
def test_zeta_tail__agrees_with_powerlaw(name):
    """Same x_min; exponent within its search's tolerance of 1e-4; its distance looks at one side of each value only."""
    numbers = power_law_numbers(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import powerlaw

        peer = powerlaw.Fit(numbers, discrete=True, estimate_discrete=False, verbose=0)

    ours = ZetaTail.fit(numbers, EVERY)

    assert ours.start == peer.xmin
    assert ours.exponent == pytest.approx(peer.alpha, abs=1e-4)
    assert ours.distance == pytest.approx(peer.D, abs=2e-5)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["zeta from 1", "lognormal", "avalanches"])
def test_comparisons__agree_with_powerlaw(name):
    """Ratios to 0.01 %, normalised ratios and p-values to the tolerance of its search."""
    numbers = power_law_numbers(name)
    ours = ZetaTail.fit(numbers, EVERY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import powerlaw

        peer = powerlaw.Fit(numbers, xmin=ours.start, discrete=True, estimate_discrete=False, verbose=0)
        theirs = [peer.distribution_compare("power_law", other) for other in ALTERNATIVES]
        normalised = [peer.distribution_compare("power_law", o, normalized_ratio=True)[0] for o in ALTERNATIVES[:2]]

    found = Comparisons.of(ours)

    assert found.ratio == pytest.approx([ratio for ratio, _ in theirs], rel=1e-4, abs=1e-3)
    assert found.statistic[:2] == pytest.approx(normalised, abs=2e-3)
    assert found.p_value == pytest.approx([p for _, p in theirs], abs=1e-3)


def test_zeta_tail__distance_is_the_largest_over_all_whole_numbers(rng):
    numbers = np.round(rng.pareto(1.2, 300) * 4 + 1)
    law = ZetaTail.fit(numbers, EVERY)
    x = np.arange(law.start, numbers.max() + 2)
    tail = numbers[numbers >= law.start]
    ours = (tail[None] >= x[:, None]).mean(axis=1)

    assert law.distance == pytest.approx(
        np.abs(ours - special.zeta(law.exponent, x) / special.zeta(law.exponent, law.start)).max(), abs=1e-8
    )


def test_branching__slopes_are_regressions():
    activity = driven_branching(2000, 0.8, seed=18).sum(axis=1)
    found = Branching.of(activity, 6, n_draws=0, n_orders=0, seed=0)

    for k, slope in zip(found.lag, found.slopes, strict=True):
        n = activity.size - 6
        assert slope == pytest.approx(stats.linregress(activity[:n], activity[k : k + n]).slope, rel=1e-3)


# Law
@settings(max_examples=30)
@given(ratio=st.floats(0.05, 0.999), strength=st.floats(0.01, 10), offset=st.floats(-1, 1))
def test_decay__exact_curves_are_found(ratio, strength, offset):
    lag = np.arange(1, 30)
    curve = strength * ratio**lag

    plain = Decay.fit(lag, curve[None], offset=False)
    lifted = Decay.fit(lag, curve[None] + offset, offset=True)

    assert plain.ratio[0] == pytest.approx(ratio, abs=1e-5)
    assert plain.fitted[0] == pytest.approx(curve, abs=1e-4 * strength)
    assert lifted.ratio[0] == pytest.approx(ratio, abs=1e-4)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 1000), n_units=st.integers(1, 6), kind=st.sampled_from(["bool", "uint8", "int64", "float32"])
)
def test_events__any_kind_of_number_counts_the_same(seed, n_units, kind):
    counts = generator(seed, "raster").integers(0, 2, (400, n_units))
    shifts = generator(seed, "shifts").integers(0, 400, (3, n_units))

    found = Events.of(counts.astype(kind), None, "raise").activity(shifts)

    rolled = [sum(np.roll(counts[:, u], shift[u]) for u in range(n_units)) for shift in shifts]
    assert found.tolist() == np.array(rolled).tolist()


@settings(max_examples=15)
@given(exponent=st.floats(-8, 8), shift=st.floats(-10, 10), seed=st.integers(0, 1000))
def test_events__ignore_units_of_measurement(exponent, shift, seed):
    x = generator(seed, "raster").normal(size=(500, 3))
    one = np.zeros((1, 3), dtype=np.int64)

    expected = Events.of(x, 1.5, "raise").activity(one)

    assert (Events.of((x + shift) * 10.0**exponent, 1.5, "raise").activity(one) == expected).all()


@pytest.mark.parametrize("values", [1, 7, 2**20])
@pytest.mark.parametrize("threshold", [None, 1.0])
def test_criticality__chunked_equals_whole(values, threshold, monkeypatch):
    """Blocks of any size, in memory or stored, give the same bits."""
    x = generator(19, "raster").poisson(0.1, (600, 5))
    x = x if threshold is None else x + generator(20, "raster").normal(size=x.shape)
    config = CriticalityConfig(threshold=threshold, n_bootstrap=5, n_simulations=3, n_surrogates=3, fewest_in_tail=10)
    whole = criticality(x, config=config)

    monkeypatch.setattr("mechint_core.fractals._avalanches.BLOCK_VALUES", values)
    parts = criticality(Stored(x), config=config)

    assert repr(parts.scalars()) == repr(whole.scalars())


def test_criticality__workers_change_nothing():
    x = separate_avalanches(500, 0.9, seed=21).raster
    config = CriticalityConfig(n_bootstrap=8, n_simulations=6, n_surrogates=6, fewest_in_tail=20)

    with compute(Backend(threads=1)):
        one = criticality(x, config=config)
    with compute(Backend(threads=3)):
        three = criticality(x, config=config)

    assert repr(one.scalars()) == repr(three.scalars())
    assert np.isfinite(one.size_exponent.value)


def test_criticality__order_of_units_changes_no_avalanche(rng):
    x = separate_avalanches(500, 0.9, seed=22).raster

    found, other = (criticality(each, config=QUICK) for each in (x, x[:, rng.permutation(x.shape[1])]))

    assert repr(found.scalars()) == repr(other.scalars())


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), level=st.integers(0, 3), n=st.integers(1, 200))
def test_avalanches__account_for_every_bin_and_event(seed, level, n):
    activity = generator(seed, "activity").poisson(1.0, n)
    padded = np.concatenate([[0], activity, [0]])

    found = Avalanches.of(padded, level)

    assert found.size.sum() == np.maximum(activity - level, 0).sum()
    assert found.duration.sum() + found.n_silent == padded.size
    assert (found.first >= 1).all()
    assert (found.size >= found.duration).all()


# Calibration
@pytest.mark.calibration
@pytest.mark.parametrize("exponent", [1.5, 2.5])
def test_zeta_tail__goodness_of_fit_is_uniform_where_the_law_holds(exponent):
    """200 samples; the KS distance of 200 uniform draws passes 0.137 once in 1000."""
    within = TailRange(fewest=100, n_starts=100)
    samples = (zeta_numbers(exponent, 3.0, np.inf, 500, generator(seed, "law")) for seed in range(200))

    found = [ZetaTail.fit(each, within).goodness(99, seed, "law")[1] for seed, each in enumerate(samples)]

    assert stats.kstest(found, "uniform").statistic < 0.137


@pytest.mark.calibration
def test_zeta_tail__goodness_of_fit_rules_out_exponentials():
    """Of the whole sample: with a free x_min, the fit flees to a tail that is too short to tell."""
    within = TailRange(fewest=500)
    found = [
        ZetaTail.fit(generator(seed, "geometric").geometric(0.1, 500), within).goodness(49, seed, "law")[1]
        for seed in range(100)
    ]

    assert np.mean(np.array(found) < 0.1) > 0.95


@pytest.mark.calibration
@pytest.mark.parametrize("exponent", [1.5, 2.5])
def test_comparisons__power_laws_are_rarely_said_to_be_cut_off(exponent):
    """200 samples: uniform where the tail is heavy (KS 0.137 once in 1000), never above the level (5 % and 3 s.e.)."""
    numbers = (zeta_numbers(exponent, 1.0, np.inf, 200, generator(seed, "edge")) for seed in range(200))
    p = np.array([Comparisons.of(ZetaTail.fit(each, TailRange(fewest=200))).p_value[2] for each in numbers])

    assert exponent > 1.5 or stats.kstest(p, "uniform").statistic < 0.137
    assert np.mean(p < 0.05) < 0.096


@pytest.mark.calibration
@pytest.mark.parametrize("exponent", [1.5, 2.5])
def test_criticality__interval_of_the_exponent_covers_it(exponent):
    """200 recordings; the binomial standard error of 95 % is 1.5 %."""
    within = TailRange(fewest=100, n_starts=100)
    hits = 0
    for seed in range(200):
        size = zeta_numbers(exponent, 1.0, np.inf, 500, generator(seed, "law")).astype(np.int64)
        found = Avalanches(size, np.ones_like(size), size, 0, 0)
        low, high = np.quantile(resampled(found, Ranges(size=within, duration=within), 200, seed)[:, 0], [0.025, 0.975])
        hits += low <= exponent <= high

    assert 0.9 <= hits / 200 <= 0.995


@pytest.mark.calibration
@pytest.mark.parametrize(("branching_ratio", "n_seen"), [(0.5, 100), (0.9, 100), (0.9, 10), (0.98, 10)])
def test_branching__interval_covers_m(branching_ratio, n_seen):
    """200 recordings of 20,000 steps; the binomial standard error of 95 % is 1.5 %."""
    found = []
    for seed in range(200):
        activity = driven_branching(20_000, branching_ratio, n_units=100 // n_seen, seed=seed)[:, 0]
        found.append(Branching.of(activity, 0, n_draws=200, n_orders=0, seed=seed).corrected)

    assert 0.9 <= np.mean([each.low <= branching_ratio <= each.high for each in found]) <= 0.995


@pytest.mark.calibration
def test_branching__p_value_is_uniform_where_nothing_carries_over():
    found = [
        Branching.of(generator(seed, "null").poisson(2.0, 500), 0, n_draws=2, n_orders=99, seed=seed).naive.p_value
        for seed in range(200)
    ]

    assert stats.kstest(found, "uniform").statistic < 0.137


@pytest.mark.calibration
def test_criticality__silent_share_of_independent_units_is_uniform():
    """Units with rhythms of their own, in 200 recordings."""
    config = CriticalityConfig(n_bootstrap=0, n_simulations=0, n_surrogates=39, fewest_in_tail=1000)
    found = []
    for seed in range(200):
        rng = generator(seed, "null")
        rate = 0.1 * (1 + np.sin(np.arange(1000)[:, None] / rng.uniform(3, 10, 8) + rng.uniform(0, 7, 8)))
        found.append(criticality(rng.poisson(rate), config=config).silent_share.p_value)

    assert stats.kstest(found, "uniform").statistic < 0.137


# Bad input
@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float64])
def test_criticality__raises_on_more_events_than_can_be_counted(dtype):
    raster = generator(0, "x").poisson(0.1, (300, 2)).astype(dtype) * dtype(2**60)

    with pytest.raises(DegenerateInputError, match="events per step and unit"):
        criticality(raster)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_criticality__raises_where_squares_vanish_or_overflow(scale):
    with pytest.raises(DegenerateInputError, match="neither vanish nor overflow"):
        criticality(scale * generator(0, "x").normal(size=(300, 2)), config=CriticalityConfig(threshold=2.0))


def test_criticality__says_nothing_of_a_ratio_where_activity_does_not_carry_over():
    config = CriticalityConfig(n_bootstrap=0, n_simulations=0, n_surrogates=0)
    apart = np.tile([1, 0, 0], 200)[:, None]

    assert criticality(apart, config=config).reading().startswith("Activity is not known to carry over")


def test_criticality__raises_on_numbers_that_count_nothing():
    with pytest.raises(DegenerateInputError, match=r"whole, not negative. Got others in steps 0 to 300. Pass a thresh"):
        criticality(generator(0, "x").normal(size=(300, 2)))
    with pytest.raises(DegenerateInputError, match=r"whole, not negative"):
        criticality(np.full((300, 2), -1))
    with pytest.raises((DtypeError, TypeCheckError), match=r"real numbers|raster"):
        criticality(np.ones((300, 2), dtype=complex))


def test_criticality__raises_on_nan():
    x = np.ones((300, 2))
    x[4, 1] = np.nan
    with pytest.raises(DegenerateInputError, match=r"in 1 of 2 units. Pass nan_policy='omit'"):
        criticality(x, config=CriticalityConfig(threshold=1.0))
    with pytest.raises(DegenerateInputError, match=r"a threshold must say what an event is"):
        criticality(x, config=CriticalityConfig(nan_policy="omit"))


def test_criticality__raises_on_a_wrong_shape(without_shape_checks):
    with pytest.raises(ShapeError, match=r"\(time >= 1, unit >= 1\). Got shape \(300,\)"):
        criticality(np.ones(300, dtype=int))
    with pytest.raises(ShapeError, match=r"at least 200 bins. Got 100 bins of 2 steps"):
        criticality(np.ones((200, 2), dtype=int), config=CriticalityConfig(bin_width=2))


def test_criticality__raises_on_lags_that_leave_too_few_pairs():
    with pytest.raises(ShapeError, match=r"at least 400 bins for a max_lag of 200. Got 300"):
        criticality(generator(0, "x").poisson(1.0, (300, 2)), config=CriticalityConfig(max_lag=200))


def test_criticality__raises_where_nothing_happens_or_nothing_changes():
    with pytest.raises(DegenerateInputError, match=r"must hold events. Got none"):
        criticality(np.zeros((300, 2), dtype=int))
    with pytest.raises(DegenerateInputError, match=r"must vary. Got 6 events in every bin of 3 steps"):
        criticality(np.ones((900, 2), dtype=int), config=CriticalityConfig(bin_width=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bin_width": -1}, "must not be negative"),
        ({"max_lag": -1}, "must not be negative"),
        ({"threshold": np.inf}, "threshold must be finite"),
        ({"silence": 1.0}, r"silence must lie in \[0, 1\)"),
        ({"fewest_in_tail": 3}, "fewest_in_tail must be at least 10"),
        ({"nan_policy": "drop"}, "nan_policy"),
        ({"n_surrogates": -1}, "must not be negative"),
    ],
)
def test_criticality__raises_on_an_impossible_option(options, message):
    with pytest.raises((ConfigurationError, TypeCheckError), match=message):  # a wrong word fails its type here
        CriticalityConfig(**options)
