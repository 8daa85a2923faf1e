import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.features._concept_search import halves
from mechint_core.features._label_statistics import (
    auroc,
    auroc_interval,
    centred_ranks,
    hypergeometric_tails,
    spearman_interval,
)
from mechint_core.features.build_concept_dictionary import BuildConceptDictionaryConfig, build_concept_dictionary
from mechint_core.features.dictionaries.config import SparseAutoencoderConfig
from mechint_core.features.sparse_autoencoder import SparseAutoencoder
from mechint_core.random import generator

QUICK = BuildConceptDictionaryConfig(n_null=2, n_permutations=199)


def identity(n):
    """A dictionary whose codes are the activations, cut at zero."""
    made = SparseAutoencoder(n, n, config=SparseAutoencoderConfig(activation="relu"))
    with torch.no_grad():
        made.W_enc.copy_(torch.eye(n))
        made.W_dec.copy_(torch.eye(n))
    return made


def planted(n_samples=600, n_classes=6, n_idle=20, p_fire=0.8, seed=0):
    """Latent c fires in most samples of class c and few others; idle latents fire anywhere."""
    rng = generator(seed, "planted")
    label = rng.integers(0, n_classes, n_samples)
    hit = (label[:, None] == np.arange(n_classes)) & (rng.random((n_samples, n_classes)) < p_fire)
    fires = np.hstack([hit | (rng.random(hit.shape) < 0.02), rng.random((n_samples, n_idle)) < 0.15])
    codes = np.where(fires, 0.5 + rng.random(fires.shape), -1.0)
    return codes.astype(np.float32), label


# Known answer
def test_build_concept_dictionary__labels_planted_concepts_and_no_idle_latent():
    codes, label = planted()

    found = build_concept_dictionary(codes, identity(26), label)

    assert found.best_concept[:6].tolist() == list(range(6))
    assert found.best_latent.tolist() == list(range(6))
    assert (found.q_value[:6] < 1e-10).all()
    assert (found.q_value[6:] > 0.05).all()
    # AUROC of a detector that fires in 80 % of its class and 2 % of the others: 1/2 + (0.804 - 0.02) / 2 = 0.89.
    assert found.effect[:6] == pytest.approx(0.89, abs=0.06)  # 50 held-out samples per class: standard error 0.03
    assert found.recall[:6] == pytest.approx(0.8, abs=0.15)
    assert found.covered.value == 1
    assert found.labelled.value == pytest.approx(6 / 26)
    assert found.labelled.p_value == 0.05  # 1 / (1 + 19)
    assert found.labelled.null < 0.01
    assert "6 of 26 latents stand for a concept" in found.reading()


def test_build_concept_dictionary__of_shuffled_labels_finds_something_in_at_most_its_share_of_draws():
    """Under no effect at all the false discovery rate is the chance of any discovery: at most 5 %. In 200 draws that
    gives up to 18 with probability 0.99 (binomial)."""
    codes, label = planted(n_samples=200)
    config = BuildConceptDictionaryConfig(n_null=1)
    found = [
        build_concept_dictionary(codes, identity(26), generator(draw, "shuffle").permutation(label), config=config)
        for draw in range(200)
    ]

    assert sum(np.nanmin(each.q_values) <= 0.05 for each in found) <= 18
    assert sum(each.labelled.value > 0 for each in found) <= 18


def test_build_concept_dictionary__keeps_the_share_of_false_labels():
    """Half of the concepts are planted, so that the step-up rule is lenient: mean false share over 60 draws <= 5 %."""
    shares = []
    for draw in range(60):
        codes, label = planted(n_samples=300, n_classes=6, n_idle=20, seed=draw)
        found = build_concept_dictionary(codes, identity(26), label, config=BuildConceptDictionaryConfig(n_null=1))
        named = found.q_value <= 0.05
        shares.append(named[6:].sum() / max(1, named.sum()))

    assert np.mean(shares) <= 0.05


def test_build_concept_dictionary__is_not_fooled_when_the_choice_is_among_many_classes():
    """59 classes of 20, one latent in 5 real: false share over 30 draws of 256 latents."""
    shares = []
    for draw in range(30):
        rng = generator(draw, "many")
        label = np.arange(1180) % 59
        codes = np.where(rng.random((1180, 256)) < 0.1, rng.random((1180, 256)), -1.0)
        codes[:, :51] = np.where(label[:, None] == np.arange(51), 1 + rng.random((1180, 51)), codes[:, :51])
        found = build_concept_dictionary(codes, identity(256), label, config=BuildConceptDictionaryConfig(n_null=1))
        named = found.q_value <= 0.05
        assert named[:51].all()
        shares.append(named[51:].sum() / named.sum())

    assert np.mean(shares) <= 0.05


def test_build_concept_dictionary__tells_a_continuous_label_by_rank(rng):
    """Latent 0 is a monotone function of the label, latent 1 its opposite, the others nothing."""
    label = rng.normal(size=400)
    codes = np.c_[np.exp(label), np.exp(-label), rng.random((400, 10))]

    found = build_concept_dictionary(codes, identity(12), label)

    assert found.effect[:2] == pytest.approx([1, -1])
    assert (found.q_value[:2] <= 0.05).all()
    assert (found.q_value[2:] <= 0.05).sum() <= 1  # 5 % of the discoveries may be false
    assert found.best_latent[0] in (0, 1)
    assert np.isnan(found.precision).all()
    assert "|rho| 1.00" in found.reading()


def test_build_concept_dictionary__takes_concepts_that_go_together(rng):
    """Two independent properties in columns; latent 0 tells the first, latent 1 the second."""
    properties = rng.random((300, 2)) < 0.4

    found = build_concept_dictionary(
        properties.astype(float),
        identity(2),
        properties,
        config=BuildConceptDictionaryConfig(names=("returns", "code"), n_null=2),
    )

    assert found.concept == ("returns", "code")
    assert found.best_concept.tolist() == [0, 1]
    assert found.concept_f1.tolist() == [1, 1]
    assert found.effects[[0, 1], [0, 1]].tolist() == [1, 1]


def test_build_concept_dictionary__looks_at_the_strongest_position_that_is_not_padding(rng):
    label = np.arange(120) % 3
    codes = np.zeros((120, 4, 3))
    codes[np.arange(120), rng.integers(0, 3, 120), label] = 1.0
    codes[:, 3] = 9.0  # padding fires everything
    mask = np.broadcast_to(np.array([1, 1, 1, 0]), (120, 4)).copy()

    found = build_concept_dictionary(codes, identity(3), label, mask, config=QUICK)

    assert found.effect.tolist() == [1, 1, 1]
    assert found.n_active.tolist() == [40, 40, 40]
    assert (build_concept_dictionary(codes, identity(3), label, config=QUICK).n_active == 120).all()


def test_build_concept_dictionary__leaves_out_what_is_too_rare():
    codes, label = planted()
    codes[:, 7] = -1.0
    codes[:5, 8], codes[5:, 8] = 1.0, -1.0
    label[:5], label[5:][label[5:] == 5] = 5, 4

    found = build_concept_dictionary(codes, identity(26), label, config=QUICK)

    assert found.n_tested == 24
    assert found.n_concepts_tested == 5
    assert (found.best_concept[7], found.best_latent[5]) == (-1, -1)
    assert np.isnan(found.effect[[7, 8]]).all()
    assert np.isnan(found.concept_effect[5])
    silent = build_concept_dictionary(-np.abs(codes), identity(26), label, config=QUICK)
    assert np.isnan(silent.labelled.value)
    assert "No latent fires" in silent.reading()


# Oracle
def test_build_concept_dictionary__effects_equal_scikit_learn_on_the_held_out_half(rng):
    codes, label = planted(n_samples=200)
    codes = np.where(codes > 0, np.round(codes, 1), codes)  # ties

    found = build_concept_dictionary(codes, identity(26), label, config=QUICK)

    chosen, held = halves(label, 0)
    peak = np.maximum(codes, 0).astype(np.float32)
    for latent, concept in [(0, 0), (3, 1), (12, 5)]:
        truth, score = label[held] == concept, peak[held, latent]
        assert found.effects[latent, concept] == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
    cuts = np.unique(peak[chosen, 2])
    best = max(cuts, key=lambda cut: f1_score(label[chosen] == 2, peak[chosen, 2] >= cut))
    wanted = f1_score(label[held] == 2, peak[held, 2] >= best)
    assert found.concept_f1[2] == pytest.approx(wanted, abs=1e-12)


def test_hypergeometric_tails__equal_scipy():
    """To 1e-9 relative, from logarithms of factorials; down to 1e-200."""
    tails = hypergeometric_tails(np.array([0, 3, 40, 500]), 60, 1000)

    for row, size in zip(tails, (0, 3, 40, 500), strict=True):
        np.testing.assert_allclose(row, stats.hypergeom.sf(np.arange(61) - 1, 1000, 60, size), rtol=1e-9, atol=1e-300)


def test_chances__of_a_class_equal_drawn_permutations(rng):
    """The exact p-value against 20,000 shuffles: standard error 0.0035 at most."""
    fires, member = rng.random(60) < 0.3, rng.random(60) < 0.25
    member[:4] = fires[:4] = True
    drawn = rng.permuted(np.tile(member, (20_000, 1)), axis=1)
    overlap = int(np.sum(fires & member))

    exact = hypergeometric_tails(np.array([fires.sum()]), int(member.sum()), 60)[0, overlap]

    assert np.mean(np.sum(drawn & fires, axis=1) >= overlap) == pytest.approx(exact, abs=0.012)


def test_auroc_interval__solves_newcombes_equation():
    """By another root finder, at four places, one of them the edge."""
    from scipy.optimize import brentq

    found, n_in, n_out = np.array([0.5, 0.8, 0.97, 1.0]), np.array([20, 30, 8, 10]), np.array([40, 30, 90, 30])
    low, high = auroc_interval(found, n_in, n_out, 0.95)
    for value, m, n, below, above in zip(found, n_in, n_out, low, high, strict=True):

        def excess(t, value=value, m=m, n=n):
            star = (m + n) / 2 - 1
            variance = t * (1 - t) * (1 + star * (1 - t) / (2 - t) + star * t / (1 + t)) / (m * n)
            return (value - t) ** 2 - stats.norm.ppf(0.975) ** 2 * variance

        assert below == pytest.approx(brentq(excess, 1e-9, value - 1e-9), abs=1e-9)
        assert above == (1.0 if value == 1 else pytest.approx(brentq(excess, value + 1e-9, 1 - 1e-12), abs=1e-6))


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_interval__covers_the_truth(rng, ties):
    """Normal scores 1.2 apart: AUROC = Phi(1.2 / sqrt 2) = 0.802. 2000 draws of 25 in 150: 95 +- 2 %, wider if tied."""
    n_draws, n_in, n_out = 2000, 25, 125
    scores = rng.normal(size=(n_in + n_out, n_draws)) + 1.2 * (np.arange(n_in + n_out) < n_in)[:, None]
    truth = stats.norm.cdf(1.2 / np.sqrt(2))
    if ties:  # a sparse code: all below 1 are equal
        scores = np.maximum(scores, 1.0)
        a, b = stats.norm.sf(-0.2), stats.norm.sf(1.0)
        grid = np.linspace(1, 9, 80_001)
        above = np.trapezoid(stats.norm.pdf(grid - 1.2) * (stats.norm.cdf(grid) - stats.norm.cdf(1)), grid)
        truth = above + a * (1 - b) + 0.5 * (1 - a) * (1 - b)
    member = (np.arange(n_in + n_out) < n_in)[:, None]
    found = auroc(centred_ranks(scores), member)[:, 0]
    low, high = auroc_interval(found, np.full(n_draws, n_in), np.full(n_draws, n_out), 0.95)
    covered = np.mean((low <= truth) & (truth <= high))

    assert covered >= 0.93
    assert ties or covered <= 0.97


def test_spearman_interval__covers_the_truth(rng):
    """Bivariate normal with r = 0.6: rho = 6/pi asin(r/2) = 0.582. 2000 draws of 80: 95 +- 2 %."""
    x, y = rng.normal(size=(2, 80, 2000))
    y = 0.6 * x + 0.8 * y
    a, b = centred_ranks(x), centred_ranks(y)
    found = np.sum(a * b, axis=0) / np.sqrt(np.sum(a**2, axis=0) * np.sum(b**2, axis=0))
    low, high = spearman_interval(found, 80, 0.95)
    truth = 6 / np.pi * np.arcsin(0.3)

    assert np.mean((low <= truth) & (truth <= high)) == pytest.approx(0.95, abs=0.02)


# Law
@settings(max_examples=15)
@given(st.integers(0, 99), st.integers(2, 5), st.booleans())
def test_build_concept_dictionary__stays_in_its_bounds_and_repeats_its_bits(seed, n_classes, continuous):
    codes, label = planted(n_samples=64, n_classes=n_classes, n_idle=3, seed=seed)
    label = codes[:, 0] + label.astype(float) if continuous else label

    found, again = (build_concept_dictionary(codes, identity(codes.shape[1]), label, config=QUICK) for _ in range(2))

    least = -1 if continuous else 0
    known = ~np.isnan(found.effect)
    assert (least <= found.effect_low[known]).all()
    assert (found.effect_low[known] <= found.effect[known]).all()
    assert (found.effect[known] <= found.effect_high[known]).all()
    assert (found.effect_high[known] <= 1).all()
    assert ((found.q_value[known] > 0) & (found.q_value[known] <= 1)).all()
    np.testing.assert_array_equal(found.q_values, again.q_values)
    assert found.scalars() == pytest.approx(again.scalars(), rel=0, abs=0, nan_ok=True)


def test_build_concept_dictionary__does_not_depend_on_the_scale_or_order_of_latents():
    codes, label = planted()
    order = generator(1, "order").permutation(26)

    found = build_concept_dictionary(codes, identity(26), label, config=QUICK)
    other = build_concept_dictionary(codes[:, order] * 4, identity(26), label, config=QUICK)

    np.testing.assert_allclose(other.effects, found.effects[order], rtol=1e-12)
    np.testing.assert_allclose(other.q_value, found.q_value[order], rtol=1e-12)


def test_build_concept_dictionary__chunked_equals_whole(monkeypatch):
    codes, label = planted(n_samples=100)
    whole = build_concept_dictionary(codes, identity(26), label, config=QUICK)
    monkeypatch.setattr(sys.modules["mechint_core.features._encoded_blocks"], "CHUNK_VALUES", 26 * 7)

    chunked = build_concept_dictionary(codes, identity(26), label, config=QUICK)

    np.testing.assert_array_equal(chunked.effects, whole.effects)
    np.testing.assert_array_equal(chunked.n_active, whole.n_active)


# Bad input
@pytest.mark.parametrize(("codes", "label"), [((20, 3), 20), ((40, 4), 40), ((40, 2, 2, 3), 40)], ids=str)
def test_build_concept_dictionary__refuses_shapes_that_do_not_fit(codes, label):
    with pytest.raises(ShapeError, match="must be"):
        build_concept_dictionary(np.ones(codes), identity(3), np.arange(label) % 2, config=QUICK)


def test_build_concept_dictionary__refuses_a_mask_or_names_that_do_not_fit():
    codes, label = np.ones((40, 5, 3)), np.arange(40) % 2
    with pytest.raises(ShapeError, match="mask must be"):
        build_concept_dictionary(codes, identity(3), label, np.ones((40, 4), dtype=int), config=QUICK)
    with pytest.raises(ShapeError, match="names must be one per concept, 2"):
        build_concept_dictionary(codes, identity(3), label, config=BuildConceptDictionaryConfig(names=("only",)))


@pytest.mark.parametrize("label", [np.zeros(40, int), np.arange(40), np.zeros(40)], ids=["one", "rare", "constant"])
def test_build_concept_dictionary__refuses_labels_without_a_concept(label):
    with pytest.raises(DegenerateInputError, match="must have a concept"):
        build_concept_dictionary(np.eye(3)[np.arange(40) % 3], identity(3), label, config=QUICK)


def test_build_concept_dictionary__refuses_numbers_that_are_not_finite():
    codes, label = np.eye(3)[np.arange(40) % 3], np.arange(40.0)
    with pytest.raises(DegenerateInputError, match="label must be finite"):
        build_concept_dictionary(codes, identity(3), np.where(label == 3, np.nan, label), config=QUICK)
    codes[0, 0] = np.inf
    with pytest.raises(DegenerateInputError, match="activations must be finite"):
        build_concept_dictionary(codes, identity(3), label, config=QUICK)


@pytest.mark.parametrize(
    "option",
    [{"level": 1.0}, {"false_discovery": 0.0}, {"min_samples": 3}, {"n_null": 0}, {"n_permutations": 0}, {"seed": -1}],
)
def test_build_concept_dictionary__refuses_impossible_options(option):
    with pytest.raises(ConfigurationError, match="must be"):
        BuildConceptDictionaryConfig(**option)
