"""A training run small enough for a test: a two-layer network, three checkpoints, forty samples."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from mechint_core.random import generator, torch_generator
from mechint_core.recordings import Recording

ROOT = Path(__file__).resolve().parents[2]
STEPS = (0, 10, 20)
CLASSES = 8


class Network(nn.Module):
    """Hidden units and classes; the hidden layer is the site."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 16)
        self.act = nn.ReLU()
        self.out = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.act(self.hidden(x)))


def build_model() -> nn.Module:
    return Network()


def build_dataset() -> dict[str, np.ndarray]:
    rng = generator(0, "tiny", "data")
    return {"x": rng.normal(size=(40, 6)).astype(np.float32), "label": np.arange(40) % CLASSES}


def build_recording() -> Recording:
    """One presentation of every sample, to one subject."""
    return Recording(responses=generator(0, "tiny", "brain").normal(size=(40, 6)), condition=np.arange(40))


def write_checkpoint(folder: Path, step: int, seed: int | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    noise = torch_generator(step if seed is None else seed, "tiny", "weights")
    model = Network()
    state = {name: torch.randn(value.shape, generator=noise) for name, value in model.state_dict().items()}
    path = folder / f"step_{step:05d}.safetensors"
    save_file(state, path)
    return path


def configuration(**changes: Any) -> dict[str, Any]:
    return {
        "run": "tiny",
        "model": {"factory": "tests.flows.tiny:build_model"},
        "checkpoints": "checkpoints",
        "datasets": {"probe": {"factory": "tests.flows.tiny:build_dataset"}},
        "collect": {"dataset": "probe", "inputs": ["x"], "sites": ["act", "out"]},
        "analyses": [
            {"technique": "persistent_homology", "sites": ["act"], "inputs": {"label": "probe.label"}},
            {"technique": "cka"},
            {"technique": "training_trajectory", "sites": ["act"]},
        ],
    } | changes


def write_run(folder: Path, **changes: Any) -> Path:
    """Write checkpoints and a configuration; return the configuration's path."""
    for step in STEPS:
        write_checkpoint(folder / "checkpoints", step)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(configuration(**changes)))
    return path
