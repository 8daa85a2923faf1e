import numpy as np
import pytest

from mechint_core.kernels.relabelling import relabelled, step_down_p_values
from mechint_core.parallel import Backend, compute


class FirstRow:
    def __call__(self, order):
        return np.array([float(order[0]), float(order[1])])


# Known answer
def test_step_down_p_values__count_what_is_as_large_and_never_fall():
    null = np.array([[0.0, 5.0], [1.0, 0.0], [3.0, 0.0]])

    assert step_down_p_values(np.array([1.0, 6.0]), null).tolist() == [0.75, 0.75]


def test_step_down_p_values__take_rounding_as_a_tie():
    assert step_down_p_values(np.array([1.0]), np.array([[1 - 1e-14]])).tolist() == [1.0]


# Law
@pytest.mark.parametrize("n_permutations", [1, 5, 8, 37])
def test_relabelled__draws_as_many_as_were_asked_for_and_the_same_for_any_number_of_workers(n_permutations):
    found = []
    for threads in (1, 3):
        with compute(Backend(threads=threads)):
            found.append(relabelled(FirstRow(), 9, n_permutations=n_permutations, seed=3, word="test"))

    assert found[0].shape == (n_permutations, 2)
    assert np.array_equal(*found)
    assert np.all(found[0][:, 0] != found[0][:, 1])
