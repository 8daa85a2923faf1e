"""Tasks over `mechint_core.circuits`."""

from mechint_core import circuits
from tasks._technique import technique_task

acdc = technique_task(circuits.acdc, version=1)
circuit_faithfulness = technique_task(circuits.circuit_faithfulness, version=1)
circuit_stability = technique_task(circuits.circuit_stability, version=1)
compare_circuits = technique_task(circuits.compare_circuits, version=1)
edge_attribution = technique_task(circuits.edge_attribution, version=1)
edge_patching = technique_task(circuits.edge_patching, version=1)
