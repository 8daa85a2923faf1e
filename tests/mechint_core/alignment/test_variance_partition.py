import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from mechint_core.alignment import (
    EncodingModelConfig,
    VariancePartitionConfig,
    _fold_sums,
    encoding_model,
    variance_partition,
)
from mechint_core.alignment.variance_partition import parts_of
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

QUICK = {"n_permutations": 0, "n_bootstrap": 0, "n_band_scales": 2}


def planted(rng, n, t=3, *, own=(1.0, 1.0), common=1.0, noise=1.0):
    """Two groups of two columns: one of each holds the same thing, the other something of its own."""
    known, mine = rng.normal(size=(n, 1)), rng.normal(size=(n, 2))
    x = np.hstack([known, mine[:, :1], known, mine[:, 1:]])
    y = common * known + mine @ np.array(own)[:, None] + noise * rng.normal(size=(n, t))
    return x, y


# Known answer
def test_variance_partition__finds_the_planted_parts():
    """Variances 1 (first), 4 (second), 2 (both) and 1 of noise, of 8; 6000 rows, so ± 0.02."""
    x, y = planted(generator(0, "parts"), 6000, 10, own=(1.0, 2.0), common=np.sqrt(2))

    found = variance_partition(x, y, config=VariancePartitionConfig(bands=(2, 2), **QUICK))

    np.testing.assert_allclose(found.explained, [1 / 8, 4 / 8, 2 / 8], atol=0.02)
    assert found.shared.value == pytest.approx(found.explained[2], abs=1e-12)


def test_variance_partition__third_group_of_noise_adds_nothing():
    rng = generator(1, "third")
    x, y = planted(rng, 1000)

    config = VariancePartitionConfig(bands=(2, 2, 3), n_permutations=20, n_bootstrap=50, n_band_scales=2)
    found = variance_partition(np.hstack([x, rng.normal(size=(1000, 3))]), y, config=config)

    assert found.parts == ("0", "1", "2", "0 1", "0 2", "1 2", "0 1 2")
    np.testing.assert_allclose(found.explained, [0.25, 0.25, 0, 0.25, 0, 0, 0], atol=0.05)
    assert found.unique_third.p_value > 0.05
    assert max(found.unique_first.p_value, found.unique_second.p_value) < 0.05


def test_parts_of__is_inclusion_and_exclusion():
    sets = [(0,), (1,), (0, 1)]

    assert parts_of(sets).tolist() == [[0, -1, 1], [-1, 0, 1], [1, 1, -1]]


# Oracle
def test_variance_partition__r2_of_each_set_is_that_of_an_encoding_model(rng):
    x, y = planted(rng, 80)
    found = variance_partition(x, y, config=VariancePartitionConfig(bands=(2, 2), **QUICK))
    sets = {"0": (x[:, :2], ()), "1": (x[:, 2:], ()), "0 1": (x, (2, 2))}
    assert tuple(sets) == found.spaces
    for r2, (columns, bands) in zip(found.space_r2, sets.values(), strict=True):
        theirs = encoding_model(columns, y, config=EncodingModelConfig(bands=bands, **QUICK))
        np.testing.assert_allclose(r2, theirs.r2, atol=1e-12)


# Law
@settings(max_examples=4)
@given(seed=st.integers(0, 2**31), bands=st.sampled_from([(2, 2), (1, 3), (1, 1, 2)]))
def test_variance_partition__parts_add_up(seed, bands):
    x, y = planted(generator(seed, "sum"), 60)

    found = variance_partition(x, y, config=VariancePartitionConfig(bands=bands, **QUICK))

    np.testing.assert_allclose(found.part_r2.sum(axis=0), found.space_r2[-1], atol=1e-12)
    assert found.explained.sum() == pytest.approx(found.joint.value, abs=1e-12)
    unique = found.unique_first.value + found.unique_second.value
    unique += found.unique_third.value if len(bands) == 3 else 0
    assert unique + found.shared.value == pytest.approx(found.joint.value, abs=1e-12)


@settings(max_examples=4)
@given(seed=st.integers(0, 2**31), numbers=st.integers(40, 2000), threads=st.integers(1, 3))
def test_variance_partition__streamed_equals_whole(seed, numbers, threads):
    x, y = planted(generator(seed, "chunks"), 80)
    config = VariancePartitionConfig(bands=(2, 2), n_permutations=3, n_bootstrap=10, n_band_scales=1)
    with pytest.MonkeyPatch.context() as patch, compute(Backend(threads=threads)):
        patch.setattr(_fold_sums, "BLOCK_NUMBERS", numbers)
        streamed = variance_partition(x, y, config=config)

    whole = variance_partition(x, y, config=config)

    assert streamed.scalars() == pytest.approx(whole.scalars(), rel=1e-9, abs=1e-10, nan_ok=True)


def test_variance_partition__wide_groups_equal_narrow_ones(rng):
    """Columns of zeros change nothing, but make the groups wider than there are rows."""
    x, y = planted(rng, 40)
    zeros = np.zeros((40, 60))
    wide = np.hstack([x[:, :2], zeros, x[:, 2:], zeros])

    narrow = variance_partition(x, y, config=VariancePartitionConfig(bands=(2, 2), **QUICK))
    found = variance_partition(wide, y, config=VariancePartitionConfig(bands=(62, 62), **QUICK))

    np.testing.assert_allclose(found.part_r2, narrow.part_r2, atol=1e-8)


def test_variance_partition__same_seed_gives_the_same_bits_for_any_number_of_workers(rng):
    x, y = planted(rng, 60)
    config, found = VariancePartitionConfig(bands=(2, 2), n_permutations=5, n_bootstrap=10, n_band_scales=1), []
    for threads in (1, 3):
        with compute(Backend(threads=threads)):
            found.append(variance_partition(x, y, config=config).scalars())

    np.testing.assert_equal(found[0], found[1])


def test_variance_partition__reading_names_the_groups_that_add(rng):
    config = VariancePartitionConfig(bands=(2, 2), n_permutations=30, n_bootstrap=30, n_band_scales=1)
    x, y = planted(rng, 300, own=(2.0, 0.0))

    assert "by group 0." in variance_partition(x, y, config=config).reading()
    assert "No group adds" in variance_partition(x, rng.normal(size=(300, 2)), config=config).reading()
    quick = variance_partition(x, y, config=VariancePartitionConfig(bands=(2, 2), **QUICK))
    assert "No null was drawn" in quick.reading()


def test_variance_partition__constant_targets_are_left_out(rng):
    x, y = planted(rng, 100)
    y[:, 0] = 2.0

    found = variance_partition(x, y, config=VariancePartitionConfig(bands=(2, 2), n_permutations=3, n_band_scales=1))

    assert found.n_constant == 1
    assert np.isfinite(found.joint.value)
    assert np.isnan(found.unique_p[:, 0]).all()


@pytest.mark.calibration
@pytest.mark.thorough
def test_variance_partition__p_value_of_a_group_that_adds_nothing_is_uniform():
    """500 experiments in which the second group is a noisy copy of the first, which explains half of the variance."""
    config = VariancePartitionConfig(
        bands=(2, 2), n_permutations=49, n_bootstrap=0, n_band_scales=1, penalties=(1e-3, 1e-1, 1e1, 1e3)
    )
    ps = []
    for seed in range(500):
        rng = generator(seed, "null")
        first = rng.normal(size=(100, 2))
        x = np.hstack([first, first + rng.normal(size=(100, 2))])
        y = first @ rng.normal(size=(2, 2)) + rng.normal(size=(100, 2)) * np.sqrt(2)
        ps.append(variance_partition(x, y, config=config).unique_second.p_value)

    assert stats.kstest(ps, "uniform").statistic < 0.107  # 0.087 once in 1000, and 1/50 is the grid's


@pytest.mark.calibration
@pytest.mark.thorough
def test_variance_partition__interval_covers_the_planted_part():
    """95 ± 3 % of 500 intervals of a unique part of 1/4; 1000 rows."""
    config = VariancePartitionConfig(bands=(2, 2), n_permutations=0, n_band_scales=1, penalties=(1e-4, 1e-2, 1.0))
    found = []
    for seed in range(500):
        x, y = planted(generator(seed, "coverage"), 1000, 1)
        found.append(variance_partition(x, y, config=config).unique_first)

    assert 0.92 < np.mean([each.low <= 0.25 <= each.high for each in found]) < 0.98


# Bad input
def test_variance_partition__raises_without_bands(rng):
    x, y = planted(rng, 40)

    with pytest.raises(ConfigurationError, match="widths of 2 or 3 groups"):
        variance_partition(x, y)


def test_variance_partition__raises_on_bands_that_do_not_add_up(rng):
    x, y = planted(rng, 40)

    with pytest.raises(ConfigurationError, match="add up to the 4 columns"):
        variance_partition(x, y, config=VariancePartitionConfig(bands=(2, 3)))


def test_variance_partition__raises_on_unequal_samples(rng, without_shape_checks):
    x, y = planted(rng, 40)

    with pytest.raises(ShapeError, match="same samples"):
        variance_partition(x, y[1:], config=VariancePartitionConfig(bands=(2, 2)))


def test_variance_partition__raises_on_too_few_groups(rng):
    x, y = planted(rng, 40)

    with pytest.raises(ShapeError, match="at least 5 groups"):
        variance_partition(x, y, np.arange(40) // 10, config=VariancePartitionConfig(bands=(2, 2)))


def test_variance_partition__raises_on_what_does_not_vary(rng):
    x, y = planted(rng, 40)

    with pytest.raises(DegenerateInputError, match="x must vary"):
        variance_partition(np.hstack([x[:, :2], np.ones((40, 2))]), y, config=VariancePartitionConfig(bands=(2, 2)))
    with pytest.raises(DegenerateInputError, match="y must vary"):
        variance_partition(x, np.ones((40, 2)), config=VariancePartitionConfig(bands=(2, 2), **QUICK))


@pytest.mark.parametrize("options", [{"bands": (4,)}, {"bands": (1, 1, 1, 1)}, {"n_folds": 2}, {"n_band_scales": -1}])
def test_variance_partition__raises_on_impossible_options(options, without_shape_checks):
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))} must be"):
        VariancePartitionConfig(**options)
