"""Stability of circuits over prompts: planted circuits are found on every half, noise is not."""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mechint_core.circuits import CircuitStabilityConfig, circuit_stability
from mechint_core.circuits.circuit_stability import largest
from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.random import generator
from mechint_core.synthetic.induction_model import CHANGED_EDGES, INDUCTION_EDGES, induction_model, induction_prompts
from mechint_core.synthetic.small_transformer import SmallTransformer

unchecked = inspect.unwrap(circuit_stability)  # without the shape checker of the tests, to meet our own messages


def stable_of(found):
    return {
        edge for edge, here in zip(zip(found.sender, found.receiver, strict=True), found.stable, strict=True) if here
    }


def untrained_pairs(seed, n=40):
    draws = generator(seed, "pairs")
    clean, corrupted = draws.integers(0, 8, size=(2, n, 4))
    target, foil = draws.permuted(np.tile(np.arange(8), (n, 1)), axis=1)[:, :2].T
    model = SmallTransformer(vocabulary=8, n_positions=4, width=8, n_layers=2, n_heads=2, seed=seed)
    return model, clean, corrupted, target, foil


# Known answer
@pytest.mark.parametrize("change", ["first", "second", "last"])
@pytest.mark.parametrize("scoring", ["exact", "attribution"])
def test_circuit_stability__every_half_finds_the_planted_edges(change, scoring):
    config = CircuitStabilityConfig(scoring=scoring, n_edges=len(CHANGED_EDGES[change]), n_splits=10)
    found = circuit_stability(induction_model(sharpness=6.0), **induction_prompts(24, change=change), config=config)
    assert stable_of(found) == CHANGED_EDGES[change]
    assert found.stability.value == 1
    assert found.stability.p_value < 0.1  # two random ways of two edges are the same in a twentieth of the draws
    assert found.n_kept == found.n_stable == len(CHANGED_EDGES[change])
    assert (found.frequency[~found.stable] == 0).all()


def test_circuit_stability__cutting_to_zero_finds_the_edges_of_places_on_every_half():
    config = CircuitStabilityConfig(scoring="exact", ablation="zero", n_splits=10)
    found = circuit_stability(induction_model(), **induction_prompts(24), config=config)
    assert stable_of(found) == INDUCTION_EDGES
    assert "share 1.00 [1.00, 1.00] of their edges" in found.reading()


def test_circuit_stability__the_bound_on_false_edges_is_meinshausens():
    """7 of 81 edges at 0.9: 49 / (0.8 x 81)."""
    config = CircuitStabilityConfig(scoring="exact", ablation="zero", n_splits=5)
    found = circuit_stability(induction_model(), **induction_prompts(24), config=config)
    assert found.expected_false == pytest.approx(49 / (0.8 * 81))


def test_circuit_stability__is_undefined_without_an_effect():
    found = circuit_stability(*untrained_pairs(0), config=CircuitStabilityConfig(n_splits=5))
    assert not found.defined
    assert np.isnan(found.stability.value)
    assert found.n_kept == found.n_stable == 0
    assert "no circuit whose stability could be measured" in found.reading()


# Oracle
def test_circuit_stability__equals_sets_of_the_strongest_edges_half_by_half():
    draws = generator(0, "effects")
    strength = draws.random((6, 30))
    kept = largest(strength, 7)
    for row, chosen in zip(strength, kept, strict=True):
        assert set(np.flatnonzero(chosen)) == set(sorted(range(30), key=lambda e: -row[e])[:7])


# Law
@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(0, 12))
def test_largest__keeps_as_many_as_asked_and_none_that_is_smaller(seed, n_kept):
    strength = generator(seed, "strength").integers(0, 4, size=(3, 12)).astype(float)  # with ties
    kept = largest(strength, n_kept)
    assert (kept.sum(axis=1) == n_kept).all()
    for row, chosen in zip(strength, kept, strict=True):
        assert not 0 < n_kept < 12 or row[chosen].min() >= row[~chosen].max()


def test_circuit_stability__same_seed_same_bits_and_no_dependence_on_packing():
    model, prompts = induction_model(), induction_prompts(12)
    first, second, packed = (
        circuit_stability(
            model, **prompts, config=CircuitStabilityConfig(n_edges=5, n_splits=5, scoring="exact", batch_rows=rows)
        ).scalars()
        for rows in (1024, 1024, 50)
    )
    np.testing.assert_equal(first, second)
    assert packed == pytest.approx(first, abs=1e-9)


def test_circuit_stability__untrained_models_give_halves_that_agree_no_more_than_chance_or_nothing():
    """20 untrained models with random answers: a stable circuit, by p <= 0.05, in at most 3 (5 %: 1, 99.7 %: 4)."""
    found = [
        circuit_stability(*untrained_pairs(seed), config=CircuitStabilityConfig(n_splits=5, seed=seed, n_draws=200))
        for seed in range(20)
    ]
    assert sum(bool(each.defined and each.stability.p_value <= 0.05) for each in found) <= 3


# Bad input
def test_circuit_stability__needs_two_halves_of_two():
    prompts = {name: each[:3] for name, each in induction_prompts(4).items()}
    with pytest.raises(ShapeError, match="at least 4 pairs"):
        unchecked(induction_model(), **prompts)


def test_circuit_stability__inputs_must_fit():
    prompts = induction_prompts(6)
    with pytest.raises(ConfigurationError, match="needs a target"):
        unchecked(induction_model(), prompts["clean"], prompts["corrupted"])
    with pytest.raises(DegenerateInputError, match="must be finite"):
        unchecked(induction_model(), np.full((4, 3), np.nan), np.zeros((4, 3)), np.zeros(4, int))
    config = CircuitStabilityConfig(components=("blocks.*",))
    with pytest.raises(NotFoundError, match="must match a site"):
        unchecked(induction_model(), **prompts, config=config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scoring": "guess"}, "scoring must be attribution or exact"),
        ({"n_splits": 0}, "n_steps, n_splits and n_null must be at least 1"),
        ({"stable_above": 0.5}, "stable_above must be above 0.5"),
    ],
)
def test_circuit_stability__config_names_what_is_wrong(options, message):
    config = CircuitStabilityConfig()
    for name, value in options.items():  # past the type checker of the tests, which meets some of these first
        object.__setattr__(config, name, value)
    with pytest.raises(ConfigurationError, match=message):
        config.__post_init__()
