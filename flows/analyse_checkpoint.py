"""The battery for one checkpoint: what is represented, how it is computed, what its geometry looks like."""

from dataclasses import replace
from pathlib import Path

from prefect import flow

from flows.collect_activations import RUNNER, record
from flows.configuration import RunSection, configuration
from flows.pending import raise_failures, run_pending
from flows.plan import make_plan
from mechint_core.errors import NotFoundError
from mechint_core.store import ResultKey
from tasks.settings import settings


@flow(name="analyse-checkpoint", task_runner=RUNNER, validate_parameters=False)
def analyse_checkpoint(config: RunSection | Path, step: int) -> list[ResultKey]:
    """Collect and analyse one checkpoint; return the keys of its results.

    Raises
    ------
    NotFoundError
        If the run has no checkpoint at this step.
    AnalysisError
        If analyses failed; the others are stored.
    """
    plan = make_plan(configuration(config), settings().store_location)
    chosen = [each for each in plan.checkpoints if each.step == step]
    if not chosen:
        raise NotFoundError(f"there is no checkpoint at step {step}. There are: {', '.join(map(str, plan.steps))}.")
    record(replace(plan, checkpoints=tuple(chosen)))
    failures: list[str] = []
    work = plan.of_checkpoint(chosen[0])
    run_pending(f"step {step}", work, failures)
    raise_failures(failures)
    return [each.key for each in work]
