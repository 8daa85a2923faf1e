"""The techniques of this family on a real training run, against what is known of it: the order of events, and bands.

Exact steps depend on the machine's arithmetic and are never asserted.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mechint_core.meta_dynamics import (
    PhasesConfig,
    ProgressMeasuresConfig,
    fourier_components,
    phases,
    progress_measures,
    representational_drift,
    training_trajectory,
)
from mechint_core.synthetic.modular_addition import ModularAdditionConfig, build_dataset, build_model, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SITES = ("embed.a", "residual", "unembed")


class Run:
    """A finished run: its history, and what each site holds at each checkpoint."""

    def __init__(self, folder):
        self.history = {name: np.array(each) for name, each in train(ModularAdditionConfig(), folder).items()}
        self.data = build_dataset()
        self.step = np.array(ModularAdditionConfig().checkpoint_steps())
        self.sites = {site: [] for site in SITES}
        model = build_model()
        modules = dict(model.named_modules())
        hooks = [modules[site].register_forward_hook(self.keep(site)) for site in SITES]
        for step in self.step:
            model.load_state_dict(load_file(folder / f"step_{step:08d}.safetensors"))
            with torch.no_grad():
                model(torch.from_numpy(self.data["tokens"]))
        for hook in hooks:
            hook.remove()
        self.measures = self.measure()

    def keep(self, site):
        return lambda module, inputs, output: self.sites[site].append(output.numpy().copy())

    def measure(self):
        labels = [self.data[name] for name in ("a", "b", "answer", "split")]
        config = ProgressMeasuresConfig(
            frequencies=tuple(progress_measures(self.sites["unembed"][-1], *labels).key.tolist())
        )
        return [progress_measures(logits, *labels, config=config) for logits in self.sites["unembed"]]

    def curve(self, name):
        return np.array([getattr(each, name).value for each in self.measures])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("grokking"))


def first(step, condition):
    assert np.any(condition)
    return step[np.argmax(condition)]


# Known answer
def test_grokking__memorises_before_it_generalises(run):
    history = run.history
    memorised = first(history["step"], history["train_accuracy"] >= 0.99)
    generalised = first(history["step"], history["test_accuracy"] >= 0.99)

    assert memorised <= 250
    assert generalised >= 3 * memorised
    assert history["test_accuracy"][-1] >= 0.99
    assert history["test_loss"].max() > 4 > 0.1 > history["test_loss"][-1]


def test_grokking__cleans_up_its_weights(run):
    squared = run.history["squared_weights"]

    assert squared[-1] < squared.max() / 2


def test_grokking__progress_measures_move_before_the_test_accuracy(run):
    after_memory = run.curve("train_accuracy") >= 0.99
    memorised = first(run.step, after_memory)
    needed = first(run.step, after_memory & (run.curve("excluded_loss") > 1))
    suffices = first(run.step, run.curve("restricted_loss") < 0.1)
    seen = first(run.step, run.curve("test_accuracy") >= 0.9)

    assert memorised <= needed < suffices <= seen
    assert run.curve("restricted_loss")[-1] < 1e-4
    assert run.curve("excluded_loss")[-1] > 3
    assert 1 <= run.measures[-1].n_key <= 8


def test_grokking__embedding_comes_to_rest_on_few_frequencies(run):
    spectra = [fourier_components(each, run.data["a"]) for each in (run.sites["embed.a"][0], run.sites["embed.a"][-1])]
    start, end = spectra

    assert start.n_key <= 1
    assert start.gini.value < 0.1
    assert end.gini.value > 0.35
    assert end.gini.p_value <= 0.01
    assert 2 <= end.n_key <= 12
    assert end.key_share.value > 0.7
    assert set(run.measures[-1].key.tolist()) <= set(end.key.tolist())


def test_grokking__drifts_in_two_bursts_memory_and_transition(run):
    result = representational_drift(run.sites["residual"], run.step)
    history = run.history
    middle = first(history["step"], history["test_accuracy"] >= 0.9)

    assert len(result.burst_step) == 2
    assert np.all(result.burst_p_value <= 0.01)
    assert result.burst_start[0] <= first(history["step"], history["train_accuracy"] >= 0.99)
    assert result.burst_start[1] * 0.8 <= middle <= result.burst_end[1] * 1.25


def test_grokking__ends_far_from_where_it_began(run):
    result = training_trajectory(run.sites["residual"], run.step)

    assert result.initial_to_final.value < 0.2
    assert 100 < result.halfway_step.value < 1500
    assert result.cka_to_final[-2] > 0.95


def test_grokking__falls_into_phases(run):
    gini = [fourier_components(each, run.data["a"]).gini.value for each in run.sites["embed.a"]]
    names = ("train_loss", "test_loss", "restricted_loss", "excluded_loss")
    result = phases(
        np.stack([*(run.curve(name) for name in names), gini], axis=1),
        run.step,
        config=PhasesConfig(names=(*names, "gini")),
    )

    assert result.n_phases in (3, 4)
    assert 32 <= result.boundary[0] <= 300
    assert np.all(result.boundary_p_value <= 0.05)
    assert result.explained.value > 0.7
