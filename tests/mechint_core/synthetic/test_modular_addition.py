import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file

from mechint_core.errors import CheckpointError, ConfigurationError
from mechint_core.synthetic.modular_addition import (
    ModularAdditionConfig,
    ModularAdditionTransformer,
    build_dataset,
    build_model,
    build_prompt_pairs,
    train,
)

TINY = ModularAdditionConfig(prime=7, width=8, heads=2, hidden=16, epochs=60, checkpoint_every=20, log_every=10)


class Stopped(Exception):
    """What a test raises in the middle of a run."""


def stop_at(step):
    def on_progress(now, measures):
        if now == step:
            raise Stopped

    return on_progress


def final_bytes(folder):
    return (folder / "step_00000060.safetensors").read_bytes()


# Known answer
def test_build_dataset__orders_all_pairs_and_adds_them():
    data = build_dataset(prime=7, train_share=0.5)

    assert data["tokens"].shape == (49, 3)
    assert data["tokens"][3 * 7 + 5].tolist() == [3, 5, 7]
    assert data["answer"][3 * 7 + 5] == 1
    assert data["split"].sum() == 24  # round(24.5) to even


def test_build_prompt_pairs__changes_b_only_and_with_it_the_answer():
    prompts = build_prompt_pairs(prime=7, n_prompts=40)

    assert len(np.unique(prompts["clean"], axis=0)) == 40
    assert np.array_equal(prompts["clean"][:, [0, 2]], prompts["corrupted"][:, [0, 2]])
    assert np.all(prompts["answer"] != prompts["corrupted_answer"])
    assert np.array_equal(prompts["corrupted"][:, :2].sum(axis=1) % 7, prompts["corrupted_answer"])


def test_checkpoint_steps__are_33_dense_early_and_evenly_spaced_late():
    steps = ModularAdditionConfig().checkpoint_steps()

    assert steps[:10] == [0, 1, 2, 4, 8, 16, 32, 64, 128, 200]
    assert steps[-2:] == [2400, 2500]
    assert len(steps) == 33


def test_build_model__has_the_published_number_of_parameters():
    """60 x 128 + 3 x 128 + 4 x 128^2 + (2 x 128 x 256 + 256 + 128) + 128 x 59."""
    assert sum(p.numel() for p in build_model().parameters()) == 147_072


def test_train__starts_at_the_loss_of_guessing(tmp_path):
    """Small logits: the loss is ln p, up to half their variance (about 0.02)."""
    history = train(TINY, tmp_path)

    assert history["test_loss"][0] == pytest.approx(math.log(7), abs=0.3)
    assert history["step"] == sorted({*TINY.checkpoint_steps(), *range(0, 61, 10)})


def test_train__writes_every_checkpoint_and_its_history(tmp_path):
    history = train(TINY, tmp_path)

    assert sorted(path.name for path in tmp_path.glob("step_*")) == [
        f"step_{step:08d}.safetensors" for step in TINY.checkpoint_steps()
    ]
    assert json.loads((tmp_path / "history.json").read_text()) == history
    build_model(prime=7, width=8, heads=2, hidden=16).load_state_dict(load_file(tmp_path / "step_00000060.safetensors"))


def test_train__memorises_a_tiny_table(tmp_path):
    config = ModularAdditionConfig(prime=7, width=32, heads=2, hidden=64, epochs=200)

    assert train(config, tmp_path)["train_accuracy"][-1] == 1


# Oracle
@torch.no_grad()
def test_forward__is_torchs_attention_at_the_last_position():
    model = ModularAdditionTransformer(prime=7, width=8, heads=2, hidden=16, seed=3)
    tokens = torch.from_numpy(build_dataset(prime=7)["tokens"])
    attention = model.attention
    x = model.embed.token[tokens] + model.embed.position
    query, key, value = (
        layer(x).view(-1, 3, 2, 4).transpose(1, 2) for layer in (attention.query, attention.key, attention.value)
    )
    read = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(-1, 3, 8)
    middle = (x + attention.output(read))[:, 2]
    expected = model.unembed(middle + model.mlp(middle))

    torch.testing.assert_close(model(tokens), expected, rtol=1e-5, atol=1e-6)


# Law
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10)
@torch.no_grad()
def test_logits_of_pairs__equals_forward(seed):
    model = ModularAdditionTransformer(prime=11, width=16, heads=4, hidden=8, seed=seed)
    tokens = torch.from_numpy(build_dataset(prime=11)["tokens"])

    torch.testing.assert_close(model.logits_of_pairs(tokens[:, 0], tokens[:, 1]), model(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", [1, 30, 60])
def test_train__stopped_and_resumed_ends_with_the_same_bits(tmp_path, step):
    whole = train(TINY, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(TINY, tmp_path / "stopped", on_progress=stop_at(step))
    resumed = train(TINY, tmp_path / "stopped")

    assert final_bytes(tmp_path / "stopped") == final_bytes(tmp_path / "whole")
    assert resumed == whole


def test_train__of_a_finished_run_changes_no_file(tmp_path):
    first = train(TINY, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    second = train(TINY, tmp_path)

    assert second == first
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_train__depends_on_its_seed(tmp_path):
    other = ModularAdditionConfig(**{**{f: getattr(TINY, f) for f in TINY.__slots__}, "seed": 1})

    assert train(TINY, tmp_path / "0") != train(other, tmp_path / "1")
    assert not np.array_equal(build_dataset(seed=0)["split"], build_dataset(seed=1)["split"])


def test_train__restores_the_number_of_threads(tmp_path):
    before = torch.get_num_threads()
    with pytest.raises(Stopped):
        train(TINY, tmp_path, on_progress=stop_at(0))

    assert torch.get_num_threads() == before


# Bad input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "heads must divide width"),
        ({"prime": 2}, "prime must be at least 3"),
        ({"train_share": 1.0}, "strictly between 0 and 1"),
        ({"epochs": 0}, "must be at least 1"),
    ],
)
def test_modular_addition_config__refuses(change, message):
    with pytest.raises(ConfigurationError, match=message):
        ModularAdditionConfig(**change)


def test_train__refuses_the_folder_of_another_config(tmp_path):
    train(TINY, tmp_path)
    with pytest.raises(CheckpointError, match="must hold a run of this config"):
        train(ModularAdditionConfig(), tmp_path)
