"""Training a dictionary from the store against training it on the same vectors in memory.

48 steps of 2048 vectors of 512 units: 201 MB, three times the shuffle buffer, so that the store is read in fills as
a larger one would be. Both runs make the same steps, bit for bit.
"""

from pathlib import Path
from time import process_time

import numpy as np
import pytest
import torch

from mechint_core.features.dictionaries.config import SparseAutoencoderConfig
from mechint_core.features.dictionary_training import start_training
from mechint_core.features.recipe import Recipe
from mechint_core.parallel import Rows
from mechint_core.random import generator
from mechint_core.store import ActivationStore

N_ROWS, N_UNITS = 48 * 2048, 512
REPEATS = 3
CONFIG = SparseAutoencoderConfig(n_latents=2048, k=32, n_epochs=1, batch_size=2048, buffer_bytes=64 * 2**20)


def stored(values: np.ndarray, folder: Path) -> Rows:
    store = ActivationStore(folder)
    with store.write_activations("run", 0, "site", n_samples=len(values), source={}) as writer:
        for start in range(0, len(values), 16_384):
            writer.append(values[start : start + 16_384])
    return store.activations("run", 0, "site")


def trained(source: Rows) -> tuple[float, torch.Tensor]:
    """Return the CPU time of a whole run, and the decoder that it ends with."""
    started = process_time()
    training = start_training({"site": source}, {"": Recipe(reads=("site",), config=CONFIG)})
    training.run()
    return process_time() - started, training.trainers[""].finished().W_dec


@pytest.mark.benchmark
def test_streaming(tmp_path, record):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        values = generator(0, "bench", "training").standard_normal((N_ROWS, N_UNITS), dtype=np.float32)
        array = stored(values, tmp_path / "store")
        runs = [(trained(array), trained(values)) for _ in range(REPEATS)]
    finally:
        torch.set_num_threads(threads)

    assert all(torch.equal(from_store, from_memory) for (_, from_store), (_, from_memory) in runs)
    record(
        "sparse autoencoder: training from the store",
        min(store[0] for store, _ in runs) / min(memory[0] for _, memory in runs),
        1.05,
        unit="x CPU time from memory",
        note=f"{N_ROWS // CONFIG.batch_size} steps of {CONFIG.batch_size} vectors, {N_UNITS} units, "
        f"{CONFIG.n_latents} latents, buffer a third of the data, one thread",
    )
