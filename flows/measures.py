"""Stored numbers as tables: what a technique that follows measures through training is given."""

from collections.abc import Iterable, Mapping, Sequence

from mechint_core.errors import NotFoundError
from mechint_core.store import ActivationStore, ResultKey, StoredResult


def stored_table(store: ActivationStore, run: str, names: Iterable[str], steps: Sequence[int]) -> list[list[float]]:
    """Gather `technique/name:scalar`, or `technique/name:scalar.low`, at every step: (checkpoint, measure).

    Raises
    ------
    NotFoundError
        If a result is not stored, or has no such number.
    """
    return [[_stored_number(store, run, step, name) for name in names] for step in steps]


def _stored_number(store: ActivationStore, run: str, step: int, name: str) -> float:
    place, _, scalar = name.partition(":")
    technique, _, label = place.partition("/")
    numbers = _numbers(store.result(ResultKey(run=run, technique=technique, name=label, step=step)))
    if scalar not in numbers:
        raise NotFoundError(f"{place} at step {step} has no number {scalar!r}. It has: {', '.join(numbers)}.")
    return numbers[scalar]


def _numbers(result: StoredResult) -> Mapping[str, float]:
    """Return estimates, their ends, nulls and p-values, also those that are NaN, and flags."""
    parts = {
        f"{name}.{part}": getattr(each, part)
        for name, each in result.estimates.items()
        for part in ("low", "high", "null", "p_value")
    }
    return {name: each.value for name, each in result.estimates.items()} | dict(result.flags) | parts
