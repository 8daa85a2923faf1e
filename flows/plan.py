"""From a configuration to the list of what is to be done: which activations, which techniques, on what.

A technique's parameters decide where it is applied, so that no technique needs a rule of its own:

    unbound parameters      applied to                              stored under
    one array               each site of each checkpoint            STEP/technique/site
    two arrays              each pair of sites of each checkpoint   STEP/technique/site~site
                            with `other`: its sites and this run's  STEP/technique/site~site of RUN
    a model only            each checkpoint                         STEP/technique/model
    a sequence of arrays    each site, over all checkpoints         all/technique/site
    a table of measures     once, over all checkpoints              all/technique/measures
    a dictionary            each trained dictionary: see `flows.dictionaries`

`step` is bound to the checkpoints' steps; the rest is bound by the analysis's `inputs`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Literal

import numpy as np

from flows.analyses import check_asked_once, is_of_measures, is_over_training, of_dictionary, unbound
from flows.behaviours import prompt_sets
from flows.choices import chosen_steps, site_labels
from flows.configuration import RunSection
from flows.datasets import commit_dataset, load_dataset
from flows.geometry import geometry_analyses
from flows.measures import stored_table
from flows.recordings import BrainData, commit_recording
from flows.sections import AnalysisSection
from mechint_core.errors import ConfigurationError
from mechint_core.models import (
    checkpoint_digest,
    list_checkpoints,
    load_model,
    match_sites,
    record_activations,
)
from mechint_core.store import ActivationStore, StoredResult
from tasks.collection import CollectionWork
from tasks.references import ArrayReference, ArraySequence, Input, Literals, ModelReference, Work


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One saved step of the training run."""

    step: int
    path: Path | None
    """None: the model as its factory makes it."""
    digest: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration with everything outside it looked up: checkpoints, data sets, the shape of every site."""

    config: RunSection
    store: str
    checkpoints: tuple[Checkpoint, ...]
    fields: Mapping[str, Mapping[str, ArrayReference]]
    """Data set -> field -> its committed array."""
    behaviours: Mapping[str, Mapping[str, ArrayReference]]
    """Prompt pairs of each circuit, "RUN.NAME.discovery" and "RUN.NAME.held-out": clean, corrupted and targets."""
    brains: Mapping[str, BrainData]
    """Name of a recording -> its regions, lined up with the samples."""
    sites: Mapping[str, tuple[int, ...]]
    """Recorded site -> shape of one sample's activation."""
    n_samples: int

    @property
    def steps(self) -> list[int]:
        """The checkpoints' steps, in order."""
        return [each.step for each in self.checkpoints]

    @property
    def analyses(self) -> list[AnalysisSection]:
        """What is asked of sites, models and measures, with what describes their geometry."""
        return [*self.config.analyses, *geometry_analyses(self.config.geometry, self.sites, self.steps)]

    @property
    def activation_bytes(self) -> int:
        """Size of one checkpoint's recorded activations."""
        width = 4 if self.config.collect is None else {"float32": 4}.get(self.config.collect.dtype, 2)
        return sum(int(np.prod(shape)) for shape in self.sites.values()) * self.n_samples * width

    def model(self, checkpoint: Checkpoint) -> ModelReference:
        """Name the model of one checkpoint."""
        section = self.config.model
        return ModelReference(
            factory=section.factory,
            arguments=section.arguments,
            checkpoint=str(checkpoint.path or ""),
            digest=checkpoint.digest,
            device="auto" if self.config.collect is None else self.config.collect.device,
        )

    def result(self, work: Work) -> StoredResult:
        """Read the stored answer to some work."""
        return ActivationStore(self.store).result(work.key)

    def digests(self) -> dict[str, str]:
        """Return the digest of every array of every data set, prompt pairs included."""
        recordings = {f"{self.config.run}.{name}": each.responses for name, each in self.brains.items()}
        datasets = {**self.fields, **self.behaviours, **recordings}
        return {f"{name}.{field}": each.digest for name, fields in datasets.items() for field, each in fields.items()}

    def collection(self) -> list[CollectionWork]:
        """List the collection of every checkpoint, done or not."""
        section = self.config.collect
        if section is None:
            return []
        fields = self.fields[section.dataset]
        keywords = section.inputs if isinstance(section.inputs, dict) else dict.fromkeys(section.inputs, "")
        return [
            CollectionWork(
                model=self.model(checkpoint),
                inputs={name: fields[name] for name in keywords},
                keywords=keywords,
                sites=list(self.sites),
                store=self.store,
                run=self.config.run,
                step=checkpoint.step,
                batch_size=section.batch_size,
                dtype=section.dtype,
            )
            for checkpoint in self.checkpoints
        ]

    def of_checkpoint(self, checkpoint: Checkpoint) -> list[Work]:
        """List the techniques' work on one checkpoint whose activations are committed."""
        return [
            work
            for analysis in self.analyses
            if not (is_over_training(analysis) or of_dictionary(analysis))
            and checkpoint.step in chosen_steps(analysis.steps, self.steps)
            for work in _checkpoint_work(self, analysis, checkpoint)
        ]

    def over_sites(self) -> list[Work]:
        """List the work that follows each site through training."""
        return [
            work
            for analysis in self.analyses
            if is_over_training(analysis) and not is_of_measures(analysis)
            for work in _sequence_work(self, analysis)
        ]

    def over_measures(self) -> list[Work]:
        """List the work on tables of stored numbers; those numbers must be there."""
        return [_measure_work(self, analysis) for analysis in self.analyses if is_of_measures(analysis)]

    def outline(self) -> dict[str, int]:
        """Count the calls of each technique, without looking at any activation."""
        counts: dict[str, int] = {}
        for analysis in self.analyses:
            if of_dictionary(analysis):
                continue  # `flows.dictionaries` counts these
            labels = len(site_labels(self.sites, analysis.sites, analysis.technique)) if unbound(analysis) else 1
            if is_of_measures(analysis):
                n = 1
            elif is_over_training(analysis):
                n = labels
            else:
                n = _n_cells(self, analysis, labels) * len(chosen_steps(analysis.steps, self.steps))
            counts[analysis.technique] = counts.get(analysis.technique, 0) + n
        return counts


def make_plan(config: RunSection, store_location: str) -> Plan:
    """Look up what the configuration names, and commit its data sets to the store.

    Raises
    ------
    ConfigurationError
        With every problem found: a factory that cannot be called, fields that do not exist, sites without a
        position where one is needed, a checkpoint folder without checkpoints.
    """
    checkpoints = _checkpoints(config)
    store = ActivationStore(store_location)
    arrays = {name: load_dataset(name, section) for name, section in config.datasets.items()}
    fields = {name: commit_dataset(store, name, each) for name, each in arrays.items()}
    behaviours = {name: commit_dataset(store, name, pairs) for name, pairs in _behaviours(config, arrays)}
    problems = list(_field_problems(config, fields))
    if problems:
        raise ConfigurationError("the configuration has problems:\n" + "\n".join(f"  - {each}" for each in problems))
    sample = arrays[config.dataset]
    plan = Plan(
        config=config,
        store=store_location,
        checkpoints=checkpoints,
        fields=fields,
        behaviours=behaviours,
        brains={each.name: commit_recording(store, config.run, each, arrays, config.dataset) for each in config.brains},
        sites=_site_shapes(config, checkpoints[0], sample),
        n_samples=len(next(iter(sample.values()))),
    )
    plan.outline()  # names every site that matches nothing, before anything runs
    check_asked_once(plan.analyses, plan.sites, plan.steps)
    return plan


def _checkpoints(config: RunSection) -> tuple[Checkpoint, ...]:
    if config.checkpoints is None:
        return (Checkpoint(0, None, ""),)
    found = list_checkpoints(config.checkpoints)
    return tuple(Checkpoint(each.step, each.path, checkpoint_digest(each.path)) for each in found)


def _behaviours(
    config: RunSection, arrays: Mapping[str, Mapping[str, np.ndarray]]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for section in config.circuits:
        dataset = section.clean.partition(".")[0]
        for part, pairs in zip(("discovery", "held-out"), prompt_sets(section, arrays[dataset]), strict=True):
            yield f"{config.run}.{section.name}.{part}", pairs


def _field_problems(config: RunSection, fields: Mapping[str, Mapping[str, ArrayReference]]) -> Iterator[str]:
    known = fields[config.dataset]
    for name in config.collect.inputs if config.collect else ():
        if name not in known:
            yield f"collect.inputs: {name!r} is not a field of {config.dataset} ({', '.join(known)})"
    for place, source in _named_fields(config):
        dataset, _, name = source.partition(".")
        if name not in fields[dataset]:
            yield f"{place}: {name!r} is not a field of {dataset} ({', '.join(fields[dataset])})"


def _named_fields(config: RunSection) -> Iterator[tuple[str, str]]:
    """Yield where a field is named, and which."""
    for index, analysis in enumerate(config.analyses):
        for parameter, source in analysis.fields.items():
            yield f"analyses.{index}.inputs.{parameter}", source
    for index, section in enumerate(config.geometry):
        if section.label:
            yield f"geometry.{index}.label", section.label


def _site_shapes(config: RunSection, first: Checkpoint, arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Run the model on two samples to learn what each site gives."""
    section = config.collect
    if section is None:
        return {}
    model = load_model(config.model.factory, config.model.arguments, first.path)
    names = match_sites(model, section.sites)
    keywords = section.inputs if isinstance(section.inputs, dict) else dict.fromkeys(section.inputs, "")
    inputs = {keyword or name: arrays[name][:2] for name, keyword in keywords.items()}
    _, recorded = next(
        iter(record_activations(model, inputs, names, batch_size=2, positional=isinstance(section.inputs, list)))
    )
    return {name: values.shape[1:] for name, values in recorded.items()}


def _checkpoint_work(plan: Plan, analysis: AnalysisSection, checkpoint: Checkpoint) -> Iterator[Work]:
    free = unbound(analysis)
    labels = site_labels(plan.sites, analysis.sites, analysis.technique)
    if not free:
        yield _work(plan, analysis, checkpoint, {}, "model")
    elif len(free) == 1:
        for label in labels:
            yield _work(plan, analysis, checkpoint, {free[0].name: array_at(plan, checkpoint, label)}, label)
    elif len(free) == 2:
        for label, one, other in _pairs(plan, analysis, checkpoint, labels):
            yield _work(plan, analysis, checkpoint, {free[0].name: one, free[1].name: other}, label)
    else:
        names = ", ".join(each.name for each in free)
        raise ConfigurationError(f"{analysis.technique}: bind all but two of {names} to data fields by `inputs`.")


def _pairs(
    plan: Plan, analysis: AnalysisSection, checkpoint: Checkpoint, labels: Sequence[str]
) -> Iterator[tuple[str, ArrayReference, ArrayReference]]:
    """Yield each pair of this run's sites; or each of its sites with each of another run's, under both names."""
    if analysis.other is None:
        for one, other in combinations(labels, 2):
            yield f"{one}~{other}", array_at(plan, checkpoint, one), array_at(plan, checkpoint, other)
        return
    run, step = analysis.other.run, analysis.other.step
    at = checkpoint if step == "same" else Checkpoint(_step_of(plan, run, step), None, "")
    shapes = _recorded(plan, run, at.step)
    for one, other in product(labels, site_labels(shapes, analysis.other.sites, f"{analysis.technique}.other")):
        when = "" if step == "same" else f" @{at.step}"
        yield f"{one}~{other} of {run}{when}", array_at(plan, checkpoint, one), array_at(plan, at, other, run)


def _n_cells(plan: Plan, analysis: AnalysisSection, n_labels: int) -> int:
    """Return how often a technique is applied at one checkpoint."""
    if len(unbound(analysis)) != 2:
        return n_labels
    if analysis.other is None:
        return n_labels * (n_labels - 1) // 2
    step = plan.steps[-1] if analysis.other.step == "same" else _step_of(plan, analysis.other.run, analysis.other.step)
    shapes = _recorded(plan, analysis.other.run, step)
    return n_labels * len(site_labels(shapes, analysis.other.sites, f"{analysis.technique}.other"))


def _step_of(plan: Plan, run: str, step: int | Literal["first", "last"]) -> int:
    """Return the step meant in another run: its own first or last."""
    there = ActivationStore(plan.store).steps(run)
    return min(chosen_steps([step], there)) if there else 0  # without any, `_recorded` says what is missing


def _recorded(plan: Plan, run: str, step: int) -> dict[str, tuple[int, ...]]:
    """Return the sites that another run recorded at a step, with the shape of one sample's activation."""
    store = ActivationStore(plan.store)
    found = {site: store.activations(run, step, site).shape[1:] for site in store.sites(run, step)}
    if not found:
        raise ConfigurationError(
            f"other: nothing of run {run!r} is recorded at step {step}. Recorded runs: {', '.join(store.runs())}. "
            "Record it in this store first: mechint collect ITS-CONFIG."
        )
    return found


def _sequence_work(plan: Plan, analysis: AnalysisSection) -> Iterator[Work]:
    chosen = [each for each in plan.checkpoints if each.step in chosen_steps(analysis.steps, plan.steps)]
    parameter = next(each for each in unbound(analysis) if each.shape == "sequence")
    for label in site_labels(plan.sites, analysis.sites, analysis.technique):
        sequence = ArraySequence(arrays=[array_at(plan, each, label) for each in chosen])
        steps = Literals(values=[each.step for each in chosen])
        yield _work(plan, analysis, None, {parameter.name: sequence, "step": steps}, label)


def _measure_work(plan: Plan, analysis: AnalysisSection) -> Work:
    steps = [step for step in plan.steps if step in chosen_steps(analysis.steps, plan.steps)]
    tables: dict[str, Input] = {
        name: Literals(values=stored_table(ActivationStore(plan.store), plan.config.run, source, steps))
        for name, source in analysis.inputs.items()
        if isinstance(source, list)
    }
    return _work(plan, analysis, None, tables | {"step": Literals(values=steps)}, "measures")


def _work(
    plan: Plan, analysis: AnalysisSection, checkpoint: Checkpoint | None, unbound: Mapping[str, Input], label: str
) -> Work:
    inputs = dict(unbound)
    for parameter in analysis.of.parameters:
        source = analysis.fields.get(parameter.name)
        if source is not None:
            dataset, _, name = source.partition(".")
            inputs[parameter.name] = plan.fields[dataset][name]
        elif parameter.shape == "model" and checkpoint is not None:
            inputs[parameter.name] = plan.model(checkpoint)
    return analysis.of.work(
        inputs,
        analysis.options(),
        store=plan.store,
        run=plan.config.run,
        name=f"{analysis.name}.{label}" if analysis.name else label,
        step=None if checkpoint is None else checkpoint.step,
    )


def array_at(plan: Plan, checkpoint: Checkpoint, label: str, run: str = "") -> ArrayReference:
    """Name the recorded activations of a site, or of one of its positions; of this run, or of another."""
    site, _, position = label.partition("@")
    run = run or plan.config.run
    stored = ActivationStore(plan.store).activations(run, checkpoint.step, site)
    return ArrayReference(
        store=plan.store,
        run=run,
        step=checkpoint.step,
        site=site,
        position=int(position) if position else None,
        digest=stored.digest,
    )
