"""What did the model compute on this data set, at these sites, for these checkpoints?"""

from pathlib import Path
from typing import Any, cast

from prefect import flow
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.configuration import RunSection, configuration
from flows.plan import Plan, make_plan
from flows.progress import stage
from tasks.collection import collect_activations as collect
from tasks.settings import settings

# Techniques use every core themselves; a second task hides the first one's reading and writing.
RUNNER = cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=2))


@flow(name="collect-activations", task_runner=RUNNER, validate_parameters=False)
def collect_activations(config: RunSection | Path) -> int:
    """Record every site of every checkpoint that the store does not hold yet; return how many arrays were made."""
    return record(make_plan(configuration(config), settings().store_location))


def record(plan: Plan) -> int:
    """Collect, inside a flow, every checkpoint with a missing site; return how many arrays were made."""
    todo = [work for work in plan.collection() if work.missing()]
    n_made = 0
    with stage("activations", len(todo)) as advance:
        steps = {collect.submit(work): work.step for work in todo}
        for future in as_completed(list(steps)):
            n_made += future.result()
            advance(f"step {steps[future]}")
    return n_made
