"""Find the smallest set of a model's components that is sufficient for its answer.

    F(C) = (m(C) - m(none)) / (m(all) - m(none))          m(C): only the components in C are intact
    C*   = the smallest C whose F is at least f           by the lower end of its interval

All other components are ablated: each gives what the corrupted run gave there, or its mean. With few components every
set is looked at, size by size; with many, components are taken away and added one by one, and two traded for one. What
is found on one part of the pairs is judged on the other:

    sufficient     F(C)                             against random sets of the same size
    necessary      1 - F(all but C)                 low where the rest backs C up
    contribution   F(C) - F(C without k)  of a member k,  F(C with k) - F(C)  of any other

Source: [@wang2023], [@shi2024].
Cost: 1 forward of the pairs for each set looked at: up to 2^K for K components, or about 2 K^2, packed.
Chunked over: prompt pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from torch import nn

from mechint_core.errors import ConfigurationError
from mechint_core.figure import Bars, Figure
from mechint_core.interventions._held_out import given_pairs, held_out_pairs
from mechint_core.interventions._intact_sets import Trials, mean_activations
from mechint_core.interventions._sufficient_sets import Found, Search, Subset, random_sets
from mechint_core.kernels.resampling import p_value, percentile_interval
from mechint_core.models import inference, memory_remedy, samples_to, to_model
from mechint_core.patching import (
    Granularity,
    PairedConfig,
    PairRuns,
    PairScores,
    PromptPairs,
    Recovery,
    check_components,
    find_components,
    recovery_of,
    resampling_weights,
)
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

Ablation = Literal["resample", "mean"]
_SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class MinimalCircuitConfig(PairedConfig):
    """What is a component, what is enough, and how hard to look."""

    sites: tuple[str, ...] = ("*",)
    """Globs over module names: the components. What is none of them is intact throughout."""
    by: Granularity = "site"
    """site; head: attention modules head by head; position; unit: every coordinate."""
    faithfulness: float = 0.9
    """Share of the answer that is enough, in (0, 1]; the lower end of the interval must reach it."""
    ablation: Ablation = "resample"
    """resample: what the corrupted prompt of the pair gave; mean: the mean over corrupted prompts."""
    held_out: float = 0.5
    """Share of the pairs that only judge, where no held-out pairs are given. Equal pairs stay together."""
    max_exact: int = 10
    """With at most this many components, every set is looked at: up to 2^max_exact."""
    max_swaps: int = 500
    """Trades of two components for one that are tried at each step of the other search; drawn at random beyond."""
    n_random: int = 100
    """Random sets of the same size, for the null."""

    def __post_init__(self) -> None:
        PairedConfig.__post_init__(self)
        check_components(self.by, sites=self.sites)
        if self.ablation not in get_args(Ablation):
            raise ConfigurationError(f"ablation must be resample or mean. Got {self.ablation!r}.")
        if not 0 < self.faithfulness <= 1 or not 0 < self.held_out < 1:
            raise ConfigurationError(
                "faithfulness must lie in (0, 1], and held_out strictly between 0 and 1. "
                f"Got {self.faithfulness} and {self.held_out}."
            )
        if self.max_exact < 0 or min(self.max_swaps, self.n_random) < 1:
            raise ConfigurationError(
                "max_exact must not be negative, max_swaps and n_random at least 1. "
                f"Got {self.max_exact}, {self.max_swaps} and {self.n_random}."
            )


@dataclass(frozen=True, slots=True)
class MinimalCircuit(Result):
    """The components that suffice, and how well, on pairs they were not chosen on."""

    technique: ClassVar[str] = "minimal_circuit"
    evidence: ClassVar[str] = (
        "On held-out pairs. Interval: bootstrap over pairs. Null of faithfulness: random sets of as many components, "
        "which p counts; of the rest, no effect, with p from sign flips, adjusted for the number of components."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Bars(
            values="contribution",
            labels="component",
            low="low",
            high="high",
            title="What each component adds to the circuit (members: what is lost without them)",
            value_label="share of the answer",
        ),
    )

    faithfulness: Estimate
    """Share of the answer with only the circuit intact."""
    necessity: Estimate
    """Share of the answer that is lost with only the circuit ablated. Null: 0."""
    discovered: Estimate
    """Faithfulness on the pairs the circuit was chosen on: flattered by the choice."""
    difference: Estimate
    """Mean metric of intact less fully ablated runs, which all shares are of. Null: 0."""
    component: Annotated[tuple[str, ...], "part"]
    """All candidates, in the order they run."""
    member: Bool[np.ndarray, "part"]
    contribution: Float[np.ndarray, "part"]
    """Of a member: what is lost without it. Of another: what is gained with it."""
    low: Float[np.ndarray, "part"]
    high: Float[np.ndarray, "part"]
    p_value: Float[np.ndarray, "part"]
    n_members: int
    n_alternatives: int
    """Other sets of the same size that suffice on the discovery pairs, if all were looked at; otherwise 0."""
    minimal: bool
    """Whether all smaller sets were looked at, on the discovery pairs, and none suffices."""
    holds: bool
    """Whether the lower end of the held-out faithfulness reaches what is asked."""
    defined: bool
    """False, and no circuit is given, if intact and fully ablated runs do not differ beyond noise."""
    asked: float
    """The faithfulness that is asked."""
    n_sets: int
    """Sets of components that were run on the discovery pairs."""
    n_discovery: int
    n_held_out: int
    n_skipped: int
    """Modules that the globs match but that cannot be changed."""

    def reading(self) -> str:
        """Name the circuit, and say whether it does alone what the model does."""
        if not self.defined:
            return (
                f"Ablating every component changes the metric by {self.difference}, which is within noise: "
                "there is no answer that a circuit could carry."
            )
        names = [name for name, member in zip(self.component, self.member, strict=True) if member]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        smallest = "the smallest set that suffices" if self.minimal else "a set that suffices, perhaps not the smallest"
        others = f", one of {self.n_alternatives + 1} of this size" if self.n_alternatives else ""
        found = self.faithfulness
        missed = "" if self.holds else f" (not surely the {self.asked:g} asked for)"
        random = (
            "" if np.isnan(found.null) else f", random sets of this size {found.null:.2f} (p = {found.p_value:.2g})"
        )
        backed_up = ": the rest backs them up" if self.necessity.high < self.asked else ""
        return (
            f"{len(names)} of {len(self.component)} components are {smallest}{others}: "
            f"{', '.join(names[:_SHOWN])}{more}. On {self.n_held_out} other pairs they keep {found.value:.2f} "
            f"[{found.low:.2f}, {found.high:.2f}] of the answer{missed}{random}. "
            f"Ablating them alone takes away {self.necessity.value:.2f}{backed_up}."
        )


def minimal_circuit(
    model: nn.Module,
    clean: Num[np.ndarray, "sample ..."],
    corrupted: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample"] | None = None,
    corrupted_target: Int[np.ndarray, "sample"] | None = None,
    held_out_clean: Num[np.ndarray, "other_sample ..."] | None = None,
    held_out_corrupted: Num[np.ndarray, "other_sample ..."] | None = None,
    held_out_target: Int[np.ndarray, "other_sample"] | None = None,
    held_out_corrupted_target: Int[np.ndarray, "other_sample"] | None = None,
    *,
    config: MinimalCircuitConfig = MinimalCircuitConfig(),
) -> MinimalCircuit:
    """Find the smallest set of a model's components that is sufficient for its answer.

    Use it when a scan has shown which components matter, to learn which of them do it by themselves. Sufficiency is
    relative to what is not a component, which stays intact, and to the ablation: the circuit may still read what others
    write regardless of the prompt. Parts of an AND are all in the circuit; of parts that back each other up (OR) one is
    enough, so the others are left out although they do the same, and ablating the circuit then takes little away.
    Faithfulness above 1 means that what was ablated opposed the answer.

    Parameters
    ----------
    model
        Any module; run in eval mode, and left as it was.
    clean
        Inputs with the right answer, samples first, passed to `model` as its only argument.
    corrupted
        The same inputs with what matters changed; row i belongs to clean row i. At least 4 pairs, better 100.
    target
        The clean prompt's answer, as a class. Needed unless the metric is kl or distance.
    corrupted_target
        The corrupted prompt's answer, for the logit difference.
    held_out_clean, held_out_corrupted, held_out_target, held_out_corrupted_target
        Pairs to judge on. If there are none, a share of the pairs is kept for it.
    config
        Components, ablation, and the faithfulness that is enough.

    Returns
    -------
    MinimalCircuit
        The circuit, its faithfulness and necessity (dimensionless, 1 = all of the answer) with interval and null, and
        what each component adds.

    Raises
    ------
    ShapeError
        If the arrays do not pair up, there are too few pairs, or the output is not (sample[, position], class).
    ConfigurationError
        If the metric needs a target and there is none, a target is not a class of the output, only one of the
        held-out arrays is given, or held-out pairs are among those to discover on.
    DegenerateInputError
        If the inputs or the model's outputs are not finite.
    NotFoundError
        If a glob matches no module, or no module that can be changed.
    MemoryBudgetError
        If a pass does not fit in memory.

    Notes
    -----
    That a circuit is minimal is proved for the discovery pairs only: with noise, another may be smallest elsewhere.

    References
    ----------
    [@wang2023]
    [@shi2024]

    Examples
    --------
    >>> from mechint_core.synthetic.planted_circuit import PlantedCircuit, planted_prompts
    >>> model = PlantedCircuit(((0,), (1,)), n_parts=5)  # an AND of two parts; three more write noise
    >>> found = minimal_circuit(model, **planted_prompts(40), config=MinimalCircuitConfig(sites=("parts.*",)))
    >>> found.member.tolist(), found.faithfulness.value, found.necessity.value, found.minimal
    ([True, True, False, False, False], 1.0, 1.0, True)
    """
    pairs = PromptPairs.of(clean, corrupted, target, corrupted_target, config.metric)
    others = given_pairs(held_out_clean, held_out_corrupted, held_out_target, held_out_corrupted_target, config.metric)
    discovery, judging = held_out_pairs(pairs, others, share=config.held_out, seed=config.seed)
    with inference(model), memory_remedy(f"Use batch_rows below {config.batch_rows}, or a smaller cache_bytes."):
        few = samples_to(to_model(clean[:2], model), config.sample_axis)
        components = find_components(model, few, config.sites, by=config.by, sample_axis=config.sample_axis)
        runs = PairRuns(
            model=model,
            config=config,
            sites=components.sites,
            bytes_per_row=components.bytes_per_row,
            noising=True,
        )
        mean = mean_activations(runs, discovery) if config.ablation == "mean" else None
        tried = Trials(runs, discovery, components.as_they_run, mean)
        found = _discover(tried, config)
        judged = _judge(Trials(runs, judging, components.as_they_run, mean), found.members, config)
    return _result(tried, found, judged, components.n_skipped, config)


@dataclass(frozen=True, slots=True)
class _Judged:
    """A circuit, judged on held-out pairs."""

    share: Recovery
    """Of the circuit; of the answer that is lost with it alone ablated; then of what each component adds."""
    random: Float[np.ndarray, "draw"]
    """Faithfulness of random sets."""
    n_pairs: int


def _discover(tried: Trials, config: MinimalCircuitConfig) -> Found:
    """Look for the smallest set that is enough; if there is nothing to be had, the empty one."""
    full, empty = tried.scores([tried.everything, frozenset()])
    if not _shares(full, empty, full[None], config).defined:
        return Found(frozenset(), 0, minimal=False)
    weights = resampling_weights(len(full), config.n_draws, config.seed).T

    def judge(subsets: Sequence[Subset]) -> tuple[Float[np.ndarray, "row"], Float[np.ndarray, "row"]]:
        gain = tried.scores(subsets) - empty
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample may hit no effect; it is left out
            draws = (gain @ weights) / ((full - empty) @ weights)
        low = [percentile_interval(each, config.level)[0] for each in draws]
        return gain.mean(axis=1) / (full - empty).mean(), np.array(low)

    search = Search(judge, len(tried.components), config.faithfulness)
    if search.n <= config.max_exact:
        return search.exhaustive()
    return search.greedy(config.max_swaps, generator(config.seed, "minimal_circuit", "swaps"))


def _judge(trials: Trials, circuit: Subset, config: MinimalCircuitConfig) -> _Judged:
    everything = trials.everything
    random = random_sets(
        len(everything), circuit, config.n_random, generator(config.seed, "minimal_circuit", "random sets")
    )
    changed = [circuit ^ {each} for each in sorted(everything)]  # without a member, with any other
    full, empty, alone, rest, *others = trials.scores(
        [everything, frozenset(), circuit, everything - circuit, *changed, *random]
    )
    signs = np.array([1 if each in circuit else -1 for each in sorted(everything)])
    adds = signs[:, None] * (alone - np.array(others[: len(changed)]))
    shares = _shares(full, empty, empty + np.array([alone - empty, full - rest, *adds]), config)
    gains = np.array([(each - empty).mean() for each in others[len(changed) :]])
    if not circuit or not shares.defined:
        nothing = np.full_like(shares.value, NAN)
        undefined = replace(
            shares, value=nothing, low=nothing, high=nothing, null=nothing, p_value=nothing, defined=False
        )
        return _Judged(undefined, np.empty(0), len(full))
    return _Judged(shares, gains / shares.difference.value, len(full))


def _shares(
    full: Float[np.ndarray, "sample"],
    empty: Float[np.ndarray, "sample"],
    scores: Float[np.ndarray, "site sample"],
    config: MinimalCircuitConfig,
) -> Recovery:
    """Return the share of full less empty that each row of scores makes."""
    return recovery_of(
        PairScores(full, empty, scores), noising=False, n_draws=config.n_draws, level=config.level, seed=config.seed
    )


def _result(
    tried: Trials, found: Found, judged: _Judged, n_skipped: int, config: MinimalCircuitConfig
) -> MinimalCircuit:
    share, random = judged.share, judged.random
    circuit: Subset = found.members if share.defined else frozenset()
    alone, rest = _interval(share, 0, config.level), _interval(share, 1, config.level)
    null = float(random.mean()) if random.size else NAN
    return MinimalCircuit(
        faithfulness=replace(alone, null=null, p_value=p_value(alone.value, random)),
        necessity=replace(rest, null=float(share.null[1]), p_value=float(share.p_value[1])),
        discovered=_discovered(tried, circuit, config),
        difference=share.difference,
        component=tuple(each.name for each in tried.components),
        member=np.array([number in circuit for number in range(len(tried.components))]),
        contribution=share.value[2:],
        low=share.low[2:],
        high=share.high[2:],
        p_value=share.p_value[2:],
        n_members=len(circuit),
        n_alternatives=found.n_alternatives,
        minimal=found.minimal and share.defined,
        holds=alone.low >= config.faithfulness,
        defined=share.defined,
        asked=config.faithfulness,
        n_sets=len(tried.known),
        n_discovery=len(tried.pairs),
        n_held_out=judged.n_pairs,
        n_skipped=n_skipped,
    )


def _interval(share: Recovery, at: int, level: float) -> Estimate:
    return Estimate(float(share.value[at]), float(share.low[at]), float(share.high[at]), level=level)


def _discovered(tried: Trials, circuit: Subset, config: MinimalCircuitConfig) -> Estimate:
    """Return the faithfulness on the pairs the circuit was chosen on."""
    if not circuit:
        return Estimate(NAN, level=config.level)
    full, empty, alone = tried.scores([tried.everything, frozenset(), circuit])
    return _interval(_shares(full, empty, alone[None], config), 0, config.level)
