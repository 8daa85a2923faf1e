"""Tasks over `mechint_core.meta_dynamics`: one line per technique."""

from mechint_core import meta_dynamics
from tasks._technique import technique_task

fourier_components = technique_task(meta_dynamics.fourier_components, version=1)
progress_measures = technique_task(meta_dynamics.progress_measures, version=1)
training_trajectory = technique_task(meta_dynamics.training_trajectory, version=1)
representational_drift = technique_task(meta_dynamics.representational_drift, version=1)
phases = technique_task(meta_dynamics.phases, version=1)
