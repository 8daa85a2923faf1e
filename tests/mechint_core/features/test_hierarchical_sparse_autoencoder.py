import numpy as np
import pytest
import torch

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.features import MatchFeaturesConfig, SparseAutoencoder, SparseAutoencoderConfig, match_features
from mechint_core.features.concept_tree import ConceptTreeConfig, concept_tree, edge_f1
from mechint_core.features.feature_absorption import FeatureAbsorptionConfig, feature_absorption
from mechint_core.features.hierarchical_sparse_autoencoder import HierarchicalSparseAutoencoder
from mechint_core.random import torch_generator
from mechint_core.synthetic.feature_tree import feature_tree

QUICK = ConceptTreeConfig(n_null=1, n_bootstrap=10)
N_TESTED = 4000


def compare(planted, levels, *, n_epochs, batch_size, seed):
    """Train on planted features with and without levels, on equal terms; measure both on other vectors."""
    x, codes = planted.activations, planted.codes
    n_units, n_features = x.shape[1], codes.shape[1]
    found = []
    for kind, nested in ((HierarchicalSparseAutoencoder, levels), (SparseAutoencoder, ())):
        config = SparseAutoencoderConfig(
            k=planted.l0, n_epochs=n_epochs, batch_size=batch_size, levels=nested, seed=seed
        )
        dictionary = kind(n_units, n_features, config=config)
        dictionary.train_on_activations(x[N_TESTED:])
        tree = concept_tree(x[:N_TESTED], dictionary, config=QUICK)
        match = match_features(
            dictionary.W_dec.detach().numpy(), planted.dictionary, config=MatchFeaturesConfig(n_null=1, n_bootstrap=1)
        )
        absorbed = feature_absorption(
            x[:N_TESTED], dictionary, codes[:N_TESTED], planted.parent, config=FeatureAbsorptionConfig(n_null=1)
        )
        l0 = float((dictionary.encode(torch.from_numpy(x[:N_TESTED])) > 0).sum(dim=1).double().mean())
        found.append((edge_f1(tree.parent, planted.parent, match.partner), absorbed.absorption, l0))
    return found


def untrained(levels=(2, 5), n_latents=12):
    return HierarchicalSparseAutoencoder(4, n_latents, levels, config=SparseAutoencoderConfig(k=3, activation="relu"))


# Known answer
def test_hierarchical_sparse_autoencoder__absorbs_less_than_a_flat_one():
    """One small planted tree, 4 roots with 3 exclusive children each, levels of 4 latents and all 16."""
    planted = feature_tree(6000 + N_TESTED, n_units=32, n_roots=4, n_children=(3,), p_root=0.25, p_child=0.25, seed=0)

    nested, flat = compare(planted, (4,), n_epochs=15, batch_size=256, seed=0)

    assert nested[1].high < flat[1].low
    assert nested[0] > flat[0]
    assert nested[2] == pytest.approx(flat[2], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [10, 11, 12])
def test_hierarchical_sparse_autoencoder__recovers_planted_trees_and_absorbs_less(seed):
    """8 roots with 4 exclusive children each, in superposition: 40 features, 32 edges, 64 units.

    The schedule of k was chosen on seeds 0 to 4.
    """
    planted = feature_tree(20_000 + N_TESTED, seed=seed)

    nested, flat = compare(planted, (8,), n_epochs=40, batch_size=512, seed=seed)

    assert nested[0] > 0.9
    assert nested[0] > flat[0] + 0.3
    assert nested[1].high < flat[1].low
    assert nested[2] == pytest.approx(flat[2], rel=0.05)


def test_hierarchical_sparse_autoencoder__levels_are_counts_or_shares():
    assert np.bincount(untrained((2, 5)).level_of).tolist() == [2, 3, 7]
    assert np.bincount(untrained((0.25, 0.5)).level_of).tolist() == [3, 3, 6]
    assert np.bincount(HierarchicalSparseAutoencoder(4, 32).level_of).tolist() == [2, 6, 24]
    config = SparseAutoencoderConfig(k=3, levels=(4,))
    assert HierarchicalSparseAutoencoder(4, 12, config=config).n_levels == 2


# Oracle
def test_hierarchical_sparse_autoencoder__a_level_is_the_dictionary_without_the_later_latents():
    made, x = untrained(), torch.randn(50, 4, generator=torch_generator(0, "x"))

    for level in range(made.n_levels):
        codes = made.encode(x) * torch.from_numpy(made.level_of <= level)
        torch.testing.assert_close(made.reconstruct(x, level), made.decode(codes))
    torch.testing.assert_close(made.reconstruct(x, 2), made(x))


def test_hierarchical_sparse_autoencoder__its_tree_is_the_technique_s():
    made, x = untrained(), torch.randn(300, 4, generator=torch_generator(0, "x")).numpy()

    own, technique = made.concept_tree(x, config=QUICK), concept_tree(x, made, config=QUICK)

    np.testing.assert_array_equal(own.parent, technique.parent)
    assert own.scalars() == pytest.approx(technique.scalars(), rel=0, abs=0, nan_ok=True)


# Law
def test_hierarchical_sparse_autoencoder__more_levels_never_explain_less_after_training():
    """Each level is trained on what the former leave, so the error falls from level to level."""
    planted = feature_tree(3000, n_units=16, n_roots=3, n_children=(2,), seed=1)
    made = HierarchicalSparseAutoencoder(16, 12, (3, 6), config=SparseAutoencoderConfig(k=planted.l0))

    losses = made.train_on_activations(planted.activations, num_epochs=8, batch_size=128)

    x = torch.from_numpy(planted.activations)
    with torch.no_grad():
        errors = [float((made.reconstruct(x, level) - x).square().mean()) for level in range(3)]
    assert losses[-1] < losses[0]
    assert errors == sorted(errors, reverse=True)


def test_hierarchical_sparse_autoencoder__comes_back_from_its_folder(tmp_path):
    made, x = untrained(), torch.randn(20, 4, generator=torch_generator(0, "x"))
    made.site = "hidden"

    made.save(tmp_path)
    loaded = HierarchicalSparseAutoencoder.load(tmp_path)

    torch.testing.assert_close(loaded(x), made(x), rtol=0, atol=0)
    assert (loaded.site, loaded.level_of.tolist()) == ("hidden", made.level_of.tolist())


# Bad input
def test_hierarchical_sparse_autoencoder__refuses_levels_that_do_not_grow():
    with pytest.raises(ConfigurationError, match="levels must grow"):
        untrained((5, 5))


@pytest.mark.parametrize("level", [-1, 3])
def test_hierarchical_sparse_autoencoder__refuses_a_level_it_has_not(level):
    with pytest.raises(ConfigurationError, match="level must be 0 to 2"):
        untrained().reconstruct(torch.zeros(2, 4), level)


def test_hierarchical_sparse_autoencoder__refuses_other_units():
    with pytest.raises(ShapeError, match="vectors must have 4 units"):
        untrained().reconstruct(torch.zeros(2, 5), 0)
