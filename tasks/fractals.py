"""Tasks over `mechint_core.fractals`: one line per technique."""

from mechint_core import fractals
from tasks._technique import technique_task

higuchi_fractal_dimension = technique_task(fractals.higuchi_fractal_dimension, version=1)
detrended_fluctuation_analysis = technique_task(fractals.detrended_fluctuation_analysis, version=1)
