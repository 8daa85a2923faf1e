"""The demonstration: train a transformer that groks, monitor it, and say what was found.

Nothing about the answer is written here: `findings` reads stored results, and states each conclusion with the Estimate
it rests on, also when that Estimate does not support it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from prefect import flow, task

from flows.configuration import RunSection, parse_configuration
from flows.monitor_training import Monitored, monitor_training
from flows.progress import stage
from mechint_core.report import Finding
from mechint_core.store import StoredResult
from mechint_core.synthetic.modular_addition import ModularAdditionConfig, train
from tasks.settings import settings

ALPHA = 0.05
CONFIGURATION = Path(__file__).with_suffix(".yaml")


@flow(name="grokking", validate_parameters=False)
def grokking(seed: int = 0) -> Monitored:
    """Train the network unless it is trained already, then analyse every checkpoint."""
    train_network(seed, settings().root / _checkpoints(seed))
    return monitor_training(demonstration(seed))


@task(name="train-network", persist_result=False)
def train_network(seed: int, folder: Path) -> None:
    """Train the network into `folder`; a finished run is left as it is, a stopped one continues."""
    training = ModularAdditionConfig(seed=seed)
    with stage("training", training.epochs) as advance:
        at = 0

        def show(step: int, measures: Mapping[str, float]) -> None:
            nonlocal at
            advance(f"test accuracy {measures['test_accuracy']:.0%}", step - at)
            at = step

        train(training, folder, on_progress=show)
        advance("done", training.epochs - at)


def demonstration(seed: int = 0) -> RunSection:
    """Return the demonstration's configuration, with its checkpoints below the data folder."""
    content = yaml.safe_load(CONFIGURATION.read_text())
    content["model"]["arguments"] = {"seed": seed}
    for dataset in content["datasets"].values():
        dataset["arguments"] = {"seed": seed}
    content["checkpoints"] = _checkpoints(seed)
    if seed:
        content["run"] = f"grokking-{seed}"
    return parse_configuration(content, source=str(CONFIGURATION), folder=settings().root)


def _checkpoints(seed: int) -> str:
    """Return the folder of the training run, below the data folder."""
    return f"checkpoints/grokking-{seed}" if seed else "checkpoints/grokking"


def sums() -> list[str]:
    """Return what each sample asks."""
    prime = ModularAdditionConfig().prime
    return [f"{a} + {b} = {(a + b) % prime}" for a in range(prime) for b in range(prime)]


def residues() -> list[str]:
    """Return the names of the network's outputs."""
    return [str(each) for each in range(ModularAdditionConfig().prime)]


def findings(results: Sequence[StoredResult]) -> list[Finding]:
    """Say what was found, and how sure it is; a conclusion whose results are missing is left out."""
    by_name = _ByName(results)
    made = (_order(by_name), _hidden_progress(by_name), _frequencies(by_name), _circle(by_name))
    more = (_features(by_name), _drift(by_name), _flow_of_the_answer(by_name), _circuit(by_name), _carriers(by_name))
    return [each for each in (*made, *more) if each is not None]


class _ByName:
    """Stored results by technique and name: over the checkpoints, or over all of training."""

    def __init__(self, results: Sequence[StoredResult]) -> None:
        self._results = {(each.key.technique, each.key.name, each.key.step): each for each in results}

    def through_training(self, technique: str, name: str) -> list[StoredResult]:
        """Return a technique's results at one site, in order of steps."""
        steps = sorted(s for t, n, s in self._results if (t, n) == (technique, name) and s is not None)
        return [self._results[technique, name, step] for step in steps]

    def overall(self, technique: str, name: str) -> StoredResult | None:
        """Return a technique's result over all checkpoints."""
        return self._results.get((technique, name, None))

    def first_step(self, scalar: str, reached: Callable[[float], bool], *, after: int = 0) -> int | None:
        """Return the first checkpoint, not before `after`, from which on a progress measure has `reached` something."""
        found: int | None = None
        for result in self.through_training("progress_measures", "unembed"):
            if not reached(result.estimates[scalar].value):
                found = None
            elif found is None and result.key.step is not None and result.key.step >= after:
                found = result.key.step
        return found


def _order(results: _ByName) -> Finding | None:
    """State whether the network memorised before it generalised."""
    memorised = results.first_step("train_accuracy", lambda x: x >= 0.99)
    generalised = results.first_step("test_accuracy", lambda x: x >= 0.9)
    phases = results.overall("phases", "measures")
    if memorised is None or generalised is None or phases is None:
        return None
    order = "first, and generalises later" if memorised < generalised else "and generalises at the same time"
    sentence = (
        f"The network memorises {order}: training accuracy is above 99 % from step {memorised} on, "
        f"test accuracy above 90 % from step {generalised} on. {phases.reading}"
    )
    return Finding("It memorises, then it groks", sentence, phases.estimates["explained"], "phases")


def _hidden_progress(results: _ByName) -> Finding | None:
    """State when the circuit formed, against when it showed."""
    memorised = results.first_step("train_accuracy", lambda x: x >= 0.99)
    suffices = results.first_step("restricted_loss", lambda x: x < 0.1)
    shown = results.first_step("test_accuracy", lambda x: x >= 0.9)
    last = results.through_training("progress_measures", "unembed")
    if memorised is None or suffices is None or shown is None:
        return None
    # Before the pairs are known, losing them says nothing: the excluded loss is that of guessing.
    needed = results.first_step("excluded_loss", lambda x: x > 1, after=memorised)
    if needed is None:
        return None
    before = "before" if max(needed, suffices) < shown else "not before"
    sentence = (
        f"The circuit forms {before} test accuracy shows it: without the key frequencies the training pairs are lost "
        f"(excluded loss above 1 nat) from step {needed} on, and the key frequencies alone solve all pairs (restricted "
        f"loss below 0.1) from step {suffices} on, while test accuracy passes 90 % at step {shown}."
    )
    return Finding("Progress before it is visible", sentence, last[-1].estimates["excluded_loss"], "progress_measures")


def _frequencies(results: _ByName) -> Finding | None:
    """Name the key frequencies of the embedding at the last checkpoint, against the first."""
    spectra = results.through_training("fourier_components", "embed.a")
    if len(spectra) < 2:
        return None
    first, last = spectra[0], spectra[-1]
    sentence = (
        f"{last.reading} At step {first.key.step} {first.flags['n_key']:.0f} frequencies stood out, "
        f"with a Gini coefficient of {first.estimates['gini'].value:.2f}."
    )
    return Finding("A few frequencies carry the numbers", sentence, last.estimates["gini"], "fourier_components")


def _circle(results: _ByName) -> Finding | None:
    """Compare the longest loop of the answers' representation at the last checkpoint and in the untrained network."""
    clouds = results.through_training("persistent_homology", "residual")
    around = results.through_training("circular_coordinates", "residual")
    if len(clouds) < 2 or not around:
        return None
    first, last = clouds[0], clouds[-1]
    turn = around[-1].estimates["recovery"]
    follows = "follows" if turn.p_value <= ALPHA else "is not known to follow"
    sentence = (
        f"After training: {last.reading} Untrained: {first.reading} The angle around the trained one {follows} the "
        f"answer at frequency {abs(int(around[-1].flags['frequency']))}: recovery {turn.value:.3f} "
        f"[{turn.low:.3f}, {turn.high:.3f}], of rearranged answers {turn.null:.2f} (p = {turn.p_value:.2g})."
    )
    return Finding("The answers lie on a circle", sentence, last.estimates["longest_h1"], "persistent_homology")


def _features(results: _ByName) -> Finding | None:
    """State whether dictionary features keep to the frequencies that carry the answer, after and before training."""
    tuned = results.through_training("feature_frequencies", "mlp.hidden")
    spectra = results.through_training("fourier_components", "residual")
    if len(tuned) < 2 or not spectra:
        return None
    first, last = tuned[0], tuned[-1]
    keys = {int(each) for each in spectra[-1].arrays["key"]}
    best = last.arrays["best_frequency"][last.arrays["q_value"] <= 0.05]
    at_keys = float(np.isin(best, list(keys)).mean()) if len(best) else 0.0
    sentence = (
        f"{last.reading} {at_keys:.0%} of the tuned features listen to one of the {len(keys)} key frequencies of the "
        f"answer; {len(keys) / len(last.arrays['frequency']):.0%} of all frequencies are key. Of the untrained "
        f"network's features {first.estimates['tuned'].value:.0%} are tuned, with a median of "
        f"{first.estimates['median_tuning'].value:.0%} of their power at one frequency."
    )
    return Finding(
        "Features are waves of the key frequencies", sentence, last.estimates["aligned"], "feature_frequencies"
    )


def _drift(results: _ByName) -> Finding | None:
    """State where the representation moves most, against the stretch between memorising and generalising."""
    drift = results.overall("representational_drift", "residual")
    memorised = results.first_step("train_accuracy", lambda x: x >= 0.99)
    generalised = results.first_step("test_accuracy", lambda x: x >= 0.99)
    if drift is None or memorised is None or generalised is None:
        return None
    sentence = (
        f"{drift.reading} Between memorising (step {memorised}) and generalising (step {generalised}) lies "
        f"{_share_between(drift, memorised, generalised):.0%} of all drift."
    )
    at_transition = any(
        start <= generalised and end >= memorised and p <= 0.05
        for start, end, p in zip(
            drift.arrays["burst_start"], drift.arrays["burst_end"], drift.arrays["burst_p_value"], strict=True
        )
    )
    title = (
        "The representation moves in bursts, one at the transition" if at_transition else "No burst at the transition"
    )
    return Finding(title, sentence, drift.estimates["peak_share"], "representational_drift")


def _share_between(drift: StoredResult, start: int, end: int) -> float:
    step, moved = drift.arrays["step"], drift.arrays["drift"]
    return float(moved[(step > start) & (step <= end)].sum() / moved.sum())


def _flow_of_the_answer(results: _ByName) -> Finding | None:
    """Name the sites through which the changed number reaches the answer."""
    patched = results.through_training("patch_sites", "model")
    if not patched:
        return None
    last = patched[-1]
    return Finding("Where the answer flows", last.reading, last.estimates["strongest"], "patch_sites")


def _circuit(results: _ByName) -> Finding | None:
    """Say what the circuit does alone, since when, and how much of the answer there was to carry then."""
    own = results.through_training("circuit_faithfulness", "addition")
    shown = results.first_step("test_accuracy", lambda x: x >= 0.9)
    if not own or shown is None:
        return None
    last = own[-1]
    judged = [*results.through_training("circuit_faithfulness", f"addition of step {last.key.step}"), last]
    formed = [each for each in judged if each.estimates["faithfulness"].p_value <= ALPHA]
    when = "At no checkpoint looked at does it restore more than random circuits of its size."
    if formed:
        first = formed[0].estimates
        share = first["difference"].value / last.estimates["difference"].value
        when = (
            f"The same edges restore more than random circuits do from step {formed[0].key.step} on (of {len(judged)} "
            f"checkpoints looked at): {first['faithfulness'].value:.2f} of an effect that was {share:.0%} of the final "
            f"one. Test accuracy passes 90 % at step {shown}."
        )
    return Finding(
        "A circuit that suffices", f"{last.reading} {when}", last.estimates["faithfulness"], last.key.technique
    )


def _carriers(results: _ByName) -> Finding | None:
    """Say how many heads and hidden units carry the answer, and since when."""
    heads = results.through_training("patch_sites", "addition heads")
    units = results.through_training("patch_sites", "units.model")
    if not heads or not units:
        return None
    sentence = " ".join(_began(name, found) for name, found in (("attention heads", heads), ("hidden units", units)))
    return Finding("Heads and units that carry it", sentence, heads[-1].estimates["strongest"], "patch_sites")


def _began(name: str, found: Sequence[StoredResult]) -> str:
    counts = {each.key.step: int(each.flags["n_carrying"]) for each in found}
    began = next((step for step, n_carrying in counts.items() if n_carrying), None)
    n_parts = len(found[-1].labels["part"])
    if began is None:
        return f"No one of the {n_parts} {name} carries the answer by itself."
    at_end = counts[found[-1].key.step]
    return f"{at_end} of {n_parts} {name} carry the answer by themselves at the end; the first does at step {began}."
