import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats
from scipy.spatial.distance import pdist

from mechint_core.alignment._comparisons import compare
from mechint_core.alignment._distances import square_form
from mechint_core.alignment._drawn_products import drawn_products
from mechint_core.alignment._relabelled import expected_means, relabelled_means, unit_squares
from mechint_core.alignment._subjects import ceilings, corrected_variance, subject_ceilings
from mechint_core.alignment.bootstrap import BootstrapConfig, bootstrap
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

DRAWN = ("pearson", "cosine", "spearman", "rho-a", "whitened cosine", "whitened correlation")
THEIRS = dict(zip(DRAWN, ("corr", "cosine", "spearman", "rho-a", "cosine_cov", "corr_cov"), strict=True))
comparisons = pytest.mark.parametrize("comparison", DRAWN)


def recorded(n=14, n_subjects=4, n_models=3, seed=0):
    """Models, the first the best, and subjects that share its geometry."""
    rng = generator(seed, "recorded")
    shared = rng.normal(size=(n, 4))
    models = [pdist(shared + k * rng.normal(size=shared.shape), "sqeuclidean") for k in range(n_models)]
    data = [pdist(shared + rng.normal(size=shared.shape), "sqeuclidean") for _ in range(n_subjects)]
    return np.array(models), np.array(data)


def without(rdms, row, condition):
    """Take one condition from one matrix."""
    i, j = np.triu_indices(square_form(rdms[0]).shape[0], 1)
    missing = rdms.copy()
    missing[row, (i == condition) | (j == condition)] = np.nan
    return missing


def drawn_rdm(rdm, count):
    """Repeat the drawn conditions; pairs of copies are NaN."""
    drawn = np.repeat(np.arange(len(count)), count)
    i, j = np.triu_indices(len(drawn), 1)
    return np.where(drawn[i] == drawn[j], np.nan, square_form(rdm)[np.ix_(drawn, drawn)][i, j])


def few(**options):
    return BootstrapConfig(n_bootstrap=60, n_permutations=60, **options)


# Known answer
@comparisons
def test_bootstrap__of_a_model_that_all_subjects_follow_is_one(comparison):
    model = recorded()[0][0]
    found = bootstrap(
        np.stack([model, model[::-1]]), np.stack([model, 2 * model, model]), config=few(comparison=comparison)
    )

    assert found.best_model == 0
    assert (found.best.value, found.lower_ceiling.value, found.upper_ceiling.value) == pytest.approx((1, 1, 1))
    assert found.best.p_value < 0.05


def test_corrected_variance__of_an_additive_statistic_is_exact():
    """mean of row effect + column effect + noise: the naive bootstrap counts the noise three times."""
    n, s, row, column, noise = 40, 12, 2.0, 3.0, 200.0  # so much noise that no bound is met
    shrink_n, shrink_s = (n - 1) / n, (s - 1) / s
    conditions = shrink_n * (row / n + noise / (n * s))
    subjects = shrink_s * (column / s + noise / (n * s))
    both = conditions + subjects + shrink_n * shrink_s * noise / (n * s)

    found = corrected_variance(*(np.array([each]) for each in (conditions, subjects, both)), n, s)

    assert found[0] == pytest.approx(row / n + column / s + noise / (n * s))


def test_expected_means__are_the_mean_over_all_relabellings():
    from itertools import permutations

    models, data = recorded(n=6)
    every = np.array(list(permutations(range(6))))
    for comparison in DRAWN:
        squares, mean = unit_squares(models, comparison), unit_squares(data, comparison).mean(axis=0)

        assert expected_means(squares, mean) == pytest.approx(
            relabelled_means(squares, mean, every).mean(axis=0), abs=1e-12
        )


# Oracle
@pytest.mark.parametrize("missing", [False, True], ids=["whole", "missing"])
@comparisons
def test_drawn_products__equal_the_comparison_of_drawn_matrices(comparison, missing):
    models, data = recorded()
    rdms = np.concatenate([models, without(data, 1, 3) if missing else data])
    counts = generator(0, "draws").multinomial(14, np.full(14, 1 / 14), size=8).T
    left, right = np.array([0, 1, 2, 3, 4]), np.array([3, 4, 5, 5, 4])
    found = drawn_products(rdms, left, right, comparison, counts=counts).agreement()
    for draw, count in enumerate(counts.T):
        drawn = np.stack([drawn_rdm(each, count) for each in rdms])

        assert found[draw] == pytest.approx(np.diag(compare(drawn[left], drawn[right], comparison)), abs=1e-10)


@pytest.mark.oracle
@comparisons
def test_drawn_products__equal_rsatoolbox_in_the_same_draws(comparison):
    from rsatoolbox.rdm import RDMs, compare as their_compare

    models, data = recorded()
    counts = generator(1, "draws").multinomial(14, np.full(14, 1 / 14), size=5).T
    found = drawn_products(
        np.concatenate([models, data]), np.array([0, 1, 2]), np.array([3, 4, 5]), comparison, counts=counts
    ).agreement()
    for draw, count in enumerate(counts.T):
        expected = [
            their_compare(RDMs(drawn_rdm(a, count)[None]), RDMs(drawn_rdm(b, count)[None]), method=THEIRS[comparison])
            for a, b in zip(models, data, strict=False)
        ]

        assert found[draw] == pytest.approx(np.ravel(expected), abs=1e-10)


@pytest.mark.oracle
@comparisons
def test_bootstrap__equals_eval_fixed_of_rsatoolbox(comparison):
    from rsatoolbox.inference import eval_fixed
    from rsatoolbox.model import ModelFixed
    from rsatoolbox.rdm import RDMs

    models, data = recorded()
    fixed = [ModelFixed(str(m), RDMs(each[None])) for m, each in enumerate(models)]
    expected = eval_fixed(fixed, RDMs(data), method=THEIRS[comparison])
    found = bootstrap(models, data, config=few(comparison=comparison))

    assert found.agreement == pytest.approx(expected.evaluations[0], abs=1e-10)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")  # the peer's own
def test_corrected_variance__equals_rsatoolbox():
    from rsatoolbox.util.inference_util import extract_variances

    rng = generator(0, "variance")
    draws = [rng.normal(size=(50, 3)) @ rng.normal(size=(3, 3)) for _ in range(3)]
    ours = corrected_variance(*(each.var(axis=0, ddof=1) for each in (draws[2], draws[1], draws[0])), 20, 7)
    theirs = extract_variances(np.array([np.cov(each.T) for each in draws]), nc_included=False, n_rdm=7, n_pattern=20)[
        0
    ]
    first, second = 20 / 19 * draws[2].var(axis=0, ddof=1), 7 / 6 * draws[1].var(axis=0, ddof=1)

    # theirs caps at the variance of both even where that is below the variance of one; ours never goes below one
    assert ours == pytest.approx(np.maximum(theirs, np.maximum(first, second)), abs=1e-12)


# Law
@comparisons
@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
def test_bootstrap__ignores_scale_and_order(comparison, seed, scale):
    models, data = recorded(seed=seed)
    rng = generator(seed, "order")
    order, subjects = rng.permutation(14), rng.permutation(len(data))
    upper = np.triu_indices(14, 1)
    moved = [np.array([square_form(each)[np.ix_(order, order)][upper] for each in rdms]) for rdms in (models, data)]
    config = BootstrapConfig(comparison=comparison, n_bootstrap=2, n_permutations=2)
    first, second = (
        bootstrap(models, data, config=config),
        bootstrap(scale * moved[0], moved[1][subjects], config=config),
    )

    assert np.abs(first.value).max() <= 1 + 1e-12
    assert second.value == pytest.approx(first.value, abs=1e-9)
    assert second.lower_ceiling.value == pytest.approx(first.lower_ceiling.value, abs=1e-9)
    assert second.upper_ceiling.value == pytest.approx(first.upper_ceiling.value, abs=1e-9)


@pytest.mark.parametrize("comparison", ["pearson", "spearman"])
def test_bootstrap__same_seed_gives_the_same_bits_for_any_worker_count(comparison):
    models, data = recorded(n=30)
    found = []
    for threads in (1, 2, 4):
        with compute(Backend(threads=threads)):
            answer = bootstrap(models, data, config=BootstrapConfig(comparison=comparison, n_bootstrap=600))
            found.append((answer.scalars(), answer.low.tolist()))

    assert found[0] == found[1] == found[2]


def test_bootstrap__runs_of_pairs_do_not_change_the_answer(monkeypatch):
    from mechint_core.alignment import _drawn_products

    models, data = recorded(n=30)
    whole = bootstrap(models, data, config=few())
    monkeypatch.setattr(_drawn_products, "PAIRS_AT_ONCE", 40)
    monkeypatch.setattr(_drawn_products, "DRAWS_AT_ONCE", 7)

    assert bootstrap(models, data, config=few()).scalars() == pytest.approx(whole.scalars(), abs=1e-10)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), n_subjects=st.integers(2, 6))
def test_ceilings__of_subjects_counted_twice_are_those_of_each_once(seed, n_subjects):
    rng = generator(seed, "ceilings")
    rows = rng.normal(size=(1, n_subjects, 9)) + 1
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    between, once = rows @ rows.transpose(0, 2, 1), np.ones((1, n_subjects))
    lower, upper = subject_ceilings(between, once)[0]
    pools = [np.delete(rows[0], s, axis=0).sum(axis=0) for s in range(n_subjects)]
    everyone = rows[0].sum(axis=0)

    assert lower == pytest.approx([r @ p / np.linalg.norm(p) for r, p in zip(rows[0], pools, strict=True)], abs=1e-9)
    assert upper == pytest.approx(rows[0] @ everyone / np.linalg.norm(everyone), abs=1e-9)
    assert ceilings(between, once)[0, 0] <= ceilings(between, once)[0, 1]


@pytest.mark.parametrize("resample", ["conditions", "subjects", "both"])
@pytest.mark.parametrize("adjust", ["fdr", "holm", "max"])
def test_bootstrap__p_values_are_never_zero_and_adjusting_raises_them(resample, adjust):
    models, data = recorded(n=30, n_subjects=6, n_models=4)
    found = bootstrap(models, data, config=few(resample=resample, adjust=adjust))
    for raw, more in (
        (found.p_value, found.p_value_adjusted),
        (found.p_above_null, found.p_above_null_adjusted),
        (found.p_below_ceiling, found.p_below_ceiling_adjusted),
    ):
        assert np.all(raw > 0)
        assert np.all(more[np.argsort(raw)[:1]] >= raw.min())
    assert np.all(found.low < found.value)
    assert np.all(found.value < found.high)


@pytest.mark.parametrize("comparison", ["tau-a", "bures"])
def test_bootstrap__makes_draws_one_by_one_where_there_is_no_product(comparison):
    models, data = recorded(n=10)
    found = bootstrap(models, data, config=BootstrapConfig(comparison=comparison, n_bootstrap=20, n_permutations=20))

    assert found.agreement == pytest.approx(compare(models, data, comparison))
    assert found.best.low < found.best.value < found.best.high


def test_bootstrap__leaves_missing_conditions_out():
    models, data = recorded()
    missing = without(data, 1, 3)
    held = np.isfinite(missing[1])
    found = bootstrap(models, missing, config=few())

    assert found.n_missing == 13
    assert found.agreement[0, 1] == pytest.approx(stats.pearsonr(models[0][held], data[1][held])[0], abs=1e-12)
    assert found.agreement[0, 0] == pytest.approx(stats.pearsonr(models[0], data[0])[0], abs=1e-12)


def test_bootstrap__of_one_subject_has_no_ceiling():
    models, data = recorded()
    found = bootstrap(models, data[:1], config=few(resample="conditions"))

    assert np.isnan(found.lower_ceiling.value)
    assert np.isnan(found.p_below_ceiling).all()
    assert "One subject says nothing" in found.reading()


def test_bootstrap__reading_says_when_models_are_unrelated(rng):
    models, data = recorded(n=30, n_subjects=6)
    assert "lower noise ceiling" in bootstrap(models, data).reading()
    assert "relabelled conditions give as well" in bootstrap(rng.uniform(size=(2, 435)), data).reading()


@pytest.mark.calibration
@pytest.mark.parametrize("comparison", ["pearson", "rho-a", "whitened cosine"])
def test_bootstrap__p_values_are_uniform_under_the_null(comparison):
    """500 unrelated models; the KS distance of 500 uniform draws passes 0.087 once in 1000."""
    rng = generator(3, "null")
    config = BootstrapConfig(comparison=comparison, n_bootstrap=2, n_permutations=199)
    found = []
    for seed in range(500):
        model = pdist(rng.normal(size=(16, 4)), "sqeuclidean")[None]
        found.append(bootstrap(model, recorded(n=16, seed=seed)[1], config=config).p_value[0])

    assert stats.kstest(found, "uniform").statistic < 0.087


def world(rng, n, weight, shared=None):
    """A model, and subjects that follow it with their own weight: similarity w² / (w² + 1) in the population."""
    shared = rng.normal(size=(n, 10)) if shared is None else shared
    data = [pdist(w * shared + rng.normal(size=shared.shape), "sqeuclidean") for w in weight]
    return pdist(shared, "sqeuclidean")[None], np.array(data)


@pytest.mark.calibration
@pytest.mark.parametrize("resample", ["conditions", "subjects", "both"])
def test_bootstrap__interval_covers_the_population_value(resample):
    """95 ± 3 % of 600 intervals, whose binomial standard error is 0.9 %."""
    rng = generator(11, "coverage", resample)
    n, n_subjects = 30, 10
    weights, shared = rng.uniform(0.5, 2, size=n_subjects), rng.normal(size=(n, 10))
    draw = {
        "conditions": lambda: world(rng, n, weights),
        "subjects": lambda: world(rng, n, rng.uniform(0.5, 2, size=n_subjects), shared),
        "both": lambda: world(rng, n, rng.uniform(0.5, 2, size=n_subjects)),
    }[resample]
    every = {"conditions": weights, "subjects": None, "both": np.linspace(0.5, 2, 4001)}[resample]
    if every is None:
        model, many = world(rng, n, rng.uniform(0.5, 2, size=20_000), shared)
        truth = float(compare(model, many, "pearson").mean())
    else:
        truth = float(np.mean(every**2 / (every**2 + 1)))
    config = BootstrapConfig(resample=resample, n_bootstrap=400, n_permutations=0)
    found = [bootstrap(*draw(), config=config) for _ in range(600)]

    assert 0.92 <= np.mean([each.low[0] <= truth <= each.high[0] for each in found]) <= 0.98


# Bad input
def test_bootstrap__raises_on_three_conditions():
    with pytest.raises(ShapeError, match="n >= 4 conditions"):
        bootstrap(np.ones((1, 3)), np.ones((2, 3)))


def test_bootstrap__raises_on_other_conditions(without_shape_checks):
    models, data = recorded()
    with pytest.raises(ShapeError, match="same conditions"):
        bootstrap(models, recorded(n=12)[1])
    with pytest.raises(ShapeError, match=r"must be \(rdm, pair\)"):
        bootstrap(models[0], data)


def test_bootstrap__raises_on_one_subject_to_draw_from():
    models, data = recorded()
    with pytest.raises(DegenerateInputError, match="resample='conditions'"):
        bootstrap(models, data[:1])


@pytest.mark.parametrize(
    ("value", "match"), [(1.0, "constant row 1"), (np.inf, "infinity"), (np.nan, "at least 3 pairs")]
)
def test_bootstrap__raises_on_a_row_without_an_agreement(value, match):
    models, data = recorded()
    data[1] = value
    with pytest.raises(DegenerateInputError, match=match):
        bootstrap(models, data)


def test_bootstrap__raises_on_single_missing_pairs_where_it_whitens():
    models, data = recorded()
    data[1, 5] = np.nan
    with pytest.raises(DegenerateInputError, match="whole conditions"):
        bootstrap(models, data, config=few(comparison="whitened cosine"))


@pytest.mark.parametrize("options", [{"comparison": "kendall"}, {"resample": "runs"}, {"adjust": "none"}, {"level": 2}])
def test_bootstrap__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match="must be"):
        BootstrapConfig(**options)
