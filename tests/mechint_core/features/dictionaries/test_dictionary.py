import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.nn import functional

from mechint_core.errors import CheckpointError, ConfigurationError, ShapeError
from mechint_core.features import Crosscoder, SparseAutoencoder, SparseAutoencoderConfig, Transcoder, load_dictionary
from mechint_core.features.dictionaries.standardisation import Standardisation
from mechint_core.random import torch_generator

ACTIVATIONS = ("batch_topk", "topk", "relu", "gated", "jumprelu")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch_generator(seed, "test"), dtype=torch.float64)


def dictionary(activation="batch_topk", tied_weights=False, seed=0, **options):
    """Six units, twelve latents, all weights random, in float64."""
    config = SparseAutoencoderConfig(activation=activation, tied_weights=tied_weights, k=3, seed=seed, **options)
    made = SparseAutoencoder(6, 12, config=config).double()
    with torch.no_grad():
        for at, (name, parameter) in enumerate(sorted(made.named_parameters())):
            parameter.copy_(draw(*parameter.shape, seed=100 + 10 * seed + at) * (0.3 if name.startswith("b_") else 1))
        made.W_dec.copy_(functional.normalize(made.W_dec, dim=1))
    return made


def units(centre, scale, n=6):
    return Standardisation(centre, torch.full((n,), scale, dtype=torch.float64), torch.tensor(1.0))


# Known answer
def test_dictionary__starts_as_the_transpose_of_its_decoder():
    for activation, norm in (("batch_topk", 1.0), ("relu", 0.1)):
        made = SparseAutoencoder(6, 12, config=SparseAutoencoderConfig(activation=activation, k=3))

        assert torch.equal(made.W_enc, made.W_dec)
        assert made.W_enc is not made.W_dec
        torch.testing.assert_close(made.W_dec.norm(dim=1), torch.full((12,), norm))


def test_dictionary__tied_weights_are_one_parameter():
    made = SparseAutoencoder(6, 12, sparsity_coef=0.1, tied_weights=True)

    assert made.W_enc is made.W_dec
    assert sum(parameter.numel() for parameter in made.parameters()) == 6 * 12 + 6 + 12


def test_encode__topk_has_exactly_k_active_where_so_many_are_positive():
    made, x = dictionary("topk"), draw(200, 6)

    n_positive = (functional.linear(x - made.b_dec, made.W_enc, made.b_enc) > 0).sum(dim=1)

    assert torch.equal((made.encode(x) > 0).sum(dim=1), n_positive.clamp_max(3))
    assert (n_positive > 3).any()


def test_encode__batch_topk_uses_its_threshold_and_not_the_batch():
    made, x = dictionary("batch_topk"), draw(50, 6)
    made.threshold.fill_(0.7)

    whole = made.encode(x)

    torch.testing.assert_close(torch.stack([made.encode(row) for row in x]), whole)
    assert whole[whole > 0].min() > 0.7


# Law
@settings(max_examples=30)
@given(st.sampled_from(ACTIVATIONS), st.booleans(), st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 5))
def test_folded__reconstructs_shifted_and_scaled_vectors_the_same(activation, tied_weights, scale, shift, seed):
    made = dictionary(activation, tied_weights and activation != "gated", seed)
    made.threshold.fill_(0.2 if activation == "batch_topk" else 0.0)
    x, centre = draw(20, 6, seed=seed), shift * draw(6, seed=seed + 1)

    folded = made.folded(units(centre, scale), units(centre, scale))

    tolerance = {"rtol": 1e-8, "atol": 1e-8 * (scale + abs(shift))}
    torch.testing.assert_close(folded(centre + scale * x), centre + scale * made(x), **tolerance)
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(12).double())


@settings(max_examples=20)
@given(st.sampled_from(ACTIVATIONS), st.booleans(), st.floats(0.01, 100), st.floats(0.01, 100), st.integers(0, 5))
def test_folded__transcodes_shifted_and_scaled_vectors_the_same(activation, skip, read_scale, write_scale, seed):
    config = SparseAutoencoderConfig(activation=activation, k=3, n_latents=12)
    made = Transcoder(6, 4, skip=skip, config=config).double()
    with torch.no_grad():
        for at, (_, parameter) in enumerate(sorted(made.named_parameters())):
            parameter.copy_(draw(*parameter.shape, seed=200 + 10 * seed + at))
    x, read, written = draw(20, 6, seed=seed), draw(6, seed=seed + 1), draw(4, seed=seed + 2)

    folded = made.folded(units(read, read_scale), units(written, write_scale, 4))

    found, expected = folded(read + read_scale * x), written + write_scale * made(x)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * (write_scale + 1))
    if activation != "topk":
        torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(12).double())


def test_folded__keeps_the_order_of_codes_over_sites_of_different_size():
    """topk over two sites: one factor for all latents, or other latents would be the largest."""
    config = SparseAutoencoderConfig(activation="topk", k=3, n_latents=12)
    made = Crosscoder([2, 4], config=config).double()
    x, scale = draw(50, 6), torch.tensor([100.0, 100, 1, 1, 1, 1], dtype=torch.float64)
    sizes = Standardisation(torch.zeros(6).double(), scale, torch.tensor(1.0))

    folded = made.folded(sizes, sizes)

    assert torch.equal(folded.encode(x * scale) > 0, made.encode(x) > 0)
    torch.testing.assert_close(folded(x * scale), made(x) * scale)
    torch.testing.assert_close(folded.site_shares(), made.site_shares())


@pytest.mark.parametrize("tied_weights", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_save__load_gives_back_the_same_bits(tmp_path, activation, tied_weights):
    tied_weights = tied_weights and activation != "gated"
    config = SparseAutoencoderConfig(activation=activation, tied_weights=tied_weights, k=3, seed=7, levels=(0.25, 6))
    made = SparseAutoencoder(6, 12, config=config)
    made.threshold.fill_(0.1)
    made.site = "layers.0"
    made.save(tmp_path)

    loaded = SparseAutoencoder.load(tmp_path)

    assert loaded.config == made.config
    assert loaded.site == "layers.0"
    assert all(torch.equal(loaded.tensors()[name], tensor) for name, tensor in made.tensors().items())
    assert (loaded.W_enc is loaded.W_dec) == tied_weights
    assert (tmp_path / "config.json").read_text().startswith("{")


@pytest.mark.parametrize(
    "made",
    [
        SparseAutoencoder(6, 12, sparsity_coef=0.1),
        Transcoder(6, 4, skip=True, config=SparseAutoencoderConfig(n_latents=40)),
        Transcoder(6, 4, config=SparseAutoencoderConfig(activation="gated")),
        Crosscoder([3, 5], sites=["a", "b"], config=SparseAutoencoderConfig(n_latents=40)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_load_dictionary__gives_back_every_kind(tmp_path, made):
    made.save(tmp_path)

    loaded = load_dictionary(tmp_path)

    assert loaded.about() == made.about()
    assert all(torch.equal(loaded.tensors()[name], tensor) for name, tensor in made.tensors().items())


def test_dictionary__codes_keep_the_axes_before_the_units():
    made = dictionary("topk")

    assert made.encode(draw(4, 3, 6)).shape == (4, 3, 12)
    assert made(draw(6)).shape == (6,)


# Bad input
def test_dictionary__refuses_more_active_latents_than_there_are():
    with pytest.raises(ConfigurationError, match="k must be at most the number of latents, 12"):
        SparseAutoencoder(6, 12)


def test_dictionary__refuses_no_units():
    with pytest.raises(ConfigurationError, match="at least 1 unit"):
        SparseAutoencoder(0, 40)


def test_encode__refuses_vectors_of_other_width():
    with pytest.raises(ShapeError, match="must have 6 units"):
        dictionary().encode(draw(4, 5))


def test_dictionary__refuses_levels_that_do_not_grow():
    with pytest.raises(ConfigurationError, match="levels must grow"):
        SparseAutoencoder(6, 12, config=SparseAutoencoderConfig(k=3, levels=(6, 4)))


@pytest.mark.parametrize("make", [lambda c: Transcoder(6, 4, config=c), lambda c: Crosscoder([3, 3], config=c)])
def test_dictionary__refuses_tied_weights_between_spaces(make):
    with pytest.raises(ConfigurationError, match="Got tied_weights"):
        make(SparseAutoencoderConfig(k=3, tied_weights=True))


def test_crosscoder__refuses_a_single_site():
    with pytest.raises(ConfigurationError, match="two sites or more"):
        Crosscoder([6])


def test_load__refuses_another_kind(tmp_path):
    Transcoder(6, 4, config=SparseAutoencoderConfig(n_latents=40)).save(tmp_path)

    with pytest.raises(CheckpointError, match=r"must hold a SparseAutoencoder\. Got a Transcoder"):
        SparseAutoencoder.load(tmp_path)


def test_load__refuses_a_config_of_other_fields(tmp_path, monkeypatch):
    made = SparseAutoencoder(6, 12, sparsity_coef=0.1)
    made.save(tmp_path)
    monkeypatch.setattr(
        "mechint_core.features.dictionaries.dictionary.read_tensors", lambda _: ({}, {"config": {"no": 1}})
    )

    with pytest.raises(CheckpointError, match="this version's fields"):
        SparseAutoencoder.load(tmp_path)


def test_take__refuses_weights_of_another_shape():
    with pytest.raises(CheckpointError, match=r"W_dec must have shape \(12, 6\). Got \(13, 6\)"):
        dictionary().take(SparseAutoencoder(6, 13, sparsity_coef=1.0).tensors() | {"b_dec": torch.zeros(6)})


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"activation": "topk", "k": 2.5}, "whole number"),
        ({"n_epochs": 0}, "n_epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"n_latents": 0}, "n_latents must be at least 1"),
        ({"sparsity_coef": -1.0}, "sparsity_coef must be at least 0"),
        ({"sparsity_coef": float("nan")}, "sparsity_coef must be at least 0"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"k": 0}, "k must be above 0"),
        ({"warmup": 1.5}, "warmup must be a share"),
        ({"p_end": 0}, "p_end must be above 0"),
        ({"levels": (0.5, 0)}, "levels must be above 0"),
        ({"activation": "gated", "tied_weights": True}, "rows of norm 1"),
    ],
)
def test_config__refuses_what_makes_no_sense(option, match):
    with pytest.raises(ConfigurationError, match=match):
        SparseAutoencoderConfig(**option)
