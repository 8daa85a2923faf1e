"""One training step of a sparse autoencoder, against what a plain one cannot do without and against two libraries.

The floor is five dense products: encode, decode, and the gradients of decoder, codes and encoder. A library's step is
its trainer's own, with its default optimiser, on the same batch: forward, backward, clipping, optimiser, schedules,
dead counters. Ours also measures the batch's error and brings it to its own units.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from time import process_time
from typing import Any, NamedTuple

import pytest
import torch

from mechint_core.features.dictionaries.config import SparseAutoencoderConfig
from mechint_core.features.dictionaries.standardisation import standardisation
from mechint_core.features.dictionaries.training import Length, Trainer
from mechint_core.features.sparse_autoencoder import SparseAutoencoder
from mechint_core.random import generator, torch_generator
from tests.peers import dictionary_learning, sae_lens

N_SAMPLES, K, N_STEPS = 4096, 64, 1000
WIDTHS = (128, 384, 1024, 2048)
"""Of the inner levels of the nested dictionary; the fifth is the whole."""

Step = Callable[[], object]


class Case(NamedTuple):
    """One kind of dictionary: what it is called there, and how much of the floor and of their time it may take."""

    ours: dict[str, Any]
    saelens: str
    trainer: str
    floor: float
    peers: float
    n_units: int = 512
    n_latents: int = 4096
    repeats: int = 4


CASES = {
    "L1": Case({"activation": "relu"}, "standard", "StandardTrainer", floor=1.3, peers=1.0),
    "TopK": Case({"activation": "topk"}, "topk", "TopKTrainer", floor=0.6, peers=0.5),
    "BatchTopK": Case({"activation": "batch_topk"}, "batchtopk", "BatchTopKTrainer", floor=0.9, peers=0.5),
    "Matryoshka, 5 levels": Case(
        {"activation": "batch_topk", "levels": WIDTHS, "k_start": 1},
        "matryoshka_batchtopk",
        "MatryoshkaBatchTopKTrainer",
        floor=1.3,
        peers=0.5,
    ),
    "TopK, wide": Case(
        {"activation": "topk"}, "topk", "TopKTrainer", floor=0.5, peers=0.5, n_units=768, n_latents=16_384, repeats=2
    ),
}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=CASES)
def taken(request: pytest.FixtureRequest, one_thread: None) -> tuple[str, dict[str, float]]:
    """Name of the case, and each competitor's best CPU time of one step; they take turns."""
    case = CASES[request.param]
    x = torch.from_numpy(generator(0, "bench").standard_normal((N_SAMPLES, case.n_units), dtype="float32"))
    steps = {
        "ours": our_step(case, x),
        "five dense products": five_products(case, x),
        "SAELens": saelens_step(case, x),
        "dictionary_learning": dictionary_learning_step(case, x),
    }
    for step in steps.values():
        step()  # a first step also makes the optimiser's memory, or the geometric median
    rounds = [{name: seconds(step) for name, step in steps.items()} for _ in range(case.repeats)]
    return request.param, {name: min(each[name] for each in rounds) for name in steps}


def seconds(call: Step) -> float:
    started = process_time()
    call()
    return process_time() - started


def five_products(case: Case, x: torch.Tensor) -> Step:
    """86 billion operations at 512 units and 4096 latents."""
    draws = torch_generator(0, "bench")
    error = torch.randn(x.shape, generator=draws)
    weight = torch.randn(case.n_latents, case.n_units, generator=draws)
    codes = torch.relu(torch.randn(N_SAMPLES, case.n_latents, generator=draws))
    return lambda: (x @ weight.T, codes @ weight, codes.T @ error, error @ weight.T, codes.T @ x)


def our_step(case: Case, x: torch.Tensor) -> Step:
    config = SparseAutoencoderConfig(k=K, n_latents=case.n_latents, batch_size=N_SAMPLES, **case.ours)
    units = standardisation(x.numpy(), [case.n_units])
    model = SparseAutoencoder(case.n_units, case.n_latents, config=config)
    trainer = Trainer(model, units, units, Length(N_STEPS, N_STEPS * N_SAMPLES))
    return lambda: trainer.step(x, x)


def saelens_step(case: Case, x: torch.Tensor) -> Step:
    library = sae_lens()
    kind, config = library.registry.get_sae_training_class(case.saelens)
    options: dict[str, Any] = {} if case.saelens == "standard" else {"k": K}
    if "levels" in case.ours:
        options["matryoshka_widths"] = [*WIDTHS, case.n_latents]
    trainer = library.SAETrainer(
        library.config.SAETrainerConfig(
            total_training_samples=N_STEPS * N_SAMPLES, train_batch_size_samples=N_SAMPLES, lr_end=3e-5
        ),
        kind(config(d_in=case.n_units, d_sae=case.n_latents, **options)),
        iter([x]),
    )
    return lambda: trainer.step(x)


def dictionary_learning_step(case: Case, x: torch.Tensor) -> Step:
    trainers = dictionary_learning().trainers
    kind = getattr(trainers, case.trainer, None) or getattr(trainers.matryoshka_batch_top_k, case.trainer)
    options: dict[str, Any] = {} if case.saelens == "standard" else {"k": K}
    if "levels" in case.ours:
        ends = (0, *WIDTHS, case.n_latents)
        options["group_fractions"] = [(stop - start) / case.n_latents for start, stop in pairwise(ends)]
    shape = {"activation_dim": case.n_units, "dict_size": case.n_latents}
    trainer = kind(steps=10 * N_STEPS, layer=0, lm_name="", device="cpu", seed=None, **shape, **options)
    counter = iter(range(N_STEPS))
    return lambda: trainer.update(next(counter), x)


@pytest.mark.benchmark
@pytest.mark.parametrize("other", ["five dense products", "SAELens", "dictionary_learning"])
def test_step(taken, other, record):
    name, best = taken
    case = CASES[name]
    record(
        f"sparse autoencoder: one {name} step against {other}",
        best["ours"] / best[other],
        case.floor if other == "five dense products" else case.peers,
        unit=f"x CPU time of {other}" if other == "five dense products" else f"x {other}'s CPU time",
        note=f"{N_SAMPLES} vectors, {case.n_units} units, {case.n_latents} latents, k = {K}, float32, one thread",
    )
