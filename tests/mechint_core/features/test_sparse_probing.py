import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mechint_core.errors import ConfigurationError, DegenerateInputError, DtypeError, ShapeError
from mechint_core.features import SparseAutoencoder, SparseAutoencoderConfig
from mechint_core.features._linear_probes import features_of, score_classes, sparse_predictions, strongest
from mechint_core.features.sparse_probing import SparseProbingConfig, sparse_probing
from mechint_core.random import generator
from mechint_core.synthetic.sparse_dictionary import sparse_dictionary

QUICK = {"n_null": 3, "n_random": 1}


def dictionary(decoder, threshold=0.0):
    """An encoder that is the decoder transposed."""
    decoder = torch.as_tensor(np.asarray(decoder), dtype=torch.float32)
    made = SparseAutoencoder(decoder.shape[1], len(decoder), config=SparseAutoencoderConfig(activation="relu"))
    with torch.no_grad():
        made.W_dec.copy_(decoder)
        made.W_enc.copy_(decoder)
        made.threshold.fill_(threshold)
    return made


def axes(d):
    return np.vstack([np.eye(d), -np.eye(d)])


# Known answer
def test_sparse_probing__the_planted_latent_tells_its_label():
    """Feature 7 fires below the threshold 0.3 in 0.24 of its cases, which tie with the rest: about 1 - 0.24 / 2."""
    planted = sparse_dictionary(4000, n_units=64, n_features=32, p_active=0.05)
    label = (planted.codes[:, 7] > 0).astype(int)

    result = sparse_probing(planted.activations, dictionary(planted.dictionary, 0.3), label)

    assert result.best_latent.tolist() == [7]
    assert result.one.value == pytest.approx(0.88, abs=0.05)
    assert result.one.p_value == 0.05  # 1 / (1 + 19)
    assert result.one.null == pytest.approx(0.5, abs=0.1)
    assert result.over_units.low > 0
    assert result.over_random.low > 0
    assert result.condition == ("1",)
    assert "(worse)" in result.reading()


def test_sparse_probing__each_class_has_its_own_latent(rng):
    """Class c is a bump along axis c: its latent is perfect, whatever the number of classes."""
    label = np.arange(300) % 6
    x = np.eye(6)[label] + 0.05 * rng.normal(size=(300, 6))

    result = sparse_probing(x, dictionary(axes(6)), label, config=SparseProbingConfig(**QUICK))

    assert result.best_latent.tolist() == list(range(6))
    assert result.one.value == 1
    assert result.condition == tuple("012345")
    np.testing.assert_array_equal(result.score_of, 1)
    assert (result.n_train, result.n_test, result.n_rare_classes) == (200, 100, 0)


def test_sparse_probing__a_continuous_label_is_told_by_as_many_latents_as_it_sums(rng):
    """y = 2 |x_0| + |x_1|: its variance is 4 parts of 5 from the first; both together tell all but the ridge."""
    x = rng.normal(size=(1200, 5))
    y = 2 * np.abs(x[:, 0]) + np.abs(x[:, 1])
    folded = np.abs(x)

    result = sparse_probing(folded, dictionary(axes(5)), y, config=SparseProbingConfig(k=(1, 2), **QUICK))

    assert not result.classes
    assert result.best_latent.tolist() == [0]
    assert result.latents == pytest.approx([0.8, 1], abs=0.04)
    assert result.all_units == pytest.approx([1, 1], abs=0.01)


def test_sparse_probing__a_lucky_choice_under_permuted_labels_is_no_evidence(rng):
    """One latent tells the label perfectly, and permuted labels choose it in 1 of 2 draws: their score is still .5."""
    label = np.arange(300) % 2
    x = np.stack([label + 0.01 * rng.normal(size=300), rng.normal(size=300)], axis=1)

    result = sparse_probing(x, dictionary(axes(2)[:2]), label)

    assert result.one.value == 1
    assert result.one.null == pytest.approx(0.5, abs=0.06)
    assert result.one.p_value == 0.05


def test_sparse_probing__labels_without_meaning_are_not_told(rng):
    x, label = rng.normal(size=(400, 8)), rng.integers(0, 2, 400)

    result = sparse_probing(x, dictionary(axes(8)), label)

    assert result.one.p_value > 0.05
    assert "does not tell the label" in result.reading()


def test_sparse_probing__rare_classes_are_left_out_and_counted(rng):
    label = np.r_[np.zeros(50), np.ones(50), [2, 2, 3]].astype(int)

    result = sparse_probing(rng.normal(size=(103, 4)), dictionary(axes(4)), label, config=SparseProbingConfig(**QUICK))

    assert result.n_rare_classes == 2
    assert result.condition == ("0", "1")


# Oracle
def test_sparse_probing__scores_are_scikit_learns(rng):
    """Areas under the curve of our own predictions, ties included, and DeLong's variance by its pairwise kernel."""
    values = rng.integers(0, 6, (3, 80)).astype(np.float32)
    member = np.array([rng.permutation(80) < n for n in (5, 20, 40)])

    result = score_classes(values, member)

    assert result.each == pytest.approx([roc_auc_score(m, v) for m, v in zip(member, values, strict=True)])
    one = score_classes(values[1:2], member[1:2])
    kernel = np.sign(values[1][member[1]][:, None] - values[1][~member[1]]) / 2 + 0.5
    variance = kernel.mean(1).var() / 20 + kernel.mean(0).var() / 60
    assert np.sum(one.influence**2) == pytest.approx(variance)


def test_sparse_probing__chooses_as_the_f_statistic_does_and_fits_fishers_discriminant(rng):
    x = rng.normal(size=(300, 12)) * rng.uniform(0.1, 10, 12)
    label = (x[:, 3] / x[:, 3].std() + x[:, 8] / x[:, 8].std() + rng.normal(size=300) > 0.5).astype(int)
    is_test = np.arange(300) % 3 == 0
    goals = (label[~is_test] - label[~is_test].mean())[:, None].astype(np.float32)

    chosen, _ = strongest(features_of(x, is_test), goals, 4)
    predicted, _ = sparse_predictions(features_of(x, is_test), goals, (4,), 1e-6)

    order = np.argsort(-f_classif(x[~is_test], label[~is_test])[0])[:4]
    assert chosen[0].tolist() == order.tolist()
    fisher = LinearDiscriminantAnalysis().fit(x[~is_test][:, order], label[~is_test])
    expected = fisher.decision_function(x[is_test][:, order])
    assert np.corrcoef(expected, predicted[0][0])[0, 1] == pytest.approx(1, abs=1e-5)


def test_sparse_probing__scores_as_well_as_logistic_regression():
    """On planted codes, five latents per class: areas within 0.02 of the iterated fit's."""
    planted = sparse_dictionary(1500, n_units=32, n_features=64, p_active=0.1)
    label = (planted.codes[:, 3] + planted.codes[:, 9] > 0.5).astype(int)
    made = dictionary(planted.dictionary, 0.3)
    is_test = np.arange(1500) % 3 == 0
    codes = made.encode(torch.from_numpy(planted.activations)).detach().numpy()
    goals = (label[~is_test] - label[~is_test].mean())[:, None].astype(np.float32)
    features = features_of(codes, is_test)

    chosen, _ = strongest(features, goals, 5)
    ours = score_classes(sparse_predictions(features, goals, (5,), 0.01)[0][0], label[None, is_test] > 0).value
    logistic = LogisticRegression(class_weight="balanced").fit(codes[~is_test][:, chosen[0]], label[~is_test])
    theirs = roc_auc_score(label[is_test], logistic.decision_function(codes[is_test][:, chosen[0]]))

    assert ours == pytest.approx(theirs, abs=0.02)


# Law
@settings(max_examples=10)
@given(st.integers(30, 80), st.integers(2, 4), st.integers(0, 9))
def test_sparse_probing__ignores_the_names_of_classes_and_repeats_its_bits(n, n_classes, seed):
    rng = generator(seed, "law")
    x, label = rng.normal(size=(n, 4)), np.arange(n) % n_classes
    config = SparseProbingConfig(k=(1, 3), **QUICK)

    result, again = (sparse_probing(x, dictionary(axes(4)), label, config=config) for _ in range(2))
    renamed = sparse_probing(x, dictionary(axes(4)), 10 * label + 7, config=config)

    assert again.scalars() == result.scalars()
    assert renamed.scalars() == pytest.approx(result.scalars())
    assert np.all((result.latents >= 0) & (result.latents <= 1))


def test_sparse_probing__positions_of_a_sample_are_one_piece_of_evidence(rng):
    """Three equal positions per sample give the same score, and an interval that is not narrower for the copies."""
    x, label = rng.normal(size=(200, 5)), rng.integers(0, 2, 200)
    x[:, 0] += 1.2 * label
    config = SparseProbingConfig(ridge=1e-6, **QUICK)

    one = sparse_probing(x, dictionary(axes(5)), label, config=config)
    three = sparse_probing(
        np.repeat(x[:, None], 3, axis=1), dictionary(axes(5)), np.repeat(label[:, None], 3, axis=1), config=config
    )

    assert three.one.value == pytest.approx(one.one.value, rel=1e-6)
    assert (three.one.low, three.one.high) == pytest.approx((one.one.low, one.one.high), rel=1e-6)
    assert three.n_test == 3 * one.n_test


# Bad input
def test_sparse_probing__refuses_arrays_that_do_not_fit(without_shape_checks):
    with pytest.raises(ShapeError, match="activations must be"):
        sparse_probing(np.ones((11, 4)), dictionary(axes(4)), np.arange(11))
    with pytest.raises(ShapeError, match="activations must be"):
        sparse_probing(np.ones((20, 3)), dictionary(axes(4)), np.arange(20))
    with pytest.raises(ShapeError, match="one number per vector"):
        sparse_probing(np.ones((20, 4)), dictionary(axes(4)), np.arange(19))
    with pytest.raises(DtypeError, match="label must hold numbers"):
        sparse_probing(np.ones((20, 4)), dictionary(axes(4)), np.full(20, "a"))


def test_sparse_probing__refuses_labels_that_say_nothing(rng):
    x, made = rng.normal(size=(20, 4)), dictionary(axes(4))
    with pytest.raises(DegenerateInputError, match="must be finite"):
        sparse_probing(x, made, np.full(20, np.nan))
    with pytest.raises(DegenerateInputError, match="must differ between vectors"):
        sparse_probing(x, made, np.zeros(20, int))
    with pytest.raises(DegenerateInputError, match="two classes of at least 6"):
        sparse_probing(x, made, np.r_[np.zeros(16), np.ones(4)].astype(int))
    with pytest.raises(DegenerateInputError, match="between held-out vectors"):
        sparse_probing(x, made, np.r_[np.ones(19), 0.0])


@pytest.mark.parametrize(
    "option",
    [{"k": ()}, {"k": (2, 2)}, {"k": (0, 1)}, {"n_null": 0}, {"held_out": 1}, {"ridge": 0.0}, {"max_vectors": 1}],
)
def test_sparse_probing__refuses_impossible_options(option):
    with pytest.raises(ConfigurationError, match="must be"):
        SparseProbingConfig(**option)
