"""Transcoders: a planted sparse map from one space to another, found from its inputs and outputs."""

from dataclasses import replace

import numpy as np
import pytest

from mechint_core.features import SparseAutoencoderConfig, match_features, train_transcoder
from mechint_core.random import generator
from mechint_core.synthetic.sparse_dictionary import sparse_dictionary

CONFIG = SparseAutoencoderConfig(n_latents=48, k=2, n_epochs=20, batch_size=400)


def planted_map(linear=0.0):
    """Features read along one dictionary and written along another, into fewer units; plus a linear path."""
    planted = sparse_dictionary(20_000, n_units=32, n_features=48, p_active=0.04)
    draws = generator(0, "map")
    written = draws.standard_normal((48, 24)).astype(np.float32)
    written /= np.linalg.norm(written, axis=1, keepdims=True)
    path = linear * draws.standard_normal((32, 24)).astype(np.float32)
    return planted.activations + 3, 5 * planted.codes @ written + planted.activations @ path - 1, written


# Known answer
@pytest.mark.parametrize("activation", ["batch_topk", "jumprelu"])
def test_train_transcoder__finds_what_is_written_for_what_is_read(activation):
    read, written, directions = planted_map()
    transcoder, training = train_transcoder(read, written, config=replace(CONFIG, activation=activation))

    assert match_features(transcoder.W_dec.detach().numpy(), directions).mcc.value > 0.95
    assert training.fvu.value < 0.1
    assert training.fvu.p_value == 0.05


def test_train_transcoder__a_skip_takes_what_is_linear():
    read, written, _ = planted_map(linear=0.5)

    short = replace(CONFIG, n_epochs=5)

    plain = train_transcoder(read, written, config=short)[1]
    skipping = train_transcoder(read, written, skip=True, config=short)[1]

    assert skipping.fvu.value < 0.7 * plain.fvu.value
