import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from sklearn.covariance import LedoitWolf

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.kernels.noise_covariance import (
    Shrinkage,
    covariance_of_residuals,
    noise_covariance,
    residuals,
    whitening_of,
)
from mechint_core.random import generator

SHRINKAGES = ["full", "diagonal", "shrunk to identity", "shrunk to diagonal"]
shrinkages = pytest.mark.parametrize("shrinkage", SHRINKAGES)


def sampled(seed=0, n_groups=8, n_repeats=4, n_units=6):
    rng = generator(seed, "noise")
    mixing = np.eye(n_units) + 0.15 * rng.normal(size=(n_units, n_units))
    group = rng.permutation(np.repeat(np.arange(n_groups), n_repeats))
    means = 5 * rng.normal(size=(n_groups, n_units))
    return means[group] + rng.normal(size=(len(group), n_units)) @ mixing, group


# Known answer
def test_noise_covariance__of_two_pairs_of_samples():
    """Residuals (±1, 0) and (0, ±2) with two degrees of freedom: variances 1 and 4, no covariance."""
    x, group = np.array([[1.0, 0.0], [3.0, 0.0], [5.0, 2.0], [5.0, 6.0]]), np.array([0, 0, 1, 1])

    found = noise_covariance(x, group, shrinkage="full")

    assert found.covariance == pytest.approx(np.diag([1.0, 4.0]), abs=1e-14)
    assert (found.weight, found.dof) == (0.0, 2)


def test_noise_covariance__weight_to_the_diagonal_of_two_units():
    """λ = (mean of w_1² w_2² / mean of w_1 w_2 squared - 1) / ν, with ν = 3 for one group of four samples."""
    one = np.zeros(4, np.int64)
    together = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])  # w_1 w_2 = 3/4 every time: λ = 0
    unrelated = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])  # nothing is left to shrink
    mostly = np.array([[3.0, 3.0], [-1.0, -1.0], [-1.0, 1.0], [-1.0, -3.0]])  # products ∝ 9, 1, -1, 3: 4 · 92 / 12²

    assert noise_covariance(together, one).weight == pytest.approx(0, abs=1e-14)
    assert noise_covariance(unrelated, one).weight == 0.0
    assert noise_covariance(mostly, one).weight == pytest.approx((4 * 92 / 12**2 - 1) / 3, rel=1e-12)


# Oracle
def test_noise_covariance__shrunk_to_identity_equals_sklearn_for_one_group():
    for seed, n_repeats in ((0, 12), (1, 40), (2, 5)):
        x, group = sampled(seed, n_groups=1, n_repeats=n_repeats)
        theirs = LedoitWolf().fit(x)

        ours = noise_covariance(x, group, shrinkage="shrunk to identity")

        assert ours.weight == pytest.approx(theirs.shrinkage_, abs=1e-12)
        n = len(x)
        assert ours.covariance == pytest.approx(theirs.covariance_ * n / (n - 1), abs=1e-12)  # theirs divides by n


RSATOOLBOX = {
    "full": "full",
    "diagonal": "diag",
    "shrunk to identity": "shrinkage_eye",
    "shrunk to diagonal": "shrinkage_diag",
}


@pytest.mark.oracle
@pytest.mark.parametrize("shrinkage", ["full", "diagonal"])
def test_noise_covariance__equals_rsatoolbox(shrinkage):
    from rsatoolbox.data import Dataset
    from rsatoolbox.data.noise import cov_from_measurements, cov_from_unbalanced, prec_from_unbalanced

    x, group = sampled()
    dataset, method = Dataset(x, obs_descriptors={"group": group}), RSATOOLBOX[shrinkage]

    ours = noise_covariance(x, group, shrinkage=shrinkage)

    assert ours.covariance == pytest.approx(cov_from_unbalanced(dataset, "group", method=method), abs=1e-10)
    theirs = cov_from_measurements(dataset, "group", dof=ours.dof, method=method)  # its own dof are (groups - 1) · n
    assert ours.covariance == pytest.approx(theirs, abs=1e-10)
    assert ours.precision() == pytest.approx(prec_from_unbalanced(dataset, "group", method=method), abs=1e-10)


@pytest.mark.oracle
def test_noise_covariance__shrunk_equals_rsatoolbox_for_one_group():
    """To the diagonal, theirs has the square of the mean of n - 1 products where the paper has n/(n - 1) less."""
    from rsatoolbox.data.noise import cov_from_residuals

    x, group = sampled(n_groups=1, n_repeats=30)

    to_identity = noise_covariance(x, group, shrinkage="shrunk to identity")
    to_diagonal = noise_covariance(x, group, shrinkage="shrunk to diagonal")

    assert to_identity.covariance == pytest.approx(cov_from_residuals(x, method="shrinkage_eye"), abs=1e-10)
    theirs = cov_from_residuals(x, method="shrinkage_diag")
    weight = 1 - theirs[0, 1] / np.cov(x.T)[0, 1]
    assert to_diagonal.weight == pytest.approx(weight + 1 / 29**2, abs=1e-10)


# Law
@pytest.mark.parametrize(("shrinkage", "n_repeats"), [("shrunk to identity", 2), ("shrunk to diagonal", 3)])
def test_noise_covariance__loses_no_more_than_twice_the_best_weight_whatever_the_groups(shrinkage, n_repeats):
    """With n in place of ν + 1, the loss to the identity is four times that of the best weight here."""
    scale = generator(0, "scale").uniform(0.7, 1.4, size=12)
    truth = np.diag(scale**2)
    losses, best = [], []
    for seed in range(60):
        x = generator(seed, "loss").normal(size=(20 * n_repeats, 12)) * scale
        group = np.repeat(np.arange(20), n_repeats)
        found = noise_covariance(x, group, shrinkage=shrinkage)
        full = noise_covariance(x, group, shrinkage="full").covariance
        target = np.diag(np.diag(full)) if "diagonal" in shrinkage else np.eye(12) * np.trace(full) / 12
        losses.append(np.sum((found.covariance - truth) ** 2))
        best.append(min(np.sum(((1 - w) * full + w * target - truth) ** 2) for w in np.linspace(0, 1, 21)))
    assert np.mean(losses) < 2 * np.mean(best)


@shrinkages
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), factor=st.floats(0.1, 10))
def test_noise_covariance__scales_with_the_data_and_whitens(shrinkage: Shrinkage, seed, factor):
    x, group = sampled(seed)
    found = noise_covariance(x, group, shrinkage=shrinkage)
    again = noise_covariance(factor * x + 3, group, shrinkage=shrinkage)
    whitening = found.whitening()

    assert 0 <= found.weight <= 1
    assert again.covariance == pytest.approx(factor**2 * found.covariance, rel=1e-9, abs=1e-9 * factor**2)
    assert again.weight == pytest.approx(found.weight, abs=1e-9)
    assert whitening.T @ found.covariance @ whitening == pytest.approx(np.eye(6), abs=1e-9)
    assert found.precision() @ found.covariance == pytest.approx(np.eye(6), abs=1e-8)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20)
def test_residuals__sum_to_nothing_in_every_group(seed):
    x, group = sampled(seed)
    found = residuals(x, group)

    ordered = np.sort(group)
    assert all(np.abs(found[ordered == each].sum(axis=0)).max() < 1e-12 for each in range(8))


@pytest.mark.parametrize("shrinkage", ["diagonal", "shrunk to identity", "shrunk to diagonal"])
def test_noise_covariance__shrunk_is_invertible_with_fewer_samples_than_units(rng, shrinkage):
    x, group = rng.normal(size=(10, 40)), np.repeat(np.arange(5), 2)

    assert np.all(np.isfinite(noise_covariance(x, group, shrinkage=shrinkage).whitening()))


# Bad input
def test_noise_covariance__refuses_to_invert_a_singular_one(rng):
    full = noise_covariance(rng.normal(size=(10, 40)), np.repeat(np.arange(5), 2), shrinkage="full")

    with pytest.raises(DegenerateInputError, match=r"must be invertible.*shrink it"):
        full.whitening()
    with pytest.raises(DegenerateInputError, match="must be invertible"):
        whitening_of(np.array([[1.0, 1.0], [1.0, 1.0]]))


def test_noise_covariance__whitens_units_of_very_different_size():
    assert whitening_of(np.diag([1e-12, 1e12])) == pytest.approx(np.diag([1e6, 1e-6]), rel=1e-12)


def test_noise_covariance__raises_without_repeats(rng):
    with pytest.raises(DegenerateInputError, match="degree of freedom"):
        noise_covariance(rng.normal(size=(5, 3)), np.arange(5))


def test_noise_covariance__raises_on_a_unit_without_noise(rng):
    x, group = sampled()
    x[:, 2] = 7

    with pytest.raises(DegenerateInputError, match="Got 1 units of 6"):
        noise_covariance(x, group)
    assert np.isfinite(noise_covariance(x, group, shrinkage="shrunk to identity").weight)


def test_noise_covariance__raises_on_nan_shape_and_word(without_shape_checks):
    x, group = sampled()
    with pytest.raises(ShapeError, match="one group per sample"):
        noise_covariance(x, group[1:])
    with pytest.raises(ConfigurationError, match="shrinkage must be one of"):
        noise_covariance(x, group, shrinkage="oas")
    with pytest.raises(ConfigurationError, match="shrinkage must be one of"):
        covariance_of_residuals(x, dof=3, shrinkage="oas")
    x[0, 0] = np.nan
    with pytest.raises(DegenerateInputError, match="x must be finite"):
        noise_covariance(x, group)
