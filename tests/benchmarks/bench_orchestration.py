"""What orchestration costs the demonstration: the price of an empty task, times its tasks."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.futures import wait

from flows.collect_activations import RUNNER
from flows.grokking import grokking

N_EMPTY = 100


@task(persist_result=True, result_serializer="json")
def empty(n: int) -> int:
    return n


@flow(task_runner=RUNNER)
def empty_tasks() -> None:
    wait([empty.submit(n) for n in range(N_EMPTY)])


@pytest.mark.benchmark
@pytest.mark.usefixtures("prefect_api", "home")
def test_orchestration__is_a_tenth_of_the_demonstration(record: Callable[..., None], tmp_path: Path):
    empty_tasks()
    started = time.perf_counter()
    empty_tasks()
    per_task = (time.perf_counter() - started) / N_EMPTY

    started = time.perf_counter()
    done = grokking(0)
    demonstration = time.perf_counter() - started

    note = f"{per_task * 1000:.0f} ms a task, {done.n_analysed} results, {demonstration:.0f} s with training"
    record(
        "orchestration of the demonstration",
        per_task * done.n_analysed / demonstration,
        0.1,
        unit="of its time",
        note=note,
    )
