"""Features: the directions that activations are made of."""

from mechint_core.features.attribution.deeplift import (
    Deeplift as Deeplift,
    DeepliftConfig as DeepliftConfig,
    deeplift as deeplift,
)
from mechint_core.features.attribution.gradient_shap import (
    GradientShap as GradientShap,
    GradientShapConfig as GradientShapConfig,
    gradient_shap as gradient_shap,
)
from mechint_core.features.attribution.integrated_gradients import (
    IntegratedGradients as IntegratedGradients,
    IntegratedGradientsConfig as IntegratedGradientsConfig,
    integrated_gradients as integrated_gradients,
)
from mechint_core.features.attribution.shapley_values import (
    ShapleyValues as ShapleyValues,
    ShapleyValuesConfig as ShapleyValuesConfig,
    shapley_values as shapley_values,
)
from mechint_core.features.build_concept_dictionary import (
    BuildConceptDictionary as BuildConceptDictionary,
    BuildConceptDictionaryConfig as BuildConceptDictionaryConfig,
    build_concept_dictionary as build_concept_dictionary,
)
from mechint_core.features.concept_tree import (
    ConceptTree as ConceptTree,
    ConceptTreeConfig as ConceptTreeConfig,
    concept_tree as concept_tree,
    edge_f1 as edge_f1,
)
from mechint_core.features.crosscoder import Crosscoder as Crosscoder
from mechint_core.features.dictionaries.config import SparseAutoencoderConfig as SparseAutoencoderConfig
from mechint_core.features.dictionaries.dictionary import SparseDictionary as SparseDictionary
from mechint_core.features.dictionaries.training_pass import TrainingPass as TrainingPass
from mechint_core.features.dictionary_stability import (
    DictionaryStability as DictionaryStability,
    DictionaryStabilityConfig as DictionaryStabilityConfig,
    dictionary_stability as dictionary_stability,
)
from mechint_core.features.dictionary_training import (
    DictionaryTraining as DictionaryTraining,
    Trained as Trained,
    start_training as start_training,
    train_crosscoder as train_crosscoder,
    train_dictionaries as train_dictionaries,
    train_sparse_autoencoder as train_sparse_autoencoder,
    train_transcoder as train_transcoder,
    training_record as training_record,
)
from mechint_core.features.evaluate_dictionary import (
    EvaluateDictionary as EvaluateDictionary,
    EvaluateDictionaryConfig as EvaluateDictionaryConfig,
    evaluate_dictionary as evaluate_dictionary,
)
from mechint_core.features.feature_absorption import (
    FeatureAbsorption as FeatureAbsorption,
    FeatureAbsorptionConfig as FeatureAbsorptionConfig,
    feature_absorption as feature_absorption,
)
from mechint_core.features.feature_examples import (
    FeatureExamples as FeatureExamples,
    FeatureExamplesConfig as FeatureExamplesConfig,
    feature_examples as feature_examples,
)
from mechint_core.features.feature_frequencies import (
    FeatureFrequencies as FeatureFrequencies,
    FeatureFrequenciesConfig as FeatureFrequenciesConfig,
    feature_frequencies as feature_frequencies,
)
from mechint_core.features.hierarchical_sparse_autoencoder import (
    HierarchicalSparseAutoencoder as HierarchicalSparseAutoencoder,
)
from mechint_core.features.latent_sharing import (
    LatentSharing as LatentSharing,
    LatentSharingConfig as LatentSharingConfig,
    latent_sharing as latent_sharing,
)
from mechint_core.features.logit_effects import (
    LogitEffects as LogitEffects,
    LogitEffectsConfig as LogitEffectsConfig,
    logit_effects as logit_effects,
)
from mechint_core.features.loss_recovered import (
    LossRecovered as LossRecovered,
    LossRecoveredConfig as LossRecoveredConfig,
    loss_recovered as loss_recovered,
)
from mechint_core.features.match_features import (
    MatchFeatures as MatchFeatures,
    MatchFeaturesConfig as MatchFeaturesConfig,
    match_features as match_features,
)
from mechint_core.features.recipe import Recipe as Recipe, load_dictionary as load_dictionary
from mechint_core.features.saelens_format import export_saelens as export_saelens, import_saelens as import_saelens
from mechint_core.features.sparse_autoencoder import SparseAutoencoder as SparseAutoencoder
from mechint_core.features.sparse_probing import (
    SparseProbing as SparseProbing,
    SparseProbingConfig as SparseProbingConfig,
    sparse_probing as sparse_probing,
)
from mechint_core.features.sparsity_frontier import (
    SparsityFrontier as SparsityFrontier,
    SparsityFrontierConfig as SparsityFrontierConfig,
    sparsity_frontier as sparsity_frontier,
)
from mechint_core.features.transcoder import Transcoder as Transcoder
