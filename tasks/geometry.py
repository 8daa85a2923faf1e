"""Tasks over `mechint_core.geometry`: one line per technique."""

from mechint_core import geometry
from tasks._technique import technique_task

circular_coordinates = technique_task(geometry.circular_coordinates, version=1)
compare_barcodes = technique_task(geometry.compare_barcodes, version=1)
curvature = technique_task(geometry.curvature, version=1)
dimension_profile = technique_task(geometry.dimension_profile, version=2)
geodesic_distances = technique_task(geometry.geodesic_distances, version=2)
graph_ricci_curvature = technique_task(geometry.graph_ricci_curvature, version=1)
intrinsic_dimension = technique_task(geometry.intrinsic_dimension, version=2)
persistence_vineyard = technique_task(geometry.persistence_vineyard, version=2)
persistent_homology = technique_task(geometry.persistent_homology, version=2)
persistent_homology_of_distances = technique_task(geometry.persistent_homology_of_distances, version=2)
representation_topology_divergence = technique_task(geometry.representation_topology_divergence, version=1)
