"""Sum what gradients say of single numbers into what they say of parts, pair by pair.

    estimate_i(part) = sum over the part of  g_i . (y_i - a_i)

The same numbers, summed over units alone, give every site by position: a map that costs nothing more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechint_core.interventions._granularity import NamedPart
from mechint_core.patching import (
    NodeGradients,
    PairRuns,
    PairScores,
    PromptPairs,
    gradient_blocks,
    gradients_on_own_paths,
)
from mechint_core.patching.parts import Activation, where
from mechint_core.result import NAN


@dataclass(frozen=True, slots=True)
class Attributed:
    """Estimates of what patching would do."""

    scores: PairScores
    """The estimated metric stands where that of patched runs would."""
    places: dict[str, Float[np.ndarray, "position"]]
    """Mean estimate of each site by position; a single number where it has none."""


def attribute(
    runs: PairRuns, pairs: PromptPairs, parts: Sequence[NamedPart], *, n_steps: int, control_seed: int | None
) -> Attributed:
    """Estimate all parts; from gradients at the base if `n_steps` is 0. Use it inside `differentiation(model)`."""
    clean, corrupted = np.empty((2, len(pairs)))
    own, control = np.empty((2, len(parts), len(pairs)))
    places: dict[str, np.ndarray] = {}
    for block in gradient_blocks(runs, pairs, control_seed=control_seed):
        clean[block.rows], corrupted[block.rows] = block.clean, block.corrupted
        products = _products(runs, block, n_steps)
        own[:, block.rows] = [_summed(products[each.site], each) for each in parts]
        for site, product in products.items():
            places[site] = places.get(site, 0.0) + _by_position(product) / len(pairs)
        if block.other is not None:
            products = _products(runs, block, n_steps, control=True)
            control[:, block.rows] = [_summed(products[each.site], each) for each in parts]
    base = clean if runs.noising else corrupted
    return Attributed(
        PairScores(clean, corrupted, base + own, None if control_seed is None else base + control), places
    )


def grid_of(
    parts: Sequence[NamedPart], values: Float[np.ndarray, "part"]
) -> tuple[tuple[str, ...], Float[np.ndarray, "site column"]]:
    """Lay the parts of each site side by side; return the names of the rows, and the grid, NaN where it is empty."""
    rows: dict[str, list[float]] = {}
    names: dict[str, str] = {}
    for part, value in zip(parts, values, strict=True):
        rows.setdefault(part.site, []).append(float(value))
        # Heads lie at the input of a projection, but are named after their attention.
        names[part.site] = part.label.rpartition(".")[0] if part.site.endswith(":input") else part.site
    return tuple(names[site] for site in rows), ragged(list(rows.values()))


def ragged(rows: Sequence[Sequence[float] | Float[np.ndarray, "column"]]) -> Float[np.ndarray, "site column"]:
    """Lay rows of unlike lengths one below another, NaN where a row has ended."""
    made = np.full((len(rows), max(len(row) for row in rows)), NAN)
    for place, row in zip(made, rows, strict=True):
        place[: len(row)] = row
    return made


def _products(runs: PairRuns, block: NodeGradients, n_steps: int, *, control: bool = False) -> dict[str, Activation]:
    """Return g . (y - a), number by number, for all sites."""
    gradient = block.gradient
    if n_steps:
        gradient = gradients_on_own_paths(runs, block, runs.sites, n_steps=n_steps, control=control)
    return {site: (gradient[site] * block.change(site, control=control)).double() for site in runs.sites}


def _summed(product: Activation, of: NamedPart) -> Float[np.ndarray, "sample"]:
    return product[where(product, of.part.position, of.part.units)].flatten(1).sum(dim=1).cpu().numpy()


def _by_position(product: Activation) -> Float[np.ndarray, "position"]:
    """Return the sum over samples, by position of activations (sample, position, unit)."""
    return (product.sum(dim=(0, 2)) if product.ndim == 3 else product.sum()[None]).cpu().numpy()
