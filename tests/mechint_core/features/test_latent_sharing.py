"""Crosscoders: what two systems share and what each has for itself, planted and found again."""

import numpy as np
import pytest
import torch

from mechint_core.errors import DegenerateInputError
from mechint_core.features import (
    Crosscoder,
    SparseAutoencoderConfig,
    latent_sharing,
    match_features,
    train_crosscoder,
)
from mechint_core.random import generator
from mechint_core.synthetic.sparse_dictionary import sparse_dictionary


def two_systems(n_samples=20_000, n_shared=24, n_own=12):
    """Two systems see the same features in directions of their own; some features only one of them has."""
    n_features = n_shared + 2 * n_own
    planted = sparse_dictionary(n_samples, n_units=32, n_features=n_features, p_active=0.05)
    directions = generator(0, "two systems").standard_normal((2, n_features, 32)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    directions[1, n_shared : n_shared + n_own] = 0  # the first system's own
    directions[0, n_shared + n_own :] = 0
    return planted.codes @ directions[0], 20 * (planted.codes @ directions[1]), directions


# Known answer
@pytest.mark.parametrize("activation", ["batch_topk", "jumprelu"])
def test_latent_sharing__finds_what_two_systems_share(activation):
    """24 shared, 12 of each alone; the second system is twenty times larger, which must not matter."""
    one, other, directions = two_systems()
    config = SparseAutoencoderConfig(activation=activation, n_latents=48, k=2.4, n_epochs=25, batch_size=400)

    crosscoder, training = train_crosscoder({"one": one, "other": other}, config=config)
    found = latent_sharing(crosscoder)

    joint = np.concatenate([directions[0], 20 * directions[1]], axis=1)
    assert (
        match_features(
            crosscoder.W_dec.detach().numpy() / np.repeat([1, 20], 32), joint / np.repeat([1, 20], 32)
        ).mcc.value
        > 0.95
    )
    assert found.shared.value == pytest.approx(24 / 48, abs=2 / 48)
    assert np.abs(found.n_exclusive - 12).max() <= 1
    assert found.shared.low <= 0.5 <= found.shared.high
    assert training.fvu.value < 0.15


def test_latent_sharing__of_one_system_twice_is_all_shared_and_the_same():
    x = sparse_dictionary(8000, n_units=16, n_features=24, p_active=0.06).activations
    config = SparseAutoencoderConfig(n_latents=24, k=1.5, n_epochs=15, batch_size=200)

    found = latent_sharing(train_crosscoder({"one": x, "again": x}, config=config)[0])

    assert found.shared.value == 1
    assert found.mean_cosine.value > 0.99
    assert "a cosine of 1.00" in found.reading()


def test_latent_sharing__leaves_dead_latents_out():
    """Two systems with nothing in common and far more latents than features: those that never learned share nothing."""
    one = sparse_dictionary(10_000, n_units=16, n_features=12, p_active=0.08, seed=1).activations
    other = sparse_dictionary(10_000, n_units=16, n_features=12, p_active=0.08, seed=2).activations
    config = SparseAutoencoderConfig(n_latents=96, k=2, n_epochs=12, batch_size=250, auxiliary_coef=0.0)

    found = latent_sharing(train_crosscoder({"one": one, "other": other}, config=config)[0])

    assert found.n_dead > 20
    assert found.n_living + found.n_dead == len(found.first_share) == 96
    assert np.isnan(found.first_share).sum() == found.n_dead
    assert found.shared.value < 0.2


# Law
def test_latent_sharing__does_not_depend_on_the_order_of_the_latents():
    made = Crosscoder([3, 5], config=SparseAutoencoderConfig(n_latents=40))
    before = latent_sharing(made)
    with torch.no_grad():
        made.W_dec.copy_(made.W_dec.flip(0))
    after = latent_sharing(made)

    assert after.shared.value == before.shared.value
    np.testing.assert_array_equal(after.site_share, before.site_share[::-1])
    assert np.isnan(after.mean_cosine.value)
    np.testing.assert_allclose(after.site_share.sum(axis=1), 1, rtol=1e-6)


# Bad input
def test_latent_sharing__refuses_a_crosscoder_without_rows():
    made = Crosscoder([3, 5], config=SparseAutoencoderConfig(n_latents=40))
    torch.nn.init.zeros_(made.W_dec)
    with pytest.raises(DegenerateInputError, match="must have a latent that fires"):
        latent_sharing(made)
