import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats
from scipy.spatial.distance import pdist

from mechint_core.alignment import RSA, RSAConfig, _ranks, _sampled_pairs, rsa
from mechint_core.alignment._comparisons import compare
from mechint_core.alignment._conditions import Draws, agreement, bootstrap_agreement, relabelled_agreement
from mechint_core.alignment._distances import PREPARE, square_form
from mechint_core.alignment._ranks import DistanceTiles, histogram_spearman
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.kernels import linear_kernels
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.synthetic.aligned_systems import aligned_systems

SCIPY = {"euclidean": "sqeuclidean", "correlation": "correlation", "cosine": "cosine"}
COMPARE = {
    "pearson": lambda d, e: stats.pearsonr(d, e)[0],
    "cosine": lambda d, e: d @ e / np.sqrt((d @ d) * (e @ e)),
    "spearman": lambda d, e: stats.spearmanr(d, e)[0],
}
COMPARISONS = (*COMPARE, "rho-a", "tau-a", "whitened cosine", "whitened correlation", "bures")
metrics = pytest.mark.parametrize("metric", list(SCIPY))
comparisons = pytest.mark.parametrize("comparison", list(COMPARE))


def related(n, p, q, seed=0):
    rng = generator(seed, "related")
    shared = rng.normal(size=(n, 3))
    return [shared @ rng.normal(size=(3, width)) + rng.normal(size=(n, width)) + 5 for width in (p, q)]


def value(x, y, **options):
    return RSA(**options).compare(x, y)


# Known answer
@comparisons
def test_rsa__of_a_rotated_scaled_and_shifted_copy_is_one(rng, comparison):
    x = rng.normal(size=(30, 6))
    y = -2 * x @ np.linalg.qr(rng.normal(size=(6, 6)))[0] + 4
    found = rsa(x, y, config=RSAConfig(metric="euclidean", comparison=comparison)).similarity

    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1), abs=1e-9)
    assert found.p_value < 0.01


@pytest.mark.parametrize("similarity", [0.2, 0.7])
def test_rsa__of_gaussian_systems_is_their_planted_similarity(similarity):
    """Euclidean Pearson is r² in the population; four standard errors at n = 3000, p = 20 are about 0.02."""
    pair = aligned_systems(3000, 20, similarity=similarity)

    assert value(pair.x, pair.y, metric="euclidean") == pytest.approx(similarity, abs=0.02)


def test_rsa__of_three_points_on_a_line_and_their_mirror_image():
    """Positions 0, 1, 3, 7 have distances 1 9 49 4 36 16; the same points reversed have the same ones."""
    line = np.array([[0.0], [1.0], [3.0], [7.0]])
    pairs = np.array([1.0, 9, 49, 4, 36, 16])

    assert value(line, line[::-1] * 2, metric="euclidean") == pytest.approx(
        stats.pearsonr(pairs, pairs[[5, 4, 2, 3, 1, 0]])[0], abs=1e-12
    )


# Oracle
@metrics
@comparisons
@pytest.mark.parametrize("widths", [(5, 7), (60, 40)], ids=["streamed", "whole"])
def test_rsa__equals_the_comparison_of_all_pairs(metric, comparison, widths):
    x, y = related(50, *widths)
    expected = COMPARE[comparison](pdist(x, SCIPY[metric]), pdist(y, SCIPY[metric]))

    assert value(x, y, metric=metric, comparison=comparison) == pytest.approx(expected, abs=1e-10)


@pytest.mark.oracle
@pytest.mark.parametrize("metric", ["euclidean", "correlation"])
@pytest.mark.parametrize(
    ("comparison", "theirs"), [("pearson", "corr"), ("cosine", "cosine"), ("spearman", "spearman")]
)
def test_rsa__equals_rsatoolbox(metric, comparison, theirs):
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm, compare

    x, y = related(40, 12, 9)
    expected = compare(calc_rdm(Dataset(x), method=metric), calc_rdm(Dataset(y), method=metric), method=theirs)

    assert value(x, y, metric=metric, comparison=comparison) == pytest.approx(expected[0, 0], abs=1e-10)


@metrics
@pytest.mark.parametrize("comparison", COMPARISONS[3:])
@pytest.mark.parametrize("widths", [(5, 7), (60, 40)], ids=["streamed", "whole"])
def test_rsa__equals_the_comparison_of_both_matrices(metric, comparison, widths):
    x, y = related(50, *widths)
    expected = compare(pdist(x, SCIPY[metric])[None], pdist(y, SCIPY[metric])[None], comparison)[0, 0]

    assert value(x, y, metric=metric, comparison=comparison) == pytest.approx(expected, abs=1e-10)


def draw_pairs(n=12):
    x, y = related(n, 4, 3)
    x[1], y[4] = x[0], y[3]  # distances of 0, and ties
    return np.round(pdist(x, "sqeuclidean"), 1), np.round(pdist(y, "sqeuclidean"), 1)


@comparisons
def test_bootstrap__equals_the_naive_loop(comparison):
    """Repeat the drawn conditions, leave out the pairs of copies, compare."""
    d, e = draw_pairs()
    counts = Draws(n_bootstrap=30, n_permutations=0, level=0.95, seed=0).counts(12)
    expected = []
    for count in counts.T:
        drawn = np.repeat(np.arange(12), count)
        i, j = np.triu_indices(12, 1)
        keep = drawn[i] != drawn[j]
        at = np.ix_(drawn, drawn)
        pair = (square_form(d)[at][i, j][keep], square_form(e)[at][i, j][keep])
        expected.append(COMPARE[comparison](*pair))

    assert bootstrap_agreement(d, e, comparison, counts=counts) == pytest.approx(expected, abs=1e-10)


@comparisons
def test_relabelling__equals_the_naive_loop(comparison):
    d, e = draw_pairs()
    permutations = Draws(n_bootstrap=0, n_permutations=30, level=0.95, seed=0).permutations(12)
    upper = np.triu_indices(12, 1)
    expected = [COMPARE[comparison](d, square_form(e)[np.ix_(order, order)][upper]) for order in permutations]

    assert relabelled_agreement(d, e, comparison, permutations=permutations) == pytest.approx(expected, abs=1e-10)


@metrics
def test_histogram_spearman__is_as_near_the_exact_one_as_it_says(metric, monkeypatch):
    monkeypatch.setattr(_ranks, "TILE_ROWS", 100)
    x, y = related(450, 10, 8)
    prepare = PREPARE[metric]
    exact = agreement(pdist(x, SCIPY[metric]), pdist(y, SCIPY[metric]), "spearman")

    found, error = histogram_spearman(DistanceTiles.of(x, y, prepare), prepare(x[:50]), prepare(y[:50]))

    assert abs(found - exact) < min(error, 1e-5)
    assert error < 1e-3


@pytest.mark.parametrize("comparison", ["spearman", "rho-a"])
def test_rsa__ranks_many_pairs_by_histogram(comparison, monkeypatch):
    from importlib import import_module

    x, y = related(200, 6, 5)
    config = RSAConfig(comparison=comparison, n_inference=50)
    exact = rsa(x, y, config=config)
    monkeypatch.setattr(import_module("mechint_core.alignment.rsa"), "EXACT_PAIRS", 100)

    found = rsa(x, y, config=config)

    assert exact.rank_error == 0
    assert 0 < found.rank_error < 1e-2
    assert found.similarity.value == pytest.approx(exact.similarity.value, abs=1e-5)


def test_rsa__samples_many_pairs_for_tau_a(monkeypatch):
    """20 samples of a fifth of the pairs: the error they state is the one they make, within a factor of 1.6.

    The root mean square of 20 errors is that of their distribution within 16 %, and strata make it smaller.
    """
    from importlib import import_module

    x, y = related(250, 6, 5)
    options = {"comparison": "tau-a", "n_inference": 20, "n_bootstrap": 0, "n_permutations": 0}
    exact = rsa(x, y, config=RSAConfig(**options))
    monkeypatch.setattr(import_module("mechint_core.alignment.rsa"), "EXACT_PAIRS", 100)
    monkeypatch.setattr(_sampled_pairs, "SAMPLED_PAIRS", 6000)
    monkeypatch.setattr(_ranks, "TILE_ROWS", 40)

    found = [rsa(x, y, config=RSAConfig(seed=seed, **options)) for seed in range(20)]

    errors = np.array([each.similarity.value - exact.similarity.value for each in found])
    stated = np.array([each.rank_error for each in found])
    assert exact.rank_error == 0
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(stated.mean(), rel=0.6)
    assert abs(errors.mean()) < 4 * stated.mean() / np.sqrt(20)


# Law
@metrics
@pytest.mark.parametrize("comparison", ["pearson", "cosine", "whitened cosine", "whitened correlation"])
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), block_rows=st.integers(1, 70), threads=st.integers(1, 3))
def test_rsa__streamed_equals_whole(metric, comparison, seed, block_rows, threads):
    x, y = related(60, 5, 4, seed)
    config = RSAConfig(metric=metric, comparison=comparison, n_inference=20, n_bootstrap=20, n_permutations=20)
    with pytest.MonkeyPatch.context() as patch, compute(Backend(threads=threads)):
        patch.setattr(linear_kernels, "PREPARED_BLOCK_ROWS", block_rows)
        streamed = rsa(x, y, config=config).scalars()

    assert streamed == pytest.approx(rsa(x, y, config=config).scalars(), abs=1e-10)


@metrics
@comparisons
@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-2, 1e2))
def test_rsa__is_symmetric_bounded_and_ignores_scale(metric, comparison, seed, scale):
    x, y = related(15, 5, 4, seed)
    found = value(x, y, metric=metric, comparison=comparison)

    assert -1 - 1e-12 <= found <= 1 + 1e-12
    assert value(y, x, metric=metric, comparison=comparison) == pytest.approx(found, abs=1e-10)
    assert value(x, scale * y, metric=metric, comparison=comparison) == pytest.approx(found, abs=1e-8)


def test_rsa__same_seed_gives_the_same_bits_for_any_worker_count():
    x, y = related(400, 6, 5)
    found = []
    for threads in (1, 2, 4):
        with compute(Backend(threads=threads)):
            found.append(rsa(x, y).scalars())

    assert found[0] == found[1] == found[2]


def test_rsa__of_float32_rows_keeps_six_digits():
    x, y = related(3000, 30, 20)
    exact = value(x, y)

    assert value(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(exact, abs=1e-6)


def test_rsa__interval_shrinks_with_the_conditions_it_speaks_of():
    """Found on 100 of 400 conditions, the interval has the width it has when found on all: within a third."""
    x, y = related(400, 6, 5)
    some, every = (rsa(x, y, config=RSAConfig(n_inference=n)).similarity for n in (100, 400))

    assert some.value == every.value
    assert some.high - some.low == pytest.approx(every.high - every.low, rel=1 / 3)


def test_rsa__shows_the_conditions_it_names():
    x, y = related(500, 6, 5)
    found = rsa(x, y)
    upper = np.triu_indices(len(found.shown), 1)

    assert found.picture_x[upper] == pytest.approx(pdist(x[found.shown], "correlation"), abs=1e-12)
    assert found.pairs == pytest.approx(np.column_stack([found.picture_x[upper], found.picture_y[upper]]))


def test_rsa__reading_says_when_systems_are_unrelated(rng):
    x = rng.normal(size=(60, 5))

    assert "not distinguishable" in rsa(x, rng.normal(size=(60, 5))).reading()
    assert "relabelled conditions give" in rsa(x, x + rng.normal(size=x.shape)).reading()
    assert "no relabelling" in rsa(x, x + 1, config=RSAConfig(n_permutations=0)).reading()


def test_RSA__compares_as_the_notebook_does():
    x, y = related(40, 12, 9)
    analysis = RSA(metric="correlation")

    assert analysis.compare(x, y) == analysis.result(x, y).similarity.value


@pytest.mark.slow
@comparisons
def test_rsa__p_values_are_uniform_under_the_null(comparison):
    """300 unrelated pairs; the KS distance of 300 uniform draws passes 0.112 once in 1000."""
    rng = generator(5, "null")
    config = RSAConfig(comparison=comparison, n_bootstrap=0, n_permutations=199)
    pairs = [(rng.normal(size=(20, 6)), rng.normal(size=(20, 6))) for _ in range(300)]

    assert stats.kstest([rsa(*pair, config=config).similarity.p_value for pair in pairs], "uniform").statistic < 0.112


@pytest.mark.slow
@pytest.mark.parametrize("n_inference", [200, 50], ids=["on all", "on a quarter"])
def test_rsa__interval_covers_the_population_value(n_inference):
    """95 ± 4 % of 300 intervals; the binomial standard error is 1.3 %."""
    config = RSAConfig(metric="euclidean", n_inference=n_inference, n_bootstrap=300, n_permutations=0)
    pairs = (aligned_systems(200, 10, similarity=0.5, seed=seed) for seed in range(300))
    found = [rsa(pair.x, pair.y, config=config).similarity for pair in pairs]

    assert 0.91 < np.mean([each.low <= 0.5 <= each.high for each in found]) < 0.99


# Bad input
def test_rsa__raises_on_three_conditions():
    with pytest.raises(ShapeError, match=r"at least 4 conditions. Got shape \(3, 4\)"):
        rsa(np.eye(3, 4), np.eye(3, 4))


def test_rsa__raises_on_unequal_conditions(rng, without_shape_checks):
    with pytest.raises(ShapeError, match="same samples"):
        rsa(rng.normal(size=(8, 4)), rng.normal(size=(7, 4)))


def test_rsa__raises_on_nan(rng):
    x = rng.normal(size=(8, 4))

    with pytest.raises(DegenerateInputError, match="y must be finite"):
        rsa(x, np.where(x == x[2, 1], np.nan, x))


def test_rsa__raises_when_all_conditions_are_equally_far_apart(rng):
    with pytest.raises(DegenerateInputError, match="dissimilarities of y must differ"):
        rsa(rng.normal(size=(8, 4)), np.eye(8))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rsa__raises_when_rounding_is_all_that_tells_conditions_apart(rng, dtype):
    """Proportional rows correlate perfectly: what is left of their distances is noise of the arithmetic."""
    proportional = np.outer(rng.uniform(1, 9, size=30), rng.normal(size=5)).astype(dtype)

    with pytest.raises(DegenerateInputError, match="x must vary"):
        value(proportional, rng.normal(size=(30, 5)).astype(dtype))


@pytest.mark.parametrize(("metric", "row", "match"), [("correlation", 0.1, "constant row"), ("cosine", 0.0, "zeros")])
def test_rsa__raises_on_a_condition_without_a_distance(rng, metric, row, match):
    x = rng.normal(size=(20, 3))
    x[4] = row

    with pytest.raises(DegenerateInputError, match=match):
        value(x, rng.normal(size=(20, 3)), metric=metric)


@pytest.mark.parametrize(
    "options", [{"metric": "manhattan"}, {"comparison": "kendall"}, {"n_inference": 3}, {"level": 2}]
)
def test_rsa__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match="must be"):
        RSAConfig(**options)
