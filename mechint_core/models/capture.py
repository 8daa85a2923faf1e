"""Read what a model computes: capture activations by hooks that are always removed, and record a data set.

    with capture(model, ["layers.0.mlp"]) as seen:
        model(inputs)
    seen["layers.0.mlp"]

A captured activation is a copy, so that a later operation in place (`ReLU(inplace=True)`, `x += ...`) cannot change
it. A site must run once per forward: where a module is shared, which of its calls is meant would be a guess.

Cost: one forward pass per batch, and a copy of every captured activation.
"""

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from mechint_core.errors import ConfigurationError, NotFoundError, ShapeError
from mechint_core.models.activation import find_activation
from mechint_core.models.attention import projecting, whole_attention
from mechint_core.models.hooks import visited
from mechint_core.models.running import (
    batches,
    call,
    inference,
    memory_remedy,
    n_samples_of,
    samples_first,
    samples_to,
    to_array,
    to_model,
    torch_device,
    torch_dtype,
)
from mechint_core.models.sites import module_at, split_site


class Activations(dict[str, Tensor]):
    """Site -> activation of the last forward."""

    def __missing__(self, site: str) -> Tensor:
        raise NotFoundError(
            f"site {site!r} must run when the model is called. Got no call of it: its parent uses it otherwise, "
            f"or this input takes another way. Sites that ran: {', '.join(self) or 'none'}."
        )


@contextmanager
def capture(model: nn.Module, sites: Sequence[str]) -> Generator[Activations]:
    """Yield a mapping that holds, after each call of `model` in this block, the activation of every site that ran.

    Raises
    ------
    NotFoundError
        If the model has no such module; when a site is asked for that did not run.
    ConfigurationError
        During the call of the model, if a site runs a second time.
    """
    seen = Activations()
    with ExitStack() as hooks:
        hooks.enter_context(model.register_forward_pre_hook(partial(_forget, seen)))
        for site in sites:
            hooks.enter_context(visited(model, site, partial(_keep, seen, site)))
        yield seen


@contextmanager
def count_calls(model: nn.Module, sites: Sequence[str]) -> Generator[Counter[str]]:
    """Yield a counter of how often each site gives an activation while this block runs."""
    calls: Counter[str] = Counter()
    with ExitStack() as hooks:
        for site in sites:
            name, is_input = split_site(site)
            module = module_at(model, name)
            if is_input:
                hooks.enter_context(projecting(model, site))
                counted = partial(_count_input, calls, site)
                hooks.enter_context(module.register_forward_pre_hook(counted, with_kwargs=True))
            elif whole_attention(model, name) is None:
                hooks.enter_context(module.register_forward_hook(partial(_count_output, calls, site)))
        yield calls


def record_activations(
    model: nn.Module,
    inputs: Mapping[str, np.ndarray | Tensor],
    sites: Sequence[str],
    *,
    batch_size: int = 256,
    device: str = "auto",
    dtype: str = "float32",
    positional: bool | None = None,
    sample_axis: int = 0,
) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """Run `model` over `inputs` batch by batch; yield which samples ran, and the activation of every site.

    The model runs in eval mode and without gradients; its modes and the random state are as before between batches.
    It is moved to `device` and stays there.

    Parameters
    ----------
    model
        Any module.
    inputs
        Arrays with samples on their first axis. Floats are cast to the model's precision.
    sites
        Module names, as `match_sites` returns them.
    batch_size
        Samples per forward.
    device
        "auto", "cpu", "cuda" or "cuda:N".
    dtype
        Of the arrays: "float32", "float16" or "bfloat16". bfloat16 comes as its bits in uint16.
    positional
        Whether `inputs` go to `forward` in order, or by keyword. None: by keyword if they are its parameters.
    sample_axis
        Where the model itself keeps its samples: 1 for PyTorch layers with `batch_first=False`. What is yielded has
        them on the first axis always.

    Raises
    ------
    ShapeError
        If the inputs differ in their number of samples, or a site's activation is not one row per sample.
    NotFoundError
        If a site does not exist, or does not run.
    ConfigurationError
        If a site runs more than once per forward, or an option makes no sense.
    DtypeError
        If float16 cannot hold an activation.
    MemoryBudgetError
        If a batch does not fit in memory.
    """
    n_samples, sites = n_samples_of(inputs), tuple(sites)
    torch_dtype(dtype)
    model.to(torch_device(device))
    for rows in batches(n_samples, batch_size):
        with memory_remedy(f"Use a batch_size smaller than {batch_size}."):
            seen = _run(model, inputs, rows, sites, positional, sample_axis)
            recorded = {site: to_array(_per_sample(seen, site, rows, sample_axis), dtype, site) for site in sites}
        del seen  # not kept while the caller works on this batch
        yield rows, recorded


def run_model(
    model: nn.Module,
    inputs: Mapping[str, np.ndarray | Tensor],
    *,
    batch_size: int = 256,
    device: str = "auto",
    positional: bool | None = None,
    sample_axis: int = 0,
) -> np.ndarray:
    """Return the model's output for every sample, float32, samples first; parameters as for `record_activations`."""
    if n_samples_of(inputs) == 0:
        raise ShapeError("inputs must hold at least one sample. Got none.")
    recorded = record_activations(
        model, inputs, [""], batch_size=batch_size, device=device, positional=positional, sample_axis=sample_axis
    )
    return np.concatenate([batch[""] for _, batch in recorded])


def _forget(seen: Activations, _: nn.Module, __: Any) -> None:
    seen.clear()


def _keep(seen: Activations, site: str, activation: Tensor) -> None:
    if site in seen:
        raise ConfigurationError(
            f"site {site!r} must run once per forward. Got a second call: which one is meant is undefined. "
            "Choose a module around it that runs once."
        )
    seen[site] = activation.clone()


def _count_input(calls: Counter[str], site: str, _: nn.Module, *given: Any) -> None:
    calls[site] += find_activation(given) is not None


def _count_output(calls: Counter[str], site: str, _: nn.Module, __: Any, output: Any) -> None:
    calls[site] += find_activation(output) is not None


def _run(
    model: nn.Module,
    inputs: Mapping[str, np.ndarray | Tensor],
    rows: slice,
    sites: tuple[str, ...],
    positional: bool | None,
    sample_axis: int,
) -> Activations:
    with inference(model), capture(model, sites) as seen:
        batch = {name: samples_to(to_model(each[rows], model), sample_axis) for name, each in inputs.items()}
        call(model, batch, positional=positional)
    return seen


def _per_sample(seen: Activations, site: str, rows: slice, sample_axis: int) -> Tensor:
    activation = samples_first(seen[site], sample_axis)
    if activation.shape[0] != rows.stop - rows.start:
        raise ShapeError(
            f"the activation of {site or 'the model'!r} must have one row per sample, {rows.stop - rows.start} on axis "
            f"{sample_axis}. Got shape {tuple(seen[site].shape)}. Leave the site out, or set sample_axis."
        )
    return activation
