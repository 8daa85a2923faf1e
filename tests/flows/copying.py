"""A training run whose circuit is known: nothing at step 0, an induction head at step 20."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.torch import save_file
from torch import nn

from mechint_core.synthetic.induction_model import induction_model, induction_prompts
from mechint_core.synthetic.small_transformer import SmallTransformer

STEPS = (0, 20)


def build_model() -> nn.Module:
    return induction_model()


def build_prompts() -> dict[str, np.ndarray]:
    return induction_prompts(60)


def untrained() -> nn.Module:
    """The same network with random weights."""
    made = induction_model()
    return SmallTransformer(
        vocabulary=13,
        n_positions=12,
        width=made.embed.token.shape[1],
        n_layers=2,
        n_heads=4,
        head_width=13,
        dtype=made.embed.token.dtype,
    )


def configuration(**changes: Any) -> dict[str, Any]:
    behaviour = {
        "name": "induction",
        "clean": "prompts.clean",
        "corrupted": "prompts.corrupted",
        "target": "prompts.target",
        "corrupted_target": "prompts.corrupted_target",
        "steps": list(STEPS),
        "scan": ["head"],
        "options": {"circuit_faithfulness": {"n_random": 39, "n_random_curve": 5, "n_knockouts": 5}},
    }
    return {
        "run": "copying",
        "model": {"factory": "tests.flows.copying:build_model"},
        "checkpoints": "checkpoints",
        "datasets": {"prompts": {"factory": "tests.flows.copying:build_prompts"}},
        "circuits": [behaviour | changes],
    }


def write_run(folder: Path, **changes: Any) -> Path:
    """Write checkpoints and a configuration; return the configuration's path."""
    (folder / "checkpoints").mkdir(parents=True)
    for step, model in zip(STEPS, (untrained(), build_model()), strict=True):
        save_file(model.state_dict(), folder / "checkpoints" / f"step_{step:05d}.safetensors")
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(configuration(**changes)))
    return path
