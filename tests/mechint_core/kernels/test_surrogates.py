import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from mechint_core.errors import ShapeError
from mechint_core.kernels.surrogates import phase_randomized, shuffled_orders
from mechint_core.random import generator


# Known answer
def test_shuffled_orders__reach_every_order_equally_often(rng):
    """6 orders of 3 steps, 6000 draws: 1000 of each, standard deviation 29; 5 of them allowed."""
    orders = shuffled_orders(3, n_draws=6000, rng=rng)

    _, counts = np.unique(orders, axis=0, return_counts=True)

    assert counts == pytest.approx(np.full(6, 1000), abs=145)


def test_phase_randomized__moves_a_sine_along_the_axis(rng):
    """A sine keeps its frequency and amplitude: only its phase is free."""
    turn = 2 * np.pi * 3 * np.arange(50) / 50
    x = np.stack([np.sin(turn), np.cos(turn)], axis=1)

    y = phase_randomized(x, rng=rng)

    assert y[:, 0] ** 2 + y[:, 1] ** 2 == pytest.approx(np.ones(50))  # still a quarter turn apart
    assert np.abs(y - x).max() > 0.1


# Oracle
def test_phase_randomized__keeps_the_circular_autocovariance_of_numpy(rng):
    x = rng.normal(size=(60, 1))

    y = phase_randomized(x, rng=rng)

    for lag in range(60):
        assert np.dot(y[:, 0], np.roll(y[:, 0], lag)) == pytest.approx(np.dot(x[:, 0], np.roll(x[:, 0], lag)))


# Law
@given(length=st.integers(2, 30), n_draws=st.integers(0, 5), seed=st.integers(0, 2**31))
def test_shuffled_orders__are_permutations(length, n_draws, seed):
    orders = shuffled_orders(length, n_draws=n_draws, rng=generator(seed))

    assert orders.shape == (n_draws, length)
    assert (np.sort(orders, axis=1) == np.arange(length)).all()


@given(length=st.integers(3, 41), n_units=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_phase_randomized__keeps_spectra_and_cross_spectra(length, n_units, seed):
    """The tolerance is that of two transforms of numbers of size 10."""
    x = generator(seed, "series").normal(2, 3, (length, n_units))

    y = phase_randomized(x, rng=generator(seed, "phases"))

    before, after = np.fft.rfft(x, axis=0), np.fft.rfft(y, axis=0)
    assert y.shape == x.shape
    assert y.mean(axis=0) == pytest.approx(x.mean(axis=0))
    for other in range(n_units):
        crossed = before * before[:, [other]].conj()
        assert np.allclose(after * after[:, [other]].conj(), crossed, atol=1e-9 * np.abs(crossed).max())


@given(seed=st.integers(0, 2**31))
def test_surrogates__same_generator_same_bits(seed):
    x = generator(seed, "series").normal(size=(20, 2))

    once, again = (phase_randomized(x, rng=generator(seed)) for _ in range(2))

    assert once.tolist() == again.tolist()


# Bad input
def test_shuffled_orders__raises_on_a_single_step(rng):
    with pytest.raises(ShapeError, match=r"at least 2 steps to be shuffled. Got 1"):
        shuffled_orders(1, n_draws=3, rng=rng)


def test_phase_randomized__raises_on_two_steps(rng):
    with pytest.raises(ShapeError, match=r"at least 3 steps to have phases. Got 2"):
        phase_randomized(np.ones((2, 1)), rng=rng)
