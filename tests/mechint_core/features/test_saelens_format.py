import json
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from safetensors.torch import save_file

from mechint_core.errors import CheckpointError, ConfigurationError
from mechint_core.features.crosscoder import Crosscoder
from mechint_core.features.dictionaries.config import SparseAutoencoderConfig
from mechint_core.features.saelens_format import export_saelens, import_saelens
from mechint_core.features.sparse_autoencoder import SparseAutoencoder
from mechint_core.features.transcoder import Transcoder
from mechint_core.random import torch_generator
from tests.peers import sae_lens

N_UNITS, N_LATENTS, N_WRITTEN = 6, 12, 5
SAME = {"rtol": 1e-5, "atol": 1e-5}  # float32, the same sums in another order
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch_generator(seed, "test"))


def randomised(module, seed=0):
    """Give every weight a random value; thresholds and what makes them stay near 0.3."""
    with torch.no_grad():
        for at, (name, each) in enumerate(sorted(module.named_parameters())):
            size = 0.3 if each.ndim == 1 else 1.0
            each.copy_(size * draw(*each.shape, seed=100 * seed + at))
            if name == "threshold":
                each.abs_()
        if hasattr(module, "topk_threshold"):
            module.topk_threshold.fill_(0.4)
    return module


def ours(activation, *, kind="autoencoder", seed=0, **options):
    """A dictionary in its final form: random weights, and thresholds where its kind has them."""
    config = SparseAutoencoderConfig(activation=activation, n_latents=N_LATENTS, k=3, **options)
    if kind == "autoencoder":
        made = randomised(SparseAutoencoder(N_UNITS, N_LATENTS, config=config), seed)
    else:
        made = randomised(Transcoder(N_UNITS, N_WRITTEN, skip=kind == "skip", config=config), seed)
    if activation in ("gated", "jumprelu", "batch_topk"):
        made.threshold.copy_(0.3 * draw(N_LATENTS, seed=seed + 50))
    made.site = "blocks.1.hook_resid_post"
    return made


OURS = {
    "standard": {"activation": "relu"},
    "standard, tied": {"activation": "relu", "tied_weights": True},
    "gated": {"activation": "gated"},
    "topk": {"activation": "topk"},
    "jumprelu": {"activation": "jumprelu"},
    "jumprelu, batch_topk": {"activation": "batch_topk"},
    "jumprelu, Matryoshka": {"activation": "batch_topk", "levels": (2, 5)},
    "transcoder": {"activation": "relu", "kind": "transcoder"},
    "skip_transcoder": {"activation": "relu", "kind": "skip"},
    "jumprelu_transcoder": {"activation": "batch_topk", "kind": "transcoder"},
    "jumprelu_skip_transcoder": {"activation": "gated", "kind": "skip"},
}
"""By what they become there."""


def write(folder, about, weights):
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(about))
    save_file({name: torch.as_tensor(each) for name, each in weights.items()}, folder / "sae_weights.safetensors")
    return folder


def by_hand(folder, *, without=(), weights=(), **options):
    """Two units and two latents, written without any library: latent 0 reads x0 + x1, latent 1 reads x0 - x1."""
    about = {
        "architecture": "standard",
        "d_in": 2,
        "d_sae": 2,
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.0.hook_mlp_out", "model_name": "gpt2"},
    }
    tensors = {
        "W_enc": [[1.0, 1.0], [1.0, -1.0]],
        "b_enc": [0.0, -1.0],
        "W_dec": [[2.0, 0.0], [0.0, 1.0]],
        "b_dec": [1.0, 0.0],
    }
    about = {name: each for name, each in (about | options).items() if name not in without}
    tensors = {name: each for name, each in (tensors | dict(weights)).items() if name not in without}
    return write(folder, about, tensors)


# Known answer
def test_import_saelens__reads_a_folder_written_by_hand(tmp_path):
    made = import_saelens(by_hand(tmp_path))

    codes = made.encode(torch.tensor([[4.0, 1.0], [1.0, 2.0]]))  # minus b_dec: (3, 1) and (0, 2)

    assert codes.tolist() == [[4.0, 1.0], [2.0, 0.0]]
    assert made.decode(codes).tolist() == [[9.0, 1.0], [5.0, 0.0]]
    assert (made.site, made.config.activation) == ("blocks.0.hook_mlp_out", "relu")


def test_import_saelens__adds_b_dec_where_theirs_does_not_subtract_it(tmp_path):
    made = import_saelens(by_hand(tmp_path, apply_b_dec_to_input=False))

    assert made.encode(torch.tensor([4.0, 1.0])).tolist() == [5.0, 2.0]


def test_import_saelens__opens_a_gate_of_its_own_bias(tmp_path):
    gate = {"b_mag": [0.0, 5.0], "b_gate": [-3.0, 0.0], "r_mag": [math.log(2.0), 0.0]}

    made = import_saelens(by_hand(tmp_path, architecture="gated", without=("b_enc",), weights=gate))

    x = torch.tensor([[4.0, 1.0], [2.0, 0.5], [1.0, 2.0]])  # z: (4, 2), (1.5, 0.5), (2, -2)
    torch.testing.assert_close(made.encode(x), torch.tensor([[8.0, 7.0], [0.0, 5.5], [0.0, 0.0]]))


def test_import_saelens__folds_the_factor_of_training(tmp_path):
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 0.5, "has_whitening": false}')
    folder = by_hand(tmp_path, normalize_activations="expected_average_only_in")

    made = import_saelens(folder)

    assert made.encode(torch.tensor([8.0, 2.0])).tolist() == [4.0, 1.0]  # the codes of (4, 1)
    assert made(torch.tensor([8.0, 2.0])).tolist() == [18.0, 2.0]  # and twice its reconstruction


@pytest.mark.parametrize("hook", ["hook_point", "hook_name"])
def test_import_saelens__reads_the_one_level_config_of_before_version_6(tmp_path, hook):
    old = {hook: "blocks.3.hook_resid_pre", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 1}}

    made = import_saelens(by_hand(tmp_path, without=("architecture", "metadata", "apply_b_dec_to_input"), **old))

    assert made.encode(torch.tensor([4.0, 1.0])).tolist() == [4.0, 0.0]
    assert made.site == "blocks.3.hook_resid_pre"


def test_export_saelens__writes_what_they_would(tmp_path):
    made = ours("batch_topk", levels=(2, 5))
    export_saelens(made, tmp_path, model_name="gpt2")

    about = json.loads((tmp_path / "cfg.json").read_text())

    assert {name: about[name] for name in ("architecture", "d_in", "d_sae", "dtype")} == {
        "architecture": "jumprelu",
        "d_in": N_UNITS,
        "d_sae": N_LATENTS,
        "dtype": "float32",
    }
    assert about["apply_b_dec_to_input"] is True
    assert about["metadata"]["hook_name"] == "blocks.1.hook_resid_post"
    assert about["metadata"]["model_name"] == "gpt2"
    assert about["metadata"]["training_architecture"] == "matryoshka_batchtopk"
    assert about["metadata"]["training_architecture_details"] == {"k": 3, "matryoshka_widths": [2, 5, 12]}


# Oracle
@pytest.mark.oracle
@pytest.mark.parametrize("case", OURS)
def test_export_saelens__their_library_computes_the_same(tmp_path, case):
    made, x = ours(**OURS[case]), draw(200, N_UNITS, seed=9)
    export_saelens(made, tmp_path)

    theirs = sae_lens().SAE.load_from_disk(tmp_path)

    assert theirs.cfg.architecture() == case.split(",")[0]
    assert theirs.cfg.metadata.hook_name == made.site
    torch.testing.assert_close(theirs.encode(x), made.encode(x), **SAME)
    torch.testing.assert_close(theirs(x), made(x), **SAME)


def their_sae(architecture, apply_b_dec_to_input):
    library = sae_lens()
    options = {"d_in": N_UNITS, "d_sae": N_LATENTS, "apply_b_dec_to_input": apply_b_dec_to_input}
    if architecture == "topk":
        options |= {"k": 3}
    if architecture == "topk rescaled":
        options |= {"k": 3, "rescale_acts_by_decoder_norm": True}
    if "transcoder" in architecture:
        options |= {"d_out": N_WRITTEN, "apply_b_dec_to_input": False}
    kind, config = library.registry.get_sae_class(architecture.split()[0])
    return randomised(kind(config(**options)), seed=3)


@pytest.mark.oracle
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "gated", "topk", "topk rescaled", "jumprelu", *TRANSCODERS])
def test_import_saelens__computes_what_their_library_does(tmp_path, architecture, apply_b_dec_to_input):
    theirs, x = their_sae(architecture, apply_b_dec_to_input), draw(200, N_UNITS, seed=9)
    theirs.save_model(tmp_path)

    made = import_saelens(tmp_path)

    torch.testing.assert_close(made.encode(x), theirs.encode(x), **SAME)
    torch.testing.assert_close(made(x), theirs(x), **SAME)


def their_training_sae(architecture, normalize="none"):
    library = sae_lens()
    options = {"d_in": N_UNITS, "d_sae": N_LATENTS, "normalize_activations": normalize}
    if "topk" in architecture:
        options |= {"k": 3}
    if architecture == "matryoshka_batchtopk":
        options |= {"matryoshka_widths": [2, 5, N_LATENTS]}
    kind, config = library.registry.get_sae_training_class(architecture)
    return randomised(kind(config(**options)), seed=4)


@pytest.mark.oracle
@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in"])
@pytest.mark.parametrize("architecture", ["standard", "gated", "topk", "jumprelu", "batchtopk", "matryoshka_batchtopk"])
def test_import_saelens__takes_a_checkpoint_of_training_as_their_final_save(tmp_path, architecture, normalize):
    """Training scales activations by 0.7; at its end SAELens folds that into the weights, and saves for inference."""
    theirs, x = their_training_sae(architecture, normalize), draw(200, N_UNITS, seed=9)
    theirs.save_model(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "activation_scaler.json").write_text('{"scaling_factor": 0.7}')
    if normalize != "none":
        theirs.fold_activation_norm_scaling_factor(0.7)
    theirs.save_inference_model(tmp_path / "final")

    final = sae_lens().SAE.load_from_disk(tmp_path / "final")

    for folder in ("checkpoint", "final"):
        made = import_saelens(tmp_path / folder)
        torch.testing.assert_close(made.encode(x), final.encode(x), **SAME)
        torch.testing.assert_close(made(x), final(x), **SAME)
        if "batchtopk" in architecture:
            assert (made.config.activation, made.config.k) == ("batch_topk", 3)
            assert made.config.levels == ((2, 5) if "matryoshka" in architecture else ())


# Law
@given(st.sampled_from(sorted(OURS)), st.integers(0, 3))
def test_export_saelens__import_gives_back_the_same_dictionary(tmp_path_factory, case, seed):
    made, folder = ours(**OURS[case], seed=seed), tmp_path_factory.mktemp("saelens")
    export_saelens(made, folder)

    back, x = import_saelens(folder), draw(50, N_UNITS, seed=seed)

    assert (type(back), back.site) == (type(made), made.site)
    assert (back.config.k, back.config.levels) == (made.config.k, made.config.levels) or "topk" not in case
    torch.testing.assert_close(back.encode(x), made.encode(x), rtol=1e-6, atol=1e-6)  # a gate's bias is rounded once
    torch.testing.assert_close(back(x), made(x), rtol=1e-6, atol=1e-6)


# Bad input
def test_export_saelens__refuses_a_crosscoder(tmp_path):
    made = Crosscoder([3, 3], config=SparseAutoencoderConfig(n_latents=N_LATENTS, k=3))

    with pytest.raises(ConfigurationError, match=r"SparseAutoencoder or a Transcoder\. Got a Crosscoder"):
        export_saelens(made, tmp_path)


def test_export_saelens__refuses_a_topk_transcoder(tmp_path):
    with pytest.raises(ConfigurationError, match="must not be topk in a transcoder"):
        export_saelens(ours("topk", kind="transcoder"), tmp_path)


@pytest.mark.parametrize("missing", ["cfg.json", "sae_weights.safetensors"])
def test_import_saelens__refuses_a_folder_without_a_file(tmp_path, missing):
    (by_hand(tmp_path) / missing).unlink()

    with pytest.raises(CheckpointError, match=rf"{missing} must exist"):
        import_saelens(tmp_path)


@pytest.mark.parametrize(("text", "match"), [("{", "a JSON object. Got something else"), ("[]", "Got a list")])
def test_import_saelens__refuses_a_config_that_is_none(tmp_path, text, match):
    (by_hand(tmp_path) / "cfg.json").write_text(text)

    with pytest.raises(CheckpointError, match=match):
        import_saelens(tmp_path)


def test_import_saelens__refuses_broken_weights(tmp_path):
    (by_hand(tmp_path) / "sae_weights.safetensors").write_bytes(b"\0" * 20)

    with pytest.raises(CheckpointError, match="must be a safetensors file"):
        import_saelens(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "missing"),
    [("standard", "b_enc"), ("jumprelu", "threshold"), ("gated", "b_mag"), ("topk", "k"), ("standard", "d_sae")],
)
def test_import_saelens__refuses_what_lacks_a_part(tmp_path, architecture, missing):
    with pytest.raises(CheckpointError, match=rf"all that {architecture} needs. There is no '{missing}'"):
        import_saelens(by_hand(tmp_path, architecture=architecture, without=(missing,)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"d_sae": 3}, r"W_enc must have shape \(2, 3\). Got \(2, 2\)"),
        ({"weights": {"b_enc": [0.0]}}, r"b_enc must have shape \(2,\). Got \(1,\)"),
    ],
)
def test_import_saelens__refuses_weights_of_another_size(tmp_path, change, match):
    with pytest.raises(CheckpointError, match=match):
        import_saelens(by_hand(tmp_path, **change))


@pytest.mark.parametrize("architecture", ["temporal", "matching_pursuit", "abstopk", None])
def test_import_saelens__refuses_another_architecture(tmp_path, architecture):
    with pytest.raises(ConfigurationError, match=f"architecture must be one of standard.*Got {architecture!r}"):
        import_saelens(by_hand(tmp_path, architecture=architecture))


@pytest.mark.parametrize("normalize", ["layer_norm", "constant_norm_rescale", "covariance_whitening"])
def test_import_saelens__refuses_vectors_normalised_one_by_one(tmp_path, normalize):
    with pytest.raises(ConfigurationError, match="normalize_activations must be none or expected"):
        import_saelens(by_hand(tmp_path, normalize_activations=normalize))


def test_import_saelens__refuses_scaled_weights_without_their_factor(tmp_path):
    folder = by_hand(tmp_path, normalize_activations="expected_average_only_in")
    with pytest.raises(CheckpointError, match=r"activation_scaler.json must exist"):
        import_saelens(folder)

    (folder / "activation_scaler.json").write_text('{"scaling_factor": null}')
    with pytest.raises(CheckpointError, match="must hold the scaling_factor"):
        import_saelens(folder)


@pytest.mark.parametrize(
    ("old", "match"),
    [
        ({"activation_fn_str": "tanh-relu"}, "activation_fn must be relu or topk. Got 'tanh-relu'"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor must be off"),
    ],
)
def test_import_saelens__refuses_old_options_that_change_the_codes(tmp_path, old, match):
    with pytest.raises(ConfigurationError, match=match):
        import_saelens(by_hand(tmp_path, without=("metadata",), **old))
