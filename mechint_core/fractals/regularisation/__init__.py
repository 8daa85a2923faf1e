"""Fractal regularisation: differentiable penalties on hidden states, for training. This folder imports torch."""

from mechint_core.fractals.regularisation.graph_spectral_prior import GraphSpectralPrior as GraphSpectralPrior
from mechint_core.fractals.regularisation.multifractal_smoothness import (
    MultifractalSmoothness as MultifractalSmoothness,
)
from mechint_core.fractals.regularisation.spectral_prior import SpectralPrior as SpectralPrior
