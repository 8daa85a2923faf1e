"""Which components and connections of a network implement a behaviour?"""

from mechint_core.circuits.acdc import AcdcCircuit as AcdcCircuit, AcdcConfig as AcdcConfig, acdc as acdc
from mechint_core.circuits.circuit import Circuit as Circuit
from mechint_core.circuits.circuit_faithfulness import (
    CircuitFaithfulnessConfig as CircuitFaithfulnessConfig,
    FaithfulCircuit as FaithfulCircuit,
    circuit_faithfulness as circuit_faithfulness,
)
from mechint_core.circuits.circuit_stability import (
    CircuitStability as CircuitStability,
    CircuitStabilityConfig as CircuitStabilityConfig,
    circuit_stability as circuit_stability,
)
from mechint_core.circuits.compare_circuits import (
    CompareCircuitsConfig as CompareCircuitsConfig,
    ComparedCircuits as ComparedCircuits,
    compare_circuits as compare_circuits,
)
from mechint_core.circuits.edge_attribution import (
    AttributedEdges as AttributedEdges,
    EdgeAttributionConfig as EdgeAttributionConfig,
    edge_attribution as edge_attribution,
)
from mechint_core.circuits.edge_patching import (
    EdgePatchingConfig as EdgePatchingConfig,
    PatchedEdges as PatchedEdges,
    edge_patching as edge_patching,
)
