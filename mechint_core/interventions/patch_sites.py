"""Find the sites through which a model's answer flows.

Each site in turn is given the activation of another run, and the answer is scored by a metric m:

    denoising   clean activation into the corrupted run:  R = (m_patched - m_corrupted) / (m_clean - m_corrupted)
    noising     corrupted activation into the clean run:  D = (m_clean - m_patched)     / (m_clean - m_corrupted)

R = 1 means that this site alone brings the whole answer back (it is sufficient); D = 1 that it alone destroys it (it
is necessary). Numerator and denominator are averaged over prompt pairs before they are divided. In place of whole sites
the parts can be positions of a site, attention heads, or units.

Source: [@vig2020], [@meng2022], [@zhang2024].
Cost: (4 + 2 S) forwards of all pairs for S parts, the patched ones packed into passes of `batch_rows`; those of later
layers start there, where the model allows it. `patch_sites_cost` says it for a model at hand.
Chunked over: prompt pairs.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

import numpy as np
from jaxtyping import Float, Int, Num
from torch import nn

from mechint_core.errors import ConfigurationError
from mechint_core.figure import Bars, Figure, Matrix
from mechint_core.models import inference, memory_remedy, samples_to, to_model
from mechint_core.patching import (
    Components,
    Granularity,
    PairedConfig,
    PairRuns,
    PairScores,
    PromptPairs,
    RunCost,
    check_components,
    component_grid,
    find_components,
    recovery_of,
    run_cost,
    stand_out,
    writing,
)
from mechint_core.result import Estimate, Result

Direction = Literal["denoising", "noising"]

_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchSitesConfig(PairedConfig):
    """What to patch, and which way."""

    sites: tuple[str, ...] = ("*",)
    """Globs over module names (by head: over those of attention modules). Modules that do not give one activation per
    sample are left out and counted."""
    by: Granularity = "site"
    """What is patched at a time: a whole site, one position of a site, one attention head, or one unit of a site."""
    direction: Direction = "denoising"
    """denoising tests sufficiency: parts of an AND look null one by one. noising tests necessity: backups hide it."""
    position: int | None = None
    """Patch this position only (second axis of a sample's activation); None patches all of them."""
    n_heads: int | None = None
    """Heads of each attention, where the model does not say."""
    control: bool = True
    """When denoising, patch another prompt's activation too, for the null: twice the cost. Otherwise the null is 0."""

    def __post_init__(self) -> None:
        PairedConfig.__post_init__(self)
        if self.direction not in get_args(Direction):
            raise ConfigurationError(f"direction must be denoising or noising. Got {self.direction!r}.")
        check_components(self.by, self.position, sites=self.sites)

    @property
    def noising(self) -> bool:
        """Whether clean runs are patched."""
        return self.direction == "noising"


@dataclass(frozen=True, slots=True)
class PatchedSites(Result):
    """What patching each part recovers of the answer (denoising) or destroys of it (noising)."""

    technique: ClassVar[str] = "patch_sites"
    evidence: ClassVar[str] = (
        "Interval: bootstrap over prompt pairs. Null: the same part patched with another prompt's clean activation; "
        "when noising, no effect. p: sign flips of own less null, adjusted for the number of parts."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Bars(
            values="recovery",
            labels="part",
            low="low",
            high="high",
            null="null",
            title="What patching one part moves of the answer (tick: another prompt's activation)",
            value_label="share of clean minus corrupted",
        ),
        Matrix(
            values="grid",
            y="site",
            title="The same as a map: by layer, position, head or unit",
            x_label="layer, position, head or unit",
            value_label="share of clean minus corrupted",
            diverging=True,
        ),
    )

    strongest: Estimate
    """The largest recovery of a part; its p-value is adjusted for the choice, its interval is not."""
    difference: Estimate
    """Mean metric of the clean less the corrupted runs: the effect that recovery is a share of. Null: 0."""
    part: Annotated[tuple[str, ...], "part"]
    """In the model's order: site, site@position, attention.head, or site#unit."""
    recovery: Float[np.ndarray, "part"]
    """R when denoising, D when noising. 1 is all, 0 none; not clipped, for parts may oppose the answer or overshoot."""
    low: Float[np.ndarray, "part"]
    high: Float[np.ndarray, "part"]
    null: Float[np.ndarray, "part"]
    """Recovery by another prompt's activation at the same part; 0 when noising, or without control."""
    p_value: Float[np.ndarray, "part"]
    site: Annotated[tuple[str, ...], "site"]
    """Rows of the grid: sites, or attention modules; by site, names without the first number in them, the layer."""
    grid: Float[np.ndarray, "site column"]
    """Recovery by layer, position, head or unit; NaN where there is no such part."""
    defined: bool
    """False, and everything but `difference` NaN, if clean and corrupted do not differ beyond noise."""
    noising: bool
    n_pairs: int
    n_carrying: int
    """Parts whose interval lies above their null with an adjusted p of at most 0.05."""
    n_skipped: int
    """Modules that the globs match but that cannot be patched."""

    def reading(self) -> str:
        """Name the parts through which the answer flows, in the model's order."""
        if not self.defined:
            return (
                f"Clean and corrupted runs differ by {self.difference}, which is within noise: "
                "this model shows no effect that a patch could recover."
            )
        whose, does = ("corrupted", "destroys") if self.noising else ("clean", "restores")
        carrying = np.flatnonzero(stand_out(self.low, self.null, self.p_value))
        if not carrying.size:
            return (
                f"No part's {whose} activation moves the answer more than its null does "
                f"(smallest adjusted p = {self.p_value.min():.2g}, {self.n_pairs} pairs)."
            )
        shown = sorted(sorted(carrying, key=lambda k: -self.recovery[k])[:_SHOWN])
        named = ", ".join(
            f"{self.part[k]} {self.recovery[k]:.2f} [{self.low[k]:.2f}, {self.high[k]:.2f}]" for k in shown
        )
        more = f", and weaker ones at {len(carrying) - _SHOWN} more" if len(carrying) > _SHOWN else ""
        others = "" if len(carrying) == len(self.part) else " The others are not distinguishable from their null."
        return (
            f"One part's {whose} activation {does} the answer at {len(carrying)} of {len(self.part)} parts, in the "
            f"model's order: {named}{more}.{others}"
        )


def patch_sites(
    model: nn.Module,
    clean: Num[np.ndarray, "sample ..."],
    corrupted: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample"] | None = None,
    corrupted_target: Int[np.ndarray, "sample"] | None = None,
    *,
    config: PatchSitesConfig = PatchSitesConfig(),
) -> PatchedSites:
    """Find the sites through which a model's answer flows.

    Use it to find where a model's answer to a prompt is decided, given pairs of prompts that differ in one thing only
    (replace a token by another of its kind, rather than adding noise). Restoring shows what is sufficient at one site;
    it cannot tell a cause from a relay, and a site whose work others repeat looks idle when noised. The control
    restores what another clean prompt of the set gives at the same site, so a site counts only if it carries what
    belongs to this prompt, not if any intact activation would do. Noising has no such control: any other activation
    destroys.

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
        Sites, metric, direction, and memory.

    Returns
    -------
    PatchedSites
        Recovery of every site (dimensionless, 1 = all of the answer), with interval, null and p-value.

    Raises
    ------
    ShapeError
        If the arrays do not pair up, there are fewer than 2 pairs, or the output is not (sample[, position], class).
    ConfigurationError
        If the metric needs a target and there is none, or a target is not a class of the output.
    DegenerateInputError
        If the inputs or the model's outputs are not finite.
    NotFoundError
        If a glob matches no module, or no module that can be patched.
    MemoryBudgetError
        If a pass does not fit in memory.

    Notes
    -----
    Ratio of means over pairs, as in the module docstring, never clipped. Undefined (NaN, `defined` False) where the
    bootstrap interval of the mean difference holds 0, or the difference is rounding of float32. p-values are one-sided.

    References
    ----------
    [@vig2020]
    [@meng2022]
    [@zhang2024]

    Examples
    --------
    >>> import torch
    >>> from mechint_core.random import generator
    >>> from mechint_core.synthetic.linear_network import LinearNetwork
    >>> draws = generator(0, "example")
    >>> clean, corrupted = draws.normal(size=(40, 8)), draws.normal(size=(40, 8))
    >>> model = LinearNetwork((3.0, 1.0))  # two routes, which carry 3/4 and 1/4 of the answer
    >>> answer = model(torch.from_numpy(clean)).argmax(dim=1).numpy()
    >>> config = PatchSitesConfig(sites=("routes.*",))
    >>> patch_sites(model, clean, corrupted, answer, config=config).recovery.round(6).tolist()
    [0.75, 0.25]
    """
    with inference(model), memory_remedy(f"Use batch_rows below {config.batch_rows}, or a smaller cache_bytes."):
        work = _Work.of(model, clean, corrupted, target, corrupted_target, config)
        scores = work.runs.score_parts(
            work.pairs,
            [(each.site, each.part) for each in work.components.parts],
            control_seed=config.seed if config.control and not config.noising else None,
        )
    return _result(scores, work, config)


def patch_sites_cost(
    model: nn.Module,
    clean: Num[np.ndarray, "sample ..."],
    corrupted: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample"] | None = None,
    corrupted_target: Int[np.ndarray, "sample"] | None = None,
    *,
    config: PatchSitesConfig = PatchSitesConfig(),
) -> RunCost:
    """Say what `patch_sites` with the same arguments would cost, from a few of its passes: forwards, memory, seconds.

    Raises what `patch_sites` raises.
    """
    with inference(model), memory_remedy(f"Use batch_rows below {config.batch_rows}, or a smaller cache_bytes."):
        work = _Work.of(model, clean, corrupted, target, corrupted_target, config)
        experiments = writing([(each.site, each.part) for each in work.components.parts])
        return run_cost(work.runs, work.pairs, experiments, control=config.control and not config.noising)


@dataclass(frozen=True, slots=True)
class _Work:
    """What there is to patch, and on what."""

    pairs: PromptPairs
    components: Components
    runs: PairRuns

    @classmethod
    def of(
        cls,
        model: nn.Module,
        clean: np.ndarray,
        corrupted: np.ndarray,
        target: np.ndarray | None,
        corrupted_target: np.ndarray | None,
        config: PatchSitesConfig,
    ) -> "_Work":
        pairs = PromptPairs.of(clean, corrupted, target, corrupted_target, config.metric)
        found = find_components(
            model,
            samples_to(to_model(clean[:2], model), config.sample_axis),
            config.sites,
            by=config.by,
            sample_axis=config.sample_axis,
            position=config.position,
            n_heads=config.n_heads,
            heads_only=True,
        )
        runs = PairRuns(
            model=model,
            config=config,
            sites=found.sites,
            bytes_per_row=found.bytes_per_row,
            noising=config.noising,
        )
        return cls(pairs, found, runs)


def _result(scores: PairScores, work: _Work, config: PatchSitesConfig) -> PatchedSites:
    found = recovery_of(scores, noising=config.noising, n_draws=config.n_draws, level=config.level, seed=config.seed)
    site, grid = component_grid(work.components.names, found.value, config.by)
    return PatchedSites(
        strongest=found.strongest(),
        difference=found.difference,
        part=work.components.names,
        recovery=found.value,
        low=found.low,
        high=found.high,
        null=found.null,
        p_value=found.p_value,
        site=site,
        grid=grid,
        defined=found.defined,
        noising=config.noising,
        n_pairs=len(scores.clean),
        n_carrying=int(stand_out(found.low, found.null, found.p_value).sum()),
        n_skipped=work.components.n_skipped,
    )
