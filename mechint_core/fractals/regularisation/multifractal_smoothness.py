"""A penalty on intermittency: bursts and lulls in time that do not even out over longer stretches.

    d_l(t)   = mean of x over [t + l, t + 2 l)  -  mean of x over [t, t + l)      l = 1, 2, 4, ... N / 4
    S_q(l)   = mean over t and sequences of |d_l|^q                               ~ l^zeta(q)
    lambda^2 = 2 zeta(1) - zeta(2)                                                slope of ln (S_1^2 / S_2) over ln l
    penalty  = weight * mean over units of lambda^4

zeta(q) of fractional noise and Brownian motion is a straight line, and lambda^2 is 0. A multifractal's is concave, and
lambda^2 says by how much: for a lognormal one zeta(q) = c q - lambda^2 q^2 / 2, and its exponents spread over
2 sqrt(2) lambda. The d_l are Haar fluctuations, which scale alike for noises and for walks (-1 < H < 1).

Source: [@lovejoy2012], [@bacry2001]
Cost: log2(N) passes: means over 2 l steps are made of those over l.
"""

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mechint_core.fractals.regularisation._hidden_states import (
    as_sequences,
    at_unit_scale,
    mean_square,
    require_weight,
    rounding_floor,
    slope,
)


@final
class MultifractalSmoothness(nn.Module):
    """A penalty on hidden states whose fluctuations are intermittent, at any exponent; add it to the loss.

    It compares how uneven fluctuations are at short and at long scales. Values that are heavy-tailed and independent
    even out as well and are penalised alike; that is no scaling, but no smoothness either. Intermittency that is the
    same at all scales (sequences of different loudness) is not penalised.

    Parameters
    ----------
    weight
        Factor of the penalty, at least 0.
    pool_units
        Whether all units share one lambda^2, in which loud ones count more. By default each has its own.
    time_axis
        Which axis is time: -2 for (time, unit) and (batch, time, unit), 0 for (time, batch, unit), -1 for
        (batch, time). The last other axis is the units, unless time is last; the rest are sequences.

    Raises
    ------
    ConfigurationError
        If the weight is negative or not finite.

    Notes
    -----
    The mean over a few windows is itself uneven, which reads as intermittency: one sequence of fractional Brownian
    motion has lambda^2 = 0.02 to 0.05 at 256 steps, sixteen have 0.002 to 0.007. Binomial cascades are within 3 % of
    theirs.

    References
    ----------
    [@lovejoy2012]
    [@bacry2001]

    Examples
    --------
    Noise has lambda^2 = 0, whatever its colour:

    >>> noise = torch.randn(64, 256, 2, generator=torch.Generator().manual_seed(0))
    >>> smoothness = MultifractalSmoothness(weight=1.0)
    >>> smoothness.intermittency(noise).abs().max() < 0.02, smoothness(noise.cumsum(1)) < 1e-3
    (tensor(True), tensor(True))
    """

    def __init__(self, weight: float = 1.0, *, pool_units: bool = False, time_axis: int = -2) -> None:
        super().__init__()
        require_weight(weight)
        self.weight, self.pool_units, self.time_axis = weight, pool_units, time_axis

    def forward(self, hidden: Tensor) -> Float[Tensor, ""]:
        """Return the penalty; 0, with gradient 0, where no unit varies.

        Raises
        ------
        DtypeError
            If `hidden` does not hold real numbers.
        ShapeError
            If there is no such time axis, or there are fewer than 16 steps.
        DegenerateInputError
            If a value is NaN or infinite.
        """
        intermittency, varies = self._intermittency(hidden)
        return self.weight * mean_square(intermittency, varies)

    def intermittency(self, hidden: Tensor) -> Float[Tensor, "unit"]:
        """Return the lambda^2 of every unit, NaN for a constant one; one value where units are pooled or absent."""
        intermittency, varies = self._intermittency(hidden)
        return torch.where(varies, intermittency, torch.nan)

    def extra_repr(self) -> str:
        """Say what is asked for."""
        return f"weight={self.weight}"

    def _intermittency(self, hidden: Tensor) -> tuple[Float[Tensor, "unit"], Bool[Tensor, "unit"]]:
        x, varies = at_unit_scale(as_sequences(hidden, self.time_axis, pool_units=self.pool_units))
        scale, log_evenness = _evenness(x)
        return slope(scale.log(), log_evenness), varies


def _evenness(x: Float[Tensor, "sample time unit"]) -> tuple[Float[Tensor, "scale"], Float[Tensor, "scale unit"]]:
    """Return the scales l, and ln (S_1^2 / S_2) at each: 0 if all |d_l| are equal, ln (2 / pi) if Gaussian."""
    scales, rows = list[int](), list[Tensor]()
    step, mean, floor = 1, x, rounding_floor(x.dtype)  # mean[t] is over [t, t + step)
    while 4 * step <= x.shape[1]:
        d = (mean[:, step:] - mean[:, :-step]).abs()
        first, second = d.mean(dim=(0, 1)), d.square().mean(dim=(0, 1))
        rows.append(torch.log((first.square() + floor) / (second + floor)))
        scales.append(step)
        step, mean = 2 * step, (mean[:, step:] + mean[:, :-step]) / 2
    return torch.tensor(scales, dtype=x.dtype, device=x.device), torch.stack(rows)
