from mechint_core.geometry.persistent_homology import (
    PersistentHomology as PersistentHomology,
    PersistentHomologyConfig as PersistentHomologyConfig,
    persistent_homology as persistent_homology,
    persistent_homology_many as persistent_homology_many,
)
