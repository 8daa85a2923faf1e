import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold

from mechint_core.alignment import EncodingModelConfig, EncodingModelResult, _fold_sums, _ridge, encoding_model
from mechint_core.alignment._fold_sums import assign_folds, fold_sums
from mechint_core.alignment._ridge import cross_validated_prediction, nested_ridge
from mechint_core.alignment._row_units import Draws
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

NO_DRAWS = {"n_permutations": 0, "n_bootstrap": 0, "n_band_scales": 6}
QUICK = EncodingModelConfig(**NO_DRAWS)
PENALTIES = (0.01, 1.0, 30.0, 1000.0)


def planted(rng, n, p, t, r2, columns=slice(None)):
    """Responses of which a linear readout of some columns of x explains `r2`, in the population."""
    x = rng.normal(size=(n, p))
    signal = x[:, columns] @ rng.normal(size=(len(range(p)[columns]), t))
    signal /= signal.std(axis=0)
    return x, np.sqrt(r2) * signal + np.sqrt(1 - r2) * rng.normal(size=(n, t))


def nested_by_hand(x, y, folds, penalties):
    """Nested cross-validation with scikit-learn's ridge, one target and one fold at a time."""
    predicted, chosen = np.empty_like(y), np.empty((folds.max() + 1, y.shape[1]))
    for outer in range(folds.max() + 1):
        train = folds != outer
        for target in range(y.shape[1]):
            errors = np.zeros(len(penalties))
            for inner in set(folds) - {outer}:
                fitted, held = train & (folds != inner), folds == inner
                for i, alpha in enumerate(penalties):
                    model = Ridge(alpha=alpha, solver="cholesky").fit(x[fitted], y[fitted, target])
                    errors[i] += np.sum((y[held, target] - model.predict(x[held])) ** 2)
            chosen[outer, target] = penalties[errors.argmin()]
            model = Ridge(alpha=chosen[outer, target], solver="cholesky").fit(x[train], y[train, target])
            predicted[~train, target] = model.predict(x[~train])
    return predicted, chosen


# Known answer
def test_encoding_model__recovers_planted_weights_without_noise(rng):
    x, weights = rng.normal(size=(100, 4)) + 3, np.array([[1.0, 0.0], [-2.0, 0.5], [0.0, 0.0], [3.0, 4.0]])

    found = encoding_model(x, x @ weights + 7, config=EncodingModelConfig(penalties=(1e-9, 1.0), n_permutations=0))

    np.testing.assert_allclose(found.weights, weights, atol=1e-7)
    np.testing.assert_allclose(found.intercept, 7, atol=1e-6)
    assert found.score.value == pytest.approx(1, abs=1e-9)


def test_encoding_model__finds_the_planted_share_of_variance():
    """4000 rows: the standard error of R² = 0.4 is 2 sqrt(R²) (1 - R²) / sqrt(n) = 0.012, and 40 targets share it."""
    x, y = planted(generator(0, "planted"), 4000, 6, 40, 0.4)

    found = encoding_model(x, y, ceiling=np.full(40, 0.8), config=QUICK)

    assert found.score.value == pytest.approx(0.4, abs=0.015)
    assert found.correlation.value == pytest.approx(np.sqrt(0.4), abs=0.015)
    assert found.ceiled_score.value == pytest.approx(0.5, abs=0.02)
    assert found.ceiled_correlation.value == pytest.approx(np.sqrt(0.5), abs=0.02)


def test_encoding_model__ceiled_scores_are_not_clipped(rng):
    x, y = planted(rng, 300, 3, 2, 0.6)

    found = encoding_model(x, y, ceiling=np.array([0.3, 0.01]), config=QUICK)

    assert found.ceiled_r2[0] > 1.5
    assert np.isnan(found.ceiled_r2[1])
    assert found.n_below_ceiling == 1


def test_encoding_model__finds_the_planted_band():
    """Three bands; the targets read one each. The others get nothing, and the parts add up to R²."""
    rng = generator(1, "bands")
    x = rng.normal(size=(400, 30))
    y = np.column_stack([x[:, part] @ rng.normal(size=10) for part in (slice(0, 10), slice(10, 20), slice(20, 30))])
    y += rng.normal(size=y.shape) * y.std(axis=0)

    found = encoding_model(x, y, config=EncodingModelConfig(bands=(10, 10, 10), **NO_DRAWS))

    assert np.array_equal(found.band_r2.argmax(axis=0), [0, 1, 2])
    assert np.array_equal(found.band_penalty.argmin(axis=0), [0, 1, 2])
    np.testing.assert_allclose(found.band_r2.sum(axis=0), found.r2, atol=1e-12)
    np.testing.assert_allclose(np.diag(found.band_r2), 0.5, atol=0.08)
    assert np.max(found.band_r2 - np.diag(np.diag(found.band_r2))) < 0.03


def test_encoding_model__banded_beats_one_penalty_where_most_columns_are_noise():
    rng = generator(2, "banded")
    x, y = planted(rng, 150, 60, 5, 0.6, columns=slice(0, 5))

    plain = encoding_model(x, y, config=QUICK).score.value
    banded = encoding_model(x, y, config=EncodingModelConfig(bands=(5, 55), **NO_DRAWS))

    assert banded.score.value > plain + 0.05


def test_assign_folds__keeps_groups_whole_and_even():
    group = np.repeat(np.arange(12), [5, 1, 9, 3, 3, 7, 2, 2, 8, 4, 6, 10])

    folds = assign_folds(60, group, 3, seed=0)

    assert all(len(set(folds[group == each])) == 1 for each in range(12))
    assert np.ptp(np.bincount(folds)) <= 2


def test_encoding_model__groups_keep_what_is_repeated_from_leaking():
    """Every row is there five times: without groups, in a shuffled order, noise is predicted from its own copies."""
    rng = generator(3, "leak")
    once = rng.normal(size=(40, 60)), rng.normal(size=(40, 2))
    order = rng.permutation(200)
    x, y = (np.repeat(each, 5, axis=0)[order] for each in once)

    leaking = encoding_model(x, y, config=QUICK).score.value
    honest = encoding_model(x, y, np.repeat(np.arange(40), 5)[order], config=QUICK).score.value

    assert leaking > 0.9
    assert honest < 0.05


# Oracle
def test_cross_validated_prediction__equals_scikit_learn(rng):
    x = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)) + 4
    y = x @ rng.normal(size=(5, 3)) + 4 * rng.normal(size=(60, 3))
    folds = np.arange(60) * 5 // 60

    ours = cross_validated_prediction(x, y, folds, PENALTIES, relative=False)
    theirs = nested_by_hand(x, y, folds, PENALTIES)

    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-10)
    assert np.array_equal(ours[1], theirs[1])


def test_encoding_model__scores_are_those_of_the_predictions(rng):
    x, y = planted(rng, 90, 4, 3, 0.3)
    folds = np.arange(90) * 5 // 90

    found = encoding_model(x, y, config=QUICK)
    predicted, _ = cross_validated_prediction(x, y, folds, QUICK.penalties)

    baseline = np.concatenate([y[folds == k] - y[folds != k].mean(axis=0) for k in range(5)])
    np.testing.assert_allclose(found.r2, 1 - ((y - predicted) ** 2).sum(axis=0) / (baseline**2).sum(axis=0), atol=1e-10)
    within = [np.concatenate([a[folds == k] - a[folds == k].mean(axis=0) for k in range(5)]) for a in (y, predicted)]
    r = (within[0] * within[1]).sum(axis=0) / np.sqrt((within[0] ** 2).sum(axis=0) * (within[1] ** 2).sum(axis=0))
    np.testing.assert_allclose(found.r, r, atol=1e-10)


def test_encoding_model__weights_are_scikit_learns_at_the_reported_penalty(rng):
    x, y = planted(rng, 70, 6, 3, 0.5)
    x += 2

    found = encoding_model(x, y, config=QUICK)
    theirs = [Ridge(alpha=a).fit(x, y[:, i]) for i, a in enumerate(found.band_penalty[0])]

    np.testing.assert_allclose(found.weights, np.column_stack([each.coef_ for each in theirs]), atol=1e-10)
    np.testing.assert_allclose(found.intercept, [each.intercept_ for each in theirs], atol=1e-10)


@pytest.mark.parametrize("bands", [(4, 6), (90, 10), (60, 60)])
def test_encoding_model__banded_weights_are_those_of_scaled_columns(rng, bands):
    """Ridge with λ_b on band b is ridge with penalty 1 on columns divided by √λ_b; also where bands are wide (dual)."""
    x = rng.normal(size=(50, sum(bands))) + 1
    y = x @ rng.normal(size=(sum(bands), 2)) + rng.normal(size=(50, 2))
    config = EncodingModelConfig(bands=bands, penalties=(0.01, 0.1, 1.0), **NO_DRAWS)

    found = encoding_model(x, y, config=config)

    for target in range(2):
        scale = 1 / np.sqrt(np.repeat(found.band_penalty[:, target], bands))
        theirs = Ridge(alpha=1.0).fit(x * scale, y[:, target])
        np.testing.assert_allclose(found.weights[:, target], theirs.coef_ * scale, atol=1e-8)
        np.testing.assert_allclose(found.intercept[target], theirs.intercept_, atol=1e-7)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")  # the peer's own
def test_nested_ridge__equals_himalaya(rng):
    """One level of its search is one outer fold of ours: same errors, same penalties, same weights."""
    from himalaya.ridge import RidgeCV

    x, y = planted(rng, 120, 8, 5, 0.4)
    folds = np.arange(120) * 5 // 120
    found = nested_ridge(fold_sums(x, y, folds), [np.arange(8)], PENALTIES, relative=False)
    for outer in range(5):
        train = folds != outer
        theirs = RidgeCV(alphas=PENALTIES, fit_intercept=True, cv=KFold(4)).fit(x[train], y[train])
        np.testing.assert_allclose(np.array(PENALTIES)[found.fold_penalty[outer]], theirs.best_alphas_)
        np.testing.assert_allclose(found.weights[outer], theirs.coef_, atol=1e-10)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")  # the peer's own
def test_nested_ridge__splits_r2_as_himalaya_does(rng):
    from himalaya.scoring import r2_score_split

    x, y = planted(rng, 100, 8, 3, 0.5)
    folds = np.arange(100) * 4 // 100
    bands = [np.arange(3), np.arange(3, 8)]
    sums = fold_sums(x, y, folds)
    found = nested_ridge(sums, bands, PENALTIES, n_scales=4)
    measured, parts = [], []
    for k in range(4):
        train = folds != k
        measured.append(y[~train] - y[train].mean(axis=0))
        centred = x[~train] - x[train].mean(axis=0)
        parts.append(np.stack([centred[:, band] @ found.weights[k][band] for band in bands]))
    y_true, y_parts = np.concatenate(measured), np.concatenate(parts, axis=1)
    theirs = r2_score_split(y_true, y_parts)
    spread = (y_true**2).sum(axis=0) / ((y_true - y_true.mean(axis=0)) ** 2).sum(axis=0)  # theirs: about the mean

    joint = 1 - (1 - found.split.sum(axis=0)) * spread
    np.testing.assert_allclose(theirs.sum(axis=0), joint, atol=1e-6)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")  # the peer's own
def test_nested_ridge__banded_optimum_is_at_least_as_good_as_himalayas():
    """The cross-validated error of the best of 60 sets of scales, against its random search of 60, over 4 problems."""
    from himalaya.ridge import GroupRidgeCV

    shares, penalties = [], tuple(np.logspace(-4, 4, 9))
    for seed in range(4):
        rng = generator(seed, "himalaya")
        x = rng.normal(size=(120, 24)) * np.repeat([1.0, 3.0, 0.5], 8)
        y = x[:, :8] @ rng.normal(size=(8, 4)) + 0.3 * x[:, 8:16] @ rng.normal(size=(8, 4)) + rng.normal(size=(120, 4))
        y -= y.mean(axis=0)
        bands = [np.arange(8), np.arange(8, 16), np.arange(16, 24)]
        sums = fold_sums(x, y, np.arange(120) * 4 // 120)
        ours = nested_ridge(sums, bands, penalties, n_scales=56)
        model = GroupRidgeCV(
            groups=np.repeat([0, 1, 2], 8),
            solver_params={"n_iter": 60, "alphas": np.logspace(-4, 6, 11), "progress_bar": False},
            cv=KFold(4),
            fit_intercept=True,
            random_state=seed,
        ).fit(x, y)
        theirs = -np.max(np.asarray(model.cv_scores_), axis=0)  # mean squared error, averaged over the folds
        error = (1 - ours.path.max(axis=0)) * ours.scores.spread / 120
        shares.append(error / theirs)

    assert np.mean(shares) < 1.002  # both draw 60 sets: single targets differ by 1 % either way
    assert np.max(shares) < 1.02


# Law
@settings(max_examples=4)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_encoding_model__has_the_invariances_it_declares(seed, scale, shift):
    rng = generator(seed, "invariance")
    x, y = planted(rng, 50, 4, 2, 0.5)
    changed = {
        "orthogonal": (x @ np.linalg.qr(rng.normal(size=(4, 4)))[0], y),
        "isotropic scaling": (scale * x, y),
        "translation": (x + shift, y),
        "target scaling": (x, scale * y),
    }
    assert set(changed) == set(EncodingModelResult.invariances)
    expected = encoding_model(x, y, config=QUICK)
    for one, other in changed.values():
        np.testing.assert_allclose(encoding_model(one, other, config=QUICK).r2, expected.r2, atol=1e-9)
    assert np.all(expected.r2 <= 1)
    assert np.all(np.abs(expected.r) <= 1 + 1e-12)


@settings(max_examples=4)
@given(seed=st.integers(0, 2**31), numbers=st.integers(40, 4000), threads=st.integers(1, 3), grouped=st.booleans())
def test_encoding_model__streamed_equals_whole(seed, numbers, threads, grouped):
    rng = generator(seed, "chunks")
    x, y = planted(rng, 120, 5, 3, 0.5)
    x += 30
    group = rng.integers(0, 9, 120) if grouped else None
    config = EncodingModelConfig(n_permutations=3, n_bootstrap=20)
    with pytest.MonkeyPatch.context() as patch, compute(Backend(threads=threads)):
        patch.setattr(_fold_sums, "BLOCK_NUMBERS", numbers)
        patch.setattr(_ridge, "PREDICTED_ROWS", numbers // 40)
        patch.setattr(_ridge, "CHUNK", max(1, numbers // 30))
        streamed = encoding_model(x, y, group, config=config)

    whole = encoding_model(x, y, group, config=config)

    assert streamed.scalars() == pytest.approx(whole.scalars(), rel=1e-9, abs=1e-10, nan_ok=True)
    np.testing.assert_allclose(streamed.weights, whole.weights, atol=1e-10)


@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_encoding_model__dual_equals_primal(rng, offset):
    """Columns of zeros change nothing, but make x wider than it is long."""
    x, y = planted(rng, 50, 30, 3, 0.5)
    x, wide = x + offset, np.hstack([x, np.zeros((50, 40))]) + offset

    primal, dual = (encoding_model(each, y, config=QUICK) for each in (x, wide))

    np.testing.assert_allclose(dual.r2, primal.r2, atol=1e-8)
    np.testing.assert_allclose(dual.weights[:30], primal.weights, atol=1e-8)
    np.testing.assert_allclose(dual.intercept, primal.intercept, atol=1e-8)
    np.testing.assert_allclose(dual.band_penalty, primal.band_penalty, rtol=1e-8)


def test_encoding_model__same_seed_gives_the_same_bits_for_any_number_of_workers(rng):
    x, y = planted(rng, 100, 4, 3, 0.3)
    config = EncodingModelConfig(n_permutations=10, n_bootstrap=30)
    found = []
    for threads in (1, 3):
        with compute(Backend(threads=threads)):
            found.append(encoding_model(x, y, config=config).scalars())

    np.testing.assert_equal(found[0], found[1])


@pytest.mark.parametrize("order", ["permuted", "turned"])
@pytest.mark.parametrize(("n_groups", "block"), [(0, 1), (0, 7), (3, 4), (25, 1)])
def test_draws__orders_keep_blocks_and_groups(rng, order, n_groups, block):
    group = np.sort(rng.integers(0, n_groups, 100)) if n_groups else None
    draws = Draws(
        n_bootstrap=0, n_permutations=5, n_inference=1, block=block, order=order, level=0.95, seed=0
    )  # fmt: skip

    orders = draws.orders(100, group)

    assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(100), (5, 1)))
    assert np.all(np.any(orders != np.arange(100), axis=1))
    if n_groups == 3:
        assert np.all(group[orders] == group)
    broken = np.mean(np.diff(orders, axis=1) != 1)
    assert broken < (1.1 / block if order == "permuted" and n_groups != 25 else 0.4)


def test_encoding_model__reading_says_what_is_not_predicted(rng):
    x, y = planted(rng, 100, 5, 4, 0.6)

    assert "not distinguishable" in encoding_model(x, rng.normal(size=(100, 4))).reading()
    assert "reordered rows give" in encoding_model(x, y).reading()
    assert "no null was drawn" in encoding_model(x, y, config=QUICK).reading()


def test_encoding_model__constant_targets_have_no_score(rng):
    x, y = planted(rng, 100, 3, 4, 0.5)
    y[:, 1] = 0.1

    found = encoding_model(x, y, config=EncodingModelConfig(n_permutations=5))

    assert np.isnan(found.r2[1])
    assert np.isnan(found.q_values[1])
    assert found.n_constant == 1
    assert found.score.value == pytest.approx(np.mean(found.r2[[0, 2, 3]]))


@pytest.mark.calibration
@pytest.mark.thorough
@pytest.mark.parametrize(("n", "t", "r2"), [(1000, 1, 0.3), (1000, 5, 0.5)])
def test_encoding_model__interval_covers_the_planted_share(n, t, r2):
    """95 ± 3 % of 600 intervals hold what fits of 3 columns to m = 4/5 of the rows reach: R² - (1 - R²) 3 / (m - 4)."""
    reached, found = r2 - (1 - r2) * 3 / (0.8 * n - 4), []
    for seed in range(600):
        rng = generator(seed, "coverage")
        x, weights = rng.normal(size=(n, 3)), rng.normal(size=(3, t))
        signal = x @ (weights / np.linalg.norm(weights, axis=0))
        y = np.sqrt(r2) * signal + np.sqrt(1 - r2) * rng.normal(size=(n, t))
        found.append(encoding_model(x, y, config=EncodingModelConfig(n_permutations=0)).score)

    assert 0.92 < np.mean([each.low <= reached <= each.high for each in found]) < 0.98


@pytest.mark.calibration
@pytest.mark.thorough
@pytest.mark.parametrize("bands", [(), (2, 3)])
def test_encoding_model__p_values_are_uniform_under_the_null(bands):
    """500 unrelated pairs; the KS distance of 500 uniform draws passes 0.087 once in 1000, and 1/100 is the grid's."""
    config = EncodingModelConfig(bands=bands, n_band_scales=3, n_permutations=99, n_bootstrap=0)
    ps, pooled = [], []
    for seed in range(500):
        rng = generator(seed, "null")
        found = encoding_model(rng.normal(size=(60, 5)), rng.gamma(2.0, size=(60, 3)), config=config)
        ps.append(found.score.p_value)
        pooled.append(found.p_values[0])

    assert stats.kstest(ps, "uniform").statistic < 0.097
    assert stats.kstest(pooled, "uniform").statistic < 0.097


# Bad input
def test_encoding_model__raises_on_unequal_samples(rng, without_shape_checks):
    with pytest.raises(ShapeError, match="same samples"):
        encoding_model(rng.normal(size=(30, 2)), rng.normal(size=(29, 2)))


def test_encoding_model__raises_on_a_group_that_does_not_fit(rng, without_shape_checks):
    with pytest.raises(ShapeError, match="group must have one number per sample"):
        encoding_model(rng.normal(size=(30, 2)), rng.normal(size=(30, 2)), np.arange(20))


def test_encoding_model__raises_on_a_ceiling_that_does_not_fit(rng, without_shape_checks):
    with pytest.raises(ShapeError, match="ceiling must have one number per target"):
        encoding_model(rng.normal(size=(30, 2)), rng.normal(size=(30, 2)), ceiling=np.ones(3))


def test_encoding_model__raises_on_too_few_rows_or_groups(rng):
    x = rng.normal(size=(9, 2))

    with pytest.raises(ShapeError, match="at least 2 samples for each of 5 folds"):
        encoding_model(x, x)
    with pytest.raises(ShapeError, match="at least 5 groups"):
        encoding_model(x, x, np.arange(9) // 3)


def test_encoding_model__raises_on_bands_that_do_not_add_up(rng):
    x = rng.normal(size=(30, 4))

    with pytest.raises(ConfigurationError, match="add up to the 4 columns"):
        encoding_model(x, x, config=EncodingModelConfig(bands=(2, 3)))


@pytest.mark.parametrize("name", ["x", "y"])
def test_encoding_model__raises_on_nan(rng, name):
    data = {"x": rng.normal(size=(30, 2)), "y": rng.normal(size=(30, 2))}
    data[name][20, 1] = np.nan

    with pytest.raises(DegenerateInputError, match=f"{name} must be finite"):
        encoding_model(**data)


def test_encoding_model__raises_on_constant_systems(rng):
    x = rng.normal(size=(30, 2))

    with pytest.raises(DegenerateInputError, match="x must vary"):
        encoding_model(np.full((30, 2), 0.1), x)
    with pytest.raises(DegenerateInputError, match="y must vary"):
        encoding_model(x, np.full((30, 2), 0.1))


@pytest.mark.parametrize(
    "options",
    [
        {"n_folds": 2}, {"penalties": (1.0, 0.1)}, {"penalties": (0.0, 1.0)}, {"n_band_scales": -1},
        {"least_ceiling": 0.0}, {"level": 1.0}, {"order": "random"},
    ],
)  # fmt: skip
def test_encoding_model__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))} must be"):
        EncodingModelConfig(**options)


@pytest.mark.parametrize("options", [{"n_bootstrap": -1}, {"n_permutations": -1}, {"block": 0}, {"n_inference": 0}])
def test_encoding_model__raises_on_impossible_draws(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))}.* must be at least"):
        EncodingModelConfig(**options)
