"""Patching many sites on one prompt pair: packed into one pass, against a forward per site."""

import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from mechint_core.models import Patch, capture, inference, match_sites, patched
from mechint_core.patching import Write, run_experiments
from mechint_core.random import torch_generator

REPEATS = 7


def best_of(repeats: int, *calls: Callable[[], object]) -> list[float]:
    """Least CPU seconds of each call, taken in turn."""
    times = [float("inf")] * len(calls)
    for _ in range(repeats):
        for i, call in enumerate(calls):
            started = time.process_time()
            call()
            times[i] = min(times[i], time.process_time() - started)
    return times


@pytest.mark.benchmark
def test_packed_patches_against_one_forward_per_site(record):
    """4 layers, width 64, 10 positions, 40 sites, one pair: the size of the published loop's example."""
    layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    clean, corrupted = torch.randn(2, 1, 10, 64, generator=torch_generator(0, "bench"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with inference(model):
            sites = [site for site in match_sites(model, ["layers.*"]) if not site.endswith("out_proj")]
            with capture(model, sites) as seen:
                model(clean)
            experiments = [[Write(site, seen[site])] for site in sites]

            def packed() -> torch.Tensor:
                passes = run_experiments(model, corrupted, experiments, batch_rows=1024, sample_axis=0)
                return torch.cat([output for _, output in passes])

            def one_by_one() -> torch.Tensor:
                outputs: list[torch.Tensor] = []
                for site in sites:
                    with patched(model, [Patch(site, seen[site])]):
                        outputs.append(model(corrupted))
                return torch.cat(outputs)

            assert (packed() - one_by_one()).abs().max() < 1e-5
            ours, loop = best_of(REPEATS, packed, one_by_one)
    finally:
        torch.set_num_threads(threads)
    record("packed activation patching", ours / loop, 0.25, unit="x CPU time of the loop", note=f"{len(sites)} sites")
