"""A real sentence encoder on real text: features with names, found by the pipeline and not by chance."""

from pathlib import Path

import pytest

from flows.configuration import load_configuration
from flows.monitor_training import monitor_training
from mechint_core.store import ActivationStore, ResultKey, StoredResult
from tasks.settings import settings

pytestmark = [
    pytest.mark.oracle,  # the encoder comes with that extra
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_api", "home"),
]

CONFIGURATION = Path(__file__).resolve().parents[2] / "flows" / "sentence_encoder.yaml"
SITES = ("transformer.encoder.layer.2", "transformer.encoder.layer.5")


def stored(technique: str, name: str) -> StoredResult:
    return ActivationStore(settings().store_location).result(
        ResultKey(run="sentence-encoder", technique=technique, name=name, step=0)
    )


def test_sentence_encoder__has_features_for_what_sentences_are_about():
    """Six families of modules; their sentences alone are given. Shuffled labels must name next to nothing."""
    monitored = monitor_training(load_configuration(CONFIGURATION))

    for site in SITES:
        quality, concepts = stored("evaluate_dictionary", site), stored("build_concept_dictionary", site)
        assert quality.estimates["fvu"].p_value <= 0.05
        assert quality.estimates["fvu"].value < 0.4
        assert concepts.estimates["labelled"].value > 0.05
        assert concepts.estimates["labelled"].p_value <= 0.05
        assert concepts.estimates["labelled"].null < 0.005
        assert stored("loss_recovered", site).estimates["kept"].value > 0.7
        page = (monitored.report.with_suffix("") / f"{site} 0.html").read_text()
        assert all(word in page for word in ("network", "concurrency", "[CLS]"))
