import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mechint_core.errors import CheckpointError, DegenerateInputError, ShapeError
from mechint_core.features import SparseAutoencoderConfig, SparseAutoencoderTrainer
from mechint_core.features.training import STATE
from mechint_core.random import generator
from mechint_core.synthetic.sparse_dictionary import sparse_dictionary

ACTIVATIONS = ("batch_topk", "topk", "relu")
ROOT = Path(__file__).resolve().parents[3]
KILLED = """
import sys
from mechint_core.features import SparseAutoencoderConfig, SparseAutoencoderTrainer
from mechint_core.synthetic.sparse_dictionary import sparse_dictionary

source = sparse_dictionary(3000, n_units=16, n_features=32).activations
config = SparseAutoencoderConfig(n_latents=32, k=2, n_epochs=400, batch_size=100)
SparseAutoencoderTrainer(source, config=config).run(folder=sys.argv[1], save_every=1)
"""


@pytest.fixture(scope="module")
def source():
    return sparse_dictionary(600, n_units=16, n_features=32).activations


def config(activation="batch_topk", **options):
    chosen = {"activation": activation, "n_latents": 32, "k": 2, "n_epochs": 3, "batch_size": 90, **options}
    return SparseAutoencoderConfig(**chosen)


def bits(trainer):
    return {name: tensor.detach().numpy().tobytes() for name, tensor in trainer.finished().tensors().items()}


def train(source, **options):
    trainer = SparseAutoencoderTrainer(source, config=config(**options))
    trainer.run()
    return trainer


# Known answer
def test_trainer__loss_is_one_for_the_centre_and_falls(source):
    """With codes held at zero the normalised error is 1 by definition of the scale, up to the sample it is taken on."""
    trainer = train(source, activation="relu", sparsity_coef=1e6, n_epochs=1, lr=1e-9, warmup=0.0)
    silent = trainer.model
    silent.b_enc.data.fill_(-1e6)

    x = torch.cat([trainer._next_batch() for _ in range(7)])

    found = silent.objective(x, penalty=0.0, dead=torch.zeros(32, dtype=torch.bool))
    assert found.loss.item() == pytest.approx(1, rel=1e-5)
    losses = train(source, n_epochs=30).epoch_losses()
    assert len(losses) == 30
    assert losses[-1] < 0.5 * losses[0]


def test_trainer__decoder_rows_have_norm_one(source):
    for activation in ACTIVATIONS:
        rows = train(source, activation=activation).finished().W_dec.norm(dim=1)

        torch.testing.assert_close(rows, torch.ones(32))


def test_trainer__threshold_gives_the_asked_l0(source):
    """Trained on batches, used on single vectors: on the training data both keep about k = 2."""
    model = train(source, n_epochs=40).finished()

    assert float((model.encode(torch.from_numpy(source)) > 0).sum() / 600) == pytest.approx(2, rel=0.1)


def test_trainer__step_size_and_penalty_rise_and_fall(source):
    trainer = SparseAutoencoderTrainer(source, config=config(n_epochs=10, lr=0.1, warmup=0.1, decay=0.5))
    rates = []
    while not trainer.done:
        trainer.step()
        rates.append(trainer._adam.param_groups[0]["lr"])

    assert rates[:7] == pytest.approx([0.1 * (step + 1) / 7 for step in range(7)])
    assert rates[7:36] == pytest.approx([0.1] * 29)
    assert rates[-1] == pytest.approx(0.1 / 35)


def test_run__reports_about_a_hundred_times_and_at_the_end(source):
    calls = []

    train_with = SparseAutoencoderTrainer(source, config=config(n_epochs=40))
    train_with.run(on_progress=lambda step, metrics: calls.append((step, metrics)))

    assert 100 <= len(calls) <= 145
    assert calls[-1][0] == train_with.n_steps == 280
    assert set(calls[-1][1]) == {"loss", "fvu", "l0", "dead_share"}


# Law
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_trainer__stopped_anywhere_and_resumed_ends_with_the_same_bits(tmp_path, source, activation):
    """Cuts at the first step, inside an epoch, at its end, in warm-up and decay, and at the last step."""
    whole = train(source, activation=activation)
    for cut in (0, 1, 4, 7, 13, 20, 21):
        trainer = SparseAutoencoderTrainer(source, config=config(activation))
        for _ in range(cut):
            trainer.step()
        trainer.save(tmp_path / str(cut))

        resumed = SparseAutoencoderTrainer.resume(tmp_path / str(cut), source)
        resumed.run()

        assert resumed.n_done == whole.n_done == 21
        assert bits(resumed) == bits(whole)
        assert torch.equal(resumed.metrics, whole.metrics)


def test_trainer__stopped_after_every_step_ends_with_the_same_bits(tmp_path, source):
    trainer = SparseAutoencoderTrainer(source, config=config(tied_weights=True))
    while not trainer.done:
        trainer.step()
        trainer.save(tmp_path)
        trainer = SparseAutoencoderTrainer.resume(tmp_path, source)

    assert bits(trainer) == bits(train(source, tied_weights=True))


def test_trainer__killed_at_a_random_moment_and_resumed_ends_with_the_same_bits(tmp_path):
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

    resumed = SparseAutoencoderTrainer.resume(tmp_path, source)
    n_before = resumed.n_done
    stop = n_before + 20
    while resumed.n_done < stop:
        resumed.step()
    whole = SparseAutoencoderTrainer(source, config=chosen)
    while whole.n_done < stop:
        whole.step()

    assert 0 < n_before < whole.n_steps, f"killed after {pause:.3f} s"
    assert bits(resumed) == bits(whole), f"killed after {pause:.3f} s, at step {n_before}"


def test_trainer__same_seed_same_bits_and_another_seed_others(source):
    assert bits(train(source, seed=3)) == bits(train(source, seed=3)) != bits(train(source, seed=4))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_trainer__features_do_not_depend_on_the_units_or_the_origin(source, activation):
    """Scaling by a power of two is exact; the shift costs float32 digits, which 21 steps amplify little."""
    plain = train(source, activation=activation).finished()

    scaled = train(4 * source, activation=activation).finished()
    shifted = train(source + np.float32(3), activation=activation).finished()

    assert torch.equal(scaled.W_dec, plain.W_dec)
    torch.testing.assert_close(scaled.threshold, 4 * plain.threshold)
    assert least_cosine(shifted, plain) > 0.999
    x = torch.from_numpy(source)
    torch.testing.assert_close(scaled(4 * x), 4 * plain(x), rtol=1e-4, atol=1e-4)


def least_cosine(a, b):
    return torch.cosine_similarity(a.W_dec, b.W_dec).min().item()


def test_trainer__positions_are_vectors(source):
    flat, folded = train(source), train(source.reshape(200, 3, 16))

    assert folded.n_steps == flat.n_steps
    assert folded.finished().input_dim == 16


def test_trainer__float64_rows_train_like_float32(source):
    assert bits(train(source.astype(np.float64))) == bits(train(source))


# Bad input
def test_trainer__refuses_rows_without_vectors():
    with pytest.raises(ShapeError, match="rows must be"):
        SparseAutoencoderTrainer(np.zeros((0, 16), np.float32), config=config())


def test_trainer__refuses_vectors_that_are_all_the_same():
    with pytest.raises(DegenerateInputError, match="all the same"):
        SparseAutoencoderTrainer(np.full((50, 16), 0.1, np.float32), config=config())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_trainer__refuses_values_that_are_not_finite(source, value):
    spoiled = source.copy()
    spoiled[300, 2] = value

    with pytest.raises(DegenerateInputError, match="must be finite"):
        SparseAutoencoderTrainer(spoiled, config=config())


def test_step__refuses_values_that_are_not_finite_beyond_the_first_sample():
    rows = generator(0, "rows").normal(size=(20_000, 16)).astype(np.float32)
    trainer = SparseAutoencoderTrainer(rows, config=config(n_epochs=1, batch_size=4000))
    rows[:, 3] = np.nan

    with pytest.raises(DegenerateInputError, match="in a batch"):
        trainer.step()


def test_resume__refuses_an_empty_folder(tmp_path, source):
    with pytest.raises(CheckpointError, match="must exist"):
        SparseAutoencoderTrainer.resume(tmp_path, source)


def test_resume__refuses_other_vectors(tmp_path, source):
    SparseAutoencoderTrainer(source, config=config()).save(tmp_path)

    with pytest.raises(CheckpointError, match="source must be what"):
        SparseAutoencoderTrainer.resume(tmp_path, source[:, ::-1].copy())


def test_start_or_resume__refuses_another_config(tmp_path, source):
    SparseAutoencoderTrainer(source, config=config()).save(tmp_path)

    with pytest.raises(CheckpointError, match="must hold a run with this config"):
        SparseAutoencoderTrainer.start_or_resume(tmp_path, source, config=config(seed=9))
