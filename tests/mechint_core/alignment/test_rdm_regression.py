import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats
from scipy.spatial.distance import pdist
from sklearn.linear_model import LinearRegression

from mechint_core.alignment import RDMRegressionConfig, rdm_regression
from mechint_core.alignment._conditions import Draws
from mechint_core.alignment._distances import square_form
from mechint_core.alignment._pair_gram import MovingGram, centred, drawn_grams, with_constant
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

UPPER = np.triu_indices(9, 1)


def models_of(n, k, *, seed=0, together=0.0):
    """Squared distances of k feature sets; `together` is how much of the first each other one holds."""
    rng = generator(seed, "models")
    made = np.array([pdist(rng.normal(size=(n, 2)), "sqeuclidean") for _ in range(k)])
    made[1:] += together * made[0]
    return made


def data_of(models, weights, *, noise=1.0, seed=0):
    rng = generator(seed, "data")
    weights = np.atleast_2d(weights)
    return weights @ models + noise * rng.normal(size=(len(weights), models.shape[1])) + 20


def regressed(data, models, **options):
    return rdm_regression(
        data, models, config=RDMRegressionConfig(**{"n_bootstrap": 40, "n_permutations": 39} | options)
    )


def partials(data, models):
    """Partial correlations by residuals of both sides."""
    found = np.empty((len(data), len(models)))
    for k in range(len(models)):
        others = np.delete(models, k, axis=0).T
        left = [each - LinearRegression().fit(others, each).predict(others) for each in (*data, models[k])]
        found[:, k] = [np.corrcoef(each, left[-1])[0, 1] for each in left[:-1]]
    return found


# Known answer
@pytest.mark.parametrize("weights", ["any", "nonnegative"])
def test_rdm_regression__of_a_weighted_sum_finds_the_weights(weights):
    models = models_of(15, 3)
    found = regressed(data_of(models, [2.0, 0.5, 1.0], noise=0), models, weights=weights)

    assert found.coefficient[0] == pytest.approx([2, 0.5, 1], abs=1e-9)
    assert found.intercept[0] == pytest.approx(20, abs=1e-8)
    assert found.explained.value == pytest.approx(1, abs=1e-12)
    assert found.partial == pytest.approx(1, abs=1e-6)


def test_rdm_regression__a_model_with_a_weight_below_zero_gets_none():
    models = models_of(15, 2)
    found = regressed(data_of(models, [2.0, -1.0]), models, weights="nonnegative")

    assert found.coefficient[0, 1] == 0
    assert found.unique[0, 1] == pytest.approx(0, abs=1e-12)
    assert found.partial[0, 1] < -0.5


def test_rdm_regression__orthogonal_models_share_nothing():
    """Models without correlation: unique parts are squared correlations, and add up to R²."""
    models = models_of(12, 2)
    models[1] -= models[1].mean()
    models[0] -= models[0].mean()
    models[1] -= (models[1] @ models[0]) / (models[0] @ models[0]) * models[0]
    data = data_of(models, [1.0, 1.0])
    found = regressed(data, models)

    assert found.unique[0] == pytest.approx([np.corrcoef(data[0], each)[0, 1] ** 2 for each in models], abs=1e-12)
    assert found.shared[0] == pytest.approx(0, abs=1e-12)


def test_rdm_regression__a_model_that_only_goes_with_another_does_not_stand_out():
    """The third model is nothing but half of the first plus something of its own."""
    models = models_of(30, 3, together=1.0)
    found = regressed(data_of(models, [[1.0, 0.0, 0.0], [1.0, 0.5, 0.0]], noise=2.0), models, n_permutations=199)

    assert np.all(found.p_family[:, 0] <= 0.01)
    assert found.p_family[1, 1] <= 0.01
    assert found.p_family[0, 1] > 0.05
    assert np.all(found.p_family[:, 2] > 0.05)


# Oracle
@pytest.mark.parametrize("ranks", [False, True])
@pytest.mark.parametrize("gaps", [False, True])
def test_rdm_regression__equals_scikit_learn_and_residuals(ranks, gaps):
    models = models_of(12, 3, together=0.7)
    data = data_of(models, [[1.0, 0.3, 0.0], [0.0, 1.0, 1.0]])
    if gaps:
        data[0, 4:9], models[1, 30:33] = np.nan, np.nan
    keep = ~np.isnan(np.concatenate([data, models])).any(axis=0)
    d, m = (
        np.apply_along_axis(stats.rankdata, 1, each[:, keep]) if ranks else each[:, keep] for each in (data, models)
    )
    fit = LinearRegression().fit(m.T, d.T)
    r_squared = np.array([LinearRegression().fit(m.T, each).score(m.T, each) for each in d])
    without = np.array(
        [
            [LinearRegression().fit(o.T, each).score(o.T, each) for o in (np.delete(m, k, 0) for k in range(3))]
            for each in d
        ]
    )

    found = regressed(data, models, ranks=ranks)

    assert found.coefficient == pytest.approx(fit.coef_, abs=1e-10)
    assert found.intercept == pytest.approx(fit.intercept_, abs=1e-8)
    assert found.r_squared == pytest.approx(r_squared, abs=1e-10)
    assert found.unique == pytest.approx(r_squared[:, None] - without, abs=1e-10)
    assert found.shared == pytest.approx(r_squared - found.unique.sum(axis=1), abs=1e-10)
    assert found.partial == pytest.approx(partials(d, m), abs=1e-10)
    assert found.n_missing_pairs == np.sum(~keep)


def test_rdm_regression__nonnegative_equals_scikit_learn():
    models = models_of(12, 3, together=0.7)
    data = data_of(models, [[1.0, -0.3, 0.2], [0.5, 0.0, -1.0]])
    fit = LinearRegression(positive=True).fit(models.T, data.T)

    found = regressed(data, models, weights="nonnegative")

    assert found.coefficient == pytest.approx(fit.coef_, abs=1e-9)
    assert found.r_squared == pytest.approx(
        [1 - np.var(d - p) / np.var(d) for d, p in zip(data, fit.predict(models.T).T, strict=True)], abs=1e-9
    )


@pytest.mark.parametrize("ranks", [False, True])
def test_drawn_grams__equal_the_repeated_conditions(ranks):
    matrices = models_of(9, 3)
    keep = generator(0, "keep").random(matrices.shape[1]) > 0.2
    counts = Draws(n_bootstrap=10, n_permutations=0, level=0.95, seed=0).counts(9)

    found = centred(drawn_grams(np.where(keep, matrices, 0.0), keep, counts, ranks=ranks))

    for count, gram in zip(counts.T, found, strict=True):
        drawn = np.repeat(np.arange(9), count)
        i, j = (drawn[each] for each in UPPER)
        there = (i != j) & (square_form(keep.astype(float))[i, j] > 0)
        rows = np.array([square_form(each)[i, j][there] for each in matrices])
        rows = np.apply_along_axis(stats.rankdata, 1, rows) if ranks else rows
        rows -= rows.mean(axis=1, keepdims=True)
        assert gram == pytest.approx(rows @ rows.T, abs=1e-8)


def test_centred__of_a_matrix_without_variance_is_nan():
    rows = np.array([[1.0, 1.0, 1.0], [0.1, 0.1, 0.1], [1.0, 2.0, 3.0]])
    found = centred(rows @ rows.T)

    assert np.isnan(found[0, 0])
    assert found[1, 1] == pytest.approx(2)


@pytest.mark.parametrize("gaps", [False, True])
def test_moving_gram__equals_relabelled_matrices(gaps):
    matrices = models_of(9, 3)
    keep = generator(0, "keep").random(matrices.shape[1]) > (0.2 if gaps else -1)
    rows = with_constant(matrices, keep)
    orders = Draws(n_bootstrap=0, n_permutations=6, level=0.95, seed=0).permutations(9)

    found = MovingGram(rows[:3], rows[3], keep)(orders)

    for order, gram in zip(orders, found, strict=True):
        moved, here = (square_form(each)[np.ix_(order, order)][UPPER] for each in (rows[3], keep.astype(float)))
        expected = np.array([*(rows[:3] * here), moved * keep])
        assert gram == pytest.approx(expected @ expected.T, abs=1e-9)


# Law
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_rdm_regression__scales_with_models_and_data(seed, scale, shift):
    models = models_of(8, 2, seed=seed)
    data = data_of(models, [1.0, 0.4], seed=seed)
    one = regressed(data, models, n_bootstrap=0, n_permutations=0)
    two = regressed(scale * data + shift, models + shift, n_bootstrap=0, n_permutations=0)

    assert two.coefficient == pytest.approx(scale * one.coefficient, abs=1e-8)
    assert two.partial == pytest.approx(one.partial, abs=1e-8)
    assert two.unique == pytest.approx(one.unique, abs=1e-8)
    assert 0 <= one.explained.value <= 1


@settings(max_examples=5)
@given(seed=st.integers(0, 2**31))
def test_rdm_regression__does_not_care_how_conditions_are_ordered(seed):
    models = models_of(9, 2, seed=seed)
    data = data_of(models, [1.0, 0.4], seed=seed)
    order = generator(seed, "order").permutation(9)
    moved = [np.array([square_form(each)[np.ix_(order, order)][UPPER] for each in some]) for some in (data, models)]
    one, two = (regressed(*each, n_bootstrap=0, n_permutations=0) for each in ((data, models), moved))

    assert two.partial == pytest.approx(one.partial, abs=1e-9)


@pytest.mark.parametrize("options", [{}, {"ranks": True}, {"weights": "nonnegative"}], ids=str)
def test_rdm_regression__same_seed_gives_the_same_bits_for_any_worker_count(options):
    models = models_of(15, 3)
    data = data_of(models, [[1.0, 0.3, 0.0], [0.0, 1.0, 1.0]])
    found = []
    for threads in (1, 3):
        with compute(Backend(threads=threads)):
            found.append(regressed(data, models, **options))

    assert found[0].scalars() == found[1].scalars()
    for name, array in found[0].arrays().items():
        assert np.array_equal(array, found[1].arrays()[name]), name


def test_rdm_regression__interval_shrinks_with_the_conditions_it_speaks_of():
    """Found on 60 of 240 conditions, the interval has the width it has when found on all: within a third."""
    one, two, noise = generator(0, "responses").normal(size=(3, 240, 4))
    models = np.array([pdist(each, "sqeuclidean") for each in (one, two)])
    data = pdist(np.hstack([one, two, noise]), "sqeuclidean")[None]
    options = {"n_bootstrap": 500, "n_permutations": 0}
    some, every = (regressed(data, models, n_inference=n, **options) for n in (60, 240))

    assert np.array_equal(some.partial, every.partial)
    assert some.coefficient_high - some.coefficient_low == pytest.approx(
        every.coefficient_high - every.coefficient_low, rel=1 / 3
    )


def test_rdm_regression__of_four_conditions_leaves_draws_without_a_pair_out():
    """One of 64 draws takes one condition four times: 500 draws hold some, and some without variance."""
    models = models_of(4, 2)
    found = regressed(data_of(models, [1.0, 0.4]), models, n_bootstrap=500)

    assert np.all(np.isfinite(found.coefficient_low))


def test_rdm_regression__one_sided_p_is_of_positive_partial_correlation():
    models = models_of(20, 2)
    data = data_of(models, [1.0, -1.0])

    assert regressed(data, models, side="greater").p_value[0, 1] == 1
    assert regressed(data, models).p_value[0, 1] == 1 / 40


def test_rdm_regression__reading_says_what_stands_out():
    models = models_of(20, 2)
    data = data_of(models, [1.0, 1.0])

    assert "2 of 2 partial correlations stand out" in regressed(data, models).reading()
    assert "no relabelling" in regressed(data, models, n_permutations=0).reading()


@pytest.mark.calibration
@pytest.mark.parametrize("ranks", [False, True])
def test_rdm_regression__p_values_are_uniform_where_the_model_only_goes_with_another(ranks):
    """500 experiments; data from the first model alone, which the second is half made of.

    The KS distance of 500 uniform draws passes 0.087 once in 1000.
    """
    p = []
    for seed in range(500):
        rng = generator(seed, "experiment")
        one, two, noise = rng.normal(size=(3, 14, 3))
        models = np.array([pdist(one, "sqeuclidean"), pdist(np.hstack([one, two]), "sqeuclidean")])
        data = pdist(np.hstack([one, noise]), "sqeuclidean")[None]
        found = regressed(data, models, ranks=ranks, n_bootstrap=0, n_permutations=199, seed=seed)
        p.append(found.p_value[0, 1])

    assert stats.kstest(p, "uniform").statistic < 0.087


@pytest.mark.calibration
def test_rdm_regression__intervals_cover_the_weights():
    """500 experiments of 60 conditions with planted weights: 95 ± 3 % of the intervals hold them."""
    held = []
    for seed in range(500):
        rng = generator(seed, "coverage")
        one, two, noise = rng.normal(size=(3, 60, 4))
        models = np.array([pdist(each, "sqeuclidean") for each in (one, two)])
        data = pdist(np.hstack([np.sqrt(2) * one, two, noise]), "sqeuclidean")[None]
        found = regressed(data, models, n_bootstrap=400, n_permutations=0, seed=seed)
        held.append((found.coefficient_low[0] <= [2, 1]) & (found.coefficient_high[0] >= [2, 1]))

    assert np.mean(held, axis=0) == pytest.approx([0.95, 0.95], abs=0.03)


# Bad input
def test_rdm_regression__raises_on_different_pairs(without_shape_checks):
    with pytest.raises(ShapeError, match="same pairs"):
        rdm_regression(np.ones((1, 6)), np.ones((1, 10)))


def test_rdm_regression__raises_on_three_conditions(rng):
    with pytest.raises(ShapeError, match=r"n >= 4 conditions\. Got 3"):
        rdm_regression(rng.random((1, 3)), rng.random((1, 3)))


def test_rdm_regression__raises_on_a_model_that_is_a_sum_of_others():
    models = models_of(8, 2)
    data = data_of(models, [1.0, 1.0])

    with pytest.raises(DegenerateInputError, match="weighted sums of each other"):
        rdm_regression(data, np.concatenate([models, models[:1] - 2 * models[1:] + 3]))


@pytest.mark.parametrize(("filling", "match"), [(1.0, "equally far apart"), (np.inf, "Got infinity")])
def test_rdm_regression__raises_on_a_matrix_without_an_answer(rng, filling, match):
    with pytest.raises(DegenerateInputError, match=match):
        rdm_regression(rng.random((1, 6)), np.full((1, 6), filling))


@pytest.mark.parametrize(
    "options", [{"weights": "ridge"}, {"side": "less"}, {"n_inference": 3}, {"level": 2}, {"n_bootstrap": -1}]
)
def test_rdm_regression__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match="must be"):
        RDMRegressionConfig(**options)
