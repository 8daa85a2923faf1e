import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.spatial.distance import pdist

from mechint_core.errors import DegenerateInputError, ShapeError
from mechint_core.kernels.linear_kernels import linear_kernels
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator

SUMS = ("trace_x", "trace_y", "spread", "inner", "unbiased_inner", "distance_inner", "distance_spread")


def draw(n, p, q, seed=0, offset=20.0):
    rng = generator(seed, "kernels")
    x = rng.normal(size=(n, p)) * rng.gamma(1.0, size=p) + offset
    return x, x[:, :1] + rng.normal(size=(n, q)) - offset


def sums(kernels):
    products = (kernels.xx, kernels.xy, kernels.yy)
    return np.array([[getattr(each, name) for name in SUMS] for each in products])


def u_centred(x):
    """The definition: zero diagonal, and every row sums to zero."""
    n = len(x)
    k = x @ x.T
    np.fill_diagonal(k, 0)
    rows = k.sum(axis=0)
    a = k - np.add.outer(rows, rows) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(a, 0)
    return a


# Known answer
def test_linear_kernels__of_two_opposite_pairs():
    """Rows ±e1, ±e2: K has 1 on the diagonal and -1 for opposites, so its eigenvalues are 2, 2, 0, 0.

    tr(K L) of unrelated systems then tends to 4 times a chi-square with 4 degrees of freedom: skewness √(8 / 4).
    """
    x = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])

    kernels = linear_kernels(x, x)

    assert (kernels.xy.trace_x, kernels.xy.inner, kernels.xy.spread) == pytest.approx((4, 8, 0), abs=1e-12)
    assert kernels.null_skewness() == pytest.approx(np.sqrt(2), rel=1e-6)  # float32 by design


# Oracle
@pytest.mark.parametrize(("p", "q"), [(5, 3), (40, 30)], ids=["streamed", "whole"])
def test_linear_kernels__equal_the_matrices_they_never_form(p, q):
    x, y = draw(30, p, q)
    picked = np.array([0, 7, 29])
    k, ell = ((a - a.mean(axis=0)) @ (a - a.mean(axis=0)).T for a in (x, y))
    d, e = pdist(x, "sqeuclidean"), pdist(y, "sqeuclidean")

    found = linear_kernels(x, y, picked=picked)

    assert found.xy.inner == pytest.approx(np.vdot(k, ell), rel=1e-10)
    assert found.xy.unbiased_inner == pytest.approx(np.vdot(u_centred(x), u_centred(y)), rel=1e-9)
    assert found.xy.distance_inner == pytest.approx(d @ e, rel=1e-10)
    assert found.xy.distance_spread == pytest.approx((d - d.mean()) @ (e - e.mean()), rel=1e-9)
    assert found.xy.row_inner == pytest.approx(np.sum(k * ell, axis=1)[picked], rel=1e-10)
    assert found.xy.row_diagonal == pytest.approx((np.diag(k) * np.diag(ell))[picked], rel=1e-10)
    assert found.rows_x == pytest.approx((x - x.mean(axis=0))[picked], abs=1e-10)
    third = np.trace(k @ k @ k) * np.trace(ell @ ell @ ell)
    assert found.null_skewness() == pytest.approx(
        np.sqrt(8) * third / (np.vdot(k, k) * np.vdot(ell, ell)) ** 1.5, rel=1e-5
    )


# Law
@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 80), st.integers(1, 4), st.floats(-1e3, 1e3))
def test_linear_kernels__are_the_same_for_every_chunking_worker_count_and_offset(seed, block_rows, threads, offset):
    """Products grow with offset² before the mean comes out: 1e-10 leaves five digits for that."""
    x, y = draw(70, 6, 4, seed, offset=0.0)
    whole = sums(linear_kernels(x, y, block_rows=70))
    with compute(Backend(threads=threads)):
        chunked = sums(linear_kernels(x + offset, y, block_rows=block_rows))

    assert chunked == pytest.approx(whole, rel=1e-10, abs=1e-10 * np.abs(whole).max())


def test_linear_kernels__give_the_same_bits_for_any_worker_count():
    x, y = draw(300, 6, 4)
    found = []
    for threads in (1, 2, 4):
        with compute(Backend(threads=threads)):
            found.append(sums(linear_kernels(x, y, block_rows=32)))

    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_linear_kernels__of_float32_rows_far_from_zero_keep_six_digits():
    """Shifted by the pilot mean, float32 products err by 1e-7 of the spread, not of the mean."""
    x, y = (a.astype(np.float32) for a in draw(2000, 20, 10, offset=1000.0))
    exact = sums(linear_kernels(x.astype(np.float64), y.astype(np.float64)))

    assert sums(linear_kernels(x, y, block_rows=128)) == pytest.approx(exact, rel=1e-6)


# Bad input
@pytest.mark.parametrize("shapes", [((5, 2), (4, 2)), ((5,), (5, 2)), ((0, 2), (0, 2)), ((5, 0), (5, 2))])
def test_linear_kernels__raise_on_shapes_that_do_not_match(shapes, without_shape_checks):
    with pytest.raises(ShapeError, match="with the same samples"):
        linear_kernels(np.zeros(shapes[0]), np.zeros(shapes[1]))


@pytest.mark.parametrize("n_units", [2, 30], ids=["streamed", "whole"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_linear_kernels__raise_on_values_that_are_not_finite(rng, bad, n_units):
    x = rng.normal(size=(20, n_units))
    y = x.copy()
    y[3, 1] = bad

    with pytest.raises(DegenerateInputError, match="y must be finite"):
        linear_kernels(x, y)


@pytest.mark.parametrize("n_units", [2, 30], ids=["streamed", "whole"])
def test_linear_kernels__raise_on_constant_rows(rng, n_units):
    with pytest.raises(DegenerateInputError, match="x must vary"):
        linear_kernels(np.full((20, n_units), 0.1), rng.normal(size=(20, 3)))
