import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mechint_core.circuits import Circuit
from mechint_core.circuits.circuit import on_ways
from mechint_core.errors import ConfigurationError, CorruptStoreError, NotFoundError, ShapeError

EDGES = (
    ("input", "layers.0.attention.0:query"),
    ("input", "layers.0.attention.1:value"),
    ("layers.0.attention.0", "layers.1.mlp"),
    ("layers.0.attention.1", "output"),
    ("layers.1.mlp", "output"),
)


def circuit(kept=(True, True, True, True, False), **options) -> Circuit:
    return Circuit(
        sender=tuple(one for one, _ in EDGES),
        receiver=tuple(other for _, other in EDGES),
        score=np.array([0.5, -0.25, 1 / 3, np.nan, 0.0]),
        kept=np.array(kept),
        **options,
    )


# Known answer
def test_circuit__knows_its_edges_nodes_and_size():
    found = circuit()
    assert found.edges == EDGES
    assert found.kept_edges == EDGES[:4]
    assert found.size == 4
    assert found.nodes == ("input", "layers.0.attention.0", "layers.0.attention.1", "layers.1.mlp", "output")


def test_circuit__pruned_keeps_whole_ways_only():
    assert circuit().pruned().kept_edges == (EDGES[1], EDGES[3])
    assert circuit((True,) * 5).pruned().size == 5
    assert circuit((False, True, True, False, True)).pruned().size == 0


def test_circuit__a_position_of_the_input_begins_a_way():
    found = on_ways((("input@2", "mlp"), ("mlp", "output"), ("other", "output")), np.ones(3, dtype=bool))
    assert found.tolist() == [True, True, False]


def test_circuit__mask_follows_the_order_of_the_models_edges():
    here = (*reversed(EDGES), ("input", "output"))
    assert circuit().mask(here).tolist() == [False, True, True, True, True, False]


def test_circuit__is_made_of_the_fields_of_a_stored_result():
    fields = {
        "sender": ["input", "mlp"],
        "receiver": ["mlp", "output"],
        "score": np.array([1.0, 2.0], dtype=np.float32),
        "kept": np.array([1, 0], dtype=np.int8),
        "discovered_on": ["ab", "cd"],
        "low": np.zeros(2),
    }
    config = {"granularity": "head", "metric": "kl", "components": ["parts.*"], "seed": 3}
    found = Circuit.from_fields(fields, config=config, method="acdc")
    assert found.kept.tolist() == [True, False]
    assert found.components == ("parts.*",)
    assert (found.granularity, found.metric, found.ablation, found.method) == ("head", "kl", "corrupted", "acdc")
    assert found.discovered_on == ("ab", "cd")


def test_circuit__file_can_be_read_by_hand(tmp_path):
    circuit(model="induction", method="edge_patching").save(tmp_path / "one.json")
    text = (tmp_path / "one.json").read_text()
    about = json.loads(text)
    assert about["mechint_circuit"] == 1
    assert about["model"] == "induction"
    assert '\n  {"sender": "layers.0.attention.1", "receiver": "output", "score": null, "kept": true},\n' in text
    assert sorted(each.name for each in tmp_path.iterdir()) == ["one.json"]


def test_circuit__file_without_components_means_the_default_ones():
    text = circuit().to_json()
    assert '"components": []' in text
    assert Circuit.from_json(text.replace(' "components": [],\n', "")).components == ()


def test_circuit__knows_whether_its_input_is_taken_apart():
    assert not circuit().split_input
    assert replace(circuit(), sender=("input@0", "input@1", *circuit().sender[2:])).split_input


# Law
@given(st.lists(st.booleans(), min_size=5, max_size=5), st.floats(allow_nan=True, allow_infinity=False))
def test_circuit__comes_back_from_json_as_it_was(kept, number):
    options = {"discovered_on": ("ab",), "ablation": "mean", "granularity": "qkv", "components": ("parts.*", "mlp")}
    found = replace(circuit(kept, **options), score=np.full(5, number))
    back = Circuit.from_json(found.to_json())
    for name in ("sender", "receiver", "metric", "method", "model", *options):
        assert getattr(back, name) == getattr(found, name)
    np.testing.assert_array_equal(back.score, found.score)
    np.testing.assert_array_equal(back.kept, found.kept)


@given(st.lists(st.booleans(), min_size=5, max_size=5))
def test_circuit__pruning_twice_is_pruning_once_and_never_adds(kept):
    once = circuit(kept).pruned()
    assert once.pruned().kept.tolist() == once.kept.tolist()
    assert not (once.kept & ~np.array(kept)).any()


# Bad input
def test_circuit__raises_on_edges_that_make_no_circuit():
    with pytest.raises(ShapeError, match=r"one receiver, score and kept per sender, 5"):
        replace(circuit(), receiver=("output",) * 4)
    with pytest.raises(ShapeError, match="per sender, 0"):
        Circuit(sender=(), receiver=(), score=np.empty(0), kept=np.empty(0, dtype=bool))
    with pytest.raises(
        ConfigurationError, match=r"every edge must be there once. Got input -> layers.0.attention.0:query"
    ):
        replace(circuit(), sender=("input",) * 5, receiver=(EDGES[0][1],) * 5)


def test_circuit__raises_on_edges_the_model_does_not_have():
    with pytest.raises(NotFoundError, match=r"Got 1 that are not: input -> layers.0.attention.0:query.*'qkv'"):
        circuit().mask(EDGES[1:])


def test_circuit__raises_on_files_that_hold_none(tmp_path):
    with pytest.raises(NotFoundError, match="Got no file"):
        Circuit.load(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("edges")
    with pytest.raises(CorruptStoreError, match="must be JSON"):
        Circuit.load(tmp_path / "text.json")
    (tmp_path / "other.json").write_text('{"mechint_circuit": 99}')
    with pytest.raises(CorruptStoreError, match=r"of version 1. Got 99"):
        Circuit.load(tmp_path / "other.json")
    (tmp_path / "part.json").write_text('{"mechint_circuit": 1, "edges": [{"sender": "input"}]}')
    with pytest.raises(CorruptStoreError, match=r"must hold a circuit. Got one without 'score'"):
        Circuit.load(tmp_path / "part.json")
    with pytest.raises(NotFoundError, match="none of the name 'score'"):
        Circuit.from_fields({"sender": [], "receiver": []})


def test_circuit__raises_on_options_that_are_not_known():
    text = circuit().to_json().replace('"qkv"', '"neuron"')
    with pytest.raises((ConfigurationError, CorruptStoreError, TypeError), match="granularity"):
        Circuit.from_json(text)
