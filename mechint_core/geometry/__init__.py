from mechint_core.geometry.circular_coordinates import (
    CircularCoordinates as CircularCoordinates,
    CircularCoordinatesConfig as CircularCoordinatesConfig,
    circular_coordinates as circular_coordinates,
)
from mechint_core.geometry.compare_barcodes import (
    CompareBarcodes as CompareBarcodes,
    CompareBarcodesConfig as CompareBarcodesConfig,
    compare_barcodes as compare_barcodes,
)
from mechint_core.geometry.curvature import (
    Curvature as Curvature,
    CurvatureConfig as CurvatureConfig,
    curvature as curvature,
)
from mechint_core.geometry.diagram_distance import (
    DiagramMatching as DiagramMatching,
    diagram_distance as diagram_distance,
    diagram_matching as diagram_matching,
)
from mechint_core.geometry.dimension_profile import (
    DimensionProfile as DimensionProfile,
    DimensionProfileConfig as DimensionProfileConfig,
    dimension_profile as dimension_profile,
)
from mechint_core.geometry.geodesic_distances import (
    GeodesicDistances as GeodesicDistances,
    GeodesicDistancesConfig as GeodesicDistancesConfig,
    geodesic_distances as geodesic_distances,
)
from mechint_core.geometry.graph_ricci_curvature import (
    GraphRicciCurvature as GraphRicciCurvature,
    GraphRicciCurvatureConfig as GraphRicciCurvatureConfig,
    graph_ricci_curvature as graph_ricci_curvature,
)
from mechint_core.geometry.intrinsic_dimension import (
    IntrinsicDimension as IntrinsicDimension,
    IntrinsicDimensionConfig as IntrinsicDimensionConfig,
    intrinsic_dimension as intrinsic_dimension,
    intrinsic_dimension_many as intrinsic_dimension_many,
)
from mechint_core.geometry.persistence_summaries import (
    PersistenceSummaries as PersistenceSummaries,
    PersistenceSummariesConfig as PersistenceSummariesConfig,
    persistence_summaries as persistence_summaries,
)
from mechint_core.geometry.persistence_vineyard import (
    PersistenceVineyard as PersistenceVineyard,
    PersistenceVineyardConfig as PersistenceVineyardConfig,
    persistence_vineyard as persistence_vineyard,
)
from mechint_core.geometry.persistent_homology import (
    PersistentHomology as PersistentHomology,
    PersistentHomologyConfig as PersistentHomologyConfig,
    persistent_homology as persistent_homology,
    persistent_homology_many as persistent_homology_many,
)
from mechint_core.geometry.persistent_homology_of_distances import (
    PersistentHomologyOfDistances as PersistentHomologyOfDistances,
    PersistentHomologyOfDistancesConfig as PersistentHomologyOfDistancesConfig,
    persistent_homology_of_distances as persistent_homology_of_distances,
)
from mechint_core.geometry.representation_topology_divergence import (
    RepresentationTopologyDivergence as RepresentationTopologyDivergence,
    RepresentationTopologyDivergenceConfig as RepresentationTopologyDivergenceConfig,
    representation_topology_divergence as representation_topology_divergence,
)
