"""layer_region_matrix: the best site of every region, and how sure that is."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mechint_core.alignment import LayerRegionMatrixConfig, layer_region_matrix
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.random import generator

SCORE = np.array([[0.1, 0.4], [0.5, 0.2], [0.45, 0.1]])


def found(score=SCORE, noise=0.02, shared=0.0, n_draws=400, **options):
    rng = generator(0, "map")
    common = shared * rng.normal(size=n_draws)
    draws = [each + common + noise * rng.normal(size=n_draws) for each in score.ravel()]
    tables = np.zeros_like(score), np.where(score > 0.3, 0.001, 0.5), np.full_like(score, 0.8)
    return layer_region_matrix(score, *tables, draws, config=LayerRegionMatrixConfig(**options))


# Known answer
def test_layer_region_matrix__finds_each_regions_best_site():
    result = found(sites=("early", "middle", "late"), regions=("V1", "IT"))

    assert result.matched == ("middle~V1", "early~IT")
    assert result.strongest.value == 0.5
    assert result.n_significant == 3
    np.testing.assert_allclose(result.ceiled, SCORE / 0.8)
    assert result.best_share[1, 0] > 0.9
    assert "V1 middle" in result.reading()


def test_layer_region_matrix__paired_draws_tell_sites_apart_whose_intervals_overlap():
    result = found(noise=0.005, shared=0.2)

    assert result.best_low[0] < 0.45 < result.best_high[0]
    assert result.best_share[1, 0] > 0.99


def test_layer_region_matrix__says_so_where_nothing_is_aligned():
    assert "None of the 6 pairs" in found(score=SCORE / 10).reading()


# Law
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 100))
def test_layer_region_matrix__shares_of_a_region_add_up_to_1(n_sites, n_regions, seed):
    result = found(score=generator(seed, "score").normal(size=(n_sites, n_regions)), n_draws=20)

    np.testing.assert_allclose(result.best_share.sum(axis=0), 1.0)
    assert (result.score.max(axis=0) == result.best_score).all()


# Bad input
def test_layer_region_matrix__refuses_tables_that_do_not_fit(without_shape_checks):
    same = np.zeros((2, 2))
    draws = [np.zeros(5)] * 4
    with pytest.raises(ShapeError, match=r"one \(site, region\) shape"):
        layer_region_matrix(same, same[:1], same, same, draws)
    with pytest.raises(ShapeError, match="equally many draws"):
        layer_region_matrix(same, same, same, same, draws[:3])
    with pytest.raises(DegenerateInputError, match="every score must be finite"):
        layer_region_matrix(same + np.nan, same, same, same, draws)
    with pytest.raises(ConfigurationError, match="sites must name each of 2"):
        layer_region_matrix(same, same, same, same, draws, config=LayerRegionMatrixConfig(sites=("one",)))
    with pytest.raises(ConfigurationError, match="level"):
        LayerRegionMatrixConfig(level=0.0)
