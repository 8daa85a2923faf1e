"""Tasks over `mechint_core.features`. (Training a dictionary is in `dictionaries.py`.)"""

from mechint_core import features
from tasks._technique import technique_task

build_concept_dictionary = technique_task(features.build_concept_dictionary, version=1)
concept_tree = technique_task(features.concept_tree, version=1)
deeplift = technique_task(features.deeplift, version=1)
dictionary_stability = technique_task(features.dictionary_stability, version=1)
evaluate_dictionary = technique_task(features.evaluate_dictionary, version=2)
feature_absorption = technique_task(features.feature_absorption, version=1)
feature_examples = technique_task(features.feature_examples, version=1)
feature_frequencies = technique_task(features.feature_frequencies, version=1)
gradient_shap = technique_task(features.gradient_shap, version=1)
integrated_gradients = technique_task(features.integrated_gradients, version=1)
latent_sharing = technique_task(features.latent_sharing, version=1)
logit_effects = technique_task(features.logit_effects, version=1)
loss_recovered = technique_task(features.loss_recovered, version=1)
match_features = technique_task(features.match_features, version=1)
shapley_values = technique_task(features.shapley_values, version=1)
sparse_probing = technique_task(features.sparse_probing, version=1)
sparsity_frontier = technique_task(features.sparsity_frontier, version=1)
