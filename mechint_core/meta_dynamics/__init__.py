"""How representations change during training."""

from mechint_core.meta_dynamics.fourier_components import (
    FourierComponents as FourierComponents,
    FourierComponentsConfig as FourierComponentsConfig,
    fourier_components as fourier_components,
)
from mechint_core.meta_dynamics.phases import (
    Phases as Phases,
    PhasesConfig as PhasesConfig,
    phases as phases,
)
from mechint_core.meta_dynamics.progress_measures import (
    ProgressMeasures as ProgressMeasures,
    ProgressMeasuresConfig as ProgressMeasuresConfig,
    progress_measures as progress_measures,
)
from mechint_core.meta_dynamics.representational_drift import (
    RepresentationalDrift as RepresentationalDrift,
    RepresentationalDriftConfig as RepresentationalDriftConfig,
    representational_drift as representational_drift,
)
from mechint_core.meta_dynamics.training_trajectory import (
    TrainingTrajectory as TrainingTrajectory,
    TrainingTrajectoryConfig as TrainingTrajectoryConfig,
    training_trajectory as training_trajectory,
)
