"""Sites: the modules whose output (or input) is recorded or replaced, chosen by globs over their names.

`name` is what a module gives, `name:input` what it is given; a glob that ends in `:input` matches inputs.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Final

from torch import nn

from mechint_core.errors import NotFoundError

INPUT: Final = ":input"
_SHOWN = 12


def split_site(site: str) -> tuple[str, bool]:
    """Return the module's name, and whether its input is meant."""
    return site.removesuffix(INPUT), site.endswith(INPUT)


def match_sites(model: nn.Module, globs: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the modules that match any of `globs`, once each, in the model's order.

    `*` matches any run of characters, dots included: "layers.*.mlp", "*attention". Containers that compute nothing
    themselves (`ModuleList`, `ModuleDict`) are not sites.

    Raises
    ------
    NotFoundError
        If a glob matches nothing. The message names the closest sites, then those that exist.
    """
    globs = (globs,) if isinstance(globs, str) else tuple(globs)
    names = [name for name, module in model.named_modules() if name and _computes(module)]
    wanted = [split_site(glob) for glob in globs]
    lost = [glob for glob, _ in wanted if not any(fnmatchcase(name, glob) for name in names)]
    if lost or not globs:
        raise NotFoundError(_nothing_matches(lost, names))
    return tuple(
        name + (INPUT if is_input else "")
        for name in names
        for is_input in (True, False)
        if any(of_input == is_input and fnmatchcase(name, glob) for glob, of_input in wanted)
    )


def module_at(model: nn.Module, site: str) -> nn.Module:
    """Return the module named `site`.

    Raises
    ------
    NotFoundError
        If there is none.
    """
    try:
        return model.get_submodule(site)
    except AttributeError:
        raise NotFoundError(_nothing_matches([site], [name for name, _ in model.named_modules() if name])) from None


def _computes(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _nothing_matches(lost: list[str], names: list[str]) -> str:
    plain = {glob: glob.replace("*", "") for glob in lost}
    close = [name for glob in lost for name in get_close_matches(plain[glob], names, n=3, cutoff=0.5)]
    close += [name for glob in lost for name in names if plain[glob] and plain[glob].strip(".") in name]
    first = list(dict.fromkeys(close))[:_SHOWN]
    others = [name for name in names if name not in first]
    shown = ", ".join((first + others)[:_SHOWN])
    more = f", ... ({len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
    asked = ", ".join(repr(glob) for glob in lost) if lost else "an empty list"
    return f"every glob must match a site of the model. Got no match for {asked}. There are: {shown or 'none'}{more}."
