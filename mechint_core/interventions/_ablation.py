"""What takes the place of an activation that is ablated.

    zero                0
    mean                mean over the data set
    class_mean          mean over the samples of the same class: what is left is the class
    other_class_mean    mean over the samples of all other classes: the class is gone, the rest is typical
    resample            what another sample gives there
    noise               Gaussian with the mean and the standard deviation of every unit, units independent

All of them per unit and position. Means and standard deviations are summed over blocks in float64.

Cost: one forward of all inputs for the means; one more of each block when resampling.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.patching import Block, PairRuns, PromptPairs, intact_blocks, other_pairs
from mechint_core.random import generator

Ablation = Literal["zero", "mean", "class_mean", "other_class_mean", "resample", "noise"]
BY_CLASS: Final = ("class_mean", "other_class_mean")

Activations = Mapping[str, Float[Tensor, "sample ..."]]
Labels = Int[np.ndarray, "sample"]


def check_ablation(ablation: str) -> None:
    """Raise ConfigurationError unless `ablation` is one of ours."""
    if ablation not in get_args(Ablation):
        raise ConfigurationError(f"ablation must be one of {', '.join(get_args(Ablation))}. Got {ablation!r}.")


@dataclass(frozen=True, slots=True)
class Moments:
    """What the samples of each class give at one site."""

    mean: Float[Tensor, "class ..."]
    other_mean: Float[Tensor, "class ..."]
    """Over the samples of all other classes."""
    deviation: Float[Tensor, "..."]
    """Of all samples, per unit and position."""


def ablated_blocks(
    runs: PairRuns, inputs: PromptPairs, ablation: Ablation, label: Labels | None, *, caches: int = 2
) -> Iterator[tuple[Block, Activations]]:
    """Yield the inputs in blocks, each with what takes the place of its activations at `runs.sites`.

    Raises
    ------
    ConfigurationError
        If means per class are asked for and there are no labels.
    DegenerateInputError
        If they leave nothing over: one class only, or a class of one sample.
    """
    by_class = ablation in BY_CLASS
    classes = _classes(label, len(inputs)) if by_class else np.zeros(len(inputs), dtype=np.int64)
    moments = {} if ablation in ("zero", "resample") else site_moments(runs, inputs, classes)
    others = other_pairs(len(inputs), runs.config.seed)
    draws = {site: generator(runs.config.seed, "ablation", "noise", site) for site in runs.sites}
    for block in intact_blocks(runs, inputs, caches=caches):
        seen, where = block.base_activations, torch.from_numpy(classes[block.rows])
        match ablation:
            case "zero":
                made = {site: torch.zeros_like(each) for site, each in seen.items()}
            case "resample":
                _, made = runs.run(inputs.clean[others[block.rows]], runs.sites)
            case "noise":
                made = {site: _noise(each, moments[site], draws[site]) for site, each in seen.items()}
            case "mean" | "class_mean":
                made = {site: moments[site].mean[where].to(each) for site, each in seen.items()}
            case "other_class_mean":
                made = {site: moments[site].other_mean[where].to(each) for site, each in seen.items()}
        yield block, made


def site_moments(runs: PairRuns, inputs: PromptPairs, classes: Labels) -> dict[str, Moments]:
    """Return the moments of every site, summed over blocks around the first block's mean; `classes` count from 0."""
    counts = torch.from_numpy(np.bincount(classes)).double()
    sums: dict[str, _Sums] = {}
    for block in intact_blocks(runs, inputs):
        where = torch.from_numpy(classes[block.rows])
        for site, each in block.base_activations.items():
            seen = each.to("cpu", torch.float64)
            if site not in sums:
                sums[site] = _Sums.around(seen.mean(dim=0), len(counts))
            sums[site].add(seen, where)
    return {site: each.moments(counts) for site, each in sums.items()}


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums of x - origin per class, and of its square; the origin keeps the variance from cancelling."""

    origin: Float[Tensor, "..."]
    first: Float[Tensor, "class ..."]
    second: Float[Tensor, "..."]

    @classmethod
    def around(cls, origin: Float[Tensor, "..."], n_classes: int) -> "_Sums":
        return cls(origin, torch.zeros(n_classes, *origin.shape, dtype=torch.float64), torch.zeros_like(origin))

    def add(self, seen: Float[Tensor, "sample ..."], classes: Int[Tensor, "sample"]) -> None:
        centred = seen - self.origin
        self.first.index_add_(0, classes, centred)
        self.second.add_(centred.square().sum(dim=0))

    def moments(self, counts: Float[Tensor, "class"]) -> Moments:
        n, total = counts.sum(), self.first.sum(dim=0)
        of = counts.reshape(-1, *[1] * total.ndim)
        return Moments(
            mean=self.origin + self.first / of,
            other_mean=self.origin + (total - self.first) / (n - of),
            deviation=(self.second / n - (total / n).square()).clamp(min=0).sqrt(),
        )


def _noise(
    seen: Float[Tensor, "sample ..."], moments: Moments, draws: np.random.Generator
) -> Float[Tensor, "sample ..."]:
    """Draw in the order of the samples, so that the noise does not depend on the blocks."""
    normal = torch.from_numpy(draws.standard_normal(tuple(seen.shape)))
    return (moments.mean[0] + moments.deviation * normal).to(seen)


def _classes(label: Labels | None, n_samples: int) -> Labels:
    """Return the labels, counted from 0."""
    if label is None:
        raise ConfigurationError(
            "a mean per class needs the label of every sample. Pass label, or use ablation='mean'."
        )
    if label.shape != (n_samples,):
        raise ShapeError(f"label must be one class per sample, ({n_samples},). Got shape {label.shape}.")
    names, classes, counts = np.unique(label, return_inverse=True, return_counts=True)
    if len(names) < 2 or counts.min() < 2:
        raise DegenerateInputError(
            f"means per class need at least 2 classes of at least 2 samples. Got {len(names)} classes, the smallest of "
            f"{counts.min()}: its mean is the sample itself, and nothing is ablated."
        )
    return classes.astype(np.int64)
