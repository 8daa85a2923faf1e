"""Patch one component of a live model and see how much of a loss comes back.

    R = (L_corrupted - L_patched) / (L_corrupted - L_clean)

The interactive counterpart of `patch_sites`, on the same engine, for any loss and any input layout: three forwards
in eval mode (a loss under dropout is a loss of noise), the clean activation written into the corrupted run.

A loss of one's own has an interval if it can be taken apart by sample: if its values on single samples have the mean,
or the sum, that it gives for all of them, on the clean and on the corrupted outputs. A loss that holds on to the
targets of all samples cannot be asked about one; there, samples of the corrupted output are exchanged one by one, and
what each changes must add up. That is tried, not assumed.

Source: [@zhang2024].
Cost: one pass per component, all of them packed together, and one loss per sample; three forwards per component with a
loss that cannot be taken apart.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, NotRequired, TypedDict

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from mechint_core.errors import ShapeError
from mechint_core.models import (
    Patch,
    activation_of,
    capture,
    inference,
    match_sites,
    patched,
    samples_first,
    to_model,
    with_activation,
)
from mechint_core.patching import (
    ROUNDING,
    Component,
    Components,
    PairedConfig,
    PairRuns,
    PairScores,
    PromptPairs,
    Write,
    attention_heads,
    find_components,
    recovery_of,
    run_experiments,
)
from mechint_core.result import NAN

Loss = Callable[[Any], Tensor | float]

N_DRAWS: Final = 1000
LEVEL: Final = 0.95


class PatchOutcome(TypedDict):
    """What patching one component did."""

    clean_loss: float
    corrupted_loss: float
    patched_loss: float
    recovery_score: float
    """1: the whole difference comes back; 0: nothing. Not clipped. NaN if clean and corrupted losses are the same."""
    recovery_low: NotRequired[float]
    """95 % interval over samples, in `run_full_analysis`; NaN for one sample, or a loss that mixes samples."""
    recovery_high: NotRequired[float]


class ActivationPatcher:
    """Write clean activations of a component into runs on corrupted input.

    Parameters
    ----------
    model
        Any module. It runs in eval mode during an experiment, and is left as it was.
    layer_name
        The component that `patch` patches: a module name, a glob whose matches are patched together, or an attention
        head, `layers.0.attention.1`.
    sample_axis
        The axis of the inputs that holds samples. None: 1 if the model holds a PyTorch layer with
        `batch_first=False` and the input has three axes, else 0.
    n_heads
        Heads of each attention, where the model does not say.

    Raises
    ------
    NotFoundError
        If the model has no such module or head; when patching, if it does not run.
    ConfigurationError
        If an attention module does not say how many heads it has.

    Examples
    --------
    >>> import torch
    >>> from mechint_core.synthetic.linear_network import LinearNetwork
    >>> patcher = ActivationPatcher(LinearNetwork((3.0, 1.0)), "routes.0")  # carries 3/4 of the output
    >>> outcome = patcher.patch(torch.ones(4, 8), torch.zeros(4, 8))
    >>> round(outcome["recovery_score"], 6)  # the squared distance left is (1/4)^2
    0.9375
    """

    def __init__(
        self, model: nn.Module, layer_name: str, *, sample_axis: int | None = None, n_heads: int | None = None
    ) -> None:
        self.model = model
        self.layer_name = layer_name
        self.sample_axis = sample_axis
        self.n_heads = n_heads
        self.heads = {
            each.label(head): (each, head)
            for each in attention_heads(model, n_heads=n_heads)
            for head in range(each.n_heads)
        }
        if layer_name not in self.heads:
            match_sites(model, [layer_name])  # an unknown name fails here, not at the first patch

    def patch(self, clean_input: Tensor, corrupted_input: Tensor, loss_fn: Loss | None = None) -> PatchOutcome:
        """Return the losses of the clean, the corrupted and the patched run, and the recovery score.

        Parameters
        ----------
        clean_input, corrupted_input
            Of the same shape, in the model's own layout.
        loss_fn
            The model's output to one number, smaller for a better answer. By default the mean squared distance to
            the clean output.

        Raises
        ------
        ShapeError
            If the inputs differ in shape, or `loss_fn` returns more than one number.
        NotFoundError
            If the component does not run, or gives no activation.
        ConfigurationError
            If it runs several times in one forward.
        """
        clean, corrupted = self._inputs(clean_input, corrupted_input)
        with inference(self.model):
            if self.layer_name in self.heads:
                places = [(self.heads[self.layer_name][0].site, self._units(self.layer_name))]
            else:
                places = [(site, None) for site in match_sites(self.model, [self.layer_name])]
            return self._outcome(clean, corrupted, places, loss_fn)

    def run_full_analysis(
        self,
        clean_input: Tensor,
        corrupted_input: Tensor,
        loss_fn: Loss | None = None,
        *,
        components: Sequence[str] = ("*",),
    ) -> dict[str, PatchOutcome]:
        """Patch every component of the model in turn; return the outcomes by name, the largest recovery first.

        Components are modules, and the heads of attention modules: `layers.0.attention.1` is head 1.

        Parameters
        ----------
        clean_input, corrupted_input, loss_fn
            As for `patch`. There is an interval if the loss can be taken apart by sample, as the default one can.
        components
            Globs over names of modules and heads. Modules that do not run, or not once per forward, are left out.

        Raises
        ------
        ShapeError
            If the inputs differ in shape, or `loss_fn` returns more than one number.
        NotFoundError
            If `components` match nothing that can be patched.
        """
        clean, corrupted = self._inputs(clean_input, corrupted_input)
        with inference(self.model):
            parts, bytes_per_row = self._parts(clean, components)
            scores = self._scores(clean, corrupted, parts, bytes_per_row, loss_fn)
            if scores is not None:
                outcomes = {each.name: outcome for each, outcome in zip(parts, _outcomes(scores), strict=True)}
            else:
                outcomes = {
                    each.name: self._outcome(clean, corrupted, [(each.site, each.part.units)], loss_fn)
                    for each in parts
                }
                for outcome in outcomes.values():
                    outcome.update(recovery_low=NAN, recovery_high=NAN)
        return dict(sorted(outcomes.items(), key=lambda item: _rank(item[1])))

    def _parts(self, inputs: Tensor, globs: Sequence[str]) -> tuple[list[Component], int]:
        """Return modules and heads, and the memory of their activations for one sample."""
        named = [label for label in self.heads if any(fnmatchcase(label, glob) for glob in globs)]
        names = [name for name, _ in self.model.named_modules()]
        modules = [
            glob
            for glob in globs
            if not any(fnmatchcase(label, glob) for label in named) or any(fnmatchcase(name, glob) for name in names)
        ]
        axis, n_heads = self._sample_axis(inputs), self.n_heads
        found: list[Components] = []
        if modules:
            found.append(find_components(self.model, inputs, modules, by="site", sample_axis=axis))
        if named:
            found.append(
                find_components(
                    self.model, inputs, named, by="head", sample_axis=axis, n_heads=n_heads, heads_only=True
                )
            )
        return [part for each in found for part in each.parts], sum(each.bytes_per_row for each in found)

    def _scores(
        self,
        clean: Tensor,
        corrupted: Tensor,
        parts: Sequence[Component],
        bytes_per_row: int,
        loss_fn: Loss | None,
    ) -> PairScores | None:
        """Return the loss of every sample in every run; None if the loss cannot be taken apart."""
        axis = self._sample_axis(clean)
        sites = tuple(dict.fromkeys(each.site for each in parts))
        config = PairedConfig(metric="distance", sample_axis=axis)
        if loss_fn is None:
            runs = PairRuns(model=self.model, config=config, sites=sites, bytes_per_row=bytes_per_row)
            pairs = PromptPairs(*(samples_first(each, axis).cpu().numpy() for each in (clean, corrupted)))
            return runs.score_parts(pairs, [(each.site, each.part) for each in parts])
        with capture(self.model, sites) as seen:
            clean_output = self.model(clean)
        donors = {site: samples_first(values, axis) for site, values in seen.items()}
        corrupted_output = self.model(corrupted)
        losses_of = _LossBySample.of(loss_fn, (clean_output, corrupted_output), axis) or _LossByExchange.of(
            loss_fn, clean_output, corrupted_output, axis
        )
        if losses_of is None:
            return None
        experiments = [[Write(each.site, donors[each.site], each.part)] for each in parts]
        losses = np.empty((len(parts), clean.shape[axis]))
        for pieces, output in run_experiments(
            self.model, corrupted, experiments, batch_rows=config.batch_rows, sample_axis=axis
        ):
            for piece in pieces:
                losses[piece.experiment, piece.rows] = losses_of(output, piece.place, piece.rows)
        every = slice(0, clean.shape[axis])
        return PairScores(losses_of(clean_output, every, every), losses_of(corrupted_output, every, every), losses)

    def _units(self, label: str) -> slice:
        heads, head = self.heads[label]
        return heads.units(head)

    def _outcome(
        self, clean: Tensor, corrupted: Tensor, places: Sequence[tuple[str, slice | None]], loss_fn: Loss | None
    ) -> PatchOutcome:
        sites = [site for site, _ in places]
        with capture(self.model, sites) as seen:
            clean_output = self.model(clean)
        donors = dict(seen) or {site: seen[site] for site in sites}  # if none of them ran, asking says so
        loss_of = loss_fn or _distance_to(clean_output)
        clean_loss, corrupted_loss = _number(loss_of(clean_output)), _number(loss_of(self.model(corrupted)))
        written = [
            Patch(site, donors[site][..., units or slice(None)], (..., units or slice(None)))
            for site, units in places
            if site in donors
        ]
        with patched(self.model, written):
            patched_loss = _number(loss_of(self.model(corrupted)))
        return PatchOutcome(
            clean_loss=clean_loss,
            corrupted_loss=corrupted_loss,
            patched_loss=patched_loss,
            recovery_score=_ratio(clean_loss, corrupted_loss, patched_loss),
        )

    def _inputs(self, clean: Tensor, corrupted: Tensor) -> tuple[Tensor, Tensor]:
        if clean.shape != corrupted.shape or clean.numel() == 0:
            raise ShapeError(
                "clean_input and corrupted_input must have the same shape, and not be empty. "
                f"Got {tuple(clean.shape)} and {tuple(corrupted.shape)}."
            )
        return to_model(clean, self.model), to_model(corrupted, self.model)

    def _sample_axis(self, inputs: Tensor) -> int:
        if self.sample_axis is not None:
            return self.sample_axis
        sequence_first = any(getattr(module, "batch_first", True) is False for module in self.model.modules())
        return 1 if sequence_first and inputs.ndim == 3 else 0


def _outcomes(scores: PairScores) -> list[PatchOutcome]:
    found = recovery_of(scores, noising=False, n_draws=N_DRAWS, level=LEVEL, seed=0)
    clean, corrupted = float(scores.clean.mean()), float(scores.corrupted.mean())
    return [
        PatchOutcome(
            clean_loss=clean,
            corrupted_loss=corrupted,
            patched_loss=float(each.mean()),
            recovery_score=_ratio(clean, corrupted, float(each.mean())),
            recovery_low=float(low),
            recovery_high=float(high),
        )
        for each, low, high in zip(scores.patched, found.low, found.high, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _LossBySample:
    """A loss that is the mean of its values on single samples, or `scale` times that."""

    loss_fn: Loss
    sample_axis: int
    scale: int = 1

    @classmethod
    def of(cls, loss_fn: Loss, outputs: Sequence[Any], sample_axis: int) -> "_LossBySample | None":
        """Try it on some outputs; None if their losses are not made of those of samples."""
        whole = np.array([_number(loss_fn(output)) for output in outputs])
        n_samples = activation_of(outputs[0]).shape[sample_axis]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a loss that holds on to all samples may warn of their number
                every = slice(0, n_samples)
                alone = np.array([cls(loss_fn, sample_axis)(output, every, every).mean() for output in outputs])
        except (RuntimeError, ValueError, TypeError, IndexError):
            return None
        for scale in (1, n_samples):  # a mean, or a sum
            if np.allclose(scale * alone, whole, rtol=1e-4, atol=1e-6 * np.abs(whole).max()):
                return cls(loss_fn, sample_axis, scale)
        return None

    def __call__(self, output: Any, place: slice, rows: slice) -> Float[np.ndarray, "sample"]:  # noqa: ARG002
        """Return the loss of each sample at `place` of an output; they are `rows` of all samples."""
        values = activation_of(output)
        alone = (values.narrow(self.sample_axis, row, 1) for row in range(place.start, place.stop))
        return self.scale * np.array([_number(self.loss_fn(with_activation(output, each))) for each in alone])


@dataclass(frozen=True, slots=True, eq=False)
class _LossByExchange:
    """A loss that is a sum over samples, each by its place: l_i(y) = L + n (L with sample i exchanged for y - L)."""

    loss_fn: Loss
    output: Any
    """In which samples are exchanged, one at a time."""
    sample_axis: int

    @classmethod
    def of(cls, loss_fn: Loss, clean: Any, corrupted: Any, sample_axis: int) -> "_LossByExchange | None":
        """Try it on the clean output, and on half of it; None if what single samples change does not add up."""
        made, ours = cls(loss_fn, corrupted, sample_axis), samples_first(activation_of(clean), sample_axis)
        alone, half = made(clean, slice(0, len(ours)), slice(0, len(ours))), activation_of(corrupted).clone()
        samples_first(half, sample_axis)[::2] = ours[::2]
        wanted = np.array([_number(loss_fn(clean)), _number(loss_fn(with_activation(corrupted, half)))])
        base = _number(loss_fn(corrupted))
        found = base + np.array([(alone - base).sum(), (alone - base)[::2].sum()]) / len(ours)
        rounding = 1e-6 * max(abs(base), *np.abs(wanted))
        return made if len(ours) > 1 and np.allclose(found, wanted, rtol=1e-4, atol=rounding) else None

    def __call__(self, output: Any, place: slice, rows: slice) -> Float[np.ndarray, "sample"]:
        """Return the loss of each sample at `place` of an output; they are `rows` of all samples."""
        given, base = samples_first(activation_of(output), self.sample_axis)[place], _number(self.loss_fn(self.output))
        whole = activation_of(self.output).clone()
        samples, losses = samples_first(whole, self.sample_axis), np.empty(len(given))
        for at, row in enumerate(range(rows.start, rows.stop)):
            own, samples[row] = samples[row].clone(), given[at]
            losses[at] = _number(self.loss_fn(with_activation(self.output, whole)))
            samples[row] = own
        return base + len(samples) * (losses - base)


def _ratio(clean: float, corrupted: float, patched_loss: float) -> float:
    if abs(corrupted - clean) <= ROUNDING * max(abs(corrupted), abs(clean)):
        return NAN
    return (corrupted - patched_loss) / (corrupted - clean)


def _rank(outcome: PatchOutcome) -> float:
    score = outcome["recovery_score"]
    return np.inf if np.isnan(score) else -score


def _distance_to(clean_output: Any) -> Loss:
    reference = activation_of(clean_output).double()
    return lambda output: (activation_of(output).double() - reference).square().mean()


def _number(loss: Tensor | float) -> float:
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise ShapeError(f"loss_fn must return one number. Got shape {tuple(loss.shape)}.")
    return float(loss)
