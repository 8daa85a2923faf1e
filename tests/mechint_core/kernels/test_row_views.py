"""Rows side by side, and rows without padding: the same numbers as from arrays in memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from mechint_core.errors import ShapeError
from mechint_core.kernels.row_views import KeptVectors, SideBySide
from mechint_core.random import generator


# Law
@given(arrays(bool, (7, 3)), st.integers(0, 22), st.integers(0, 22))
def test_kept_vectors__any_slice_is_that_of_the_whole(kept, start, stop):
    rows = np.arange(42.0).reshape(7, 3, 2)
    if kept.any():
        view = KeptVectors(rows, kept)
        whole = rows[kept]
        assert view.shape == whole.shape
        np.testing.assert_array_equal(view[start:stop], whole[start:stop])


@given(st.integers(0, 6), st.integers(0, 8))
def test_side_by_side__is_a_concatenation(start, stop):
    draws = generator(0, "rows")
    one, other = draws.normal(size=(6, 4, 2)), draws.normal(size=(6, 4, 3)).astype(np.float32)
    view = SideBySide([one, other])

    assert (view.shape, view.dtype) == ((6, 4, 5), np.float64)
    np.testing.assert_array_equal(view[start:stop], np.concatenate([one, other], axis=-1)[start:stop])


def test_side_by_side__holds_no_part_twice_but_one():
    """Two equal parts: the joint rows and one part, not the joint rows and both."""
    rows = np.zeros((20_000, 50))
    view = SideBySide([rows.view(Copied), rows.view(Copied)])
    tracemalloc.start()
    _ = view[:]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 3.2 * rows.nbytes


class Copied(np.ndarray):
    """Rows that are read into new memory, as those of a store."""

    def __getitem__(self, rows):
        return np.asarray(self).__getitem__(rows).copy()


# Bad input
def test_side_by_side__refuses_rows_that_do_not_agree():
    with pytest.raises(ShapeError, match=r"same \(sample"):
        SideBySide([np.zeros((3, 2)), np.zeros((4, 2))])


def test_kept_vectors__refuses_a_mask_of_other_axes_and_one_that_keeps_nothing():
    with pytest.raises(ShapeError, match="kept must be"):
        KeptVectors(np.zeros((3, 2, 4)), np.ones((3, 3), bool))
    with pytest.raises(ShapeError, match="with 0 kept"):
        KeptVectors(np.zeros((3, 2, 4)), np.zeros((3, 2), bool))
