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
    active = codes.sum(0) / np.maximum((codes > 0).sum(0), 1)
    np.testing.assert_allclose(result.mean_activation, active, rtol=1e-12)


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


@pytest.mark.parametrize(("value", "match"), [(np.nan, "must be finite"), (1.0, "must differ")])
def test_evaluate_dictionary__refuses_vectors_without_variance(value, match):
    with pytest.raises(DegenerateInputError, match=match):
        evaluate_dictionary(np.full((4, 6), value), random())


@pytest.mark.parametrize("option", [{"n_null": 0}, {"n_bootstrap": 0}, {"level": 1.0}, {"seed": -1}])
def test_evaluate_dictionary__refuses_impossible_options(option):
    with pytest.raises(ConfigurationError, match="must be"):
        EvaluateDictionaryConfig(**option)
