import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from mechint_core.errors import DegenerateInputError, ShapeError
from mechint_core.kernels import moments
from mechint_core.kernels.moments import column_mean, pairwise_linear_cka
from mechint_core.parallel import Backend, compute
from mechint_core.random import generator
from mechint_core.synthetic.aligned_systems import aligned_systems


def by_definition(x, y):
    k, ell = (a @ a.T for a in (x - x.mean(axis=0), y - y.mean(axis=0)))
    return np.vdot(k, ell) / np.sqrt(np.vdot(k, k) * np.vdot(ell, ell))


def draw_systems(n, widths, seed=0):
    rng = generator(seed, "systems")
    shared = rng.normal(size=(n, 3))
    return [shared @ rng.normal(size=(3, p)) + rng.normal(size=(n, p)) + 10 for p in widths]


# Known answer
def test_pairwise_linear_cka__is_the_planted_similarity():
    """In an exact sample the cross-covariance is r Q and the covariances are 1, so CKA is r² to rounding."""
    pair = aligned_systems(60, 5, similarity=0.3, exact=True)

    matrix = pairwise_linear_cka([pair.x, pair.y])

    assert matrix == pytest.approx(np.array([[1, 0.3], [0.3, 1]]), abs=1e-12)


def test_column_mean__keeps_the_digits_of_float32_sums(rng):
    """A float32 running sum of 50,000 numbers near 1000 loses the third decimal; a float64 one does not."""
    x = (rng.normal(size=(50_000, 2)) + 1000).astype(np.float32)

    assert column_mean(x) == pytest.approx(x.astype(np.float64).mean(axis=0), rel=1e-12)


# Oracle
@pytest.mark.parametrize("widths", [(4, 9, 2), (60, 80, 70, 50)], ids=["narrow", "wide"])
def test_pairwise_linear_cka__equals_the_gram_definition(widths):
    systems = draw_systems(40, widths)
    expected = [[by_definition(a, b) for b in systems] for a in systems]

    assert pairwise_linear_cka(systems) == pytest.approx(np.array(expected), abs=1e-12)


# Law
@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 50), st.integers(1, 3), st.sampled_from([(3, 8, 5), (40, 30, 50)]))
def test_pairwise_linear_cka__is_the_same_for_every_chunking_and_worker_count(seed, block_rows, threads, widths):
    systems = draw_systems(37, widths, seed)
    with compute(Backend(threads=threads)):
        chunked = pairwise_linear_cka(systems, block_rows=block_rows)

    assert chunked == pytest.approx(pairwise_linear_cka(systems), abs=1e-12)


def test_pairwise_linear_cka__has_two_equal_forms_and_any_panel_size(monkeypatch):
    systems = draw_systems(50, (6, 4, 5, 7, 3))
    means = [column_mean(system) for system in systems]
    one_by_one = moments._inner_by_tiles(systems, means, 16)

    for panel_bytes in (1, 3 * 8 * 7 * 25, 2**24):
        monkeypatch.setattr(moments, "PANEL_BYTES", panel_bytes)
        assert moments._inner_by_units(systems, means, 16) == pytest.approx(one_by_one, rel=1e-12)


def test_pairwise_linear_cka__reads_large_systems_block_by_block(monkeypatch):
    class Stored:
        """Rows that refuse to be read whole."""

        def __init__(self, values):
            self.values, self.shape, self.dtype = values, values.shape, values.dtype

        def __getitem__(self, rows):
            assert rows.stop is not None
            assert rows.stop - rows.start <= 16
            return self.values[rows]

    systems = draw_systems(50, (6, 4))
    monkeypatch.setattr(moments, "RESIDENT_BYTES", 0)

    stored = pairwise_linear_cka([Stored(system) for system in systems], block_rows=16)

    assert stored == pytest.approx(pairwise_linear_cka(systems), abs=1e-12)


# Bad input
def test_pairwise_linear_cka__raises_without_a_system():
    with pytest.raises(ShapeError, match="equally many rows"):
        pairwise_linear_cka([])


def test_pairwise_linear_cka__raises_on_unequal_rows():
    with pytest.raises(ShapeError, match=r"\(5, 2\), \(4, 2\)"):
        pairwise_linear_cka([np.ones((5, 2)), np.ones((4, 2))])


@pytest.mark.parametrize("value", [0.1, np.nan, np.inf])
def test_pairwise_linear_cka__raises_on_a_constant_or_infinite_system(rng, value):
    with pytest.raises(DegenerateInputError, match=r"finite|vary"):
        pairwise_linear_cka([rng.normal(size=(9, 2)), np.full((9, 3), value)])
