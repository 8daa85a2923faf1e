import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from scipy.stats import false_discovery_control

from mechint_core.errors import DegenerateInputError
from mechint_core.kernels.false_discovery import false_discovery_rate

P_VALUES = arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1))


# Known answer
def test_false_discovery_rate__equals_the_worked_example_of_the_paper():
    """Benjamini and Hochberg's table of 15 p-values: at 5 %, the four smallest are discoveries."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
    p += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000]

    assert (false_discovery_rate(np.array(p)) <= 0.05).sum() == 4


def test_false_discovery_rate__leaves_out_tests_that_were_not_made():
    p = np.array([[0.01, np.nan], [0.04, 0.03]])

    np.testing.assert_allclose(false_discovery_rate(p), [[0.03, np.nan], [0.04, 0.04]], rtol=1e-15)
    assert np.isnan(false_discovery_rate(np.full(3, np.nan))).all()


@pytest.mark.parametrize("any_dependence", [False, True])
def test_false_discovery_rate__keeps_the_share_of_false_discoveries(rng, any_dependence):
    """30 of 100 tests are real (p about 1e-4). Mean false share over 400 draws at 10 %; its standard error is 0.003."""
    shares = []
    for _ in range(400):
        p = np.r_[rng.random(70), rng.random(30) * 2e-4]
        found = false_discovery_rate(p, any_dependence=any_dependence) <= 0.1
        shares.append(found[:70].sum() / max(1, found.sum()))

    assert np.mean(shares) <= 0.1
    if not any_dependence:
        assert np.mean(shares) == pytest.approx(0.07, abs=0.01)  # exactly 0.1 times the share of true nulls


# Oracle
@settings(max_examples=50)
@given(P_VALUES)
def test_false_discovery_rate__equals_scipy(p):
    np.testing.assert_allclose(false_discovery_rate(p), false_discovery_control(p), rtol=1e-12)
    np.testing.assert_allclose(
        false_discovery_rate(p, any_dependence=True), false_discovery_control(p, method="by"), rtol=1e-12
    )


# Law
@given(P_VALUES, st.integers(0, 99))
def test_false_discovery_rate__keeps_order_and_bounds_and_is_blind_to_positions(p, seed):
    q = false_discovery_rate(p)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(p.size)

    assert (q >= p * (1 - 1e-12)).all()
    assert (q <= 1).all()
    assert (np.diff(q[np.argsort(p)]) >= 0).all()
    np.testing.assert_array_equal(false_discovery_rate(p[order]), q[order])


# Bad input
@pytest.mark.parametrize("wrong", [-0.1, 1.1])
def test_false_discovery_rate__refuses_what_is_no_probability(wrong):
    with pytest.raises(DegenerateInputError, match="must be in"):
        false_discovery_rate(np.array([0.5, wrong]))
