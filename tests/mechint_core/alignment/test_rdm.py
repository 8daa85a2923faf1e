import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats
from scipy.spatial.distance import pdist, squareform

from mechint_core.alignment import RDMConfig, rdm
from mechint_core.alignment._distances import INVARIANCES, PREPARE, evenly_spaced
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.random import generator

SCIPY = {"euclidean": "sqeuclidean", "correlation": "correlation", "cosine": "cosine"}
metrics = pytest.mark.parametrize("metric", list(PREPARE))


def dissimilarity(x, metric, label=None):
    return rdm(x, label, config=RDMConfig(metric=metric)).dissimilarity


# Known answer
def test_rdm__of_a_square():
    """Sides of 2 and diagonals of √8: squared, and over two units, 2 and 4."""
    corners = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])

    assert dissimilarity(corners, "euclidean") == pytest.approx([2, 2, 4, 4, 2, 2], abs=1e-12)


@pytest.mark.parametrize("metric", ["correlation", "cosine"])
def test_rdm__is_zero_for_proportional_rows_and_two_for_opposite_ones(metric):
    row = np.array([1.0, -2, 1])
    x = np.array([row, 3 * row, -row, [1.0, 0, -1]])

    assert dissimilarity(x, metric) == pytest.approx([0, 2, 1, 2, 1, 1], abs=1e-12)


def test_rdm__averages_the_samples_of_a_condition(rng):
    means = rng.normal(size=(5, 3))
    label = np.tile([30, 10, 20, 50, 40], 2)
    noise = rng.normal(size=(5, 3))
    x = np.concatenate([means + noise, means - noise])

    found = rdm(x, label, config=RDMConfig(metric="euclidean"))

    assert list(found.condition) == [10, 20, 30, 40, 50]
    assert found.dissimilarity == pytest.approx(dissimilarity(means[[1, 2, 0, 4, 3]], "euclidean"), abs=1e-12)


def test_rdm__reliability_tells_a_pattern_from_noise(rng):
    label = np.repeat(np.arange(12), 10)
    noise = rng.normal(size=(120, 30))

    signal = rdm(2 * rng.normal(size=(12, 30))[label] + noise, label)
    nothing = rdm(noise, label)

    assert signal.reliability.value > 0.9
    assert signal.reliability.p_value < 0.01
    assert "repeats" in signal.reading()
    assert nothing.reliability.p_value > 0.05
    assert "no pattern repeats" in nothing.reading()


def test_rdm__has_no_reliability_without_repeated_samples(rng):
    found = rdm(rng.normal(size=(8, 3)))

    assert np.isnan(found.reliability.value)
    assert "noise" in found.reading()


# Oracle
@metrics
@pytest.mark.parametrize("n_conditions", [7, 300, 515])
def test_rdm__equals_scipy(rng, metric, n_conditions):
    """515 conditions take three panels of the matrix, the last of them short."""
    x = rng.normal(size=(n_conditions, 9)) + 2
    expected = pdist(x, SCIPY[metric]) / (9 if metric == "euclidean" else 1)

    found = rdm(x, config=RDMConfig(metric=metric))

    assert found.dissimilarity == pytest.approx(expected, abs=1e-12)
    assert found.mean.value == pytest.approx(expected.mean(), rel=1e-12)
    assert found.square() == pytest.approx(squareform(expected), abs=1e-12)


@pytest.mark.oracle
@pytest.mark.parametrize("metric", ["euclidean", "correlation"])
def test_rdm__equals_rsatoolbox(rng, metric):
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm

    label = np.repeat(np.arange(10), 3)
    x = rng.normal(size=(30, 6))
    theirs = calc_rdm(Dataset(x, obs_descriptors={"label": label.astype(str)}), method=metric, descriptor="label")

    assert dissimilarity(x, metric, label) == pytest.approx(theirs.dissimilarities[0], abs=1e-10)


# Law
@metrics
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), factor=st.floats(0.1, 10), offset=st.floats(-5, 5))
def test_rdm__has_the_invariances_it_declares(metric, seed, factor, offset):
    rng = generator(seed, "invariance")
    x = rng.normal(size=(6, 5))
    changes = {
        "orthogonal": lambda: x @ np.linalg.qr(rng.normal(size=(5, 5)))[0],
        "translation": lambda: x + offset * rng.normal(size=5),
        "unit permutation": lambda: x[:, rng.permutation(5)],
        "row scaling": lambda: factor * rng.uniform(0.5, 2, size=(6, 1)) * x,
        "row offset": lambda: x + offset * rng.normal(size=(6, 1)),
    }
    for name in INVARIANCES[metric]:
        assert dissimilarity(changes[name](), metric) == pytest.approx(dissimilarity(x, metric), abs=1e-10)


@metrics
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_rdm__is_bounded_and_follows_the_order_of_conditions(metric, seed):
    rng = generator(seed, "bounds")
    x, order = rng.normal(size=(9, 4)), rng.permutation(9)
    square = rdm(x, config=RDMConfig(metric=metric)).square()

    assert square.min() >= 0
    assert metric == "euclidean" or square.max() <= 2 + 1e-12
    assert rdm(x[order], config=RDMConfig(metric=metric)).square() == pytest.approx(
        square[np.ix_(order, order)], abs=1e-12
    )


def test_rdm__shows_a_picture_of_the_very_conditions(rng):
    found = rdm(rng.normal(size=(200, 3)))

    assert found.picture == pytest.approx(found.square()[np.ix_(found.shown, found.shown)], abs=1e-12)
    assert len(found.shown) == 64
    assert list(evenly_spaced(5, 9)) == [0, 1, 2, 3, 4]


def test_rdm__same_seed_gives_the_same_bits(rng):
    x, label = rng.normal(size=(40, 3)), np.repeat(np.arange(8), 5)

    assert rdm(x, label).scalars() == rdm(x, label).scalars()


@pytest.mark.slow
def test_rdm__reliability_p_values_are_uniform_without_a_pattern():
    """300 draws of noise; the KS distance of 300 uniform draws passes 0.112 once in 1000."""
    label = np.repeat(np.arange(10), 4)
    config = RDMConfig(n_bootstrap=0, n_permutations=199)
    draws = [generator(seed, "noise").normal(size=(40, 8)) for seed in range(300)]

    ps = [rdm(x, label, config=config).reliability.p_value for x in draws]

    assert stats.kstest(ps, "uniform").statistic < 0.112


# Bad input
@pytest.mark.parametrize(("x", "match"), [(np.ones(5), "must be"), (np.ones((5, 0)), "must be"), (np.eye(3), "Got 3")])
def test_rdm__raises_on_a_shape_without_four_conditions(x, match, without_shape_checks):
    with pytest.raises(ShapeError, match=match):
        rdm(x)


def test_rdm__raises_on_labels_of_another_length(rng, without_shape_checks):
    with pytest.raises(ShapeError, match="one entry per sample, 8"):
        rdm(rng.normal(size=(8, 2)), np.arange(7))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rdm__raises_on_values_that_are_not_finite(rng, bad):
    x = rng.normal(size=(8, 2))
    x[1, 1] = bad

    with pytest.raises(DegenerateInputError, match="x must be finite"):
        rdm(x)


@pytest.mark.parametrize(("metric", "row", "match"), [("correlation", 0.1, "constant row"), ("cosine", 0.0, "zeros")])
def test_rdm__raises_on_a_condition_without_a_distance(rng, metric, row, match):
    x = rng.normal(size=(8, 3))
    x[4] = row

    with pytest.raises(DegenerateInputError, match=match):
        dissimilarity(x, metric)


@pytest.mark.parametrize(
    "options", [{"metric": "manhattan"}, {"n_inference": 3}, {"n_bootstrap": -1}, {"n_permutations": -1}, {"level": 0}]
)
def test_rdm__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match="must be"):
        RDMConfig(**options)
