"""Dictionaries in SAELens's folder format: cfg.json and sae_weights.safetensors.

    theirs                                          here
    standard      relu(pre)                         relu
    jumprelu      relu(pre) where pre > t           jumprelu; batch_topk, Matryoshka (they save them so too)
    gated         relu(e^r z + b_mag) where         gated:  W_enc <- e^r W_enc,  b_enc = b_mag,
                  z + b_gate > 0                            t = b_mag - e^r b_gate
    topk          relu of the k largest             topk
    transcoder    standard, b_dec not subtracted    Transcoder with relu
    jumprelu_transcoder                             Transcoder with any other but topk
    ..skip_..     + W_skip x                        Transcoder(skip=True)

    z = W_enc (x - b_dec), pre = z + b_enc; their W_enc is (d_in, d_sae), the transpose of ours

Only files: the sae-lens package is not needed. Codes and reconstructions are the same numbers on both sides, so an
imported decoder keeps the norms of its rows (theirs need not be 1).

Source: the format of SAELens 6, and what it reads of older versions [@bloom2024].
Cost: one copy of the weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mechint_core.errors import CheckpointError, ConfigurationError
from mechint_core.features.dictionaries.config import Activation, SparseAutoencoderConfig
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.features.dictionaries.tensor_file import replace_durably, write_tensors
from mechint_core.features.sparse_autoencoder import SparseAutoencoder
from mechint_core.features.transcoder import Transcoder

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
SCALER = "activation_scaler.json"
FORMAT = "6.0.0"
"""The version of SAELens that introduced what is written here; a file without one is read as older."""

ACTIVATIONS: dict[str, Activation] = {
    "standard": "relu",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "gated": "gated",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
    "batchtopk": "batch_topk",
    "matryoshka_batchtopk": "batch_topk",
}


def export_saelens(dictionary: SparseDictionary, folder: Path | str, *, model_name: str | None = None) -> None:
    """Write a dictionary so that SAELens's `SAE.load_from_disk` reads it.

    Its `site` becomes their hook name. What only training needs is left out, but for k and the levels of batch_topk,
    which they keep as a note.

    Parameters
    ----------
    dictionary
        A trained `SparseAutoencoder` or `Transcoder`.
    folder
        Made if it does not exist.
    model_name
        The model that it belongs to, in the words of the library that will load it.

    Raises
    ------
    ConfigurationError
        If their format has no place for it: a crosscoder, or a transcoder with topk.
    """
    architecture = _architecture(dictionary)
    about = {
        "architecture": architecture,
        "d_in": dictionary.input_dim,
        "d_sae": dictionary.hidden_dim,
        "dtype": str(dictionary.W_dec.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.reconstructs,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": FORMAT,
            "sae_lens_training_version": None,
            "model_name": model_name,
            "hook_name": dictionary.site or None,
            **_training_note(dictionary.config, dictionary.hidden_dim),
        },
    }
    if architecture == "topk":
        about |= {"k": int(dictionary.config.k), "rescale_acts_by_decoder_norm": False}
    if not dictionary.reconstructs:
        about |= {"d_out": dictionary.output_dim}
    write_tensors(Path(folder) / WEIGHTS, _their_weights(dictionary, architecture), about)
    partial = Path(folder) / f"{CONFIG}.partial"
    partial.write_text(json.dumps(about, indent=2) + "\n")
    replace_durably(partial, Path(folder) / CONFIG)


def import_saelens(folder: Path | str) -> SparseAutoencoder | Transcoder:
    """Read a dictionary that SAELens saved, for inference or as a checkpoint of training.

    Its codes and reconstructions are theirs, of vectors as the model makes them; where they scaled activations by a
    constant in training, the constant is folded into the weights. Vectors of attention heads ("hook_z") are expected
    with the heads side by side. Their hook name becomes its `site`; the model's name and the number of a single head
    are not kept.

    Parameters
    ----------
    folder
        Holds `cfg.json` and `sae_weights.safetensors`; a checkpoint of a run that scaled activations also
        `activation_scaler.json`.

    Returns
    -------
    SparseAutoencoder or Transcoder
        On the CPU, in float32.

    Raises
    ------
    CheckpointError
        If a file is missing or broken, or a weight is missing or has another shape than the config says.
    ConfigurationError
        If its codes are no function of one vector that a dictionary here can compute: another architecture or
        activation, or activations normalised one by one.
    """
    folder = Path(folder)
    about = _modern(_read_config(folder / CONFIG))
    if about.get("architecture") not in ACTIVATIONS:
        raise ConfigurationError(
            f"architecture must be one of {', '.join(ACTIVATIONS)}. Got {about.get('architecture')!r}."
        )
    weights = _read_weights(folder / WEIGHTS)
    try:
        made = _blank(about)
        _check_shapes(weights, made)
        made.take({"alive": made.alive, **_our_weights(weights, about, _scaling(folder, about))})
    except KeyError as error:
        raise CheckpointError(
            f"{folder} must hold all that {about['architecture']} needs. There is no {error}."
        ) from error
    made.site = about["metadata"].get("hook_name") or ""
    return made


def _architecture(dictionary: SparseDictionary) -> str:
    """Return their name for what this dictionary computes."""
    if not isinstance(dictionary, SparseAutoencoder | Transcoder):
        raise ConfigurationError(
            f"dictionary must be a SparseAutoencoder or a Transcoder. Got a {type(dictionary).__name__}, for which "
            "SAELens has no format."
        )
    activation = dictionary.config.activation
    if dictionary.reconstructs and activation in ("topk", "gated"):
        return activation
    if activation == "topk":
        raise ConfigurationError("activation must not be topk in a transcoder: SAELens has no format for it. Got topk.")
    jumps = "" if activation == "relu" else "jumprelu"
    if dictionary.reconstructs:
        return jumps or "standard"
    return "_".join(word for word in (jumps, "" if dictionary.W_skip is None else "skip", "transcoder") if word)


def _training_note(config: SparseAutoencoderConfig, n_latents: int) -> dict[str, Any]:
    """Return what they record about a dictionary that was trained with batch_topk."""
    if config.activation != "batch_topk":
        return {}
    ends = torch.tensor(config.level_sizes(n_latents)).cumsum(0).tolist()
    levels = {"matryoshka_widths": ends} if config.levels else {}
    return {
        "training_architecture": "matryoshka_batchtopk" if levels else "batchtopk",
        "training_architecture_details": {"k": config.k, **levels},
    }


def _their_weights(dictionary: SparseDictionary, architecture: str) -> dict[str, Tensor]:
    bias, threshold = dictionary.b_enc, dictionary.threshold
    weights = {"W_enc": dictionary.W_enc.T.clone(), "W_dec": dictionary.W_dec, "b_dec": dictionary.b_dec}
    if architecture == "gated":  # g = pre - threshold opens where pre > threshold
        weights |= {"b_mag": bias, "b_gate": bias - threshold, "r_mag": torch.zeros_like(bias)}
    else:
        weights |= {"b_enc": bias}
    if "jumprelu" in architecture:
        weights |= {"threshold": threshold}
    if dictionary.W_skip is not None:
        weights |= {"W_skip": dictionary.get_parameter("W_skip")}
    return weights


def _read_config(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} must exist. There is no such file.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} must be a JSON object. Got something else.") from error
    if not isinstance(about, dict):
        raise CheckpointError(f"{path} must be a JSON object. Got a {type(about).__name__}.")
    return about


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return {name: tensor.float() for name, tensor in load_file(path).items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} must exist. There is no such file.") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} must be a safetensors file. Got {error}.") from error


def _modern(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config as version 6 would have it: before, all was on one level and some names were others."""
    if "metadata" in about:
        return dict(about)
    activation = about.get("activation_fn", about.get("activation_fn_str", "relu"))
    architecture = about.get("architecture", "standard")
    if activation == "topk":
        architecture = "topk"
    elif activation != "relu":
        raise ConfigurationError(f"activation_fn must be relu or topk. Got {activation!r}.")
    if about.get("finetuning_scaling_factor"):
        raise ConfigurationError("finetuning_scaling_factor must be off: SAELens 6 does not apply it. Got on.")
    normalize = about.get("normalize_activations") or "none"
    return {
        "apply_b_dec_to_input": True,
        **(about.get("activation_fn_kwargs") or {}),
        **about,
        "architecture": architecture,
        "normalize_activations": "expected_average_only_in" if normalize is True else normalize,
        "metadata": {"hook_name": about.get("hook_name", about.get("hook_point"))},
    }


def _scaling(folder: Path, about: Mapping[str, Any]) -> float:
    """Return the constant by which training multiplied activations, 1 if it is in the weights already."""
    normalize = about.get("normalize_activations", "none")
    if normalize == "none":
        return 1.0
    if normalize != "expected_average_only_in":
        raise ConfigurationError(
            f"normalize_activations must be none or expected_average_only_in. Got {normalize!r}, which is no part of "
            "the weights (covariance_whitening is, once their training has ended and folded it)."
        )
    factor = _read_config(folder / SCALER).get("scaling_factor")
    if not factor:
        raise CheckpointError(f"{folder / SCALER} must hold the scaling_factor of training. Got {factor}.")
    return float(factor)


def _blank(about: Mapping[str, Any]) -> SparseAutoencoder | Transcoder:
    """Return a dictionary of the right kind and size."""
    architecture, n_latents, n_read = about["architecture"], int(about["d_sae"]), int(about["d_in"])
    known = {**(about["metadata"].get("training_architecture_details") or {}), **about}
    activation = ACTIVATIONS[architecture]
    if activation == "jumprelu" and "batchtopk" in (about["metadata"].get("training_architecture") or ""):
        activation = "batch_topk"
    config = SparseAutoencoderConfig(
        activation=activation,
        n_latents=n_latents,
        k=known["k"] if "topk" in activation else min(SparseAutoencoderConfig().k, n_latents),
        levels=tuple(width for width in known.get("matryoshka_widths", ()) if width < n_latents),
    )
    if "transcoder" in architecture:
        return Transcoder(n_read, int(about["d_out"]), skip="skip" in architecture, config=config)
    return SparseAutoencoder(n_read, n_latents, config=config)


def _check_shapes(theirs: Mapping[str, Tensor], made: SparseDictionary) -> None:
    n_read, n_latents, n_written = made.input_dim, made.hidden_dim, made.output_dim
    shapes = {"W_enc": (n_read, n_latents), "W_dec": (n_latents, n_written), "W_skip": (n_written, n_read)}
    shapes |= {"b_dec": (n_written,), "topk_threshold": ()}
    shapes |= dict.fromkeys(("b_enc", "b_mag", "b_gate", "r_mag", "threshold"), (n_latents,))
    for name, shape in shapes.items():
        if name in theirs and theirs[name].shape != shape:
            raise CheckpointError(f"{name} must have shape {shape}. Got {tuple(theirs[name].shape)}.")


def _our_weights(theirs: Mapping[str, Tensor], about: Mapping[str, Any], scaling: float) -> dict[str, Tensor]:
    """Return their weights under the names and in the form that they have here."""
    W_enc, W_dec, b_dec = scaling * theirs["W_enc"].T, theirs["W_dec"] / scaling, theirs["b_dec"] / scaling
    bias, threshold = _bias_and_threshold(theirs, about["architecture"])
    factor = torch.ones_like(bias)
    if about["architecture"] == "gated":
        W_enc = theirs["r_mag"].exp()[:, None] * W_enc
    if about.get("rescale_acts_by_decoder_norm", False):  # codes count by what they add to the reconstruction
        factor = W_dec.norm(dim=1).clamp_min(torch.finfo(W_dec.dtype).tiny)
        threshold = threshold / scaling
    W_enc, W_dec, bias = factor[:, None] * W_enc, W_dec / factor[:, None], factor * bias
    if "transcoder" not in about["architecture"] and not about.get("apply_b_dec_to_input", True):
        bias = bias + W_enc @ b_dec  # encoding here subtracts b_dec from x
    skip = {"W_skip": theirs["W_skip"]} if "skip" in about["architecture"] else {}
    scale = torch.ones_like(b_dec)
    return {
        "W_enc": W_enc,
        "W_dec": W_dec,
        "b_enc": bias,
        "b_dec": b_dec,
        "threshold": threshold,
        "scale": scale,
        **skip,
    }


def _bias_and_threshold(theirs: Mapping[str, Tensor], architecture: str) -> tuple[Tensor, Tensor]:
    """Return what is added before a latent's code is cut, and where it is cut."""
    if architecture == "gated":
        return theirs["b_mag"], theirs["b_mag"] - theirs["r_mag"].exp() * theirs["b_gate"]
    if architecture.endswith("batchtopk"):
        return theirs["b_enc"], theirs["topk_threshold"].expand_as(theirs["b_enc"])
    if architecture.startswith("jumprelu"):
        return theirs["b_enc"], theirs["threshold"]
    return theirs["b_enc"], torch.zeros_like(theirs["b_enc"])
