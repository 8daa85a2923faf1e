import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.kernels.joint_covariance import joint_covariance, picked_rows
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator


# Known answer
def test_joint_covariance__of_four_rows():
    x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([[1.0], [3.0], [5.0], [7.0]])

    found = joint_covariance(x, y).whole

    assert (found.mean_x.item(), found.mean_y.item(), found.n) == (1.5, 4.0, 4)
    assert (found.xx.item(), found.xy.item(), found.yy.item()) == pytest.approx((5 / 3, 10 / 3, 20 / 3), abs=1e-14)


def test_joint_covariance__does_not_cancel_where_the_mean_is_large(rng):
    """A mean of 1e7 would leave 2 digits of E[x²] - E[x]²; the pilot shift leaves the rounding of the data, 1e-9."""
    x = rng.normal(size=(500, 3)) + 1e7

    assert joint_covariance(x, x).whole.xy == pytest.approx(np.cov(x.T), abs=1e-8)


# Oracle
def test_joint_covariance__equals_numpy_on_all_rows_and_on_all_but_some_folds(rng):
    x, y = rng.normal(size=(53, 4)) + 3, rng.normal(size=(53, 2))
    found = joint_covariance(x, y, n_folds=4)
    for kept, covariance in (
        (np.r_[0:53], found.whole),
        (np.r_[found.rows[2]], found.fold(2)),
        (np.delete(np.r_[0:53], np.r_[found.rows[1]]), found.without(1)),
        (np.delete(np.r_[0:53], np.r_[found.rows[0], found.rows[3]]), found.without(0, 3)),
    ):
        joint = np.cov(np.hstack([x, y])[kept].T)
        assert covariance.n == len(kept)
        assert covariance.xx == pytest.approx(joint[:4, :4], abs=1e-12)
        assert covariance.xy == pytest.approx(joint[:4, 4:], abs=1e-12)
        assert covariance.yy == pytest.approx(joint[4:, 4:], abs=1e-12)
        assert covariance.mean_x == pytest.approx(x[kept].mean(axis=0), abs=1e-12)


def test_around__is_the_mean_product_about_other_means(rng):
    x, y, a, b = rng.normal(size=(20, 3)), rng.normal(size=(20, 2)), rng.normal(size=3), rng.normal(size=2)

    found = joint_covariance(x, y).whole.around(a, b)

    assert found.xy == pytest.approx((x - a).T @ (y - b) / 19, abs=1e-12)
    assert found.xx == pytest.approx((x - a).T @ (x - a) / 19, abs=1e-12)


# Law
@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    block_rows=st.integers(1, 80),
    threads=st.integers(1, 3),
    n_folds=st.integers(1, 6),
)
def test_joint_covariance__streamed_equals_whole(seed, block_rows, threads, n_folds):
    rng = generator(seed, "chunks")
    x, y = rng.normal(size=(70, 4)) + 30, rng.normal(size=(70, 3))
    with compute(Backend(threads=threads)):
        streamed = joint_covariance(x, y, n_folds=n_folds, block_rows=block_rows).whole

    whole = np.cov(np.hstack([x, y]).T)

    assert streamed.xx == pytest.approx(whole[:4, :4], abs=1e-11)
    assert streamed.xy == pytest.approx(whole[:4, 4:], abs=1e-11)
    assert streamed.yy == pytest.approx(whole[4:, 4:], abs=1e-11)


def test_joint_covariance__is_the_same_bits_for_any_number_of_workers(rng):
    x, y = rng.normal(size=(300, 4)), rng.normal(size=(300, 3))
    found = []
    for threads in (1, 4):
        with compute(Backend(threads=threads)):
            found.append(joint_covariance(x, y, n_folds=3, block_rows=11).whole.xy)

    assert np.array_equal(*found)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), block_rows=st.integers(1, 40))
def test_picked_rows__are_those_rows(seed, block_rows):
    rng = generator(seed, "picked")
    rows, picked = rng.normal(size=(30, 2)), np.sort(rng.choice(30, 7, replace=False))

    assert np.array_equal(picked_rows(rows, picked, block_rows=block_rows), rows[picked])


# Bad input
def test_joint_covariance__raises_on_unequal_rows(rng, without_shape_checks):
    with pytest.raises(ShapeError, match="same samples"):
        joint_covariance(rng.normal(size=(8, 2)), rng.normal(size=(7, 2)))


def test_joint_covariance__raises_on_folds_of_one_row(rng):
    with pytest.raises(ShapeError, match=r"at least 2 rows for each of 5 folds. Got 8"):
        joint_covariance(rng.normal(size=(8, 2)), rng.normal(size=(8, 2)), n_folds=5)


def test_joint_covariance__raises_on_no_fold(rng):
    with pytest.raises(ConfigurationError, match="n_folds must be at least 1"):
        joint_covariance(rng.normal(size=(8, 2)), rng.normal(size=(8, 2)), n_folds=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_joint_covariance__raises_on_what_is_not_finite(rng, value):
    x, y = rng.normal(size=(600, 2)), rng.normal(size=(600, 2))
    y[100, 1] = value  # between the runs that set the shift

    with pytest.raises(DegenerateInputError, match="y must be finite"):
        joint_covariance(x, y)


def test_joint_covariance__raises_on_a_constant_system(rng):
    with pytest.raises(DegenerateInputError, match="x must vary"):
        joint_covariance(np.full((8, 2), 0.1), rng.normal(size=(8, 2)))
