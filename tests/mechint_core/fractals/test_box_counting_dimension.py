import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from jaxtyping import TypeCheckError

from mechint_core.errors import ConfigurationError, DegenerateInputError, DtypeError, ShapeError
from mechint_core.fractals import BoxCountingDimensionConfig, box_counting_dimension
from mechint_core.fractals.box_counting_dimension import _occupancies
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.synthetic.fractal_sets import cantor_set, sierpinski_lattice, sierpinski_triangle
from mechint_core.synthetic.manifolds import circle, uniform_cube

QUICK = BoxCountingDimensionConfig(n_subsamples=0, n_surrogates=0)


def at(*sides: float, **options) -> BoxCountingDimensionConfig:
    return BoxCountingDimensionConfig(sides=sides, origin=0.0, **{"n_subsamples": 0, "n_surrogates": 0, **options})


# Known answer
def test_box_counting_dimension__of_the_cantor_set_is_exact():
    result = box_counting_dimension(cantor_set(12).points, config=at(*(3.0**-k for k in range(1, 12))))

    assert result.dimension.value == pytest.approx(np.log(2) / np.log(3), abs=1e-9)
    assert result.information_dimension.value == pytest.approx(np.log(2) / np.log(3), abs=1e-9)
    assert result.n_boxes.tolist() == [2**k for k in range(1, 12)]
    assert result.lacunarity == pytest.approx(1, abs=1e-9)
    assert result.r_squared == pytest.approx(1, abs=1e-12)
    assert result.slope_range == pytest.approx(0, abs=1e-9)


def test_box_counting_dimension__of_the_sierpinski_lattice_is_exact():
    result = box_counting_dimension(sierpinski_lattice(8).points, config=at(*(2.0**-k for k in range(1, 8))))

    assert result.dimension.value == pytest.approx(np.log(3) / np.log(2), abs=1e-9)
    assert result.correlation_dimension.value == pytest.approx(np.log(3) / np.log(2), abs=1e-9)


@pytest.mark.parametrize("n_axes", [1, 2])
def test_box_counting_dimension__of_a_full_grid_is_its_number_of_axes(n_axes):
    axis = (np.arange(256) + 0.5) / 256
    points = np.stack(np.meshgrid(*[axis] * n_axes), axis=-1).reshape(-1, n_axes)

    result = box_counting_dimension(points, config=at(*(2.0**-k for k in range(1, 7))))

    assert result.dimension.value == pytest.approx(n_axes, abs=1e-9)


def test_box_counting_dimension__of_random_sierpinski_points():
    """Boxes of 2^-2 ... 2^-7 do not fit the triangle: within 0.04; the automatic range does as well."""
    points = sierpinski_triangle(50_000, seed=1).points
    config = BoxCountingDimensionConfig(sides=tuple(2.0**-k for k in range(2, 8)), n_subsamples=0, n_surrogates=0)

    for each in (config, QUICK):
        assert box_counting_dimension(points, config=each).dimension.value == pytest.approx(1.58496, abs=0.04)


def test_box_counting_dimension__of_manifolds_is_theirs():
    """Within 0.05: edges of the cloud cut boxes, and 0.7 % of the boxes are missed."""
    for cloud in (circle(5000, seed=2), uniform_cube(20_000, seed=2)):
        result = box_counting_dimension(cloud.points, config=QUICK)

        assert result.dimension.value == pytest.approx(cloud.dimension, abs=0.05)
        assert result.r_squared > 0.998


def test_box_counting_dimension__dense_parts_lower_the_correlation_dimension():
    """A binomial measure of shares a, b on [0, 1]: D_q = ln(a^q + b^q) / ((1 - q) ln 2), D_0 = 1; sampled."""
    shares = np.array([0.8, 0.2])
    digits = generator(3, "digits").random((200_000, 12)) < 0.2
    points = (digits @ 0.5 ** np.arange(1, 13))[:, None] + 2.0**-14

    result = box_counting_dimension(points, config=at(*(2.0**-k for k in range(1, 5))))

    assert result.dimension.value == pytest.approx(1, abs=1e-9)
    assert result.information_dimension.value == pytest.approx(-shares @ np.log2(shares), abs=0.01)
    assert result.correlation_dimension.value == pytest.approx(-np.log2(np.sum(shares**2)), abs=0.01)
    assert (np.diff(result.lacunarity) > 0).all()


def test_box_counting_dimension__has_an_interval_and_a_null():
    points = sierpinski_triangle(4000, seed=4).points
    config = BoxCountingDimensionConfig(n_surrogates=19, n_subsamples=20, n_grids=1)

    fractal = box_counting_dimension(points, config=config)
    gaussian = box_counting_dimension(generator(5, "cloud").standard_normal((4000, 2)), config=config)

    d = fractal.information_dimension
    assert d.low < 1.585 < d.high
    assert d.high - d.low < 0.2
    assert d.p_value == pytest.approx(0.05)
    assert gaussian.dimension.p_value > 0.05
    assert "not less than" in gaussian.reading()


def test_box_counting_dimension__says_when_there_is_no_one_dimension():
    """A thick line looks like a plane below its thickness."""
    points = uniform_cube(20_000, seed=6).points * [1, 0.03]

    result = box_counting_dimension(points, config=QUICK)

    assert result.slope_range > 0.3
    assert "no one dimension" in result.reading()


def test_box_counting_dimension__omits_points_that_are_not_finite():
    points = uniform_cube(2000, seed=7).points
    broken = np.concatenate([points, [[np.nan, 0.5]]])
    config = BoxCountingDimensionConfig(nan_policy="omit", n_subsamples=0, n_surrogates=0)

    result = box_counting_dimension(broken, config=config)

    assert (result.n_nan, result.n_samples) == (1, 2000)
    assert result.dimension.value == box_counting_dimension(points, config=config).dimension.value


# Oracle
@pytest.mark.parametrize("n_axes", [1, 3, 40])
def test_occupancies__equal_unique_rows(n_axes, rng):
    """40 axes do not fit one integer."""
    position = rng.normal(size=(500, n_axes)) * 3 / n_axes

    _, expected = np.unique(np.floor(position), axis=0, return_counts=True)

    assert sorted(_occupancies(position)) == sorted(expected)


# Law
@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-26, 26))
def test_box_counting_dimension__ignores_scale_and_shift(seed, exponent):
    """Factors of two and shifts that are exact, so that no point changes its box."""
    x = generator(seed, "cloud").integers(-1000, 1000, (1000, 2)) / 1024
    d = box_counting_dimension(x, config=QUICK)

    for other in (2.0**exponent * x, x + 16, x[::-1].copy()):
        found = box_counting_dimension(other, config=QUICK)
        assert found.n_boxes.tolist() == d.n_boxes.tolist()
        assert found.dimension.value == pytest.approx(d.dimension.value, abs=1e-12)


@pytest.mark.parametrize("factor", [1e-8, 1e8])
def test_box_counting_dimension__in_other_units_is_the_same(factor):
    """A rounded factor may move a point across an edge: at most one box in 3000."""
    x = uniform_cube(5000, seed=8).points

    found = box_counting_dimension(factor * x, config=QUICK).dimension.value

    assert found == pytest.approx(box_counting_dimension(x, config=QUICK).dimension.value, abs=1e-3)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_box_counting_dimension__dimensions_are_ordered_in_counts(seed):
    """Renyi entropies of one grid decrease in q, so lacunarity is at least 1."""
    result = box_counting_dimension(generator(seed, "cloud").normal(size=(500, 2)), config=QUICK)

    assert (result.lacunarity >= 1).all()
    assert (np.diff(result.n_boxes) > 0).all()


def test_box_counting_dimension__more_coordinates_that_say_nothing_change_nothing():
    x = uniform_cube(3000, seed=9).points
    wide = np.concatenate([x, np.zeros((3000, 5))], axis=1)

    config = BoxCountingDimensionConfig(n_subsamples=0, n_surrogates=0, n_grids=1)
    one, other = (box_counting_dimension(each, config=config) for each in (x, wide))
    assert one.dimension.value == other.dimension.value


def test_box_counting_dimension__workers_and_seeds():
    x = uniform_cube(1000, seed=10).points
    config = BoxCountingDimensionConfig(n_subsamples=5, n_surrogates=5)

    with compute(Backend(threads=1)):
        one = box_counting_dimension(x, config=config).scalars()
    with compute(Backend(threads=3)):
        three = box_counting_dimension(x, config=config).scalars()

    assert one == three


# Bad input
def test_box_counting_dimension__raises_on_numbers_that_are_not_real():
    with pytest.raises((DtypeError, TypeCheckError), match=r"real numbers. Got complex128|points"):
        box_counting_dimension(np.ones((20, 2), dtype=complex))


def test_box_counting_dimension__raises_on_a_wrong_shape():
    with pytest.raises((ShapeError, TypeCheckError), match=r"Got shape \(20,\)|points"):
        box_counting_dimension(np.ones(20))


def test_box_counting_dimension__raises_on_one_place():
    with pytest.raises(DegenerateInputError, match=r"points must differ. Got 20 finite points"):
        box_counting_dimension(np.full((20, 2), 0.1))


def test_box_counting_dimension__raises_on_too_few_points_for_their_space():
    with pytest.raises(DegenerateInputError, match=r"Got 300 points in 10 coordinates, enough for 0"):
        box_counting_dimension(generator(11, "cloud").normal(size=(300, 10)))


def test_box_counting_dimension__raises_on_a_value_that_is_not_finite():
    x = uniform_cube(300).points
    x[7, 1] = np.inf
    with pytest.raises(DegenerateInputError, match=r"in 1 of 300. Pass nan_policy='omit'"):
        box_counting_dimension(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sides": (0.5, 0.25)}, "sides must be at least 3"),
        ({"sides": (0.25, 0.5, 1.0)}, "sides must decrease"),
        ({"occupancy": 0.5}, "occupancy must be at least 1"),
        ({"n_grids": 0}, "n_grids in 1"),
        ({"nan_policy": "drop"}, "nan_policy"),
        ({"n_surrogates": -1}, "must not be negative"),
    ],
)
def test_box_counting_dimension__raises_on_an_impossible_option(options, message):
    with pytest.raises((ConfigurationError, TypeCheckError), match=message):  # a wrong word fails its type here
        BoxCountingDimensionConfig(**options)
