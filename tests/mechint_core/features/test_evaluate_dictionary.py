import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.features import (
    EvaluateDictionaryConfig,
    SparseAutoencoder,
    SparseAutoencoderConfig,
    Transcoder,
    evaluate_dictionary,
)
from mechint_core.random import torch_generator
from mechint_core.synthetic.sparse_dictionary import sparse_dictionary

QUICK = EvaluateDictionaryConfig(n_bootstrap=20, n_null=2)


def dictionary(decoder, gain=1.0, threshold=0.0, activation="relu"):
    """An encoder that is the decoder transposed, times a gain."""
    decoder = torch.as_tensor(decoder, dtype=torch.float64)
    made = SparseAutoencoder(
        decoder.shape[1], len(decoder), config=SparseAutoencoderConfig(activation=activation, k=1)
    ).double()
    with torch.no_grad():
        made.W_dec.copy_(decoder)
        made.W_enc.copy_(gain * decoder)
        made.threshold.fill_(threshold)
    return made


def axes(d):
    return np.vstack([np.eye(d), -np.eye(d)])


def random(n_latents=24, d=6, seed=0, threshold=0.5):
    rows = torch.randn(n_latents, d, generator=torch_generator(seed, "rows"))
    return dictionary(torch.nn.functional.normalize(rows, dim=1), threshold=threshold)


# Known answer
def test_evaluate_dictionary__signed_axes_explain_everything(rng):
    """x = sum_i relu(x_i) e_i + relu(-x_i)(-e_i): exact, one of each pair active."""
    result = evaluate_dictionary(rng.normal(size=(200, 5)), dictionary(axes(5)))

    assert result.fvu.value == pytest.approx(0, abs=1e-20)
    assert result.l0.value == 5
    assert result.shrinkage.value == pytest.approx(1, rel=1e-12)
    assert result.dead_share.value == 0
    assert result.density.sum() == pytest.approx(5)


def test_evaluate_dictionary__codes_too_small_by_a_factor_show_as_shrinkage(rng):
    """x_hat = 0.7 x: shrinkage 0.7, and error 0.3^2 of the second moment."""
    x = rng.normal(size=(200, 5))

    result = evaluate_dictionary(x, dictionary(axes(5), gain=0.7))

    assert result.shrinkage.value == pytest.approx(0.7, rel=1e-12)
    assert result.fvu.value == pytest.approx(0.09 * np.sum(x**2) / np.sum((x - x.mean(0)) ** 2), rel=1e-12)


def test_evaluate_dictionary__counts_dead_latents_with_an_interval(rng):
    """Latents along +e_3 and -e_3 see only zeros: 2 of 6; Wilson's interval by hand."""
    x = rng.normal(size=(100, 3)) * [1, 1, 0]

    result = evaluate_dictionary(x, dictionary(axes(3)))

    assert result.dead_share.value == pytest.approx(1 / 3)
    assert (result.dead_share.low, result.dead_share.high) == pytest.approx((0.0968, 0.7000), abs=1e-4)
    assert (result.density == 0).sum() == 2


def test_evaluate_dictionary__a_silent_dictionary_is_worth_its_bias():
    x = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])

    result = evaluate_dictionary(x, dictionary(axes(2), threshold=10.0))

    assert result.l0.value == 0
    assert result.fvu.value == pytest.approx(np.sum(x**2) / np.sum((x - x.mean(0)) ** 2))
    assert np.isnan(result.shrinkage.value)
    assert result.dead_share.value == 1


def test_evaluate_dictionary__the_planted_dictionary_beats_its_null_and_a_random_one_does_not():
    planted = sparse_dictionary(2000, n_units=64, n_features=32, p_active=0.05)

    true = evaluate_dictionary(planted.activations, dictionary(planted.dictionary, threshold=0.3))
    null = evaluate_dictionary(planted.activations, random(32, 64, threshold=0.5))

    assert true.fvu.p_value == 0.05  # 1 / (1 + 19)
    assert true.fvu.value < 0.5 * true.fvu.null
    assert null.fvu.p_value > 0.05
    assert "no better than random" in null.reading()


def test_evaluate_dictionary__principal_components_explain_their_share_of_the_variance(rng):
    """Three independent units of variance 9, 4, 1: two of them active explain 13 of 14, to the data's own moments."""
    x = rng.normal(size=(400, 3)) * [3, 2, 1]
    two = dictionary(axes(3)[:2])

    result = evaluate_dictionary(np.abs(x), two, config=QUICK)
    controls = dict(zip(result.control, result.control_fvu, strict=True))
    power = np.linalg.eigvalsh(np.cov(np.abs(x).T))

    assert result.l0.value == 2
    assert controls["this dictionary"] == result.fvu.value
    assert controls["principal components"] == pytest.approx(power[0] / power.sum(), rel=1e-9)


def test_evaluate_dictionary__sparse_units_are_explained_by_as_many_units_and_by_no_subspace():
    """One unit of 32 active per vector, so that an L0 of 1 along the units explains nearly all; a line, 1/31 or so."""
    x = np.eye(32)[np.arange(320) % 32] * np.linspace(1, 2, 320)[:, None]

    result = evaluate_dictionary(x, dictionary(np.eye(32), threshold=0.5), config=QUICK)
    controls = dict(zip(result.control, result.control_fvu, strict=True))

    assert result.fvu.value == pytest.approx(0, abs=1e-20)
    assert controls["k units per vector"] < 0.1
    assert controls["principal components"] > 0.9
    assert controls["shuffled"] < 0.1  # the units of this dictionary are interchangeable
    assert controls["random"] > 0.5
    assert "explains less" in result.reading()


def test_evaluate_dictionary__shuffling_the_units_loses_what_the_planted_dictionary_knows():
    planted = sparse_dictionary(2000, n_units=64, n_features=32, p_active=0.05)

    result = evaluate_dictionary(planted.activations, dictionary(planted.dictionary, threshold=0.3), config=QUICK)
    controls = dict(zip(result.control, result.control_fvu, strict=True))

    for name in ("random", "untrained", "shuffled", "principal components"):
        assert controls["this dictionary"] < 0.5 * controls[name], name


def test_evaluate_dictionary__units_weigh_alike_in_r2_and_by_variance_in_fvu(rng):
    """The second unit is not explained: it has 1 / 101 of the variance and half of the R2."""
    x = np.abs(rng.normal(size=(300, 2))) * [10, 1]
    first = dictionary(axes(2)[:1])
    mean = x[:, 1].mean()
    first.b_dec.data[1] = mean

    result = evaluate_dictionary(x, first, config=QUICK)

    assert result.unit_r2.value == pytest.approx(0.5, abs=1e-12)
    assert result.fvu.value == pytest.approx(x[:, 1].var() / x.var(axis=0).sum(), rel=1e-12)
    assert 0.9 < result.cosine.value < 1


@pytest.mark.parametrize("skip", [False, True])
def test_evaluate_dictionary__a_transcoder_is_held_to_its_target(rng, skip):
    """y = relu(A x) + B x: latents that listen to the rows of A and write units, and a skip B, explain all of it."""
    hidden, linear, x = rng.normal(size=(5, 3)), rng.normal(size=(5, 3)) * skip, rng.normal(size=(200, 3))
    made = Transcoder(3, 5, skip=skip, config=SparseAutoencoderConfig(activation="relu", n_latents=5)).double()
    with torch.no_grad():
        made.W_enc.copy_(torch.from_numpy(hidden))
        made.W_dec.copy_(torch.eye(5))
        if made.W_skip is not None:
            made.W_skip.copy_(torch.from_numpy(linear))
    target = np.maximum(x @ hidden.T, 0) + x @ linear.T

    result = evaluate_dictionary(x, made, target)

    assert result.fvu.value == pytest.approx(0, abs=1e-20)
    assert result.fvu.null > 0.5
    controls = dict(zip(result.control, result.control_fvu, strict=True))
    best = np.linalg.lstsq(x - x.mean(0), target - target.mean(0), rcond=None)[0]
    error = target - target.mean(0) - (x - x.mean(0)) @ best
    assert result.l0.value < 3.5  # so the best map of rank round(L0) = 2 or 3 is at least as bad as the full one
    assert controls["principal components"] >= np.sum(error**2) / np.sum((target - target.mean(0)) ** 2) - 1e-9


# Oracle
@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_evaluate_dictionary__equals_the_formulas_on_the_whole_array(rng, activation, monkeypatch):
    """The function goes chunk by chunk (here of 10 rows); sums in float64 agree to rounding."""
    monkeypatch.setattr(sys.modules[evaluate_dictionary.__module__], "CHUNK_VALUES", 240)
    x, made = rng.normal(size=(157, 6)) + 0.3, random()
    made.config = SparseAutoencoderConfig(activation=activation, n_latents=24, k=4)
    made.b_dec.data = torch.from_numpy(rng.normal(size=6))

    codes = made.encode(torch.from_numpy(x)).detach().numpy()
    explained, target = codes @ made.W_dec.detach().numpy(), x - made.b_dec.detach().numpy()
    result = evaluate_dictionary(x, made, config=QUICK)

    assert result.fvu.value == pytest.approx(np.sum((target - explained) ** 2) / np.sum((x - x.mean(0)) ** 2))
    assert result.l0.value == pytest.approx(np.mean(np.sum(codes > 0, axis=1)))
    assert result.shrinkage.value == pytest.approx(np.sum(explained**2) / np.sum(explained * target))
    np.testing.assert_allclose(result.density, np.mean(codes > 0, axis=0))
    deviation = np.sum((x - x.mean(0)) ** 2, axis=0)
    assert result.unit_r2.value == pytest.approx(np.mean(1 - np.sum((target - explained) ** 2, axis=0) / deviation))
    a, b = explained + made.b_dec.detach().numpy() - x.mean(0), x - x.mean(0)
    cosine = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert result.cosine.value == pytest.approx(cosine.mean())
    active = codes.sum(0) / np.maximum((codes > 0).sum(0), 1)
    np.testing.assert_allclose(result.mean_activation, active, rtol=1e-12)


def test_evaluate_dictionary__a_target_that_is_the_input_changes_nothing_it_measures(rng):
    """Reduced-rank regression of x on itself is principal component analysis, to rounding."""
    x = rng.normal(size=(80, 6)) @ rng.normal(size=(6, 6))

    alone, given = evaluate_dictionary(x, random(), config=QUICK), evaluate_dictionary(x, random(), x, config=QUICK)

    assert given.scalars() == pytest.approx(alone.scalars(), rel=1e-9, nan_ok=True)
    np.testing.assert_allclose(given.control_fvu, alone.control_fvu, rtol=1e-6, atol=1e-9)


# Law
@settings(max_examples=15)
@given(st.integers(2, 40), st.floats(0, 2), st.integers(0, 9))
def test_evaluate_dictionary__stays_in_its_bounds_and_repeats_its_bits(n, threshold, seed):
    x = torch.randn(n, 6, generator=torch_generator(seed, "x")).numpy()
    made = random(seed=seed, threshold=threshold)

    result, again = (evaluate_dictionary(x, made, config=QUICK) for _ in range(2))

    assert result.fvu.value >= 0
    assert 0 <= result.l0.value <= 24
    assert 0 <= result.dead_share.low <= result.dead_share.value <= result.dead_share.high <= 1
    assert result.scalars() == pytest.approx(again.scalars(), rel=0, abs=0, nan_ok=True)


def test_evaluate_dictionary__positions_are_vectors_and_stay_together_in_the_bootstrap(rng):
    """Three equal positions per sample: the values of one, and an interval that is not narrower for the copies."""
    x = rng.normal(size=(60, 6))

    one = evaluate_dictionary(x, random())
    three = evaluate_dictionary(np.repeat(x[:, None], 3, axis=1), random())

    assert three.fvu.value == pytest.approx(one.fvu.value)
    assert three.l0.value == pytest.approx(one.l0.value)
    assert (three.l0.low, three.l0.high) == pytest.approx((one.l0.low, one.l0.high))
    assert three.n_vectors == 180


# Bad input
@pytest.mark.parametrize("shape", [(1, 6), (10, 5)])
def test_evaluate_dictionary__refuses_too_few_samples_or_other_units(shape):
    with pytest.raises(ShapeError, match="activations must be"):
        evaluate_dictionary(np.ones(shape), random())


def test_evaluate_dictionary__refuses_a_target_that_does_not_fit(rng, without_shape_checks):
    transcoder = Transcoder(6, 4, config=SparseAutoencoderConfig(n_latents=8, k=2))

    with pytest.raises(ConfigurationError, match="target must be given"):
        evaluate_dictionary(rng.normal(size=(10, 6)), transcoder)
    with pytest.raises(ShapeError, match="one vector for each"):
        evaluate_dictionary(rng.normal(size=(10, 6)), transcoder, rng.normal(size=(9, 4)))
    with pytest.raises(ShapeError, match="target must be"):
        evaluate_dictionary(rng.normal(size=(10, 6)), transcoder, rng.normal(size=(10, 5)))


@pytest.mark.parametrize(("value", "match"), [(np.nan, "must be finite"), (1.0, "must differ")])
def test_evaluate_dictionary__refuses_vectors_without_variance(value, match):
    with pytest.raises(DegenerateInputError, match=match):
        evaluate_dictionary(np.full((4, 6), value), random())


@pytest.mark.parametrize(
    "option", [{"n_null": 0}, {"n_bootstrap": 0}, {"level": 1.0}, {"seed": -1}, {"control_vectors": 1}]
)
def test_evaluate_dictionary__refuses_impossible_options(option):
    with pytest.raises(ConfigurationError, match="must be"):
        EvaluateDictionaryConfig(**option)
