"""Change what a model computes, and see what follows."""

from mechint_core.interventions.activation_patcher import (
    ActivationPatcher as ActivationPatcher,
    PatchOutcome as PatchOutcome,
)
from mechint_core.interventions.patch_sites import (
    PatchedSites as PatchedSites,
    PatchSitesConfig as PatchSitesConfig,
    patch_sites as patch_sites,
)
