"""Build a model from `package.module:function` and fill it with a checkpoint.

The factory is the user's own code, called with plain arguments; it returns any `torch.nn.Module`. Parameters
tied to one another need be in the checkpoint once only, and the prefixes that wrappers add to every name
(`module.`, `_orig_mod.`) are taken off.
"""

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor, nn

from mechint_core.errors import CheckpointError, ConfigurationError, NotFoundError
from mechint_core.models.checkpoints import read_checkpoint
from mechint_core.models.running import torch_device, torch_dtype

WRAPPER_PREFIXES: Final = ("module.", "_orig_mod.")


def load_factory(factory: str) -> Callable[..., Any]:
    """Return the callable named `package.module:function`.

    Raises
    ------
    ConfigurationError
        If the name is not of that form, or names something that cannot be called.
    NotFoundError
        If there is no such module, or nothing of that name in it.
    """
    module_name, colon, attribute = factory.partition(":")
    if not (colon and module_name and attribute):
        raise ConfigurationError(f"a factory must be written package.module:function. Got {factory!r}.")
    found: Any = _import(module_name, factory)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise NotFoundError(f"{factory!r}: {module_name} has no {attribute!r}.{_suggestion(part, found)}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigurationError(f"{factory!r} must be callable. Got a {type(found).__name__}.")
    return found


def load_model(
    factory: str,
    arguments: Mapping[str, Any],
    checkpoint: str | Path | None,
    *,
    device: str = "cpu",
    dtype: str | None = None,
) -> nn.Module:
    """Return `factory(**arguments)` with the parameters of `checkpoint`, in eval mode and without gradients.

    Parameters
    ----------
    factory
        `package.module:function`.
    arguments
        Keyword arguments of the factory.
    checkpoint
        A file or folder that `read_checkpoint` reads; None leaves the parameters as the factory made them.
    device
        "cpu", "cuda", "cuda:1", ...; "auto" takes CUDA where there is one.
    dtype
        "float32", "float16" or "bfloat16" for the floating parameters; None leaves them as they are.

    Raises
    ------
    ConfigurationError
        If the arguments do not fit the factory, or it returns something else than a module.
    CheckpointError
        If the checkpoint lacks a parameter, has one too many, or one of another shape.
    """
    made = _call(load_factory(factory), arguments, factory)
    if not isinstance(made, nn.Module):
        raise ConfigurationError(f"{factory!r} must return a torch.nn.Module. Got a {type(made).__name__}.")
    if checkpoint is not None:
        _fill(made, read_checkpoint(checkpoint), checkpoint)
    return made.to(torch_device(device), torch_dtype(dtype)).eval().requires_grad_(False)


def _import(name: str, factory: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as problem:
        if problem.name is None or not f"{name}.".startswith(f"{problem.name}."):
            raise  # the module is there; something that it imports is not, and its own message says so
        raise NotFoundError(
            f"{factory!r}: there is no module {problem.name!r}. Run from the folder that holds it, or install it."
        ) from None


def _suggestion(name: str, owner: object) -> str:
    public = [each for each in dir(owner) if not each.startswith("_")]
    close = get_close_matches(name, public, n=3)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _call(function: Callable[..., Any], arguments: Mapping[str, Any], factory: str) -> Any:
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as problem:
        raise ConfigurationError(
            f"the arguments of {factory!r} must fit {inspect.signature(function)}. Got {dict(arguments)}: {problem}."
        ) from None
    return function(**arguments)


def _fill(model: nn.Module, given: dict[str, Tensor], checkpoint: str | Path) -> None:
    wanted = model.state_dict(keep_vars=True)
    given = _unprefixed(given, wanted)
    given_tensors = {id(tensor) for name, tensor in wanted.items() if name in given}
    missing = [name for name, tensor in wanted.items() if name not in given and id(tensor) not in given_tensors]
    unexpected = [name for name in given if name not in wanted]
    reshaped = [
        f"{name} (model {tuple(wanted[name].shape)}, checkpoint {tuple(tensor.shape)})"
        for name, tensor in given.items()
        if name in wanted and wanted[name].shape != tensor.shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    if any(problems.values()):
        found = "; ".join(f"{len(names)} {kind}: {_first(names)}" for kind, names in problems.items() if names)
        raise CheckpointError(f"{checkpoint} must hold the parameters of {type(model).__name__}. Got {found}.")
    with torch.no_grad():
        model.load_state_dict(given, strict=False)  # strictness was checked above, tied parameters allowed for


def _unprefixed(given: dict[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    names = list(wanted)
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in given) and not any(name.startswith(prefix) for name in names):
            given = {name.removeprefix(prefix): tensor for name, tensor in given.items()}
    return given


def _first(names: list[str], n: int = 5) -> str:
    return ", ".join(names[:n]) + (", ..." if len(names) > n else "")
