"""From the configuration's behaviours to the work of finding their circuits.

    scan       which components move the answer?       patch_sites, attribution_patching        discovery pairs
    discover   which connections carry it?             edge_attribution, edge_patching or acdc  discovery pairs
    check      do methods agree, and prompts?         method_agreement, circuit_stability    discovery pairs, last step
    verify     do these alone, and only these, do it?  circuit_faithfulness                     held-out pairs
    compare    when did the circuit form?              the last circuit, judged at every step; compare_circuits

A result is stored under the behaviour's name; what is said of another checkpoint's circuit as `NAME of step 2500`.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flows.choices import chosen_steps
from flows.plan import Checkpoint, Plan
from flows.sections import CircuitSection
from mechint_core.circuits import Circuit
from mechint_core.store import ActivationStore
from tasks._technique import from_json
from tasks.catalogue import TECHNIQUES
from tasks.references import CircuitFile, CircuitReference, CircuitSequence, Input, Literals, Work, digest_of_file

SCANNED = ("patch_sites", "attribution_patching")
AGREED = "method_agreement"
STABLE = "circuit_stability"
JUDGED = "circuit_faithfulness"
COMPARED = "compare_circuits"


def scans(plan: Plan) -> list[Work]:
    """List the scans of components, for every behaviour that wants them."""
    return [
        _paired(plan, section, technique, at, "discovery", f"{section.name} {parts}s", options={"by": parts})
        for section in plan.config.circuits
        for at in _chosen(plan, section)
        for parts in _scanned(section)
        for technique in SCANNED
    ]


def discoveries(plan: Plan) -> list[Work]:
    """List the searches for circuits."""
    return [
        _paired(plan, section, section.method, at, "discovery", section.name)
        for section in plan.config.circuits
        if section.circuit is None
        for at in _chosen(plan, section)
    ]


def cross_checks(plan: Plan) -> list[Work]:
    """List what is asked of the last checkpoint only: do methods agree, and would other prompts give this circuit?"""
    found: list[Work] = []
    for section in plan.config.circuits:
        last, scanned = _chosen(plan, section)[-1], _scanned(section)
        if scanned:
            found.append(_paired(plan, section, AGREED, last, "discovery", section.name, options={"by": scanned[-1]}))
        if section.circuit is None:
            found.append(_paired(plan, section, STABLE, last, "discovery", section.name))
    return found


def verifications(plan: Plan) -> list[Work]:
    """List the judgements of every circuit that was found: at its own checkpoint, and the last one's at all of them."""
    found: list[Work] = []
    for section in plan.config.circuits:
        chosen = _chosen(plan, section)
        circuits = {at.step: _circuit(plan, section, at) for at in chosen}
        last = chosen[-1]
        for at in chosen:
            own, final = circuits[at.step], circuits[last.step]
            if own is not None:
                found.append(_judgement(plan, section, at, own, section.name))
            if final is not None and at is not last:
                found.append(_judgement(plan, section, at, final, f"{section.name} of step {last.step}"))
    return found


def comparisons(plan: Plan) -> list[Work]:
    """List the comparisons of each behaviour's circuits over the checkpoints."""
    found: list[Work] = []
    for section in plan.config.circuits:
        chosen = [(at.step, circuit) for at in _chosen(plan, section) if (circuit := _circuit(plan, section, at))]
        if len(chosen) >= 2:
            inputs: dict[str, Input] = {
                "circuits": CircuitSequence(circuits=[circuit for _, circuit in chosen]),
                "step": Literals(values=[step for step, _ in chosen]),
            }
            found.append(_work(plan, section, COMPARED, inputs, section.name, None))
    return found


def found_circuits(plan: Plan) -> dict[tuple[str, int], Circuit]:
    """Return what was found, by behaviour and step."""
    return {
        (section.name, at.step): reference.open()
        for section in plan.config.circuits
        for at in _chosen(plan, section)
        if (reference := _circuit(plan, section, at)) is not None
    }


def count_circuits(plan: Plan) -> dict[str, int]:
    """Return how many calls of each technique the behaviours ask for, without looking at any result."""
    counts: dict[str, int] = {}
    for section in plan.config.circuits:
        n = len(_chosen(plan, section))
        asked = dict.fromkeys(SCANNED, n * len(_scanned(section))) if _scanned(section) else {}
        asked |= {section.method: n} if section.circuit is None else {}
        asked |= ({AGREED: 1} if _scanned(section) else {}) | ({STABLE: 1} if section.circuit is None else {})
        asked |= {JUDGED: 2 * n - 1} | ({COMPARED: 1} if n > 1 else {})
        counts |= {technique: counts.get(technique, 0) + more for technique, more in asked.items()}
    return counts


def _scanned(section: CircuitSection) -> list[str]:
    return [parts for parts in section.scan if parts != "head" or section.granularity != "block"]


def _judgement(plan: Plan, section: CircuitSection, at: Checkpoint, circuit: Input, name: str) -> Work:
    return _paired(plan, section, JUDGED, at, "held-out", name, circuit=circuit)


def _paired(
    plan: Plan,
    section: CircuitSection,
    technique: str,
    at: Checkpoint,
    part: str,
    name: str,
    *,
    circuit: Input | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Work:
    """Give a technique the model of a checkpoint, and the prompt pairs."""
    pairs = plan.behaviours[f"{plan.config.run}.{section.name}.{part}"]
    inputs: dict[str, Input] = {"model": plan.model(at), **pairs}
    if circuit is not None:
        inputs["circuit"] = circuit
    return _work(plan, section, technique, inputs, name, at.step, options)


def _work(
    plan: Plan,
    section: CircuitSection,
    technique: str,
    inputs: Mapping[str, Input],
    name: str,
    step: int | None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Work:
    of = TECHNIQUES[technique]
    shared = {"metric": section.metric, "granularity": section.granularity}
    known = {field.name for field in dataclasses.fields(of.config)}
    given: dict[str, Any] = {each: value for each, value in shared.items() if each in known}
    given |= options
    chosen = section.options.get(technique, {})
    if "faithfulness" in known and technique == section.method and not chosen.keys() & {"n_edges", "threshold"}:
        given["faithfulness"] = section.faithfulness
    given |= chosen
    return of.work(inputs, from_json(of.config, given), store=plan.store, run=plan.config.run, name=name, step=step)


def _chosen(plan: Plan, section: CircuitSection) -> list[Checkpoint]:
    steps = chosen_steps(section.at_steps, plan.steps)
    return [each for each in plan.checkpoints if each.step in steps]


def _circuit(plan: Plan, section: CircuitSection, at: Checkpoint) -> CircuitReference | CircuitFile | None:
    """Name the circuit of a checkpoint: the saved one, or the one that was found; None if none is stored."""
    if section.circuit is not None:
        return CircuitFile(path=str(section.circuit), digest=digest_of_file(section.circuit))
    work = _paired(plan, section, section.method, at, "discovery", section.name)
    if not work.is_done():
        return None
    provenance = ActivationStore(plan.store).result_provenance(work.key) or {}
    return CircuitReference(
        store=plan.store,
        run=work.run,
        technique=work.technique,
        name=work.name,
        step=work.step,
        digest=provenance["digest"],
    )
