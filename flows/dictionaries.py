"""From the configuration's dictionaries to the work of training and examining them.

    site                       an autoencoder                         mlp.hidden
    site, writes               a transcoder                           mlp.read to mlp.write
    sites                      a crosscoder of several sites          attention+mlp.hidden
    site, across_steps         a crosscoder of several checkpoints    residual over steps
    site, across_runs          a crosscoder of several models         residual over runs

A name is added in brackets, and so are the values of a sweep: `mlp.hidden (wide, k=16)`.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from flows.analyses import of_dictionary
from flows.choices import chosen_steps, site_labels
from flows.plan import Checkpoint, Plan, array_at
from flows.sections import AnalysisSection, DictionarySection
from mechint_core.errors import ConfigurationError, NotFoundError
from mechint_core.features import Recipe
from mechint_core.store import ActivationStore, ResultKey, StoredResult
from tasks.catalogue import TECHNIQUES
from tasks.dictionaries import DictionaryWork, recipe_json
from tasks.references import ArrayReference, ArraySequence, DecoderReference, Input, Literals, Work

MOST_BYTES = 512 * 2**20
"""Activations that a technique may read into memory; of more, it gets evenly spaced rows."""
ALWAYS = ("evaluate_dictionary", "latent_sharing")
"""Asked of every dictionary of a kind that they take."""


def dictionary_works(plan: Plan) -> list[DictionaryWork]:
    """List the dictionaries to train, done or not.

    Raises
    ------
    ConfigurationError
        If a section names a site that is not recorded, or two dictionaries would have one name.
    """
    works = [work for section in plan.config.dictionaries for work in _section_works(plan, section)]
    seen: set[tuple[int, str]] = set()
    for work in works:
        if (work.step, work.label) in seen:
            raise ConfigurationError(f"dictionaries: {work.label!r} is there twice; give one a `name`.")
        seen.add((work.step, work.label))
    return works


def check_dictionaries(plan: Plan) -> None:
    """Find what is wrong with the dictionaries asked for, before anything is recorded or trained.

    Raises
    ------
    ConfigurationError
        With every problem: sites, steps, masks and configs that do not fit, analyses of dictionaries that match none.
    """
    problems: list[str] = []
    labels: set[str] = set()
    for index, section in enumerate(plan.config.dictionaries):
        try:
            labels |= _check_section(plan, section)
        except ConfigurationError as problem:
            problems.append(f"dictionaries.{index}: {problem}")
    for index, analysis in enumerate(plan.analyses):
        if of_dictionary(analysis) and not problems:
            missing = [each for each in _patterns(analysis) if not any(fnmatchcase(label, each) for label in labels)]
            if missing:
                known = ", ".join(sorted(labels)) or "none"
                problems.append(f"analyses.{index}: no dictionary matches {', '.join(missing)}. There are: {known}.")
    if problems:
        raise ConfigurationError("the configuration has problems:\n" + "\n".join(f"  - {each}" for each in problems))


def _check_section(plan: Plan, section: DictionarySection) -> set[str]:
    """Return the names of a section's dictionaries, after building each of them once."""
    names: set[str] = set()
    for item in _items(plan, section):
        widths = {name: plan.sites[place.site][-1] for name, place in item.places.items()}
        vectors = {(plan.n_samples, *place.positions(plan)) for place in item.places.values()}
        kept = _mask(plan, section)
        if kept is not None and vectors != {kept.stored().shape}:
            raise ConfigurationError(f"mask must have the axes of {item.label}, {vectors}. Got {kept.stored().shape}.")
        for values in section.combinations():
            dataclasses.replace(item.recipe, config=section.options(values)).job(widths)
            names.add(_name(section, item, values))
    return names


def count_dictionaries(plan: Plan) -> int:
    """Return how many dictionaries the configuration asks for."""
    return sum(len(section.combinations()) for section in plan.config.dictionaries for _ in _items(plan, section))


def passes(works: Iterable[DictionaryWork]) -> list[list[DictionaryWork]]:
    """Group the dictionaries that are trained on the same vectors in the same order."""
    groups: dict[str, list[DictionaryWork]] = {}
    for work in works:
        groups.setdefault(work.pass_key, []).append(work)
    return list(groups.values())


def examinations(plan: Plan, works: Iterable[DictionaryWork]) -> list[Work]:
    """List what is to be asked of every trained dictionary: its quality, and the analyses that take a dictionary."""
    asked = [each for each in plan.analyses if of_dictionary(each)]
    named = {each.technique for each in asked}
    asked = [*(AnalysisSection(technique=name) for name in ALWAYS if name not in named), *asked]
    return [
        _examination(plan, analysis, work)
        for work in works
        if work.is_done()
        for analysis in asked
        if any(fnmatchcase(work.label, pattern) for pattern in _patterns(analysis))
        and work.step in chosen_steps(analysis.steps, plan.steps)
        and _applies(analysis, work)
    ]


def comparison(plan: Plan, works: Sequence[DictionaryWork]) -> list[Work]:
    """List what compares the trained dictionaries of each sweep: the price of sparsity, and stability over seeds."""
    found: list[Work] = []
    for section, label, step, group in _sweeps(plan, works):
        name = label if section.name == "default" else f"{label} ({section.name})"
        done = [work for work in group if work.is_done()]
        rows = [row for work in done if (row := _measures(plan, work)) is not None]
        if len(rows) >= 2:
            found.append(_comparison(plan, "sparsity_frontier", {"measures": Literals(values=rows)}, name, step))
        for words, same in _seeds(section, done):
            decoders = ArraySequence(arrays=[DecoderReference(dictionary=work.reference()) for work in same])
            title = f"{label} ({words})" if words else name
            found.append(_comparison(plan, "dictionary_stability", {"decoders": decoders}, title, step))
    return found


def _comparison(plan: Plan, technique: str, inputs: Mapping[str, Input], name: str, step: int) -> Work:
    of = TECHNIQUES[technique]
    return of.work(inputs, of.config(), store=plan.store, run=plan.config.run, name=name, step=step)


def _seeds(section: DictionarySection, works: Sequence[DictionaryWork]) -> Iterator[tuple[str, list[DictionaryWork]]]:
    """Yield the dictionaries of a sweep that differ in their seed alone, and what they have in common."""
    others = [name for name in section.sweep if name != "seed"]
    groups: dict[str, list[DictionaryWork]] = {}
    for work in works:
        config = work.recipe["config"]
        groups.setdefault(", ".join(f"{name}={_word(config[name])}" for name in others), []).append(work)
    yield from ((words, same) for words, same in groups.items() if "seed" in section.sweep and len(same) >= 2)


class Place(NamedTuple):
    """A site, or a position of it, at a checkpoint of a run."""

    run: str
    at: Checkpoint
    label: str

    @property
    def site(self) -> str:
        """The recorded site."""
        return self.label.partition("@")[0]

    def positions(self, plan: Plan) -> tuple[int, ...]:
        """Return how many positions there are, if any."""
        return () if "@" in self.label else plan.sites[self.site][:-1]

    def array(self, plan: Plan) -> ArrayReference:
        """Name the recorded activations, in this run or in another one of this store."""
        here = array_at(plan, self.at, self.label)
        if self.run == plan.config.run:
            return here
        digest = ActivationStore(plan.store).activations(self.run, self.at.step, here.site).digest
        return here.model_copy(update={"run": self.run, "digest": digest})


class Item(NamedTuple):
    """What a dictionary is trained on, for any of the configs of a sweep."""

    label: str
    step: int
    places: Mapping[str, Place]
    recipe: Recipe


def _section_works(plan: Plan, section: DictionarySection) -> Iterator[DictionaryWork]:
    for item in _items(plan, section):
        yield from _item_works(plan, section, item)


def _item_works(plan: Plan, section: DictionarySection, item: Item) -> Iterator[DictionaryWork]:
    """Yield the dictionaries of a sweep over the same data, whose activations must be recorded."""
    kept = _mask(plan, section)
    sources = {name: place.array(plan).model_copy(update={"kept": kept}) for name, place in item.places.items()}
    for values in section.combinations():
        yield DictionaryWork(
            store=plan.store,
            run=plan.config.run,
            step=item.step,
            label=_name(section, item, values),
            sources=sources,
            recipe=recipe_json(dataclasses.replace(item.recipe, config=section.options(values))),
        )


def _name(section: DictionarySection, item: Item, values: Mapping[str, Any]) -> str:
    words = [section.name] * (section.name != "default") + [f"{name}={_word(value)}" for name, value in values.items()]
    return f"{item.label} ({', '.join(words)})" if words else item.label


def _items(plan: Plan, section: DictionarySection) -> Iterator[Item]:
    """Yield what each dictionary of a section reads and writes."""
    chosen = [each for each in plan.checkpoints if each.step in chosen_steps(section.at_steps, plan.steps)]
    labels = site_labels(plan.sites, section.sites or [section.site], "dictionaries", whole=True)
    run = plan.config.run
    if section.across_steps and len(chosen) < 2:
        raise ConfigurationError(f"across_steps needs two checkpoints or more. Got {len(chosen)}.")
    if section.across_steps:
        for label in labels:
            places = {f"{label} at {at.step}": Place(run, at, label) for at in chosen}
            yield Item(f"{label} over steps", chosen[-1].step, places, Recipe(reads=tuple(places)))
        return
    for at in chosen:
        if section.sites:
            places = {label: Place(run, at, label) for label in labels}
            yield Item("+".join(labels), at.step, places, Recipe(reads=tuple(labels)))
            continue
        for label in labels:
            if section.across_runs:
                places = {f"{label} of {each}": Place(each, at, label) for each in (run, *section.across_runs)}
                yield Item(f"{label} over runs", at.step, places, Recipe(reads=tuple(places)))
            elif section.writes:
                written = _written(plan, section)
                recipe = Recipe(reads=(label,), writes=written, skip=section.skip)
                places = {each: Place(run, at, each) for each in (label, written)}
                yield Item(f"{label} to {written}", at.step, places, recipe)
            else:
                yield Item(label, at.step, {label: Place(run, at, label)}, Recipe(reads=(label,)))


def _written(plan: Plan, section: DictionarySection) -> str:
    found = site_labels(plan.sites, [section.writes], "dictionaries", whole=True)
    if len(found) != 1:
        raise ConfigurationError(f"writes must match one site. Got {section.writes!r}, which is {', '.join(found)}.")
    return found[0]


def _mask(plan: Plan, section: DictionarySection) -> ArrayReference | None:
    if not section.mask:
        return None
    dataset, _, field = section.mask.partition(".")
    if field not in plan.fields[dataset]:
        raise ConfigurationError(
            f"dictionaries: mask {section.mask!r} must be a field of {dataset}: {', '.join(plan.fields[dataset])}."
        )
    return plan.fields[dataset][field]


def _word(value: Any) -> str:
    """Return a value of a sweep in the characters that a name may have."""
    return "-".join(str(each) for each in value) if isinstance(value, list | tuple) else str(value)


def _patterns(analysis: AnalysisSection) -> Sequence[str]:
    """Return the names of dictionaries that an analysis means."""
    named = [
        analysis.inputs[each.name] for each in analysis.of.parameters if each.kind and each.name in analysis.inputs
    ]
    return [each for each in named if isinstance(each, str)] or analysis.sites


def _applies(analysis: AnalysisSection, work: DictionaryWork) -> bool:
    """Say whether a technique takes this dictionary: its kind, and one site where it needs activations or a model."""
    kind, single = work.what().kind, len(work.recipe["reads"]) == 1
    for parameter in analysis.of.parameters:
        if parameter.kind is not None and not issubclass(kind, parameter.kind):
            return False
        if parameter.name == "activations" and not single:
            return False
        if parameter.shape == "model" and (not single or work.recipe["writes"]):
            return False
    return True


def _examination(plan: Plan, analysis: AnalysisSection, work: DictionaryWork) -> Work:
    """Give a technique the dictionary, the activations it reads, what it writes, and the model, as it asks for them."""
    inputs: dict[str, Input] = {}
    checkpoint = next(each for each in plan.checkpoints if each.step == work.step)
    reads, writes = work.recipe["reads"], work.recipe["writes"]
    for parameter in analysis.of.parameters:
        source = analysis.fields.get(parameter.name)
        if source is not None:
            dataset, _, name = source.partition(".")
            inputs[parameter.name] = plan.fields[dataset][name]
        elif parameter.shape == "dictionary":
            inputs[parameter.name] = work.reference()
        elif parameter.shape == "model":
            inputs[parameter.name] = plan.model(checkpoint)
        elif parameter.name == "activations":
            inputs[parameter.name] = _read(analysis, work.sources[reads[0]])
        elif parameter.name == "mask":
            inputs |= {"mask": kept} if (kept := work.sources[reads[0]].kept) else {}
        elif parameter.name == "target" and writes:
            inputs[parameter.name] = work.sources[writes]
        elif not parameter.optional:
            raise ConfigurationError(f"{analysis.technique}: bind {parameter.name} to a data field by `inputs`.")
    name = f"{analysis.name}.{work.label}" if analysis.name else work.label
    return analysis.of.work(
        _bounded(analysis, inputs), analysis.options(), store=plan.store, run=plan.config.run, name=name, step=work.step
    )


def _read(analysis: AnalysisSection, source: ArrayReference) -> ArrayReference:
    """Name what a technique reads: with the padding, where it takes a mask; else without, which loses the samples."""
    takes = {each.name for each in analysis.of.parameters}
    if source.kept is None or "mask" in takes:
        return source.model_copy(update={"kept": None})
    if analysis.inputs:
        raise ConfigurationError(
            f"{analysis.technique} takes no mask, so it cannot relate {', '.join(analysis.inputs)} to the vectors of a "
            "dictionary with one. Train it on a single position (`site@0`), or leave this analysis out."
        )
    return source


def _bounded(analysis: AnalysisSection, inputs: Mapping[str, Input]) -> dict[str, Input]:
    """Take fewer rows of everything that has rows, where a technique would read more activations than fit."""
    whole = {each.name for each in analysis.of.parameters if each.shape == "array"}
    read = inputs.get("activations")
    if not isinstance(read, ArrayReference) or "activations" not in whole:
        return dict(inputs)
    rows = read.open()
    every = -(-math.prod(rows.shape) * rows.dtype.itemsize // MOST_BYTES)
    return {
        name: each.model_copy(update={"every": every}) if isinstance(each, ArrayReference) else each
        for name, each in inputs.items()
    }


def _sweeps(
    plan: Plan, works: Sequence[DictionaryWork]
) -> Iterator[tuple[DictionarySection, str, int, list[DictionaryWork]]]:
    """Yield the dictionaries of each sweep, by what they read."""
    known = {(work.step, work.label): work for work in works}
    for section in plan.config.dictionaries:
        if not section.sweep:
            continue
        for item in _items(plan, section):
            own = [known[each.step, each.label] for each in _item_works(plan, section, item)]
            yield section, item.label, item.step, own


def _measures(plan: Plan, work: DictionaryWork) -> list[float] | None:
    """Return L0, FVU, loss recovered and size of an evaluated dictionary; None if it has no evaluation."""
    evaluated = _stored(plan, "evaluate_dictionary", work)
    if evaluated is None:
        return None
    recovered = _stored(plan, "loss_recovered", work)
    numbers: Mapping[str, Any] = recovered.estimates if recovered else {}
    return [
        evaluated.estimates["l0"].value,
        evaluated.estimates["fvu"].value,
        numbers["recovered"].value if "recovered" in numbers else float("nan"),
        float(evaluated.flags["n_latents"]),
    ]


def _stored(plan: Plan, technique: str, work: DictionaryWork) -> StoredResult | None:
    key = ResultKey(run=work.run, technique=technique, name=work.label, step=work.step)
    try:
        return ActivationStore(plan.store).result(key)
    except NotFoundError:
        return None
