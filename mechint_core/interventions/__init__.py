"""Change what a model computes, and see what follows."""

from mechint_core.interventions.ablate_sites import (
    AblatedSites as AblatedSites,
    AblateSitesConfig as AblateSitesConfig,
    ablate_sites as ablate_sites,
)
from mechint_core.interventions.activation_patcher import (
    ActivationPatcher as ActivationPatcher,
    PatchOutcome as PatchOutcome,
)
from mechint_core.interventions.attribution_patching import (
    AttributionPatching as AttributionPatching,
    AttributionPatchingConfig as AttributionPatchingConfig,
    attribution_patching as attribution_patching,
)
from mechint_core.interventions.causal_graph import (
    CausalGraph as CausalGraph,
    CausalGraphConfig as CausalGraphConfig,
    causal_graph as causal_graph,
)
from mechint_core.interventions.counterfactual import (
    Counterfactual as Counterfactual,
    CounterfactualConfig as CounterfactualConfig,
    counterfactual as counterfactual,
)
from mechint_core.interventions.feature_effects import (
    FeatureEffects as FeatureEffects,
    FeatureEffectsConfig as FeatureEffectsConfig,
    feature_effects as feature_effects,
)
from mechint_core.interventions.mediation import (
    Mediation as Mediation,
    MediationConfig as MediationConfig,
    mediation as mediation,
)
from mechint_core.interventions.method_agreement import (
    MethodAgreement as MethodAgreement,
    MethodAgreementConfig as MethodAgreementConfig,
    method_agreement as method_agreement,
)
from mechint_core.interventions.minimal_circuit import (
    MinimalCircuit as MinimalCircuit,
    MinimalCircuitConfig as MinimalCircuitConfig,
    minimal_circuit as minimal_circuit,
)
from mechint_core.interventions.patch_sites import (
    PatchedSites as PatchedSites,
    PatchSitesConfig as PatchSitesConfig,
    patch_sites as patch_sites,
    patch_sites_cost as patch_sites_cost,
)
from mechint_core.interventions.path_patch import (
    PatchedPaths as PatchedPaths,
    PathPatchConfig as PathPatchConfig,
    path_patch as path_patch,
)
from mechint_core.interventions.self_repair import (
    SelfRepair as SelfRepair,
    SelfRepairConfig as SelfRepairConfig,
    self_repair as self_repair,
)
from mechint_core.interventions.steer import SteerConfig as SteerConfig, Steering as Steering, steer as steer
