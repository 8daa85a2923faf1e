"""The measures of `rdm` that need noise, folds or rates, and what becomes of missing samples."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from mechint_core.alignment import RDMConfig, rdm
from mechint_core.alignment._distances import INVARIANCES, pairs_among
from mechint_core.alignment._measures import NOISE_INVARIANCES, Measure, fit_measure
from mechint_core.alignment._responses import responses
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.kernels.noise_covariance import noise_covariance
from mechint_core.random import generator

N, R, P = 7, 3, 5


def recorded(seed=0, n=N, n_folds=R, n_units=P, repeats=2, signal=1.0, unbalanced=False):
    """Samples of `n` conditions in `n_folds` folds, in random order; unbalanced: up to two samples more in a cell."""
    rng = generator(seed, "recorded")
    counts = repeats + (rng.integers(0, 3, size=n * n_folds) if unbalanced else 0)
    cell = rng.permutation(np.repeat(np.arange(n * n_folds), counts))
    label, fold = cell // n_folds, cell % n_folds
    x = signal * rng.normal(size=(n, n_units))[label] + rng.normal(size=(len(cell), n_units)) * rng.uniform(
        0.5, 2, n_units
    )
    return x, label, fold


def measured(x, label=None, fold=None, **options):
    return rdm(x, label, fold, config=RDMConfig(n_bootstrap=0, n_permutations=0, **options)).dissimilarity


def their_dataset(x, label, fold):
    """Words, as theirs makes an integer of NaN where descriptors are integers."""
    from rsatoolbox.data import Dataset

    words = {"label": [f"{each:03d}" for each in label], "fold": [f"{each}" for each in fold]}
    return Dataset(x, obs_descriptors={name: np.array(each) for name, each in words.items()})


# Known answer
def test_mahalanobis__is_the_distance_in_noise_deviations():
    """Squares of 4 + 4 in four conditions, 12 degrees of freedom: variance 8/3 of the unit they are 3 apart in."""
    noise = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    x = np.concatenate([noise + np.array([0.0, 3.0 * i]) for i in range(4)])
    label = np.repeat(np.arange(4), 4)

    found = rdm(x, label, config=RDMConfig(metric="mahalanobis", noise="diagonal"))

    assert found.dissimilarity == pytest.approx(np.array([9, 36, 81, 9, 36, 9]) / (8 / 3) / 2, rel=1e-12)
    assert (found.noise_dof, found.noise_shrinkage) == (12, 1.0)


def test_crossnobis__of_two_folds_is_the_product_of_their_differences():
    first = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    second = np.array([[0.0, 0.0], [2.0, 1.0], [0.0, -1.0], [1.0, 0.0]]) + 100
    x, label, fold = np.concatenate([first, second]), np.tile(np.arange(4), 2), np.repeat([0, 1], 4)
    expected = [np.dot(first[i] - first[j], second[i] - second[j]) / 2 for i in range(4) for j in range(i + 1, 4)]

    assert measured(x, label, fold, metric="crossnobis", noise="none") == pytest.approx(expected, abs=1e-10)


def test_poisson__of_rates_without_a_prior():
    rates = np.array([[1.0], [np.e], [1.0], [np.e**2]])

    found = measured(rates, metric="poisson", prior_weight=0.0)

    assert found == pytest.approx(
        [np.e - 1, 0, 2 * (np.e**2 - 1), np.e - 1, np.e**2 - np.e, 2 * (np.e**2 - 1)], abs=1e-12
    )


def test_conditions__without_samples_keep_their_place():
    x, label, _ = recorded()
    whole = measured(x, label, metric="euclidean")
    kept = label != 2

    found = rdm(x[kept], label[kept], config=RDMConfig(metric="euclidean", conditions=tuple(range(N))))

    others = pairs_among(np.array([0, 1, 3, 4, 5, 6]), N)
    assert list(found.condition) == list(range(N))
    assert found.dissimilarity[others] == pytest.approx(whole[others], abs=1e-12)
    assert np.isnan(np.delete(found.dissimilarity, others)).all()
    assert (found.n_empty, found.n_nan, found.n_dropped) == (1, N - 1, 0)
    assert found.mean.value == pytest.approx(whole[others].mean(), rel=1e-12)
    assert np.isfinite(found.reliability.value)
    assert found.mean.low < found.mean.value < found.mean.high


def test_missing__samples_are_dropped_and_counted():
    x, label, fold = recorded()
    holed = x.copy()
    holed[[3, 8], [0, 1]] = np.nan
    kept = np.delete(np.arange(len(x)), [3, 8])

    for metric in ("euclidean", "mahalanobis", "crossnobis"):
        found = rdm(holed, label, fold, config=RDMConfig(metric=metric, missing="drop"))
        assert found.n_dropped == 2
        assert found.dissimilarity == pytest.approx(
            measured(x[kept], label[kept], fold[kept], metric=metric), abs=1e-12
        )


def test_missing__a_row_without_labels_keeps_its_place():
    x = recorded()[0][:8]
    x[3, 0] = np.nan

    found = rdm(x, config=RDMConfig(metric="euclidean", missing="drop"))

    assert (found.n_conditions, found.n_dropped, found.n_empty, found.n_nan) == (8, 1, 1, 7)


def test_crossnobis__compares_a_condition_in_the_folds_that_hold_it():
    """Condition 0 is missing in fold 0, so that folds 1 and 2 alone compare it; offsets of folds do not matter."""
    x, label, fold = recorded()
    kept = (label != 0) | (fold != 0)
    later = fold != 0

    some = measured(x[kept], label[kept], fold[kept], metric="crossnobis", noise="none")
    two = measured(x[later], label[later], fold[later], metric="crossnobis", noise="none")
    shifted = x + 50.0 * generator(1, "offset").normal(size=(R, P))[fold]

    assert some[: N - 1] == pytest.approx(two[: N - 1], abs=1e-12)
    again = measured(shifted[kept], label[kept], fold[kept], metric="crossnobis", noise="none")
    assert again == pytest.approx(some, abs=1e-9)


def test_crossnobis__is_nan_where_no_two_folds_hold_a_pair():
    x, label, fold = recorded()
    kept = (label != 0) | (fold == 1)

    found = rdm(x[kept], label[kept], fold[kept], config=RDMConfig(metric="crossnobis"))

    assert np.isnan(found.dissimilarity[: N - 1]).all()
    assert np.isfinite(found.dissimilarity[N - 1 :]).all()
    assert (found.n_nan, found.n_empty) == (N - 1, 0)
    by_samples = measured(x[kept], label[kept], fold[kept], metric="crossnobis", weighting="sample")
    assert np.isnan(by_samples[: N - 1]).all()


def test_crossnobis__tells_conditions_that_differ_from_those_that_do_not():
    config = RDMConfig(metric="crossnobis", noise="none")
    different = rdm(*recorded(n=20, n_folds=4), config=config)
    alike = rdm(*recorded(n=20, n_folds=4, signal=0.0), config=config)

    assert different.mean.p_value < 0.01
    assert different.reliability.value > 0.5
    assert abs(different.mean.null) < 0.1 * different.mean.value
    assert "if none differed" in different.reading()
    assert alike.mean.p_value > 0.05


# Oracle
@pytest.mark.oracle
@pytest.mark.parametrize("unbalanced", [False, True])
def test_mahalanobis__equals_rsatoolbox(unbalanced):
    from rsatoolbox.rdm import calc_rdm

    x, label, fold = recorded(unbalanced=unbalanced)
    for noise in ("full", "diagonal", "shrunk to identity", "shrunk to diagonal"):
        precision = noise_covariance(x, label, shrinkage=noise).precision()
        theirs = calc_rdm(their_dataset(x, label, fold), "mahalanobis", "label", noise=precision)
        assert measured(x, label, metric="mahalanobis", noise=noise) == pytest.approx(
            theirs.dissimilarities[0], abs=1e-10
        )


@pytest.mark.oracle
@pytest.mark.parametrize("noise", ["none", "full", "shrunk to diagonal"])
def test_crossnobis__equals_rsatoolbox(noise):
    from rsatoolbox.rdm import calc_rdm

    x, label, fold = recorded()
    precision = None if noise == "none" else noise_covariance(x, label * R + fold, shrinkage=noise).precision()
    theirs = calc_rdm(their_dataset(x, label, fold), "crossnobis", "label", noise=precision, cv_descriptor="fold")

    for weighting in ("fold", "sample"):
        ours = measured(x, label, fold, metric="crossnobis", noise=noise, weighting=weighting)
        assert ours == pytest.approx(theirs.dissimilarities[0], abs=1e-10)


@pytest.mark.oracle
def test_crossnobis__around_conditions_equals_rsatoolbox_with_its_own_precision():
    from rsatoolbox.data.noise import prec_from_unbalanced
    from rsatoolbox.rdm import calc_rdm

    dataset = their_dataset(*recorded())
    precision = prec_from_unbalanced(dataset, "label", method="full")
    theirs = calc_rdm(dataset, "crossnobis", "label", noise=precision, cv_descriptor="fold")

    ours = measured(*recorded(), metric="crossnobis", noise="full", noise_around="condition")

    assert ours == pytest.approx(theirs.dissimilarities[0], abs=1e-10)


@pytest.mark.oracle
@pytest.mark.parametrize("noise", ["full", "shrunk to diagonal"])
def test_crossnobis__with_noise_per_fold_equals_rsatoolbox(noise):
    from rsatoolbox.rdm import calc_rdm

    x, label, fold = recorded(repeats=3)
    precisions = [noise_covariance(x[fold == r], label[fold == r], shrinkage=noise).precision() for r in range(R)]
    theirs = calc_rdm(their_dataset(x, label, fold), "crossnobis", "label", noise=precisions, cv_descriptor="fold")

    ours = measured(x, label, fold, metric="crossnobis", noise=noise, noise_per_fold=True)

    assert ours == pytest.approx(theirs.dissimilarities[0], abs=1e-10)


@pytest.mark.oracle
@pytest.mark.parametrize("noise", ["none", "full"])
def test_crossnobis__weighted_by_samples_equals_rsatoolbox_unbalanced(noise):
    """Cells of one to three samples, and a condition that one fold lacks."""
    from rsatoolbox.rdm.calc_unbalanced import calc_rdm_unbalanced

    x, label, fold = recorded(repeats=1, unbalanced=True)
    kept = (label != 0) | (fold != 0)
    x, label, fold = x[kept], label[kept], fold[kept]
    precision = None if noise == "none" else noise_covariance(x, label * R + fold, shrinkage=noise).precision()
    theirs = calc_rdm_unbalanced(
        their_dataset(x, label, fold), "crossnobis", "label", noise=precision, cv_descriptor="fold"
    )

    ours = rdm(x, label, fold, config=RDMConfig(metric="crossnobis", noise=noise, weighting="sample"))

    order = np.argsort(theirs.pattern_descriptors["label"])  # theirs are in the order of their first samples
    assert ours.square() == pytest.approx(theirs.get_matrices()[0][np.ix_(order, order)], abs=1e-10)


@pytest.mark.oracle
def test_poisson__equals_rsatoolbox(rng):
    from rsatoolbox.rdm import calc_rdm

    _, label, fold = recorded()
    x = rng.poisson(3.0, size=(len(label), P)).astype(np.float64)
    theirs = calc_rdm(their_dataset(x, label, fold), "poisson", "label", prior_lambda=2.0, prior_weight=0.3)

    ours = measured(x, label, metric="poisson", prior=2.0, prior_weight=0.3)

    assert ours == pytest.approx(theirs.dissimilarities[0], abs=1e-10)


@pytest.mark.oracle
def test_crossvalidated_poisson__equals_the_mean_of_rsatoolbox_over_both_orders(rng):
    """Theirs returns what the last fold alone gives as a test: with two folds, the folds exchanged give the other."""
    from rsatoolbox.rdm import calc_rdm

    _, label, fold = recorded(n_folds=2)
    x = rng.poisson(3.0, size=(len(label), P)).astype(np.float64)
    theirs = [
        calc_rdm(their_dataset(x, label, each), "poisson_cv", "label", cv_descriptor="fold").dissimilarities[0]
        for each in (fold, 1 - fold)
    ]

    assert measured(x, label, fold, metric="crossvalidated poisson") == pytest.approx(
        np.mean(theirs, axis=0), abs=1e-10
    )


# Law
CHANGES = {
    "orthogonal": lambda x, rng, fold: x @ np.linalg.qr(rng.normal(size=(P, P)))[0],
    "invertible linear": lambda x, rng, fold: x @ (np.eye(P) + 0.3 * np.linalg.qr(rng.normal(size=(P, P)))[0]),
    "isotropic scaling": lambda x, rng, fold: rng.uniform(0.2, 5) * x,
    "unit scaling": lambda x, rng, fold: x * rng.uniform(0.2, 5, size=P),
    "unit permutation": lambda x, rng, fold: x[:, rng.permutation(P)],
    "translation": lambda x, rng, fold: x + 5 * rng.normal(size=P),
    "fold offset": lambda x, rng, fold: x + 5 * rng.normal(size=(R, P))[fold],
}


@pytest.mark.parametrize("metric", ["mahalanobis", "crossnobis", "poisson", "crossvalidated poisson"])
@pytest.mark.parametrize("noise", list(NOISE_INVARIANCES))
@settings(max_examples=8)
@given(seed=st.integers(0, 2**31))
def test_measures__have_the_invariances_they_declare(metric, noise, seed):
    if ("poisson" in metric and noise != "none") or (metric == "mahalanobis" and noise == "none"):
        return
    x, label, fold = recorded(seed, unbalanced=True)
    x = np.abs(x) if "poisson" in metric else x
    names = INVARIANCES[metric] + (() if "poisson" in metric else NOISE_INVARIANCES[noise])
    before = measured(x, label, fold, metric=metric, noise=noise)
    for name in names:
        changed = CHANGES[name](x, generator(seed, name), fold)
        assert measured(changed, label, fold, metric=metric, noise=noise) == pytest.approx(before, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("metric", ["mahalanobis", "crossnobis", "poisson", "crossvalidated poisson"])
@settings(max_examples=8)
@given(seed=st.integers(0, 2**31))
def test_measures__follow_the_order_of_samples_conditions_and_folds(metric, seed):
    rng = generator(seed, "order")
    x, label, fold = recorded(seed, unbalanced=True)
    x = np.abs(x) if "poisson" in metric else x
    conditions, folds, samples = rng.permutation(N), rng.permutation(R), rng.permutation(len(x))
    config = RDMConfig(metric=metric, n_bootstrap=0, n_permutations=0)

    square = rdm(x, label, fold, config=config).square()
    again = rdm(x[samples], conditions[label[samples]], folds[fold[samples]], config=config).square()

    assert again[np.ix_(conditions, conditions)] == pytest.approx(square, rel=1e-8, abs=1e-9)
    assert metric in {"crossnobis", "crossvalidated poisson"} or square.min() >= -1e-12


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_crossnobis__fold_and_sample_weighting_agree_where_cells_are_equal(seed):
    x, label, fold = recorded(seed)
    both = [measured(x, label, fold, metric="crossnobis", weighting=each) for each in ("fold", "sample")]

    assert both[0] == pytest.approx(both[1], abs=1e-10)


def test_crossnobis__weighted_by_samples_feels_fold_offsets_where_cells_differ():
    """Why it is not the default: folds that share an offset of 50 noise deviations move its distances, not ours."""
    x, label, fold = recorded(unbalanced=True)
    shifted = x + 50.0 * generator(1, "offset").normal(size=(R, P))[fold]
    moved = {
        weighting: np.abs(
            measured(shifted, label, fold, metric="crossnobis", noise="none", weighting=weighting)
            - measured(x, label, fold, metric="crossnobis", noise="none", weighting=weighting)
        ).max()
        for weighting in ("fold", "sample")
    }

    assert moved["fold"] < 1e-9
    assert moved["sample"] > 10


def test_rdm__same_seed_gives_the_same_bits_with_folds():
    config = RDMConfig(metric="crossnobis")

    first, second = (rdm(*recorded(n_folds=4), config=config) for _ in range(2))

    assert first.scalars() == second.scalars()
    assert np.array_equal(first.dissimilarity, second.dissimilarity)


@pytest.mark.parametrize("noise", ["none", "full"])
def test_crossnobis__of_identical_conditions_is_zero_on_average(noise):
    """150 recordings of noise: crossnobis within 3 standard errors of 0; Euclidean at 2σ² / (samples of a mean)."""
    n, folds, units, draws = 6, 3, 8, 150
    label, fold = np.repeat(np.arange(n), 2 * folds), np.tile(np.repeat(np.arange(folds), 2), n)
    cross, euclid = np.empty(draws), np.empty(draws)
    for seed in range(draws):
        x = generator(seed, "identical").normal(size=(len(label), units))
        found = responses(x, label, fold, missing="refuse", conditions=())
        cross[seed] = fit_measure(Measure(metric="crossnobis", noise=noise), found)(found).mean()
        euclid[seed] = fit_measure(Measure(metric="euclidean"), found)(found).mean()

    assert abs(cross.mean()) < 3 * cross.std(ddof=1) / np.sqrt(draws)
    assert abs(euclid.mean() - 2 / (2 * folds)) < 3 * euclid.std(ddof=1) / np.sqrt(draws)


@pytest.mark.calibration
@pytest.mark.parametrize("metric", ["crossnobis", "crossvalidated poisson"])
def test_rdm__p_values_of_a_crossvalidated_mean_are_uniform_without_differences(metric):
    """500 recordings; the KS distance of 500 uniform draws passes 0.087 once in 1000."""
    label, fold = np.repeat(np.arange(8), 6), np.tile(np.repeat(np.arange(3), 2), 8)
    config = RDMConfig(metric=metric, n_bootstrap=0, n_permutations=199)
    draws = [generator(seed, "null").poisson(4.0, size=(48, 6)).astype(np.float64) for seed in range(500)]

    ps = [rdm(x, label, fold, config=config).mean.p_value for x in draws]

    assert stats.kstest(ps, "uniform").statistic < 0.087


# Bad input
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"metric": "mahalanobis", "noise": "none"}, "noise must be given"),
        ({"metric": "mahalanobis", "noise": "oas"}, "noise must be one of"),
        ({"metric": "euclidean", "noise_per_fold": True}, "must go with metric='crossnobis'"),
        ({"metric": "crossnobis", "noise_per_fold": True, "weighting": "sample"}, "weighting='fold'"),
        ({"metric": "crossnobis", "noise_per_fold": True, "noise": "none"}, "must go with a noise"),
        ({"metric": "crossnobis", "weighting": "equal"}, "weighting must be one of"),
        ({"noise_around": "run"}, "noise_around must be one of"),
        ({"prior": -1.0}, "at least 0"),
        ({"missing": "impute"}, "missing must be one of"),
        ({"conditions": (1, 2, 2)}, "different labels"),
    ],
)
def test_config__raises_on_options_that_contradict_each_other(options, match, without_shape_checks):
    with pytest.raises(ConfigurationError, match=match):
        RDMConfig(**options)


def test_rdm__raises_on_folds_that_do_not_fit(without_shape_checks):
    x, label, fold = recorded()
    config = RDMConfig(metric="crossnobis")

    with pytest.raises(ShapeError, match=r"at least 2 different values for 'crossnobis'. Got 1"):
        rdm(x, label, config=config)
    with pytest.raises(ShapeError, match="fold must have one entry per sample"):
        rdm(x, label, fold[1:], config=config)
    with pytest.raises(ShapeError, match=r"among the 3 conditions expected. Got \[3, 4, 5, 6\]"):
        rdm(x, label, config=RDMConfig(conditions=(0, 1, 2)))
    with pytest.raises(DegenerateInputError, match="held by two folds"):
        rdm(x, label, label % 2, config=RDMConfig(metric="crossnobis", noise="none", conditions=tuple(range(N))))


def test_rdm__raises_without_samples_to_take_noise_from():
    x, label, fold = recorded(repeats=1)

    with pytest.raises(DegenerateInputError, match=r"degree of freedom.*around condition means"):
        measured(x, label, fold, metric="crossnobis")
    assert len(measured(x, label, fold, metric="crossnobis", noise_around="condition")) == N * (N - 1) // 2
    with pytest.raises(DegenerateInputError, match="must be invertible"):
        measured(x[:, :1] @ np.ones((1, 40)), label, metric="mahalanobis", noise="full")


def test_rdm__raises_on_what_it_cannot_drop():
    x, label, _ = recorded()
    x[0, 0] = np.inf

    with pytest.raises(DegenerateInputError, match="x must be finite"):
        measured(x, label, missing="drop")
    with pytest.raises(DegenerateInputError, match="a sample without NaN"):
        measured(np.full_like(x, np.nan), label, missing="drop")


def test_poisson__raises_on_negative_rates():
    x, label, _ = recorded()

    with pytest.raises(DegenerateInputError, match="counts or rates"):
        measured(x, label, metric="poisson")
    with pytest.raises(DegenerateInputError, match="above 0 without a prior"):
        measured(np.zeros((5, 2)), metric="poisson", prior_weight=0.0)
