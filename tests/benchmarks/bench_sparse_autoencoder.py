"""One training step of a sparse autoencoder against the five dense products that a plain one cannot do without."""

from collections.abc import Callable
from time import process_time

import pytest
import torch

from mechint_core.features import SparseAutoencoderConfig, SparseAutoencoderTrainer
from mechint_core.random import generator, torch_generator

N_SAMPLES, N_UNITS, N_LATENTS, K = 4096, 512, 4096, 64
REPEATS = 5
BARS = {"topk": 0.65, "batch_topk": 0.65, "relu": 1.3}


@pytest.fixture(scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def floor() -> Callable[[], None]:
    """Encode, decode, and the gradients of decoder, codes and encoder: 86 billion operations."""
    draws = torch_generator(0, "bench")
    x, error = (torch.randn(N_SAMPLES, N_UNITS, generator=draws) for _ in range(2))
    weight = torch.randn(N_LATENTS, N_UNITS, generator=draws)
    codes = torch.relu(torch.randn(N_SAMPLES, N_LATENTS, generator=draws))

    def five_products() -> None:
        _ = x @ weight.T, codes @ weight, codes.T @ error, error @ weight.T, codes.T @ x

    return five_products


def seconds(call: Callable[[], object]) -> float:
    started = process_time()
    call()
    return process_time() - started


@pytest.mark.benchmark
@pytest.mark.parametrize("activation", BARS)
def test_step(activation, one_thread, floor, record):
    """The whole step: reading the batch, loss, gradients, clipping, Adam, constraints and metrics."""
    rows = generator(0, "bench").standard_normal((2 * N_SAMPLES, N_UNITS), dtype="float32")
    config = SparseAutoencoderConfig(
        activation=activation, n_latents=N_LATENTS, k=K, n_epochs=100, batch_size=N_SAMPLES
    )
    trainer = SparseAutoencoderTrainer(rows, config=config)
    trainer.step()

    taken = [(seconds(trainer.step), seconds(floor)) for _ in range(REPEATS)]

    ours, least = (min(times) for times in zip(*taken, strict=True))
    record(
        f"sparse autoencoder: one {activation} training step",
        ours / least,
        BARS[activation],
        unit="x five dense products' CPU time",
        note=f"{N_SAMPLES} vectors, {N_UNITS} units, {N_LATENTS} latents, k = {K}, float32, one thread",
    )
