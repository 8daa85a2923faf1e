"""Every technique, listed by hand: to add one, add one line."""

from tasks import alignment, features, fractals, geometry, interventions, meta_dynamics

CATALOGUE = (
    alignment.cka,
    alignment.rdm,
    alignment.rsa,
    features.build_concept_dictionary,
    features.concept_tree,
    features.deeplift,
    features.dictionary_stability,
    features.evaluate_dictionary,
    features.feature_absorption,
    features.feature_examples,
    features.feature_frequencies,
    features.gradient_shap,
    features.integrated_gradients,
    features.latent_sharing,
    features.logit_effects,
    features.loss_recovered,
    features.match_features,
    features.shapley_values,
    features.sparse_probing,
    features.sparsity_frontier,
    fractals.detrended_fluctuation_analysis,
    fractals.higuchi_fractal_dimension,
    geometry.persistent_homology,
    interventions.patch_sites,
    meta_dynamics.fourier_components,
    meta_dynamics.phases,
    meta_dynamics.progress_measures,
    meta_dynamics.representational_drift,
    meta_dynamics.training_trajectory,
)

TECHNIQUES = {technique.name: technique for technique in CATALOGUE}
