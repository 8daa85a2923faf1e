"""A task made of a core function: what it reads, what it writes, when it runs again."""

from pathlib import Path

import numpy as np
import pytest
from prefect import flow

from mechint_core.errors import NotFoundError
from mechint_core.random import generator
from mechint_core.store import ActivationStore
from tasks.alignment import cka
from tasks.geometry import persistent_homology
from tasks.interventions import patch_sites
from tasks.meta_dynamics import phases, training_trajectory
from tasks.references import ArrayReference, Literals, Work


def stored(folder: Path, seed: int = 0, step: int = 1) -> ArrayReference:
    store = ActivationStore(folder)
    values = generator(seed, "task").normal(size=(30, 5)).astype(np.float32)
    with store.write_activations(
        "run", step, "site", n_samples=30, axes=("sample", "unit"), dtype="float32", source={}
    ) as writer:
        writer.append(values)
    digest = store.activations("run", step, "site").digest
    return ArrayReference(store=str(folder), run="run", step=step, site="site", digest=digest)


def work_on(array: ArrayReference, **changes: object) -> Work:
    config = persistent_homology.config(**changes)
    return persistent_homology.work({"points": array}, config, store=array.store, run="run", name="site", step=1)


def test_task__leaves_the_result_that_the_function_gives(tmp_path: Path):
    array = stored(tmp_path)
    work = work_on(array)

    done = persistent_homology.task.fn(work)

    expected = persistent_homology.compute(array.open().read())
    result = ActivationStore(tmp_path).result(work.key)
    assert result.estimates["longest_h1"] == expected.longest_h1
    assert result.provenance["digest"] == done.digest
    assert result.provenance["inputs"] == {"points": array.digest}
    assert result.about.question == persistent_homology.about.question


def test_task__called_again_computes_nothing(tmp_path: Path):
    work = work_on(stored(tmp_path))
    first = persistent_homology.task.fn(work)
    made_at = ActivationStore(tmp_path).result_provenance(work.key)

    second = persistent_homology.task.fn(work)

    assert first == second
    assert ActivationStore(tmp_path).result_provenance(work.key) == made_at


@pytest.mark.parametrize("change", ["content", "config", "version"])
def test_cache_key__changes_with_what_the_answer_depends_on(tmp_path: Path, change: str):
    array = stored(tmp_path)
    before = work_on(array)
    after = {
        "content": work_on(stored(tmp_path / "other", seed=1)),
        "config": work_on(array, seed=1),
        "version": before.model_copy(update={"version": before.version + 1}),
    }[change]

    assert before.cache_key != after.cache_key


def test_cache_key__does_not_depend_on_where_the_store_lies(tmp_path: Path):
    assert work_on(stored(tmp_path / "a")).cache_key == work_on(stored(tmp_path / "b")).cache_key


def test_submit__is_cached_by_prefect_but_not_when_the_store_lost_the_result(tmp_path: Path, prefect_api: str):
    """Prefect remembers that the task returned; only the store knows whether the result still exists."""
    import shutil

    work = work_on(stored(tmp_path))

    @flow(validate_parameters=False)
    def twice() -> list[str]:
        states = [persistent_homology.submit(work), None]
        states[0].wait()
        states[1] = persistent_homology.submit(work)
        states[1].wait()
        return [future.state.name for future in states if future is not None]

    assert twice() == ["Completed", "Cached"]
    shutil.rmtree(tmp_path / "results")
    assert twice()[0] == "Completed"
    assert work.is_done()


def test_task__missing_input_says_what_there_is(tmp_path: Path):
    array = stored(tmp_path).model_copy(update={"site": "other"})

    with pytest.raises(NotFoundError, match="site"):
        persistent_homology.task.fn(work_on(array))


def test_parameters__are_read_from_annotations():
    shapes = {each.name: each.shape for each in cka.parameters}
    assert shapes == {"x": "rows", "y": "rows"}
    assert {each.name: each.shape for each in training_trajectory.parameters} == {
        "activations": "sequence",
        "step": "array",
    }
    assert next(each for each in patch_sites.parameters if each.name == "model").shape == "model"


def test_literals__become_arrays(tmp_path: Path):
    rng = generator(0, "phases")
    table = np.concatenate([rng.normal(0, 0.1, (10, 2)), rng.normal(3, 0.1, (10, 2))])
    inputs = {"measures": Literals(values=table.tolist()), "step": Literals(values=list(range(20)))}
    work = phases.work(
        inputs, phases.config(names=("a", "b")), store=str(tmp_path), run="run", name="measures", step=None
    )

    phases.task.fn(work)

    assert 10 in ActivationStore(tmp_path).result(work.key).arrays["boundary"]
