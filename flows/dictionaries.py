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
from tasks.references import ArrayReference, Input, Literals, Work

Sources = dict[str, ArrayReference]


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
    default = AnalysisSection(technique="evaluate_dictionary")
    asked = [each for each in plan.config.analyses if of_dictionary(each)]
    if all(each.technique != default.technique for each in asked):
        asked = [default, *asked]
    return [
        _examination(plan, analysis, work)
        for work in works
        if work.is_done()
        for analysis in asked
        if any(fnmatchcase(work.label, pattern) for pattern in analysis.sites)
        and work.step in chosen_steps(analysis.steps, plan.steps)
        and _applies(analysis, work)
    ]


def comparison(plan: Plan, works: Sequence[DictionaryWork]) -> list[Work]:
    """List the frontier of L0 against FVU of each section that sweeps, over its trained and evaluated dictionaries."""
    technique = TECHNIQUES["sparsity_frontier"]
    found: list[Work] = []
    for section, label, step, group in _sweeps(plan, works):
        rows = [row for work in group if (row := _measures(plan, work)) is not None]
        if len(rows) >= 2:
            inputs: dict[str, Input] = {"measures": Literals(values=rows)}
            name = label if section.name == "default" else f"{label} ({section.name})"
            found.append(
                technique.work(inputs, technique.config(), store=plan.store, run=plan.config.run, name=name, step=step)
            )
    return found


def _section_works(plan: Plan, section: DictionarySection) -> Iterator[DictionaryWork]:
    for label, step, sources, recipe in _data(plan, section):
        for values in section.combinations():
            words = [section.name] * (section.name != "default") + [f"{name}={_word(v)}" for name, v in values.items()]
            config = section.options(values)
            yield DictionaryWork(
                store=plan.store,
                run=plan.config.run,
                step=step,
                label=f"{label} ({', '.join(words)})" if words else label,
                sources=sources,
                mask=_mask(plan, section),
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


def _applies(analysis: AnalysisSection, work: DictionaryWork) -> bool:
    """Say whether a technique that reads one site can be asked of this dictionary."""
    reads, writes = work.recipe["reads"], work.recipe["writes"]
    takes_model = any(each.shape == "model" for each in analysis.of.parameters)
    return len(reads) == 1 and not (writes and takes_model)


def _examination(plan: Plan, analysis: AnalysisSection, work: DictionaryWork) -> Work:
    """Give a technique the dictionary, the activations it reads, what it writes, and the model, as it asks for them."""
    inputs: dict[str, Input] = {}
    checkpoint = next(each for each in plan.checkpoints if each.step == work.step)
    reads, writes = work.recipe["reads"], work.recipe["writes"]
    for parameter in analysis.of.parameters:
        source = analysis.inputs.get(parameter.name)
        if isinstance(source, str):
            dataset, _, name = source.partition(".")
            inputs[parameter.name] = plan.fields[dataset][name]
        elif parameter.shape == "dictionary":
            inputs[parameter.name] = work.reference()
        elif parameter.shape == "model":
            inputs[parameter.name] = plan.model(checkpoint)
        elif parameter.name == "activations":
            inputs[parameter.name] = work.sources[reads[0]]
        elif parameter.name == "target" and writes:
            inputs[parameter.name] = work.sources[writes]
        elif not parameter.optional:
            raise ConfigurationError(f"{analysis.technique}: bind {parameter.name} to a data field by `inputs`.")
    name = f"{analysis.name}.{work.label}" if analysis.name else work.label
    return analysis.of.work(
        inputs, analysis.options(), store=plan.store, run=plan.config.run, name=name, step=work.step
    )


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
