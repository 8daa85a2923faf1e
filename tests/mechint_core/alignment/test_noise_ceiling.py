import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats
from scipy.spatial.distance import pdist

from mechint_core.alignment._comparisons import compare
from mechint_core.alignment._distances import square_form
from mechint_core.alignment.noise_ceiling import NoiseCeilingConfig, noise_ceiling
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

EXACT = ("pearson", "cosine", "spearman", "rho-a", "whitened cosine", "whitened correlation")
THEIRS = {"pearson": "corr", "cosine": "cosine", "spearman": "spearman", "rho-a": "rho-a", "tau-a": "tau-a"}


def recorded(n=12, n_subjects=5, noise=1.0, seed=0, shared=None):
    rng = generator(seed, "recorded")
    shared = rng.normal(size=(n, 4)) if shared is None else shared
    return np.array([pdist(shared + noise * rng.normal(size=shared.shape), "sqeuclidean") for _ in range(n_subjects)])


def few(**options):
    return NoiseCeilingConfig(n_bootstrap=30, n_permutations=30, **options)


# Known answer
@pytest.mark.parametrize("comparison", [*EXACT, "bures"])
@pytest.mark.parametrize("rows", ["subjects", "repetitions"])
def test_noise_ceiling__of_rows_that_agree_is_one(comparison, rows):
    row = recorded()[0]
    found = noise_ceiling(np.stack([row, 3 * row, row / 2]), config=few(comparison=comparison, rows=rows))

    assert (found.lower.value, found.upper.value) == pytest.approx((1, 1), abs=1e-6)


def test_noise_ceiling__of_halves_is_the_spearman_brown_formula():
    rows = recorded(n_subjects=2)
    r = stats.pearsonr(*rows)[0]
    found = noise_ceiling(rows, config=few(rows="repetitions"))

    assert found.lower.value == pytest.approx(2 * r / (1 + r))
    assert found.upper.value == pytest.approx(np.sqrt(2 * r / (1 + r)))


def test_noise_ceiling__of_halves_is_the_agreement_with_the_truth():
    """Independent noise on fixed dissimilarities: the mean of 8 rows agrees with the truth by sqrt(lower)."""
    rng = generator(2, "truth")
    truth = rng.normal(size=780)
    found = []
    for _ in range(30):
        rows = truth + 2 * rng.normal(size=(8, 780))
        ceiling = noise_ceiling(rows, config=few(rows="repetitions"))
        found.append((ceiling.upper.value, stats.pearsonr(rows.mean(axis=0), truth)[0]))
    ours, true = np.mean(found, axis=0)

    assert ours == pytest.approx(true, abs=0.01)


@pytest.mark.parametrize("comparison", ["pearson", "spearman", "cosine", "whitened cosine", "tau-a"])
def test_noise_ceiling__holds_the_true_model_between_its_bounds(comparison):
    """In expectation: over 30 recordings the mean of the truth's agreement lies between the means of the bounds."""
    rng = generator(1, "truth")
    found = []
    for _ in range(30):
        shared = rng.normal(size=(10, 4))
        data = np.array([pdist(shared + 0.7 * rng.normal(size=shared.shape), "sqeuclidean") for _ in range(5)])
        truth = pdist(shared, "sqeuclidean")[None] + (2 * 4 * 0.49)  # noise adds 2 p σ² to every squared distance
        config = NoiseCeilingConfig(comparison=comparison, n_bootstrap=0, n_permutations=0)
        ceiling = noise_ceiling(data, config=config)
        found.append((ceiling.lower.value, compare(truth, data, comparison).mean(), ceiling.upper.value))
    lower, true, upper = np.mean(found, axis=0)

    assert lower < true < upper


# Oracle
@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")  # the peer's own
@pytest.mark.parametrize("comparison", list(THEIRS))
def test_noise_ceiling__equals_rsatoolbox(comparison):
    from rsatoolbox.inference.noise_ceiling import boot_noise_ceiling
    from rsatoolbox.rdm import RDMs

    data = np.round(recorded(), 1)  # with ties
    found = noise_ceiling(data, config=NoiseCeilingConfig(comparison=comparison, n_bootstrap=0, n_permutations=0))

    assert (found.lower.value, found.upper.value) == pytest.approx(
        boot_noise_ceiling(RDMs(data), method=THEIRS[comparison]), abs=1e-10
    )


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("comparison", "theirs"), [("whitened cosine", "cosine_cov"), ("whitened correlation", "corr_cov")]
)
def test_noise_ceiling__bounds_better_than_rsatoolbox_where_it_whitens(comparison, theirs):
    """They scale subjects by the plain norm: their pool is not the best one."""
    from rsatoolbox.inference.noise_ceiling import boot_noise_ceiling
    from rsatoolbox.rdm import RDMs

    data = recorded()
    found = noise_ceiling(data, config=few(comparison=comparison))
    expected = boot_noise_ceiling(RDMs(data), method=theirs)

    assert found.upper.value >= expected[1] - 1e-12
    assert (found.lower.value, found.upper.value) == pytest.approx(expected, abs=5e-3)


# Law
@pytest.mark.parametrize("comparison", EXACT)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31))
def test_noise_ceiling__no_matrix_passes_the_upper_bound(comparison, seed):
    data = recorded(seed=seed)
    config = NoiseCeilingConfig(comparison=comparison, n_bootstrap=0, n_permutations=0)
    found = noise_ceiling(data, config=config)
    rng = generator(seed, "others")
    others = np.concatenate([data, rng.dirichlet(np.ones(len(data)), 50) @ data])

    assert found.lower.value <= found.upper.value
    assert compare(others, data, comparison).mean(axis=1).max() <= found.upper.value + 1e-9


@pytest.mark.parametrize("comparison", EXACT)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
def test_noise_ceiling__ignores_scale_and_order(comparison, seed, scale):
    data = recorded(seed=seed)
    rng = generator(seed, "order")
    order, upper = rng.permutation(12), np.triu_indices(12, 1)
    moved = np.array([square_form(each)[np.ix_(order, order)][upper] for each in data])
    moved[0] *= scale
    config = NoiseCeilingConfig(comparison=comparison, n_bootstrap=0, n_permutations=0)
    first, second = noise_ceiling(data, config=config), noise_ceiling(moved[rng.permutation(5)], config=config)

    assert second.lower.value == pytest.approx(first.lower.value, abs=1e-9)
    assert second.upper.value == pytest.approx(first.upper.value, abs=1e-9)


@pytest.mark.parametrize("rows", ["subjects", "repetitions"])
def test_noise_ceiling__same_seed_gives_the_same_bits_for_any_worker_count(rows):
    found = []
    for threads in (1, 2, 4):
        with compute(Backend(threads=threads)):
            found.append(noise_ceiling(recorded(n=20), config=few(rows=rows)).scalars())

    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("comparison", ["tau-a", "bures"])
@pytest.mark.parametrize("resample", ["conditions", "subjects", "both"])
def test_noise_ceiling__has_intervals_and_null_for_every_comparison(comparison, resample):
    config = NoiseCeilingConfig(comparison=comparison, resample=resample, n_bootstrap=10, n_permutations=19)
    found = noise_ceiling(recorded(n=8, n_subjects=4), config=config)

    assert found.lower.low < found.lower.value < found.lower.high
    assert 0 < found.lower.p_value <= 1
    assert found.lower.null < found.lower.value


def test_noise_ceiling__leaves_missing_conditions_out():
    data = recorded()
    i, j = np.triu_indices(12, 1)
    without = data.copy()
    without[:, (i == 3) | (j == 3)] = np.nan
    found, expected = noise_ceiling(without, config=few()), noise_ceiling(data[:, (i != 3) & (j != 3)], config=few())

    assert found.lower.value == pytest.approx(expected.lower.value, abs=1e-12)
    assert found.upper.value == pytest.approx(expected.upper.value, abs=1e-12)
    assert found.n_missing == 55


def test_noise_ceiling__reading_says_when_nothing_is_shared(rng):
    assert "A true model is expected" in noise_ceiling(recorded(noise=0.3), config=few()).reading()
    assert "cannot tell a good model" in noise_ceiling(rng.uniform(size=(4, 66)), config=few()).reading()


@pytest.mark.calibration
def test_noise_ceiling__p_values_are_uniform_under_the_null():
    """500 recordings that share nothing; the KS distance of 500 uniform draws passes 0.087 once in 1000."""
    rng = generator(5, "null")
    config = NoiseCeilingConfig(n_bootstrap=2, n_permutations=199)
    draws = ([pdist(rng.normal(size=(12, 4)), "sqeuclidean") for _ in range(4)] for _ in range(500))
    found = [noise_ceiling(np.array(each), config=config).lower.p_value for each in draws]

    assert stats.kstest(found, "uniform").statistic < 0.087


# Bad input
def test_noise_ceiling__raises_on_three_conditions():
    with pytest.raises(ShapeError, match="n >= 4 conditions"):
        noise_ceiling(np.ones((2, 3)))


def test_noise_ceiling__raises_on_one_row():
    with pytest.raises(DegenerateInputError, match="rows='repetitions'"):
        noise_ceiling(recorded(n_subjects=1))


@pytest.mark.parametrize(
    ("value", "match"), [(2.0, "constant row 1"), (np.inf, "infinity"), (np.nan, "at least 3 pairs")]
)
def test_noise_ceiling__raises_on_a_row_without_an_agreement(value, match):
    data = recorded()
    data[1] = value
    with pytest.raises(DegenerateInputError, match=match):
        noise_ceiling(data)


@pytest.mark.parametrize(("comparison", "match"), [("bures", "bures"), ("whitened cosine", "whole conditions")])
def test_noise_ceiling__raises_on_missing_pairs_that_the_comparison_needs(comparison, match):
    data = recorded()
    data[1, 5] = np.nan
    with pytest.raises(DegenerateInputError, match=match):
        noise_ceiling(data, config=few(comparison=comparison))


@pytest.mark.parametrize(
    "options", [{"comparison": "x"}, {"rows": "runs"}, {"n_halves": 0}, {"resample": "x"}, {"level": 2}]
)
def test_noise_ceiling__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match="must be"):
        NoiseCeilingConfig(**options)
