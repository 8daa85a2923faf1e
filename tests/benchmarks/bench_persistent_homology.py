"""Persistent homology: what our arithmetic adds to the engine, and what a second process brings over many clouds."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from persim import bottleneck
from ripser import ripser

from mechint_core.geometry import (
    PersistentHomologyConfig,
    diagram_distance,
    persistent_homology,
    persistent_homology_many,
)
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


LANDMARKS = """
import time
from pathlib import Path
from mechint_core.geometry import PersistentHomologyConfig, persistent_homology
from mechint_core.synthetic import manifolds
cloud = manifolds.torus({n}, noise=0.05, ambient=64).points
start = time.perf_counter()
persistent_homology(cloud, config=PersistentHomologyConfig(max_points=400, n_surrogates=0, n_resamples=0))
seconds = time.perf_counter() - start
peak = next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))
print(seconds, peak / 2**20)
"""


@pytest.mark.benchmark
@pytest.mark.parametrize("n", [20_000])
def test_persistent_homology__landmarks_of_a_large_cloud_are_quick_and_small(record, n):
    """In a process of its own; the peak holds Python, its libraries and the cloud.

    VmHWM, because the peak that getrusage reports is inherited from the process that forked it.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of resident memory is read from /proc, which this system lacks")
    found = subprocess.run([sys.executable, "-c", LANDMARKS.format(n=n)], check=True, capture_output=True, text=True)
    seconds, peak = map(float, found.stdout.split())

    note = f"{n} points in 64 dimensions, 400 landmarks, loops"
    record("persistent homology, landmarks, time", seconds / 30, 1.0, unit="x 30 s", note=note)
    record("persistent homology, landmarks, memory", peak, 1.0, unit="GiB, peak of the process", note=note)


@pytest.mark.benchmark
def test_diagram_distance__is_faster_than_persim(record):
    one, other = (np.sort(manifolds.uniform_cube(300, seed=seed).points, axis=1) for seed in (0, 1))
    theirs, ours = [], []
    for _ in range(REPEATS):
        theirs.append(cpu_seconds(lambda: bottleneck(one, other)))
        ours.append(cpu_seconds(lambda: diagram_distance(one, other)))

    note = "bottleneck, 300 bars in both"
    record("diagram distance", min(ours) / min(theirs), 1.0, unit="x persim's CPU time", note=note)


def cpu_seconds(call):
    start = time.process_time()
    call()
    return time.process_time() - start


def wall_seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
