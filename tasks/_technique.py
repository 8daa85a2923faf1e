"""Turn one core function into one Prefect task: read, compute, write. (`tasks.publish` shows what was written.)

The annotations of the function's data parameters say what it is given:

    Float[np.ndarray, "sample unit"]          the array, read whole
    Float[Rows, "sample unit"]                the stored array, which it reads block by block
    Sequence[Float[Rows, "sample unit"]]      one of these per checkpoint
    torch.nn.Module                           the model with the checkpoint's parameters
    SparseDictionary, or Codes                a dictionary trained on a site
    Circuit, or Sequence[Circuit]             a circuit that was found, or one per checkpoint

An answer that the store already holds, made by this version from the same content with the same config, is not
made again: the key of Prefect's cache is `Work.cache_key`, and the task body asks the store as well, so that a
run killed between the commit and Prefect's record, or a lost Prefect database, costs nothing.
"""

import dataclasses
import inspect
import re
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
from prefect import Task, task
from prefect.context import TaskRunContext
from prefect.futures import PrefectFuture

import mechint_core
from mechint_core.circuits import Circuit
from mechint_core.errors import MechintError
from mechint_core.features import SparseDictionary
from mechint_core.models import load_model
from mechint_core.parallel import Rows, compute
from mechint_core.patching import Codes
from mechint_core.result import Result
from mechint_core.store import About, ActivationStore
from tasks.provenance import git_commit
from tasks.references import (
    ArrayReference,
    ArraySequence,
    CircuitFile,
    CircuitReference,
    CircuitSequence,
    DictionaryReference,
    Done,
    Input,
    Literals,
    ModelReference,
    Work,
)
from tasks.settings import settings

Shape = Literal["array", "rows", "sequence", "model", "dictionary", "circuit"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One data parameter of a technique: its name, the shape of what it takes, whether it may be left out."""

    name: str
    shape: Shape
    optional: bool
    integer: bool
    """Labels and steps, in place of measurements."""
    kind: type[SparseDictionary] | None = None
    """Of a dictionary: which ones it takes."""


@dataclass(frozen=True, slots=True)
class Technique:
    """A core function and the Prefect task made of it."""

    compute: Callable[..., Result]
    version: int
    """Raise it when the numbers change: stored answers of older versions are then made again."""
    task: Task[..., Done]
    parameters: tuple[Parameter, ...]
    config: type[Any]
    result: type[Result]

    @property
    def name(self) -> str:
        """The literature's name: file, function, task, Zarr group, metric prefix."""
        return self.compute.__name__

    @property
    def about(self) -> About:
        """The technique in words, read from its docstring."""
        return read_about(self.compute, self.result)

    def work(
        self, inputs: Mapping[str, Input], config: Any, *, store: str, run: str, name: str, step: int | None
    ) -> Work:
        """Describe one call of this technique."""
        return Work(
            technique=self.name,
            version=self.version,
            config=as_json(dataclasses.asdict(config)),
            inputs=dict(inputs),
            store=store,
            run=run,
            name=name,
            step=step,
        )

    def submit(self, work: Work) -> PrefectFuture[Done]:
        """Start the task inside a flow. What Prefect remembers but the store no longer holds is made again."""
        return self.task.with_options(refresh_cache=not work.is_done()).submit(work)


def technique_task(function: Callable[..., Result], *, version: int) -> Technique:
    """Wrap `function` so that it reads its inputs from, and leaves its Result in, a store."""
    hints = get_type_hints(function, include_extras=True)
    config, result = hints["config"], hints["return"]
    name = function.__name__

    def run(work: Work) -> Done:
        store = ActivationStore(work.store)
        stored = store.result_provenance(work.key)
        if stored is not None and stored.get("cache_key") == work.cache_key:
            return _done(work, stored["digest"])
        started = time.perf_counter()
        with compute(settings().backend):
            answer = function(**_read(work.inputs, technique.parameters), config=from_json(config, work.config))
        inputs = {name: each.identity for name, each in work.inputs.items()}
        provenance = provenance_of(work, inputs, time.perf_counter() - started)
        digest = store.write_result(work.key, answer, about=technique.about, config=work.config, provenance=provenance)
        return _done(work, digest)

    run.__name__, run.__doc__ = name, function.__doc__
    wrapped = task(
        name=name,
        task_run_name=_run_name,
        cache_key_fn=_cache_key,
        persist_result=True,
        result_serializer="json",
        retries=2,
        retry_delay_seconds=[1, 5],
        retry_condition_fn=_worth_retrying,
    )(run)
    technique = Technique(function, version, wrapped, _parameters(function), config, result)
    return technique


def read_about(function: Callable[..., Any], result: type[Result]) -> About:
    """Read a technique's question, description and references from its docstring."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", inspect.getdoc(function) or "")]
    sections = inspect.getdoc(function) or ""
    module = inspect.getdoc(inspect.getmodule(function)) or ""
    keys = re.findall(r"@([a-z]+\d{4}[a-z]?)", f"{sections}\n{module}")
    return About(
        question=paragraphs[0],
        description=paragraphs[1] if len(paragraphs) > 1 and "----" not in paragraphs[1] else "",
        evidence=result.evidence,
        references=tuple(dict.fromkeys(keys)),
    )


def from_json(config: type[Any], options: Mapping[str, Any]) -> Any:
    """Build a frozen config from JSON: lists become tuples."""
    return config(**{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})


def _parameters(function: Callable[..., Result]) -> tuple[Parameter, ...]:
    hints = get_type_hints(function, include_extras=True)
    signature = inspect.signature(function).parameters
    return tuple(
        Parameter(
            name, _shape(hints[name]), parameter.default is None, _is_integer(hints[name]), _dictionary(hints[name])
        )
        for name, parameter in signature.items()
        if name != "config"
    )


def _dictionary(hint: Any) -> type[SparseDictionary] | None:
    hint = _given(hint)
    if hint is Codes:  # what a family that knows no dictionaries asks of one
        return SparseDictionary
    return hint if inspect.isclass(hint) and issubclass(hint, SparseDictionary) else None


def _given(hint: Any) -> Any:
    """Return what a parameter takes where it is not left out."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(each for each in get_args(hint) if each is not type(None))
    return hint


def _shape(hint: Any) -> Shape:
    hint = _given(hint)
    if get_origin(hint) in (Sequence, list, tuple):
        return "sequence"
    held = getattr(hint, "array_type", hint)
    if held is Rows:
        return "rows"
    if _dictionary(hint) is not None:
        return "dictionary"
    if held is Circuit:
        return "circuit"
    return "array" if held is np.ndarray else "model"


def _is_integer(hint: Any) -> bool:
    hint = _given(hint)
    return all("float" not in str(kind) for kind in getattr(hint, "dtypes", ["float"]))


def _read(inputs: Mapping[str, Input], parameters: Sequence[Parameter]) -> dict[str, Any]:
    return {each.name: _value(inputs[each.name], each) for each in parameters if each.name in inputs}


def _value(given: Input, parameter: Parameter) -> Any:
    match given:
        case ArrayReference():
            return given.open() if parameter.shape == "rows" else given.read()
        case ArraySequence():
            return [each.open() for each in given.arrays]
        case Literals():
            return np.asarray(given.values)
        case CircuitSequence():
            return [each.open() for each in given.circuits]
        case DictionaryReference() | CircuitReference() | CircuitFile():
            return given.open()
        case ModelReference():
            return load_model(given.factory, given.arguments, given.checkpoint or None, device=given.device)


class Cached(Protocol):
    """Work with a version and a key: what makes its answer the same."""

    @property
    def version(self) -> int:
        """Raised when the numbers change."""
        ...

    @property
    def cache_key(self) -> str:
        """Digest of all that the answer depends on."""
        ...


def provenance_of(work: Cached, inputs: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """Return what a stored result says of its making."""
    return {
        "version": work.version,
        "inputs": dict(inputs),
        "package": mechint_core.__version__,
        "commit": git_commit(),
        "cache_key": work.cache_key,
        "seconds": round(seconds, 4),
    }


def _done(work: Work, digest: str) -> Done:
    return Done(store=work.store, run=work.run, technique=work.technique, name=work.name, step=work.step, digest=digest)


def _cache_key(_: TaskRunContext, parameters: dict[str, Any]) -> str:
    work = cast(Work, parameters["work"])
    return f"{work.cache_key}-{ActivationStore(work.store).uuid}-{work.run}-{work.step}-{work.name}"


def _run_name() -> str:
    from prefect.runtime import task_run  # here: it reads the running task

    work = cast(Work, task_run.parameters["work"])
    return f"{work.technique} {work.name}" + ("" if work.step is None else f" @{work.step}")


def _worth_retrying(_: Task[..., Any], __: Any, state: Any) -> bool:
    """Retry what may pass (a lost worker, a busy disk), not what will fail again (an input that makes no sense)."""
    return not isinstance(state.result(raise_on_failure=False), MechintError | TypeError | ValueError)


def as_json(value: Any) -> Any:
    """Tuples become lists, so that a config read back from JSON has the same digest."""
    if isinstance(value, dict):
        return {name: as_json(each) for name, each in value.items()}
    return [as_json(each) for each in value] if isinstance(value, list | tuple) else value
