import sys
import warnings

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.geometry import PersistenceSummariesConfig, persistence_summaries
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

FIVE = PersistenceSummariesConfig(n_scales=5, n_landscapes=2)


def random_bars(seed, n):
    birth, length = generator(seed, "bars").random((2, n))
    return np.stack([birth, birth + length], axis=1)


# Known answer
def test_persistence_summaries__of_two_nested_bars_by_hand():
    """Bars (0, 4) and (1, 3) at scales 0, 1, 2, 3, 4."""
    found = persistence_summaries([np.array([[0.0, 4], [1, 3]])], config=FIVE)

    assert found.scale.tolist() == [0, 1, 2, 3, 4]
    assert found.betti.tolist() == [[1, 2, 2, 1, 0]]
    assert found.landscape.tolist() == [[[0, 1, 2, 1, 0], [0, 0, 1, 0, 0]]]
    np.testing.assert_allclose(found.silhouette, [[0, 4 / 6, (8 + 2) / 6, 4 / 6, 0]])
    p = np.array([4, 2]) / 6
    np.testing.assert_allclose(found.entropy, [-(p @ np.log(p))])
    assert found.total_length.tolist() == [6]


def test_persistence_summaries__image_holds_the_length_of_a_bar_where_it_is():
    """A narrow blob in the middle of one pixel: its integral is the bar's length."""
    config = PersistenceSummariesConfig(n_pixels=10, bandwidth=0.005, largest=10.0)
    found = persistence_summaries([np.array([[2.5, 7.0]])], config=config)  # birth 2.5, length 4.5

    expected = np.zeros((10, 10))
    expected[4, 2] = 4.5
    np.testing.assert_allclose(found.image[0], expected, atol=1e-12)


def test_persistence_summaries__empty_barcodes_are_zero_and_have_no_entropy():
    found = persistence_summaries([np.empty((0, 2)), np.array([[0.0, 1]])], config=FIVE)

    assert not found.betti[0].any()
    assert not found.landscape[0].any()
    assert not found.silhouette[0].any()
    assert not found.image[0].any()
    assert np.isnan(found.entropy[0])
    assert found.entropy[1] == 0


def test_persistence_summaries__a_bar_that_never_ends_is_cut_at_the_last_scale():
    found = persistence_summaries([np.array([[1.0, np.inf], [0, 2]])], config=FIVE)

    assert found.scale[-1] == 2
    assert found.betti.tolist() == [[1, 1, 2, 2, 1]]
    assert found.total_length.tolist() == [3]


# Oracle
@pytest.mark.parametrize("n", [1, 4, 12])
def test_persistence_summaries__landscapes_equal_persims_exact_ones(n):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from persim import PersLandscapeExact

        bars = random_bars(n, n)
        peer = PersLandscapeExact(dgms=[bars], hom_deg=0)
        peer.compute_landscape()
    found = persistence_summaries([bars], config=PersistenceSummariesConfig(n_landscapes=3))

    for level, corners in enumerate(peer.critical_pairs[:3]):
        expected = np.interp(found.scale, *np.array(corners, dtype=float).T)
        np.testing.assert_allclose(found.landscape[0, level], expected, atol=1e-12)
    assert not found.landscape[0, n:].any()


def test_persistence_summaries__images_equal_persims():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from persim import PersistenceImager

    bars = random_bars(0, 8) / 2
    found = persistence_summaries([bars], config=PersistenceSummariesConfig(largest=1.0, n_pixels=10, bandwidth=0.08))
    peer = PersistenceImager(
        birth_range=(0, 1), pers_range=(0, 1), pixel_size=0.1, kernel_params={"sigma": [[0.0064, 0.0], [0.0, 0.0064]]}
    )

    np.testing.assert_allclose(found.image[0].T, peer.transform(bars), atol=1e-8)


# Law
@given(st.integers(0, 2**32), st.floats(1e-6, 1e6))
@settings(max_examples=15)
def test_persistence_summaries__follow_scale_and_forget_order(seed, scale):
    bars = random_bars(seed, 9)
    here = persistence_summaries([bars])
    there = persistence_summaries([scale * generator(seed, "order").permutation(bars)])

    np.testing.assert_allclose(there.landscape, scale * here.landscape, rtol=1e-9, atol=1e-12 * scale)
    np.testing.assert_allclose(there.silhouette, scale * here.silhouette, rtol=1e-9, atol=1e-12 * scale)
    np.testing.assert_allclose(there.entropy, here.entropy)


@given(st.integers(0, 2**32))
@settings(max_examples=15)
def test_persistence_summaries__integrals_are_those_of_the_bars(seed):
    """Of the Betti curve: the total length; of all landscapes together: the sum of l^2 / 4 (trapezoids, fine grid)."""
    bars = random_bars(seed, 6)
    found = persistence_summaries([bars], config=PersistenceSummariesConfig(n_scales=4001, n_landscapes=6))
    length = bars[:, 1] - bars[:, 0]

    assert np.trapezoid(found.betti[0], found.scale) == pytest.approx(length.sum(), rel=2e-3)
    assert np.trapezoid(found.landscape[0].sum(axis=0), found.scale) == pytest.approx(np.sum(length**2) / 4, rel=1e-3)
    assert np.all(np.diff(found.landscape[0], axis=0) <= 0)


def test_persistence_summaries__many_at_once_are_each_alone(monkeypatch):
    many = [random_bars(seed, seed) for seed in range(1, 9)]
    config = PersistenceSummariesConfig(largest=2.0)
    whole = persistence_summaries(many, config=config)
    alone = [persistence_summaries([bars], config=config) for bars in many]
    monkeypatch.setattr(sys.modules[persistence_summaries.__module__], "BLOCK_BYTES", 20000)
    with compute(Backend(threads=2)):
        blocks = persistence_summaries(many, config=config)

    for name in ("betti", "landscape", "silhouette", "image", "entropy"):
        np.testing.assert_array_equal(getattr(blocks, name), getattr(whole, name))
        one_by_one = np.concatenate([getattr(each, name) for each in alone])
        np.testing.assert_allclose(one_by_one, getattr(whole, name), rtol=1e-12, atol=1e-15)


# Bad input
@pytest.mark.parametrize("barcodes", [[], [np.zeros(3)], [np.zeros((4, 3))]])
def test_persistence_summaries__raises_on_what_is_no_barcode(barcodes):
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ShapeError, match=r"must each be \(bar, 2\)"):
            persistence_summaries(barcodes)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("bar", [[np.nan, 1], [0, np.nan], [2, 1], [-np.inf, 1]])
def test_persistence_summaries__raises_on_what_is_no_bar(bar):
    with pytest.raises(DegenerateInputError, match="Got 1 that do not"):
        persistence_summaries([np.array([[0.0, 1], bar])])


def test_persistence_summaries__raises_where_nothing_sets_the_scale():
    with pytest.raises(DegenerateInputError, match="give `largest`"):
        persistence_summaries([np.array([[0.0, np.inf]])])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n_scales": 1}, "n_scales"), ({"n_pixels": 0}, "n_pixels"), ({"bandwidth": 0.0}, "bandwidth")],
)
def test_persistence_summaries__config_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ConfigurationError, match=message):
        PersistenceSummariesConfig(**options)
