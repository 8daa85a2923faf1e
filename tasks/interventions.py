"""Tasks over `mechint_core.interventions`: one line per technique."""

from mechint_core import interventions
from tasks._technique import technique_task

patch_sites = technique_task(interventions.patch_sites, version=1)
