"""Sum what gradients say of single numbers into what they say of parts, pair by pair.

    estimate_i(part) = sum over the part of  g_i . (y_i - a_i)

The same numbers, summed over units alone, give every site by position: a map that costs nothing more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechint_core.patching import (
    Component,
    NodeGradients,
    PairRuns,
    PairScores,
    PromptPairs,
    Recovery,
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
    runs: PairRuns, pairs: PromptPairs, parts: Sequence[Component], *, n_steps: int, control_seed: int | None
) -> Attributed:
    """Estimate all parts; from gradients at the base if `n_steps` is 0. Use it inside `differentiation(model)`."""
    clean, corrupted = np.empty((2, len(pairs)))
    own, control = np.empty((2, len(parts), len(pairs)))
    places: dict[str, np.ndarray] = {}
    for block in gradient_blocks(runs, pairs, control_seed=control_seed):
        clean[block.rows], corrupted[block.rows] = block.clean, block.corrupted
        products = _products(runs, block, n_steps)
        own[:, block.rows] = _by_part(products, parts)
        for site, product in products.items():
            places[site] = places.get(site, 0.0) + _by_position(product) / len(pairs)
        if block.other is not None:
            products = _products(runs, block, n_steps, control=True)
            control[:, block.rows] = _by_part(products, parts)
    base = clean if runs.noising else corrupted
    return Attributed(
        PairScores(clean, corrupted, base + own, None if control_seed is None else base + control), places
    )


def position_grid(found: Attributed, recovery: Recovery, *, noising: bool) -> Float[np.ndarray, "site column"]:
    """Return each site's recovery by position, NaN where it has no such position."""
    whole = recovery.difference.value * (-1 if noising else 1)
    made = np.full((len(found.places), max(len(each) for each in found.places.values())), NAN)
    for row, each in zip(made, found.places.values(), strict=True):
        row[: len(each)] = each / whole + 0.0 if recovery.defined else NAN
    return made


def part_estimates(
    runs: PairRuns, block: NodeGradients, parts: Sequence[Component], n_steps: int
) -> Float[np.ndarray, "part sample"]:
    """Return the estimates of some pairs; from gradients at the base if `n_steps` is 0."""
    return _by_part(_products(runs, block, n_steps), parts)


def _products(runs: PairRuns, block: NodeGradients, n_steps: int, *, control: bool = False) -> dict[str, Activation]:
    """Return g . (y - a), number by number, for all sites."""
    gradient = block.gradient
    if n_steps:
        gradient = gradients_on_own_paths(runs, block, runs.sites, n_steps=n_steps, control=control)
    return {site: (gradient[site] * block.change(site, control=control)).double() for site in runs.sites}


def _by_part(products: Mapping[str, Activation], parts: Sequence[Component]) -> Float[np.ndarray, "part sample"]:
    inside = (products[each.site][where(products[each.site], each.part.position, each.part.units)] for each in parts)
    return np.array([each.flatten(1).sum(dim=1).cpu().numpy() for each in inside])


def _by_position(product: Activation) -> Float[np.ndarray, "position"]:
    """Return the sum over samples, by position of activations (sample, position, unit)."""
    return (product.sum(dim=(0, 2)) if product.ndim == 3 else product.sum()[None]).cpu().numpy()
