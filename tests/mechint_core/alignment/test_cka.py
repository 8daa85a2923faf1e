from dataclasses import replace
from itertools import permutations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import rbf_kernel

from mechint_core.alignment import CKAConfig, CKAResult, cka
from mechint_core.alignment._kernel_alignment import align_batches
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.kernels import linear_kernels, radial_kernels
from mechint_core.kernels.shuffle import BlockShuffle
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.synthetic.aligned_systems import aligned_systems

BIASED, UNBIASED = CKAConfig(unbiased=False), CKAConfig(unbiased=True)
both = pytest.mark.parametrize("config", [BIASED, UNBIASED], ids=["biased", "unbiased"])


def value(x, y, config=BIASED):
    return cka(x, y, config=config).similarity.value


def rotation(rng, size):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


# Known answer
@pytest.mark.parametrize("similarity", [0.0, 0.2, 0.9, 1.0])
def test_cka__is_the_planted_similarity(similarity):
    pair = aligned_systems(80, 6, similarity=similarity, exact=True)

    assert value(pair.x, pair.y) == pytest.approx(similarity, abs=1e-12)


@both
@pytest.mark.parametrize("n_units", [4, 50], ids=["streamed", "whole"])
def test_cka__of_a_rotated_scaled_and_shifted_copy_is_one(rng, config, n_units):
    x = rng.normal(size=(40, n_units))

    found = cka(x, -3 * x @ rotation(rng, n_units) + 7, config=config).similarity

    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1), abs=1e-9)


def test_cka__biased_is_driven_to_one_by_width_and_unbiased_is_zero_on_average():
    """Independent Gaussians, 2000 units, 20 samples; the mean of 200 has standard error 1 / sqrt(200 n(n-3)/2)."""
    rng = generator(0, "wide")
    draws = [(rng.normal(size=(20, 2000)), rng.normal(size=(20, 2000))) for _ in range(200)]

    assert min(value(x, y, BIASED) for x, y in draws) > 0.97
    assert abs(np.mean([value(x, y, UNBIASED) for x, y in draws])) < 4 / np.sqrt(200 * 20 * 17 / 2)


@both
def test_cka__null_and_spread_are_those_of_all_relabellings(config):
    """Every permutation of 5 rows, against the closed forms: exact, so to rounding."""
    rng = generator(1, "relabel")
    x, y = rng.normal(size=(5, 2)), rng.gamma(0.5, size=(5, 3))

    everything = [value(x, y[list(order)], config) for order in permutations(range(5))]

    assert cka(x, y, config=config).similarity.null == pytest.approx(np.mean(everything), abs=1e-12)
    if config.unbiased:
        assert np.var(everything) == pytest.approx(2 / (5 * 2), rel=1e-10)


def test_cka__with_a_narrow_radial_kernel_sees_what_a_linear_one_does_not():
    """A ring and its angle doubled: no linear relation, the same neighbours up to the other half of the ring."""
    rng = generator(6, "ring")
    angle = rng.uniform(0, 2 * np.pi, 300)
    x, y = (np.column_stack([np.cos(k * angle), np.sin(k * angle)]) for k in (1, 2))

    narrow = cka(x, y, config=CKAConfig(kernel="rbf", bandwidth=0.3)).similarity

    assert abs(value(x, y, UNBIASED)) < 0.05
    assert narrow.low > 0.2


def test_cka__of_batches_is_never_nan_and_zero_on_average_for_unrelated_systems():
    """A batch's unbiased HSIC is negative half of the time (dmarx/cka_pytorch#2)."""
    rng, config = generator(7, "batches"), CKAConfig(batch_size=8)
    found = [value(rng.normal(size=(40, 30)), rng.normal(size=(40, 30)), config) for _ in range(100)]

    assert np.all(np.isfinite(found))
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(100)


# Oracle
def biased_hsic(k, ell):
    h = np.eye(len(k)) - 1 / len(k)
    return np.trace(k @ h @ ell @ h)


def unbiased_hsic(k, ell):
    """Song et al. 2012, equation 5."""
    n, ones = len(k), np.ones(len(k))
    k, ell = k - np.diag(np.diag(k)), ell - np.diag(np.diag(ell))
    mixed = (ones @ k @ ones) * (ones @ ell @ ones) / ((n - 1) * (n - 2))
    return (np.trace(k @ ell) + mixed - 2 / (n - 2) * (ones @ k @ ell @ ones)) / (n * (n - 3))


def gram_cka(x, y, *, unbiased, kernels=False):
    """The definition, with n x n matrices."""
    hsic = unbiased_hsic if unbiased else biased_hsic
    k, ell = (x, y) if kernels else (x @ x.T, y @ y.T)
    return hsic(k, ell) / np.sqrt(hsic(k, k) * hsic(ell, ell))


@both
@pytest.mark.parametrize("widths", [(3, 8), (30, 40), (3, 60)])
def test_cka__equals_the_gram_definition(rng, config, widths):
    x, y = (rng.normal(size=(30, p)) + 2 for p in widths)
    y[:, :3] += x[:, :3]

    assert value(x, y, config) == pytest.approx(gram_cka(x, y, unbiased=config.unbiased), abs=1e-10)


@both
@pytest.mark.parametrize("bandwidth", [0.4, 1.0, 3.0])
def test_cka__with_a_radial_kernel_equals_the_gram_definition_of_sklearns_kernel(rng, config, bandwidth):
    x = rng.normal(size=(40, 5)) + 2
    y = np.tanh(x[:, :3]) + rng.normal(size=(40, 3))
    gammas = [1 / (2 * (bandwidth * np.median(pdist(each))) ** 2) for each in (x, y)]
    k, ell = (rbf_kernel(each, gamma=gamma) for each, gamma in zip((x, y), gammas, strict=True))

    found = value(x, y, replace(config, kernel="rbf", bandwidth=bandwidth))

    assert found == pytest.approx(gram_cka(k, ell, unbiased=config.unbiased, kernels=True), abs=1e-10)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_cka__of_batches_divides_mean_by_mean(rng, kernel):
    """Nguyen et al. 2021: each of three HSICs is averaged over the batches first, by the number of the batches."""
    x = rng.normal(size=(64, 4))
    y = x[:, :3] + rng.normal(size=(64, 3))
    scales = [np.median(pdist(each)) for each in (x, y)]
    joint = BlockShuffle(np.hstack([x, y]), batch_size=16, seed=0)
    hsics = []
    for _ in range(4):
        batch = next(joint)
        k, ell = batch[:, :4] @ batch[:, :4].T, batch[:, 4:] @ batch[:, 4:].T
        if kernel == "rbf":
            one, other = batch[:, :4] / scales[0], batch[:, 4:] / scales[1]
            k, ell = rbf_kernel(one, gamma=0.5), rbf_kernel(other, gamma=0.5)
        hsics.append([unbiased_hsic(k, ell), unbiased_hsic(k, k), unbiased_hsic(ell, ell)])
    xy, xx, yy = np.mean(hsics, axis=0)

    found = cka(x, y, config=CKAConfig(kernel=kernel, batch_size=16))

    assert found.n_batches == 4
    assert found.similarity.value == pytest.approx(xy / np.sqrt(xx * yy), abs=1e-10)


def test_cka__of_batches_that_hold_everything_is_the_whole(rng):
    """Two batches with the same rows: the mean of equals."""
    x = rng.normal(size=(20, 3))
    y = x + rng.normal(size=(20, 3))

    batches = align_batches([linear_kernels.linear_kernels(x, y, picked=np.arange(20))] * 2)

    assert batches.value == pytest.approx(value(x, y, UNBIASED), abs=1e-12)


@pytest.mark.oracle
def test_cka__equals_the_whitened_cosine_of_rsatoolbox(rng):
    """Without a noise covariance the whitened cosine of squared Euclidean RDMs is the biased linear CKA."""
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm, compare

    x = rng.normal(size=(25, 6))
    y = x[:, :4] + rng.normal(size=(25, 4))

    theirs = compare(calc_rdm(Dataset(x)), calc_rdm(Dataset(y)), method="cosine_cov")[0, 0]

    assert value(x, y) == pytest.approx(theirs, abs=1e-10)


def test_cka__interval_is_about_the_delete_one_jackknife(rng):
    """The infinitesimal and the ordinary jackknife differ by O(1/n): 5 % at 150 samples."""
    x = rng.normal(size=(150, 4))
    y = x + rng.normal(size=(150, 4))
    keep = ~np.eye(150, dtype=bool)
    left_out = [value(x[rows], y[rows], UNBIASED) for rows in keep]
    error = np.sqrt(149 * np.var(left_out))

    influence = cka(x, y).influence

    assert influence.std(ddof=1) / np.sqrt(150) == pytest.approx(error, rel=0.05)


# Law
@both
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_cka__has_the_invariances_it_declares(config, seed, scale, shift):
    rng = generator(seed, "invariance")
    x, y = rng.normal(size=(24, 5)), rng.normal(size=(24, 3))
    changed = {
        "orthogonal": y @ rotation(rng, 3),
        "isotropic scaling": scale * y,
        "translation": y + shift,
    }
    assert set(changed) == set(CKAResult.invariances)
    for other in changed.values():
        assert value(x, other, config) == pytest.approx(value(x, y, config), abs=1e-10)
    assert value(y, x, config) == pytest.approx(value(x, y, config), abs=1e-12)
    assert abs(value(x, y, config)) <= 1 + 1e-12


@both
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), block_rows=st.integers(1, 70), threads=st.integers(1, 3))
def test_cka__streamed_equals_whole(config, seed, block_rows, threads):
    rng = generator(seed, "chunks")
    x = rng.normal(size=(60, 5)) + 30
    y = rng.normal(size=(60, 4)) + x[:, :4]
    with pytest.MonkeyPatch.context() as patch, compute(Backend(threads=threads)):
        patch.setattr(linear_kernels, "BLOCK_ROWS", block_rows)
        streamed = cka(x, y, config=config).scalars()

    whole = cka(x, y, config=config).scalars()

    assert streamed == pytest.approx(whole, rel=1e-9, abs=1e-10)


def test_cka__same_seed_gives_the_same_bits(rng):
    x, y = rng.normal(size=(2000, 3)), rng.normal(size=(2000, 3))

    for config in (CKAConfig(), CKAConfig(kernel="rbf"), CKAConfig(batch_size=100)):
        assert cka(x, y, config=config).scalars() == cka(x, y, config=config).scalars()


@both
@settings(max_examples=6)
@given(seed=st.integers(0, 2**31), tile_rows=st.integers(7, 70), threads=st.integers(1, 3))
def test_cka__with_a_radial_kernel_in_tiles_equals_whole(config, seed, tile_rows, threads):
    rng = generator(seed, "tiles")
    x = rng.normal(size=(60, 5)) + 30
    y = rng.normal(size=(60, 4)) + x[:, :4]
    config = replace(config, kernel="rbf")
    whole = cka(x, y, config=config).scalars()
    with pytest.MonkeyPatch.context() as patch, compute(Backend(threads=threads)):
        patch.setattr(radial_kernels, "TILE_ROWS", tile_rows)
        patch.setattr(radial_kernels, "RESIDENT_BYTES", 100)
        tiled = cka(x, y, config=config).scalars()

    assert tiled == pytest.approx(whole, rel=1e-9, abs=1e-10)
    for changed in (y @ rotation(rng, 4), 3 * y, y - 5):
        assert value(x, changed, config) == pytest.approx(whole["similarity"], abs=1e-9)


@pytest.mark.calibration
@pytest.mark.parametrize(
    "config",
    [CKAConfig(kernel="rbf"), CKAConfig(kernel="rbf", unbiased=False), CKAConfig(batch_size=20)],
    ids=["rbf", "rbf biased", "batches"],
)
def test_cka__p_values_of_other_kernels_and_batches_are_uniform_under_the_null(config):
    """500 unrelated pairs; the KS distance of 500 uniform draws passes 0.087 once in 1000."""
    rng = generator(8, "null")
    ps = [cka(rng.normal(size=(60, 4)), rng.normal(size=(60, 3)), config=config) for _ in range(500)]

    assert stats.kstest([each.similarity.p_value for each in ps], "uniform").statistic < 0.087


@pytest.mark.calibration
@pytest.mark.parametrize("config", [CKAConfig(kernel="rbf"), CKAConfig(batch_size=10)], ids=["rbf", "batches"])
def test_cka__intervals_of_other_kernels_and_batches_cover(config):
    """95 ± 3 % of 500 intervals, around the value of 4000 samples."""
    truth = value(*_related(generator(0, "truth"), 4000), replace(config, batch_size=0))
    rng = generator(1, "cover")
    found = [cka(*_related(rng, 200), config=config).similarity for _ in range(500)]

    assert 0.92 < np.mean([each.low <= truth <= each.high for each in found]) < 0.98


def _related(rng, n):
    x = rng.normal(size=(n, 3))
    return x, x + 0.7 * rng.normal(size=(n, 3))


def test_cka__interval_hardly_depends_on_how_many_rows_it_is_estimated_from(rng):
    x = rng.normal(size=(4000, 3))
    y = x + rng.normal(size=(4000, 3))
    some, every = (cka(x, y, config=CKAConfig(n_inference=n)).similarity for n in (300, 4000))

    assert some.high - some.low == pytest.approx(every.high - every.low, rel=0.2)


@both
@pytest.mark.parametrize(("n_samples", "n_units"), [(60, 3), (30, 100)])
def test_cka__p_values_are_uniform_under_the_null(config, n_samples, n_units):
    """400 unrelated pairs with decaying spectra; the KS distance of 400 uniform draws passes 0.097 once in 1000."""
    rng = generator(3, "null")
    decay = 1 / np.arange(1, n_units + 1)
    ps = [
        cka(rng.normal(size=(n_samples, n_units)) * decay, rng.normal(size=(n_samples, n_units)), config=config)
        for _ in range(400)
    ]

    assert stats.kstest([each.similarity.p_value for each in ps], "uniform").statistic < 0.097


@pytest.mark.slow
@pytest.mark.parametrize("similarity", [0.3, 0.8])
def test_cka__interval_covers_the_population_value(similarity):
    """95 ± 3 % of 1000 intervals; the binomial standard error is 0.7 %."""
    pairs = (aligned_systems(200, 5, similarity=similarity, seed=seed) for seed in range(1000))
    found = [cka(pair.x, pair.y).similarity for pair in pairs]

    assert 0.92 < np.mean([each.low <= similarity <= each.high for each in found]) < 0.98


@both
def test_cka__reading_says_when_systems_are_unrelated(rng, config):
    x = rng.normal(size=(100, 5))

    assert "not distinguishable" in cka(x, np.roll(x, 3, axis=0), config=config).reading()
    assert "would give 0.0" in cka(x, x + rng.normal(size=x.shape), config=config).reading()


# Bad input
def test_cka__raises_on_three_samples():
    with pytest.raises(ShapeError, match=r"at least 4 samples. Got shape \(3, 2\)"):
        cka(np.eye(3, 2), np.eye(3, 2))


def test_cka__raises_on_unequal_samples(rng, without_shape_checks):
    with pytest.raises(ShapeError, match="same samples"):
        cka(rng.normal(size=(8, 2)), rng.normal(size=(7, 2)))


def test_cka__raises_on_nan(rng):
    x = rng.normal(size=(8, 2))

    with pytest.raises(DegenerateInputError, match="y must be finite"):
        cka(x, np.where(x == x[2, 1], np.nan, x))


def test_cka__raises_on_a_constant_system(rng):
    with pytest.raises(DegenerateInputError, match="x must vary"):
        cka(np.full((8, 2), 0.1), rng.normal(size=(8, 2)))


def test_cka__raises_when_all_samples_are_equally_far_apart(rng):
    """One-hot rows: every U-centred entry is 0, so the unbiased form is 0 / 0; the biased one is defined."""
    one_hot, y = np.eye(8), rng.normal(size=(8, 3))

    with pytest.raises(DegenerateInputError, match="Got all pairs alike"):
        cka(one_hot, y)
    assert 0 < value(one_hot, y, BIASED) < 1


def test_cka__raises_on_fewer_than_two_batches(rng):
    with pytest.raises(ShapeError, match="two batches of 16"):
        cka(rng.normal(size=(18, 2)), rng.normal(size=(18, 2)), config=CKAConfig(batch_size=16))


def test_cka__raises_when_most_distances_are_zero(rng):
    x = np.zeros((20, 2))
    x[:3] = rng.normal(size=(3, 2))

    with pytest.raises(DegenerateInputError, match="more than half the rows agree"):
        cka(x, rng.normal(size=(20, 2)), config=CKAConfig(kernel="rbf"))


def test_cka__raises_on_biased_batches():
    with pytest.raises(ConfigurationError, match="batches need the unbiased form"):
        CKAConfig(batch_size=10, unbiased=False)


@pytest.mark.parametrize(
    "options",
    [{"n_inference": 1}, {"level": 1.0}, {"kernel": "polynomial"}, {"bandwidth": 0.0}, {"batch_size": 3}],
)
def test_cka__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))} must be"):
        CKAConfig(**options)
