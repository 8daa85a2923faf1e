"""A training run and what to ask of it, in one file that a person writes.

Every problem in the file is found at once and said in the file's own words, before anything runs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from flows.sections import (
    AnalysisSection,
    BrainSection,
    CircuitSection,
    CollectSection,
    DatasetSection,
    DictionarySection,
    Factory,
    GeometrySection,
    ModelSection,
    Name,
    NamesSection,
    Section,
)
from mechint_core.errors import ConfigurationError

AnySection = TypeVar("AnySection", bound=Section)


class RunSection(Section):
    """The whole file."""

    run: Name
    title: str = ""
    model: ModelSection
    checkpoints: Path | None = None
    """The folder of checkpoints: .safetensors, or weights that torch.load can read safely. None: the model as its
    factory makes it, with its pretrained weights, is the only checkpoint, at step 0."""
    datasets: dict[Name, DatasetSection]
    collect: CollectSection | None = None
    """May be left out where only circuits are asked for."""
    analyses: list[AnalysisSection] = Field(default_factory=list[AnalysisSection])
    dictionaries: list[DictionarySection] = Field(default_factory=list[DictionarySection])
    circuits: list[CircuitSection] = Field(default_factory=list[CircuitSection])
    brains: list[BrainSection] = Field(default_factory=list[BrainSection])
    geometry: list[GeometrySection] = Field(default_factory=list[GeometrySection])
    names: NamesSection = NamesSection()
    findings: Factory | None = None
    """`package.module:function` that opens the report with its own conclusions: StoredResults in, Findings out."""

    @property
    def dataset(self) -> str:
        """The data set that is recorded; without recording, the one that the first behaviour is of."""
        return self.collect.dataset if self.collect else self.circuits[0].clean.partition(".")[0]

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        problems = list(self._disagreements())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _disagreements(self) -> list[str]:
        found: list[str] = []
        if self.collect is None:
            if self.analyses or self.geometry or self.dictionaries or self.brains or not self.circuits:
                found.append("collect: is missing; only circuits can do without it")
        elif self.collect.dataset not in self.datasets:
            found.append(f"collect.dataset {self.collect.dataset!r} is not in datasets ({', '.join(self.datasets)})")
        for index, analysis in enumerate(self.analyses):
            for parameter, source in analysis.fields.items():
                found += self._field_problems(f"analyses.{index}.inputs.{parameter}", source)
        for index, section in enumerate(self.geometry):
            found += self._field_problems(f"geometry.{index}.label", section.label) if section.label else []
        for index, section in enumerate(self.dictionaries):
            found += self._field_problems(f"dictionaries.{index}.mask", section.mask) if section.mask else []
        for index, circuit in enumerate(self.circuits):
            found += self._circuit_problems(f"circuits.{index}", circuit)
        for kind, sections in (("circuits", self.circuits), ("brains", self.brains)):
            names = [each.name for each in sections]
            found += [f"{kind}: {name!r} is there twice" for name in set(names) if names.count(name) > 1]
        seen: set[tuple[str, ...]] = set()
        for index, analysis in enumerate(self.analyses):
            same = (analysis.technique, analysis.name or "", str(sorted(analysis.sites)), str(analysis.other))
            if same in seen:
                found.append(f"analyses.{index}: {analysis.technique} on these sites is there twice; give one a `name`")
            seen.add(same)
        return found

    def _field_problems(self, place: str, source: str) -> list[str]:
        if source.partition(".")[0] in self.datasets:
            return []
        return [f"{place}: {source!r} must be `dataset.field`; the datasets are {', '.join(self.datasets)}"]

    def _circuit_problems(self, place: str, circuit: CircuitSection) -> list[str]:
        problems = [
            problem
            for role, source in circuit.sources.items()
            for problem in self._field_problems(f"{place}.{role}", source)
        ]
        datasets = {source.partition(".")[0] for source in circuit.sources.values()}
        if len(datasets) > 1:
            problems.append(f"{place}: clean, corrupted and targets must be of one data set, not {', '.join(datasets)}")
        return problems


def configuration(given: RunSection | Path | str) -> RunSection:
    """Return a checked configuration: the one given, or the one in the file given."""
    return given if isinstance(given, RunSection) else load_configuration(Path(given))


def load_configuration(path: Path) -> RunSection:
    """Read a configuration file.

    Raises
    ------
    ConfigurationError
        If the file cannot be read, or has problems: all of them, each with its place.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as problem:
        raise ConfigurationError(f"the configuration {path} cannot be read: {problem.strerror}.") from problem
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise ConfigurationError(f"the configuration {path} is not YAML: {problem}") from problem
    return parse_configuration(content, source=str(path), folder=path.resolve().parent)


def parse_configuration(content: Any, *, source: str, folder: Path) -> RunSection:
    """Check `content`; paths in it are relative to `folder`."""
    if not isinstance(content, Mapping):
        raise ConfigurationError(f"{source} must hold sections (run, model, checkpoints, ...). Got {content!r:.80}.")
    try:
        config = RunSection.model_validate(content)
    except ValidationError as error:
        problems = [_in_words(each) for each in error.errors()]
        raise ConfigurationError(
            f"{source} has {len(problems)} problem{'s' * (len(problems) > 1)}:\n"
            + "\n".join(f"  - {p}" for p in problems)
        ) from None
    located = {
        "checkpoints": folder / config.checkpoints if config.checkpoints else None,
        "datasets": {name: _beside(each, "path", folder) for name, each in config.datasets.items()},
        "circuits": [_beside(each, "circuit", folder) for each in config.circuits],
        "brains": [
            each.model_copy(update={"recording": [folder / path for path in each.recording]}) for each in config.brains
        ],
    }
    return config.model_copy(update=located)


def _beside(section: AnySection, field: str, folder: Path) -> AnySection:
    """Return the section with its path relative to the configuration's folder."""
    path = getattr(section, field)
    return section.model_copy(update={field: folder / path}) if path else section


def _in_words(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"] if part != "function-after") or "the file"
    kind, given = error["type"], error.get("input")
    if kind == "extra_forbidden":
        return f"{place}: there is no such key"
    if kind == "missing":
        return f"{place}: is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    if kind == "string_pattern_mismatch" and "factory" in place:
        message = "must be `package.module:function`"
    elif kind == "string_pattern_mismatch":
        message = "must be letters, digits, dots, dashes and underscores"
    return f"{place}: {message}" + (f" (got {given!r:.60})" if isinstance(given, str | int | float) else "")
