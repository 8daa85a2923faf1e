"""From the configuration's recordings to the work of comparing the model with them.

    align     how well does this site match this region?        brain_alignment       site x region x measure x step
    map       which site matches which region best?             layer_region_matrix   measure x step
    follow    does training make it brain-like, and when?       brain_trajectory      site x region x measure

Everything that one recording is compared with uses the same draws, so that differences are paired.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from flows.choices import chosen_steps, site_labels
from flows.plan import Checkpoint, Plan, array_at
from flows.sections import BrainSection
from mechint_core.store import ActivationStore, StoredResult
from tasks._technique import from_json
from tasks.catalogue import TECHNIQUES
from tasks.references import ArraySequence, Input, Literals, ResultArrayReference, Work

ALIGNED = "brain_alignment"
MAPPED = "layer_region_matrix"
FOLLOWED = "brain_trajectory"


def alignments(plan: Plan) -> list[Work]:
    """List the comparison of every site with every region, by every measure, at every chosen checkpoint."""
    return [
        _aligned(plan, section, at, site, region, measure)
        for section in plan.config.brains
        for at in _chosen(plan, section)
        for site, region, measure in _cells(plan, section)
    ]


def maps(plan: Plan) -> list[Work]:
    """List the maps of sites by regions whose entries are all there."""
    found: list[Work] = []
    for section in plan.config.brains:
        sites, regions = _sites(plan, section), list(plan.brains[section.name].responses)
        for at, measure in product(_chosen(plan, section), section.measures):
            cells = [[_aligned(plan, section, at, site, region, measure) for region in regions] for site in sites]
            if all(work.is_done() for row in cells for work in row):
                inputs = _table(plan, cells) | {"draws": _draws(plan, [work for row in cells for work in row])}
                names = {"sites": sites, "regions": regions}
                found.append(_work(plan, section, MAPPED, inputs, f"{section.name} {measure}", at.step, names))
    return found


def trajectories(plan: Plan) -> list[Work]:
    """List the courses through training whose checkpoints are all there."""
    found: list[Work] = []
    for section in plan.config.brains:
        chosen = _chosen(plan, section)
        for site, region, measure in _cells(plan, section) if len(chosen) > 1 else ():
            row = [_aligned(plan, section, at, site, region, measure) for at in chosen]
            if all(work.is_done() for work in row):
                table = _table(plan, [row])
                inputs: dict[str, Input] = {
                    "score": Literals(values=table["score"].values[0]),
                    "ceiling": Literals(values=table["ceiling"].values[0]),
                    "draws": _draws(plan, row),
                    "step": Literals(values=[at.step for at in chosen]),
                }
                found.append(_work(plan, section, FOLLOWED, inputs, _name(section, site, region, measure), None, {}))
    return found


def count_comparisons(plan: Plan) -> dict[str, int]:
    """Return how many calls of each technique the recordings ask for, without looking at any result."""
    counts = {ALIGNED: 0, MAPPED: 0, FOLLOWED: 0}
    for section in plan.config.brains:
        n_steps, n_cells = len(_chosen(plan, section)), len(_cells(plan, section))
        counts[ALIGNED] += n_steps * n_cells
        counts[MAPPED] += n_steps * len(section.measures)
        counts[FOLLOWED] += n_cells * (n_steps > 1)
    return {technique: calls for technique, calls in counts.items() if calls}


def _cells(plan: Plan, section: BrainSection) -> list[tuple[str, str, str]]:
    return list(product(_sites(plan, section), plan.brains[section.name].responses, section.measures))


def _sites(plan: Plan, section: BrainSection) -> list[str]:
    return site_labels(plan.sites, section.sites, f"brain {section.name}")


def _chosen(plan: Plan, section: BrainSection) -> list[Checkpoint]:
    steps = chosen_steps(section.steps, plan.steps)
    return [each for each in plan.checkpoints if each.step in steps]


def _name(section: BrainSection, site: str, region: str, measure: str) -> str:
    return f"{section.name} {site}~{region} {measure}"


def _aligned(plan: Plan, section: BrainSection, at: Checkpoint, site: str, region: str, measure: str) -> Work:
    brain = plan.brains[section.name]
    inputs: dict[str, Input] = {
        "x": array_at(plan, at, site).model_copy(update={"kept": brain.seen}),
        "responses": brain.responses[region],
        "subject": brain.subject[region],
        "time": brain.time,
    }
    return _work(plan, section, ALIGNED, inputs, _name(section, site, region, measure), at.step, {"measure": measure})


def _work(
    plan: Plan,
    section: BrainSection,
    technique: str,
    inputs: Mapping[str, Input],
    name: str,
    step: int | None,
    options: Mapping[str, Any],
) -> Work:
    of = TECHNIQUES[technique]
    config = from_json(of.config, {**options, **section.options.get(technique, {})})
    return of.work(inputs, config, store=plan.store, run=plan.config.run, name=name, step=step)


def _table(plan: Plan, cells: Sequence[Sequence[Work]]) -> dict[str, Literals]:
    """Return what the map needs of every entry: its score, p-value and ceiling."""
    rows = [[_numbers(plan.result(work)) for work in row] for row in cells]
    return {
        name: Literals(values=[[entry[place] for entry in row] for row in rows])
        for place, name in enumerate(("score", "null", "p_value", "ceiling"))
    }


def _numbers(result: StoredResult) -> tuple[float, float, float, float]:
    score = result.estimates["score"]
    return score.value, score.null, score.p_value, result.flags["ceiling"]


def _draws(plan: Plan, works: Sequence[Work]) -> ArraySequence:
    store = ActivationStore(plan.store)
    return ArraySequence(
        arrays=[
            ResultArrayReference(
                store=plan.store,
                run=work.run,
                technique=work.technique,
                name=work.name,
                step=work.step,
                field="draws",
                digest=(store.result_provenance(work.key) or {})["digest"],
            )
            for work in works
        ]
    )
