import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from mechint_core.errors import ConfigurationError, DegenerateInputError, MemoryBudgetError, ShapeError
from mechint_core.geometry import (
    PersistenceVineyardConfig,
    PersistentHomologyConfig,
    diagram_distance,
    persistence_vineyard,
    persistent_homology,
)
from mechint_core.geometry._rotated_samples import rotated_landmarks
from mechint_core.geometry._vines import Vines
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator


def bars_only(**options):
    return PersistenceVineyardConfig(n_surrogates=0, n_resamples=0, **options)


def growing_ring(*, n=40, noise=0.15, seed=0, strength=(0.0, 0.0, 0.3, 0.8, 1.0, 1.0)):
    """A Gaussian cloud of 3 units that turns into a ring, checkpoint by checkpoint, and the steps."""
    rng = generator(seed, "growing")
    turn = 2 * np.pi * np.arange(n) / n
    ring = np.stack([np.cos(turn), np.sin(turn), 0 * turn], axis=1) * 2
    cloud = rng.standard_normal((n, 3))
    moved = [(1 - s) * cloud + s * ring + noise * rng.standard_normal((n, 3)) for s in strength]
    return moved, 10 ** np.arange(len(strength))


# Known answer
def test_vines__follow_bars_that_move_and_end_those_that_vanish():
    first = np.array([[0.0, 4.0], [1.0, 2.0]])
    second = np.array([[1.1, 2.1], [0.2, 4.0]])
    third = np.array([[0.3, 4.1], [5.0, 5.2]])
    vines = Vines.of([first, second, third])

    assert vines.n_vines == 3
    np.testing.assert_allclose(vines.birth, [[0, 1, np.nan], [0.2, 1.1, np.nan], [0.3, np.nan, 5.0]])
    assert vines.first().tolist() == [0, 0, 2]
    assert vines.last().tolist() == [2, 1, 2]
    assert vines.strongest(1).death[:, 0].tolist() == [4.0, 4.0, 4.1]


def test_persistence_vineyard__polygons_whose_loops_are_known():
    """Corners of a 12-gon that shrink and grow: one vine, always of the same relative length."""
    turn = 2 * np.pi * np.arange(12) / 12
    corners = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    found = persistence_vineyard([corners, 5 * corners, 0.1 * corners], np.array([0, 1, 7]), config=bars_only())

    expected = [2 * np.sin(np.pi / 12) / 2, 2 * np.sin(4 * np.pi / 12) / 2]
    np.testing.assert_allclose(found.birth, np.full((3, 1), expected[0]))
    np.testing.assert_allclose(found.death, np.full((3, 1), expected[1]))
    assert (found.n_vines, found.longest_life, found.n_points) == (1, 3, 12)
    np.testing.assert_allclose(found.movement, 0, atol=1e-12)
    np.testing.assert_allclose(found.enclosing_radius, [2, 10, 0.2])
    assert (found.vine_start[0], found.vine_end[0]) == (0, 7)
    assert found.betti.max() == 1


def test_persistence_vineyard__dates_the_ring():
    """The ring is 0.3 of the cloud at step 100, 0.8 at step 1000."""
    activations, step = growing_ring()
    found = persistence_vineyard(activations, step)

    assert found.onset.value == 1000
    assert found.onset.low <= 1000 <= found.onset.high
    assert found.peak.p_value == pytest.approx(1 / 20)
    assert found.peak.low <= found.peak.value <= found.peak.high
    assert found.final.p_value == pytest.approx(1 / 20)
    assert found.vine_start[0] <= 1000
    assert found.vine_end[0] == step[-1]
    assert found.longest_life >= 3
    assert "stands out from step 1000" in found.reading()


def test_persistence_vineyard__finds_no_ring_in_noise():
    activations = list(generator(1, "noise").standard_normal((4, 40, 3)))
    found = persistence_vineyard(activations, np.arange(4))

    assert found.peak.p_value > 0.05
    assert found.reading().startswith("No loop of training is beyond chance")


def test_persistence_vineyard__condition_means_are_resampled_within_conditions():
    activations, step = growing_ring(n=24)
    rng = generator(0, "trials")
    repeated = [np.repeat(each, 6, axis=0) + 0.1 * rng.standard_normal((144, 3)) for each in activations]
    found = persistence_vineyard(repeated, step, np.repeat(np.arange(24), 6))

    assert found.n_points == 24
    assert found.onset.value in (100, 1000)  # a third of a ring, or most of it
    assert np.all(found.longest_low <= found.longest)
    assert np.all(found.longest <= found.longest_high)


# Oracle
def test_persistence_vineyard__each_checkpoint_is_its_persistent_homology():
    activations, step = growing_ring()
    found = persistence_vineyard(activations, step, config=bars_only(n_vines=1000))
    config = PersistentHomologyConfig(n_surrogates=0, n_resamples=0)
    single = [persistent_homology(each, config=config) for each in activations]
    bars = [each.bars[each.dimension == 1] / each.enclosing_radius for each in single]

    for place, expected in enumerate(bars):
        alive = np.isfinite(found.birth[place])
        ours = np.stack([found.birth[place, alive], found.death[place, alive]], axis=1)
        np.testing.assert_allclose(ours[np.lexsort(ours.T)], expected[np.lexsort(expected.T)], rtol=1e-9)
    np.testing.assert_allclose(found.longest, [each.longest_h1.value for each in single], rtol=1e-9)
    for place in range(1, len(bars)):
        expected = diagram_distance(bars[place - 1], bars[place], order=2.0)
        assert found.movement[place] == pytest.approx(expected, rel=1e-9)


# Law
@given(st.integers(0, 2**32))
@settings(max_examples=10)
def test_persistence_vineyard__ignores_rotation_shift_and_scale_of_any_checkpoint(seed):
    rng = generator(seed, "isometry")
    activations, step = growing_ring(n=15, seed=seed % 100)
    turned = [
        rng.uniform(0.1, 10) * (each @ np.linalg.qr(rng.standard_normal((3, 3)))[0] + rng.standard_normal(3))
        for each in activations
    ]
    here, there = (persistence_vineyard(each, step, config=bars_only()) for each in (activations, turned))

    np.testing.assert_allclose(there.longest, here.longest, atol=1e-9)
    np.testing.assert_allclose(there.birth, here.birth, atol=1e-9)
    assert there.n_vines == here.n_vines


def test_persistence_vineyard__same_seed_gives_the_same_numbers_on_any_backend():
    activations, step = growing_ring(n=20)
    config = PersistenceVineyardConfig(n_resamples=3)
    alone = persistence_vineyard(activations, step, config=config).scalars()
    with compute(Backend(threads=2)):
        again = persistence_vineyard(activations, step, config=config).scalars()

    np.testing.assert_equal(again, alone)


def test_persistence_vineyard__uses_the_same_samples_at_every_checkpoint():
    activations, step = growing_ring(n=60)
    found = persistence_vineyard(activations, step, config=bars_only(max_points=25))

    assert found.n_points == 25
    assert np.all(found.cover_radius > 0)


def test_rotated_landmarks__keep_every_covariance_within_and_between_clouds():
    x, y = generator(0, "clouds").standard_normal((2, 30, 4)) * [1, 2, 3, 4]
    options = {"n_landmarks": 30, "n_draws": 2, "seed": 0}
    for turned in zip(rotated_landmarks(x, x, **options), rotated_landmarks(y, x, **options), strict=True):
        both = np.concatenate(turned, axis=1)

        np.testing.assert_allclose(both.mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(np.cov(both.T), np.cov(np.concatenate([x, y], axis=1).T), atol=1e-12)
        assert np.abs(np.corrcoef(turned[0][:, 0], x[:, 0])[0, 1]) < 0.7


def test_persistence_vineyard__null_rotates_500_samples_at_most():
    turn = generator(0, "many").uniform(0, 2 * np.pi, 700)
    rings = [np.stack([np.cos(turn), size * np.sin(turn)], axis=1) for size in (1.0, 0.9)]
    config = PersistenceVineyardConfig(max_points=30, n_surrogates=19, n_resamples=0)
    found = persistence_vineyard(rings, np.arange(2), config=config)

    assert found.n_points == 30
    assert found.peak.p_value == pytest.approx(1 / 20)
    assert np.all(found.cover_radius < 0.5)


# Calibration
@pytest.mark.calibration
@pytest.mark.parametrize(("n_samples", "resemblance"), [(25, 0.0), (100, 0.9)])
def test_persistence_vineyard__p_values_are_uniform_on_gaussian_trajectories(n_samples, resemblance):
    """All 25 samples, or 25 landmarks; the KS distance of 150 uniform draws passes 0.159 once in 1000."""
    found, own = [], np.sqrt(1 - resemblance**2)
    for seed in range(150):
        kept, *fresh = generator(seed, "trajectory").standard_normal((4, n_samples, 4)) * [3, 3, 1, 0.5]
        config = PersistenceVineyardConfig(max_points=25, n_surrogates=19, n_resamples=0, seed=seed)
        found.append(persistence_vineyard([resemblance * kept + own * x for x in fresh], np.arange(3), config=config))
    spread = generator(0, "spread").uniform(0, 1 / 20, 150)  # ranks of 20, spread evenly

    assert stats.kstest([each.peak.p_value for each in found] - spread, "uniform").statistic < 0.159
    assert stats.kstest([each.final.p_value for each in found] - spread, "uniform").statistic < 0.159


# Bad input
def test_persistence_vineyard__raises_on_what_does_not_align():
    activations, step = growing_ring(n=12)
    with pytest.raises(DegenerateInputError, match="step must increase"):
        persistence_vineyard(activations, step[::-1].copy())
    with pytest.raises(DegenerateInputError, match="NaN or infinite"):
        persistence_vineyard([*activations[:-1], np.full((12, 3), np.nan)], step)
    with pytest.raises(DegenerateInputError, match=r"at least 4 distinct points\. Got 1"):
        persistence_vineyard([np.ones((12, 3)), *activations[1:]], step)
    with pytest.raises(MemoryBudgetError, match="for 12 points in dimension 1"):
        persistence_vineyard(activations, step, config=bars_only(memory_budget=100))
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ShapeError, match="one entry for each"):
            persistence_vineyard(activations, step[1:])
        with pytest.raises(ShapeError, match="2 checkpoints or more"):
            persistence_vineyard(activations[:1], step[:1])
        with pytest.raises(ShapeError, match="with the same samples"):
            persistence_vineyard([activations[0][1:], *activations[1:]], step)
        with pytest.raises(ShapeError, match="one integer for each of 12 samples"):
            persistence_vineyard(activations, step, np.arange(5))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimension": 0}, "dimension must be 1 or 2"),
        ({"n_surrogates": 5}, "0 or at least 19"),
        ({"n_vines": 0}, "n_vines at least 1"),
        ({"n_resamples": -1}, "must not be negative"),
    ],
)
def test_persistence_vineyard__config_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ConfigurationError, match=message):
        PersistenceVineyardConfig(**options)
