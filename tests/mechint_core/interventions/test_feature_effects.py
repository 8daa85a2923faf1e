"""Causal effects of dictionary latents."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.features import SparseAutoencoder, SparseAutoencoderConfig
from mechint_core.interventions import FeatureEffectsConfig, feature_effects
from mechint_core.interventions._turned_dictionary import random_rotation, turned_dictionary
from mechint_core.models import inference
from mechint_core.random import generator, torch_generator
from mechint_core.synthetic.linear_network import LinearNetwork
from mechint_core.synthetic.small_transformer import SmallTransformer

unchecked = inspect.unwrap(feature_effects)  # without the shape checker of the tests, to meet our own messages


class Given(nn.Module):
    """A dictionary with these directions, which reads with what it writes."""

    def __init__(self, rows, site="total", *, threshold=0.0, centre=None):
        super().__init__()
        self.W_dec = self.W_enc = rows
        self.site, self.threshold = site, threshold
        self.centre = torch.zeros(rows.shape[1], dtype=rows.dtype) if centre is None else centre

    def encode(self, x):
        codes = (x - self.centre) @ self.W_enc.T
        return torch.where(codes > self.threshold, codes, 0.0)

    def decode(self, codes):
        return codes @ self.W_dec + self.centre


def both_sides(n=8):
    """A latent for either side of every unit: its reconstruction is exact."""
    return torch.cat([torch.eye(n), -torch.eye(n)]).double()


def linear_data(n=40, seed=0):
    inputs = generator(seed, "inputs").normal(size=(n, 8))
    model = LinearNetwork((1.0,), seed=seed)
    with inference(model):
        return model, inputs, model(torch.from_numpy(inputs)).argmax(dim=1).numpy()


def slopes(model, target):
    """The gradient of the logit difference at `total`, which is the same everywhere."""
    U = model.readout.weight.detach()
    others = (U.sum(dim=0) - U[target]) / (len(U) - 1)
    return (U[target] - others).numpy()


def at_total(model, inputs):
    return (torch.from_numpy(inputs) @ model.routes[0].weight.T).detach().numpy()


class Planted(nn.Module):
    """64 sparse features, orthogonal and mixed over 64 units; the answer reads three of them, at saturation."""

    def __init__(self):
        super().__init__()
        self.features = nn.Parameter(random_rotation(64, 0, 999))
        self.site = nn.Identity()
        self.wanted = (3, 11, 20)

    def forward(self, x):
        z = torch.tanh(self.site(x) @ self.features[list(self.wanted)].T).sum(dim=1)
        return torch.stack([z, -z], dim=1)

    def data(self, n=400):
        draws = generator(0, "planted data")
        codes = (draws.random((n, 64)) < 0.1) * draws.uniform(0.5, 1.5, size=(n, 64))
        return codes @ self.features.detach().numpy(), np.zeros(n, dtype=int)


# Known answer
def test_feature_effects__of_a_linear_model_are_its_slopes():
    """e_j = mean f_j (d_j . u), a_j = mean [f_j = 0] t_j (d_j . u); float64."""
    model, inputs, target = linear_data()
    rows = both_sides()
    u, x = slopes(model, target), at_total(model, inputs)
    codes = np.maximum(x @ rows.numpy().T, 0)
    writes = u @ rows.numpy().T
    typical = codes.sum(axis=0) / (codes > 0).sum(axis=0)

    found = feature_effects(model, inputs, Given(rows), target)

    j = found.latent_index
    np.testing.assert_allclose(found.effect, (codes * writes).mean(axis=0)[j], atol=1e-9)
    np.testing.assert_allclose(found.inserted, ((codes == 0) * typical * writes).mean(axis=0)[j], atol=1e-9)
    np.testing.assert_allclose(found.screen, (codes * writes).mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(found.density, (codes > 0).mean(axis=0), atol=1e-12)
    assert list(np.abs(found.effect)) == sorted(np.abs(found.effect), reverse=True)
    assert found.together.value == pytest.approx((u * x).sum(axis=1).mean(), abs=1e-9)
    assert found.unexplained.value == pytest.approx(0, abs=1e-9)
    assert found.screen_error.value == pytest.approx(0, abs=1e-9)
    assert found.screen_trusted


def test_feature_effects__keep_what_the_dictionary_does_not_explain():
    """One latent: ablating it leaves the other units alone; splicing the reconstruction loses them."""
    model, inputs, target = linear_data()
    u, x = slopes(model, target), at_total(model, inputs)
    code = np.maximum(x[:, 0], 0)

    found = feature_effects(model, inputs, Given(torch.eye(8).double()[:1]), target)

    lost = x.copy()
    lost[:, 0] -= code
    assert found.effect[0] == pytest.approx((code * u[:, 0]).mean(), abs=1e-9)
    assert found.together.value == pytest.approx(found.effect[0], abs=1e-9)
    assert found.unexplained.value == pytest.approx((u * lost).sum(axis=1).mean(), abs=1e-9)


def test_feature_effects__finds_the_planted_latents_and_no_others():
    model = Planted()
    inputs, target = model.data()

    found = feature_effects(model, inputs, Given(model.features.detach(), "site", threshold=0.1), target)

    assert found.n_causal == 3
    assert set(found.latent_index[:3]) == set(model.wanted)
    np.testing.assert_allclose(found.effect[3:], 0, atol=1e-12)
    assert (found.effect[:3] > 1.5 * found.null[:3]).all()
    assert found.strongest.value == found.effect[0] > found.strongest.null
    assert "ablated latents do more than those of an untrained dictionary: latent" in found.reading()


@pytest.mark.slow
def test_feature_effects__of_an_untrained_dictionary_are_not_above_their_null():
    """200 untrained dictionaries: the share with any causal latent is at most 0.05, and 3 standard errors of it."""
    hits: list[bool] = []
    for seed in range(200):
        model, inputs, target = linear_data(30, seed=seed)
        config = SparseAutoencoderConfig(activation="topk" if seed % 2 else "relu", k=4, seed=seed)
        untrained = SparseAutoencoder(8, 32, config=config)
        untrained.site = "total"
        metric = "logit_difference" if seed % 4 < 2 else "loss"
        options = FeatureEffectsConfig(seed=seed, metric=metric, n_exact=3, n_random=0, n_draws=10)
        hits.append(feature_effects(model, inputs, untrained, target, config=options).n_causal > 0)
    assert np.mean(hits) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_feature_effects__says_so_where_nothing_is_causal():
    model, inputs, target = linear_data()
    untrained = SparseAutoencoder(8, 32, config=SparseAutoencoderConfig(activation="relu", seed=1))
    untrained.site = "total"
    found = feature_effects(model, inputs, untrained, target)
    assert found.n_causal == 0
    assert "No latent does more to the answer than those of an untrained dictionary" in found.reading()
    assert found.strongest.p_value > 0.05


@pytest.mark.parametrize("metric", ["kl", "distance"])
def test_feature_effects__screens_flat_metrics_away_from_the_intact_model(metric):
    model = Planted()
    inputs, _ = model.data()
    dictionary = Given(model.features.detach(), "site", threshold=0.1)
    found = feature_effects(model, inputs, dictionary, config=FeatureEffectsConfig(metric=metric))
    assert set(found.latent_index[:3]) == set(model.wanted)
    assert (found.effect[:3] < 0).all()  # ablating them moves the output away


def test_feature_effects__of_one_position_touch_no_other():
    model = SmallTransformer(vocabulary=7, n_layers=1, width=8, dtype=torch.float64)
    tokens = generator(0, "tokens").integers(0, 7, size=(20, 4))
    target = tokens[:, -1]

    last, first = (
        feature_effects(model, tokens, Given(both_sides(), f"layers.0@{position}"), target) for position in (-1, 0)
    )

    assert abs(last.effect).max() > 0.01
    np.testing.assert_allclose(first.effect, 0, atol=1e-12)  # after the only attention, no position reads another
    assert first.n_causal == 0


def test_turned_dictionary__has_the_norms_angles_and_density_of_the_dictionary():
    draws = torch_generator(0, "turned")
    rows = torch.randn(20, 8, generator=draws, dtype=torch.float64)
    vectors = torch.randn(300, 8, generator=draws, dtype=torch.float64) + 1.0
    dictionary = Given(rows, threshold=1.5, centre=torch.full((8,), 0.5, dtype=torch.float64))

    turned = turned_dictionary(dictionary, vectors, 0, 0)

    codes, other = dictionary.encode(vectors), turned.encode(vectors)
    torch.testing.assert_close(turned.W_dec @ turned.W_dec.T, rows @ rows.T)
    torch.testing.assert_close(turned.W_dec @ turned.reads.T, rows @ rows.T)
    assert int((other > 0).sum()) == int((codes > 0).sum())
    assert not torch.allclose(turned.W_dec, rows, atol=0.1)


def test_random_rotation__is_orthogonal():
    rotation = random_rotation(6, 0, 0)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(6, dtype=torch.float64))


def test_feature_effects__leaves_model_and_dictionary_as_they_were():
    model, inputs, target = linear_data()
    model.train()
    untrained = SparseAutoencoder(8, 64)
    untrained.site = "total"
    before = {name: each.clone() for name, each in untrained.tensors().items()}

    feature_effects(model, inputs, untrained, target)

    assert all(each.training and not each._forward_hooks for each in model.modules())
    assert all(each.requires_grad and each.grad is None for each in (*model.parameters(), *untrained.parameters()))
    assert all(torch.equal(each, before[name]) for name, each in untrained.tensors().items())


# Oracle
def test_feature_effects__equal_the_loop_that_edits_one_latent_at_a_time():
    model = SmallTransformer(vocabulary=7, n_layers=2, width=8, hidden=12, norm=True, dtype=torch.float64)
    tokens = generator(0, "tokens").integers(0, 7, size=(25, 4))
    target = tokens[:, -1]
    rows = torch.randn(12, 8, generator=torch_generator(0, "rows"), dtype=torch.float64)
    dictionary = Given(rows, "layers.0", threshold=0.5)
    options = FeatureEffectsConfig(metric="loss", n_exact=12, n_null=2, batch_rows=17)

    found = feature_effects(model, tokens, dictionary, target, config=options)

    def loss(edit):
        handle = model.layers[0].register_forward_hook(lambda _, __, x: edit(x))
        try:
            with inference(model):
                logits = model(torch.from_numpy(tokens))[:, -1]
        finally:
            handle.remove()
        return nn.functional.cross_entropy(logits, torch.from_numpy(target)).item()

    intact = loss(lambda x: x)
    assert found.unexplained.value == pytest.approx(intact - loss(lambda x: dictionary.decode(dictionary.encode(x))))
    for k, j in enumerate(found.latent_index):
        active = []

        def ablate(x, j=j, active=active):
            code = dictionary.encode(x)[..., [j]]
            active.append(code)
            return x - code * rows[j]

        assert found.effect[k] == pytest.approx(intact - loss(ablate), abs=1e-9)
        typical = active[0].sum() / (active[0] > 0).sum()
        inserted = loss(lambda x, j=j, t=typical: x + (dictionary.encode(x)[..., [j]] <= 0) * t * rows[j])
        assert found.inserted[k] == pytest.approx(inserted - intact, abs=1e-9)


# Law
@settings(max_examples=5)
@given(st.integers(1, 60), st.integers(1, 5000))
def test_feature_effects__do_not_depend_on_how_they_are_packed(batch_rows, cache_bytes):
    model, inputs, target = linear_data()
    options = {"n_exact": 4, "n_null": 2, "n_draws": 20, "metric": "loss"}
    one, other = (
        feature_effects(model, inputs, Given(both_sides()), target, config=FeatureEffectsConfig(**options, **packing))
        for packing in ({}, {"batch_rows": batch_rows, "cache_bytes": cache_bytes})
    )
    for name, values in one.arrays().items():
        np.testing.assert_allclose(other.arrays()[name], values, atol=1e-9, err_msg=name)


def test_feature_effects__follow_the_latents_when_they_are_permuted():
    model, inputs, target = linear_data()
    order = generator(0, "order").permutation(16)
    one = feature_effects(model, inputs, Given(both_sides()), target)
    other = feature_effects(model, inputs, Given(both_sides()[order]), target)
    np.testing.assert_array_equal(order[other.latent_index], one.latent_index)
    np.testing.assert_allclose(other.effect, one.effect, atol=1e-9)
    np.testing.assert_allclose(other.q_value, one.q_value, atol=1e-9)


def test_feature_effects__same_seed_same_bits():
    model, inputs, target = linear_data(80)
    config = FeatureEffectsConfig(n_samples=50)
    one, other = (feature_effects(model, inputs, Given(both_sides()), target, config=config) for _ in range(2))
    assert one.n_samples == 50
    assert all(np.array_equal(one.arrays()[name], other.arrays()[name]) for name in one.arrays())


# Bad input
def test_feature_effects__raises_on_shapes_that_do_not_fit():
    model, inputs, target = linear_data()
    with pytest.raises(ShapeError, match="sample >= 2"):
        unchecked(model, inputs[:1], Given(both_sides()), target[:1])
    with pytest.raises(ShapeError, match="one class per sample"):
        unchecked(model, inputs, Given(both_sides()), target[:3])
    with pytest.raises(ShapeError, match=r"read and write the site's 8 units. Got encoder rows of"):
        feature_effects(model, inputs, Given(both_sides(5)), target)


def test_feature_effects__raises_on_what_is_not_said():
    model, inputs, target = linear_data()
    with pytest.raises(ConfigurationError, match=r"must be a module's name, or name@position. Got ''"):
        feature_effects(model, inputs, Given(both_sides(), ""), target)
    with pytest.raises(ConfigurationError, match="Got 'total@last'"):
        feature_effects(model, inputs, Given(both_sides(), "total@last"), target)
    with pytest.raises(ConfigurationError, match="needs a target"):
        feature_effects(model, inputs, Given(both_sides()))
    with pytest.raises(ConfigurationError, match="classes of the output"):
        feature_effects(model, inputs, Given(both_sides()), target + 7)


def test_feature_effects__raises_where_there_is_no_effect_to_measure():
    model, inputs, target = linear_data()
    with pytest.raises(DegenerateInputError, match="some latent must be active"):
        feature_effects(model, inputs, Given(both_sides(), threshold=1e9), target)
    with pytest.raises(DegenerateInputError, match="inputs must be finite"):
        feature_effects(model, np.full_like(inputs, np.nan), Given(both_sides()), target)
    with pytest.raises(NotFoundError, match="'mlp'"):
        feature_effects(model, inputs, Given(both_sides(), "mlp"), target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": 1}, "n_samples must be at least 2"),
        ({"n_exact": 0}, "n_exact and n_null at least 1"),
        ({"n_null": 0}, "n_exact and n_null at least 1"),
        ({"n_random": -1}, "n_random and n_steps at least 0"),
        ({"n_steps": -1}, "n_random and n_steps at least 0"),
        ({"false_discovery": 0.0}, "strictly between 0 and 1"),
    ],
)
def test_feature_effects__config_names_what_is_wrong(options, message):
    config = FeatureEffectsConfig()
    for name, value in options.items():
        object.__setattr__(config, name, value)
    with pytest.raises(ConfigurationError, match=message):
        config.__post_init__()
