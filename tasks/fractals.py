"""Tasks over `mechint_core.fractals`: one line per technique."""

from mechint_core import fractals
from tasks._technique import technique_task

higuchi_fractal_dimension = technique_task(fractals.higuchi_fractal_dimension, version=1)
detrended_fluctuation_analysis = technique_task(fractals.detrended_fluctuation_analysis, version=1)
hurst_exponent = technique_task(fractals.hurst_exponent, version=1)
spectral_slope = technique_task(fractals.spectral_slope, version=1)
multifractal_spectrum = technique_task(fractals.multifractal_spectrum, version=1)
box_counting_dimension = technique_task(fractals.box_counting_dimension, version=1)
graph_fractal_dimension = technique_task(fractals.graph_fractal_dimension, version=1)
criticality = technique_task(fractals.criticality, version=1)
