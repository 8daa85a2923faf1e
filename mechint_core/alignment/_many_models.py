"""p-values of many models or of many pairs of them, adjusted for how many they are.

    fdr     false discovery rate (Benjamini and Hochberg)
    holm    chance of any false discovery, whatever the dependence
    max     the same, from the largest statistic of each draw, stepping down: sharper where models resemble each other

Source: [@benjamini1995], [@holm1979], [@westfall1993].
Cost: one sort; the number of tests per draw for max.
Chunked over: nothing.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy import stats

from mechint_core.errors import ConfigurationError
from mechint_core.kernels.false_discovery import false_discovery_rate
from mechint_core.kernels.family_wise_error import holm, max_statistic
from mechint_core.result import NAN

Adjust = Literal["fdr", "holm", "max"]
"""False discovery rate; or the chance of any false discovery, by Holm or by the largest statistic of each draw."""


def check_adjust(adjust: str) -> None:
    """Refuse what is not one of `Adjust`."""
    if adjust not in get_args(Adjust):
        raise ConfigurationError(f"adjust must be one of {get_args(Adjust)}. Got {adjust!r}.")


def adjusted(
    p_values: Float[np.ndarray, "test"],
    adjust: Adjust,
    deviations: Float[np.ndarray, "draw test"],
    *,
    two_sided: bool = False,
) -> Float[np.ndarray, "test"]:
    """Adjust p-values; `deviations` are draws of the statistics about 0, in standard deviations."""
    if adjust == "fdr":
        return false_discovery_rate(p_values)
    if adjust == "holm":
        return holm(p_values)
    if two_sided:
        return max_statistic(stats.norm.isf(p_values / 2), np.abs(deviations))
    return max_statistic(stats.norm.isf(p_values), deviations)


def adjusted_pairs(
    p_values: Float[np.ndarray, "model other_model"],
    adjust: Adjust,
    deviations: Float[np.ndarray, "draw model other_model"],
) -> Float[np.ndarray, "model other_model"]:
    """Adjust the two-sided p-values of all differences, each counted once; NaN on the diagonal."""
    upper = np.triu_indices(len(p_values), 1)
    found = np.full(p_values.shape, NAN)
    found[upper] = adjusted(p_values[upper], adjust, deviations[:, *upper], two_sided=True)
    found.T[upper] = found[upper]
    return found
