"""Fractals: how rough a response is along an ordered axis, and how far it remembers."""

from mechint_core.fractals.detrended_fluctuation_analysis import (
    DetrendedFluctuationAnalysis as DetrendedFluctuationAnalysis,
    DetrendedFluctuationAnalysisConfig as DetrendedFluctuationAnalysisConfig,
    DetrendedFluctuationAnalysisResult as DetrendedFluctuationAnalysisResult,
    detrended_fluctuation_analysis as detrended_fluctuation_analysis,
)
from mechint_core.fractals.higuchi_fractal_dimension import (
    HiguchiFractalDimension as HiguchiFractalDimension,
    HiguchiFractalDimensionConfig as HiguchiFractalDimensionConfig,
    HiguchiFractalDimensionResult as HiguchiFractalDimensionResult,
    higuchi_fractal_dimension as higuchi_fractal_dimension,
)
