import dataclasses

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.nn import functional

from mechint_core.errors import CheckpointError, ConfigurationError, ShapeError
from mechint_core.features import SparseAutoencoder, SparseAutoencoderConfig
from mechint_core.random import torch_generator

ACTIVATIONS = ("batch_topk", "topk", "relu")
NONE_DEAD = torch.zeros(12, dtype=torch.bool)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch_generator(seed, "test"), dtype=torch.float64)


def dictionary(activation="batch_topk", tied_weights=False, seed=0, **options):
    """Six units, twelve latents, all weights random, in float64."""
    config = SparseAutoencoderConfig(activation=activation, tied_weights=tied_weights, k=3, seed=seed, **options)
    made = SparseAutoencoder(6, 12, config=config).double()
    with torch.no_grad():
        for at, (name, parameter) in enumerate(sorted(made.named_parameters())):
            parameter.copy_(draw(*parameter.shape, seed=100 + 10 * seed + at) * (0.3 if name.startswith("b_") else 1))
    made.constrain_weights()
    return made


def gradients(loss, model):
    return torch.autograd.grad(loss, [parameter for _, parameter in sorted(model.named_parameters())])


# Known answer
def test_dictionary__starts_as_the_transpose_of_its_decoder():
    for activation, norm in (("batch_topk", 1.0), ("relu", 0.1)):
        made = SparseAutoencoder(6, 12, config=SparseAutoencoderConfig(activation=activation, k=3))

        assert torch.equal(made.W_enc, made.W_dec)
        assert made.W_enc is not made.W_dec
        torch.testing.assert_close(made.W_dec.norm(dim=1), torch.full((12,), norm))


def test_dictionary__tied_weights_are_one_parameter():
    made = SparseAutoencoder(6, 12, sparsity_coef=0.1, tied_weights=True)

    assert made.W_enc is made.W_dec
    assert sum(parameter.numel() for parameter in made.parameters()) == 6 * 12 + 6 + 12


def test_encode__topk_has_exactly_k_active_where_so_many_are_positive():
    made, x = dictionary("topk"), draw(200, 6)

    n_positive = (functional.linear(x - made.b_dec, made.W_enc, made.b_enc) > 0).sum(dim=1)

    assert torch.equal((made.encode(x) > 0).sum(dim=1), n_positive.clamp_max(3))
    assert (n_positive > 3).any()


def test_encode__batch_topk_uses_its_threshold_and_not_the_batch():
    made, x = dictionary("batch_topk"), draw(50, 6)
    made.threshold.fill_(0.7)

    whole = made.encode(x)

    torch.testing.assert_close(torch.stack([made.encode(row) for row in x]), whole)
    assert whole[whole > 0].min() > 0.7


def test_constrain_gradient__leaves_only_what_turns_the_rows():
    made = dictionary("topk")
    made.objective(draw(20, 6), penalty=1.0, dead=NONE_DEAD).loss.backward()

    made.constrain_gradient()

    torch.testing.assert_close((made.W_dec.grad * made.W_dec).sum(dim=1), torch.zeros(12).double())
    assert made.W_dec.grad.norm() > 0


@pytest.mark.parametrize("silenced_by", ["bias", "direction"])
def test_auxiliary__reaches_a_latent_that_never_opens(silenced_by):
    """No gradient passes a closed ReLU; the auxiliary loss must reach such a latent all the same."""
    made, x = dictionary("topk", auxiliary_coef=1.0), draw(50, 6) + 20
    if silenced_by == "bias":
        made.b_enc.data[0] = -1e3
    else:
        made.W_enc.data[0] = -1.0
    dead = NONE_DEAD.clone()
    dead[0] = True

    made.objective(x, penalty=1.0, dead=dead).loss.backward()

    assert made.W_enc.grad[0].norm() > 1e-3
    assert made.W_dec.grad[0].norm() > 1e-3


# Oracle
@pytest.mark.parametrize("tied_weights", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_objective__equals_the_textbook_form_with_its_gradients(activation, tied_weights):
    """Dense, with b_dec subtracted from x: the same sums in float64, in another order."""
    made, x = dictionary(activation, tied_weights, sparsity_coef=0.3), draw(40, 6)

    pre = functional.linear(x - made.b_dec, made.W_enc, made.b_enc)
    codes = functional.relu(pre)
    if activation == "topk":
        codes = codes * torch.zeros_like(pre).scatter(1, pre.topk(3, dim=1).indices, 1.0)
    if activation == "batch_topk":
        codes = codes * (pre >= pre.flatten().topk(120).values[-1])
    oracle = (x - codes @ made.W_dec - made.b_dec).square().sum() / x.numel()
    if activation == "relu":
        oracle = oracle + 0.3 * 0.5 * (codes * made.W_dec.norm(dim=1)).sum(dim=1).mean()
    found = made.objective(x, penalty=0.5, dead=NONE_DEAD)

    torch.testing.assert_close(found.loss, oracle, rtol=1e-12, atol=0)
    for own, true in zip(gradients(found.loss, made), gradients(oracle, made), strict=True):
        torch.testing.assert_close(own, true, rtol=1e-9, atol=1e-12)
    assert found.l0 == (codes > 0).sum() / 40
    assert torch.equal(found.fired, (codes > 0).any(dim=0))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_objective__passes_gradcheck(activation):
    made, x = dictionary(activation, sparsity_coef=0.3), draw(7, 6)
    names = [name for name, _ in made.named_parameters()]

    def loss(*values):
        call = functional_call(made, dict(zip(names, values, strict=True)))
        return call(x)

    def functional_call(module, parameters):
        def call(x):
            copy = dataclasses.replace(module.config)
            twin = SparseAutoencoder(6, 12, config=copy).double()
            for name, value in parameters.items():
                del twin._parameters[name]
                setattr(twin, name, value)
            return twin.objective(x, penalty=1.0, dead=NONE_DEAD).loss

        return call

    assert torch.autograd.gradcheck(loss, tuple(made.parameters()))


def test_auxiliary__is_the_share_of_the_detached_residual_that_dead_latents_miss():
    made, x = dictionary("topk", auxiliary_coef=0.25), draw(40, 6)
    dead = torch.arange(12) < 5
    alive = made.objective(x, penalty=1.0, dead=NONE_DEAD)

    residual = alive.error
    pre = functional.relu((x - x.mean(dim=0)) @ made.W_enc[dead].T)
    codes = pre * torch.zeros_like(pre).scatter(1, pre.topk(3, dim=1).indices, 1.0)  # d / 2 = 3 of the 5
    missed = (residual - codes @ made.W_dec[dead]).square().sum()
    oracle = alive.loss + 0.25 * missed / (residual - residual.mean(dim=0)).square().sum()
    found = made.objective(x, penalty=1.0, dead=dead)

    torch.testing.assert_close(found.loss, oracle, rtol=1e-12, atol=0)
    for own, true in zip(gradients(found.loss, made), gradients(oracle, made), strict=True):
        torch.testing.assert_close(own, true, rtol=1e-9, atol=1e-12)


# Law
@settings(max_examples=30)
@given(st.sampled_from(ACTIVATIONS), st.booleans(), st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 5))
def test_folded__reconstructs_shifted_and_scaled_vectors_the_same(activation, tied_weights, scale, shift, seed):
    made = dictionary(activation, tied_weights, seed)
    made.threshold.fill_(0.2 if activation == "batch_topk" else 0.0)
    x, centre = draw(20, 6, seed=seed), shift * draw(6, seed=seed + 1)

    folded = made.folded(centre, scale, float(made.threshold[0]))

    tolerance = {"rtol": 1e-8, "atol": 1e-8 * (scale + abs(shift))}
    torch.testing.assert_close(folded(centre + scale * x), centre + scale * made(x), **tolerance)
    if not (activation == "relu" and tied_weights):
        torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(12).double())


@pytest.mark.parametrize("tied_weights", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_save__load_gives_back_the_same_bits(tmp_path, activation, tied_weights):
    config = SparseAutoencoderConfig(activation=activation, tied_weights=tied_weights, k=3, seed=7)
    made = SparseAutoencoder(6, 12, config=config)
    made.threshold.fill_(0.1)
    made.save(tmp_path)

    loaded = SparseAutoencoder.load(tmp_path)

    assert loaded.config == made.config
    assert all(torch.equal(loaded.tensors()[name], tensor) for name, tensor in made.tensors().items())
    assert (loaded.W_enc is loaded.W_dec) == tied_weights
    assert (tmp_path / "config.json").read_text().startswith("{")


def test_dictionary__codes_keep_the_axes_before_the_units():
    made = dictionary("topk")

    assert made.encode(draw(4, 3, 6)).shape == (4, 3, 12)
    assert made(draw(6)).shape == (6,)


# Bad input
def test_dictionary__refuses_more_active_latents_than_there_are():
    with pytest.raises(ConfigurationError, match="k must be at most the number of latents, 12"):
        SparseAutoencoder(6, 12)


def test_dictionary__refuses_no_units():
    with pytest.raises(ConfigurationError, match="input_dim must be at least 1"):
        SparseAutoencoder(0, 40)


def test_encode__refuses_vectors_of_other_width():
    with pytest.raises(ShapeError, match="must have 6 units"):
        dictionary().encode(draw(4, 5))


def test_load__refuses_a_config_of_other_fields(tmp_path, monkeypatch):
    made = SparseAutoencoder(6, 12, sparsity_coef=0.1)
    made.save(tmp_path)
    monkeypatch.setattr("mechint_core.features.dictionary.read_tensors", lambda _: ({}, {"config": {"no": 1}}))

    with pytest.raises(CheckpointError, match="this version's fields"):
        SparseAutoencoder.load(tmp_path)


def test_take__refuses_weights_of_another_shape():
    with pytest.raises(CheckpointError, match=r"W_dec must have shape \(12, 6\). Got \(13, 6\)"):
        dictionary().take(SparseAutoencoder(6, 13, sparsity_coef=1.0).tensors() | {"b_dec": torch.zeros(6)})


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"activation": "topk", "k": 2.5}, "whole number"),
        ({"n_epochs": 0}, "n_epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"n_latents": 0}, "n_latents must be at least 1"),
        ({"sparsity_coef": -1.0}, "sparsity_coef must be at least 0"),
        ({"sparsity_coef": float("nan")}, "sparsity_coef must be at least 0"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"k": 0}, "k must be above 0"),
        ({"warmup": 1.5}, "warmup must be a share"),
    ],
)
def test_config__refuses_what_makes_no_sense(option, match):
    with pytest.raises(ConfigurationError, match=match):
        SparseAutoencoderConfig(**option)
