import pytest
import torch
from safetensors.torch import save_file

from mechint_core.errors import CheckpointError
from mechint_core.features.dictionaries import tensor_file
from mechint_core.features.dictionaries.tensor_file import read_tensors, write_tensors


# Known answer
def test_write_tensors__gives_back_the_same_bits_and_words(tmp_path):
    tensors = {"a": torch.tensor([1.0, torch.nan, -0.0]), "b.c": torch.arange(4)[::2], "d": torch.tensor(2.0).double()}

    write_tensors(tmp_path / "deep" / "x.safetensors", tensors, {"step": 3, "name": "ä"})
    read, about = read_tensors(tmp_path / "deep" / "x.safetensors")

    assert about == {"step": 3, "name": "ä"}
    assert {name: tensor.numpy().tobytes() for name, tensor in read.items()} == {
        name: tensor.contiguous().numpy().tobytes() for name, tensor in tensors.items()
    }


# Law
def test_write_tensors__stopped_at_any_moment_keeps_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.zeros(3)}, {"version": 1})

    class Killed(BaseException):
        pass

    def stop(*_, **__):
        raise Killed

    for moment in ("save_file", "replace_durably"):
        with monkeypatch.context() as patch:
            patch.setattr(tensor_file, moment, stop)
            with pytest.raises(Killed):
                write_tensors(path, {"a": torch.ones(3)}, {"version": 2})
        assert read_tensors(path)[1] == {"version": 1}
        assert (read_tensors(path)[0]["a"] == 0).all()


# Bad input
def test_read_tensors__refuses_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="must exist"):
        read_tensors(tmp_path / "x.safetensors")


def test_read_tensors__refuses_half_a_file(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.zeros(300)}, {})
    path.write_bytes(path.read_bytes()[:-400])

    with pytest.raises(CheckpointError, match="another kind of file"):
        read_tensors(path)


def test_read_tensors__refuses_a_file_of_others(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "x.safetensors")

    with pytest.raises(CheckpointError, match="another kind of file"):
        read_tensors(tmp_path / "x.safetensors")
