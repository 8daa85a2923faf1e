from dataclasses import replace

import numpy as np
import pytest
import torch

from mechint_core.circuits import (
    EdgeAttributionConfig,
    EdgePatchingConfig,
    edge_attribution,
    edge_patching,
)
from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.random import generator
from mechint_core.synthetic.compiled_programs import (
    FRACTION_EDGES,
    FRACTION_POSITION_EDGES,
    REVERSE_EDGES,
    REVERSE_POSITION_EDGES,
    fraction_of_previous_model,
    fraction_prompts,
    reverse_model,
    reverse_prompts,
)
from mechint_core.synthetic.induction_model import (
    CHANGED_EDGES,
    INDUCTION_EDGES,
    induction_model,
    induction_prompts,
)
from mechint_core.synthetic.small_transformer import SmallTransformer

FEW = {"n_draws": 200}


def kept_edges(found) -> set[tuple[str, str]]:
    return {
        (sender, receiver)
        for sender, receiver, kept in zip(found.sender, found.receiver, found.kept, strict=True)
        if kept
    }


def separates(found, true) -> bool:
    """AUROC 1: every edge of the circuit has a larger score than every other edge."""
    inside = np.array([edge in true for edge in zip(found.sender, found.receiver, strict=True)])
    strength = np.abs(found.score)
    return strength[inside].min() > strength[~inside].max()


def random_pairs(seed: int = 0, n_pairs: int = 20):
    draws = generator(seed, "random pairs")
    clean, corrupted = draws.integers(0, 8, size=(2, n_pairs, 4))
    target = draws.integers(0, 8, size=n_pairs)
    return clean, corrupted, target, (target + draws.integers(1, 8, size=n_pairs)) % 8


def answered_pairs(model: SmallTransformer, n_pairs: int = 40):
    """Pairs with the model's own answers: an effect there is."""
    clean, corrupted, _, _ = random_pairs(n_pairs=n_pairs)
    with torch.no_grad():
        answers = [model(torch.from_numpy(each))[:, -1].argmax(dim=-1).numpy() for each in (clean, corrupted)]
    return clean, corrupted, *answers


def small(seed: int = 0, **options) -> SmallTransformer:
    return SmallTransformer(vocabulary=8, n_positions=4, width=8, hidden=8, norm=True, seed=seed, **options)


# Known answer
@pytest.mark.parametrize("change", ["prompt", "first", "second", "last"])
def test_edge_attribution__finds_the_induction_circuit_and_nothing_else(change):
    prompts = induction_prompts(24, change=change).values()
    found = edge_attribution(induction_model(), *prompts, config=EdgeAttributionConfig(**FEW))
    assert separates(found, CHANGED_EDGES[change])
    assert kept_edges(found) == CHANGED_EDGES[change]


@pytest.mark.parametrize("ablation", ["corrupted", "zero"])
def test_edge_attribution__ranks_the_edges_of_compiled_programs_first(ablation):
    for model, prompts, options, edges, places in (
        (reverse_model(), reverse_prompts(32), {"answer_position": 1}, REVERSE_EDGES, REVERSE_POSITION_EDGES),
        (
            fraction_of_previous_model(),
            fraction_prompts(32),
            {"metric": "distance"},
            FRACTION_EDGES,
            FRACTION_POSITION_EDGES,
        ),
    ):
        config = EdgeAttributionConfig(ablation=ablation, **options, **FEW)
        found = edge_attribution(model, *prompts.values(), config=config)
        assert separates(found, edges if ablation == "zero" else edges - places)
        assert np.isnan(found.completeness.value) == (ablation == "zero")


def test_edge_attribution__zero_ablation_shows_the_edges_that_carry_places():
    config = EdgeAttributionConfig(ablation="zero", **FEW)
    found = edge_attribution(induction_model(), *induction_prompts(24).values(), config=config)
    assert separates(found, INDUCTION_EDGES)


def test_edge_attribution__is_exact_and_says_so_where_the_model_is_linear():
    """Only what is copied differs: values and the read-out are linear, the pattern is fixed."""
    prompts = induction_prompts(24, change="second").values()
    for method in ("gradient", "integrated"):
        found = edge_attribution(induction_model(), *prompts, config=EdgeAttributionConfig(method=method, **FEW))
        assert found.completeness.value == pytest.approx(1, abs=1e-9)
        assert found.relative_error.value == pytest.approx(0, abs=1e-9)
        assert found.correlation.value == pytest.approx(1, abs=1e-9)
        assert found.trusted
        assert "exact cuts confirm" in found.reading()
        np.testing.assert_allclose(found.verified_points[:, 0], found.verified_points[:, 1], atol=1e-9)


def test_edge_attribution__says_that_gradients_are_blind_where_attention_saturates():
    """The induction head looks away only if its query is another; at the clean run its softmax is flat."""
    prompts = list(induction_prompts(24, change="last").values())
    config = EdgeAttributionConfig(method="gradient", **FEW)
    blind = edge_attribution(induction_model(), *prompts, config=config)
    seeing = edge_attribution(induction_model(), *prompts, config=replace(config, method="integrated"))
    query = blind.edge.index("input → layers.1.attention.0:query")
    assert abs(blind.score[query]) < 0.01
    assert seeing.score[query] > 0.5
    assert not blind.trusted
    assert "not to be trusted" in blind.reading()


def test_edge_attribution__without_verification_is_called_a_guess():
    config = EdgeAttributionConfig(n_verified=0, **FEW)
    found = edge_attribution(induction_model(), *induction_prompts(24).values(), config=config)
    assert "take it as a guess" in found.reading()
    assert found.verified == ()


def test_edge_attribution__is_undefined_without_a_difference():
    clean, _, target, foil = random_pairs()
    found = edge_attribution(small(), clean, clean, target, foil, config=EdgeAttributionConfig(**FEW))
    assert not found.defined
    assert found.n_kept == 0
    assert np.isnan(found.strongest.value)
    assert np.isnan(found.correlation.value)


# Oracle
@pytest.mark.parametrize("granularity", ["head", "qkv"])
def test_edge_attribution__agrees_with_exact_patching_on_what_it_verified(granularity):
    model = small(dtype=torch.float64)
    pairs = answered_pairs(model)
    found = edge_attribution(model, *pairs, config=EdgeAttributionConfig(granularity=granularity, n_verified=30, **FEW))
    exact = edge_patching(model, *pairs, config=EdgePatchingConfig(granularity=granularity, **FEW))
    place = {edge: k for k, edge in enumerate(exact.edge)}
    wanted = exact.score[[place[edge] for edge in found.verified]]
    np.testing.assert_allclose(found.verified_points[:, 1], wanted, atol=1e-9)
    assert len(found.verified) == len(set(found.verified)) == min(30, found.n_edges)
    # A random model, softly attending: integrated gradients come close, though not to every edge.
    assert np.corrcoef(found.score, exact.score)[0, 1] > 0.9


# Law
def test_edge_attribution__completeness_comes_with_steps_for_both_rules_and_directions():
    model = small(dtype=torch.float64)
    pairs = answered_pairs(model)
    for direction in ("noising", "denoising"):
        for rule, n_steps, within in (("midpoint", 1, 0.5), ("midpoint", 20, 0.01), ("gauss-legendre", 5, 0.01)):
            config = EdgeAttributionConfig(
                direction=direction, rule=rule, n_steps=n_steps, n_verified=0, granularity="head", **FEW
            )
            found = edge_attribution(model, *pairs, config=config)
            assert found.completeness.value == pytest.approx(1, abs=within)
            assert found.completeness.low <= found.completeness.value <= found.completeness.high


def test_edge_attribution__same_seed_same_bits_and_the_model_as_it_was():
    model = small().train()
    config = EdgeAttributionConfig(granularity="head", **FEW)
    first, second = (edge_attribution(model, *answered_pairs(model), config=config) for _ in range(2))
    assert all(np.array_equal(first.arrays()[name], second.arrays()[name], equal_nan=True) for name in first.arrays())
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


def test_edge_attribution__kept_edges_lead_from_the_input_to_the_output():
    model = small()
    config = EdgeAttributionConfig(n_edges=12, n_verified=0, **FEW)
    kept = kept_edges(edge_attribution(model, *answered_pairs(model), config=config))
    nodes = {sender for sender, _ in kept}
    entered = {receiver.partition(":")[0] for _, receiver in kept}
    assert 0 < len(kept) <= 12
    assert nodes - {"input"} <= entered
    assert entered - {"output"} <= nodes


@pytest.mark.slow
def test_edge_attribution__untrained_models_and_random_answers_give_nothing_significant():
    """200 models: any edge significant in at most 5 % of them, give or take a binomial 3 sigma."""
    config = EdgeAttributionConfig(granularity="head", n_draws=199, n_steps=2, n_verified=0)
    false = sum(edge_attribution(small(k), *random_pairs(k), config=config).n_significant > 0 for k in range(200))
    assert false <= 200 * 0.05 + 3 * np.sqrt(200 * 0.05 * 0.95)


# Bad input
def test_edge_attribution__raises_on_pairs_and_models_that_make_no_sense():
    clean, corrupted, target, foil = random_pairs()
    with pytest.raises(ShapeError, match="sample >= 2"):
        edge_attribution(small(), clean[:1], corrupted[:1], target[:1], foil[:1])
    with pytest.raises(ConfigurationError, match="logit_difference needs a target"):
        edge_attribution(small(), clean, corrupted)
    with pytest.raises(NotFoundError, match="Give components"):
        edge_attribution(torch.nn.Linear(4, 4), np.ones((3, 4)), np.zeros((3, 4)), np.zeros(3, int))
    broken = small()
    broken.unembed.weight.data[0, 0] = torch.inf
    with pytest.raises(DegenerateInputError, match="output must be finite"):
        edge_attribution(broken, clean, corrupted, target, foil)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "activations"}, "method must be one of integrated, gradient"),
        ({"rule": "left"}, "rule must be one of midpoint, gauss-legendre"),
        ({"n_steps": 0}, "n_steps must be at least 1"),
        ({"n_verified": -1}, "n_verified at least 0"),
        ({"method": "gradient", "metric": "kl"}, "the gradient of kl must not be 0"),
        ({"granularity": "neuron"}, "granularity must be one of"),
    ],
)
def test_edge_attribution__config_names_what_is_wrong(options, message):
    config = EdgeAttributionConfig()
    for name, value in options.items():  # past the type checker of the tests, which meets some of these first
        object.__setattr__(config, name, value)
    with pytest.raises(ConfigurationError, match=message):
        config.__post_init__()
