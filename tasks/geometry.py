"""Tasks over `mechint_core.geometry`: one line per technique."""

from mechint_core import geometry
from tasks._technique import technique_task

persistent_homology = technique_task(geometry.persistent_homology, version=1)
