from itertools import combinations

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from scipy.spatial.distance import pdist, squareform

from mechint_core.errors import ConfigurationError, DegenerateInputError, MemoryBudgetError, ShapeError
from mechint_core.geometry import (
    RepresentationTopologyDivergenceConfig,
    representation_topology_divergence,
)
from mechint_core.geometry._cross_barcode import cross_barcode
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

seeds = st.integers(0, 2**32)


def divergence_only(**options):
    return RepresentationTopologyDivergenceConfig(n_permutations=0, **options)


def on_a_line(*places):
    return pdist(np.array(places, dtype=float)[:, None])


def clusters(n_clusters, *, apart=20.0, n=90, seed=0):
    """One cloud of 90 points, cut into clusters that are moved apart along axes of their own."""
    cloud = generator(seed, "cloud").standard_normal((n, 6))
    return cloud + apart * np.eye(6)[np.arange(n) * n_clusters // n] * (n_clusters > 1)


# Known answer
def test_cross_barcode__of_two_pairs_that_are_a_line_in_the_other():
    """Joined at 1 all along the line; in the first there is a gap of 10."""
    gap, line = on_a_line(0, 1, 11, 12), on_a_line(0, 1, 2, 3)

    assert cross_barcode(gap, line).tolist() == [[1, 10]]
    assert cross_barcode(line, gap).tolist() == []


def test_cross_barcode__three_clusters_of_one_give_a_bar_for_each_split():
    gaps, line = on_a_line(0, 1, 11, 12, 32, 33), on_a_line(0, 1, 2, 3, 4, 5)

    assert cross_barcode(gaps, line).tolist() == [[1, 20], [1, 10]]


def test_cross_barcode__a_loop_that_only_the_smaller_distances_have():
    """A square whose sides are 1 in the second: born when its last side is there, filled as the first's diagonal is."""
    square = pdist(np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]))
    far = np.full(6, 5.0)
    bars = cross_barcode(far, square)

    ends = sorted(map(tuple, bars.tolist()))
    assert ends == [(1.0, pytest.approx(np.sqrt(2)))] + [(1.0, 5.0)] * 3


def test_representation_topology_divergence__clusters_that_split_count_more_the_more_they_are():
    """The same inputs as two, three and six clusters, and as one. The widest split is in the first; in all, being
    divided by the distance of clusters brings the samples of a cluster together as well, so backward counts too."""
    found = [
        representation_topology_divergence(clusters(k), clusters(1), config=divergence_only()) for k in (1, 2, 3, 6)
    ]
    values = [each.divergence.value for each in found]

    assert values[0] == 0
    assert values == sorted(values)
    assert min(np.diff(values)) > 0
    for each in found[1:]:
        assert each.direction[np.diff(each.bars, axis=1)[:, 0].argmax()] == 0
        assert "are joined at" in each.reading()
        assert "in the first only at" in each.reading()


def test_representation_topology_divergence__related_are_more_alike_than_unrelated():
    """A noisy rotated copy in more units, and a cloud of its own."""
    rng = generator(0, "pair")
    cloud = clusters(3)
    config = RepresentationTopologyDivergenceConfig(batch_size=25, n_batches=6)
    copy = cloud @ rng.standard_normal((6, 6)) @ np.eye(6, 9) + 0.1 * rng.standard_normal((90, 9))
    alike, other = (
        representation_topology_divergence(cloud, x, config=config) for x in (copy, rng.standard_normal((90, 5)))
    )

    assert alike.divergence.p_value == pytest.approx(1 / 20)
    assert alike.divergence.low <= alike.divergence.value <= alike.divergence.high < alike.divergence.null
    assert alike.similarity.low <= alike.similarity.value <= alike.similarity.high
    assert other.divergence.p_value > 0.05
    assert "no more alike" in other.reading()


def test_representation_topology_divergence__interval_covers_the_mean_over_new_samples():
    """Of 20 experiments of 60 samples at least 16 cover the divergence of 30 samples each, drawn fresh (95 % of 20)."""
    fresh = [pair_of(1000 + i, 30) for i in range(200)]
    truth = np.mean([divergence_of_batch(*each) for each in fresh])
    covered = 0
    for seed in range(20):
        found = representation_topology_divergence(*pair_of(seed, 60), config=divergence_only(n_batches=6)).divergence
        covered += found.low <= truth <= found.high

    assert covered >= 16


def pair_of(seed, n):
    rng = generator(seed, "covered")
    cloud = rng.standard_normal((n, 3))
    return cloud, cloud + 0.5 * rng.standard_normal((n, 3))


def divergence_of_batch(first, second):
    one, other = (pdist(x) / np.quantile(pdist(x), 0.9) for x in (first, second))
    return sum(np.diff(cross_barcode(*pair), axis=1).sum() for pair in ((one, other), (other, one))) / 2


# Oracle
@given(seeds)
@settings(max_examples=12)
def test_cross_barcode__is_the_homology_of_the_mapping_cone(seed):
    """Of the chain complexes themselves, reduced over Z/2: C_i(Y) + C_(i-1)(X), no graph with doubled points."""
    first, second = (pdist(generator(seed, word).standard_normal((6, 2))) for word in ("first", "second"))
    bars = cross_barcode(first, second)

    np.testing.assert_allclose(bars[np.lexsort(bars.T)], mapping_cone(first, second), rtol=1e-12)


def mapping_cone(first, second):
    """Bars of H_1 of the cone of X -> Y: cells of Y, and of X one dimension up; boundary (y + x, dx)."""
    own, least = squareform(first), squareform(np.minimum(first, second))
    n = len(own)
    cells = [((), "X", 0.0)]  # the empty simplex of X is the tip of the cone
    for k in range(4):
        for simplex in combinations(range(n), k + 1):
            for side, distance in (("Y", least), ("X", own)):
                cells.append((simplex, side, max((distance[p] for p in combinations(simplex, 2)), default=0.0)))
    cells = [cell for cell in cells if len(cell[0]) - 1 + (cell[1] == "X") <= 2]
    cells.sort(key=lambda cell: (cell[2], len(cell[0]) - 1 + (cell[1] == "X")))
    place = {cell[:2]: i for i, cell in enumerate(cells)}
    lows, bars = {}, []
    for simplex, side, value in cells:
        faces = [simplex[:i] + simplex[i + 1 :] for i in range(len(simplex))]
        column = {place[face, side] for face in faces if face or side == "X"}
        if side == "X" and simplex:
            column ^= {place[simplex, "Y"]}
        while column and max(column) in lows:
            column ^= lows[max(column)]
        if column:
            lows[max(column)] = column
            low, birth_side, birth = cells[max(column)]
            if len(low) - 1 + (birth_side == "X") == 1 and value > birth:
                bars.append((birth, value))
    bars = np.array(bars).reshape(-1, 2)
    return bars[np.lexsort(bars.T)]


# Law
@given(seeds, st.floats(1e-3, 1e3))
@settings(max_examples=10)
def test_representation_topology_divergence__is_symmetric_and_ignores_isometry_and_scale(seed, scale):
    rng = generator(seed, "pair")
    one, other = rng.standard_normal((20, 3)), rng.standard_normal((20, 4))
    turned = scale * (other @ np.linalg.qr(rng.standard_normal((4, 4)))[0] + rng.standard_normal(4))
    config = divergence_only(n_batches=3)
    here, there = (representation_topology_divergence(*each, config=config) for each in ((one, other), (turned, one)))

    assert here.divergence.value == pytest.approx(there.divergence.value, rel=1e-7)
    assert here.forward == pytest.approx(there.backward, rel=1e-7)
    assert representation_topology_divergence(other, turned, config=config).divergence.value < 1e-7


def test_representation_topology_divergence__same_seed_gives_the_same_numbers_on_any_backend():
    rng = generator(0, "pair")
    one, other = rng.standard_normal((30, 3)), rng.standard_normal((30, 3))
    config = RepresentationTopologyDivergenceConfig(n_batches=3, n_permutations=5)
    alone = representation_topology_divergence(one, other, config=config).scalars()
    with compute(Backend(threads=2)):
        assert representation_topology_divergence(one, other, config=config).scalars() == alone


# Calibration
@pytest.mark.calibration
def test_representation_topology_divergence__p_values_are_uniform_where_representations_are_unrelated():
    """The KS distance of 200 uniform draws passes 0.137 once in 1000."""
    p = []
    for seed in range(200):
        one, other = generator(seed, "unrelated").standard_normal((2, 24, 3))
        config = RepresentationTopologyDivergenceConfig(batch_size=10, n_batches=3, n_permutations=19, seed=seed)
        p.append(representation_topology_divergence(one, other, config=config).divergence.p_value)

    assert stats.kstest(p - generator(0, "spread").uniform(0, 1 / 20, 200), "uniform").statistic < 0.137


@pytest.mark.calibration
@pytest.mark.parametrize(("n_samples", "n_batches"), [(30, 10), (200, 10), (200, 4)])
def test_representation_topology_divergence__interval_errs_on_the_safe_side(n_samples, n_batches):
    """Of 200 intervals of 95 % at least 179 cover, in 99.9 % of cases; more are welcome."""
    truth = np.mean([divergence_of_batch(*pair_of(1000 + i, 15)) for i in range(1000)])
    options = {"batch_size": 15, "n_batches": n_batches, "n_permutations": 0}
    found = [
        representation_topology_divergence(
            *pair_of(seed, n_samples), config=RepresentationTopologyDivergenceConfig(seed=seed, **options)
        ).divergence
        for seed in range(200)
    ]

    assert sum(each.low <= truth <= each.high for each in found) >= 179


# Bad input
def test_representation_topology_divergence__raises_on_what_has_no_answer():
    cloud = generator(0, "cloud").standard_normal((20, 3))
    with pytest.raises(DegenerateInputError, match="NaN or infinite"):
        representation_topology_divergence(cloud, np.where(cloud > 1, np.nan, cloud))
    with pytest.raises(DegenerateInputError, match=r"at least 2 batches\. Got 0"):
        representation_topology_divergence(cloud, np.ones((20, 3)))
    with pytest.raises(ShapeError, match=r"at least 8\. Got 7 and 7"):
        representation_topology_divergence(cloud[:7], cloud[:7])
    with pytest.raises(MemoryBudgetError, match="Lower batch_size"):
        representation_topology_divergence(cloud, cloud, config=divergence_only(memory_budget=100))
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ShapeError, match="Got 20 and 19"):
            representation_topology_divergence(cloud, cloud[1:])
        with pytest.raises(ShapeError, match=r"must be \(sample, unit\)"):
            representation_topology_divergence(cloud, cloud[:, 0])
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 3}, "batch_size"), ({"n_batches": 1}, "n_batches"), ({"quantile": 0.0}, "quantile")],
)
def test_representation_topology_divergence__config_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ConfigurationError, match=message):
        RepresentationTopologyDivergenceConfig(**options)
