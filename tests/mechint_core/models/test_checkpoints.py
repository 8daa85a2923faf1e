"""Reading checkpoints as data."""

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import save_file

from mechint_core.errors import CheckpointError, ConfigurationError, NotFoundError, UnsafeCheckpointError
from mechint_core.models import CheckpointFile, checkpoint_digest, list_checkpoints, read_checkpoint

WEIGHTS = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}


class Malicious:
    """Pickles as a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def same(found, wanted=WEIGHTS):
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


# Known answer
def test_read_checkpoint__returns_the_tensors_of_a_safetensors_file(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert same(read_checkpoint(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_read_checkpoint__returns_the_tensors_of_torch_save(tmp_path, suffix, zipped):
    torch.save(WEIGHTS, tmp_path / f"m{suffix}", _use_new_zipfile_serialization=zipped)
    assert same(read_checkpoint(tmp_path / f"m{suffix}"))


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_read_checkpoint__unwraps_the_parameters(tmp_path, wrapper):
    torch.save({wrapper: WEIGHTS, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "m.pt")
    assert same(read_checkpoint(tmp_path / "m.pt"))


def test_read_checkpoint__reads_a_folder_of_hugging_face_and_gives_it_the_digest_of_its_file(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert same(read_checkpoint(tmp_path))
    assert checkpoint_digest(tmp_path) == checkpoint_digest(tmp_path / "model.safetensors")


def test_checkpoint_digest__is_the_sha256_of_the_bytes(tmp_path):
    (tmp_path / "m.pt").write_bytes(b"abc")
    assert checkpoint_digest(tmp_path / "m.pt") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_list_checkpoints__sorts_files_and_folders_by_the_last_number_of_their_names(tmp_path):
    for name in ("v2-step-100.safetensors", "v2-step-20.pt", "epoch=7-step=3.ckpt"):
        (tmp_path / name).touch()
    (tmp_path / "checkpoint-0").mkdir()
    (tmp_path / "checkpoint-0" / "model.safetensors").touch()
    assert [each.step for each in list_checkpoints(tmp_path)] == [0, 3, 20, 100]
    assert list_checkpoints(tmp_path, "v2*")[0] == CheckpointFile(20, tmp_path / "v2-step-20.pt")


def test_list_checkpoints__passes_over_files_in_progress_and_files_of_other_kinds(tmp_path):
    for name in ("step-1.pt", "step-2.pt.tmp", ".step-3.pt", "tmp-step-4.pt", "step-5.partial.pt", "log-6.json"):
        (tmp_path / name).touch()
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "tmp-checkpoint-8").mkdir()
    (tmp_path / "tmp-checkpoint-8" / "model.safetensors").touch()
    assert [each.step for each in list_checkpoints(tmp_path)] == [1]


# Oracle
def test_read_checkpoint__agrees_with_torch_load(tmp_path):
    model = torch.nn.TransformerEncoderLayer(8, 2, 16)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    assert same(read_checkpoint(tmp_path / "m.pt"), torch.load(tmp_path / "m.pt", weights_only=True))


# Law
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
@pytest.mark.parametrize("kind", ["safetensors", "zipped", "legacy"])
def test_read_checkpoint__never_returns_from_a_file_that_was_cut_short(tmp_path, kind, data):
    whole = io.BytesIO()
    if kind == "safetensors":
        save_file(WEIGHTS, tmp_path / "whole.safetensors")
        whole.write((tmp_path / "whole.safetensors").read_bytes())
    else:
        torch.save(WEIGHTS, whole, _use_new_zipfile_serialization=kind == "zipped")
    length = data.draw(st.integers(0, whole.tell() - 1))
    file = tmp_path / ("cut.safetensors" if kind == "safetensors" else "cut.pt")
    file.write_bytes(whole.getvalue()[:length])
    with pytest.raises(CheckpointError):
        read_checkpoint(file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.binary(max_size=200))
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_read_checkpoint__refuses_arbitrary_bytes(tmp_path, suffix, content):
    (tmp_path / f"m{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / f"m{suffix}")


# Bad input
@pytest.mark.parametrize("protocol", range(6))
def test_read_checkpoint__refuses_a_bare_pickle_that_runs_code_without_running_it(tmp_path, protocol):
    (tmp_path / "m.pt").write_bytes(pickle.dumps({"w": Malicious(tmp_path / "ran")}, protocol=protocol))
    with pytest.raises(UnsafeCheckpointError, match=r"would call .*pathlib.*Nothing was run"):
        read_checkpoint(tmp_path / "m.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_read_checkpoint__refuses_code_beside_tensors_without_running_it(tmp_path, zipped):
    content = {**WEIGHTS, "w": Malicious(tmp_path / "ran")}
    torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeCheckpointError, match="Path"):
        read_checkpoint(tmp_path / "m.pt")
    assert not (tmp_path / "ran").exists()


def test_read_checkpoint__refuses_a_whole_pickled_model(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pt")
    with pytest.raises(UnsafeCheckpointError, match=r"Linear.*state_dict"):
        read_checkpoint(tmp_path / "m.pt")


def test_read_checkpoint__refuses_code_in_an_archive_whose_other_members_are_gone(tmp_path):
    whole = io.BytesIO()
    torch.save({"w": Malicious(tmp_path / "ran")}, whole)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(tmp_path / "m.pt", "w") as cut:
        cut.writestr("m/data.pkl", archive.read("archive/data.pkl"))
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "m.pt")
    assert not (tmp_path / "ran").exists()


def test_read_checkpoint__says_what_else_a_file_holds(tmp_path):
    torch.save({"weight": torch.ones(1), "epoch": 3}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="other things under epoch"):
        read_checkpoint(tmp_path / "m.pt")
    torch.save([torch.ones(1)], tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="Got a list"):
        read_checkpoint(tmp_path / "m.pt")
    torch.save({}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="Got nothing"):
        read_checkpoint(tmp_path / "m.pt")


def test_read_checkpoint__refuses_a_header_that_promises_more_than_the_file(tmp_path):
    (tmp_path / "m.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="safetensors"):
        read_checkpoint(tmp_path / "m.safetensors")


@pytest.mark.parametrize("function", [read_checkpoint, checkpoint_digest])
def test_checkpoints__say_what_is_missing(tmp_path, function):
    with pytest.raises(NotFoundError, match="must exist"):
        function(tmp_path / "nothing.pt")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(NotFoundError, match=r"model.safetensors.*notes.txt"):
        function(tmp_path)


def test_list_checkpoints__raises_on_a_folder_without_checkpoints(tmp_path):
    with pytest.raises(NotFoundError, match="must exist"):
        list_checkpoints(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match="It is empty"):
        list_checkpoints(tmp_path)
    (tmp_path / "step-1.pt").touch()
    with pytest.raises(NotFoundError, match=r"'model\*'.*It holds: step-1.pt"):
        list_checkpoints(tmp_path, "model*")


def test_list_checkpoints__raises_on_names_without_a_step_or_with_the_same(tmp_path):
    (tmp_path / "model-7.pt").touch()
    (tmp_path / "optimizer-7.pt").touch()
    with pytest.raises(ConfigurationError, match=r"step 7 twice: model-7.pt and optimizer-7.pt"):
        list_checkpoints(tmp_path)
    (tmp_path / "final.pt").touch()
    with pytest.raises(ConfigurationError, match=r"must hold its step.*final.pt"):
        list_checkpoints(tmp_path, "final*")
