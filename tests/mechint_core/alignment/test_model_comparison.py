import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats
from scipy.spatial.distance import pdist

from mechint_core.alignment._comparisons import compare
from mechint_core.alignment._cross_validated import folds
from mechint_core.alignment._model_families import fit
from mechint_core.alignment.model_comparison import ModelComparisonConfig, model_comparison
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

ALL = ("selected", "weighted", "interpolated")


def recorded(n=16, n_subjects=4, seed=0):
    """Three components, and subjects that are noisy copies of 1 first + 2 second."""
    rng = generator(seed, "recorded")
    parts = np.array([pdist(rng.normal(size=(n, 3)), "sqeuclidean") for _ in range(3)])
    return parts, parts[0] + 2 * parts[1] + 2 * rng.normal(size=(n_subjects, parts.shape[1]))


def few(**options):
    return ModelComparisonConfig(**({"n_bootstrap": 20, "n_permutations": 19} | options))


def inside(n, fold):
    """The pairs among the conditions of a fold."""
    i, j = np.triu_indices(n, 1)
    return fold[i] & fold[j]


# Known answer
@pytest.mark.parametrize("comparison", ["pearson", "cosine", "whitened cosine", "whitened correlation"])
def test_model_comparison__recovers_planted_weights(comparison):
    parts, _ = recorded()
    data = np.stack([parts[0] + 2 * parts[1]] * 3)
    found = model_comparison(parts, data, config=few(comparison=comparison))

    assert found.best_model[0] == "weighted"
    assert found.best.value == pytest.approx(1, abs=1e-9)
    assert found.weight == pytest.approx(np.array([1, 2, 0]) / np.sqrt(5), abs=1e-6)


def test_model_comparison__recovers_a_planted_point_between_two_neighbours():
    parts, _ = recorded()
    found = model_comparison(parts, np.stack([0.3 * parts[1] + 0.7 * parts[2]] * 3), config=few(families=ALL))

    assert found.score[found.model.index("interpolated")] == pytest.approx(1, abs=1e-9)
    assert found.interpolation == pytest.approx([0, 0.3, 0.7], abs=1e-6)


def test_model_comparison__credits_no_weights_that_do_not_generalise(rng):
    """Twelve components of noise fit the training folds, and nothing else."""
    models, data = rng.uniform(size=(12, 780)), rng.uniform(size=(5, 780))
    found = model_comparison(models, data, config=few(n_condition_folds=2))

    assert abs(found.score[found.model.index("weighted")]) < 0.15


# Oracle
def test_model_comparison__equals_the_loop_over_folds():
    models, data = recorded()
    config = few(families=ALL, n_condition_folds=2, n_subject_folds=2)
    conditions, subjects = folds(16, 2, 0, "conditions"), folds(4, 2, 0, "subjects")
    expected = np.zeros(3 + len(ALL))
    for f in range(2):
        test, train = inside(16, conditions == f), inside(16, conditions != f)
        fixed = compare(models[:, test], data[:, test], "pearson").mean(axis=1)
        expected[:3] += fixed / 2
        for s in range(4):
            x = models[:, train] - models[:, train].mean(axis=1, keepdims=True)
            y = data[subjects != subjects[s]][:, train]
            y = y - y.mean(axis=1, keepdims=True)
            aim = (y / np.linalg.norm(y, axis=1, keepdims=True)).sum(axis=0)
            for k, family in enumerate(ALL):
                theta = fit(family, (x @ x.T)[None], (x @ aim)[None])[0]
                expected[3 + k] += stats.pearsonr(theta @ models[:, test], data[s, test])[0] / 8

    assert model_comparison(models, data, config=config).score == pytest.approx(expected, abs=1e-9)


@pytest.mark.oracle
@pytest.mark.parametrize(("comparison", "theirs"), [("pearson", "corr"), ("cosine", "cosine")])
def test_weights__equal_the_non_negative_regression_of_rsatoolbox(comparison, theirs):
    from rsatoolbox.model import ModelInterpolate, ModelWeighted
    from rsatoolbox.model.fitter import fit_interpolate, fit_regress_nn
    from rsatoolbox.rdm import RDMs

    models, data = recorded()
    found = model_comparison(models, data, config=few(comparison=comparison, families=ALL))
    weighted = fit_regress_nn(ModelWeighted("w", RDMs(models)), RDMs(data), method=theirs)
    between = fit_interpolate(ModelInterpolate("i", RDMs(models)), RDMs(data), method=theirs)
    ours, best = (compare((each @ models)[None], data, comparison).mean() for each in (found.interpolation, between))

    assert found.weight == pytest.approx(weighted, abs=1e-6)
    assert found.interpolation == pytest.approx(between, abs=1e-3)  # theirs searches to 1e-5 of a flat top
    assert ours >= best - 1e-12


@pytest.mark.oracle
@pytest.mark.parametrize(("comparison", "theirs"), [("pearson", "corr"), ("cosine", "cosine")])
def test_ceilings__equal_those_of_rsatoolbox_over_held_out_subjects(comparison, theirs):
    from rsatoolbox.inference import crossval, sets_leave_one_out_rdm
    from rsatoolbox.inference.noise_ceiling import cv_noise_ceiling
    from rsatoolbox.model import ModelFixed
    from rsatoolbox.rdm import RDMs

    models, data = recorded()
    rdms = RDMs(data)
    train, test, ceil = ([(each[0], np.arange(16)) for each in part] for part in sets_leave_one_out_rdm(rdms))
    fixed = [ModelFixed(str(m), RDMs(each[None])) for m, each in enumerate(models)]
    scores = crossval(fixed, rdms, train, test, ceil_set=ceil, method=theirs).evaluations
    found = model_comparison(models, data, config=few(comparison=comparison, cross_validate="subjects"))

    assert (found.lower_ceiling.value, found.upper_ceiling.value) == pytest.approx(
        cv_noise_ceiling(rdms, ceil, test, method=theirs), abs=1e-10
    )
    assert found.score[:3] == pytest.approx(np.nanmean(scores, axis=(0, 2)), abs=1e-10)


# Law
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), m=st.integers(1, 5))
def test_fit__is_the_best_of_its_family(seed, m):
    """No non-negative weights agree better than the weighted, no point between neighbours than the interpolated."""
    rng = generator(seed, "fit")
    x, y = rng.normal(size=(m, 9)), rng.normal(size=9)
    gram, cross = (x @ x.T)[None], (x @ y)[None]
    theta = {family: fit(family, gram, cross)[0] for family in ALL}
    reached = {family: each @ cross[0] / np.sqrt(each @ gram[0] @ each) for family, each in theta.items()}
    others = rng.dirichlet(np.ones(m), 200)

    assert all(np.all(each >= 0) for each in theta.values())
    assert reached["selected"] <= reached["interpolated"] + 1e-9
    assert reached["interpolated"] <= reached["weighted"] + 1e-9
    assert np.max(others @ cross[0] / np.sqrt(np.einsum("bm,mk,bk->b", others, gram[0], others))) <= (
        reached["weighted"] + 1e-9
    )


@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
def test_model_comparison__ignores_scale(seed, scale):
    models, data = recorded(seed=seed)
    found = model_comparison(models, data, config=few(n_bootstrap=2, n_permutations=1)).score
    scaled = np.stack([scale * models[0], *models[1:]])

    assert model_comparison(scaled, data / scale, config=few(n_bootstrap=2, n_permutations=1)).score == pytest.approx(
        found, abs=1e-6
    )


def test_model_comparison__same_seed_gives_the_same_bits_for_any_worker_count():
    models, data = recorded()
    found = []
    for threads in (1, 2, 4):
        with compute(Backend(threads=threads)):
            answer = model_comparison(models, data, config=few())
            found.append((answer.scalars(), answer.difference_low.tolist()))

    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("adjust", ["fdr", "holm", "max"])
@pytest.mark.parametrize("resample", ["conditions", "subjects", "both"])
def test_model_comparison__differences_are_paired(adjust, resample):
    models, data = recorded(n=24)
    found = model_comparison(models, data, config=few(adjust=adjust, resample=resample, families=("selected",)))
    off = ~np.eye(len(found.model), dtype=np.bool_)

    assert found.difference == pytest.approx(found.score[:, None] - found.score, abs=1e-12)
    assert found.difference == pytest.approx(-found.difference.T)
    assert found.difference_low == pytest.approx(-found.difference_high.T)
    assert np.all(found.difference_p_value[off] > 0)
    assert np.all(found.p_value > 0)
    assert np.isnan(np.diag(found.difference_p_value_adjusted)).all()
    assert found.ceiled == pytest.approx(found.score / found.lower_ceiling.value)


def test_model_comparison__relabelled_models_lose_their_agreement():
    models, data = recorded(n=24)
    found = model_comparison(models, data, config=few(n_permutations=99))

    assert found.best.p_value == pytest.approx(0.01)
    assert abs(found.best.null) < 0.1
    assert "leads" in found.reading() or "cannot be told from" in found.reading()


def test_model_comparison__of_ranks_and_missing_conditions():
    models, data = recorded(n=24)
    i, j = np.triu_indices(24, 1)
    data[0, (i == 2) | (j == 2)] = np.nan
    found = model_comparison(models, data, config=few(comparison="spearman", families=("selected",)))

    assert found.best_model[0] in ("model 1", "selected")
    assert np.isfinite(found.score).all()


def test_model_comparison__of_one_subject():
    models, data = recorded(n=24)
    found = model_comparison(models, data[:1], config=few(resample="conditions", cross_validate="conditions"))

    assert found.n_subject_folds == 1
    assert np.isnan(found.lower_ceiling.value)
    assert found.n_undefined == 0


def test_folds__are_of_nearly_one_size_and_differ_by_seed():
    sizes = np.bincount(folds(23, 5, 0, "conditions"))

    assert sorted(sizes) == [4, 4, 5, 5, 5]
    assert not np.array_equal(folds(23, 5, 0, "conditions"), folds(23, 5, 1, "conditions"))


@pytest.mark.calibration
@pytest.mark.parametrize(("resample", "n"), [("subjects", 24), ("both", 60)])
def test_model_comparison__p_values_of_equal_models_are_uniform(resample, n):
    """500 pairs of models equally near the truth; the KS distance of 500 uniform draws passes 0.087 once in 1000."""
    p_values = [equal_models(resample, n, seed) for seed in range(500)]

    assert stats.kstest(p_values, "uniform").statistic < 0.087


@pytest.mark.calibration
def test_model_comparison__of_few_conditions_and_subjects_errs_on_the_safe_side():
    """At 24 conditions, drawn with the subjects, equal models differ at a level of 5 % in at most that many of 300."""
    p_values = np.array([equal_models("both", 24, seed) for seed in range(300)])

    assert np.mean(p_values <= 0.05) + np.mean(p_values <= 0.1) > 0
    assert np.mean(p_values <= 0.05) <= 0.05


def equal_models(resample, n, seed):
    """Return the p-value of the difference of two models that are equally near the truth."""
    rng = generator(seed, "equal", resample)
    shared = rng.normal(size=(n, 8))
    models, data = (
        np.array([pdist(shared + rng.normal(size=shared.shape), "sqeuclidean") for _ in range(k)]) for k in (2, 12)
    )
    if resample == "subjects":  # these conditions only: each subject prefers one of them, by chance
        models = models / models.std(axis=1, keepdims=True)
        share = rng.random((12, 1))
        data = data + 5 * data.std() * (share * models[0] + (1 - share) * models[1])
    config = ModelComparisonConfig(
        families=(), cross_validate="subjects", resample=resample, n_bootstrap=300, n_permutations=0
    )
    return model_comparison(models, data, config=config).difference_p_value[0, 1]


# Bad input
def test_model_comparison__raises_on_other_conditions(without_shape_checks):
    models, data = recorded()
    with pytest.raises(ShapeError, match="same conditions"):
        model_comparison(models, recorded(n=12)[1])
    with pytest.raises(ShapeError, match="n >= 4 conditions"):
        model_comparison(models[:, :3], data[:, :3])


def test_model_comparison__raises_on_folds_that_are_too_small():
    models, data = recorded(n=7)
    with pytest.raises(ConfigurationError, match="at least 4 conditions"):
        model_comparison(models, data)
    with pytest.raises(ConfigurationError, match="at most the 4 subjects"):
        model_comparison(*recorded(), config=few(n_subject_folds=5))


def test_model_comparison__raises_on_one_model_to_interpolate():
    models, data = recorded()
    with pytest.raises(ConfigurationError, match="'interpolated'"):
        model_comparison(models[:1], data, config=few(families=("interpolated",)))


def test_model_comparison__raises_on_one_subject_to_hold_out():
    models, data = recorded()
    with pytest.raises(DegenerateInputError, match="cross_validate='conditions'"):
        model_comparison(models, data[:1])


def test_model_comparison__raises_on_weights_over_different_pairs():
    models, data = recorded()
    data[0, :5] = np.nan
    with pytest.raises(DegenerateInputError, match="same pairs"):
        model_comparison(models, data)


def test_model_comparison__raises_on_a_constant_row():
    models, data = recorded()
    models[2] = 1
    with pytest.raises(DegenerateInputError, match="Got a constant row 2"):
        model_comparison(models, data)


@pytest.mark.parametrize(
    "options",
    [
        {"comparison": "tau-a"},
        {"families": ("tree",)},
        {"families": ("selected", "selected")},
        {"comparison": "spearman"},
        {"cross_validate": "none"},
        {"n_condition_folds": 1},
        {"adjust": "x"},
    ],
)
def test_model_comparison__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match="must be"):
        ModelComparisonConfig(**options)
