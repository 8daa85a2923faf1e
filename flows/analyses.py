"""What kind of work an analysis is, read from its technique's parameters, and whether two are one and the same."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

from flows.choices import chosen_steps, site_labels
from flows.sections import AnalysisSection
from mechint_core.errors import ConfigurationError
from tasks._technique import Parameter


def unbound(analysis: AnalysisSection) -> list[Parameter]:
    """Parameters that sites must fill."""
    return [
        each
        for each in analysis.of.parameters
        if each.name not in analysis.inputs
        and each.shape not in ("model", "dictionary")
        and not each.optional
        and each.name != "step"
    ]


def of_dictionary(analysis: AnalysisSection) -> bool:
    """Say whether the technique is applied to trained dictionaries: because it must be, or because one is named."""
    return any(
        each.shape == "dictionary" and (not each.optional or each.name in analysis.inputs)
        for each in analysis.of.parameters
    )


def is_over_training(analysis: AnalysisSection) -> bool:
    """Say whether the technique is given all checkpoints at once."""
    return is_of_measures(analysis) or any(each.shape == "sequence" for each in analysis.of.parameters)


def is_of_measures(analysis: AnalysisSection) -> bool:
    """Say whether the technique is given tables of stored numbers."""
    return any(isinstance(source, list) for source in analysis.inputs.values())


def check_asked_once(
    analyses: Sequence[AnalysisSection], sites: Mapping[str, tuple[int, ...]], steps: Sequence[int]
) -> None:
    """Refuse two analyses that would store their answers in one place, and make them again in turn."""
    asked: dict[tuple[str, str, int | None], int] = {}
    for index, analysis in enumerate(analyses):
        for place in () if of_dictionary(analysis) else _places(analysis, sites, steps):
            if asked.setdefault(place, index) != index:
                technique, name, step = place
                when = "" if step is None else f" at step {step}"
                raise ConfigurationError(
                    f"{technique} of {name}{when} is there twice, under `analyses` or `geometry`: give one a `name`."
                )


def _places(
    analysis: AnalysisSection, sites: Mapping[str, tuple[int, ...]], all_steps: Sequence[int]
) -> Iterator[tuple[str, str, int | None]]:
    """Yield where an analysis stores its answers, as far as two could meet: technique, name and step."""
    n_systems = len(unbound(analysis))
    labels = site_labels(sites, analysis.sites, analysis.technique) if n_systems else ["the model"]
    if is_of_measures(analysis):
        labels = ["measures"]
    elif n_systems == 2:
        other = f" of {analysis.other.run} @{analysis.other.step}" if analysis.other else ""
        labels = [f"{one}{other}" for one in labels] if other else [f"{a}~{b}" for a, b in combinations(labels, 2)]
    steps = [None] if is_over_training(analysis) else sorted(chosen_steps(analysis.steps, all_steps))
    for label, step in product(labels, steps):
        yield analysis.technique, f"{analysis.name}.{label}" if analysis.name else label, step
