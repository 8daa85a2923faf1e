"""Persistent homology: what our arithmetic adds to the engine, and what a second process brings over many clouds."""

import time

import pytest
from ripser import ripser

from mechint_core.geometry import PersistentHomologyConfig, persistent_homology, persistent_homology_many
from mechint_core.parallel import Backend, compute
from mechint_core.synthetic import manifolds

BARCODE_ONLY = PersistentHomologyConfig(max_points=400, n_surrogates=0, n_resamples=0)
REPEATS = 3


@pytest.mark.benchmark
def test_persistent_homology__adds_little_to_its_engine(record):
    cloud = manifolds.torus(400, noise=0.05).points
    ours, engine = [], []
    for _ in range(REPEATS):
        engine.append(cpu_seconds(lambda: ripser(cloud)))
        ours.append(cpu_seconds(lambda: persistent_homology(cloud, config=BARCODE_ONLY)))

    note = "one barcode with loops, 400 points of a torus, exact float64 ends"
    record("persistent homology", min(ours) / min(engine), 1.3, unit="x ripser's CPU time", note=note)


@pytest.mark.benchmark
def test_persistent_homology_many__two_processes_are_faster_than_one(record):
    clouds = [manifolds.torus(400, noise=0.05, seed=seed).points for seed in range(64)]
    seconds = {1: [], 2: []}
    for _ in range(2):
        for workers in seconds:
            with compute(Backend(processes=workers)):
                persistent_homology_many(clouds[:2], config=BARCODE_ONLY)  # imports are paid by this call
                seconds[workers].append(wall_seconds(lambda: persistent_homology_many(clouds, config=BARCODE_ONLY)))

    note = "64 clouds of 400 points, needs two idle cores"
    record(
        "persistent homology, 2 processes", min(seconds[2]) / min(seconds[1]), 1 / 1.7, unit="x one process", note=note
    )


def cpu_seconds(call):
    start = time.process_time()
    call()
    return time.process_time() - start


def wall_seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
