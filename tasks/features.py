"""Tasks over `mechint_core.features`. (Training a dictionary is in `dictionaries.py`.)"""

from mechint_core import features
from tasks._technique import technique_task

evaluate_dictionary = technique_task(features.evaluate_dictionary, version=2)
match_features = technique_task(features.match_features, version=1)
sparsity_frontier = technique_task(features.sparsity_frontier, version=1)
