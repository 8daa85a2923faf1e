"""Fractals: how rough a response is along an ordered axis, and how far it remembers."""

from typing import TYPE_CHECKING, Any

from mechint_core.fractals.box_counting_dimension import (
    BoxCountingDimensionConfig as BoxCountingDimensionConfig,
    BoxCountingDimensionResult as BoxCountingDimensionResult,
    box_counting_dimension as box_counting_dimension,
)
from mechint_core.fractals.criticality import (
    CriticalityConfig as CriticalityConfig,
    CriticalityResult as CriticalityResult,
    criticality as criticality,
)
from mechint_core.fractals.detrended_fluctuation_analysis import (
    DetrendedFluctuationAnalysis as DetrendedFluctuationAnalysis,
    DetrendedFluctuationAnalysisConfig as DetrendedFluctuationAnalysisConfig,
    DetrendedFluctuationAnalysisResult as DetrendedFluctuationAnalysisResult,
    detrended_fluctuation_analysis as detrended_fluctuation_analysis,
)
from mechint_core.fractals.fractal_tracker import (
    FractalTracker as FractalTracker,
    TrackedResult as TrackedResult,
    series_of_hidden as series_of_hidden,
)
from mechint_core.fractals.graph_fractal_dimension import (
    GraphFractalDimensionConfig as GraphFractalDimensionConfig,
    GraphFractalDimensionResult as GraphFractalDimensionResult,
    graph_fractal_dimension as graph_fractal_dimension,
)
from mechint_core.fractals.higuchi_fractal_dimension import (
    HiguchiFractalDimension as HiguchiFractalDimension,
    HiguchiFractalDimensionConfig as HiguchiFractalDimensionConfig,
    HiguchiFractalDimensionResult as HiguchiFractalDimensionResult,
    higuchi_fractal_dimension as higuchi_fractal_dimension,
)
from mechint_core.fractals.hurst_exponent import (
    HurstExponent as HurstExponent,
    HurstExponentConfig as HurstExponentConfig,
    HurstExponentResult as HurstExponentResult,
    hurst_exponent as hurst_exponent,
)
from mechint_core.fractals.multifractal_spectrum import (
    MultifractalSpectrumConfig as MultifractalSpectrumConfig,
    MultifractalSpectrumResult as MultifractalSpectrumResult,
    multifractal_spectrum as multifractal_spectrum,
)
from mechint_core.fractals.spectral_slope import (
    SpectralSlope as SpectralSlope,
    SpectralSlopeConfig as SpectralSlopeConfig,
    SpectralSlopeResult as SpectralSlopeResult,
    spectral_slope as spectral_slope,
)

if TYPE_CHECKING:
    from mechint_core.fractals.regularisation import (
        GraphSpectralPrior as GraphSpectralPrior,
        MultifractalSmoothness as MultifractalSmoothness,
        SpectralPrior as SpectralPrior,
    )

_PENALTIES = ("GraphSpectralPrior", "MultifractalSmoothness", "SpectralPrior")


def __getattr__(name: str) -> Any:
    """Import penalties on first use: torch costs 2 s, and a worker that measures series must not pay it."""
    if name in _PENALTIES:
        from mechint_core.fractals import regularisation

        return getattr(regularisation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}.")
