"""Features: the directions that activations are made of."""

from mechint_core.features.config import SparseAutoencoderConfig as SparseAutoencoderConfig
from mechint_core.features.dictionary import SparseDictionary as SparseDictionary
from mechint_core.features.evaluate_dictionary import (
    EvaluateDictionary as EvaluateDictionary,
    EvaluateDictionaryConfig as EvaluateDictionaryConfig,
    evaluate_dictionary as evaluate_dictionary,
)
from mechint_core.features.match_features import (
    MatchFeatures as MatchFeatures,
    MatchFeaturesConfig as MatchFeaturesConfig,
    match_features as match_features,
)
from mechint_core.features.sparse_autoencoder import (
    SparseAutoencoder as SparseAutoencoder,
    SparseAutoencoderTrainer as SparseAutoencoderTrainer,
    SparseAutoencoderTraining as SparseAutoencoderTraining,
    train_sparse_autoencoder as train_sparse_autoencoder,
)
