"""Which sparse features, at which sites? Trained from the store, tracked in MLflow, exactly resumable."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean

from prefect import flow
from prefect.runtime import flow_run

from flows.collect_activations import RUNNER, record
from flows.configuration import RunSection, configuration
from flows.dictionaries import check_dictionaries, comparison, dictionary_works, examinations, passes
from flows.pending import raise_failures, run_pending
from flows.plan import Plan, make_plan
from flows.progress import Advance, say, stage
from mechint_core.store import ResultKey
from tasks.dictionaries import (
    WATCHER,
    DictionaryWork,
    Seen,
    publish_dictionaries,
    train_dictionaries as train_pass,
)
from tasks.settings import settings


@flow(name="train-dictionaries", task_runner=RUNNER, validate_parameters=False)
def train_dictionaries(config: RunSection | Path) -> list[ResultKey]:
    """Record what the configuration's dictionaries read, train them, examine them; return the keys of the records.

    Raises
    ------
    AnalysisError
        If something failed; the rest is stored.
    """
    plan = make_plan(configuration(config), settings().store_location)
    check_dictionaries(plan)
    record(plan)
    failures: list[str] = []
    train_and_examine(plan, failures)
    raise_failures(failures)
    return [work.key for work in dictionary_works(plan)]


def train_and_examine(plan: Plan, failures: list[str]) -> int:
    """Do the pending work on dictionaries; return how much there was."""
    if not plan.config.dictionaries:
        return 0
    works = dictionary_works(plan)
    todo = [work for work in works if not work.is_done()]
    for group in passes(todo):
        _train(group, failures)
    n_done = len(todo) + run_pending("dictionaries", examinations(plan, works), failures)
    compared = comparison(plan, works)
    n_done += run_pending("frontier", compared, failures)
    publish_dictionaries(works, [work.key for work in compared if work.is_done()])
    return n_done


def _train(group: Sequence[DictionaryWork], failures: list[str]) -> None:
    """Train one pass here, where its progress is seen, and not in a worker: it uses all cores by itself."""
    names = ", ".join(work.label for work in group)
    with ExitStack() as shown:
        token = WATCHER.set(_Shown(shown, group[0].label if len(group) == 1 else f"{len(group)} dictionaries"))
        try:
            state = train_pass(list(group), str(flow_run.get_id() or ""), return_state=True)
        finally:
            WATCHER.reset(token)
    if not state.is_completed():
        failures.append(f"training {names}: {state.message}")


class _Shown:
    """Show training as a bar, once it has said how long it is: speed, and where loss, L0 and dead latents are."""

    def __init__(self, shown: ExitStack, title: str) -> None:
        self._shown, self._title, self._at = shown, title, 0
        self._advance: Advance | None = None

    def __call__(self, seen: Seen) -> None:
        """Show where training is."""
        if self._advance is None:
            say(f"training {self._title}: {seen.n_steps} steps, about {seen.memory_bytes / 1e6:.0f} MB of memory")
            self._advance = self._shown.enter_context(stage("training", seen.n_steps))
        self._advance(_in_words(seen), seen.n_done - self._at)
        self._at = seen.n_done


def _in_words(seen: Seen) -> str:
    """Return the rate, and the mean over dictionaries of what matters."""
    means = {
        name: fmean(values)
        for name in ("loss", "l0", "dead_share")
        if (values := [each for key, each in seen.metrics.items() if key.rpartition("/")[2] == name])
    }
    if not means:
        return ""
    rate = f"{seen.vectors_per_second / 1000:.0f}k/s " if seen.vectors_per_second else ""
    return f"{rate}loss {means['loss']:.2g} L0 {means['l0']:.3g} dead {means['dead_share']:.0%}"
