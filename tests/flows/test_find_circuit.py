"""From prompts to a circuit: found, verified on other prompts, followed through training, saved, run again."""

from pathlib import Path

import pytest

from flows.configuration import configuration, parse_configuration
from flows.find_circuit import find_circuit
from flows.plan import make_plan
from mechint_core.circuits import Circuit
from mechint_core.errors import ConfigurationError
from mechint_core.store import ActivationStore, ResultKey
from mechint_core.synthetic.induction_model import INDUCTION_HEAD, PREVIOUS_HEAD
from tasks.settings import settings
from tests.flows.copying import configuration as copying, write_run

pytestmark = pytest.mark.usefixtures("prefect_api", "home")

TRUE_HEADS = {"input", PREVIOUS_HEAD, INDUCTION_HEAD, "output"}


def stored(technique: str, name: str, step: int | None):
    key = ResultKey(run="copying", technique=technique, name=name, step=step)
    return ActivationStore(settings().store_location).result(key)


# Known answer
def test_find_circuit__finds_the_known_heads_verifies_them_and_says_when_they_formed(tmp_path: Path):
    found = find_circuit(write_run(tmp_path))

    assert set(found.circuits["induction", 20].nodes) == TRUE_HEADS
    own = stored("circuit_faithfulness", "induction", 20)
    before = stored("circuit_faithfulness", "induction of step 20", 0)
    assert own.estimates["faithfulness"].low > 0.95
    assert not before.estimates["faithfulness"].low > 0.5
    assert stored("compare_circuits", "induction", None).labels
    assert "induction" in found.report.read_text()
    assert found.readings["induction", 20] == own.reading


# Law
def test_find_circuit__a_second_run_does_nothing_again_and_a_saved_circuit_is_judged_anew(tmp_path: Path):
    path = write_run(tmp_path, steps=["last"], scan=[])
    first = find_circuit(path)
    saved = first.files["induction", 20]
    written = saved.stat().st_mtime_ns
    made = stored("edge_attribution", "induction", 20).provenance["made_at"]

    find_circuit(path)
    content = copying(steps=["last"], scan=[], name="again", circuit=str(saved), seed=0)
    again = find_circuit(parse_configuration(content, source="run.yaml", folder=tmp_path))

    assert saved.stat().st_mtime_ns == written
    assert stored("edge_attribution", "induction", 20).provenance["made_at"] == made
    assert Circuit.load(saved).kept_edges == again.circuits["again", 20].kept_edges
    assert (
        stored("circuit_faithfulness", "again", 20).estimates["faithfulness"]
        == stored("circuit_faithfulness", "induction", 20).estimates["faithfulness"]
    )


def test_plan__discovery_and_held_out_pairs_are_stored_apart(tmp_path: Path):
    plan = make_plan(configuration(write_run(tmp_path)), settings().store_location)
    discovery, held_out = (
        plan.behaviours[f"copying.induction.{part}"]["clean"].read() for part in ("discovery", "held-out")
    )
    assert len(discovery) == len(held_out) == 30
    assert not {row.tobytes() for row in discovery} & {row.tobytes() for row in held_out}


# Bad input
def test_find_circuit__no_behaviour_says_where_to_read(tmp_path: Path):
    content = copying() | {
        "circuits": [],
        "collect": {"dataset": "prompts", "inputs": ["clean"], "sites": ["layers.1.attention"]},
    }
    write_run(tmp_path)
    with pytest.raises(ConfigurationError, match=r"must name behaviours under `circuits`.*find-a-circuit"):
        find_circuit(parse_configuration(content, source="run.yaml", folder=tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"corrupted": ""}, "either `corrupted` or `corruption`"),
        ({"clean": "other.clean"}, "must be `dataset.field`"),
        ({"method": "guess"}, "circuits.0.method"),
        ({"options": {"acdc": {"taus": 1}}}, "acdc has no option 'taus'"),
        ({"circuit": "saved.json"}, "verified at one step"),
    ],
)
def test_parse__names_the_problem_of_a_behaviour(changes: dict[str, object], words: str):
    with pytest.raises(ConfigurationError, match=words):
        parse_configuration(copying(**changes), source="run.yaml", folder=Path("/data"))
