import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import linalg, stats
from sklearn.datasets import load_linnerud

from mechint_core.alignment import CCA, CCAConfig, CCAResult, _step_down, cca
from mechint_core.alignment._canonical import canonical
from mechint_core.alignment._coordinates import aligned_coordinates
from mechint_core.errors import ConfigurationError, DegenerateInputError, MemoryBudgetError, ShapeError
from mechint_core.kernels import joint_covariance as streaming
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

UNTESTED = CCAConfig(n_permutations=0)


def gaussian_pair(seed, n, p, q, correlations, mixed=True):
    """Rows of a joint Gaussian with these population canonical correlations, and the mixings of either system."""
    rng = generator(seed, "gaussian pair")
    x, y = rng.normal(size=(n, p)), rng.normal(size=(n, q))
    for k, r in enumerate(correlations):
        y[:, k] = r * x[:, k] + np.sqrt(1 - r * r) * y[:, k]
    if not mixed:
        return x, y
    return x @ generator(p, "mixing").normal(size=(p, p)), y @ generator(q, "mixing").normal(size=(q, q))


def qr_correlations(x, y):
    """The definition by principal angles (Björck and Golub)."""
    bases = [np.linalg.qr(each - each.mean(axis=0))[0] for each in (x, y)]
    return np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)


@pytest.fixture(scope="module")
def linnerud():
    data = load_linnerud()
    return data.data, data.target


# Known answer
def test_cca__of_linnerud(linnerud):
    """The classic example of SAS CANCORR, to the 6 digits that are printed."""
    found = cca(*linnerud, config=UNTESTED)

    assert found.within_sample == pytest.approx([0.795608, 0.200556, 0.072570], abs=5e-7)
    assert found.wilks == pytest.approx(0.350391, abs=5e-7)


def test_cca__of_an_invertible_copy_is_one(rng):
    x = rng.normal(size=(60, 4))

    found = cca(x, x @ rng.normal(size=(4, 4)) + 3, config=CCAConfig(n_permutations=19))

    assert (found.similarity.value, found.similarity.low) == pytest.approx((1, 1), abs=1e-9)
    assert found.p_values == pytest.approx(np.full(4, 1 / 20))
    assert "4 of them are more than chance" in found.reading()


def test_cca_class__runs_as_the_introduction_has_it():
    x, y = gaussian_pair(0, 600, 40, 30, (0.9,) * 10)

    model = CCA(n_components=20)
    model.fit(x[:400], y[:400])
    score = model.score(x[400:], y[400:])

    each = model.correlations(x[400:], y[400:])
    assert score == pytest.approx(each.mean())
    assert len(each) == 20
    assert np.all(each[:5] > 0.75)
    assert score < model.canonical_correlations.mean()


def test_cca_class__transform_gives_the_variates():
    x, y = gaussian_pair(1, 100, 5, 4, (0.8, 0.4))
    model = CCA(n_components=3).fit(x, y)

    u, v = model.transform(x, y)

    assert u == pytest.approx((x - x.mean(axis=0)) @ model.weights_x, abs=1e-10)
    assert np.cov(u.T) == pytest.approx(np.eye(3), abs=1e-10)
    assert np.diag(np.corrcoef(u.T, v.T)[:3, 3:]) == pytest.approx(model.canonical_correlations, abs=1e-10)


def test_cca__choosing_a_ridge_helps_where_there_are_few_samples():
    x, y = gaussian_pair(2, 60, 40, 30, (0.95, 0.95), mixed=False)

    plain, ridged = (
        cca(x, y, config=CCAConfig(n_components=2, n_permutations=0, penalties=penalties))
        for penalties in ((0.0,), (0.1, 1.0, 10.0))
    )

    assert plain.saturated
    assert "give penalties" in plain.reading()
    assert ridged.penalty in (0.1, 1.0, 10.0)
    assert ridged.similarity.value > plain.similarity.value + 0.1
    assert np.isnan(plain.p_values).all()


def test_cca__held_out_is_near_zero_where_the_sample_shows_much():
    """Noise only, 4 samples per unit: the held-out mean of 5 components has a standard error of about 0.03."""
    x, y = gaussian_pair(3, 200, 30, 20, ())

    found = cca(x, y, config=CCAConfig(n_components=5, n_permutations=99))

    assert found.within_sample.mean() > 0.5
    assert abs(found.similarity.value) < 0.12
    assert found.n_samples_per_unit == 4
    assert np.isnan(found.low).all()
    assert "not distinguishable" in found.reading()


def test_cca__loadings_are_covariances_with_the_variates():
    x, y = gaussian_pair(4, 80, 4, 3, (0.7,))
    found = cca(x, y, config=UNTESTED)

    expected = (x - x.mean(axis=0)).T @ found.variates_x / 79

    assert found.loadings_x == pytest.approx(expected, abs=1e-10)


# Oracle
@pytest.mark.oracle
@pytest.mark.parametrize(("n", "p", "q"), [(20, 3, 3), (200, 6, 4), (150, 5, 30)])
def test_cca__equals_statsmodels(n, p, q):
    from statsmodels.multivariate.cancorr import CanCorr

    x, y = gaussian_pair(5, n, p, q, (0.8, 0.3))
    theirs = CanCorr(y, x)

    found = cca(x, y, config=UNTESTED)

    assert found.within_sample == pytest.approx(theirs.cancorr, abs=1e-10)
    assert found.wilks == pytest.approx(np.prod(1 - theirs.cancorr**2), abs=1e-10)


def test_cca__equals_principal_angles_of_wide_systems():
    """Where fewer components are asked for than there are, the leading ones come from a Gram matrix."""
    x, y = gaussian_pair(6, 300, 60, 50, (0.9, 0.5))

    assert CCA(n_components=5).fit(x, y).canonical_correlations == pytest.approx(qr_correlations(x, y)[:5], abs=1e-11)


@pytest.mark.filterwarnings("ignore")
def test_cca__first_component_is_that_of_scikit_learn():
    """NIPALS stops at 1e-6, and its later components need not be in order."""
    from sklearn.cross_decomposition import CCA as TheirCCA

    x, y = gaussian_pair(7, 100, 4, 3, (0.9, 0.4))
    u, v = TheirCCA(n_components=1, max_iter=5000, tol=1e-12).fit_transform(x, y)

    assert abs(np.corrcoef(u.T, v.T)[0, 1]) == pytest.approx(CCA(1).fit(x, y).canonical_correlations[0], abs=1e-8)


def test_cca__is_as_accurate_as_qr_where_covariances_are_ill_conditioned():
    """A condition of 1e6 in the data is 1e12 in its covariance."""
    x, y = gaussian_pair(8, 200, 5, 4, (0.8, 0.5), mixed=False)
    rotation = np.linalg.qr(generator(0, "turn").normal(size=(5, 5)))[0]
    bad = x * np.logspace(0, -6, 5) @ rotation

    assert CCA().fit(bad, y).canonical_correlations == pytest.approx(qr_correlations(x, y), abs=1e-8)


def test_cca__drops_units_that_repeat_each_other_and_says_so():
    x, y = gaussian_pair(9, 100, 4, 3, (0.8,))
    repeated = np.hstack([x, x[:, :2] - x[:, 2:]])

    found = cca(repeated, y, config=UNTESTED)

    assert (found.rank_x, found.rank_y, found.rank_deficient) == (4, 3, True)
    assert found.within_sample == pytest.approx(cca(x, y, config=UNTESTED).within_sample, abs=1e-10)
    assert found.held_out == pytest.approx(cca(x, y, config=UNTESTED).held_out, abs=1e-8)


def test_cca__with_a_ridge_equals_its_generalised_eigenvalue_problem():
    x, y = gaussian_pair(10, 60, 4, 3, (0.8, 0.3))
    covariance = streaming.joint_covariance(x, y).whole
    a, b = covariance.xx + 2.0 * np.eye(4), covariance.yy + 0.5 * np.eye(3)
    squares = linalg.eigh(covariance.xy @ np.linalg.solve(b, covariance.xy.T), a, eigvals_only=True)[::-1]

    assert canonical(covariance, ridge_x=2.0, ridge_y=0.5).spectrum == pytest.approx(np.sqrt(squares[:3]), abs=1e-10)


def test_cca__linear_kernel_with_little_shrinkage_is_cca():
    x, y = gaussian_pair(11, 80, 5, 4, (0.8, 0.5))

    plain = cca(x, y, config=UNTESTED)
    kernel = cca(x, y, config=CCAConfig(n_permutations=0, kernel="linear", penalties=(1e-12,)))

    assert kernel.within_sample == pytest.approx(plain.within_sample, abs=1e-8)
    assert kernel.held_out == pytest.approx(plain.held_out, abs=1e-7)


def test_cca__linear_kernel_is_ridge_cca_with_more_units_than_samples():
    x, y = gaussian_pair(12, 30, 50, 40, (0.9,))
    streamed = CCA(3, penalty=0.5).fit(x[:, :20], y[:, :20])
    kernel = CCA(3, penalty=0.5, kernel="linear").fit(x[:, :20], y[:, :20])

    assert np.abs(kernel.weights_x) == pytest.approx(np.abs(streamed.weights_x), abs=1e-10)
    assert CCA(3, penalty=0.5).fit(x, y).score(x, y) > 0.9


def test_cca__radial_kernel_predicts_new_samples_as_the_dual_problem_does():
    """Kernel CCA by the definition: (K + nλ)⁻¹ on the centred Gram matrices of the fitted samples (Hardoon et al.)."""
    rng = generator(13, "kernel")
    t = rng.uniform(0, 2 * np.pi, 120)
    x = np.column_stack([np.cos(t), np.sin(t)]) + 0.05 * rng.normal(size=(120, 2))
    y = np.column_stack([np.cos(2 * t), rng.normal(size=120)])

    linear = CCA(1).fit(x[:80], y[:80]).score(x[80:], y[80:])
    radial = CCA(1, kernel="rbf", penalty=1.0).fit(x[:80], y[:80])

    assert abs(linear) < 0.5
    assert radial.score(x[80:], y[80:]) > 0.9
    assert radial.transform(x[:80], y[:80])[0] == pytest.approx(
        (lambda u: u - u.mean(axis=0))(radial._fitted.data.x.rows[:] @ radial._fitted.weights_x), abs=1e-8
    )


def test_step_down__statistics_are_those_of_each_step_by_itself():
    """One Cholesky factor against the determinants of every step."""
    rng = generator(14, "steps")
    for p, q in ((5, 3), (3, 5), (4, 4)):
        x, y = (np.linalg.qr(rng.normal(size=(30, size)))[0] for size in (p, q))
        order = rng.permutation(30)
        core = x.T @ y[order]

        steps = [-np.linalg.slogdet(np.eye(q - k) - core[k:, k:].T @ core[k:, k:])[1] for k in range(min(p, q))]

        assert _step_down._Wilks.of(x, y)(order) == pytest.approx(steps, abs=1e-10)


# Law
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_cca__has_the_invariances_it_declares(seed, scale, shift):
    rng = generator(seed, "invariance")
    x, y = rng.normal(size=(40, 4)), rng.normal(size=(40, 3))
    config = CCAConfig(n_permutations=0)
    expected = cca(x, y, config=config)
    changed = {
        "invertible linear": y @ (np.eye(3) + 0.4 * np.linalg.qr(rng.normal(size=(3, 3)))[0]),
        "orthogonal": y @ np.linalg.qr(rng.normal(size=(3, 3)))[0],
        "isotropic scaling": scale * y,
        "translation": y + shift,
    }
    assert set(changed) == set(CCAResult.invariances)
    for other in changed.values():
        found = cca(x, other, config=config)
        assert found.within_sample == pytest.approx(expected.within_sample, abs=1e-9)
        assert found.held_out == pytest.approx(expected.held_out, abs=1e-7)
        turned = cca(other, x, config=config)
        assert turned.within_sample == pytest.approx(expected.within_sample, abs=1e-9)
    assert np.all(np.diff(expected.within_sample) <= 1e-12)
    assert np.all((expected.within_sample >= 0) & (expected.within_sample <= 1))


@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), block_bytes=st.integers(64, 3000), threads=st.integers(1, 3))
def test_cca__streamed_equals_whole(seed, block_bytes, threads):
    x, y = gaussian_pair(seed, 60, 4, 3, (0.7,))
    config = CCAConfig(n_permutations=19)
    whole = cca(x + 30, y, config=config)
    with pytest.MonkeyPatch.context() as patch, compute(Backend(threads=threads)):
        patch.setattr("mechint_core.parallel.BLOCK_BYTES", block_bytes)
        streamed = cca(x + 30, y, config=config)

    assert streamed.scalars() == pytest.approx(whole.scalars(), rel=1e-8, abs=1e-10)
    assert streamed.within_sample == pytest.approx(whole.within_sample, abs=1e-10)
    assert streamed.p_values == pytest.approx(whole.p_values)


def test_cca__same_seed_gives_the_same_bits_for_any_number_of_workers():
    x, y = gaussian_pair(15, 90, 4, 3, (0.5,))
    found = []
    for threads in (1, 3):
        with compute(Backend(threads=threads)):
            found.append(cca(x, y, config=CCAConfig(penalties=(0.0, 0.1), n_permutations=50)).scalars())

    assert found[0] == found[1]


def test_cca__p_values_never_fall():
    x, y = gaussian_pair(16, 80, 6, 5, (0.8, 0.5))

    p_values = cca(x, y, config=CCAConfig(n_permutations=99)).p_values

    assert np.all(np.diff(p_values) >= 0)
    assert np.all((p_values >= 0.01) & (p_values <= 1))


def test_cca__test_on_some_samples_needs_no_more_than_those():
    x, y = gaussian_pair(17, 400, 4, 3, (0.6,))

    found = cca(x, y, config=CCAConfig(n_permutations=99, n_inference=100))

    assert (found.n_inference, len(found.variates_x), found.shown.max() < 400) == (100, 100, True)
    assert found.n_significant == 1


def without_test(**options):
    return CCAConfig(n_components=3, n_permutations=0, **options)


@pytest.mark.calibration
@pytest.mark.parametrize(
    ("n", "p", "q", "penalty"), [(40, 4, 3, 0.0), (40, 3, 6, 0.0), (40, 6, 3, 0.1), (20, 30, 10, 1.0)]
)
def test_cca__p_values_are_uniform_under_the_null(n, p, q, penalty):
    """500 unrelated pairs; KS of 500 uniform draws passes 0.087 once in 1000. Any false discovery: 5 ± 3 %."""
    config = CCAConfig(n_permutations=199, penalties=(penalty,), n_folds=3)
    found = np.array([cca(*gaussian_pair(s, n, p, q, ()), config=config).p_values for s in range(500)])

    assert stats.kstest(found[:, 0], "uniform").statistic < 0.087
    assert np.mean(found.min(axis=1) <= 0.05) < 0.08


@pytest.mark.calibration
@pytest.mark.parametrize(("n", "p", "q", "penalty"), [(40, 6, 3, 0.0), (40, 3, 6, 0.0), (40, 6, 3, 0.1)])
def test_cca__step_down_controls_false_discoveries_beside_a_real_one(n, p, q, penalty):
    """500 pairs of systems that share one direction: the second component is found in 5 % of them, within 3 %."""
    config = CCAConfig(n_permutations=199, penalties=(penalty,), n_folds=3)
    found = np.array([cca(*gaussian_pair(s, n, p, q, (0.95,)), config=config).p_values for s in range(500)])

    assert np.mean(found[:, 0] <= 0.05) > 0.95
    assert np.mean(found[:, 1] <= 0.05) < 0.08


@pytest.mark.calibration
@pytest.mark.parametrize("n", [100, 300])
def test_cca__intervals_cover_the_population(n):
    """95 ± 3 % of 500 intervals, or more, of each canonical correlation; the binomial standard error is 1 %."""
    population = np.array([0.8, 0.5, 0.3])
    found = [cca(*gaussian_pair(s, n, 5, 4, population), config=without_test()) for s in range(500)]

    covered = np.mean([(each.low <= population) & (population <= each.high) for each in found], axis=0)

    assert np.all(covered > 0.92)


@pytest.mark.calibration
def test_cca__interval_covers_the_correlation_that_such_fits_reach():
    """The target is what weights found on 4/5 of the samples reach in the population, on average over samples."""
    population, n = np.array([0.8, 0.5, 0.3]), 150
    cross = np.zeros((5, 4))
    cross[range(3), range(3)] = population
    reached, found = [], []
    for seed in range(500):
        x, y = gaussian_pair(seed, n, 5, 4, population, mixed=False)
        found.append(cca(x, y, config=without_test()).similarity)
        model = CCA(3).fit(x[30:], y[30:])
        a, b = (each / np.linalg.norm(each, axis=0) for each in (model.weights_x, model.weights_y))
        reached.append(np.einsum("ak,ab,bk->k", a, cross, b).mean())
    target = np.mean(reached)

    assert np.mean([each.low <= target <= each.high for each in found]) > 0.92


# Bad input
def test_cca__raises_on_too_few_samples(rng):
    with pytest.raises(ShapeError, match=r"at least 4 samples for each of 5 folds. Got shape \(19, 2\)"):
        cca(rng.normal(size=(19, 2)), rng.normal(size=(19, 2)))


def test_cca__raises_on_unequal_samples(rng, without_shape_checks):
    with pytest.raises(ShapeError, match="same samples"):
        cca(rng.normal(size=(30, 2)), rng.normal(size=(29, 2)))


@pytest.mark.parametrize("n_units", [3, 50], ids=["streamed", "whole"])
def test_cca__raises_on_nan(rng, n_units):
    x, y = rng.normal(size=(30, n_units)), rng.normal(size=(30, 2))
    x[3, 1] = np.nan

    with pytest.raises(DegenerateInputError, match="x must be finite"):
        cca(x, y)


@pytest.mark.parametrize("n_units", [3, 50], ids=["streamed", "whole"])
def test_cca__raises_on_a_constant_system(rng, n_units):
    with pytest.raises(DegenerateInputError, match="y must vary"):
        cca(rng.normal(size=(30, 2)), np.full((30, n_units), 0.1))


@pytest.mark.parametrize("options", [{"kernel": "rbf", "penalties": (1.0,)}, {"kernel": "linear"}])
def test_cca__raises_where_rows_do_not_fit_in_memory(rng, options):
    with pytest.raises(MemoryBudgetError, match="x must fit in memory_budget"):
        cca(rng.normal(size=(30, 2)), rng.normal(size=(30, 2)), config=CCAConfig(memory_budget=1000, **options))


def test_cca_class__raises_before_it_is_fitted_and_on_other_units(rng):
    x = rng.normal(size=(30, 3))

    with pytest.raises(ConfigurationError, match="must be fitted"):
        CCA().score(x, x)
    with pytest.raises(ShapeError, match=r"x must be \(sample, unit\) with the 3 units"):
        CCA().fit(x, x).score(x[:, :2], x)


@pytest.mark.parametrize(
    "options",
    [
        {"n_components": 0},
        {"penalties": ()},
        {"penalties": (-1.0,)},
        {"kernel": "cubic"},
        {"penalties": (0.0,), "kernel": "rbf"},
        {"kernel_width": 0.0},
        {"n_folds": 2},
        {"n_permutations": -1},
        {"level": 1.0},
    ],
)
def test_cca__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))} must be"):
        CCAConfig(**options)


def test_aligned_coordinates__stream_what_is_well_conditioned(rng):
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(30, 40))

    data = aligned_coordinates(x, y, memory_budget=2**20)

    assert data.x.basis is None
    assert data.y.basis is not None
    assert data.y.rank == 29
