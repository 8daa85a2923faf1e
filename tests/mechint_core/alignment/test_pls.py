import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats
from sklearn.cross_decomposition import PLSSVD, PLSCanonical, PLSRegression

from mechint_core.alignment import PLS, PLSConfig, PLSResult, pls
from mechint_core.errors import ConfigurationError, DegenerateInputError, MemoryBudgetError, ShapeError
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

UNTESTED = PLSConfig(n_permutations=0)
every_mode = pytest.mark.parametrize("mode", ["svd", "canonical", "regression"])


def related(seed, n, p, q, correlations):
    """Rows of a joint Gaussian with these canonical correlations; the shared directions vary three times as far."""
    rng = generator(seed, "related")
    x, y = rng.normal(size=(n, p)), rng.normal(size=(n, q))
    for k, r in enumerate(correlations):
        y[:, k] = r * x[:, k] + np.sqrt(1 - r * r) * y[:, k]
    scale_x, scale_y = (np.r_[np.full(min(2, size), 3.0), np.ones(max(size - 2, 0))] for size in (p, q))
    return x * scale_x, y * scale_y


def up_to_sign(ours, theirs):
    return ours * np.sign(np.sum(ours * theirs, axis=0))


@pytest.fixture(params=[(100, 7, 4), (30, 50, 20)], ids=["streamed", "whole"])
def pair(request):
    n, p, q = request.param
    rng = generator(0, "pls pair")
    x = rng.normal(size=(n, p)) @ rng.normal(size=(p, p)) / np.sqrt(p)
    return x + 3, x[:, :q] + rng.normal(size=(n, q))


# Known answer
@every_mode
def test_pls__predicts_a_rotated_and_scaled_copy_without_error(rng, mode):
    x = rng.normal(size=(60, 3)) * [3, 2, 1]
    y = 2 * x @ np.linalg.qr(rng.normal(size=(3, 3)))[0] - 5

    found = pls(x, y, config=PLSConfig(mode=mode, n_permutations=19))

    assert found.r_squared.value == pytest.approx(1, abs=1e-10)
    assert found.similarity.value == pytest.approx(1, abs=1e-2)
    assert found.p_values[0] == pytest.approx(1 / 20)
    model = PLS(3, mode).fit(x[:40], y[:40])
    assert model.predict(x[40:]) == pytest.approx(y[40:], abs=1e-8)


def test_pls__covariances_are_the_singular_values_of_the_cross_covariance(pair):
    x, y = pair
    n = len(x)
    cross = (x - x.mean(axis=0)).T @ (y - y.mean(axis=0)) / (n - 1)

    found = pls(x, y, config=PLSConfig(n_components=4, n_permutations=0))

    assert found.covariances == pytest.approx(np.linalg.svd(cross, compute_uv=False)[:4], abs=1e-10)


@every_mode
def test_pls__held_out_is_near_zero_for_unrelated_systems(mode):
    x, y = related(1, 200, 30, 20, ())

    found = pls(x, y, config=PLSConfig(mode=mode, n_components=4, n_permutations=99))

    assert found.within_sample.mean() > 0.2
    assert abs(found.similarity.value) < 0.12
    assert found.r_squared.value < 0.02
    assert "not distinguishable" in found.reading()


def test_pls__takes_a_single_target():
    x, y = related(2, 80, 6, 1, (0.8,))

    found = pls(x, y, config=PLSConfig(mode="regression", n_components=3, n_permutations=19))

    assert (found.n_components, found.n_significant) == (3, 1)
    assert 0.4 < found.r_squared.value < 0.8
    assert "the first is more than chance" in found.reading()


# Oracle
def test_pls_svd__equals_scikit_learn(pair):
    x, y = pair
    theirs = PLSSVD(3, scale=False).fit(x, y)
    ours = PLS(3, "svd").fit(x, y)

    assert up_to_sign(ours.weights_x, theirs.x_weights_) == pytest.approx(theirs.x_weights_, abs=1e-8)
    assert up_to_sign(ours.transform(x, y)[1], theirs.transform(x, y)[1]) == pytest.approx(
        theirs.transform(x, y)[1], abs=1e-8
    )


def test_pls_canonical__equals_scikit_learn(pair):
    x, y = pair
    theirs = PLSCanonical(3, scale=False, algorithm="svd").fit(x, y)
    ours = PLS(3, "canonical").fit(x, y)

    assert up_to_sign(ours.weights_x, theirs.x_rotations_) == pytest.approx(theirs.x_rotations_, abs=1e-8)
    assert up_to_sign(ours.weights_y, theirs.y_rotations_) == pytest.approx(theirs.y_rotations_, abs=1e-8)


@pytest.mark.parametrize("n_targets", [1, 4])
def test_pls_regression__equals_scikit_learn(pair, n_targets):
    """NIPALS stops where weights move by less than the root of `tol`."""
    x, y = pair[0], pair[1][:, :n_targets]
    theirs = PLSRegression(3, scale=False, tol=1e-28, max_iter=20000).fit(x, y)
    ours = PLS(3, "regression").fit(x, y)

    assert up_to_sign(ours.weights_x, theirs.x_rotations_) == pytest.approx(theirs.x_rotations_, abs=1e-8)
    assert ours.predict(x) == pytest.approx(theirs.predict(x).reshape(ours.predict(x).shape), abs=1e-8)


def test_pls__held_out_values_are_those_of_fits_by_scikit_learn():
    x, y = related(3, 60, 6, 4, (0.8, 0.6))
    found = pls(x, y, config=PLSConfig(mode="regression", n_components=2, n_permutations=0))
    error = total = 0.0
    correlations = []
    for held in np.array_split(np.arange(60), 5):
        kept = np.delete(np.arange(60), held)
        model = PLSRegression(2, scale=False, tol=1e-28, max_iter=20000).fit(x[kept], y[kept])
        error += np.sum((y[held] - model.predict(x[held])) ** 2)
        total += np.sum((y[held] - y[kept].mean(axis=0)) ** 2)
        scores = (x[held] - x[kept].mean(axis=0)) @ model.x_rotations_
        targets = y[held] @ model.y_weights_
        correlations.append([np.corrcoef(scores[:, k], targets[:, k])[0, 1] for k in range(2)])

    assert found.r_squared.value == pytest.approx(1 - error / total, abs=1e-8)
    assert found.held_out == pytest.approx(np.mean(correlations, axis=0), abs=1e-8)


# Law
@every_mode
@settings(max_examples=4)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_pls__has_the_invariances_it_declares(mode, seed, scale, shift):
    rng = generator(seed, "invariance")
    x, y = related(seed, 40, 4, 3, (0.9, 0.5))
    config = PLSConfig(mode=mode, n_components=1, n_permutations=0)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    changed = {"orthogonal": x @ turn, "isotropic scaling": scale * x, "translation": x + shift}
    assert set(changed) == set(PLSResult.invariances)
    expected = pls(x, y, config=config)
    for other in changed.values():
        found = pls(other, y, config=config)
        assert found.held_out == pytest.approx(expected.held_out, abs=1e-7)
        assert found.r_squared.value == pytest.approx(expected.r_squared.value, abs=1e-7)
    assert expected.r_squared.value <= 1


@every_mode
@settings(max_examples=4)
@given(seed=st.integers(0, 2**31), block_bytes=st.integers(64, 3000), threads=st.integers(1, 3))
def test_pls__streamed_equals_whole(mode, seed, block_bytes, threads):
    x, y = related(seed, 60, 4, 3, (0.9, 0.6))
    config = PLSConfig(mode=mode, n_components=2, n_permutations=9)
    whole = pls(x + 30, y, config=config)
    with pytest.MonkeyPatch.context() as patch, compute(Backend(threads=threads)):
        patch.setattr("mechint_core.parallel.BLOCK_BYTES", block_bytes)
        streamed = pls(x + 30, y, config=config)

    assert streamed.scalars() == pytest.approx(whole.scalars(), rel=1e-7, abs=1e-9)
    assert streamed.covariances == pytest.approx(whole.covariances, abs=1e-10)


@every_mode
def test_pls__same_seed_gives_the_same_bits_for_any_number_of_workers(mode):
    x, y = related(4, 90, 4, 3, (0.5,))
    found = []
    for threads in (1, 3):
        with compute(Backend(threads=threads)):
            found.append(pls(x, y, config=PLSConfig(mode=mode, n_permutations=30)).scalars())

    assert found[0] == found[1]


@every_mode
def test_pls__p_values_never_fall(mode):
    x, y = related(5, 80, 6, 5, (0.8, 0.5))

    p_values = pls(x, y, config=PLSConfig(mode=mode, n_permutations=99)).p_values

    assert np.all(np.diff(p_values[~np.isnan(p_values)]) >= 0)
    assert np.isnan(p_values).sum() == (len(p_values) - 1 if mode == "regression" else 0)


@pytest.mark.calibration
@every_mode
def test_pls__p_values_are_uniform_under_the_null(mode):
    """500 unrelated pairs; KS of 500 uniform draws passes 0.087 once in 1000. Any false discovery: 5 ± 3 %."""
    config = PLSConfig(mode=mode, n_permutations=199, n_folds=3)
    found = np.array([pls(*related(seed, 40, 5, 4, ()), config=config).p_values[0] for seed in range(500)])

    assert stats.kstest(found, "uniform").statistic < 0.087
    assert np.mean(found <= 0.05) < 0.08


@pytest.mark.calibration
@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["svd", "canonical"])
def test_pls__step_down_controls_false_discoveries_beside_a_real_one(mode):
    """500 pairs of systems that share one direction: the second component is found in at most 5 + 3 % of them."""
    config = PLSConfig(mode=mode, n_permutations=199, n_folds=3)
    found = np.array([pls(*related(seed, 40, 5, 4, (0.95,)), config=config).p_values[:2] for seed in range(500)])

    assert np.mean(found[:, 0] <= 0.05) > 0.95
    assert np.mean(found[:, 1] <= 0.05) < 0.08


# Bad input
def test_pls__raises_on_too_few_samples(rng):
    with pytest.raises(ShapeError, match=r"at least 4 samples for each of 5 folds. Got shape \(19, 2\)"):
        pls(rng.normal(size=(19, 2)), rng.normal(size=(19, 2)))


def test_pls__raises_on_unequal_samples(rng, without_shape_checks):
    with pytest.raises(ShapeError, match="same samples"):
        pls(rng.normal(size=(30, 2)), rng.normal(size=(29, 2)))


def test_pls__raises_on_nan_and_on_a_constant_system(rng):
    x = rng.normal(size=(30, 2))

    with pytest.raises(DegenerateInputError, match="y must be finite"):
        pls(x, np.where(x == x[2, 1], np.nan, x))
    with pytest.raises(DegenerateInputError, match="x must vary"):
        pls(np.full((30, 2), 0.1), x)


def test_pls__raises_where_nothing_covaries():
    x = np.tile([[1.0], [1.0], [-1.0], [-1.0]], (8, 1))

    with pytest.raises(DegenerateInputError, match="must covary"):
        pls(x, np.tile([[1.0], [-1.0], [1.0], [-1.0]], (8, 1)))


def test_pls__raises_where_rows_do_not_fit_in_memory(rng):
    with pytest.raises(MemoryBudgetError, match="x must fit in memory_budget"):
        pls(rng.normal(size=(30, 40)), rng.normal(size=(30, 2)), config=PLSConfig(memory_budget=1000))


def test_pls_class__raises_before_it_is_fitted(rng):
    with pytest.raises(ConfigurationError, match="must be fitted"):
        PLS().predict(rng.normal(size=(5, 2)))


@pytest.mark.parametrize(
    "options", [{"mode": "sparse"}, {"n_components": 0}, {"n_folds": 2}, {"n_permutations": -1}, {"level": 1.0}]
)
def test_pls__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))} must be"):
        PLSConfig(**options)
