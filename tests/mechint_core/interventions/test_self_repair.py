"""Lesions and what makes up for them."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import binom
from torch import nn

from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.interventions import MediationConfig, SelfRepairConfig, mediation, self_repair
from mechint_core.models import Patch, capture, inference, patched
from mechint_core.random import generator
from mechint_core.synthetic.small_transformer import SmallTransformer

unchecked = inspect.unwrap(self_repair)  # without the shape checker of the tests, to meet our own messages


class Backup(nn.Module):
    """y = U (h + sum_k r_k (x - h)), h = main(x) = x: each backup writes share r_k of what the main route misses."""

    def __init__(self, shares):
        super().__init__()
        self.main = nn.Identity()
        self.backups = nn.ModuleList(nn.Linear(6, 6, bias=False, dtype=torch.float64) for _ in shares)
        for share, backup in zip(shares, self.backups, strict=True):
            backup.weight.data.copy_(share * torch.eye(6, dtype=torch.float64))
        self.readout = nn.Linear(6, 4, bias=False, dtype=torch.float64)
        self.readout.weight.data.copy_(torch.from_numpy(generator(0, "readout").normal(size=(4, 6))))

    def forward(self, x):
        h = self.main(x)
        return self.readout(h + sum(backup(x - h) for backup in self.backups))


def backup_data(shares, n=40):
    model, inputs = Backup(shares), generator(0, "backup data").normal(size=(n, 6))
    return model, inputs, model(torch.from_numpy(inputs)).argmax(dim=1).numpy()


AT_MAIN = SelfRepairConfig(site="main", others=("backups.*",))


# Known answer
@pytest.mark.parametrize("shares", [(0.5,), (0.75, 0.0), (0.3, 0.2, -0.4)])
def test_self_repair__backups_make_good_exactly_their_shares(shares):
    """Direct damage is all of it, compensation sum r of that, and backup k changes r_k of it: 1e-9 in float64."""
    model, inputs, target = backup_data(shares)

    found = self_repair(model, inputs, target, config=AT_MAIN)

    assert found.repaired_share == pytest.approx(sum(shares), abs=1e-9)
    np.testing.assert_allclose(found.change, np.array(shares) * found.direct.value, atol=1e-9)
    assert found.total.value == pytest.approx((1 - sum(shares)) * found.direct.value, abs=1e-9)
    assert found.compensation.value == pytest.approx(found.change.sum(), abs=1e-9)
    assert found.n_reacting == sum(share != 0 for share in shares)


def test_self_repair__says_who_takes_over():
    model, inputs, target = backup_data((0.75, 0.0))
    found = self_repair(model, inputs, target, config=AT_MAIN)
    assert "make good" in found.reading()
    assert "(75%)" in found.reading()
    assert "1 of 2 sites react: backups.0 +" in found.reading()
    assert found.p_value[1] == 1


def test_self_repair__direct_damage_of_a_mean_lesion_is_the_write_off_of_the_lesioned_site():
    model, inputs, target = backup_data((0.5,))
    u = model.readout.weight.detach().numpy()
    contrast = u[target] - (u.sum(axis=0) - u[target]) / 3

    found = self_repair(model, inputs, target, config=AT_MAIN)

    wanted = (contrast * (inputs - inputs.mean(axis=0))).sum(axis=1).mean()
    assert found.direct.value == pytest.approx(wanted, abs=1e-9)


# Oracle
@pytest.mark.parametrize("metric", ["loss", "logit_difference"])
def test_self_repair__equals_the_runs_of_its_definition_in_a_transformer(metric):
    model = SmallTransformer(vocabulary=7, hidden=8, norm=True, dtype=torch.float64)
    draws = generator(0, "tokens")
    tokens, target = draws.integers(0, 7, size=(20, 4)), draws.integers(0, 7, size=20)
    lesioned, others = "layers.0.attention", ("layers.0.mlp", "layers.1.attention", "layers.1.mlp")
    config = SelfRepairConfig(site=lesioned, others=others, ablation="zero", metric=metric, batch_rows=7)

    found = self_repair(model, tokens, target, config=config)

    classes = torch.from_numpy(target)

    def run(patches=()):
        with inference(model), capture(model, others) as seen, patched(model, list(patches)):
            logits = model(torch.from_numpy(tokens))[:, -1]
        right = logits.gather(1, classes[:, None])[:, 0]
        mean = (logits.sum(dim=1) - right) / 6
        worth = right - mean if metric == "logit_difference" else right - torch.logsumexp(logits, dim=1)
        return float(worth.mean()), dict(seen)

    intact, seen = run()
    lesion = Patch(lesioned, torch.zeros(20, 4, 16, dtype=torch.float64))
    total, reacted = run([lesion])
    direct, _ = run([lesion, *(Patch(site, seen[site]) for site in others)])
    assert found.total.value == pytest.approx(intact - total, abs=1e-9)
    assert found.direct.value == pytest.approx(intact - direct, abs=1e-9)
    assert found.compensation.value == pytest.approx(total - direct, abs=1e-9)
    for k, site in enumerate(others):
        assert found.change[k] == pytest.approx(run([Patch(site, reacted[site])])[0] - intact, abs=1e-9)


def test_self_repair__is_minus_the_indirect_effect_of_the_same_lesion_made_in_the_input():
    """Where the input is the lesioned site, a lesion is a corrupted prompt and the others are mediators."""
    model, inputs, target = backup_data((0.3, 0.2))
    model.main = nn.Sequential(model.main)  # the whole input passes it
    config = SelfRepairConfig(site="main", others=("backups.*",), ablation="zero")
    found = self_repair(model, inputs, target, config=config)

    class Lesioned(nn.Module):
        """Takes (x, h) side by side."""

        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, both):
            x, h = both.split(6, dim=1)
            return self.inner.readout(h + sum(backup(x - h) for backup in self.inner.backups))

    clean, corrupted = np.hstack([inputs, inputs]), np.hstack([inputs, 0 * inputs])
    through = mediation(
        Lesioned(), clean, corrupted, target, config=MediationConfig(sites=("inner.backups.*",), control=False)
    )
    assert found.total.value == pytest.approx(through.total.value, abs=1e-9)
    assert found.compensation.value == pytest.approx(-through.total_indirect.value, abs=1e-9)


# Law
@settings(max_examples=5)
@given(st.integers(2, 12), st.integers(3, 40), st.integers(1, 20_000), st.sampled_from(["mean", "resample", "noise"]))
def test_self_repair__does_not_depend_on_how_it_is_packed(n, batch_rows, cache_bytes, ablation):
    model, inputs, target = backup_data((0.4, 0.1), n)
    options = {"site": "main", "others": ("backups.*",), "ablation": ablation, "n_draws": 20}

    whole = self_repair(model, inputs, target, config=SelfRepairConfig(**options))
    config = SelfRepairConfig(**options, batch_rows=batch_rows, cache_bytes=cache_bytes)
    parts = self_repair(model, inputs, target, config=config)

    np.testing.assert_allclose(parts.change, whole.change, atol=1e-9)
    for name, estimate in whole.estimates().items():
        assert parts.estimates()[name].value == pytest.approx(estimate.value, abs=1e-9), name


@pytest.mark.parametrize("n_models", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_self_repair__untrained_models_do_not_repair_themselves_beyond_the_level(n_models):
    """Random transformers with answers at random: the rate at the level of 0.05 lies in its 99.9 % band."""
    hits = []
    for seed in range(n_models):
        model = SmallTransformer(vocabulary=7, n_layers=1, hidden=8, seed=seed)
        draws = generator(seed, "random answers")
        tokens, target = draws.integers(0, 7, size=(40, 3)), draws.integers(0, 7, size=40)
        config = SelfRepairConfig(site="layers.0.attention", others=("layers.0.mlp",), n_draws=199, seed=seed)
        hits.append(self_repair(model, tokens, target, config=config).compensation.p_value <= 0.05)
    assert sum(hits) <= binom.ppf(0.999, n_models, 0.05)


def test_self_repair__same_seed_same_bits_and_the_model_is_left_as_it_was():
    model, inputs, target = backup_data((0.4, 0.1))
    model.train()
    first, second = (self_repair(model, inputs, target, config=AT_MAIN) for _ in range(2))
    assert all(np.array_equal(first.arrays()[name], second.arrays()[name]) for name in first.arrays())
    assert all(each.training for each in model.modules())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


# Bad input
def test_self_repair__raises_on_sites_that_make_no_sense():
    model, inputs, target = backup_data((0.4,))
    with pytest.raises(ConfigurationError, match="others must name the sites that may react"):
        unchecked(model, inputs, target, config=SelfRepairConfig(site="main"))
    with pytest.raises(ConfigurationError, match="Got only 'main'"):
        unchecked(model, inputs, target, config=SelfRepairConfig(site="main", others=("main",)))
    with pytest.raises(ConfigurationError, match="site must name one module"):
        unchecked(model, inputs, target, config=SelfRepairConfig(site="*", others=("main",)))
    with pytest.raises(NotFoundError, match="'spare'"):
        unchecked(model, inputs, target, config=SelfRepairConfig(site="main", others=("spare",)))
    with pytest.raises(NotFoundError, match="''"):
        unchecked(model, inputs, target, config=SelfRepairConfig(others=("backups.*",)))


def test_self_repair__raises_on_inputs_that_make_no_sense():
    model, inputs, target = backup_data((0.4,))
    with pytest.raises(ShapeError, match="sample >= 2"):
        unchecked(model, inputs[:1], target[:1], config=AT_MAIN)
    with pytest.raises(ConfigurationError, match="needs a target"):
        unchecked(model, inputs, config=AT_MAIN)
    with pytest.raises(DegenerateInputError, match="inputs must be finite"):
        unchecked(model, np.nan * inputs, target, config=AT_MAIN)
