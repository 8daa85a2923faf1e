"""Patching maps (layers x positions, layers x heads) by the planner, against one forward per patch.

The loop is the best one can write by hand: the donors cached, one hook, one forward of the corrupted prompt. The peer
is TransformerLens, whose patching utilities make that loop; both run on one and the same model of its own.
"""

import time
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mechint_core.models import Patch, capture, inference, match_sites, patched
from mechint_core.patching import (
    PairedConfig,
    PairRuns,
    Part,
    PromptPairs,
    Slice,
    Write,
    attention_heads,
    run_experiments,
    usable_sites,
)
from mechint_core.random import generator, torch_generator
from mechint_core.synthetic.small_transformer import SmallTransformer

REPEATS = 5
POSITIONS = 10


@pytest.fixture(autouse=True)
def one_thread() -> Generator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    """4 layers, width 64, 10 positions, 36 sites, one pair: the size of the published loop's example."""
    layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    clean, corrupted = torch.randn(2, 1, POSITIONS, 64, generator=torch_generator(0, "bench"))
    with inference(model):
        sites = [site for site in match_sites(model, ["layers.*"]) if not site.endswith("out_proj")]
        with capture(model, sites) as seen:
            model(clean)
        experiments = [[Write(site, seen[site])] for site in sites]

        def packed() -> Tensor:
            passes = run_experiments(model, corrupted, experiments, batch_rows=1024, sample_axis=0)
            return torch.cat([output for _, output in passes])

        def one_by_one() -> Tensor:
            outputs: list[Tensor] = []
            for site in sites:
                with patched(model, [Patch(site, seen[site])]):
                    outputs.append(model(corrupted))
            return torch.cat(outputs)

        assert (packed() - one_by_one()).abs().max() < 1e-5
        ours, loop = best_of(REPEATS, packed, one_by_one)
    record("packed activation patching", ours / loop, 0.25, unit="x CPU time of the loop", note=f"{len(sites)} sites")


@pytest.mark.benchmark
def test_maps_of_four_layers_against_the_loop(record):
    ratio, n_parts = maps_against_the_loop(4, n_pairs=4)
    record("patching maps, 4 layers", ratio, 0.25, unit="x CPU time of the loop", note=f"{n_parts} parts, 4 pairs")


@pytest.mark.benchmark
def test_maps_of_twelve_layers_against_the_loop(record):
    ratio, n_parts = maps_against_the_loop(12, n_pairs=4)
    record("patching maps, 12 layers", ratio, 0.125, unit="x CPU time of the loop", note=f"{n_parts} parts, 4 pairs")


def maps_against_the_loop(n_layers: int, n_pairs: int) -> tuple[float, int]:
    """The residual stream by position and the attention by head, each pair by itself in the loop."""
    model = SmallTransformer(n_layers=n_layers, n_heads=4, width=64, hidden=256, vocabulary=64, norm=True)
    clean, corrupted = generator(0, "bench").integers(0, 64, size=(2, n_pairs, POSITIONS))
    parts: list[tuple[str, Slice]] = [(f"layers.{k}", Slice(p)) for k in range(n_layers) for p in range(POSITIONS)]
    for heads in attention_heads(model):
        parts += [(heads.site, Slice(units=heads.units(head))) for head in range(heads.n_heads)]

    def planned() -> np.ndarray:
        return scores_of(model, clean, corrupted, parts)

    def one_by_one() -> np.ndarray:
        sites = list(dict.fromkeys(site for site, _ in parts))
        found = np.empty((len(parts), n_pairs))
        for row in range(n_pairs):
            with capture(model, sites) as seen:
                wanted = model(torch.from_numpy(clean[row : row + 1]))
            for at, (site, part) in enumerate(parts):
                index = (slice(None), slice(None) if part.position is None else part.position)
                index = index if part.units is None else (..., part.units)
                with patched(model, [Patch(site, seen[site][index], index)]):
                    output = model(torch.from_numpy(corrupted[row : row + 1]))
                found[at, row] = float((output - wanted).double().square().mean())
        return found

    with inference(model):
        np.testing.assert_allclose(planned(), one_by_one(), rtol=0, atol=1e-5)
        ours, loop = best_of(REPEATS, planned, one_by_one)
    return ours / loop, len(parts)


def scores_of(model: nn.Module, clean: np.ndarray, corrupted: np.ndarray, parts: list[tuple[str, Part]]) -> np.ndarray:
    """What `patch_sites` runs, without its statistics: all of it from the prompts on."""
    sites = list(dict.fromkeys(site for site, _ in parts))
    usable = usable_sites(model, torch.from_numpy(clean[:2]), sites, sample_axis=0, position=None)
    config = PairedConfig(metric="distance")
    runs = PairRuns(model=model, config=config, sites=usable.sites, bytes_per_row=usable.bytes_per_row)
    return runs.score_parts(PromptPairs(clean, corrupted), parts).patched


@dataclass(frozen=True)
class OneOfAxis:
    """One head of TransformerLens' activations (sample, position, head, unit)."""

    head: int
    position: int | None = None

    def put(self, activation: Tensor, donor: Tensor) -> Tensor:
        made = activation.clone()
        made[:, :, self.head] = donor[:, :, self.head]
        return made


@pytest.mark.benchmark
@pytest.mark.parametrize(("n_layers", "bar"), [(4, 0.25), (12, 0.125)])
def test_maps_against_transformer_lens(record, monkeypatch, n_layers, bar):
    """One HookedTransformer with random weights, one prompt pair: its own utilities, and our planner on its hooks."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports and its progress bars
        from transformer_lens import HookedTransformer, HookedTransformerConfig, patching

        config = HookedTransformerConfig(
            n_layers=n_layers,
            d_model=64,
            n_heads=4,
            d_head=16,
            d_mlp=256,
            n_ctx=POSITIONS,
            d_vocab=64,
            act_fn="gelu",
            seed=0,
            device="cpu",
        )
        model = HookedTransformer(config)
    clean, corrupted = generator(0, "bench").integers(0, 64, size=(2, 1, POSITIONS))
    stream: list[tuple[str, Part]] = [
        (f"blocks.{k}.hook_resid_pre", Slice(p)) for k in range(n_layers) for p in range(POSITIONS)
    ]
    heads: list[tuple[str, Part]] = [
        (f"blocks.{k}.attn.hook_z", OneOfAxis(h)) for k in range(n_layers) for h in range(4)
    ]

    def planned() -> np.ndarray:
        return scores_of(model, clean, corrupted, stream + heads)[:, 0]

    def lens() -> np.ndarray:
        tokens = torch.from_numpy(corrupted)
        logits, cache = model.run_with_cache(torch.from_numpy(clean))

        def metric(output: Tensor) -> Tensor:
            return (output - logits).double().square().mean()

        by_position = patching.get_act_patch_resid_pre(model, tokens, cache, metric)
        by_head = patching.get_act_patch_attn_head_out_all_pos(model, tokens, cache, metric)
        return np.concatenate([by_position.flatten().numpy(), by_head.flatten().numpy()])

    with inference(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_allclose(planned(), lens(), rtol=0, atol=1e-4)
        ours, peer = best_of(REPEATS, planned, lens)
    n_parts = len(stream) + len(heads)
    record(
        f"patching maps, {n_layers} layers, TransformerLens",
        ours / peer,
        bar,
        note=f"{n_parts} parts, one pair, its model",
    )
