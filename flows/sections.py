"""The sections of a configuration: what each may hold, and what is wrong with one by itself."""

import difflib
import inspect
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mechint_core.errors import ConfigurationError
from mechint_core.features import SparseAutoencoderConfig
from tasks._technique import Technique, from_json
from tasks.catalogue import TECHNIQUES

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Factory = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Steps = list[int | Literal["first", "last"]]
DESCRIBING = ("intrinsic_dimension", "persistent_homology", "geodesic_distances")
"""The techniques that describe the geometry of one site: at each checkpoint, and then through training."""
ON_REQUEST = ("curvature", "graph_ricci_curvature")
"""Those that do so only where they are named: a cloud without a clear dimension has no curvature."""


class Section(BaseModel):
    """Base of all sections: a misspelt key is a problem, not a silence."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSection(Section):
    """Who builds the network."""

    factory: Factory
    """`package.module:function` that returns a torch.nn.Module."""
    arguments: dict[str, Any] = {}


class DatasetSection(Section):
    """Where inputs and labels come from: a function that returns named arrays, or an .npz file."""

    factory: Factory | None = None
    arguments: dict[str, Any] = {}
    path: Path | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.factory is None) == (self.path is None):
            raise ValueError("must have either `factory` or `path`")
        return self


class CollectSection(Section):
    """What to record."""

    dataset: Name
    inputs: list[str] | dict[str, str]
    """Fields passed to the model in this order; or field: keyword of its forward."""
    sites: Annotated[list[str], Field(min_length=1)]
    """Module names; `*` and `?` match."""
    batch_size: Annotated[int, Field(ge=1)] = 1024
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    device: str = "auto"


class OtherSection(Section):
    """Another run of the same store on the same samples: another seed, another model, another moment of training."""

    run: Name
    step: int | Literal["same", "first", "last"] = "last"
    """Its checkpoint; `same`: the step that this run is at."""
    sites: list[str] = ["*"]
    """Its recorded sites."""


class AnalysisSection(Section):
    """One technique, where to apply it, and what else it is given."""

    technique: str
    sites: list[str] = ["*"]
    """Recorded sites; `*` matches; `site@position` takes one position of a sequence. Of a technique that takes a
    dictionary: names of dictionaries."""
    inputs: dict[str, str | list[str]] = {}
    """Parameter: `dataset.field`, or a list of stored numbers `technique/name:scalar` over the checkpoints; of a
    dictionary that may be left out: names of trained dictionaries."""
    other: OtherSection | None = None
    """Of a technique that compares two systems: compare this run's sites with those of another run, not in pairs."""
    config: dict[str, Any] = {}
    steps: Steps | None = None
    """Checkpoints to apply it to; all, if left out."""
    name: Name | None = None
    """Tells two analyses with the same technique and sites apart."""

    @field_validator("technique")
    @classmethod
    def _known(cls, technique: str) -> str:
        if technique not in TECHNIQUES:
            raise ValueError(f"{technique!r} is not a technique{nearest(technique, TECHNIQUES)}")
        return technique

    @model_validator(mode="after")
    def _fits(self) -> Self:
        technique = TECHNIQUES[self.technique]
        known = {each.name for each in technique.parameters}
        for name in self.inputs.keys() - known:
            raise ValueError(f"{self.technique} has no input {name!r}{nearest(name, known)}")
        systems = [each for each in technique.parameters if each.shape in ("array", "rows") and not each.optional]
        if self.other is not None and len([each for each in systems if each.name not in self.inputs]) != 2:
            raise ValueError(f"{self.technique} does not compare two systems, so it has no `other`")
        check_options(self.technique, technique.config, self.config)
        return self

    @property
    def fields(self) -> dict[str, str]:
        """The parameters that are bound to a field of a data set."""
        shapes = {each.name: each.shape for each in self.of.parameters}
        return {
            name: source
            for name, source in self.inputs.items()
            if isinstance(source, str) and shapes[name] != "dictionary"
        }

    @property
    def of(self) -> Technique:
        """The technique."""
        return TECHNIQUES[self.technique]

    def options(self) -> Any:
        """Return the technique's frozen config."""
        return from_json(TECHNIQUES[self.technique].config, self.config)


class DictionarySection(Section):
    """Sparse dictionaries to train: one, or one for every combination of a sweep at every site that matches."""

    site: str = ""
    """An autoencoder of this site, or one of each that matches. `site@position` takes one position, else every
    position is a vector."""
    sites: list[str] = []
    """In place of `site`: one crosscoder of these sites together."""
    writes: str = ""
    """Make a transcoder, which writes this site from `site`."""
    skip: bool = False
    """Give the transcoder a linear path beside its latents."""
    across_steps: bool = False
    """One crosscoder of `site` over all of `steps`, in place of a dictionary for each."""
    across_runs: list[Name] = []
    """One crosscoder of `site` in this run and the same site in these runs of the same store."""
    mask: str = ""
    """`dataset.field` with (sample, position): the vectors that count; the others are padding."""
    steps: Steps | None = None
    """Checkpoints: the last, if left out; all of them `across_steps`."""
    config: dict[str, Any] = {}
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Option: the values to try. Every combination is a dictionary; all share one pass over the data."""
    name: Name = "default"
    """Tells two dictionaries of one site apart."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if bool(self.site) == bool(self.sites):
            raise ValueError("must have either `site` or `sites`")
        if self.sites and (self.writes or self.across_steps or self.across_runs):
            raise ValueError("`sites` makes a crosscoder of one step of this run: leave out writes and across_...")
        if self.writes and (self.across_steps or self.across_runs):
            raise ValueError("a transcoder reads one site: leave out across_steps and across_runs")
        for values in self.combinations():
            check_options("dictionary", SparseAutoencoderConfig, self.config | values)
        return self

    @property
    def at_steps(self) -> Steps | None:
        """The checkpoints meant; None: all."""
        return self.steps if self.steps is not None or self.across_steps else ["last"]

    def combinations(self) -> list[dict[str, Any]]:
        """Return the options of each dictionary of the sweep; one without any, if there is none."""
        return [dict(zip(self.sweep, values, strict=True)) for values in product(*self.sweep.values())]

    def options(self, values: Mapping[str, Any]) -> SparseAutoencoderConfig:
        """Return the frozen config of one of them."""
        return from_json(SparseAutoencoderConfig, {**self.config, **values})


class CorruptionSection(Section):
    """How corrupted inputs are made, where the data has none: from another sample with another answer."""

    positions: list[int] = []
    """Take only these positions of the other sample; all of it, if left out."""
    n_pairs: Annotated[int, Field(ge=8)] = 512
    """At most so many pairs are made."""
    seed: int = 0
    """Chooses the samples."""


class CircuitSection(Section):
    """A behaviour, and how to look for the circuit that implements it."""

    name: Name
    clean: str = ""
    """`dataset.field`: prompts that have the right answer; or a data set's inputs, with `corruption`."""
    corrupted: str = ""
    """`dataset.field`: the same with what matters changed, row by row."""
    corruption: CorruptionSection | None = None
    """Make the corrupted prompts instead."""
    target: str = ""
    """`dataset.field`: the class that answers the clean prompt."""
    corrupted_target: str = ""
    """`dataset.field`: the class that answers the corrupted prompt. Made with the corrupted prompts, where possible."""
    method: Literal["edge_attribution", "edge_patching", "acdc"] = "edge_attribution"
    """How edges are found; what was found is verified exactly, whatever the method."""
    circuit: Path | None = None
    """A saved circuit to verify, in place of finding one."""
    granularity: Literal["block", "head", "qkv"] = "head"
    """Nodes: attention layers and MLPs; heads and MLPs; the query, key and value inputs of heads apart."""
    metric: str = "logit_difference"
    """How an answer is scored: see docs/how-to/find-a-circuit.md."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the pairs that no discovery sees, on which the circuit is judged."""
    seed: int = 0
    """Chooses the pairs that are held out."""
    faithfulness: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """A circuit is the fewest edges that restore this share of the effect on the discovery pairs; not for acdc, which
    has its own rule, and not with `n_edges` or `threshold` among the method's options."""
    scan: list[Literal["site", "head", "position", "unit"]] = ["site", "head"]
    """What is patched and attributed first, part by part, to see where the answer is made. Heads are left out at
    granularity block; an empty list scans nothing."""
    steps: Steps | None = None
    """Checkpoints: the last, if left out. With several, the last one's circuit is judged at all of them: when did it
    form?"""
    options: dict[str, dict[str, Any]] = {}
    """Technique: its own options."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.clean or bool(self.corrupted) == (self.corruption is not None):
            raise ValueError("must have `clean`, and either `corrupted` or `corruption`")
        if self.circuit and (self.at_steps != ["last"] and len(self.at_steps or []) != 1):
            raise ValueError("a saved `circuit` is verified at one step")
        check_technique_options(self.options)
        return self

    @property
    def at_steps(self) -> Steps | None:
        """The checkpoints meant."""
        return self.steps if self.steps is not None else ["last"]

    @property
    def sources(self) -> dict[str, str]:
        """What the pairs are made of: role -> `dataset.field`."""
        roles = ("clean", "corrupted", "target", "corrupted_target")
        return {role: getattr(self, role) for role in roles if getattr(self, role)}


class BrainSection(Section):
    """Recordings of brains that answered the same stimuli, and how to compare the model with them."""

    name: Name
    recording: list[Path] = []
    """Files, one or more: npy, npz, MAT, HDF5, NWB, CSV or a Zarr folder. See docs/how-to/compare-to-a-brain.md."""
    factory: Factory | None = None
    """In place of files: a function that returns a mechint_core.recordings.Recording."""
    arguments: dict[str, Any] = {}
    fields: dict[str, str] = {}
    """Ours -> the file's name of a field, where it cannot be guessed."""
    axes: list[str] = []
    """What each axis of the responses is, where the file does not tell: sample, time, channel, ..."""
    bad_channels: Literal["refuse", "drop", "keep"] = "refuse"
    """What to do with channels that are constant, or miss what others of their subject have."""
    window: tuple[float, float] | None = None
    """NWB: seconds from the start of each trial. Left out: whole trials."""
    step: Annotated[float, Field(gt=0)] | None = None
    """NWB: seconds of one time step."""
    subjects: list[str] = []
    """One name per file, where files do not tell their subjects apart."""
    stimuli: str = ""
    """`dataset.field`: which condition each sample of the recorded data set is. Left out: its row number."""
    regions: list[str] = []
    """Parts of the brain; all, if left out. `*` matches."""
    windows: list[tuple[float, float]] = []
    """Seconds from and to: the mean response in each window. Left out: every time step by itself."""
    sites: list[str] = ["*"]
    """Recorded sites; `*` matches; `site@position` takes one position of a sequence."""
    measures: Annotated[list[Literal["rsa", "encoding"]], Field(min_length=1)] = ["rsa", "encoding"]
    """How alike: by dissimilarities of conditions, or by predicting every channel."""
    steps: Steps | None = None
    """Checkpoints to compare; all, if left out."""
    options: dict[str, dict[str, Any]] = {}
    """Technique: its own options."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if bool(self.recording) == (self.factory is not None):
            raise ValueError("must have either `recording` or `factory`")
        if self.subjects and len(self.subjects) != len(self.recording):
            raise ValueError(f"subjects must name each of {len(self.recording)} files, got {len(self.subjects)}")
        for start, end in self.windows:
            if not start < end:
                raise ValueError(f"windows: from must be below to, got {start} to {end}")
        check_technique_options(self.options)
        return self


class GeometrySection(Section):
    """The shape of what sites represent: which of the describing techniques to apply, at every site and checkpoint."""

    sites: list[str] = ["*"]
    """Recorded sites; `*` matches; `site@position` takes one position of a sequence."""
    label: str = ""
    """`dataset.field`: a variable that each sample has; the clouds of persistent homology are its values' means."""
    techniques: Annotated[list[str], Field(min_length=1)] = list(DESCRIBING)
    """Which of the describing techniques; those that fit any cloud, if left out."""
    steps: Steps | None = None
    """Checkpoints; all, if left out. With several, each site is also followed through training."""
    options: dict[str, dict[str, Any]] = {}
    """Technique: its own options."""
    name: Name | None = None
    """Tells two descriptions of the same sites apart."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for technique in self.techniques:
            if technique not in (known := (*DESCRIBING, *ON_REQUEST)):
                raise ValueError(f"{technique!r} describes no geometry{nearest(technique, known)}")
        check_technique_options(self.options)
        return self


class NamesSection(Section):
    """Words for numbers on the pages of dictionaries: functions that return a sequence of texts."""

    vocabulary: Factory | None = None
    """The text of every token."""
    samples: Factory | None = None
    """What is known of each sample: its text, or its label."""
    classes: Factory | None = None
    """The model's outputs."""


def check_technique_options(given: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError if a technique's name or one of its options is unknown."""
    for technique, options in given.items():
        if technique not in TECHNIQUES:
            raise ValueError(f"options: {technique!r} is not a technique{nearest(technique, TECHNIQUES)}")
        check_options(technique, TECHNIQUES[technique].config, options)


def check_options(name: str, config: type[Any], given: Mapping[str, Any]) -> None:
    """Raise ValueError, which pydantic collects, if `given` does not make a `config`."""
    options = inspect.signature(config).parameters
    for option in given.keys() - options.keys():
        raise ValueError(f"{name} has no option {option!r}{nearest(option, options)}")
    try:
        from_json(config, given)
    except (ConfigurationError, TypeError) as problem:
        raise ValueError(f"{name}: {problem}") from problem


def nearest(name: str, known: Any) -> str:
    """Say what was meant, or what there is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(known))}"
