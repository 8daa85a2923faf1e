"""Whether methods agree: on networks where they must, and where it is known why they do not."""

import inspect
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats

from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.interventions import (
    AttributionPatchingConfig,
    MethodAgreementConfig,
    PatchSitesConfig,
    attribution_patching,
    method_agreement,
    patch_sites,
)
from mechint_core.interventions.method_agreement import METHODS
from mechint_core.patching import ROUNDING
from mechint_core.random import generator, torch_generator
from mechint_core.synthetic.induction_model import INDUCTION_HEAD, PREVIOUS_HEAD, induction_model, induction_prompts
from mechint_core.synthetic.linear_network import LinearNetwork
from mechint_core.synthetic.planted_circuit import PlantedCircuit, planted_prompts
from mechint_core.synthetic.small_transformer import SmallTransformer

unchecked = inspect.unwrap(method_agreement)  # without the shape checker of the tests, to meet our own messages

PATCHES = ("denoising", "noising", "attribution", "integrated")


def linear_pairs(shares, n=30):
    draws = generator(0, "linear pairs")
    clean, corrupted = draws.normal(size=(2, n, 8))
    model = LinearNetwork(shares)
    return model, clean, corrupted, model(torch.from_numpy(clean)).argmax(dim=1).numpy()


def transformer_pairs(n=20, seed=0):
    draws = generator(seed, "prompts")
    clean = draws.integers(0, 8, size=(n, 4))
    corrupted = clean.copy()
    corrupted[:, -1] = (clean[:, -1] + draws.integers(1, 8, size=n)) % 8
    model = SmallTransformer(
        vocabulary=8, n_positions=4, width=8, n_layers=2, n_heads=2, hidden=8, norm=True, seed=seed
    )
    return model, clean, corrupted


# Known answer
@pytest.mark.parametrize("shares", [(3.0, 1.0, 2.0), (1.5, -0.5, 0.25, 2.0)])
def test_method_agreement__all_patches_agree_on_a_linear_network(shares):
    """Effects are the planted shares for every patch, exactly; 1e-9 because the network computes in float64."""
    model, clean, corrupted, target = linear_pairs(shares)
    config = MethodAgreementConfig(sites=("routes.*",), methods=PATCHES)

    found = method_agreement(model, clean, corrupted, target, config=config)

    np.testing.assert_allclose(found.effect, [model.shares] * 4, atol=1e-9)
    for matrix in (found.correlation, found.rank_correlation, found.sign_agreement, found.rank_correlation_low):
        np.testing.assert_allclose(matrix, 1, atol=1e-9)
    assert found.agreement.value == pytest.approx(1)
    assert found.part == tuple(f"routes.{k}" for k in range(len(shares)))
    assert found.method == PATCHES


def test_method_agreement__effects_that_differ_by_rounding_have_no_order():
    """A chain of three modules: patching any of them brings everything back, up to float32; nothing can be ranked."""
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
    draws = torch_generator(0, "chain")
    for each in model.parameters():
        torch.nn.init.normal_(each, std=0.5, generator=draws)
    clean, corrupted = generator(0, "chain").normal(size=(2, 30, 8))
    target = model(torch.from_numpy(clean).float()).argmax(dim=1).numpy()

    found = method_agreement(model, clean, corrupted, target, config=MethodAgreementConfig(methods=PATCHES))

    np.testing.assert_allclose(found.effect, 1, atol=1e-4)
    assert np.isnan(found.rank_correlation[0, 1])
    assert "same effect: they cannot be compared" in found.reading()


def test_method_agreement__noising_does_not_see_backups_nor_denoising_the_halves_of_an_and():
    """Parts 0 and 1: each is needed, neither suffices. 2 and 3 are backups of each other. The others do nothing."""
    network = PlantedCircuit(((0,), (1,), (2, 3)), n_parts=6)
    config = MethodAgreementConfig(sites=("parts.*",), methods=("denoising", "noising"), metric="logit_difference")

    found = method_agreement(network, **planted_prompts(40), config=config)

    denoising, noising = found.effect
    np.testing.assert_allclose(noising, [1, 1, 0, 0, 0, 0], atol=1e-9)
    np.testing.assert_allclose(denoising, 0, atol=1e-9)
    assert np.isnan(found.rank_correlation[0, 1])  # denoising says the same of all parts
    assert found.sign_agreement[0, 1] == pytest.approx(4 / 6)
    assert "gives all 6 parts the same effect" in found.reading()


def test_method_agreement__finds_the_planted_heads_by_every_exact_method():
    config = MethodAgreementConfig(by="head", methods=("denoising", "noising", "zero", "mean"))
    found = method_agreement(induction_model(), **induction_prompts(20, change="first"), config=config)
    assert found.n_parts == 8
    for effects in found.effect:
        strongest = {found.part[each] for each in np.argsort(-effects)[:2]}
        assert strongest == {PREVIOUS_HEAD, INDUCTION_HEAD}
    assert found.agreement.p_value <= 0.05
    assert "rank the 8 parts with a Spearman correlation of" in found.reading()


def test_method_agreement__is_undefined_where_there_is_no_effect():
    model, clean, corrupted = transformer_pairs(60)
    target = generator(0, "targets").integers(0, 8, size=60)  # which the model does not know
    found = method_agreement(model, clean, corrupted, target, config=MethodAgreementConfig(by="head", n_draws=50))
    assert not found.defined
    assert np.isnan(found.agreement.value)
    assert np.isnan(found.effect).all()
    assert np.isnan(found.rank_correlation).all()
    assert "no effect that methods could agree on" in found.reading()


# Oracle
def test_method_agreement__effects_are_those_of_the_techniques_themselves():
    model, clean, corrupted = transformer_pairs()
    shared = {"sites": ("layers.*.mlp", "layers.*.attention", "embed"), "metric": "kl"}

    found = method_agreement(
        model, clean, corrupted, config=MethodAgreementConfig(methods=PATCHES, n_draws=20, n_steps=4, **shared)
    )

    techniques = [
        patch_sites(model, clean, corrupted, config=PatchSitesConfig(direction=direction, control=False, **shared))
        for direction in ("denoising", "noising")
    ] + [
        attribution_patching(
            model,
            clean,
            corrupted,
            config=AttributionPatchingConfig(method=method, n_steps=4, n_verified=0, control=False, **shared),
        )
        for method in ("gradient", "integrated")
    ]
    # float32 forwards in batches of other sizes; shares of order 1.
    np.testing.assert_allclose(found.effect, [each.recovery for each in techniques], atol=1e-4)


def test_method_agreement__zero_ablation_is_a_forward_without_the_part():
    model, clean, corrupted = transformer_pairs()
    config = MethodAgreementConfig(
        sites=("layers.*.mlp", "embed"), methods=("zero", "denoising"), metric="kl", n_draws=20
    )
    found = method_agreement(model, clean, corrupted, config=config)

    def logits(tokens):
        return model(torch.from_numpy(tokens))[:, -1].double().log_softmax(dim=1)

    def kl(one, other):
        return (one.exp() * (one - other)).sum(dim=1)

    with torch.no_grad():
        whole = logits(clean)
        effect = -kl(whole, logits(corrupted)).mean()
        handle = model.mlp_of(0).register_forward_hook(lambda _, __, output: 0 * output)
        lost = -kl(whole, logits(clean)).mean()
        handle.remove()
    assert found.part[1] == "layers.0.mlp"
    assert found.effect[0, 1] == pytest.approx(float(lost / effect), abs=1e-5)


def test_method_agreement__correlations_are_scipys():
    model, clean, corrupted = transformer_pairs()
    found = method_agreement(model, clean, corrupted, config=MethodAgreementConfig(metric="kl", n_draws=20, n_steps=2))
    assert found.method == METHODS
    for a, b in combinations(range(len(METHODS)), 2):
        one, other = found.effect[[a, b]]
        assert found.correlation[a, b] == pytest.approx(stats.pearsonr(one, other).statistic, abs=1e-9)
        # Effects that differ by less than a rounding are ties. The clean score is 0, so the mean score is half of all.
        one, other = (np.round(each / (ROUNDING / 2)) for each in (one, other))
        assert found.rank_correlation[a, b] == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-9)


# Law
@pytest.mark.parametrize(("batch_rows", "cache_bytes"), [(7, 10**6), (64, 2000), (5, 1500)])
def test_method_agreement__does_not_depend_on_how_it_is_packed(batch_rows, cache_bytes):
    model, clean, corrupted, target = linear_pairs((2.0, 1.0, -0.5), n=12)
    options = {"sites": ("routes.*",), "n_draws": 20, "n_steps": 2}
    whole = method_agreement(model, clean, corrupted, target, config=MethodAgreementConfig(**options))
    parts = method_agreement(
        model,
        clean,
        corrupted,
        target,
        config=MethodAgreementConfig(**options, batch_rows=batch_rows, cache_bytes=cache_bytes),
    )
    for name, values in whole.arrays().items():
        np.testing.assert_allclose(parts.arrays()[name], values, atol=1e-9, err_msg=name)


def test_method_agreement__is_symmetric_and_within_bounds():
    model, clean, corrupted = transformer_pairs(seed=1)
    config = MethodAgreementConfig(by="head", metric="kl", n_draws=50, n_steps=2)
    found = method_agreement(model, clean, corrupted, config=config)
    for matrix in (found.correlation, found.rank_correlation, found.sign_agreement, found.p_value):
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    np.testing.assert_allclose(np.diagonal(found.rank_correlation), 1)
    assert (np.abs(found.rank_correlation) <= 1 + 1e-12).all()
    assert ((found.sign_agreement >= 0) & (found.sign_agreement <= 1)).all()
    assert np.isnan(np.diagonal(found.p_value)).all()


def test_method_agreement__leaves_the_model_as_it_was_and_gives_the_same_bits_again():
    model, clean, corrupted = transformer_pairs()
    model.train()
    config = MethodAgreementConfig(by="head", metric="kl", n_draws=20, n_steps=2)
    first, second = (method_agreement(model, clean, corrupted, config=config).scalars() for _ in range(2))
    np.testing.assert_equal(first, second)
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


# Bad input
def test_method_agreement__needs_three_parts():
    model, clean, corrupted, target = linear_pairs((2.0, 1.0))
    with pytest.raises(DegenerateInputError, match=r"at least 3 parts\. Got 2"):
        unchecked(model, clean, corrupted, target, config=MethodAgreementConfig(sites=("routes.*",)))


def test_method_agreement__needs_a_target_for_metrics_of_answers():
    model, clean, corrupted, _ = linear_pairs((2.0, 1.0, 1.0))
    with pytest.raises(ConfigurationError, match="needs a target"):
        unchecked(model, clean, corrupted)


def test_method_agreement__inputs_must_pair_up_be_finite_and_sites_exist():
    model, clean, corrupted, target = linear_pairs((2.0, 1.0, 1.0))
    with pytest.raises(ShapeError, match="same shape"):
        unchecked(model, clean, corrupted[:-1], target)
    with pytest.raises(DegenerateInputError, match="must be finite"):
        unchecked(model, np.full_like(clean, np.nan), corrupted, target)
    with pytest.raises(NotFoundError, match="must match a site"):
        unchecked(model, clean, corrupted, target, config=MethodAgreementConfig(sites=("blocks.*",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("denoising",)}, "methods must be at least two different ones"),
        ({"methods": ("denoising", "denoising")}, "methods must be at least two different ones"),
        ({"methods": ("denoising", "guessing")}, "methods must be at least two different ones"),
        ({"n_steps": 0}, "n_steps must be at least 1"),
        ({"by": "layer"}, "by must be one of"),
        ({"sites": ()}, "sites must be a tuple"),
    ],
)
def test_method_agreement__config_names_what_is_wrong(options, message):
    config = MethodAgreementConfig()
    for name, value in options.items():  # past the type checker of the tests, which meets some of these first
        object.__setattr__(config, name, value)
    with pytest.raises(ConfigurationError, match=message):
        config.__post_init__()
