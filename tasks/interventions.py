"""Tasks over `mechint_core.interventions`: one line per technique."""

from mechint_core import interventions
from tasks._technique import technique_task

ablate_sites = technique_task(interventions.ablate_sites, version=1)
attribution_patching = technique_task(interventions.attribution_patching, version=1)
causal_graph = technique_task(interventions.causal_graph, version=1)
counterfactual = technique_task(interventions.counterfactual, version=1)
feature_effects = technique_task(interventions.feature_effects, version=1)
mediation = technique_task(interventions.mediation, version=1)
method_agreement = technique_task(interventions.method_agreement, version=1)
minimal_circuit = technique_task(interventions.minimal_circuit, version=1)
patch_sites = technique_task(interventions.patch_sites, version=2)
path_patch = technique_task(interventions.path_patch, version=1)
self_repair = technique_task(interventions.self_repair, version=1)
steer = technique_task(interventions.steer, version=1)
