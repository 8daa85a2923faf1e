import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mechint_core.errors import ConfigurationError, DegenerateInputError, MemoryBudgetError, ShapeError
from mechint_core.geometry import (
    CompareBarcodesConfig,
    PersistentHomologyConfig,
    compare_barcodes,
    diagram_distance,
    persistent_homology,
)
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.synthetic import manifolds


def distance_only(**options):
    return CompareBarcodesConfig(n_permutations=0, n_resamples=0, **options)


# Known answer
@pytest.mark.parametrize(("n", "m"), [(8, 12), (9, 30)])
def test_compare_barcodes__polygons_differ_by_their_sides_and_triangles(n, m):
    ends = [np.array([2 * np.sin(np.pi / k), 2 * np.sin(np.pi * np.ceil(k / 3) / k)]) for k in (n, m)]
    found = compare_barcodes(manifolds.polygon(n).points, manifolds.polygon(m).points, config=distance_only())

    assert found.distance.value == pytest.approx(np.abs(ends[0] - ends[1]).max(), rel=1e-9)


def test_compare_barcodes__a_circle_differs_from_a_disc_and_not_from_a_circle():
    rng = generator(0, "disc")
    disc = manifolds.circle(60, seed=3).points * np.sqrt(rng.random(60))[:, None]
    first, second = (manifolds.circle(60, noise=0.05, seed=seed).points for seed in (0, 1))
    config = CompareBarcodesConfig(n_permutations=39)
    differ, same = (compare_barcodes(first, other, config=config) for other in (disc, second))

    assert differ.distance.p_value == pytest.approx(1 / 40)
    assert differ.distance.low <= differ.distance.value <= differ.distance.high
    assert "differ in shape" in differ.reading()
    assert same.distance.p_value > 0.05
    assert "are not known to differ" in same.reading()
    assert same.betti.shape == same.other_betti.shape == same.scale.shape


def test_compare_barcodes__two_samples_of_one_cloud_are_found_different_at_the_nominal_rate():
    """Of 20 pairs at 5 % at most 4 are, in 99.7 % of cases; without standardising the test is exact."""
    config = CompareBarcodesConfig(n_permutations=19, n_resamples=0, standardise=False)
    found = 0
    for seed in range(20):
        pair = generator(seed, "pair").standard_normal((2, 15, 3))
        found += compare_barcodes(*pair, config=config).distance.p_value <= 0.05

    assert found <= 4


# Oracle
@pytest.mark.parametrize("dimension", [0, 1, 2])
def test_compare_barcodes__is_the_distance_of_the_barcodes(dimension):
    one, other = generator(0, "pair").standard_normal((2, 20, 3))
    config = distance_only(dimension=dimension, metric="wasserstein", standardise=False)
    single = PersistentHomologyConfig(max_dimension=2, n_surrogates=0, n_resamples=0)
    bars = [
        each.bars[each.dimension == dimension] for each in (persistent_homology(x, config=single) for x in (one, other))
    ]

    expected = diagram_distance(*bars, order=2.0)
    assert compare_barcodes(one, other, config=config).distance.value == pytest.approx(expected, rel=1e-9)


# Law
@given(st.integers(0, 2**32), st.floats(1e-3, 1e3))
@settings(max_examples=10)
def test_compare_barcodes__standardised_is_symmetric_and_ignores_scale_and_shift(seed, scale):
    one, other = generator(seed, "pair").standard_normal((2, 12, 3))
    here = compare_barcodes(one, other, config=distance_only()).distance.value
    there = compare_barcodes(scale * (other + 2), one, config=distance_only()).distance.value

    assert there == pytest.approx(here, rel=1e-6, abs=1e-9)
    assert compare_barcodes(one, one[::-1], config=distance_only()).distance.value == pytest.approx(0, abs=1e-9)


def test_compare_barcodes__same_seed_gives_the_same_numbers_on_any_backend():
    one, other = generator(0, "pair").standard_normal((2, 20, 3))
    config = CompareBarcodesConfig(n_permutations=9, n_resamples=5)
    alone = compare_barcodes(one, other, config=config).scalars()
    with compute(Backend(threads=2)):
        assert compare_barcodes(one, other, config=config).scalars() == alone


# Bad input
def test_compare_barcodes__raises_on_clouds_that_cannot_be_compared():
    cloud = generator(0, "cloud").standard_normal((10, 3))
    with pytest.raises(DegenerateInputError, match=r"at least 8 distinct points\. Got 7"):
        compare_barcodes(cloud, cloud[:7])
    with pytest.raises(DegenerateInputError, match="NaN or infinite"):
        compare_barcodes(cloud, np.where(cloud > 1, np.nan, cloud))
    with pytest.raises(MemoryBudgetError, match="Lower max_points"):
        compare_barcodes(cloud, cloud, config=distance_only(memory_budget=100))
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ShapeError, match=r"the same units\. Got 3 and 2"):
            compare_barcodes(cloud, cloud[:, :2])
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimension": 3}, "dimension must be 0, 1 or 2"),
        ({"metric": "euclid"}, "metric must be one of"),
        ({"coefficient": 4}, "prime below 128"),
        ({"n_permutations": -1}, "must not be negative"),
    ],
)
def test_compare_barcodes__config_refuses_what_makes_no_sense(options, message):
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ConfigurationError, match=message):
            CompareBarcodesConfig(**options)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
