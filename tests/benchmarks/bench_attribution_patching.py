"""Attribution patching of all nodes, against the passes that it cannot do without and against patching each node."""

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mechint_core.models import differentiation, inference, match_sites, visited
from mechint_core.patching import PairedConfig, PairRuns, PromptPairs, Slice, measure, node_gradients
from mechint_core.random import generator
from mechint_core.synthetic.small_transformer import SmallTransformer

REPEATS = 5
N_PAIRS, LENGTH, VOCABULARY = 32, 24, 64


def best_of(repeats: int, *calls: Callable[[], object]) -> list[float]:
    """Least CPU seconds of each call, taken in turn."""
    times = [float("inf")] * len(calls)
    for _ in range(repeats):
        for i, call in enumerate(calls):
            started = time.process_time()
            call()
            times[i] = min(times[i], time.process_time() - started)
    return times


def pairs_of_tokens() -> PromptPairs:
    draws = generator(0, "bench")
    clean = draws.integers(0, VOCABULARY, size=(N_PAIRS, LENGTH))
    corrupted = clean.copy()
    corrupted[:, -1] = (clean[:, -1] + draws.integers(1, VOCABULARY, size=N_PAIRS)) % VOCABULARY
    return PromptPairs.of(clean, corrupted, clean[:, -1], corrupted[:, -1], "logit_difference")


@pytest.mark.benchmark
def test_attribution_patching_against_its_passes_and_against_patching(record):
    """4 layers, width 128, 24 positions, 32 pairs, every module a node; 2 forwards and 1 backward are the floor."""
    model = SmallTransformer(
        vocabulary=VOCABULARY, n_positions=LENGTH, width=128, n_layers=4, n_heads=4, hidden=512, norm=True
    )
    pairs, rows = pairs_of_tokens(), np.arange(N_PAIRS)
    sites = match_sites(model, ["*"])
    runs = PairRuns(model=model, config=PairedConfig(), sites=sites, bytes_per_row=2**20)
    alone = PairRuns(model=model, config=PairedConfig(), sites=(), bytes_per_row=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with differentiation(model):
            answer = alone.block(pairs, rows).answer

        def attributed() -> list[Tensor]:
            with differentiation(model):
                block = node_gradients(runs, pairs, rows, control=True)
                return [(block.gradient[site] * block.change(site)).flatten(1).sum(dim=1) for site in sites]

        def floor() -> Tensor:
            leaves: list[Tensor] = []

            def leaf(activation: Tensor) -> Tensor:
                leaves.append(activation.detach().requires_grad_())
                return leaves[-1]

            with differentiation(model):
                alone.run(pairs.clean, ())
                with visited(model, "embed", leaf):
                    values = alone.read(model(alone.batch(pairs.corrupted)))
                return torch.autograd.grad(measure(values, answer, "logit_difference").sum(), leaves)[0]

        def exact() -> np.ndarray:
            with inference(model):
                return runs.score_parts(pairs, [(site, Slice()) for site in sites]).patched

        ours, least, patched = best_of(REPEATS, attributed, floor, exact)
    finally:
        torch.set_num_threads(threads)
    unit = "x CPU time of 2 forwards and 1 backward"
    record("attribution patching", ours / least, 1.6, unit=unit, note=f"{len(sites)} nodes and a control each")
    unit = "x CPU time of exact patching"
    record("attribution patching for patching", ours / patched, 0.2, unit=unit, note=f"{len(sites)} nodes")
