"""Components as a map: what each of them does, by layer, head, position or unit.

    by          row                       column
    site        layers.*.mlp              layer: the first number in the name
    head        layers.0.attention        head
    position    layers.0.mlp              position
    unit        layers.0.mlp.hidden       unit

Both are read from the components' names.
"""

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float

from mechint_core.patching.components import Granularity
from mechint_core.result import NAN

_NUMBER: Final[dict[Granularity, str]] = {
    "site": r"(^|(?<=\.))\d+(?=\.|$)",
    "position": r"(?<=@)\d+$",
    "head": r"(?<=\.)\d+$",
    "unit": r"(?<=#)\d+$",
}
"""Where a component's name says which column it is; the rest of the name is its row."""


def component_grid(
    names: Sequence[str], values: Float[np.ndarray, "part"], by: Granularity
) -> tuple[tuple[str, ...], Float[np.ndarray, "site column"]]:
    """Return the names of the rows, and the map, NaN where there is no component."""
    found = [re.search(_NUMBER[by], name) for name in names]
    column = [0 if each is None else int(each[0]) for each in found]
    star = "*" if by == "site" else ""
    row = [re.sub(_NUMBER[by], star, name, count=1).rstrip("@.#") for name in names]
    rows = tuple(dict.fromkeys(row))
    grid = np.full((len(rows), max(column) + 1), NAN)
    grid[[rows.index(each) for each in row], column] = values
    return rows, grid
