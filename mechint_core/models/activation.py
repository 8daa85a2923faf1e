"""Find the activation in a module's output. Recording and patching share this one rule.

    the first floating-point tensor with at least one axis, met by walking tuples, lists, mappings and dataclasses
    in order

So attention modules (output, weights), recurrent layers (output, state) and the outputs of `transformers` (a loss is
a scalar, then logits or the last hidden state) all give what one would expect, and a patch leaves the rest of the
output as it was.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

from torch import Tensor

from mechint_core.errors import NotFoundError

Path = tuple[Any, ...]


def activation_of(output: Any) -> Tensor:
    """Return the activation in a module's output.

    Raises
    ------
    NotFoundError
        If no part of it is a floating-point tensor.
    """
    found = find_activation(output)
    if found is None:
        raise NotFoundError(f"a site's output must hold a floating-point tensor. Got a {type(output).__name__}.")
    return found[1]


def with_activation(output: Any, activation: Tensor) -> Any:
    """Return a copy of `output` in which `activation` takes the place of its activation.

    Raises
    ------
    NotFoundError
        If no part of it is a floating-point tensor.
    """
    found = find_activation(output)
    if found is None:
        raise NotFoundError(f"a site's output must hold a floating-point tensor. Got a {type(output).__name__}.")
    return _rebuilt(output, found[0], activation)


def find_activation(output: Any) -> tuple[Path, Tensor] | None:
    """Return the keys that lead to the activation, and the activation; None if there is none."""
    if isinstance(output, Tensor):
        return ((), output) if output.is_floating_point() and output.ndim else None
    for key, part in _parts(output):
        found = find_activation(part)
        if found is not None:
            return (key, *found[0]), found[1]
    return None


def _parts(output: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(output, Mapping):
        yield from output.items()
    elif isinstance(output, tuple | list):
        yield from enumerate(output)
    elif is_dataclass(output):
        yield from ((field.name, getattr(output, field.name)) for field in fields(output))


def _rebuilt(output: Any, path: Path, activation: Tensor) -> Any:
    if not path:
        return activation
    key, rest = path[0], path[1:]
    if isinstance(output, tuple | list):
        parts = [_rebuilt(part, rest, activation) if i == key else part for i, part in enumerate(output)]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    if is_dataclass(output):  # before mappings: the outputs of `transformers` are both
        part = output[key] if isinstance(output, Mapping) else getattr(output, key)
        return replace(cast(Any, output), **{key: _rebuilt(part, rest, activation)})
    made = copy.copy(output)
    made[key] = _rebuilt(output[key], rest, activation)
    return made
