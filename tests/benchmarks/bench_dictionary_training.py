"""Training a dictionary from the store against training it on the same vectors in memory.

48 steps of 2048 vectors of 512 units: 201 MB, three times the shuffle buffer, so that the store is read in fills as
a larger one would be. Both runs make the same steps, bit for bit.
"""

import os
import subprocess
import sys
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


MEASURED = """
import sys
from pathlib import Path
import torch
from mechint_core.features import Recipe, SparseAutoencoderConfig, start_training
from mechint_core.store import ActivationStore

def peak():  # not ru_maxrss, which begins with the parent's
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

torch.set_num_threads(1)
config = SparseAutoencoderConfig(activation=sys.argv[2], n_latents=4096, k=32, n_epochs=1, batch_size=4096,
                                 buffer_bytes=64 * 2**20)
source = ActivationStore(sys.argv[1]).activations("run", 0, "site")
_ = source[0:16]
before = peak()
training = start_training({"site": source}, {"": Recipe(reads=("site",), config=config)})
while training.n_done < 6:
    training.step()
print(peak() - before, training.memory_bytes)
"""


@pytest.mark.benchmark
@pytest.mark.parametrize("activation", ["batch_topk", "relu", "gated"])
def test_memory(tmp_path, record, activation):
    """What a run says before it starts, against the peak of a process that trains from the store."""
    values = generator(0, "bench", "training").standard_normal((N_ROWS, N_UNITS), dtype=np.float32)
    stored(values, tmp_path / "store")
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path / "store"), activation],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    peak, stated = map(int, ran.stdout.split())

    record(
        f"sparse autoencoder: memory of {activation} training from the store",
        peak / stated,
        1.1,
        unit="x what was stated before it started",
        note=f"{stated / 1e6:.0f} MB stated; 201 MB of data, 64 MB buffer, 4096 vectors, 512 units, 4096 latents",
    )
