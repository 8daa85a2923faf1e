"""How every experiment runs a model: in eval mode, and leaving no trace on it.

Two runs of the same input must give the same bits, or their difference is not an effect. So dropout is off, the
fused inference kernels of `torch.nn` are off (they bypass submodules, and hooks with them, unless one happens to be
hooked), and the generators are put back as they were.
"""

import inspect
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from mechint_core.errors import ConfigurationError, DtypeError, MemoryBudgetError, ShapeError

DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Precisions by name. NumPy has no bfloat16: such an array is its bits as uint16, its logical dtype 'bfloat16'."""


def torch_dtype(name: str | None) -> torch.dtype | None:
    """Return the precision called `name`; None stays None."""
    if name is None:
        return None
    if name not in DTYPES:
        raise ConfigurationError(f"dtype must be one of {', '.join(DTYPES)}. Got {name!r}.")
    return DTYPES[name]


def torch_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigurationError(f"device must be auto, cpu, cuda or cuda:N. Got {name!r}.") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigurationError(
            f"device {name!r} must be there. Got {torch.cuda.device_count()} CUDA devices. Use auto."
        )
    return device


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's parameters (or buffers) are; the CPU if it has none."""
    held = next(model.parameters(), None)
    held = next(model.buffers(), None) if held is None else held
    return torch.device("cpu") if held is None else held.device


@contextmanager
def inference(model: nn.Module) -> Generator[None]:
    """Run `model` in eval mode, without gradients or fused fast paths; put its modes and all generators back."""
    with _undisturbed(model), torch.inference_mode():
        yield


@contextmanager
def differentiation(model: nn.Module) -> Generator[None]:
    """Run `model` as `inference` does, with gradients for what is put into it; its parameters get none."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with _undisturbed(model), torch.enable_grad():
        try:
            for parameter in asking:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in asking:
                parameter.requires_grad_(True)


@contextmanager
def _undisturbed(model: nn.Module) -> Generator[None]:
    """Hold the model in eval mode, fused fast paths off; put its modes and all generators back."""
    training = [module for module in model.modules() if module.training]
    device = device_of(model)
    with _FUSED.off(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            model.eval()
            yield
        finally:
            for module in training:
                module.training = True


class _FusedPaths:
    """PyTorch's switch of its fused attention: one for all threads, so whoever is the last to leave puts it back.

    If each put back what it had found, one thread would switch them on under another, which would then not see, or not
    change, what its hooks are on.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, True

    @contextmanager
    def off(self) -> Generator[None]:
        """Keep fused paths off in this block."""
        with self._lock:
            if self._inside == 0:
                self._before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    torch.backends.mha.set_fastpath_enabled(self._before)


_FUSED: Final = _FusedPaths()


def to_model(array: np.ndarray | Tensor, model: nn.Module) -> Tensor:
    """Return `array` where the model is: floats in the model's precision, integers as int64, booleans as they are.

    Raises
    ------
    DtypeError
        If it holds neither numbers nor booleans.
    """
    if isinstance(array, np.ndarray):
        if array.dtype.kind not in "biuf":
            raise DtypeError(f"a model's input must hold numbers. Got {array.dtype}.")
        # A copy where torch would warn (read-only) or could not read (negative strides, foreign byte order).
        native = np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=None)
        array = torch.from_numpy(native if native.flags.writeable else native.copy())
    if array.is_floating_point():
        return array.to(device_of(model), precision_of(model))
    return array.to(device_of(model), array.dtype if array.dtype == torch.bool else torch.int64)


def precision_of(model: nn.Module) -> torch.dtype:
    """Return the precision of the model's floating parameters; float32 if it has none."""
    kinds = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return next(kinds, torch.float32)


def to_array(activation: Tensor, dtype: str, name: str) -> np.ndarray:
    """Return `activation` as a new array of `dtype`; bfloat16 as its bits in uint16.

    Raises
    ------
    DtypeError
        If a finite value of `activation`, which `name` gave, overflows float16.
    """
    converted = activation.to("cpu", torch_dtype(dtype), copy=True)
    if dtype == "float16" and bool((converted.isinf() & activation.to("cpu").isfinite()).any()):
        raise DtypeError(f"activations of {name} must be below 65504 for float16. Got larger ones. Use bfloat16.")
    bits = converted.view(torch.uint16) if dtype == "bfloat16" else converted
    return bits.contiguous().numpy()


def call(model: nn.Module, inputs: Mapping[str, Tensor], *, positional: bool | None = None) -> Any:
    """Run the model on `inputs`, by keyword or in order.

    With `positional=None` they go by keyword if `forward` has a parameter of each name, in order if it has none of
    them.

    Raises
    ------
    ConfigurationError
        If some names are parameters of `forward` and some are not.
    """
    if positional is None:
        positional = _is_positional(model, list(inputs))
    return model(*inputs.values()) if positional else model(**inputs)


def samples_to(tensor: Tensor, sample_axis: int) -> Tensor:
    """Move samples from the first axis to where a model keeps them; tensors of one axis stay as they are."""
    return tensor.movedim(0, sample_axis) if tensor.ndim > 1 else tensor


def samples_first(tensor: Tensor, sample_axis: int) -> Tensor:
    """Move samples from where a model keeps them to the first axis."""
    return tensor.movedim(sample_axis, 0) if tensor.ndim > 1 else tensor


def batches(n_samples: int, batch_size: int) -> Iterator[slice]:
    """Split `n_samples` rows into runs of at most `batch_size`."""
    if batch_size < 1:
        raise ConfigurationError(f"batch_size must be at least 1. Got {batch_size}.")
    for start in range(0, n_samples, batch_size):
        yield slice(start, min(start + batch_size, n_samples))


def n_samples_of(inputs: Mapping[str, np.ndarray | Tensor]) -> int:
    """Return the common length of the first axis.

    Raises
    ------
    ShapeError
        If there is no input, one without axes, or their lengths differ.
    """
    lengths = {name: each.shape[0] if each.ndim else 0 for name, each in inputs.items()}
    if len(set(lengths.values())) != 1:
        raise ShapeError(f"inputs must have the same number of samples, on their first axis. Got {lengths}.")
    return next(iter(lengths.values()))


@contextmanager
def memory_remedy(remedy: str) -> Generator[None]:
    """Raise an allocation that failed inside this block as `MemoryBudgetError`, saying what to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        if isinstance(problem, MemoryBudgetError) or not _is_out_of_memory(problem):
            raise
        reason = str(problem).splitlines()[0] if str(problem) else "no more memory"
        raise MemoryBudgetError(f"the model's run must fit in memory. Got: {reason}. {remedy}") from problem


def _is_out_of_memory(problem: Exception) -> bool:
    return isinstance(problem, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(problem)


def _is_positional(model: nn.Module, names: Sequence[str]) -> bool:
    accepted = inspect.signature(model.forward).parameters
    known = [name in accepted for name in names]
    if any(known) and not all(known):
        raise ConfigurationError(
            f"inputs must all be parameters of forward, or none (then their order counts). Got {', '.join(names)}; "
            f"forward of {type(model).__name__} takes {', '.join(accepted)}."
        )
    return not any(known)
