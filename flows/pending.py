"""Do what the store does not hold yet: the same for every technique."""

from collections.abc import Sequence

from prefect.futures import as_completed

from flows.progress import stage
from mechint_core.errors import MechintError
from mechint_core.parallel import local_processes
from tasks.catalogue import TECHNIQUES
from tasks.references import Work
from tasks.settings import settings


class AnalysisError(MechintError, RuntimeError):
    """Some analyses failed; the others are stored, and the message lists the failures."""


def raise_failures(failures: Sequence[str]) -> None:
    """Raise AnalysisError with all of them, if there are any: the last act of a flow, when the rest is stored."""
    if failures:
        raise AnalysisError(f"{len(failures)} analyses failed:\n" + "\n".join(f"  - {each}" for each in failures))


def run_pending(name: str, work: Sequence[Work], failures: list[str]) -> int:
    """Submit what the store does not hold; gather failures, so that one bad analysis does not cost the others."""
    todo = [each for each in work if not each.is_done()]
    with local_processes(settings().backend), stage(name, len(todo)) as advance:
        submitted = {TECHNIQUES[each.technique].submit(each): each for each in todo}
        for future in as_completed(list(submitted)):
            each = submitted[future]
            place = f"{each.technique} {each.label}" + ("" if each.step is None else f" @{each.step}")
            advance(place)
            future.wait()  # until then its state is what the server last heard, which may be "Running"
            if not future.state.is_completed():
                failures.append(f"{place}: {future.state.message}")
    return len(todo)
