import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.features import SparseAutoencoder, SparseAutoencoderConfig, Transcoder
from mechint_core.features.loss_recovered import LossRecoveredConfig, loss_recovered
from mechint_core.random import generator, torch_generator

QUICK = {"n_bootstrap": 20, "n_null": 2}


def basis(d, gain=1.0):
    """Signed axes: exact for gain 1, and gain times the vector otherwise."""
    axes = torch.cat([torch.eye(d, dtype=torch.float64), -torch.eye(d, dtype=torch.float64)])
    made = SparseAutoencoder(d, 2 * d, config=SparseAutoencoderConfig(activation="relu")).double()
    with torch.no_grad():
        made.W_dec.copy_(axes)
        made.W_enc.copy_(gain * axes)
    return made


def layer(rows, columns, seed):
    made = nn.Linear(columns, rows, dtype=torch.float64)
    draws = torch_generator(seed, "layer")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    return made


def classifier(d=6, n_classes=5):
    return nn.Sequential(layer(d, 4, 0), nn.Tanh(), layer(n_classes, d, 1))


class TokenModel(nn.Module):
    """Each position answers from its own token and the mean of the positions that the mask allows."""

    def __init__(self, n_tokens=7, width=5):
        super().__init__()
        self.embed = nn.Embedding(n_tokens, width)
        self.embed.weight.data = torch.randn(n_tokens, width, generator=torch_generator(0, "embed"))
        self.double()
        self.middle, self.unembed = nn.Identity(), layer(n_tokens, width, 2)

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mean = (x * seen[..., None]).sum(1, keepdim=True) / seen.sum(1)[:, None, None]
        return {"loss": torch.zeros(()), "logits": self.unembed(self.middle(x + mean))}


# Known answer
def test_loss_recovered__the_identity_recovers_everything(rng):
    """Signed axes reconstruct to the last bit, so nothing changes; the own answer as target makes zero harmful."""
    model, x = classifier(), rng.normal(size=(60, 4))
    target = model(torch.from_numpy(x)).argmax(dim=1).numpy()

    result = loss_recovered(model, basis(6), x, target, config=LossRecoveredConfig(site="1"))

    for name in ("recovered", "recovered_from_mean", "kept", "kept_from_mean"):
        estimate = getattr(result, name)
        assert (estimate.value, estimate.low, estimate.high) == (1, 1, 1), name
        assert estimate.null < 0.95
        assert estimate.p_value == 0.05  # 1 / (1 + 19)
    assert (result.loss_added.value, result.divergence.value, result.l0) == (0, 0, 6)


def test_loss_recovered__a_silent_dictionary_is_zero_ablation(rng):
    model, x = classifier(), rng.normal(size=(60, 4))
    target = model(torch.from_numpy(x)).argmax(dim=1).numpy()

    result = loss_recovered(model, basis(6, gain=0.0), x, target, config=LossRecoveredConfig(site="1", **QUICK))

    assert (result.recovered.value, result.kept.value) == (0, 0)
    assert result.l0 == 0


@pytest.mark.parametrize("gain", [0.0, 0.3, 0.9, 1.2])
def test_loss_recovered__shrunk_reconstructions_of_a_linear_model(rng, gain):
    """y = U h + c and h_hat = g h: errors are (1 - g)^2 |U h|^2, and |U (h - mean)|^2 for the mean in its place."""
    model, x = nn.Sequential(layer(6, 4, 0), layer(3, 6, 1)), rng.normal(size=(50, 4))
    config = LossRecoveredConfig(site="0", output="values", **QUICK)

    result = loss_recovered(model, basis(6, gain), x, config=config)

    h, weight = model[0](torch.from_numpy(x)).detach().numpy(), model[1].weight.detach().numpy()
    zero, mean = (np.mean((each @ weight.T) ** 2) for each in (h, h - h.mean(axis=0)))
    error = (1 - gain) ** 2 * zero
    assert result.divergence.value == pytest.approx(error, rel=1e-9)
    assert result.kept.value == pytest.approx(1 - (1 - gain) ** 2, rel=1e-9, abs=1e-12)
    assert result.kept_from_mean.value == pytest.approx(1 - error / mean, rel=1e-9)
    assert (result.has_target, result.loss_defined, result.kept_defined) == (False, False, True)
    assert np.isnan(result.recovered.value)


def test_loss_recovered__a_site_that_nothing_reads_has_nothing_to_recover(rng):
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.idle, self.read = layer(6, 4, 0), layer(3, 4, 1)

        def forward(self, x):
            return self.read(x) + 0 * self.idle(x).sum()

    x = rng.normal(size=(30, 4))
    result = loss_recovered(
        Idle(), basis(6, 0.5), x, np.zeros(30, int), config=LossRecoveredConfig(site="idle", **QUICK)
    )

    assert (result.loss_defined, result.loss_defined_from_mean, result.kept_defined) == (False, False, False)
    assert np.isnan(result.kept.value)
    assert np.isnan(result.recovered.value)
    assert "nothing to recover" in result.reading()


def test_loss_recovered__an_end_that_helps_gives_no_ratio(rng):
    """The target is drawn at random, so that silencing a confident model lowers its loss: no share of harm exists."""
    model, x = classifier(), 5 * rng.normal(size=(200, 4))

    result = loss_recovered(model, basis(6), x, rng.integers(0, 5, 200), config=LossRecoveredConfig(site="1", **QUICK))

    assert np.isnan(result.recovered_from_mean.value)
    assert not result.loss_defined_from_mean
    assert result.kept_defined


def test_loss_recovered__one_position_leaves_the_others(rng):
    """Only position 1 is shrunk: the others' logits do not move, for nothing is mixed after the site."""
    model, tokens = TokenModel(), rng.integers(0, 7, (40, 3))
    dictionary = basis(5, 0.5)
    dictionary.site = "middle@1"

    whole = loss_recovered(model, dictionary, tokens, config=LossRecoveredConfig(**QUICK))
    moved = loss_recovered(model, dictionary, tokens, config=LossRecoveredConfig(answer_position=1, **QUICK))
    still = loss_recovered(model, dictionary, tokens, config=LossRecoveredConfig(answer_position=2, **QUICK))

    assert whole.divergence.value == pytest.approx(moved.divergence.value / 3)
    assert (still.divergence.value, still.kept_defined) == (0, False)


def test_loss_recovered__a_transcoder_takes_the_place_of_its_component(rng):
    """The component is relu(A x); latents that listen to A and write units are the component itself."""
    model = nn.Sequential(nn.Identity(), layer(6, 4, 0), nn.ReLU(), layer(3, 6, 1))
    made = Transcoder(4, 6, config=SparseAutoencoderConfig(activation="relu", n_latents=6)).double()
    with torch.no_grad():
        made.W_enc.copy_(model[1].weight)
        made.b_enc.copy_(model[1].bias)
        made.W_dec.copy_(torch.eye(6))

    result = loss_recovered(
        model, made, rng.normal(size=(50, 4)), config=LossRecoveredConfig(site="0", written_site="2")
    )

    assert result.kept.value == pytest.approx(1, abs=1e-12)
    assert result.kept.null < 0.9


# Oracle
def test_loss_recovered__equals_the_formulas_with_torch_losses(rng):
    model, x, target = classifier(), rng.normal(size=(70, 4)), rng.integers(0, 5, 70)
    config = LossRecoveredConfig(site="1", batch_size=16, **QUICK)

    result = loss_recovered(model, basis(6, 0.4), x, target, config=config)

    h, goal = model[:2](torch.from_numpy(x)).detach(), torch.from_numpy(target)
    logits = {
        name: model[2](each).detach()
        for name, each in {"clean": h, "dictionary": 0.4 * h, "mean": 0 * h + h.mean(0), "zero": 0 * h}.items()
    }
    clean = log_softmax(logits["clean"], dim=1)
    for index, name in enumerate(result.control):
        if name in logits:
            loss = float(cross_entropy(logits[name], goal))
            moved = float(kl_div(log_softmax(logits[name], 1), clean, log_target=True, reduction="batchmean"))
            assert result.loss_of[index] == pytest.approx(loss, rel=1e-9), name
            assert result.divergence_of[index] == pytest.approx(moved, rel=1e-9, abs=1e-15), name


def test_loss_recovered__the_next_token_of_what_the_mask_allows(rng):
    """Sequences of 2 to 5 tokens: cross-entropy by torch over every allowed position with an allowed successor."""
    model, tokens = TokenModel(), rng.integers(0, 7, (30, 5))
    mask = (np.arange(5) < rng.integers(2, 6, 30)[:, None]).astype(int)

    result = loss_recovered(
        model, basis(5, 0.7), tokens, None, mask, config=LossRecoveredConfig(site="middle", next_token=True, **QUICK)
    )

    ids, seen = torch.from_numpy(tokens), torch.from_numpy(mask)
    goal = torch.where(seen[:, 1:] > 0, ids[:, 1:], -100)
    logits = model(ids, seen)["logits"][:, :-1].detach()
    loss = cross_entropy(logits.reshape(-1, 7), goal.reshape(-1), ignore_index=-100)
    assert result.loss_of[0] == pytest.approx(float(loss), rel=1e-9)
    masked = tokens.copy()
    masked[mask == 0] = 0
    again = loss_recovered(
        model, basis(5, 0.7), masked, None, mask, config=LossRecoveredConfig(site="middle", next_token=True, **QUICK)
    )
    assert again.scalars() == pytest.approx(result.scalars(), rel=1e-9, nan_ok=True)


def test_loss_recovered__samples_may_be_on_the_second_axis(rng):
    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.site, self.read = layer(6, 4, 0), layer(5, 6, 1)

        def forward(self, x):
            return self.read(torch.tanh(self.site(x)))

    model, x, target = Swapped(), rng.normal(size=(20, 3, 4)), rng.integers(0, 5, (20, 3))

    first = loss_recovered(model, basis(6, 0.5), x, target, config=LossRecoveredConfig(site="site@1", **QUICK))
    second = loss_recovered(
        model, basis(6, 0.5), x, target, config=LossRecoveredConfig(site="site@1", sample_axis=1, **QUICK)
    )

    assert second.scalars() == pytest.approx(first.scalars(), nan_ok=True)


# Law
@settings(max_examples=10)
@given(st.integers(2, 30), st.integers(1, 40), st.floats(0, 1.5), st.integers(0, 5))
def test_loss_recovered__does_not_depend_on_the_batches_and_leaves_no_trace(n, batch_size, gain, seed):
    rng, model = generator(seed, "law"), classifier().train()
    x, target = rng.normal(size=(n, 4)), rng.integers(0, 5, n)
    before = model(torch.from_numpy(x))

    whole = loss_recovered(model, basis(6, gain), x, target, config=LossRecoveredConfig(site="1", **QUICK))
    parts = loss_recovered(
        model, basis(6, gain), x, target, config=LossRecoveredConfig(site="1", batch_size=batch_size, **QUICK)
    )

    assert parts.scalars() == pytest.approx(whole.scalars(), rel=1e-9, nan_ok=True)
    assert torch.equal(model(torch.from_numpy(x)), before)
    assert model.training
    assert not model[1]._forward_hooks


# Bad input
def test_loss_recovered__refuses_arrays_that_do_not_belong_together(without_shape_checks):
    model, config = classifier(), LossRecoveredConfig(site="1", **QUICK)
    with pytest.raises(ShapeError, match="inputs must be"):
        loss_recovered(model, basis(6), np.ones((1, 4)), config=config)
    with pytest.raises(ShapeError, match="target must have one row per sample"):
        loss_recovered(model, basis(6), np.ones((3, 4)), np.zeros(2, int), config=config)
    with pytest.raises(ShapeError, match="target must be one class per output"):
        loss_recovered(model, basis(6), np.ones((3, 4)), np.zeros((3, 2), int), config=config)
    with pytest.raises(ShapeError, match="the dictionary's units, 5 read"):
        loss_recovered(model, basis(5), np.ones((3, 4)), config=config)
    with pytest.raises(ShapeError, match="must have a position 1"):
        loss_recovered(model, basis(6), np.ones((3, 4)), config=LossRecoveredConfig(site="1@1"))
    with pytest.raises(ShapeError, match="next_token needs"):
        loss_recovered(model, basis(6), np.ones((3, 4)), config=LossRecoveredConfig(site="1", next_token=True))
    with pytest.raises(ShapeError, match="output='values'"):
        loss_recovered(
            nn.Sequential(layer(6, 4, 0), layer(1, 6, 0)),
            basis(6),
            np.ones((3, 4)),
            config=LossRecoveredConfig(site="0"),
        )


def test_loss_recovered__refuses_unknown_sites_and_classes():
    model, x = classifier(), np.ones((3, 4))
    with pytest.raises(ConfigurationError, match="a site must be known"):
        loss_recovered(model, basis(6), x)
    with pytest.raises(ConfigurationError, match="whole number"):
        loss_recovered(model, basis(6), x, config=LossRecoveredConfig(site="1@last"))
    with pytest.raises(ConfigurationError, match="same position"):
        loss_recovered(model, basis(6), x, config=LossRecoveredConfig(site="1@0", written_site="1@1"))
    transcoder = Transcoder(6, 6, config=SparseAutoencoderConfig(n_latents=8, k=2))
    with pytest.raises(ConfigurationError, match="written_site must say"):
        loss_recovered(model, transcoder, x, config=LossRecoveredConfig(site="1"))
    with pytest.raises(ConfigurationError, match="below 5"):
        loss_recovered(model, basis(6), x, np.full(3, 9), config=LossRecoveredConfig(site="1"))
    with pytest.raises(NotFoundError, match="nowhere"):
        loss_recovered(model, basis(6), x, config=LossRecoveredConfig(site="nowhere"))


def test_loss_recovered__refuses_numbers_that_are_not_finite():
    model, x = classifier(), np.ones((3, 4))
    with pytest.raises(DegenerateInputError, match="inputs must be finite"):
        loss_recovered(model, basis(6), np.full((3, 4), np.nan), config=LossRecoveredConfig(site="1"))
    model[2].bias.data[0] = torch.inf
    with pytest.raises(DegenerateInputError, match="output must be finite"):
        loss_recovered(model, basis(6), x, config=LossRecoveredConfig(site="1"))


@pytest.mark.parametrize(
    "option",
    [
        {"output": "values", "next_token": True},
        {"sample_axis": 2},
        {"batch_size": 0},
        {"n_null": 0},
        {"control_samples": 1},
        {"level": 1.0},
    ],
)
def test_loss_recovered__refuses_impossible_options(option):
    with pytest.raises(ConfigurationError, match="must be"):
        LossRecoveredConfig(**option)
