import numpy as np

from mechint_core.kernels.leave_one_out import agreement_with_others, resampled_agreement, resampled_pairs


# Known answer
def test_agreement_with_others__is_the_correlation_with_their_sum(rng):
    rows = rng.normal(size=(4, 30))
    rows -= rows.mean(axis=1, keepdims=True)
    expected = [np.corrcoef(rows[k], np.delete(rows, k, 0).sum(axis=0))[0, 1] for k in range(4)]

    np.testing.assert_allclose(agreement_with_others(rows @ rows.T), expected, atol=1e-12)


def test_agreement_with_others__is_nan_where_the_others_cancel():
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])

    assert np.isnan(agreement_with_others(rows @ rows.T)).tolist() == [True, False, False]


# Law
def test_resampled_agreement__once_each_is_the_agreement(rng):
    rows = rng.normal(size=(5, 20))
    products, once = rows @ rows.T, np.ones((5, 1))

    expected = [agreement_with_others(products).mean()]
    np.testing.assert_allclose(resampled_agreement(products, once), expected, atol=1e-12)


def test_resampled__leaves_all_copies_of_one_out(rng):
    """Subjects 0, 0, 2: subject 0 is compared with 2 alone, subject 2 with 0 twice."""
    rows = rng.normal(size=(3, 20))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    counts = np.array([[2.0], [0.0], [1.0]])

    one = rows[0] @ rows[2]
    np.testing.assert_allclose(resampled_agreement(rows @ rows.T, counts), [one], atol=1e-12)
    np.testing.assert_allclose(resampled_pairs(rows @ rows.T, counts), [one], atol=1e-12)


def test_resampled__of_one_alone_is_nan(rng):
    products = np.eye(3) + 0.5
    counts = np.array([[3.0], [0.0], [0.0]])

    assert np.isnan(resampled_agreement(products, counts))[0]
    assert np.isnan(resampled_pairs(products, counts))[0]
