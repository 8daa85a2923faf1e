"""Dimensions of many sites and checkpoints, brought together."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.geometry import DimensionProfileConfig, dimension_profile
from mechint_core.random import generator

STEP = np.array([0, 10, 100])


def table(seed=0, n_sites=3, error=0.1, trend=0.0):
    """Return dimensions with log-normal errors, and their intervals."""
    rng = generator(seed, "profile")
    log = np.log(np.arange(2.0, 2.0 + n_sites)) + trend * np.arange(3)[:, None] + error * rng.normal(size=(3, n_sites))
    return np.exp(log), np.exp(log - 1.96 * error), np.exp(log + 1.96 * error)


# Known answer
def test_dimension_profile__of_two_sites_by_hand():
    dimension = np.array([[8.0, 16.0], [6.0, 9.0], [4.0, 8.0]])
    found = dimension_profile(dimension, dimension / 1.2, dimension * 1.2, STEP, config=named("early", "late"))

    assert found.change.value == pytest.approx(np.log(0.5))
    assert found.spread.value == pytest.approx(np.log(2))
    error = np.sqrt(2) * np.log(1.2) / stats.norm.ppf(0.975)
    assert found.change.high == pytest.approx(np.log(0.5) + stats.norm.ppf(0.975) * error)
    assert found.change.p_value == pytest.approx(2 * stats.norm.sf(np.log(2) / error))
    assert found.typical == pytest.approx(np.sqrt(dimension.prod(axis=1)))
    assert (found.lowest.tolist(), found.highest.tolist()) == ([8.0, 6.0, 4.0], [16.0, 9.0, 8.0])
    assert "fewer" in found.reading()
    assert "early has 4.0 and late 8.0" in found.reading()


def test_dimension_profile__leaves_out_what_is_undefined():
    dimension, low, high = table()
    for each in (dimension, low, high):
        each[0, 0] = np.nan
    found = dimension_profile(dimension, low, high, STEP)

    assert found.n_undefined == 1
    assert found.change.value == pytest.approx(np.log(dimension[2, 1:] / dimension[0, 1:]).mean())
    assert np.isfinite(found.typical).all()


def test_dimension_profile__says_where_samples_come_in_groups():
    dimension = np.array([[8.0, 0.3], [6.0, 0.2], [4.0, 1.1]])
    found = dimension_profile(dimension, dimension / 1.2, dimension * 1.2, STEP)

    assert found.n_below_one == 2
    assert "2 are below one" in found.reading()


def test_dimension_profile__of_one_site_has_no_spread():
    found = dimension_profile(*table(n_sites=1), STEP)

    assert np.isnan(found.spread.value)
    assert "in the end" not in found.reading()


# Law
@given(st.floats(1e-3, 1e3), st.permutations(range(3)))
def test_dimension_profile__knows_neither_the_unit_nor_the_order_of_sites(scale, order):
    plain = dimension_profile(*table(), STEP)
    moved = dimension_profile(*(scale * each[:, order] for each in table()), STEP)

    assert moved.change.value == pytest.approx(plain.change.value)
    assert moved.spread.p_value == pytest.approx(plain.spread.p_value)
    np.testing.assert_allclose(moved.dimension, scale * plain.dimension[order])


def test_dimension_profile__errs_on_the_safe_side_where_nothing_changes():
    """Sites whose errors are unrelated are more certain than is said: fewer than 5 % of 400 tables are significant."""
    found = [dimension_profile(*table(seed, n_sites=4), STEP).change for seed in range(400)]

    assert np.mean([each.p_value <= 0.05 for each in found]) < 0.05
    assert np.mean([each.low <= 0 <= each.high for each in found]) > 0.95


def test_dimension_profile__of_one_site_is_calibrated():
    """One site: 5 % of 1000 tables without a change, within 2 % (three binomial standard errors)."""
    found = [dimension_profile(*table(seed, n_sites=1), STEP).change for seed in range(1000)]

    assert abs(np.mean([each.p_value <= 0.05 for each in found]) - 0.05) < 0.02


# Bad input
@pytest.mark.parametrize(
    ("changes", "step", "error", "match"),
    [
        ({1: np.ones((3, 2))}, STEP, ShapeError, "alike"),
        ({}, np.array([0, 10, 10]), ShapeError, "step must rise"),
        ({}, np.array([0, 10]), ShapeError, "over 3 checkpoints"),
        ({0: np.zeros((3, 3))}, STEP, DegenerateInputError, "must be above 0. Got 0.0"),
        ({0: np.full((3, 3), np.nan)}, STEP, DegenerateInputError, "some site must have a dimension"),
    ],
)
def test_dimension_profile__refuses_tables_that_make_no_sense(without_shape_checks, changes, step, error, match):
    tables = [changes.get(place, each) for place, each in enumerate(table())]

    with pytest.raises(error, match=match):
        dimension_profile(*tables, step)


def test_dimension_profile__needs_a_name_for_each_site():
    with pytest.raises(ConfigurationError, match=r"names must be 3, one per site\. Got 2"):
        dimension_profile(*table(), STEP, config=named("a", "b"))


def named(*names):
    return DimensionProfileConfig(names=names)
