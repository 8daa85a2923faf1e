"""From the configuration's dictionaries to the work of training and examining them.

    site                       an autoencoder                         mlp.hidden
    site, writes               a transcoder                           mlp.read to mlp.write
    sites                      a crosscoder of several sites          attention+mlp.hidden
    site, across_steps         a crosscoder of several checkpoints    residual over steps
    site, across_runs          a crosscoder of several models         residual over runs

A name is added in brackets, and so are the values of a sweep: `mlp.hidden (wide, k=16)`.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from flows.configuration import AnalysisSection, DictionarySection
from flows.plan import Checkpoint, Plan, array_at, chosen_steps, of_dictionary, site_labels
from mechint_core.errors import ConfigurationError, NotFoundError
from mechint_core.features import Recipe
from mechint_core.store import ActivationStore, ResultKey, StoredResult
from tasks.catalogue import TECHNIQUES
from tasks.dictionaries import DictionaryWork, recipe_json
from tasks.references import ArrayReference, ArraySequence, DecoderReference, Input, Literals, Work

Sources = dict[str, ArrayReference]

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


def count_dictionaries(plan: Plan) -> int:
    """Return how many dictionaries the configuration asks for, before their activations are recorded."""
    count = 0
    for section in plan.config.dictionaries:
        sites = 1 if section.sites else len(site_labels(plan, [section.site], "dictionaries", whole=True))
        steps = 1 if section.across_steps else len(chosen_steps(section.steps, plan.steps))
        count += sites * steps * len(section.combinations())
    return count


def passes(works: Iterable[DictionaryWork]) -> list[list[DictionaryWork]]:
    """Group the dictionaries that are trained on the same vectors in the same order."""
    groups: dict[str, list[DictionaryWork]] = {}
    for work in works:
        groups.setdefault(work.pass_key, []).append(work)
    return list(groups.values())


def examinations(plan: Plan, works: Iterable[DictionaryWork]) -> list[Work]:
    """List what is to be asked of every trained dictionary: its quality, and the analyses that take a dictionary."""
    asked = [each for each in plan.config.analyses if of_dictionary(each)]
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


def _section_works(plan: Plan, section: DictionarySection) -> Iterator[DictionaryWork]:
    kept = _mask(plan, section)
    for label, step, sources, recipe in _data(plan, section):
        for values in section.combinations():
            words = [section.name] * (section.name != "default") + [f"{name}={_word(v)}" for name, v in values.items()]
            config = section.options(values)
            yield DictionaryWork(
                store=plan.store,
                run=plan.config.run,
                step=step,
                label=f"{label} ({', '.join(words)})" if words else label,
                sources={name: each.model_copy(update={"kept": kept}) for name, each in sources.items()},
                recipe=recipe_json(dataclasses.replace(recipe, config=config)),
            )


def _data(plan: Plan, section: DictionarySection) -> Iterator[tuple[str, int, Sources, Recipe]]:
    """Yield what each dictionary of a section reads, for any of its configs."""
    chosen = [each for each in plan.checkpoints if each.step in chosen_steps(section.steps, plan.steps)]
    labels = site_labels(plan, section.sites or [section.site], "dictionaries", whole=True)
    if section.sites:
        for at in chosen:
            yield "+".join(labels), at.step, _named(plan, at, labels), Recipe(reads=tuple(labels))
        return
    for label in labels:
        if section.across_steps:
            across = {f"{label} at {at.step}": array_at(plan, at, label) for at in chosen}
            yield f"{label} over steps", chosen[-1].step, across, Recipe(reads=tuple(across))
            continue
        for at in chosen:
            if section.across_runs:
                across = {f"{label} of {plan.config.run}": array_at(plan, at, label)}
                across |= {f"{label} of {run}": _of_run(plan, run, at, label) for run in section.across_runs}
                yield f"{label} over runs", at.step, across, Recipe(reads=tuple(across))
            elif section.writes:
                (written,) = site_labels(plan, [section.writes], "dictionaries", whole=True)[:1]
                recipe = Recipe(reads=(label,), writes=written, skip=section.skip)
                yield f"{label} to {written}", at.step, _named(plan, at, [label, written]), recipe
            else:
                yield label, at.step, _named(plan, at, [label]), Recipe(reads=(label,))


def _named(plan: Plan, at: Checkpoint, labels: Sequence[str]) -> Sources:
    return {label: array_at(plan, at, label) for label in labels}


def _of_run(plan: Plan, run: str, at: Checkpoint, label: str) -> ArrayReference:
    """Name the same site in another run of this store."""
    here = array_at(plan, at, label)
    digest = ActivationStore(plan.store).activations(run, at.step, here.site).digest
    return here.model_copy(update={"run": run, "digest": digest})


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
        inputs, analysis.options(), store=plan.store, run=plan.config.run, name=name, step=work.step
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


def _sweeps(
    plan: Plan, works: Sequence[DictionaryWork]
) -> Iterator[tuple[DictionarySection, str, int, list[DictionaryWork]]]:
    """Yield the dictionaries of each sweep, by what they read."""
    known = {(work.step, work.label): work for work in works}
    for section in plan.config.dictionaries:
        if not section.sweep:
            continue
        for label, step, _, _ in _data(plan, section):
            only = section.model_copy(update={"sweep": section.sweep})
            own = [each for each in _section_works(plan, only) if each.step == step and each.label.startswith(label)]
            yield section, label, step, [known[each.step, each.label] for each in own]


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
