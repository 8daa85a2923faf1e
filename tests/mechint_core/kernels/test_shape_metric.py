import numpy as np
import pytest

from mechint_core.kernels.halved_moments import Moments, halved_moments, random_half
from mechint_core.kernels.shape_metric import ShapePair, null_cosines


def moments(rows, weights=None):
    weights = np.ones(len(rows)) if weights is None else weights
    centred = rows - weights @ rows / weights.sum()
    return Moments(len(rows), (weights[:, None] * centred).T @ centred, True)


# Known answer
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("widths", [(4, 4), (5, 3), (2, 6)])
def test_influence__is_the_derivative_in_the_weight_of_a_row(rng, alpha, widths):
    """Central differences of the cosine: exact to their step of 1e-5, squared."""
    rows = rng.normal(size=(30, sum(widths))) + 3
    rows[:, -1] += rows[:, 0]
    centred, one = rows - rows.mean(axis=0), np.ones(30)
    pair = ShapePair.of(moments(rows), widths[0], alpha)

    def cosine(change):
        return ShapePair.of(moments(rows, one + change), widths[0], alpha).cosine

    steps = 1e-5 * np.eye(30)[:6]
    expected = [30 * (cosine(step) - cosine(-step)) / 2e-5 for step in steps]

    influence = pair.influence(centred, 30)

    np.testing.assert_allclose(influence[:6], expected, atol=1e-7)
    assert influence.sum() == pytest.approx(0, abs=1e-10)


def test_null_cosines__of_rotated_and_relabelled_samples_have_the_same_spread(rng):
    """Gaussian rows: means within 4 standard errors of 300 draws, standard deviations within 20 %."""
    rows = rng.normal(size=(50, 9))
    rows -= rows.mean(axis=0)
    pair = ShapePair.of(moments(rows), 5, 0.5)

    relabelled, rotated = (null_cosines(pair, moments(rows), each, n_draws=300, seed=0) for each in (rows, None))

    assert rotated.mean() == pytest.approx(relabelled.mean(), abs=4 * relabelled.std() / np.sqrt(150))
    assert rotated.std() == pytest.approx(relabelled.std(), rel=0.2)


# Law
@pytest.mark.parametrize("centred", [True, False])
def test_halved_moments__are_those_of_each_half(rng, centred):
    rows, half = rng.normal(size=(41, 3)) + 5, random_half(41, 0)
    picked = np.arange(41) % 2 == 0

    found = halved_moments(rows, half, picked=picked, centred=centred, block_rows=7)

    for which, got in enumerate(found.halves):
        part = rows[half == which]
        part = part - part.mean(axis=0) if centred else part
        np.testing.assert_allclose(got.cross, part.T @ part, rtol=1e-10)
        assert got.n == len(part)
    whole = rows - rows.mean(axis=0) if centred else rows
    np.testing.assert_allclose(found.whole.cross, whole.T @ whole, rtol=1e-10)
    np.testing.assert_allclose(found.picked, whole[picked], atol=1e-12)
    np.testing.assert_array_equal(found.picked_half, half[picked])
