import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mechint_core.errors import CheckpointError, ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.features import Recipe, SparseAutoencoderConfig, start_training
from mechint_core.features.dictionaries.training_pass import STATE, TrainingPass
from mechint_core.random import generator
from mechint_core.synthetic.sparse_dictionary import sparse_dictionary

ACTIVATIONS = ("batch_topk", "topk", "relu", "gated", "jumprelu")
ROOT = Path(__file__).resolve().parents[4]
KILLED = """
import sys
from mechint_core.features import Recipe, SparseAutoencoderConfig, start_training
from mechint_core.synthetic.sparse_dictionary import sparse_dictionary

source = sparse_dictionary(3000, n_units=16, n_features=32).activations
config = SparseAutoencoderConfig(n_latents=32, k=2, n_epochs=400, batch_size=100)
training = start_training({"activations": source}, {"": Recipe(reads=("activations",), config=config)})
training.run(folder=sys.argv[1], save_every=1)
"""


@pytest.fixture(scope="module")
def source():
    return sparse_dictionary(600, n_units=16, n_features=32).activations


def config(activation="batch_topk", **options):
    chosen = {"activation": activation, "n_latents": 32, "k": 2, "n_epochs": 3, "batch_size": 90, **options}
    return SparseAutoencoderConfig(**chosen)


def start(source, chosen=None, **options) -> TrainingPass:
    """One autoencoder on one source."""
    recipe = Recipe(reads=("activations",), config=chosen or config(**options))
    return start_training({"activations": source}, {"": recipe})


def resume(folder, source, chosen=None, **options) -> TrainingPass:
    training = start(source, chosen, **options)
    assert training.resume(folder)
    return training


def finished(training, name=""):
    return training.trainers[name].finished()


def bits(training, name=""):
    return {key: each.detach().numpy().tobytes() for key, each in finished(training, name).tensors().items()}


def train(source, **options) -> TrainingPass:
    training = start(source, **options)
    training.run()
    return training


# Known answer
def test_training__loss_is_one_for_the_centre_and_falls(source):
    """With codes held at zero the normalised error is 1 by definition of the scale, up to the sample it is taken on."""
    training = start(source, activation="relu", sparsity_coef=0.0, n_epochs=1, lr=1e-9, warmup=0.0, batch_size=600)
    training.trainers[""].dictionary.b_enc.data.fill_(-1e6)
    training.step()
    assert training.trainers[""].metrics[0, 0].item() == pytest.approx(1, rel=1e-5)

    losses = train(source, n_epochs=30).epoch_losses("")
    assert len(losses) == 30
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_training__decoder_rows_have_norm_one(source, activation):
    torch.testing.assert_close(finished(train(source, activation=activation)).W_dec.norm(dim=1), torch.ones(32))


@pytest.mark.parametrize("activation", ["batch_topk", "jumprelu"])
def test_training__threshold_gives_the_asked_l0(source, activation):
    """Trained on batches, used on single vectors: on the training data both keep about k = 2."""
    model = finished(train(source, activation=activation, n_epochs=40))

    assert float((model.encode(torch.from_numpy(source)) > 0).sum() / 600) == pytest.approx(2, rel=0.1)


def test_training__step_size_rises_and_falls(source):
    training = start(source, n_epochs=10, lr=0.1, warmup=0.1, decay=0.5)
    rates = []
    while not training.done:
        training.step()
        rates.append(training.trainers[""]._adam.param_groups[0]["lr"])

    assert rates[:7] == pytest.approx([0.1 * (step + 1) / 7 for step in range(7)])
    assert rates[7:36] == pytest.approx([0.1] * 29)
    assert rates[-1] == pytest.approx(0.1 / 35)


def test_run__reports_about_a_hundred_times_and_at_the_end(source):
    calls = []

    training = start(source, n_epochs=40)
    training.run(on_progress=lambda step, metrics: calls.append((step, metrics)))

    assert 100 <= len(calls) <= 145
    assert calls[-1][0] == training.length.n_steps == 280
    assert set(calls[-1][1]) == {"loss", "fvu", "l0", "dead_share", "reconstruction", "sparsity", "revival"}
    parts = sum(calls[-1][1][name] for name in ("reconstruction", "sparsity", "revival"))
    assert parts == pytest.approx(calls[-1][1]["loss"])
    assert calls[-1][1]["loss"] == pytest.approx(training.trainers[""].metrics[278:280, 0].mean().item())


def test_resampling__brings_dead_latents_back(source):
    """Half the latents start with a bias that nothing can overcome."""
    kept = {}
    for resamplings in (0, 4):
        training = start(source, activation="relu", n_epochs=40, sparsity_coef=0.003, resamplings=resamplings)
        training.trainers[""].dictionary.b_enc.data[:16] = -1e3
        training.run()
        kept[resamplings] = (finished(training).encode(torch.from_numpy(source)) > 0).any(dim=0)[:16].sum()

    assert kept[0] == 0
    assert kept[4] >= 12


def test_training__outliers_do_not_rule(source):
    """A few vectors a thousand times too far away: left out, the others are learned as without them."""
    spoiled = source.copy()
    spoiled[::50] *= 1000

    model = finished(train(spoiled, exclude_norm_above=10, n_epochs=20))
    x = torch.from_numpy(np.delete(source, np.s_[::50], axis=0))

    assert ((x - model(x)).square().sum() / (x - x.mean(dim=0)).square().sum()).item() < 0.35


def test_memory__grows_with_the_batch_and_the_latents(source):
    """Whether it holds is measured in the benchmarks, by the peak of a process of its own."""
    small, wide, long = (start(source, **each) for each in ({}, {"n_latents": 320}, {"batch_size": 600}))

    assert wide.memory_bytes - small.memory_bytes >= 4 * 4 * 2 * 288 * 16  # four copies of both weight matrices
    assert long.memory_bytes - small.memory_bytes >= 4 * (600 - 90) * 32  # the codes


# Law
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_training__stopped_anywhere_and_resumed_ends_with_the_same_bits(tmp_path, source, activation):
    """Cuts at the first step, inside an epoch, at its end, in warm-up and decay, around a resampling, at the end."""
    whole = train(source, activation=activation)
    for cut in (0, 1, 2, 4, 7, 10, 13, 20, 21):
        training = start(source, activation=activation)
        for _ in range(cut):
            training.step()
        training.save(tmp_path / str(cut))

        resumed = resume(tmp_path / str(cut), source, activation=activation)
        resumed.run()

        assert resumed.n_done == whole.n_done == 21
        assert bits(resumed) == bits(whole)
        assert torch.equal(resumed.trainers[""].metrics, whole.trainers[""].metrics)


def test_training__stopped_after_every_step_ends_with_the_same_bits(tmp_path, source):
    training = start(source, tied_weights=True)
    while not training.done:
        training.step()
        training.save(tmp_path)
        training = resume(tmp_path, source, tied_weights=True)

    assert bits(training) == bits(train(source, tied_weights=True))


def test_training__killed_at_a_random_moment_and_resumed_ends_with_the_same_bits(tmp_path):
    """The child saves after every step, so that a kill -9 falls into a save about as often as into a step."""
    source = sparse_dictionary(3000, n_units=16, n_features=32).activations
    chosen = SparseAutoencoderConfig(n_latents=32, k=2, n_epochs=400, batch_size=100)
    pause = float(np.random.default_rng().uniform(0, 1))  # noqa: TID251 - any moment must do
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env=environment) as child:
        try:
            while not (tmp_path / STATE).exists() and child.poll() is None:
                time.sleep(0.01)
            time.sleep(pause)
        finally:
            child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL

    resumed = resume(tmp_path, source, chosen)
    n_before = resumed.n_done
    stop = n_before + 20
    while resumed.n_done < stop:
        resumed.step()
    whole = start(source, chosen)
    while whole.n_done < stop:
        whole.step()

    assert 0 < n_before < whole.length.n_steps, f"killed after {pause:.3f} s"
    assert bits(resumed) == bits(whole), f"killed after {pause:.3f} s, at step {n_before}"


def test_training__together_gives_the_same_bits_as_alone(source):
    """Two sites, several kinds, one pass: whoever else is there changes nothing."""
    other = np.tanh(source[:, :12]) + 1
    sources = {"one": source, "other": other}
    recipes = {
        "plain": Recipe(reads=("one",), config=config()),
        "penalised": Recipe(reads=("other",), config=config("relu", sparsity_coef=0.003, seed=5)),
        "across": Recipe(reads=("one", "other"), config=config("gated")),
        "coder": Recipe(reads=("one",), writes="other", skip=True, config=config("topk")),
    }
    together = start_training(sources, recipes)
    together.run()

    for name, recipe in recipes.items():
        names = dict.fromkeys((*recipe.reads, *([recipe.writes] if recipe.writes else [])))
        alone = start_training({each: sources[each] for each in names}, {name: recipe})
        alone.run()
        assert bits(alone, name) == bits(together, name)


def test_training__several_stopped_and_resumed_end_with_the_same_bits(tmp_path, source):
    recipes = {
        "small": Recipe(reads=("a",), config=config(n_latents=16)),
        "coder": Recipe(reads=("a",), writes="b", skip=True, config=config("jumprelu")),
    }
    sources = {"a": source, "b": source[:, :5] ** 2}
    whole = start_training(sources, recipes)
    whole.run()
    stopped = start_training(sources, recipes)
    for _ in range(11):
        stopped.step()
    stopped.save(tmp_path)
    resumed = start_training(sources, recipes)
    resumed.resume(tmp_path)
    resumed.run()

    for name in recipes:
        assert bits(resumed, name) == bits(whole, name)


def test_training__resumed_with_others_than_it_was_begun_with_ends_with_the_same_bits(tmp_path, source):
    """One is ahead and waits, one is new, one of the first pass is gone."""
    sources = {"a": source}
    recipes = {str(n): Recipe(reads=("a",), config=config(n_latents=n)) for n in (16, 24, 32)}
    whole = start_training(sources, recipes)
    whole.run()
    folders = {name: tmp_path / name for name in recipes}
    for names, steps in ((("16", "24"), 9), (("24", "32"), 4)):
        begun = start_training(sources, {name: recipes[name] for name in names})
        begun.resume(folders)
        for _ in range(steps):
            begun.step()
        begun.save(folders)
    resumed = start_training(sources, {name: recipes[name] for name in ("16", "32")})
    assert resumed.resume(folders)
    assert (resumed.n_done, resumed.trainers["16"].n_done) == (4, 9)
    resumed.run()

    for name in ("16", "32"):
        assert bits(resumed, name) == bits(whole, name)


def test_training__does_not_depend_on_who_else_is_read_beyond_the_first_sample():
    """More vectors than the units are measured on."""
    rows = generator(0, "rows").standard_normal((9000, 8)).astype(np.float32) * np.linspace(1, 3, 9000)[:, None].astype(
        np.float32
    )
    recipe = Recipe(reads=("a",), config=config(n_latents=16, n_epochs=1, batch_size=1000))
    alone = start_training({"a": rows}, {"": recipe})
    together = start_training({"a": rows, "b": np.repeat(rows, 40, axis=1)}, {"": recipe})

    assert torch.equal(alone.trainers[""].read.scale, together.trainers[""].read.scale)


def test_step__says_that_training_diverges(source):
    training = start(source, lr=1e30, warmup=0.0, clip=1e30)

    with pytest.raises(DegenerateInputError, match="must not diverge"):
        training.run()


def test_resampling__leaves_what_is_not_of_latents_alone(source):
    """As many latents as units: the bias of the units has the length of the latents."""
    training = start(source, activation="relu", n_latents=16, n_epochs=40, sparsity_coef=0.02)
    trainer = training.trainers[""]
    trainer.dictionary.b_enc.data[:4] = -1e3
    while training.n_done not in trainer._resampled_at:
        before = trainer._adam.state.get(trainer.dictionary.b_dec, {}).get("exp_avg", torch.ones(16)).clone()
        training.step()

    assert (trainer._adam.state[trainer.dictionary.W_dec]["exp_avg"][:4] == 0).all()
    assert before.count_nonzero() == 16
    assert trainer._adam.state[trainer.dictionary.b_dec]["exp_avg"].count_nonzero() == 16


def test_training__same_seed_same_bits_and_another_seed_others(source):
    assert bits(train(source, seed=3)) == bits(train(source, seed=3)) != bits(train(source, seed=4))
    assert bits(train(source, data_seed=1)) != bits(train(source))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_training__features_do_not_depend_on_the_units_or_the_origin(source, activation):
    """Scaling by a power of two is exact; the shift costs float32 digits, which 21 steps amplify little."""
    plain = finished(train(source, activation=activation, resamplings=0))

    scaled = finished(train(4 * source, activation=activation, resamplings=0))
    shifted = finished(train(source + np.float32(3), activation=activation, resamplings=0))

    assert torch.equal(scaled.W_dec, plain.W_dec)
    torch.testing.assert_close(scaled.threshold, 4 * plain.threshold)
    assert least_cosine(shifted, plain) > 0.999
    x = torch.from_numpy(source)
    torch.testing.assert_close(scaled(4 * x), 4 * plain(x), rtol=1e-4, atol=1e-4)


def least_cosine(a, b):
    return torch.cosine_similarity(a.W_dec, b.W_dec).min().item()


def test_training__positions_are_vectors(source):
    flat, folded = train(source), train(source.reshape(200, 3, 16))

    assert folded.length == flat.length
    assert finished(folded).input_dim == 16


def test_training__float64_rows_train_like_float32(source):
    assert bits(train(source.astype(np.float64))) == bits(train(source))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_training__in_bfloat16_products_finds_about_the_same(source, activation):
    """Eight bits of mantissa: relative errors of 1/256 in codes, an error of a few percent in the loss."""
    exact, mixed = (train(source, activation=activation, n_epochs=10, mixed_precision=mixed) for mixed in (False, True))

    assert mixed.epoch_losses("")[-1] == pytest.approx(exact.epoch_losses("")[-1], rel=0.1)
    assert finished(mixed).W_dec.dtype == torch.float32


# Bad input
def test_training__refuses_rows_without_vectors():
    with pytest.raises(ShapeError, match="rows must be"):
        start(np.zeros((0, 16), np.float32))


def test_training__refuses_vectors_that_are_all_the_same():
    with pytest.raises(DegenerateInputError, match="all the same"):
        start(np.full((50, 16), 0.1, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_training__refuses_values_that_are_not_finite(source, value):
    spoiled = source.copy()
    spoiled[300, 2] = value

    with pytest.raises(DegenerateInputError, match="must be finite"):
        start(spoiled)


def test_step__refuses_values_that_are_not_finite_beyond_the_first_sample():
    rows = generator(0, "rows").normal(size=(20_000, 16)).astype(np.float32)
    training = start(rows, n_epochs=1, batch_size=4000)
    rows[:, 3] = np.nan

    with pytest.raises(DegenerateInputError, match="in a batch"):
        training.step()


def test_step__refuses_a_batch_of_outliers_only(source):
    with pytest.raises(DegenerateInputError, match="raise exclude_norm_above"):
        start(source, exclude_norm_above=1e-6).step()


def test_resume__finds_nothing_in_an_empty_folder(tmp_path, source):
    assert not start(source).resume(tmp_path)


def test_resume__refuses_other_vectors(tmp_path, source):
    start(source).save(tmp_path)

    with pytest.raises(CheckpointError, match="sources must be what"):
        resume(tmp_path, source[:, ::-1].copy())


def test_resume__refuses_another_config(tmp_path, source):
    start(source).save(tmp_path)

    with pytest.raises(CheckpointError, match="must be of a run with this config"):
        resume(tmp_path, source, seed=9)


def test_training__refuses_sources_that_do_not_agree(source):
    with pytest.raises(ShapeError, match="same \\(sample"):
        start_training({"a": source, "b": source[1:]}, {"": Recipe(reads=("a", "b"), config=config())})


def test_training__refuses_recipes_that_cannot_share_a_pass(source):
    recipes = {str(n): Recipe(reads=("a",), config=config(n_epochs=n)) for n in (1, 2)}

    with pytest.raises(ConfigurationError, match="must have the same n_epochs"):
        start_training({"a": source}, recipes)


def test_training__refuses_a_source_that_is_not_there(source):
    with pytest.raises(ConfigurationError, match="must read and write a"):
        start_training({"a": source}, {"": Recipe(reads=("b",), config=config())})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"reads": ()}, "must name sources"),
        ({"reads": ("a", "a")}, "each once"),
        ({"reads": ("a", "b"), "writes": "c"}, "writes what it reads"),
        ({"reads": ("a",), "skip": True}, "skip is for a transcoder"),
    ],
)
def test_recipe__refuses_what_makes_no_sense(options, match):
    with pytest.raises(ConfigurationError, match=match):
        Recipe(**options)
