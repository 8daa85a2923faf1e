"""Read checkpoints that others wrote: as data, never as code.

A checkpoint is a `.safetensors` file, a file of `torch.save` (`.pt`, `.pth`, `.bin`, `.ckpt`) that holds only tensors,
or a folder with one of these inside, as Hugging Face writes it. A pickle may name any function and have it
called while it is loaded; such a file is refused before anything in it runs.

Cost: one read of the file.
"""

import hashlib
import io
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mechint_core.errors import CheckpointError, ConfigurationError, NotFoundError, UnsafeCheckpointError

SUFFIXES: Final = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
FOLDER_FILES: Final = ("model.safetensors", "pytorch_model.bin")
WRAPPERS: Final = ("state_dict", "model_state_dict", "model")

_IN_PROGRESS = re.compile(r"^(\.|tmp|temp)|\.(tmp|temp|part|partial|incomplete)\b|~$")
_PLAIN_GLOBALS = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_\w+|torch\.storage\.\w+"
    r"|torch\.\w*Storage|torch\.(Size|device|dtype|float\w*|bfloat16|int\w+|uint8|bool)"
)
_PICKLE_LIMIT = 64 * 2**20  # bytes of pickle searched for the names it would call


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """One saved step of a training run."""

    step: int
    path: Path


def list_checkpoints(folder: str | Path, pattern: str = "*") -> list[CheckpointFile]:
    """Return the checkpoints in `folder` whose name matches `pattern`, by step.

    The step is the last whole number in the name: `model-100.safetensors`, `epoch=3-step=100.ckpt` and the folder
    `checkpoint-100` are all step 100. Hidden files, files still being written (`.tmp`, `.partial`, `tmp-...`) and
    files of other kinds are passed over.

    Raises
    ------
    NotFoundError
        If `folder` is not there, or holds no checkpoint of that name.
    ConfigurationError
        If a name holds no number, or two names hold the same one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotFoundError(f"the checkpoint folder must exist. Got {folder}.")
    paths = sorted(path for path in folder.iterdir() if fnmatchcase(path.name, pattern) and _is_checkpoint(path))
    if not paths:
        raise NotFoundError(
            f"{folder} must hold checkpoints named {pattern!r} ({', '.join(SUFFIXES)}, or folders with "
            f"{' or '.join(FOLDER_FILES)}). {_contents(folder)}"
        )
    found: dict[int, Path] = {}
    for path in paths:
        step = _step(path)
        if step in found:
            raise ConfigurationError(
                f"checkpoints must have one file per step. Got step {step} twice: {found[step].name} and {path.name}. "
                "Choose one kind with a pattern, as in 'model-*.safetensors'."
            )
        found[step] = path
    return [CheckpointFile(step, found[step]) for step in sorted(found)]


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Return the parameters in a checkpoint by name, on the CPU, without running anything the file says.

    A mapping kept under `state_dict`, `model_state_dict` or `model` is unwrapped.

    Raises
    ------
    NotFoundError
        If there is no such file, or the folder holds no model.
    UnsafeCheckpointError
        If the file is a pickle that would call functions when loaded.
    CheckpointError
        If the file is cut short, damaged, or holds something else than tensors.
    """
    file = _weights_file(Path(path))
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError, ValueError, KeyError) as problem:
            raise CheckpointError(f"{file} must be a whole safetensors file. Got: {problem}.") from problem
    return _only_tensors(_load_pickle(file), file)


def checkpoint_digest(path: str | Path) -> str:
    """Return the sha256 of the file that holds the parameters, in hexadecimal.

    Raises
    ------
    NotFoundError
        If there is no such file, or the folder holds no model.
    """
    with _weights_file(Path(path)).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_checkpoint(path: Path) -> bool:
    if _IN_PROGRESS.search(path.name):
        return False
    if path.is_dir():
        return any((path / name).is_file() for name in FOLDER_FILES)
    return path.suffix in SUFFIXES


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return f"It holds: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}." if names else "It is empty."


def _step(path: Path) -> int:
    name = path.stem if path.suffix in SUFFIXES else path.name
    numbers = re.findall(r"\d+", name)
    if not numbers:
        raise ConfigurationError(
            f"a checkpoint's name must hold its step, as in model-100.safetensors. Got {path.name}. "
            "Rename it, or leave it out with a pattern."
        )
    return int(numbers[-1])


def _weights_file(path: Path) -> Path:
    if path.is_dir():
        files = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if not files:
            raise NotFoundError(f"{path} must hold {' or '.join(FOLDER_FILES)}. {_contents(path)}")
        return files[0]
    if not path.is_file():
        raise NotFoundError(f"the checkpoint must exist. Got {path}.")
    return path


def _load_pickle(file: Path) -> Any:
    """Load with the unpickler that builds tensors and calls nothing; say why where it refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it warns of pickle protocols that it then refuses
            return torch.load(file, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        struct.error,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        AssertionError,
        MemoryError,
        OverflowError,
    ) as problem:  # fmt: skip - whatever a parser meets in bytes that are not what it expects
        called = _names_called(file)
        if called:
            raise UnsafeCheckpointError(
                f"{file} must hold tensors only. Got a pickle that would call {', '.join(called[:3])}. "
                "Nothing was run. If you trust its author, load it yourself, and save its state_dict by safetensors."
            ) from None
        reason = str(problem).split("WeightsUnpickler error: ")[-1].split("\n")[0]
        raise CheckpointError(
            f"{file} must be a whole file made by torch.save. Got {type(problem).__name__}: {reason}"
        ) from problem


def _names_called(file: Path) -> list[str]:
    """List what a pickle would import beyond the makings of tensors, by reading its opcodes without running them."""
    try:
        names = [name for pickled in _pickles(file) for name in _globals(pickled)]
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error):  # a damaged archive
        return []
    return sorted({name for name in names if not _PLAIN_GLOBALS.fullmatch(name)})


def _pickles(file: Path) -> Iterator[bytes]:
    if not zipfile.is_zipfile(file):
        with file.open("rb") as stream:
            yield stream.read(_PICKLE_LIMIT)
        return
    with zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            if member.endswith(".pkl"):
                with archive.open(member) as stream:
                    yield stream.read(_PICKLE_LIMIT)


def _globals(pickled: bytes) -> Iterator[str]:
    words: list[str] = []
    stream = io.BytesIO(pickled)
    try:
        while True:  # the older format of torch.save is several pickles, then bytes that are none
            for opcode, argument, _ in pickletools.genops(stream):
                if isinstance(argument, str):
                    words.append(argument)
                if opcode.name in ("GLOBAL", "INST"):
                    yield str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    yield ".".join(words[-2:])
    except (ValueError, LookupError, EOFError, struct.error, OverflowError):
        return  # not a pickle from here on: what was found so far is the answer


def _only_tensors(loaded: Any, file: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{file} must hold tensors by name. Got a {type(loaded).__name__}.")
    others = [str(name) for name, value in loaded.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if others or not loaded:
        what = f"other things under {', '.join(others[:5])}" if others else "nothing"
        raise CheckpointError(
            f"{file} must hold tensors by name, at the top or under {' or '.join(WRAPPERS)}. Got {what}."
        )
    return dict(loaded)
