"""What a configuration will do, and roughly what that costs: the answer to `mechint run CONFIG --dry-run`.

Counts and sizes are exact. Times are those of the same technique in this store, where it has run before: the median
of what its results say they took; otherwise they are said to be unknown.
"""

from collections.abc import Mapping
from statistics import median

from flows.brain_comparisons import count_comparisons
from flows.circuits import count_circuits
from flows.dictionaries import check_dictionaries, count_dictionaries
from flows.plan import Plan
from mechint_core.store import ActivationStore


def describe(plan: Plan) -> str:
    """Return the plan as a page of text."""
    todo = [work for work in plan.collection() if work.missing()]
    steps = plan.steps
    lines = [
        f"run            {plan.config.run}",
        f"model          {plan.config.model.factory}",
        f"checkpoints    {len(steps)}, steps {steps[0]} to {steps[-1]}, from {plan.config.checkpoints}",
        f"samples        {plan.n_samples} of {plan.config.dataset}",
        "sites          " + ", ".join(f"{name} {_shape(shape)}" for name, shape in plan.sites.items()),
        f"store          {plan.store}",
        "",
        f"{'to do':<32}{'calls':>7}{'each':>10}{'in all':>10}",
        f"{'collect activations':<32}{len(todo):>7}{'':>10}{_bytes(len(todo) * plan.activation_bytes):>10}",
    ]
    seconds = typical_seconds(ActivationStore(plan.store))
    asked = [*plan.outline().items(), *count_circuits(plan).items(), *count_comparisons(plan).items()]
    for technique, calls in asked:
        each = seconds.get(technique)
        cost = (f"{each:.2f} s", f"{each * calls:.0f} s") if each is not None else ("unknown", "unknown")
        lines.append(f"{technique:<32}{calls:>7}{cost[0]:>10}{cost[1]:>10}")
    if plan.config.dictionaries:
        check_dictionaries(plan)
        lines.append(f"{'dictionary_training':<32}{count_dictionaries(plan):>7}")
    lines.append("")
    lines.append(
        "Calls whose answer is already stored are not made again. Times are medians of earlier calls, one at a time."
    )
    return "\n".join(lines)


def typical_seconds(store: ActivationStore) -> Mapping[str, float]:
    """Return technique -> median seconds of its stored results."""
    taken: dict[str, list[float]] = {}
    for key in store.results():
        provenance = store.result_provenance(key)
        if provenance is not None and "seconds" in provenance:
            taken.setdefault(key.technique, []).append(float(provenance["seconds"]))
    return {technique: median(times) for technique, times in taken.items()}


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + " x ".join(str(length) for length in shape) + ")"


def _bytes(n: int) -> str:
    return f"{n / 1e6:.0f} MB" if n < 1e9 else f"{n / 1e9:.1f} GB"
