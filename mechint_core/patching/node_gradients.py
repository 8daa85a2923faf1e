"""What every node of a model gave in two runs, and how the metric depends on it: all nodes in one backward pass.

    g_s = dm / da_s  at the run that experiments change (the base)         for every site s, from one backward
    m(base with y at s)  ~  m(base) + g_s . (y - a_s)                      first order, for any y

For the other run's activation y this is attribution patching; the sums over heads, positions or units of a site are
estimates for these. Nothing hinders another y: a control costs no further run.

Further away, the gradient is averaged over the midpoints t_k = (k - 1/2) / n of a straight line:

    gradients_along           the line of one place, as the embedding; all sites   n forwards and backwards
    gradients_on_own_paths    each site's own line, all else at the base           n forwards and backwards per site

g_s . (y - a_s) of a site's own path sums to the exact effect of patching the whole site as n grows.

Source: [@nanda2023b]; [@sundararajan2017] and [@hanna2024] for the lines.
Cost: 2 forwards and 1 backward of all pairs for all sites.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechint_core.errors import ConfigurationError
from mechint_core.models import Activations, samples_first, samples_to, to_model, visited
from mechint_core.patching.answers import Answer, measure, score
from mechint_core.patching.pair_runs import PairRuns, Rows, other_pairs
from mechint_core.patching.pairs import PromptPairs
from mechint_core.patching.parts import Activation
from mechint_core.patching.passes import run_experiments

AtSites = Mapping[str, Activation]
_COPIES = 5
"""Of the activations at the sites: base, its graph, gradient, donor, product."""


@dataclass(frozen=True, slots=True, eq=False)
class NodeGradients:
    """Some pairs: what all sites gave, samples first, and the metric's gradient there."""

    rows: Rows
    inputs: Tensor
    """Of the base runs, in the model's layout."""
    answer: Answer
    clean: Float[np.ndarray, "sample"]
    """Metric of the clean runs."""
    corrupted: Float[np.ndarray, "sample"]
    base: AtSites
    """Of the runs that experiments change: corrupted when denoising, clean when noising."""
    donor: AtSites
    """Of the other runs."""
    other: AtSites | None
    """Of another pair's donor run, for the control."""
    gradient: AtSites
    """Of each sample's metric, at its base run."""

    def change(self, site: str, *, control: bool = False) -> Activation:
        """Return y - a at a site: what another run gave there, less what the base run gave."""
        donor = self.other if control else self.donor
        if donor is None:
            raise ConfigurationError("another pair's activations must have been kept for a control. Got none.")
        return donor[site] - self.base[site]


@contextmanager
def nodes(model: nn.Module, sites: Sequence[str]) -> Generator[Activations]:
    """Yield a mapping that holds, after a forward in this block, the node of each site, in the model's own layout.

    A node is what autograd differentiates with respect to. What follows gets a copy of it, so that an operation in
    place (`ReLU(inplace=True)`) cannot change what was differentiated. Hooks hung before this block come first.
    """
    seen = Activations()
    with ExitStack() as hooks:
        for site in sites:
            hooks.enter_context(visited(model, site, partial(_keep, seen, site)))
        yield seen


def _keep(seen: Activations, site: str, activation: Tensor) -> Tensor:
    if site in seen:
        raise ConfigurationError(f"site {site!r} must run once per forward. Got a second call.")
    seen[site] = activation if activation.requires_grad else activation.detach().requires_grad_()
    return seen[site].clone()


def node_gradients(
    runs: PairRuns, pairs: PromptPairs, rows: Rows, *, control: bool = False, following: int | None = None
) -> NodeGradients:
    """Run some pairs, clean and corrupted, and differentiate the metric; use it inside `differentiation(model)`.

    The control of each pair is the donor run of the next in `rows`; of the last, that of the pair `following`, or, at
    no cost, of the first.
    """
    n = len(rows)
    of, of_donors = pairs.at(rows), pairs.at(rows if following is None else np.append(rows, following))
    donor_values, donor = runs.run(of_donors.corrupted if runs.noising else of_donors.clean, runs.sites)
    inputs = runs.batch(of.clean if runs.noising else of.corrupted)
    with nodes(runs.model, runs.sites) as seen:
        base_values = runs.read(runs.model(inputs))
    clean = base_values.detach() if runs.noising else donor_values[:n]
    target, foil = (None if each is None else to_model(each, runs.model) for each in (of.target, of.foil))
    answer = Answer(target, foil, clean)
    measured = measure(base_values, answer, runs.config.metric)
    scores = [measured.detach().cpu().numpy(), score(donor_values[:n], answer, runs.config.metric)]
    of_clean, of_corrupted = scores if runs.noising else scores[::-1]
    return NodeGradients(
        rows=rows,
        inputs=inputs,
        answer=answer,
        clean=of_clean,
        corrupted=of_corrupted,
        base={site: samples_first(node.detach(), runs.config.sample_axis) for site, node in seen.items()},
        donor={site: each[:n] for site, each in donor.items()},
        other={site: each.roll(-1, dims=0)[:n] for site, each in donor.items()} if control else None,
        gradient=_gradients(runs, measured, seen),
    )


def gradient_blocks(runs: PairRuns, pairs: PromptPairs, *, control_seed: int | None = None) -> Iterator[NodeGradients]:
    """Yield all pairs in blocks whose activations fit in memory; with `control_seed`, with those of `other_pairs`.

    Blocks are cut from the circle of pairs in which each is followed by its control, so that the control costs one
    donor row per block; a single block is the circle itself, and it costs nothing.
    """
    order = np.arange(len(pairs)) if control_seed is None else _circle(other_pairs(len(pairs), control_seed))
    copies = _COPIES + (control_seed is not None)
    size = max(1, min(runs.config.batch_rows, runs.config.cache_bytes // max(1, copies * runs.bytes_per_row)))
    blocks = np.array_split(order, -(-len(order) // size))
    for block, after in zip(blocks, blocks[1:] + blocks[:1], strict=True):
        following = int(after[0]) if control_seed is not None and len(blocks) > 1 else None
        yield node_gradients(runs, pairs, block, control=control_seed is not None, following=following)


def gradients_along(runs: PairRuns, block: NodeGradients, path: Sequence[str], *, n_steps: int) -> AtSites:
    """Return the mean gradient at all sites while the sites `path` move from the base's to the donor's activation.

    With `path` the embedding of tokens, this is integrated gradients over inputs; `block` must hold its sites.
    """
    total: dict[str, Activation] = {}
    for t in _midpoints(n_steps):
        with ExitStack() as hooks:
            for site in path:
                point = samples_to(torch.lerp(block.base[site], block.donor[site], t), runs.config.sample_axis)
                hooks.enter_context(visited(runs.model, site, partial(_replace, point)))
            seen = hooks.enter_context(nodes(runs.model, runs.sites))
            values = runs.read(runs.model(block.inputs))
        found = _gradients(runs, measure(values, block.answer, runs.config.metric), seen)
        total = {site: each / n_steps + total.get(site, 0) for site, each in found.items()}
    return total


def gradients_on_own_paths(
    runs: PairRuns, block: NodeGradients, sites: Sequence[str], *, n_steps: int, control: bool = False
) -> AtSites:
    """Return each site's mean gradient while it alone moves from the base's activation to the donor's (or control's).

    All (site, step) experiments are packed into passes.
    """
    walks = [
        _Step(site, block.base[site] + t * block.change(site, control=control), {})
        for site in sites
        for t in _midpoints(n_steps)
    ]
    total = {site: torch.zeros_like(block.base[site]) for site in sites}
    config = runs.config
    passes = run_experiments(
        runs.model,
        block.inputs,
        [[each] for each in walks],
        batch_rows=config.batch_rows,
        sample_axis=config.sample_axis,
    )
    for pieces, output in passes:
        values = runs.read(output)
        measured = [measure(values[each.place], block.answer.of(each.rows), config.metric) for each in pieces]
        leaves = [walks[each.experiment].leaves.pop(each.rows.start) for each in pieces]
        for piece, gradient in zip(pieces, derivatives(torch.cat(measured), leaves), strict=True):
            total[walks[piece.experiment].site][piece.rows] += gradient / n_steps
    return total


def derivatives(measured: Float[Tensor, "sample"], of: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return each sample's derivatives; 0 for what the answer does not depend on. Rows do not influence one another."""
    if not measured.requires_grad:
        return [torch.zeros_like(each) for each in of]
    return torch.autograd.grad(measured.sum(), list(of), materialize_grads=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """Write a point of a site's path, as a leaf to differentiate with respect to."""

    site: str
    points: Activation
    leaves: dict[int, Activation]
    """By the first row."""

    def apply(self, activation: Activation, rows: slice) -> Activation:  # noqa: ARG002 - it takes its place
        leaf = self.points[rows].detach().requires_grad_()
        self.leaves[rows.start] = leaf
        return leaf


def _gradients(runs: PairRuns, measured: Float[Tensor, "sample"], seen: Activations) -> AtSites:
    found = derivatives(measured, list(seen.values()))
    return {site: samples_first(each, runs.config.sample_axis) for site, each in zip(seen, found, strict=True)}


def _replace(point: Tensor, _: Tensor) -> Tensor:
    return point.clone()


def _midpoints(n_steps: int) -> list[float]:
    return [(k + 0.5) / n_steps for k in range(n_steps)]


def _circle(others: Rows) -> Rows:
    """Return the pairs in such an order that each is followed by its other, the last by the first."""
    order = [0]
    while len(order) < len(others):
        order.append(int(others[order[-1]]))
    return np.array(order)
