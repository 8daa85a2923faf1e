"""Hidden states as the priors of this folder read them: checked, one axis order, one scale.

    x  =  (h - h at the first step) / 2^e          2^e: the power of two above the unit's largest value

A constant unit becomes exactly 0. Dividing by a power of two rounds nothing, so a prior of 2 h has the bits of that
of h, and squares neither overflow nor vanish, whatever the units of the network are.

Cost: one pass.
"""

from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechint_core.errors import ConfigurationError, DegenerateInputError, DtypeError, ShapeError

FEWEST_STEPS: Final = 16
"""Fewer steps leave no range of scales to speak of."""


def as_sequences(hidden: Tensor, time_axis: int, *, pool_units: bool = False) -> Float[Tensor, "sample time unit"]:
    """Return `hidden` as sequences of units, in single precision at least.

    The last axis holds the units, unless it is time; then there is one. All other axes are sequences. With
    `pool_units`, every unit is a sequence of the same one unit.

    Raises
    ------
    DtypeError, ShapeError, DegenerateInputError
        If `hidden` does not hold real numbers, has no such time axis or fewer than 16 steps along it, or is not finite.
    """
    require_real(hidden)
    x = hidden[:, None] if hidden.ndim == 1 else hidden
    axis = time_axis if hidden.ndim > 1 else -2
    if x.ndim < 2 or not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"hidden must have time on axis {time_axis}. Got shape {tuple(hidden.shape)}.")
    if axis in (-1, x.ndim - 1):
        x, axis = x[..., None], axis % x.ndim
    x = x.movedim(axis, -2)
    if pool_units:
        x = x.movedim(-1, 0)[..., None]
    if x.shape[-2] < FEWEST_STEPS or 0 in x.shape:
        raise ShapeError(
            f"hidden must have at least {FEWEST_STEPS} steps of at least one unit. Got shape {tuple(hidden.shape)} "
            f"with time on axis {time_axis}. Name another time_axis if that is not time."
        )
    require_finite(x)
    return in_single_precision(x.reshape(-1, *x.shape[-2:]))


def at_unit_scale(
    x: Float[Tensor, "sample time unit"],
) -> tuple[Float[Tensor, "sample time unit"], Bool[Tensor, "unit"]]:
    """Return each unit from its first step on, divided by a power of two, and whether it varies at all."""
    moved = x - x[:, :1]
    largest = moved.detach().abs().amax(dim=(0, 1))
    return moved / power_of_two_above(largest), largest > 0


def power_of_two_above(largest: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Return the least power of two above each value, and 1 for 0."""
    return torch.where(largest > 0, largest / torch.frexp(largest).mantissa, 1)


def slope(
    abscissa: Float[Tensor, "scale"], height: Float[Tensor, "scale unit"], weight: Float[Tensor, "scale"] | None = None
) -> Float[Tensor, "unit"]:
    """Return the least-squares slope of each unit's heights, every scale counting alike or by its weight."""
    share = torch.ones_like(abscissa) if weight is None else weight
    run = abscissa - (share @ abscissa) / share.sum()
    return (share * run @ height) / (share * run @ run)


def mean_square(excess: Float[Tensor, "unit"], counted: Bool[Tensor, "unit"]) -> Float[Tensor, ""]:
    """Return the mean of `excess` squared over the units that are counted; 0, with gradient 0, if none is."""
    return torch.where(counted, excess, 0).square().sum() / counted.sum().clamp(min=1)


def require_real(hidden: Tensor) -> None:
    """Refuse integers and complex numbers."""
    if not hidden.is_floating_point():
        raise DtypeError(f"hidden must hold real numbers. Got {hidden.dtype}.")


def require_finite(hidden: Tensor) -> None:
    """Refuse NaN and infinity."""
    n_bad = int((~torch.isfinite(hidden)).sum())
    if n_bad:
        raise DegenerateInputError(
            f"hidden must be finite. Got NaN or infinity in {n_bad} of {hidden.numel()} values. "
            "If training has diverged, lower the learning rate, or clip gradients."
        )


def require_weight(weight: float) -> None:
    """Refuse a weight that is negative or not finite."""
    if not 0 <= weight < float("inf"):
        raise ConfigurationError(f"weight must be finite and not negative. Got {weight}.")


def require_exponent(target_exponent: float) -> None:
    """Refuse a target that is not finite."""
    if not abs(target_exponent) < float("inf"):
        raise ConfigurationError(f"target_exponent must be finite. Got {target_exponent}.")


def in_single_precision(x: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Return half precision as float32, exactly; other precisions as they are."""
    return x.float() if x.dtype.itemsize < 4 else x


def rounding_floor(dtype: torch.dtype) -> float:
    """Return the share of the mean power below which a power is rounding."""
    return 16 * torch.finfo(dtype).eps ** 2
