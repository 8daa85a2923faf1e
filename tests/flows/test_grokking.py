"""The demonstration finds, from stored results alone, what is known about this network: order and bands, no epochs."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flows.grokking import demonstration, findings, grokking
from flows.plan import make_plan
from flows.report import stored_results
from mechint_core.store import ActivationStore, ResultKey, StoredResult
from tasks.settings import settings


@pytest.fixture(scope="module")
def demonstrated(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The whole demonstration, once."""
    home = tmp_path_factory.mktemp("demonstration")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MECHINT_HOME", str(home))
        settings.cache_clear()
        grokking(0)
        yield home
    settings.cache_clear()


def through_training(technique: str, name: str) -> list[StoredResult]:
    store = ActivationStore(settings().store_location)
    keys = [key for key in store.results(run="grokking", technique=technique) if key.name == name]
    return [store.result(key) for key in sorted(keys, key=lambda key: key.step or 0)]


def overall(technique: str, name: str) -> StoredResult:
    return ActivationStore(settings().store_location).result(ResultKey("grokking", technique, name, None))


def first_step(scalar: str, reached: float, *, below: bool = False) -> int:
    steps = [
        result.key.step
        for result in through_training("progress_measures", "unembed")
        if (result.estimates[scalar].value <= reached if below else result.estimates[scalar].value >= reached)
    ]
    return int(min(step for step in steps if step is not None))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the first test waits for the whole demonstration
@pytest.mark.usefixtures("demonstrated")
class TestDemonstration:
    def test_phases__memorisation_comes_before_generalisation(self):
        memorised, generalised = first_step("train_accuracy", 0.99), first_step("test_accuracy", 0.9)
        phases = overall("phases", "measures")

        assert memorised <= 200
        assert generalised >= 3 * memorised
        assert phases.flags["n_phases"] >= 3
        assert phases.estimates["explained"].p_value <= 0.05

    def test_progress__is_there_before_it_shows(self):
        assert first_step("restricted_loss", 0.1, below=True) <= first_step("test_accuracy", 0.9)
        assert through_training("progress_measures", "unembed")[-1].estimates["excluded_loss"].value > 3

    def test_embedding__has_few_key_frequencies_at_the_end_and_none_at_the_start(self):
        spectra = through_training("fourier_components", "embed.a")

        assert spectra[0].flags["n_key"] == 0
        assert 2 <= spectra[-1].flags["n_key"] <= 8
        assert spectra[-1].estimates["key_share"].value > 0.6
        assert spectra[-1].estimates["gini"].p_value <= 0.01

    @pytest.mark.parametrize("site", ["residual", "mlp.hidden"])
    def test_loop__is_long_when_generalising_and_absent_untrained(self, site: str):
        clouds = through_training("persistent_homology", site)
        untrained, trained = clouds[0].estimates["longest_h1"], clouds[-1].estimates["longest_h1"]

        assert trained.value > 0.5
        assert trained.p_value <= 0.01
        assert untrained.value < 0.4
        assert untrained.p_value > 0.05

    def test_loop__its_angle_is_the_answer_times_a_key_frequency(self):
        """Read off the angle alone, no answer is more than two places off on the circle of 59, and most are exact."""
        found = through_training("circular_coordinates", "residual")
        untrained, trained = found[0], found[-1]
        frequency, answer = int(trained.flags["frequency"]), trained.arrays["colour"]
        behind = np.exp(1j * (trained.arrays["angle"] - 2 * np.pi * frequency * answer / 59))
        steps_off = np.angle(behind / behind.mean()) * 59 / (2 * np.pi)

        assert trained.estimates["recovery"].value > 0.98
        assert trained.estimates["recovery"].p_value <= 0.01
        assert abs(frequency) in through_training("fourier_components", "residual")[-1].arrays["key"]
        assert np.abs(steps_off).max() < 2
        assert np.median(np.abs(steps_off)) < 0.5
        assert untrained.estimates["recovery"].value < 0.5

    def test_drift__has_a_burst_at_the_transition(self):
        drift = overall("representational_drift", "residual").arrays
        memorised, generalised = first_step("train_accuracy", 0.99), first_step("test_accuracy", 0.99)
        overlapping = (drift["burst_start"] <= generalised) & (drift["burst_end"] > 1.5 * memorised)

        assert (drift["burst_p_value"][overlapping] <= 0.05).any()

    def test_patching__names_the_sites_through_which_the_answer_flows(self):
        """Only b differs between the prompts: a's embedding cannot carry the answer, the others must."""
        patched = through_training("patch_sites", "model")[-1]
        recovery = dict(zip(patched.labels["part"], patched.arrays["recovery"], strict=True))
        p = dict(zip(patched.labels["part"], patched.arrays["p_value"], strict=True))

        assert recovery["embed.a"] == pytest.approx(0, abs=1e-5)
        for site in ("embed.b", "attention", "residual"):
            assert recovery[site] == pytest.approx(1, abs=1e-4)
            assert p[site] <= 0.05

    def test_patching__finds_nothing_in_the_untrained_network(self):
        assert through_training("patch_sites", "model")[0].flags["defined"] == 0

    def test_circuit__does_the_work_alone_on_other_pairs_and_there_is_none_untrained(self):
        untrained, *_, trained = through_training("circuit_faithfulness", "addition")

        assert trained.estimates["faithfulness"].low > 0.8
        assert trained.estimates["faithfulness"].p_value <= 0.01
        assert trained.estimates["necessity"].low > 0.9
        assert untrained.flags["defined"] == 0
        assert untrained.flags["n_kept"] == 0

    def test_circuit__leads_from_the_numbers_through_heads_and_mlp(self):
        found = through_training("edge_attribution", "addition")[-1]
        kept = {
            edge
            for edge, is_kept in zip(
                zip(found.labels["sender"], found.labels["receiver"], strict=True), found.arrays["kept"], strict=True
            )
            if is_kept
        }

        assert ("mlp", "output") in kept
        assert {sender for sender, receiver in kept if receiver == "mlp"} >= {"attention.0", "attention.1"}
        assert not {receiver for sender, receiver in kept if sender == "input"} & {"mlp", "output"}

    def test_dictionary__of_the_trained_network_beats_random_directions(self):
        trained = through_training("evaluate_dictionary", "mlp.hidden")[-1]

        assert trained.estimates["fvu"].value < 0.5 * trained.estimates["fvu"].null

    def test_features__keep_to_the_key_frequencies_after_training_only(self):
        keys = {int(each) for each in through_training("fourier_components", "residual")[-1].arrays["key"]}
        untrained, trained = through_training("feature_frequencies", "mlp.hidden")
        tuned = trained.arrays["best_frequency"][trained.arrays["q_value"] <= 0.05]

        assert trained.estimates["tuned"].value > 0.5 > untrained.estimates["tuned"].value
        assert trained.estimates["aligned"].p_value <= 0.01
        assert np.isin(tuned, list(keys)).mean() > 0.9
        assert len(keys) < 8

    def test_features__carry_the_answer(self):
        recovered = through_training("loss_recovered", "mlp.hidden")[-1].estimates["recovered"]

        assert recovered.value > 0.9
        assert recovered.value > recovered.null

    def test_dictionaries__have_pages(self):
        folder = settings().root / "reports" / "grokking"

        assert {path.name for path in folder.iterdir()} == {"mlp.hidden 2500.html", "residual 2500.html"}

    def test_findings__are_all_there_and_the_page_holds_them(self):
        results = stored_results(make_plan(demonstration(), settings().store_location))
        found = findings(results)
        page = (settings().root / "reports" / "grokking.html").read_text()

        assert len(found) == 9
        for finding in found:
            assert finding.certainty is not None
            assert np.isfinite(finding.certainty.value)
            assert finding.title in page
        assert "http-equiv" in page

    def test_second_run__does_nothing_in_under_30_seconds(self, demonstrated: Path):
        before = (demonstrated / "reports" / "grokking.html").read_bytes()

        started = time.perf_counter()
        again = grokking(0)

        assert (again.n_collected, again.n_analysed) == (0, 0)
        assert time.perf_counter() - started < 30
        assert (demonstrated / "reports" / "grokking.html").read_bytes() == before
