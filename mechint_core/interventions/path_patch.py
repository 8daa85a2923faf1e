"""Find through which components a component acts on the answer.

A path leaves a sender s, enters a receiver r at once, past all other components, and goes on to the answer in every way
there is. With the sender's activation s' of the other run:

    r'            =  r(s', every other component as it was)           effect(s -> r)  =  m(r' in place of r) - m
    effect(s -> answer)  =  m(s', every other component as it was) - m            the direct effect
    through(s)    =  the effect of the step from s to all receivers together

divided by m_clean - m_corrupted, means before the division, as in activation patching. Where the receivers cut every
way from s to the answer, through(s) is what patching s gives.

    linearised    effect(s -> r)  =  dm/dr . dr/ds . (s' - s)                     every other component held in dr/ds

Source: [@wang2023], [@goldowskydill2023].
Cost: 2 forwards of all pairs for each sender and each receiver after it, 3 more for each sender, packed. Linearised: 2
forwards and 2 + R backwards for all senders and R receivers. The control doubles both.
Chunked over: prompt pairs.
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, get_args

import numpy as np
from jaxtyping import Float, Int, Num
from torch import nn

from mechint_core.errors import ConfigurationError
from mechint_core.figure import Figure, Matrix
from mechint_core.interventions._path_plan import PathPlan, path_scores
from mechint_core.kernels.resampling import percentile_interval
from mechint_core.models import differentiation, inference, memory_remedy, samples_to, to_model
from mechint_core.patching import (
    OUTPUT,
    ROUNDING,
    Granularity,
    PairedConfig,
    PairRuns,
    PairScores,
    PromptPairs,
    Write,
    check_components,
    other_pairs,
    recovery_of,
    resampling_weights,
    score_paths,
    stand_out,
)
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

Direction = Literal["denoising", "noising"]

_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PathPatchConfig(PairedConfig):
    """Which paths, and which way."""

    senders: tuple[str, ...] = ("*",)
    """Globs over module names. Name components (attention, mlps) rather than blocks that contain them: a block's
    output holds the residual stream, and to hold it as it was closes every path past it."""
    receivers: tuple[str, ...] = (OUTPUT,)
    """Globs over module names (`name:input` is what a module is given), and `output` for the answer itself."""
    mediators: tuple[str, ...] = ()
    """Globs over further components that no path may go through. Senders and receivers are held in any case."""
    by: Granularity = "site"
    """site; head: attention modules head by head (by what they write); position; unit: every coordinate."""
    position: int | None = None
    """Change the senders at this position only; None changes all."""
    direction: Literal["denoising", "noising"] = "denoising"
    """denoising puts clean senders into corrupted runs; noising corrupted ones into clean runs."""
    control: bool = True
    """When denoising, change senders to another prompt's activation too, for the null: twice the cost."""
    linearised: bool = False
    """Approximate by derivatives: a few passes for all paths, and an error that `n_checked` exact paths measure."""
    n_checked: int = 8
    """Paths, drawn at random, that are measured exactly too when linearised."""

    def __post_init__(self) -> None:
        PairedConfig.__post_init__(self)
        check_components(self.by, self.position, senders=self.senders, receivers=self.receivers)
        if self.direction not in get_args(Direction):
            raise ConfigurationError(f"direction must be denoising or noising. Got {self.direction!r}.")
        if self.n_checked < 1:
            raise ConfigurationError(f"n_checked must be at least 1. Got {self.n_checked}.")


@dataclass(frozen=True, slots=True)
class PatchedPaths(Result):
    """What each sender moves of the answer through each receiver."""

    technique: ClassVar[str] = "path_patch"
    evidence: ClassVar[str] = (
        "Interval: bootstrap over prompt pairs. Null: the same path with another prompt's sender; when noising, no "
        "effect. p: sign flips of own less null, adjusted for the number of paths."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Matrix(
            values="effect",
            x="receiver",
            y="sender",
            x_label="receiver",
            y_label="sender",
            title="What each sender moves of the answer through each receiver",
            value_label="share of clean minus corrupted",
            diverging=True,
        ),
    )

    strongest: Estimate
    """The largest effect of a path; its p-value is adjusted for the choice, its interval is not."""
    difference: Estimate
    """Mean metric of the clean less the corrupted runs, which effects are shares of. Null: 0."""
    error: Estimate
    """Linearised: root-mean-square difference from the exact effects of some paths, over their root-mean-square.
    Null: 1, what calling every effect 0 gives. NaN if the effects are exact."""
    sender: Annotated[tuple[str, ...], "sender"]
    receiver: Annotated[tuple[str, ...], "receiver"]
    effect: Float[np.ndarray, "sender receiver"]
    """Shares of clean minus corrupted, signed and not clipped. 0 where the receiver runs before the sender."""
    low: Float[np.ndarray, "sender receiver"]
    high: Float[np.ndarray, "sender receiver"]
    null: Float[np.ndarray, "sender receiver"]
    p_value: Float[np.ndarray, "sender receiver"]
    through: Float[np.ndarray, "sender"]
    """Of each sender through all receivers together. Not the sum of `effect` where receivers act on one another."""
    through_low: Float[np.ndarray, "sender"]
    through_high: Float[np.ndarray, "sender"]
    total: Float[np.ndarray, "sender"]
    """Of each sender along all paths, exact: activation patching."""
    linearised: bool
    """True: `effect` and `through` are approximations; see `error`."""
    defined: bool
    """False, and all effects NaN, if clean and corrupted do not differ beyond noise."""
    noising: bool
    n_pairs: int
    n_paths: int
    """From a sender to a receiver that runs after it."""
    n_carrying: int
    """Paths whose interval lies above their null with an adjusted p of at most 0.05."""
    n_skipped: int
    """Modules that the globs match but that cannot be changed."""

    def reading(self) -> str:
        """Name the paths that carry the answer, the strongest first."""
        if not self.defined:
            return (
                f"Clean and corrupted runs differ by {self.difference}, which is within noise: "
                "this model shows no effect that a path could carry."
            )
        approximate = (
            f" The effects are linear approximations, off by {self.error.value:.0%} of the exact ones on a sample."
            if self.linearised
            else ""
        )
        carrying = stand_out(self.low, self.null, self.p_value)
        order = np.argsort(-self.effect, axis=None, kind="stable")
        names = [self._named(*divmod(int(each), len(self.receiver))) for each in order if carrying.flat[each]]
        if not names:
            return (
                f"No path moves the answer more than its null does (smallest adjusted p = {self.p_value.min():.2g}, "
                f"{self.n_pairs} pairs).{approximate}"
            )
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        does = "destroy" if self.noising else "restore"
        return (
            f"{len(names)} of {self.n_paths} paths {does} part of the answer: "
            f"{', '.join(names[:_SHOWN])}{more}.{approximate}"
        )

    def _named(self, s: int, r: int) -> str:
        value = f"{self.effect[s, r]:.2f} [{self.low[s, r]:.2f}, {self.high[s, r]:.2f}]"
        return f"{self.sender[s]} -> {self.receiver[r]} {value}"


def path_patch(
    model: nn.Module,
    clean: Num[np.ndarray, "sample ..."],
    corrupted: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample"] | None = None,
    corrupted_target: Int[np.ndarray, "sample"] | None = None,
    *,
    config: PathPatchConfig = PathPatchConfig(),
) -> PatchedPaths:
    """Find through which components a component acts on the answer.

    Use it after activation patching, to learn how a component that carries the answer passes it on: to the output at
    once, or through later components, and which. Senders, receivers and mediators together are the components; all
    else (residual sums, norms) is computed anew on every path, so what is not named is part of every path. A sender's
    paths through single receivers add up to its effect only where the model is linear. The linearised form is fast and
    follows the model's slope at the base run: a saturated component looks idle in it, so read its error.

    Parameters
    ----------
    model
        Any module; run in eval mode, and left as it was.
    clean
        Inputs with the right answer, samples first, passed to `model` as its only argument.
    corrupted
        The same inputs with what matters changed; row i belongs to clean row i. At least 2 pairs, better 50.
    target
        The clean prompt's answer, as a class. Needed unless the metric is kl or distance.
    corrupted_target
        The corrupted prompt's answer, for the logit difference.
    config
        Senders, receivers, mediators, metric and direction.

    Returns
    -------
    PatchedPaths
        The effect of every sender through every receiver (dimensionless, 1 = all of the answer), with interval, null
        and p-value; through all receivers together; and along all paths.

    Raises
    ------
    ShapeError
        If the arrays do not pair up, there are fewer than 2 pairs, or the output is not (sample[, position], class).
    ConfigurationError
        If the metric needs a target and there is none, or a target is not a class of the output.
    DegenerateInputError
        If the inputs or the model's outputs are not finite.
    NotFoundError
        If a glob matches no module, or no module that can be changed.
    MemoryBudgetError
        If a pass does not fit in memory.

    Notes
    -----
    For one receiver this is the two-pass method of the sources, both passes made side by side. For several together it
    is exact too where one receiver acts on another through components that are none, which the two passes miss.

    References
    ----------
    [@wang2023]
    [@goldowskydill2023]

    Examples
    --------
    >>> import torch
    >>> from mechint_core.random import generator
    >>> from mechint_core.synthetic.causal_networks import TwoRouteNetwork
    >>> clean, corrupted = generator(0, "example").normal(size=(2, 40, 1))
    >>> model = TwoRouteNetwork(direct=1.0, to_mediator=2.0, from_mediator=1.5)  # a quarter goes directly
    >>> config = PathPatchConfig(senders=("exposure",), receivers=("direct", "mediator"), metric="distance")
    >>> found = path_patch(model, clean, corrupted, config=config)
    >>> found.through.round(6).tolist()  # both together are a cut
    [1.0]
    """
    pairs = PromptPairs.of(clean, corrupted, target, corrupted_target, config.metric)
    undisturbed = differentiation if config.linearised else inference
    with undisturbed(model), memory_remedy(f"Use batch_rows below {config.batch_rows}, or a smaller cache_bytes."):
        plan = PathPlan.of(
            model,
            samples_to(to_model(clean[:2], model), config.sample_axis),
            (config.senders, config.receivers, config.mediators),
            by=config.by,
            position=config.position,
            sample_axis=config.sample_axis,
        )
        measured = _measure(model, pairs, plan, config)
    return _result(measured, plan, config)


@dataclass(frozen=True, slots=True)
class _Measured:
    """Metrics of every pair."""

    scores: PairScores
    """Of the paths, by row."""
    total: Float[np.ndarray, "sender sample"]
    """With the sender patched."""
    checked: Float[np.ndarray, "path sample"]
    """Exact, of the rows below; none unless linearised."""
    rows: Int[np.ndarray, "path"]


def _measure(model: nn.Module, pairs: PromptPairs, plan: PathPlan, config: PathPatchConfig) -> _Measured:
    noising = config.direction == "noising"
    sites = tuple(dict.fromkeys(each.site for each in plan.senders))
    runs = PairRuns(
        model=model,
        config=config,
        sites=sites,
        bytes_per_row=plan.bytes_per_row,
        keep_base=config.linearised,
        noising=noising,
    )
    others = other_pairs(len(pairs), config.seed) if config.control and not noising else None
    rows = _checked_rows(plan, config)
    clean, corrupted = np.empty((2, len(pairs)))
    own, control, total, checked = (
        np.zeros((n, len(pairs))) for n in (plan.n_rows, plan.n_rows, len(plan.senders), len(rows))
    )
    for block in runs.blocks(pairs, donors=1 if others is None else 2):
        at = block.rows
        clean[at], corrupted[at] = block.clean, block.corrupted
        total[:, at] = runs.score_experiments(
            block, [[Write(each.site, block.donor_activations[each.site], each.part)] for each in plan.senders]
        )
        exact = plan.paths()
        checked[:, at] = score_paths(runs, block, [exact[row] for row in rows], plan.held)
        own[:, at] = path_scores(runs, block, plan, linearised=config.linearised)
        if others is not None:
            donor = runs.run(pairs.clean[others[at]], sites)[1]
            control[:, at] = path_scores(
                runs, replace(block, donor_activations=donor), plan, linearised=config.linearised
            )
    own, control = (_beyond_rounding(each, clean, corrupted, noising) for each in (own, control))
    return _Measured(PairScores(clean, corrupted, own, None if others is None else control), total, checked, rows)


def _beyond_rounding(
    scores: Float[np.ndarray, "path sample"],
    clean: Float[np.ndarray, "sample"],
    corrupted: Float[np.ndarray, "sample"],
    noising: bool,
) -> Float[np.ndarray, "path sample"]:
    """Return the scores; those of a path that changes nothing but last bits become the base run's."""
    base = clean if noising else corrupted
    idle = np.abs(scores - base).max(axis=1, keepdims=True) <= ROUNDING * np.abs([clean, corrupted]).mean()
    return np.where(idle, base, scores)


def _checked_rows(plan: PathPlan, config: PathPatchConfig) -> Int[np.ndarray, "path"]:
    if not config.linearised:
        return np.empty(0, dtype=np.int64)
    singles = [row for row in plan.paths() if row < plan.n_single]
    chosen = generator(config.seed, "path_patch", "checked").permutation(len(singles))[: config.n_checked]
    return np.array(singles, dtype=np.int64)[np.sort(chosen)]


def _result(measured: _Measured, plan: PathPlan, config: PathPatchConfig) -> PatchedPaths:
    noising = config.direction == "noising"
    scores = measured.scores
    found = recovery_of(scores, noising=noising, n_draws=config.n_draws, level=config.level, seed=config.seed)
    shape = len(plan.senders), len(plan.columns)
    n_single = plan.n_single
    joint = slice(n_single, None) if plan.n_rows > n_single else slice(None)
    base = scores.clean if noising else scores.corrupted
    gain = (measured.total - base).mean(axis=1) * (-1 if noising else 1)
    return PatchedPaths(
        strongest=found.strongest(n_single),
        difference=found.difference,
        error=_error(measured, base, config),
        sender=tuple(each.name for each in plan.senders),
        receiver=plan.columns,
        effect=found.value[:n_single].reshape(shape),
        low=found.low[:n_single].reshape(shape),
        high=found.high[:n_single].reshape(shape),
        null=found.null[:n_single].reshape(shape),
        p_value=found.p_value[:n_single].reshape(shape),
        through=found.value[joint],
        through_low=found.low[joint],
        through_high=found.high[joint],
        total=gain / found.difference.value if found.defined else np.full(shape[0], NAN),
        linearised=config.linearised,
        defined=found.defined,
        noising=noising,
        n_pairs=len(base),
        n_paths=sum(row < plan.n_single for row in plan.paths()),
        n_carrying=int(stand_out(found.low, found.null, found.p_value)[:n_single].sum()),
        n_skipped=plan.n_skipped,
    )


def _error(measured: _Measured, base: Float[np.ndarray, "sample"], config: PathPatchConfig) -> Estimate:
    """Return |linear - exact| / |exact| over the checked paths' mean effects."""
    exact, linear = measured.checked - base, measured.scores.patched[measured.rows] - base
    size = float(np.linalg.norm(exact.mean(axis=1)))
    if not len(exact) or size <= ROUNDING * float(np.abs(base).mean()):
        return Estimate(NAN, level=config.level)
    weights = resampling_weights(len(base), config.n_draws, config.seed).T
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may hit no effect; it is left out
        draws = np.linalg.norm((linear - exact) @ weights, axis=0) / np.linalg.norm(exact @ weights, axis=0)
    low, high = percentile_interval(draws, config.level)
    return Estimate(float(np.linalg.norm((linear - exact).mean(axis=1))) / size, low, high, 1.0, level=config.level)
