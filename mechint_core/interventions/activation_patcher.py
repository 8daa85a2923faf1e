"""Patch one component of a live model and see how much of a loss comes back.

    R = (L_corrupted - L_patched) / (L_corrupted - L_clean)

The interactive counterpart of `patch_sites`, on the same engine, for any loss and any input layout: three forwards
in eval mode (a loss under dropout is a loss of noise), the clean activation written into the corrupted run.

Source: [@zhang2024].
Cost: three forwards per component with a loss of one's own; with the default loss, all components packed together.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NotRequired, TypedDict

import numpy as np
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
)
from mechint_core.patching import (
    ROUNDING,
    PairedConfig,
    PairRuns,
    PairScores,
    PromptPairs,
    Slice,
    recovery_of,
    usable_sites,
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
    """95 % interval over samples, in `run_full_analysis`; NaN for one sample, or a loss of one's own."""
    recovery_high: NotRequired[float]


class ActivationPatcher:
    """Write clean activations of a component into runs on corrupted input.

    Parameters
    ----------
    model
        Any module. It runs in eval mode during an experiment, and is left as it was.
    layer_name
        The component that `patch` patches: a module name, or a glob whose matches are patched together.
    sample_axis
        The axis of the inputs that holds samples. None: 1 if the model holds a PyTorch layer with
        `batch_first=False` and the input has three axes, else 0.

    Raises
    ------
    NotFoundError
        If the model has no such module; when patching, if it does not run.

    Examples
    --------
    >>> import torch
    >>> from mechint_core.synthetic.linear_network import LinearNetwork
    >>> patcher = ActivationPatcher(LinearNetwork((3.0, 1.0)), "routes.0")  # carries 3/4 of the output
    >>> outcome = patcher.patch(torch.ones(4, 8), torch.zeros(4, 8))
    >>> round(outcome["recovery_score"], 6)  # the squared distance left is (1/4)^2
    0.9375
    """

    def __init__(self, model: nn.Module, layer_name: str, *, sample_axis: int | None = None) -> None:
        self.model = model
        self.layer_name = layer_name
        self.sample_axis = sample_axis
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
            return self._outcome(clean, corrupted, match_sites(self.model, [self.layer_name]), loss_fn)

    def run_full_analysis(
        self,
        clean_input: Tensor,
        corrupted_input: Tensor,
        loss_fn: Loss | None = None,
        *,
        components: Sequence[str] = ("*",),
    ) -> dict[str, PatchOutcome]:
        """Patch every component of the model in turn; return the outcomes by name, the largest recovery first.

        Parameters
        ----------
        clean_input, corrupted_input, loss_fn
            As for `patch`. Only the default loss can be taken apart by sample, so only it gives an interval.
        components
            Globs over module names. Modules that do not run, or not once per forward, are left out.

        Raises
        ------
        ShapeError
            If the inputs differ in shape, or `loss_fn` returns more than one number.
        NotFoundError
            If `components` match nothing that can be patched.
        """
        clean, corrupted = self._inputs(clean_input, corrupted_input)
        axis = self._sample_axis(clean)
        with inference(self.model):
            usable = usable_sites(self.model, clean, components, sample_axis=axis, position=None)
            if loss_fn is None:
                runs = PairRuns(
                    model=self.model,
                    config=PairedConfig(metric="distance", sample_axis=axis),
                    sites=usable.sites,
                    bytes_per_row=usable.bytes_per_row,
                )
                pairs = PromptPairs(*(samples_first(each, axis).cpu().numpy() for each in (clean, corrupted)))
                scores = runs.score_parts(pairs, [(site, Slice()) for site in usable.sites])
                outcomes = dict(zip(usable.sites, _outcomes(scores), strict=True))
            else:
                outcomes = {site: self._outcome(clean, corrupted, (site,), loss_fn) for site in usable.sites}
                for outcome in outcomes.values():
                    outcome.update(recovery_low=NAN, recovery_high=NAN)
        return dict(sorted(outcomes.items(), key=lambda item: _rank(item[1])))

    def _outcome(self, clean: Tensor, corrupted: Tensor, sites: Sequence[str], loss_fn: Loss | None) -> PatchOutcome:
        with capture(self.model, sites) as seen:
            clean_output = self.model(clean)
        donors = dict(seen) or {site: seen[site] for site in sites}  # if none of them ran, asking says so
        loss_of = loss_fn or _distance_to(clean_output)
        clean_loss, corrupted_loss = _number(loss_of(clean_output)), _number(loss_of(self.model(corrupted)))
        with patched(self.model, [Patch(site, values) for site, values in donors.items()]):
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
