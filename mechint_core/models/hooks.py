"""Visit what passes through a module: the one place where hooks are hung on sites.

    name          what the module gives          "layers.0.attention"
    name:input    what the module is given       "layers.0.attention.output:input", the concatenated heads

Which tensor of a tuple, mapping or dataclass is the activation, `activation` says, for inputs as for outputs. The
concatenated heads of an `nn.MultiheadAttention`, "layers.0.self_attn.out_proj:input", exist while they are asked for.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from mechint_core.models.activation import activation_of, with_activation
from mechint_core.models.attention import projecting
from mechint_core.models.sites import module_at, split_site

Visit = Callable[[Tensor], Tensor | None]
"""Sees an activation, in the model's own layout; what it returns, if anything, takes its place."""


@contextmanager
def visited(model: nn.Module, site: str, visit: Visit) -> Generator[None]:
    """Call `visit` with the activation at `site`, in every forward of this block.

    Raises
    ------
    NotFoundError
        If the model has no such module; during the call of the model, if there is no activation.
    ConfigurationError
        During the call of the model, if the heads of an `nn.MultiheadAttention` are asked for and it has none to show.
    """
    name, is_input = split_site(site)
    module = module_at(model, name)
    handle = (
        module.register_forward_pre_hook(partial(_before, visit), with_kwargs=True)
        if is_input
        else module.register_forward_hook(partial(_after, visit))
    )
    try:
        with projecting(model, site):
            yield
    finally:
        handle.remove()


# Not nested in `visited`, where the shape checker of the tests would compile them at every visit, 5 ms each time.
def _before(visit: Visit, _: nn.Module, given: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, Any] | None:
    made = visit(activation_of((given, keywords)))
    return None if made is None else with_activation((given, keywords), made)


def _after(visit: Visit, _: nn.Module, __: Any, output: Any) -> Any:
    made = visit(activation_of(output))
    return None if made is None else with_activation(output, made)
