"""The notebook's patcher."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from mechint_core.errors import ConfigurationError, NotFoundError, ShapeError
from mechint_core.interventions import ActivationPatcher, activation_patcher
from mechint_core.random import torch_generator
from mechint_core.synthetic.linear_network import LinearNetwork


def encoder(**options):
    """The notebook's transformer layer, with weights that do not depend on the test's surroundings."""
    model = nn.TransformerEncoderLayer(d_model=64, nhead=4, dim_feedforward=256, dropout=0.1, **options)
    draws = torch_generator(0, "test model")
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter, generator=draws)
    return model


def filled(model):
    draws = torch_generator(0, "test model")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4, generator=draws)
    return model


class Written(nn.Module):
    """What an attention writes, added to what it reads."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x[:, :1], x, x)[0]


def hinge(output):
    return (1 - output[..., 0]).relu().mean()


def inputs(*shape, stream="clean", dtype=torch.float32):
    return torch.randn(*shape, generator=torch_generator(0, stream), dtype=dtype)


def hooks_of(model):
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())


# Known answer
def test_activation_patcher__notebook_cells_run_as_written(capsys):
    """Part 2, Analysis 2 and Part 4 of the introduction notebook; only the import's package is ours."""
    device = torch.device("cpu")
    d_model, nhead, seq_len = 64, 4, 12
    model = nn.TransformerEncoderLayer(d_model=d_model, nhead=nhead, dim_feedforward=256, dropout=0.1).to(device)

    clean_input = torch.randn(seq_len, 1, d_model).to(device)
    corrupted_input = torch.randn(seq_len, 1, d_model).to(device)
    with torch.no_grad():
        clean_output = model(clean_input)

    def compute_loss(output):
        """Loss: distance from clean output"""
        return torch.nn.functional.mse_loss(output, clean_output)

    components_to_test = [
        "self_attn",  # Attention sublayer
        "linear1",  # First MLP layer
        "linear2",  # Second MLP layer
    ]
    results = {}
    for comp_name in components_to_test:
        patcher = ActivationPatcher(model=model, layer_name=comp_name)
        result = patcher.patch(clean_input=clean_input, corrupted_input=corrupted_input, loss_fn=compute_loss)
        results[comp_name] = result
        print(f"{comp_name}:")
        print(f"  Clean loss: {result['clean_loss']:.4f}")
        print(f"  Corrupted loss: {result['corrupted_loss']:.4f}")
        print(f"  Patched loss: {result['patched_loss']:.4f}")
        print(f"  Recovery score: {result['recovery_score']:.2%}")
    recovery_scores = [results[name]["recovery_score"] for name in results]

    assert all(0 < result["clean_loss"] < 0.1 < result["corrupted_loss"] for result in results.values())
    assert all(math.isfinite(score) for score in recovery_scores)
    assert recovery_scores[1] == recovery_scores[2]  # between them, in eval mode, there is one path only
    assert "Recovery score:" in capsys.readouterr().out
    assert model.training

    patcher = ActivationPatcher(model, layer_name="self_attn")
    everything = patcher.run_full_analysis(clean_input, corrupted_input)
    assert list(everything)[:2] == ["norm1", "norm2"]  # all that there is after them passes through them


@pytest.mark.parametrize("layer", ["0", "1", "2"])
def test_activation_patcher__every_layer_of_a_sequence_recovers_everything(layer):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    outcome = ActivationPatcher(model, layer).patch(inputs(5, 3), inputs(5, 3, stream="corrupted"))
    assert outcome["clean_loss"] == 0
    assert outcome["patched_loss"] == 0
    assert outcome["recovery_score"] == 1


def test_activation_patcher__recovers_the_planted_share_of_linear_routes():
    """With a loss linear in the output; 1e-12 because the network computes in float64."""
    model = LinearNetwork((3.0, 1.0, -1.0))
    clean, corrupted = inputs(6, 8, dtype=torch.float64), inputs(6, 8, stream="corrupted", dtype=torch.float64)
    for route, share in zip(["routes.0", "routes.1", "routes.2"], model.shares, strict=True):
        outcome = ActivationPatcher(model, route).patch(clean, corrupted, lambda output: output[:, 0].sum())
        assert outcome["recovery_score"] == pytest.approx(share, abs=1e-12)


def test_activation_patcher__patches_all_matches_of_a_glob_together():
    model = LinearNetwork((3.0, 1.0, -1.0))
    clean, corrupted = inputs(6, 8, dtype=torch.float64), inputs(6, 8, stream="corrupted", dtype=torch.float64)
    outcome = ActivationPatcher(model, "routes.*").patch(clean, corrupted)
    assert outcome["recovery_score"] == pytest.approx(1, abs=1e-12)


def test_run_full_analysis__sorts_all_components_and_gives_intervals_over_samples():
    model = encoder()
    found = ActivationPatcher(model, "linear1").run_full_analysis(
        inputs(12, 8, 64), inputs(12, 8, 64, stream="corrupted")
    )
    scores = [outcome["recovery_score"] for outcome in found.values()]
    assert scores == sorted(scores, reverse=True)
    assert "self_attn.out_proj" not in found  # never runs as a module of its own
    for outcome in found.values():
        assert outcome["recovery_low"] <= outcome["recovery_score"] + 1e-9
        assert outcome["recovery_score"] <= outcome["recovery_high"] + 1e-9
    assert found["self_attn"]["recovery_low"] > 0


def test_run_full_analysis__takes_attention_apart_by_head():
    """The attention writes what its heads write: with a loss linear in that, their recoveries add up."""
    model = Written(filled(nn.MultiheadAttention(8, 4, batch_first=True)))
    clean, corrupted = inputs(6, 5, 8), inputs(6, 5, 8, stream="corrupted")
    found = ActivationPatcher(model, "attention").run_full_analysis(clean, corrupted, lambda output: output.sum())
    heads = [f"attention.{head}" for head in range(4)]
    assert set(found) == {"attention", *heads}
    # Sums of 240 numbers in float32.
    assert sum(found[head]["recovery_score"] for head in heads) == pytest.approx(1, abs=1e-4)
    assert found["attention"]["recovery_score"] == pytest.approx(1, abs=1e-5)
    for head in heads:
        alone = ActivationPatcher(model, head).patch(clean, corrupted, lambda output: output.sum())
        assert found[head]["recovery_score"] == pytest.approx(alone["recovery_score"], abs=1e-5)


@pytest.mark.parametrize("loss", [lambda output: output[..., 0].mean(), lambda output: output[..., 0].sum(), hinge])
def test_run_full_analysis__a_loss_of_ones_own_has_an_interval_if_it_is_made_of_samples(loss):
    model = encoder(batch_first=True)
    clean, corrupted = inputs(8, 3, 64), inputs(8, 3, 64, stream="corrupted")
    clean[..., 0] += 3  # the output's first unit follows the input's
    patcher = ActivationPatcher(model, "linear1")
    found = patcher.run_full_analysis(clean, corrupted, loss, components=["linear*", "self_attn*"])
    assert len(found) == 7
    for name, outcome in found.items():
        alone = ActivationPatcher(model, name).patch(clean, corrupted, loss)
        for key, value in alone.items():
            assert outcome[key] == pytest.approx(value, rel=1e-5, abs=1e-5)
        assert outcome["recovery_low"] <= outcome["recovery_score"] <= outcome["recovery_high"]


def test_run_full_analysis__one_sample_or_a_loss_that_mixes_samples_has_no_interval():
    model = encoder()
    patcher = ActivationPatcher(model, "linear1")
    one = patcher.run_full_analysis(inputs(12, 1, 64), inputs(12, 1, 64, stream="corrupted"))
    clean, corrupted = inputs(12, 3, 64), inputs(12, 3, 64, stream="corrupted")
    mixing = {
        "spread": lambda output: output.std(dim=1).mean(),
        "largest": torch.max,
    }
    for loss in mixing.values():
        own = patcher.run_full_analysis(clean, corrupted, loss, components=["linear*"])
        assert set(own) == {"linear1", "linear2"}
        assert all(math.isnan(outcome["recovery_low"]) for outcome in (*one.values(), *own.values()))
        alone = ActivationPatcher(model, "linear1").patch(clean, corrupted, loss)
        assert own["linear1"]["recovery_score"] == alone["recovery_score"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_run_full_analysis__a_loss_that_holds_on_to_all_targets_has_the_interval_of_its_samples(reduction):
    """Cross-entropy with targets of one's own: the same numbers as where every sample carries its target along."""
    model, n = encoder(batch_first=True).eval(), 24
    clean, corrupted = inputs(n, 3, 64), inputs(n, 3, 64, stream="corrupted")
    with torch.no_grad():
        target = model(clean)[:, -1, :4].argmax(dim=1)
    captured = lambda output: nn.functional.cross_entropy(output[:, -1, :4], target, reduction=reduction)  # noqa: E731
    found = ActivationPatcher(model, "linear1").run_full_analysis(clean, corrupted, captured, components=["linear*"])
    for name, outcome in found.items():
        alone = ActivationPatcher(model, name).patch(clean, corrupted, captured)
        for key, value in alone.items():
            assert outcome[key] == pytest.approx(value, rel=1e-4, abs=1e-4)
        assert outcome["recovery_low"] < outcome["recovery_score"] < outcome["recovery_high"]
    with torch.no_grad():
        ours, theirs = model(clean), model(corrupted)
    by_sample = activation_patcher._LossByExchange.of(captured, ours, theirs, 0)
    scale = 1 if reduction == "mean" else n
    wanted, others = (
        scale * nn.functional.cross_entropy(each[:, -1, :4], target, reduction="none") for each in (ours, theirs)
    )
    differences = by_sample(ours, slice(0, n), slice(0, n)) - by_sample(theirs, slice(0, n), slice(0, n))
    # The constant that all samples share is the loss's mean, not each one's own: only differences are exact.
    rounding = 8 * torch.finfo(torch.float32).eps * float(max(captured(ours), captured(theirs)))  # of the float32 total
    np.testing.assert_allclose(differences, (wanted - others).numpy(), atol=max(1e-4, rounding))


# Oracle
@pytest.mark.parametrize("batch_first", [False, True])
def test_run_full_analysis__packed_equals_one_by_one(batch_first):
    model = encoder(batch_first=batch_first)
    clean, corrupted = inputs(12, 5, 64), inputs(12, 5, 64, stream="corrupted")
    found = ActivationPatcher(model, "linear1").run_full_analysis(clean, corrupted)
    for name, outcome in found.items():
        alone = ActivationPatcher(model, name).patch(clean, corrupted)
        assert outcome["recovery_score"] == pytest.approx(alone["recovery_score"], abs=1e-6)
        assert outcome["corrupted_loss"] == pytest.approx(alone["corrupted_loss"], rel=1e-6)


# Law
@settings(max_examples=10)
@given(st.sampled_from(["self_attn", "linear1", "linear2", "norm2"]), st.integers(1, 4))
def test_activation_patcher__clean_into_clean_changes_no_bit_and_scores_nothing(component, n_samples):
    x = inputs(6, n_samples, 64)
    outcome = ActivationPatcher(encoder(), component).patch(x, x.clone(), lambda output: output.square().mean())
    assert outcome["patched_loss"] == outcome["clean_loss"] == outcome["corrupted_loss"]
    assert math.isnan(outcome["recovery_score"])


@settings(max_examples=5)
@given(st.sampled_from(["self_attn", "linear1"]))
def test_activation_patcher__dropout_is_off_and_the_mode_comes_back(component):
    model = encoder()
    model.linear2.eval()
    modes = [each.training for each in model.modules()]
    clean, corrupted = inputs(6, 2, 64), inputs(6, 2, 64, stream="corrupted")
    first, second = (ActivationPatcher(model, component).patch(clean, corrupted) for _ in range(2))
    assert first == second
    assert [each.training for each in model.modules()] == modes
    assert hooks_of(model) == 0


# Bad input
def test_activation_patcher__raises_on_a_component_that_is_not_there_or_does_not_run():
    model = encoder()
    with pytest.raises(NotFoundError, match=r"'attention'. There are:.*self_attn"):
        ActivationPatcher(model, "attention")
    with pytest.raises(NotFoundError, match=r"'self_attn.out_proj' must run"):
        ActivationPatcher(model, "self_attn.out_proj").patch(inputs(6, 2, 64), inputs(6, 2, 64))


def test_activation_patcher__raises_on_a_component_that_runs_twice():
    relu = nn.ReLU()
    with pytest.raises(ConfigurationError, match="once per forward"):
        ActivationPatcher(nn.Sequential(relu, nn.Linear(3, 3), relu), "0").patch(inputs(2, 3), inputs(2, 3))


def test_activation_patcher__raises_on_inputs_of_other_shapes():
    with pytest.raises(ShapeError, match=r"same shape.*\(6, 2, 64\) and \(6, 1, 64\)"):
        ActivationPatcher(encoder(), "linear1").patch(inputs(6, 2, 64), inputs(6, 1, 64))


def test_activation_patcher__raises_on_a_loss_of_several_numbers_and_removes_its_hooks():
    model = encoder()
    with pytest.raises(ShapeError, match=r"one number. Got shape \(6, 2, 64\)"):
        ActivationPatcher(model, "linear1").patch(inputs(6, 2, 64), inputs(6, 2, 64), lambda output: output)
    assert hooks_of(model) == 0
    assert model.training


def test_activation_patcher__removes_its_hooks_when_the_loss_fails():
    model = encoder()
    calls = []

    def fails_at_the_patched_run(output):
        calls.append(output)
        if len(calls) == 3:
            raise RuntimeError("my loss")
        return output.sum()

    with pytest.raises(RuntimeError, match="my loss"):
        ActivationPatcher(model, "linear1").patch(inputs(6, 2, 64), inputs(6, 2, 64), fails_at_the_patched_run)
    assert hooks_of(model) == 0
