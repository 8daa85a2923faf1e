import numpy as np
import pytest
import torch

import mechint_core
from mechint_core.errors import CheckpointError, ConfigurationError
from mechint_core.features import (
    Recipe,
    SparseAutoencoder,
    SparseAutoencoderConfig,
    evaluate_dictionary,
    match_features,
    start_training,
    train_sparse_autoencoder,
    training_record,
)
from mechint_core.random import torch_generator
from mechint_core.synthetic.sparse_dictionary import sparse_dictionary


def small():
    """A problem of a second: 64 features in 48 units, 1.9 of them active."""
    return sparse_dictionary(10_000, n_units=48, n_features=64)


def config(**options):
    return SparseAutoencoderConfig(**{"n_latents": 64, "k": 2, "n_epochs": 20, "batch_size": 400, **options})


# Known answer
def test_train_sparse_autoencoder__finds_planted_features():
    planted = small()

    model, training = train_sparse_autoencoder(planted.activations, config=config())

    found = match_features(model.W_dec.detach().numpy(), planted.dictionary)
    assert found.mmcs.value > 0.95
    assert found.mcc.value > 0.95
    assert training.l0.value == pytest.approx(planted.l0, rel=0.1)
    assert training.dead_share.value <= 1 / 64
    assert training.fvu.p_value == 0.05  # better than all 19 random dictionaries


@pytest.mark.parametrize(
    ("activation", "options", "l0_within"),
    [
        ("batch_topk", {"k": 4}, 0.1),
        pytest.param("topk", {"k": 4}, 0.1, marks=pytest.mark.slow),
        # L1 trades L0 against shrinkage: no penalty gives both.
        pytest.param("relu", {"sparsity_coef": 0.02}, 0.25, marks=pytest.mark.slow),
        pytest.param("gated", {"sparsity_coef": 0.02}, 0.25, marks=pytest.mark.slow),
        pytest.param("jumprelu", {"k": 4}, 0.1, marks=pytest.mark.slow),
    ],
)
def test_train_sparse_autoencoder__finds_128_features_in_64_units(activation, options, l0_within):
    """Evaluated on 20,000 vectors that training has not seen. Mean L0 of the truth: 3.84."""
    planted = sparse_dictionary(120_000)
    chosen = SparseAutoencoderConfig(activation=activation, n_latents=128, n_epochs=10, **options)

    model, _ = train_sparse_autoencoder(planted.activations[:100_000], config=chosen)

    found = match_features(model.W_dec.detach().numpy(), planted.dictionary)
    quality = evaluate_dictionary(planted.activations[100_000:], model)
    assert found.mmcs.value > 0.95
    assert found.mcc.value > 0.95
    assert quality.l0.value == pytest.approx(planted.l0, rel=l0_within)
    assert quality.dead_share.value == 0


def test_sparse_autoencoder__works_as_the_notebook_says():
    """The notebook's calls, on fewer vectors."""
    activations = torch.from_numpy(small().activations)

    sae = mechint_core.SparseAutoencoder(
        input_dim=activations.shape[1], hidden_dim=activations.shape[1] * 4, sparsity_coef=0.01, tied_weights=False
    )
    losses = sae.train_on_activations(activations, num_epochs=5, batch_size=128, lr=1e-3)
    feature_acts = sae.get_feature_activations(activations[:100])

    assert len(losses) == 5
    assert losses[-1] < losses[0]
    assert sae.config.activation == "relu"
    assert feature_acts.shape == (100, 192)
    assert 0 < (feature_acts > 0).float().mean() < 1
    assert np.asarray(feature_acts[:50].T).shape == (192, 50)  # what plt.imshow does
    assert feature_acts.min() >= 0
    assert torch.equal(sae.get_feature_activations(activations[:100].numpy()), feature_acts)


def test_sparse_autoencoder__defaults_are_the_batch_topk_one():
    sae = SparseAutoencoder(input_dim=48, hidden_dim=96)

    losses = sae.train_on_activations(small().activations[:500])

    assert sae.config.activation == "batch_topk"
    assert len(losses) == sae.config.n_epochs
    assert (sae.threshold > 0).all()


@pytest.mark.parametrize("activation", ["batch_topk", "topk", "relu", "jumprelu"])
def test_sparse_autoencoder__tied_weights_learn(activation):
    planted = small()

    model, _ = train_sparse_autoencoder(
        planted.activations, config=config(activation=activation, sparsity_coef=0.02, tied_weights=True)
    )

    assert model.W_enc is model.W_dec
    assert match_features(model.W_dec.detach().numpy(), planted.dictionary).mcc.value > 0.9


def test_train_sparse_autoencoder__describes_its_training():
    calls = []

    model, training = train_sparse_autoencoder(
        small().activations, config=config(n_epochs=15), on_progress=lambda step, metrics: calls.append(step)
    )

    assert training.n_steps == calls[-1] == 15 * 25
    assert training.step[-1] == training.n_steps
    assert len(training.loss) == len(training.l0_curve) == 200
    assert training.l0_curve[-1] == pytest.approx(2, rel=0.05)
    assert training.axes()["loss"] == ("pass",)
    assert "After 375 steps" in training.reading()
    assert model.hidden_dim == training.n_latents == 64


# Oracle
def test_train_on_activations__equals_the_training_function():
    activations = small().activations[:1000]
    sae = SparseAutoencoder(48, 64, config=config(n_epochs=2))

    sae.train_on_activations(activations)
    model, _ = train_sparse_autoencoder(activations, config=config(n_epochs=2))

    assert all(torch.equal(sae.tensors()[name], tensor) for name, tensor in model.tensors().items())


# Law
def test_train_sparse_autoencoder__goes_on_where_a_stopped_run_was(tmp_path):
    activations = small().activations[:1000]
    whole, whole_training = train_sparse_autoencoder(activations, config=config(n_epochs=6))

    def stop(step, metrics):
        if step == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sparse_autoencoder(activations, config=config(n_epochs=6), folder=tmp_path, on_progress=stop)
    resumed, resumed_training = train_sparse_autoencoder(activations, config=config(n_epochs=6), folder=tmp_path)

    assert all(torch.equal(resumed.tensors()[name], tensor) for name, tensor in whole.tensors().items())
    assert resumed_training.scalars() == whole_training.scalars()
    np.testing.assert_array_equal(resumed_training.loss, whole_training.loss)


def test_train_sparse_autoencoder__does_not_touch_the_global_generators():
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002

    train_sparse_autoencoder(small().activations[:500], config=config(n_epochs=1))

    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
@pytest.mark.parametrize("activation", ["batch_topk", "topk", "relu", "gated", "jumprelu"])
def test_train_sparse_autoencoder__finds_planted_features_on_an_accelerator(tmp_path, activation):
    planted = small()
    chosen = config(activation=activation, device="cuda")

    model, _ = train_sparse_autoencoder(planted.activations, config=chosen, folder=tmp_path)

    assert match_features(model.W_dec.detach().numpy(), planted.dictionary).mcc.value > 0.9
    assert model.W_dec.device.type == "cpu"


def test_get_feature_activations__are_codes_without_gradient():
    sae = SparseAutoencoder(6, 12, sparsity_coef=0.1)
    x = torch.randn(4, 3, 6, generator=torch_generator(0, "x"))

    codes = sae.get_feature_activations(x)

    assert not codes.requires_grad
    torch.testing.assert_close(codes, sae.encode(x).detach())


# Bad input
def test_train_on_activations__refuses_vectors_of_other_width():
    with pytest.raises(ConfigurationError, match=r"must have 6 units\. Got 48"):
        SparseAutoencoder(6, 12, sparsity_coef=0.1).train_on_activations(small().activations[:100], num_epochs=1)


def test_training_record__refuses_a_run_without_steps():
    training = start_training({"x": small().activations}, {"": Recipe(reads=("x",), config=config())})
    with pytest.raises(ConfigurationError, match="at least one step"):
        training_record(training, "")


def test_train_sparse_autoencoder__refuses_the_folder_of_another_run(tmp_path):
    train_sparse_autoencoder(small().activations[:300], config=config(n_epochs=1), folder=tmp_path)

    with pytest.raises(CheckpointError, match="Use another folder"):
        train_sparse_autoencoder(small().activations[:300], config=config(n_epochs=2), folder=tmp_path)
