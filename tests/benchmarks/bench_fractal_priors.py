"""What a penalty adds to a training step, against the forward and backward pass of the network it is on."""

from time import process_time

import pytest
import torch
from torch import nn

from mechint_core.fractals import GraphSpectralPrior, MultifractalSmoothness, SpectralPrior
from mechint_core.random import torch_generator

N_SEQUENCES, N_STEPS, N_UNITS = 32, 256, 64
REPEATS = 7
RING = torch.eye(N_UNITS).roll(1, dims=0) + torch.eye(N_UNITS).roll(-1, dims=0)


def cpu_seconds(step, repeats: int = REPEATS) -> float:
    """Return the best CPU time of a call, after one to warm up."""
    taken: list[float] = []
    for _ in range(repeats + 1):
        started = process_time()
        step()
        taken.append(process_time() - started)
    return min(taken[1:])


@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("name", "prior", "bar"),
    [
        ("SpectralPrior", SpectralPrior(1.0), 0.5),
        ("MultifractalSmoothness", MultifractalSmoothness(), 0.8),
        ("GraphSpectralPrior", GraphSpectralPrior(RING, 1.0), 0.4),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_prior__against_the_network_it_is_on(record, name, prior, bar):
    network = nn.GRU(1, N_UNITS, batch_first=True)
    inputs = torch.randn(N_SEQUENCES, N_STEPS, 1, generator=torch_generator(0, "inputs"))
    hidden = network(inputs)[0].detach().requires_grad_()

    ratio = cpu_seconds(lambda: prior(hidden).backward()) / cpu_seconds(lambda: network(inputs)[0].sum().backward())

    record(f"{name}, {N_SEQUENCES} x {N_STEPS} x {N_UNITS}", ratio, bar, note="a GRU's own step, one thread")
