import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats
from scipy.spatial.distance import pdist

from mechint_core.alignment import CompareRDMsConfig, cka, compare_rdms
from mechint_core.alignment._comparisons import Comparison, compare
from mechint_core.alignment._condition_bootstrap import bootstrap_agreements
from mechint_core.alignment._conditions import Draws, relabelled_agreements
from mechint_core.alignment._distances import square_form
from mechint_core.alignment.cka import CKAConfig
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

PEER: dict[Comparison, str] = {
    "pearson": "corr",
    "cosine": "cosine",
    "spearman": "spearman",
    "rho-a": "rho-a",
    "tau-a": "tau-a",
    "whitened cosine": "cosine_cov",
    "whitened correlation": "corr_cov",
    "bures": "bures",
}
comparisons = pytest.mark.parametrize("comparison", list(PEER))
with_gaps = pytest.mark.parametrize("comparison", [each for each in PEER if each != "bures"])
whitened = pytest.mark.parametrize("comparison", ["whitened cosine", "whitened correlation"])
UPPER = {n: np.triu_indices(n, 1) for n in (8, 12, 20)}


def matrices(n, *widths, seed=0, ties=False):
    """Squared distances that share a part; with ties, as whole numbers."""
    rng = generator(seed, "matrices")
    shared = rng.normal(size=(n, 2))
    made = [shared @ rng.normal(size=(2, width)) + rng.normal(size=(n, width)) for width in widths]
    return np.array([pdist(np.round(each) if ties else each, "sqeuclidean") for each in made])


def config(comparison="pearson", **options):
    return CompareRDMsConfig(comparison=comparison, **{"n_bootstrap": 40, "n_permutations": 39} | options)


# Known answer
@pytest.mark.parametrize(
    ("comparison", "expected"),
    [("tau-a", 1 / 3), ("spearman", 0.5), ("rho-a", 0.5), ("pearson", 0.5)],
)
def test_compare__of_three_pairs_by_hand(comparison, expected):
    """1 2 3 against 1 3 2: two of three pairs of pairs in the same order, and ranks that differ by 0, 1, 1."""
    assert compare(np.array([[1.0, 2, 3]]), np.array([[1.0, 3, 2]]), comparison) == pytest.approx(expected, abs=1e-15)


def test_compare__of_ties_by_hand():
    """1 1 2 against itself: one pair of three is tied, so tau-a is 2/3 and rho-a 12 * 1.5 / 24."""
    tied = np.array([[1.0, 1, 2]])

    assert compare(tied, tied, "tau-a") == pytest.approx(2 / 3)
    assert compare(tied, tied, "rho-a") == pytest.approx(0.75)
    assert compare(tied, tied, "spearman") == pytest.approx(1)


@comparisons
def test_compare__of_a_multiple_is_one(comparison):
    d = matrices(12, 4, 6)

    assert np.diag(compare(d, 3 * d, comparison)) == pytest.approx(1, abs=1e-7 if comparison == "bures" else 1e-12)


def test_compare__whitened_cosine_is_biased_linear_cka(rng):
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 6))
    found = compare(pdist(x, "sqeuclidean")[None], pdist(y, "sqeuclidean")[None], "whitened cosine")

    assert found[0, 0] == pytest.approx(cka(x, y, config=CKAConfig(unbiased=False)).similarity.value, abs=1e-12)


def test_compare_rdms__finds_the_one_that_agrees():
    """Ten matrices, one made of the same responses: it stands out, and hardly any other does."""
    rng = generator(3, "planted")
    x = rng.normal(size=(30, 5))
    first = pdist(x, "sqeuclidean")[None]
    second = np.array([pdist(rng.normal(size=(30, 5)), "sqeuclidean") for _ in range(9)])
    second = np.concatenate([second, pdist(x + 0.2 * rng.normal(size=x.shape), "sqeuclidean")[None]])

    found = compare_rdms(first, second, config=config(n_permutations=999))

    assert found.p_family[0, -1] == 0.001
    assert found.q_value[0, -1] == pytest.approx(0.01)
    assert found.low[0, -1] > found.high[0, :-1].max()
    assert found.n_discoveries <= 2


# Oracle
@pytest.mark.oracle
@comparisons
@pytest.mark.parametrize("ties", [False, True])
def test_compare__equals_rsatoolbox(comparison, ties):
    """Theirs takes roots of eigenvalues that are rounding for bures, which leaves 1e-7."""
    from rsatoolbox.rdm import RDMs, compare as theirs

    first, second = matrices(20, 3, 4, 30, ties=ties), matrices(20, 5, 2, ties=ties)

    found = compare(first, second, comparison)

    expected = theirs(RDMs(first), RDMs(second), method=PEER[comparison])
    assert found == pytest.approx(expected, abs=1e-7 if comparison == "bures" else 1e-10)


def test_compare__bures_is_the_nuclear_norm_of_the_cross_products(rng):
    """Σ singular values of Xᵀ Y over |X| |Y|, columns centred: exact, as no root of rounding is taken."""
    x, y = rng.normal(size=(20, 4)), rng.normal(size=(20, 6))
    a, b = (each - each.mean(axis=0) for each in (x, y))
    expected = np.linalg.norm(a.T @ b, "nuc") / (np.linalg.norm(a) * np.linalg.norm(b))

    found = compare(*(pdist(each, "sqeuclidean")[None] for each in (x, y)), "bures")

    assert found[0, 0] == pytest.approx(expected, abs=1e-10)


@pytest.mark.oracle
@with_gaps
def test_compare__equals_rsatoolbox_where_pairs_are_missing(comparison):
    from rsatoolbox.rdm import RDMs, compare as theirs

    first, second = matrices(20, 3, 4), matrices(20, 5)
    missing = generator(0, "missing").random(first.shape[1]) < 0.2
    first, second = (np.where(missing, np.nan, each) for each in (first, second))

    expected = theirs(RDMs(first), RDMs(second), method=PEER[comparison])
    assert compare(first, second, comparison) == pytest.approx(expected, abs=1e-10)


@pytest.mark.oracle
@whitened
def test_compare__works_where_rsatoolbox_raises(comparison):
    """Pairs are missing among 100 conditions: theirs divides an integer matrix in place, ours equals the definition."""
    from rsatoolbox.rdm import RDMs, compare as theirs
    from rsatoolbox.rdm.compare import _cosine_cov_weighted_slow

    first, second = matrices(100, 3, 4), matrices(100, 5)
    missing = generator(0, "missing").random(first.shape[1]) < 0.5
    a, b = (np.where(missing, np.nan, each) for each in (first, second))

    with pytest.raises(TypeError, match="ufunc"):
        theirs(RDMs(a), RDMs(b), method=PEER[comparison])

    keep = ~missing
    first, second = first[:, keep], second[:, keep]
    if comparison == "whitened correlation":
        first, second = (each - each.mean(axis=1, keepdims=True) for each in (first, second))
    slow = _cosine_cov_weighted_slow(first, second, nan_idx=keep)  # conjugate gradients to 1e-5
    assert compare(a, b, comparison) == pytest.approx(slow, abs=1e-4)


@whitened
@pytest.mark.parametrize("kind", ["none", "variances", "covariance"])
@pytest.mark.parametrize("gaps", [0.0, 0.3])
def test_compare__whitens_by_the_covariance_of_the_entries(comparison, kind, gaps):
    """V = (C S Cᵀ)∘², made and inverted. (rsatoolbox centres plainly before it divides by variances, so differs.)"""
    n, rng = 12, generator(0, "sigma")
    first, second = matrices(n, 3, 4), matrices(n, 5)
    root = rng.normal(size=(n, 2 * n))
    sigma = {"none": None, "variances": rng.uniform(0.5, 2, n), "covariance": root @ root.T / n}[kind]
    keep = rng.random(first.shape[1]) >= gaps
    contrasts = np.eye(n)[UPPER[n][0]] - np.eye(n)[UPPER[n][1]]
    full = {"none": np.eye(n), "variances": np.diag(np.ravel(sigma)) if sigma is not None else 0, "covariance": sigma}
    v = ((contrasts @ full[kind] @ contrasts.T) ** 2)[np.ix_(keep, keep)]
    a, b = first[:, keep], second[:, keep]
    if comparison == "whitened correlation":
        a, b = (each - each.mean(axis=1, keepdims=True) for each in (a, b))
    inner = [left @ np.linalg.solve(v, right.T) for left, right in ((a, b), (a, a), (b, b))]
    expected = inner[0] / np.sqrt(np.outer(np.diag(inner[1]), np.diag(inner[2])))

    found = compare(np.where(keep, first, np.nan), np.where(keep, second, np.nan), comparison, sigma=sigma)

    assert found == pytest.approx(expected, abs=1e-10)


@pytest.mark.oracle
@whitened
def test_compare__equals_rsatoolbox_for_a_covariance_of_conditions(comparison):
    """Theirs solves by conjugate gradients to a relative 1e-5."""
    from rsatoolbox.rdm import RDMs, compare as theirs

    first, second = matrices(12, 3, 4), matrices(12, 5)
    root = generator(0, "sigma").normal(size=(12, 24))
    sigma = root @ root.T / 12

    expected = theirs(RDMs(first), RDMs(second), method=PEER[comparison], sigma_k=sigma)
    assert compare(first, second, comparison, sigma=sigma) == pytest.approx(expected, abs=1e-4)


def test_compare__tau_a_equals_counting():
    d, e = matrices(12, 3, 4, ties=True)
    i, j = np.triu_indices(len(d), 1)
    expected = np.mean(np.sign(d[i] - d[j]) * np.sign(e[i] - e[j]))

    assert compare(d[None], e[None], "tau-a")[0, 0] == pytest.approx(expected, abs=1e-14)


@comparisons
def test_bootstrap__equals_the_repeated_conditions(comparison):
    """Pairs of copies are missing; for bures they are at distance 0."""
    first, second = matrices(8, 3, 4), matrices(8, 2)
    counts = Draws(n_bootstrap=20, n_permutations=0, level=0.95, seed=0).counts(8)
    expected = []
    for count in counts.T:
        drawn = np.repeat(np.arange(8), count)
        copies = drawn[UPPER[8][0]] == drawn[UPPER[8][1]]
        a, b = (
            np.array([square_form(each)[np.ix_(drawn, drawn)][UPPER[8]] for each in some]) for some in (first, second)
        )
        if comparison != "bures":
            a, b = (np.where(copies, np.nan, each) for each in (a, b))
        expected.append(compare(a, b, comparison))

    found = bootstrap_agreements(first, second, comparison, counts=counts)

    usable = np.isfinite(found).all(axis=(1, 2))
    assert usable.mean() > 0.8
    assert found[usable] == pytest.approx(np.array(expected)[usable], abs=1e-7 if comparison == "bures" else 1e-10)


@with_gaps
def test_bootstrap__leaves_missing_pairs_out(comparison):
    first, second = matrices(12, 3, 4), matrices(12, 2)
    first[0, 5:9], second[0, 7:12] = np.nan, np.nan
    counts = np.array([[1] * 12, [2, 0] * 6, [1, 2, 0] * 4]).T

    found = bootstrap_agreements(first, second, comparison, counts=counts)

    assert found[0] == pytest.approx(compare(first, second, comparison), abs=1e-10)
    drawn = np.repeat(np.arange(12), counts[:, 2])
    copies = drawn[UPPER[12][0]] == drawn[UPPER[12][1]]
    a, b = (
        np.array([np.where(copies, np.nan, square_form(each)[np.ix_(drawn, drawn)][UPPER[12]]) for each in some])
        for some in (first, second)
    )
    assert found[2] == pytest.approx(compare(a, b, comparison), abs=1e-10)


@comparisons
@pytest.mark.parametrize("gaps", [False, True])
def test_relabelling__equals_relabelled_matrices(comparison, gaps):
    first, second = matrices(12, 3, 4, ties=comparison == "tau-a"), matrices(12, 2)
    if gaps and comparison != "bures":
        first[0, 5:9] = np.nan
    permutations = Draws(n_bootstrap=0, n_permutations=9, level=0.95, seed=0).permutations(12)
    expected = [
        compare(first, np.array([square_form(each)[np.ix_(order, order)][UPPER[12]] for each in second]), comparison)
        for order in permutations
    ]

    found = relabelled_agreements(first, second, comparison, permutations=permutations)

    assert found == pytest.approx(np.array(expected), abs=1e-7 if comparison == "bures" else 1e-10)


# Law
@comparisons
@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
def test_compare__is_symmetric_bounded_and_ignores_scale(comparison, seed, scale):
    d = matrices(8, 3, 5, 2, seed=seed, ties=seed % 2 == 0)
    found = compare(d[:2], d[1:], comparison)

    assert np.all(np.abs(found) <= 1 + 1e-9)
    turned = compare(d[1:], d[:2], comparison).T
    assert turned == pytest.approx(found, abs=1e-7)
    assert compare(scale * d[:2], d[1:], comparison) == pytest.approx(found, abs=1e-7)


@with_gaps
@settings(max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_compare__leaves_out_what_either_side_misses(comparison, seed):
    """Each entry is that of its own two matrices, with the pairs that one of them lacks taken from both."""
    d = matrices(8, 3, 5, 2, seed=seed)
    d[generator(seed, "gaps").random(d.shape) < 0.15] = np.nan
    found = compare(d[:2], d[1:], comparison)
    for i, j in np.ndindex(2, 2):
        missing = np.isnan(d[i]) | np.isnan(d[j + 1])
        both = np.where(missing, np.nan, d[[i, j + 1]])
        assert found[i, j] == pytest.approx(compare(both[:1], both[1:], comparison)[0, 0], abs=1e-10)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_compare__ranks_ignore_any_rising_change(seed):
    d = matrices(8, 3, 5, seed=seed)

    for comparison in ("spearman", "rho-a", "tau-a"):
        found = compare(d[:1], d[1:], comparison)
        assert compare(np.log(d[:1]), d[1:] ** 3, comparison) == pytest.approx(found, abs=1e-12)


@comparisons
def test_compare_rdms__same_seed_gives_the_same_bits_for_any_worker_count(comparison):
    first, second = matrices(20, 3, 4), matrices(20, 5, 2)
    found = []
    for threads in (1, 3):
        with compute(Backend(threads=threads)):
            found.append(compare_rdms(first, second, config=config(comparison)))

    assert found[0].scalars() == found[1].scalars()
    for name, array in found[0].arrays().items():
        assert np.array_equal(array, found[1].arrays()[name]), name


def test_compare_rdms__of_one_entry_says_what_the_mean_says():
    d = matrices(20, 3, 4)
    found = compare_rdms(d[:1], d[1:], config=config())

    assert found.mean.parts() == pytest.approx(
        {"": found.similarity[0, 0], "low": found.low[0, 0], "high": found.high[0, 0], "null": found.null[0, 0]}
        | {"p_value": found.p_value[0, 0]}
    )
    assert found.p_value == found.q_value == found.p_family


def test_compare_rdms__interval_shrinks_with_the_conditions_it_speaks_of():
    """Found on 60 of 240 conditions, the interval has the width it has when found on all: within a third."""
    d = matrices(240, 5, 5)
    some, every = (
        compare_rdms(d[:1], d[1:], config=CompareRDMsConfig(n_inference=n, n_permutations=9)) for n in (60, 240)
    )

    assert some.mean.value == every.mean.value
    assert some.mean.high - some.mean.low == pytest.approx(every.mean.high - every.mean.low, rel=1 / 3)


def test_compare_rdms__counts_missing_pairs():
    first, second = matrices(12, 3, 4), matrices(12, 2)
    first[0, 5:9], second[0, 7:12] = np.nan, np.nan
    found = compare_rdms(first, second, config=config())

    assert found.n_missing_pairs == 7
    assert np.isfinite(found.p_family).all()


def test_compare_rdms__reading_says_how_many_stand_out():
    d = matrices(20, 3, 3, seed=1)

    assert "1 of 1 stand out" in compare_rdms(d[:1], 2 * d[:1], config=config()).reading()
    assert "no relabelling" in compare_rdms(d[:1], d[1:], config=config(n_permutations=0)).reading()


@pytest.mark.calibration
@comparisons
def test_compare_rdms__p_values_are_uniform_under_the_null(comparison):
    """500 unrelated pairs; the KS distance of 500 uniform draws passes 0.087 once in 1000."""
    rng, options = generator(5, "null"), config(comparison, n_bootstrap=0, n_permutations=199)
    p = [
        compare_rdms(*(pdist(rng.normal(size=(12, 4)), "sqeuclidean")[None] for _ in "ab"), config=options).mean.p_value
        for _ in range(500)
    ]

    assert stats.kstest(p, "uniform").statistic < 0.087


@pytest.mark.calibration
def test_compare_rdms__family_wise_error_is_at_its_level():
    """300 experiments of 6 unrelated entries: any p_family <= 0.05 in 5 ± 3.8 % (three standard errors)."""
    rng, options = generator(6, "null"), config(n_bootstrap=0, n_permutations=199)
    found = []
    for _ in range(300):
        first, second = (np.array([pdist(rng.normal(size=(12, 4))) for _ in range(size)]) for size in (2, 3))
        found.append(compare_rdms(first, second, config=options).p_family.min() <= 0.05)

    assert 0.012 < np.mean(found) < 0.088


# Bad input
def test_compare_rdms__raises_on_different_pairs(without_shape_checks):
    with pytest.raises(ShapeError, match="same pairs"):
        compare_rdms(np.ones((1, 6)), np.ones((1, 10)))


@pytest.mark.parametrize("n_pairs", [3, 7])
def test_compare_rdms__raises_on_what_is_no_matrix_of_four_conditions(rng, n_pairs):
    with pytest.raises(ShapeError, match=f"n >= 4 conditions. Got {n_pairs}"):
        compare_rdms(rng.random((1, n_pairs)), rng.random((1, n_pairs)))


@pytest.mark.parametrize(
    ("filling", "match"), [(1.0, "equally far apart"), (np.inf, "Got infinity"), (np.nan, "differ")]
)
def test_compare_rdms__raises_on_a_matrix_without_an_answer(rng, filling, match):
    with pytest.raises(DegenerateInputError, match=match):
        compare_rdms(rng.random((1, 6)), np.full((1, 6), filling))


def test_compare_rdms__raises_on_missing_pairs_for_bures(rng):
    first = rng.random((1, 6))
    first[0, 2] = np.nan

    with pytest.raises(DegenerateInputError, match=r"for bures\. Got NaN"):
        compare_rdms(first, rng.random((1, 6)), config=config("bures"))


@pytest.mark.parametrize(
    "options", [{"comparison": "kendall"}, {"n_inference": 3}, {"level": 2}, {"n_permutations": -1}]
)
def test_compare_rdms__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match="must be"):
        CompareRDMsConfig(**options)


def test_compare__raises_on_sigma_it_cannot_use(rng):
    d = rng.random((1, 6))

    with pytest.raises(ConfigurationError, match="sigma must be left out for 'pearson'"):
        compare(d, d, "pearson", sigma=np.ones(4))
    with pytest.raises(ShapeError, match=r"sigma must be \(4,\) or \(4, 4\)"):
        compare(d, d, "whitened cosine", sigma=np.ones(3))
    with pytest.raises(DegenerateInputError, match="above 0"):
        compare(d, d, "whitened cosine", sigma=np.zeros(4))
    with pytest.raises(DegenerateInputError, match="positive definite"):
        compare(d, d, "whitened cosine", sigma=np.ones((4, 4)))
