import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats
from scipy.spatial.distance import pdist

from mechint_core.alignment import RSA, RSAConfig, TimeResolvedRSAConfig, _stacked, rsa, time_resolved_rsa
from mechint_core.alignment._comparisons import coordinates
from mechint_core.alignment._conditions import Draws, bootstrap_agreement, relabelled_agreement
from mechint_core.alignment._stacked import ComparedModel, stacked_distances
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

SCIPY = {"euclidean": "sqeuclidean", "correlation": "correlation", "cosine": "cosine"}
metrics = pytest.mark.parametrize("metric", list(SCIPY))
comparisons = pytest.mark.parametrize("comparison", ["pearson", "cosine", "spearman"])
FAST = {"n_bootstrap": 40, "n_permutations": 60}


def recording(n=20, n_times=30, n_channels=8, *, on=slice(0), strength=1.0, seed=0):
    """Noise in which the model is heard while it is `on`."""
    rng = generator(seed, "recording")
    x = rng.normal(size=(n, 6))
    y = rng.normal(size=(n, n_times, n_channels))
    y[:, on] += strength * (x @ rng.normal(size=(6, n_channels)))[:, None]
    return x, y


def found_in(x, y, time=None, **options):
    return time_resolved_rsa(x, y, time, config=TimeResolvedRSAConfig(**options))


# Known answer
def test_time_resolved_rsa__of_a_rotated_copy_is_one_where_the_copy_is(rng):
    x, y = recording(n_channels=6)
    y[:, 12] = -2 * x @ np.linalg.qr(rng.normal(size=(6, 6)))[0] + 4
    found = found_in(x, y, metric="euclidean")

    assert found.agreement[12] == pytest.approx(1, abs=1e-12)
    assert np.abs(np.delete(found.agreement, 12)).max() < 0.5
    assert (found.peak.value, found.peak_time.value, found.onset.value) == pytest.approx((1, 12, 12), abs=1e-9)
    assert found.n_significant == 1
    assert np.diagonal(found.generalisation) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("width", [1, 4])
def test_time_resolved_rsa__finds_the_planted_onset_within_one_window(width):
    x, y = recording(40, 60, 16, on=slice(25, 45))
    found = found_in(x, y, 0.01 * np.arange(60), width=width)

    assert found.onset.value == pytest.approx(0.25, abs=0.01 * width)
    assert found.onset.low <= found.onset.value <= found.onset.high
    assert 0.25 <= found.peak_time.low <= found.peak_time.value <= found.peak_time.high < 0.45
    assert found.peak.p_value < 0.01
    assert found.n_significant >= 20


def test_onset__of_a_draw_ignores_lone_crossings_elsewhere():
    """The first run found is 3 to 5. Draws: it begins early, late, never, and with a lone crossing at 0."""
    from mechint_core.alignment.time_resolved_rsa import _onsets

    significant = np.array([0, 0, 0, 1, 1, 1, 0, 1], bool)
    draws = np.array([
        [0, 0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
        [1, 0, 0, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0, 0, 0, 0],
    ], bool)  # fmt: skip

    assert _onsets(np.arange(8.0), significant, draws).tolist() == [2, 4, 3, 0]


# Oracle
@metrics
@comparisons
@pytest.mark.parametrize("within", ["mean", "pattern"])
def test_time_resolved_rsa__equals_a_loop_of_rsa(metric, comparison, within):
    x, y = recording(n_times=12, on=slice(5, 9))
    width, step = 3, 2
    options = {"metric": metric, "comparison": comparison, **FAST}
    found = found_in(x, y, width=width, step=step, within=within, **options)

    windows = [y[:, start : start + width] for start in range(0, 10, step)]
    rows = [each.mean(axis=1) if within == "mean" else each.reshape(len(each), -1) for each in windows]
    loop = [rsa(x, each, config=RSAConfig(**options)).similarity for each in rows]
    assert found.agreement == pytest.approx([each.value for each in loop], abs=1e-10)
    assert found.low == pytest.approx([each.low for each in loop], abs=1e-9)
    assert found.high == pytest.approx([each.high for each in loop], abs=1e-9)
    assert found.time == pytest.approx(np.arange(1, 11, step))


@comparisons
def test_time_resolved_rsa__null_is_the_largest_of_the_relabelled(comparison):
    x, y = recording(n_times=7)
    found = found_in(x, y, metric="euclidean", comparison=comparison, **FAST)

    permutations = Draws(n_bootstrap=0, n_permutations=60, level=0.95, seed=0).permutations(20)
    model, data = pdist(x, "sqeuclidean"), [pdist(y[:, at], "sqeuclidean") for at in range(7)]
    null = [relabelled_agreement(each, model, comparison, permutations=permutations) for each in data]
    largest = np.max(null, axis=0)
    assert found.peak.null == pytest.approx(largest.mean(), abs=1e-10)
    assert found.p_value == pytest.approx([(1 + np.sum(largest >= each - 1e-12)) / 61 for each in found.agreement])
    assert found.threshold == pytest.approx(np.sort(largest)[-3], abs=1e-10)


@pytest.mark.oracle
@pytest.mark.parametrize("metric", ["euclidean", "correlation"])
@pytest.mark.parametrize(
    ("comparison", "theirs"), [("pearson", "corr"), ("cosine", "cosine"), ("spearman", "spearman")]
)
def test_time_resolved_rsa__equals_rsatoolbox(metric, comparison, theirs):
    from rsatoolbox.data import Dataset, TemporalDataset
    from rsatoolbox.rdm import calc_rdm, calc_rdm_movie, compare

    x, y = recording(n_times=12, on=slice(4, 8))
    time = np.arange(12.0)
    dataset = TemporalDataset(y.transpose(0, 2, 1), time_descriptors={"time": time})
    movie = calc_rdm_movie(dataset, method=metric, bins=list(time.reshape(4, 3)))
    expected = compare(calc_rdm(Dataset(x), method=metric), movie, method=theirs)[0]

    found = found_in(x, y, time, metric=metric, comparison=comparison, width=3, step=3, **FAST)

    assert found.agreement == pytest.approx(expected, abs=1e-10)
    assert found.time == pytest.approx(movie.rdm_descriptors["time"])


def test_generalisation__is_the_correlation_of_the_recordings_own_dissimilarities():
    x, y = recording(n_times=6)
    data = [pdist(y[:, at], "correlation") for at in range(6)]

    assert found_in(x, y, **FAST).generalisation == pytest.approx(np.corrcoef(data), abs=1e-10)


@metrics
def test_stacked_distances__are_those_of_each_matrix(metric):
    rows = generator(0, "rows").normal(size=(9, 4, 5)) + 3
    each = [pdist(rows[:, k], SCIPY[metric]) / (5 if metric == "euclidean" else 1) for k in range(4)]

    assert stacked_distances(rows, metric) == pytest.approx(np.array(each), abs=1e-13)


@comparisons
def test_compared_model__draws_as_one_comparison_does(comparison):
    x, y = recording(12, 5, 4)
    y[1] = y[0]  # a distance of 0
    draws = Draws(n_bootstrap=30, n_permutations=30, level=0.95, seed=0)
    data, permutations, counts = stacked_distances(y, "euclidean"), draws.permutations(12), draws.counts(12)
    pairs = stacked_distances(x[:, None], "euclidean")[0]
    model = ComparedModel.of(pairs, comparison, permutations=permutations, counts=counts)
    standard = coordinates(data, comparison)

    null = [relabelled_agreement(each, pairs, comparison, permutations=permutations) for each in data]
    boot = [bootstrap_agreement(pairs, each, comparison, counts=counts) for each in data]
    assert np.abs(model.null(standard).T - null).max() < 1e-12
    assert np.abs(model.bootstrap(data, standard).T - boot).max() < 1e-10


# Law
@metrics
@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), block=st.integers(1, 20), draws=st.integers(1, 20), threads=st.integers(1, 3))
def test_time_resolved_rsa__does_not_depend_on_blocks(metric, seed, block, draws, threads):
    x, y = recording(10, 9, 4, on=slice(4, 7), seed=seed)
    options = {"metric": metric, "n_inference": 8, **FAST}
    whole = found_in(x, y, **options)
    with pytest.MonkeyPatch.context() as patch, compute(Backend(threads=threads)):
        patch.setattr(_stacked, "BLOCK_BYTES", 8 * 45 * block)
        patch.setattr(_stacked, "DRAW_BYTES", 8 * 28 * draws)
        cut = found_in(x, y, **options)

    assert cut.scalars() == pytest.approx(whole.scalars(), abs=1e-9, nan_ok=True)
    assert cut.agreement == pytest.approx(whole.agreement, abs=1e-12)


@comparisons
def test_time_resolved_rsa__same_seed_gives_the_same_bits_for_any_worker_count(comparison):
    x, y = recording(n_times=12, on=slice(5, 9))
    found = []
    for threads in (1, 2, 4):
        with compute(Backend(threads=threads)):
            found.append(found_in(x, y, comparison=comparison, **FAST))

    for other in found[1:]:
        assert all(np.array_equal(value, other.arrays()[name]) for name, value in found[0].arrays().items())
        assert str(found[0].scalars()) == str(other.scalars())


@metrics
@comparisons
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-2, 1e2))
def test_time_resolved_rsa__is_bounded_and_ignores_scale(metric, comparison, seed, scale):
    x, y = recording(10, 4, 5, seed=seed)
    options = {"metric": metric, "comparison": comparison, "n_bootstrap": 0, "n_permutations": 5}
    found = found_in(x, y, **options)

    assert np.all(np.abs(found.agreement) <= 1 + 1e-12)
    assert np.all(np.abs(found.generalisation) <= 1 + 1e-12)
    assert found_in(x, scale * y, **options).agreement == pytest.approx(found.agreement, abs=1e-8)


def test_time_resolved_rsa__value_is_of_all_conditions_and_inference_of_some():
    x, y = recording(60, 5, on=slice(2, 4))
    some, every = (found_in(x, y, n_inference=n, **FAST) for n in (20, 60))

    assert (some.n_inference, every.n_inference) == (20, 60)
    assert some.agreement == pytest.approx(every.agreement, abs=1e-12)
    assert some.agreement[2] == pytest.approx(RSA().compare(x, y[:, 2]), abs=1e-10)
    assert np.all((some.low <= some.agreement) & (some.agreement <= some.high))
    assert (some.high - some.low).mean() == pytest.approx((every.high - every.low).mean(), rel=0.6)


def test_time_resolved_rsa__has_no_latency_where_nothing_is_significant():
    found = found_in(*recording(n_times=5))

    assert found.n_significant == 0
    assert np.isnan([found.onset.value, found.peak_time.value, found.onset.low]).all()


def test_time_resolved_rsa__reading_says_whether_a_window_is_significant():
    assert "no window is distinguishable" in found_in(*recording(n_times=5)).reading()
    assert "significant from 3" in found_in(*recording(n_times=5, on=slice(3, 4), strength=3.0)).reading()
    assert "no relabelling" in found_in(*recording(n_times=5), n_permutations=0).reading()


def test_time_resolved_rsa__without_draws_says_so_by_nan():
    found = found_in(*recording(n_times=5), n_permutations=0, n_bootstrap=0)

    assert np.isnan([found.peak.low, found.peak.p_value, found.peak.null, found.threshold]).all()
    assert np.isnan(np.concatenate([found.low, found.p_value])).all()


@pytest.mark.calibration
@comparisons
def test_time_resolved_rsa__any_false_window_has_the_chance_it_says(comparison):
    """500 recordings without the model, dependent over time; the KS distance passes 0.087 once in 1000.

    The binomial standard error of 5 % of 500 is 1 %.
    """
    options = {"comparison": comparison, "n_bootstrap": 0, "n_permutations": 199, "width": 3}
    found = [found_in(*recording(14, 16, 5, seed=seed), **options) for seed in range(500)]

    p = [each.peak.p_value for each in found]
    assert stats.kstest(p, "uniform").statistic < 0.087
    assert 0.02 < np.mean([each.n_significant > 0 for each in found]) < 0.08


@pytest.mark.calibration
def test_onset__is_found_within_a_window_and_its_interval_holds_the_planted_one():
    """200 recordings whose model begins at sample 15 at full strength."""
    found = [
        found_in(*recording(24, 30, 8, on=slice(15, 25), seed=seed), n_bootstrap=200, n_permutations=199).onset
        for seed in range(200)
    ]

    assert np.mean([abs(each.value - 15) <= 1 for each in found]) > 0.9
    assert np.mean([each.low <= 15 <= each.high for each in found]) > 0.9


# Bad input
def test_time_resolved_rsa__raises_on_a_shape_that_is_none(rng, without_shape_checks):
    x, y = recording(8, 5)
    for wrong in ((x, y[:, 0]), (x[:, 0], y), (x[:, :0], y)):
        with pytest.raises(ShapeError, match="Got shape"):
            found_in(*wrong)
    for wrong in ((x[:7], y), (x[:3], y[:3])):
        with pytest.raises(ShapeError, match="same conditions, at least 4"):
            found_in(*wrong)
    for wrong in (np.arange(4.0), np.zeros(5), np.array([0, 1, np.nan, 2, 3])):
        with pytest.raises(ShapeError, match="time must be one ascending number per sample, 5"):
            found_in(x, y, wrong)


def test_time_resolved_rsa__raises_on_a_window_longer_than_the_recording():
    with pytest.raises(ShapeError, match=r"width must be at most the 5 samples of y. Got 6"):
        found_in(*recording(8, 5), width=6)


def test_time_resolved_rsa__raises_on_nan():
    x, y = recording(8, 5)

    with pytest.raises(DegenerateInputError, match="y must be finite"):
        found_in(x, np.where(y == y[2, 1, 1], np.nan, y))
    with pytest.raises(DegenerateInputError, match="x must be finite"):
        found_in(np.where(x == x[0, 0], np.inf, x), y)


def test_time_resolved_rsa__raises_on_dissimilarities_without_spread():
    x, y = recording(8, 5)
    y[:, 3] = 1.0

    with pytest.raises(DegenerateInputError, match=r"in every window. Got all pairs alike in that from sample 3"):
        found_in(x, y, metric="euclidean")
    with pytest.raises(DegenerateInputError, match="dissimilarities of x must differ"):
        found_in(np.eye(8), y, metric="euclidean")
    with pytest.raises(DegenerateInputError, match="constant row"):
        found_in(x, y)
    with pytest.raises(DegenerateInputError, match="row of zeros"):
        found_in(x, y - 1, metric="cosine")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"metric": "crossnobis"}, "metric must be one of"),
        ({"comparison": "tau-a"}, "comparison must be one of"),
        ({"within": "max"}, "within must be one of"),
        ({"width": 0}, "width and step must be at least 1"),
        ({"n_inference": 3}, "n_inference must be at least 4"),
        ({"n_permutations": -1}, "n_permutations must be at least 0"),
        ({"level": 1.0}, "level must be between 0 and 1"),
    ],
)
def test_config__raises_on_an_option_that_makes_no_sense(option, message, without_shape_checks):
    with pytest.raises(ConfigurationError, match=message):
        TimeResolvedRSAConfig(**option)
