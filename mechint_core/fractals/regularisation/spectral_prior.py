"""A penalty that shapes the memory of hidden states: their power spectrum becomes 1 / f^target.

    P(f)    = mean over sequences of |FFT(v (x - mean x))|^2 / g(f)      v_t = sqrt(2 / (N + 1)) sin(pi t / (N + 1))
    beta    = -sum_f (ln f - mean) ln P(f) / sum_f (ln f - mean)^2       0 < f < 1/2 cycles per step
    penalty = weight * mean over units of (beta - target)^2

beta is 0 for white noise, 1 for pink, 2 for a random walk (P ~ 1 / f^beta). Averaging before the logarithm keeps the
variance of one periodogram out of it. g(f) = 1 - |FFT(v)|^2 / N is what subtracting the mean leaves of white noise.
The taper v keeps the jump between the two ends of a window, whose spectrum is 1 / f^2, out of steeper spectra.

Source: [@riedel1995]
Cost: one Fourier transform per sequence and unit.
"""

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.fractals.regularisation._hidden_states import (
    as_sequences,
    at_unit_scale,
    mean_square,
    require_exponent,
    require_weight,
    rounding_floor,
    slope,
)


@final
class SpectralPrior(nn.Module):
    """A penalty on hidden states whose spectrum is not 1 / f^target_exponent; add it to the loss.

    It says how power should fall with frequency, not how much there is: scaling a unit, or adding a constant, changes
    nothing. A power law is assumed, not tested: a spectrum with a peak or a knee has an exponent as well. The penalty
    includes the sampling variance of beta (0.1 for one white sequence of 64 steps), so it does not reach 0 on
    sequences that differ from step to step; a larger batch lowers it.

    Parameters
    ----------
    target_exponent
        The beta to reach: 0 white, 1 pink, 2 a random walk. Negative: power rises with frequency.
    weight
        Factor of the penalty, at least 0.
    band
        Frequencies to fit, in cycles per step, ends excluded. All of them by default, but 0 and 1/2.
    per_octave
        Whether every octave counts alike in the fit, so that the slow end is shaped as much as the fast one. By default
        every frequency does, which is more precise, and half of them lie in the uppermost octave.
    pool_units
        Whether all units share one spectrum, in which loud ones count more. By default each has its own exponent.
    time_axis
        Which axis is time: -2 for (time, unit) and (batch, time, unit), 0 for (time, batch, unit), -1 for
        (batch, time). The last other axis is the units, unless time is last; the rest are sequences.

    Raises
    ------
    ConfigurationError
        If the target is not finite, the weight negative or not finite, or the band not within 0 and 1/2.

    Notes
    -----
    Over all of 0 <= beta <= 2, and for any length from 16 steps, beta is within 0.02 of the exponent of a period of
    noise with exactly that spectrum. A window cut from a longer series holds less of the lowest frequencies:
    +0.22 at 16 steps and +0.03 at 256 for beta = 2, at most +0.04 and +0.01 up to beta = 1. More tapers would lower the
    variance by a fifth, and bias beta by 0.1 and more on short windows. With `per_octave` the bias is up to 0.05 at 16
    steps, and the standard deviation of one sequence 0.41 for 0.31 at 64 steps, 0.25 for 0.14 at 256.

    References
    ----------
    [@riedel1995]

    Examples
    --------
    White noise has exponent 0, and a penalty when 1 is asked for:

    >>> hidden = torch.randn(64, 128, 3, generator=torch.Generator().manual_seed(0))
    >>> prior = SpectralPrior(target_exponent=1.0, weight=0.1)
    >>> prior.exponent(hidden).abs().max() < 0.1, 0.05 < prior(hidden) < 0.2
    (tensor(True), tensor(True))
    """

    def __init__(
        self,
        target_exponent: float,
        weight: float = 1.0,
        *,
        band: tuple[float, float] = (0.0, 0.5),
        per_octave: bool = False,
        pool_units: bool = False,
        time_axis: int = -2,
    ) -> None:
        super().__init__()
        require_exponent(target_exponent)
        require_weight(weight)
        if not 0 <= band[0] < band[1] <= 0.5:
            raise ConfigurationError(f"band must be two frequencies with 0 <= low < high <= 0.5. Got {band}.")
        self.target_exponent, self.weight = target_exponent, weight
        self.band, self.per_octave, self.pool_units, self.time_axis = band, per_octave, pool_units, time_axis

    def forward(self, hidden: Tensor) -> Float[Tensor, ""]:
        """Return the penalty; 0, with gradient 0, where no unit varies.

        Raises
        ------
        DtypeError
            If `hidden` does not hold real numbers.
        ShapeError
            If there are fewer than 16 steps, or fewer than 3 frequencies in the band.
        DegenerateInputError
            If a value is NaN or infinite.
        """
        beta, varies = self._exponents(hidden)
        return self.weight * mean_square(beta - self.target_exponent, varies)

    def exponent(self, hidden: Tensor) -> Float[Tensor, "unit"]:
        """Return the beta of every unit, NaN for a constant one; one value where units are pooled or absent."""
        beta, varies = self._exponents(hidden)
        return torch.where(varies, beta, torch.nan)

    def extra_repr(self) -> str:
        """Say what is asked for."""
        return f"target_exponent={self.target_exponent}, weight={self.weight}"

    def _exponents(self, hidden: Tensor) -> tuple[Float[Tensor, "unit"], Bool[Tensor, "unit"]]:
        x, varies = at_unit_scale(as_sequences(hidden, self.time_axis, pool_units=self.pool_units))
        frequency, fitted = self._frequencies(x)
        power = torch.where(varies, _power(x)[fitted], 1)
        log_power = torch.log(power + rounding_floor(x.dtype) * power.mean(dim=0))
        return -slope(frequency.log(), log_power, 1 / frequency if self.per_octave else None), varies

    def _frequencies(
        self, x: Float[Tensor, "sample time unit"]
    ) -> tuple[Float[Tensor, "scale"], Bool[Tensor, "frequency"]]:
        """Return the Fourier frequencies in the band, and which of all they are."""
        frequency = torch.fft.rfftfreq(x.shape[1], dtype=x.dtype, device=x.device)
        fitted = (frequency > self.band[0]) & (frequency < self.band[1])
        n_fitted = int(fitted.sum())
        if n_fitted < 3:
            raise ShapeError(
                f"hidden must have at least 3 Fourier frequencies within {self.band}. Got {n_fitted} for "
                f"{x.shape[1]} steps. Widen the band, or pass longer sequences."
            )
        return frequency[fitted], fitted


def _power(x: Float[Tensor, "sample time unit"]) -> Float[Tensor, "frequency unit"]:
    """Return the tapered power at every Fourier frequency, the mean over sequences; 1 for white noise of variance 1."""
    n_steps = x.shape[1]
    angle = torch.pi / (n_steps + 1) * torch.arange(1, n_steps + 1, dtype=x.dtype, device=x.device)
    taper = (2 / (n_steps + 1)) ** 0.5 * angle.sin()
    spectrum = torch.fft.rfft((x - x.mean(dim=1, keepdim=True)) * taper[:, None], dim=1)
    gain = 1 - torch.fft.rfft(taper).abs().square() / n_steps
    return (spectrum.real.square() + spectrum.imag.square()).mean(dim=0) / gain[:, None]
