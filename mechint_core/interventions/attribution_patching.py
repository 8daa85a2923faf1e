"""Estimate from gradients what patching each part of a model would do: all parts in one backward pass.

    estimate_i = sum over the part of  g . (y_i - a_i)          g = dm / da
    R          = mean_i estimate_i / mean_i (m_clean,i - m_corrupted,i)

a is the part's activation in the run that is changed (corrupted when denoising, clean when noising), y the one that
would be patched in, m the metric. Noising reports the damage, -R in these signs, as `patch_sites` does.

    gradient     g at a: first order, exact where the metric is linear in the part
    integrated   g averaged over n midpoints of the line from a to y, one site moving at a time: the estimates of a
                 site's parts sum to the exact effect of the whole site as n grows, on kinks and saturation too

A sample of parts is patched exactly, half of it the strongest, half drawn from the others, and compared.

Source: [@nanda2023b], [@kramar2024]; [@sundararajan2017] for the line.
Cost: gradient: 2 forwards and 1 backward of all pairs, for all parts and their control. integrated: n forwards and
backwards per site more, twice with control. Verification: 2 + n_verified forwards.
Chunked over: prompt pairs.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal, get_args

import numpy as np
from jaxtyping import Float, Int, Num
from torch import nn

from mechint_core.errors import ConfigurationError
from mechint_core.figure import Bars, Figure, Matrix, Scatter
from mechint_core.interventions._attributed_parts import Attributed, attribute, position_grid
from mechint_core.models import differentiation, inference, memory_remedy, samples_to, to_model
from mechint_core.patching import (
    Components,
    Granularity,
    PairedConfig,
    PairRuns,
    PromptPairs,
    Recovery,
    check_components,
    choose_to_verify,
    component_grid,
    find_components,
    recovery_of,
    stand_out,
    verify,
)
from mechint_core.random import generator
from mechint_core.result import Estimate, Result

Method = Literal["gradient", "integrated"]
Way = Literal["denoising", "noising"]

_FLAT: Final = ("kl", "distance")
"""Metrics that are least at the clean run, where their gradient is 0."""
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionPatchingConfig(PairedConfig):
    """What to attribute to, which way, and how much of it to verify."""

    sites: tuple[str, ...] = ("*",)
    """Globs over module names (by head: of the attention modules). Sites that cannot be patched are left out."""
    by: Granularity = "site"
    """What is a part: a whole site, an attention head, one position of a site, or one unit of it (its last axis)."""
    direction: Way = "denoising"
    """denoising estimates what is sufficient, noising what is necessary, as in patch_sites."""
    position: int | None = None
    """Of all parts, only this position (second axis of a sample's activation); None: all of them."""
    method: Method = "gradient"
    """integrated costs n_steps passes per site, and sees through saturation."""
    n_steps: int = 8
    """Midpoints on each site's line, for method integrated."""
    control: bool = True
    """When denoising, estimate patching another prompt's activation too, for the null; otherwise the null is 0."""
    n_verified: int = 20
    """Parts to patch exactly: half the strongest, half of the others at random. 0 trusts the estimates blindly."""
    n_heads: int | None = None
    """Heads of each attention, where the model does not say."""

    def __post_init__(self) -> None:
        PairedConfig.__post_init__(self)
        check_components(self.by, self.position, sites=self.sites)
        for name, choices in (("direction", Way), ("method", Method)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigurationError(
                    f"{name} must be one of {', '.join(get_args(choices))}. Got {getattr(self, name)!r}."
                )
        if self.n_steps < 1 or self.n_verified < 0:
            raise ConfigurationError(f"n_steps must be at least 1, n_verified at least 0. Got {self}.")
        if self.direction == "noising" and self.method == "gradient" and self.metric in _FLAT:
            raise ConfigurationError(
                f"the gradient of {self.metric} must not be 0 where it is taken, and at clean runs it is. "
                "Use method='integrated', or another metric."
            )

    @property
    def noising(self) -> bool:
        """Whether clean runs are changed."""
        return self.direction == "noising"


@dataclass(frozen=True, slots=True)
class AttributionPatching(Result):
    """What patching each part would move of the answer, estimated from gradients, and how good the estimates are."""

    technique: ClassVar[str] = "attribution_patching"
    evidence: ClassVar[str] = (
        "Interval: bootstrap over prompt pairs (of agreements with exact patches: over the random parts, too). Null: "
        "another prompt's clean activation at the same part; when noising, no effect; of the agreements: shuffled "
        "parts. p: sign flips of own less null, adjusted for the number of parts."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Bars(
            values="recovery",
            labels="part",
            low="low",
            high="high",
            null="null",
            title="What patching one part would move of the answer (tick: another prompt's activation)",
            value_label="estimated share of clean minus corrupted",
        ),
        Matrix(
            values="grid",
            y="site",
            title="The same by site and position, or by layer, head or unit",
            x_label="position, layer, head or unit",
            value_label="estimated share",
            diverging=True,
        ),
        Scatter(
            points="verified_points",
            title="Estimated against exact patching, of a sample of parts",
            x_label="estimated share",
            y_label="exact share",
        ),
    )

    strongest: Estimate
    """The largest estimated recovery of a part; its p-value is adjusted for the choice, its interval is not."""
    difference: Estimate
    """Mean metric of the clean less the corrupted runs: the effect that recovery is a share of. Null: 0."""
    correlation: Estimate
    """Pearson's, of estimated and exact recovery over the verified parts; NaN for fewer than 3."""
    rank_correlation: Estimate
    """Spearman's, of the same."""
    sign_agreement: Estimate
    """Share of verified parts whose estimate has the right sign."""
    relative_error: Estimate
    """|estimated - exact| / |exact|, lengths over the verified parts: 0 is perfect, 1 no better than nothing."""
    part: Annotated[tuple[str, ...], "part"]
    """In the model's order: site, site@position, site#unit, or attention.head."""
    recovery: Float[np.ndarray, "part"]
    """Estimate of R when denoising, of D when noising; 1 is all, 0 none; not clipped."""
    low: Float[np.ndarray, "part"]
    high: Float[np.ndarray, "part"]
    null: Float[np.ndarray, "part"]
    """Estimated recovery by another prompt's activation; 0 when noising, or without control."""
    p_value: Float[np.ndarray, "part"]
    site: Annotated[tuple[str, ...], "site"]
    """Rows of the grid: sites, or attention modules; by site at one position, names without the layer's number."""
    grid: Float[np.ndarray, "site column"]
    """Recovery by position, head or unit of each site; by site at one position, by layer. NaN where there is none."""
    verified: Annotated[tuple[str, ...], "example"]
    """The parts that were patched exactly, the strongest first, then the random ones."""
    verified_points: Float[np.ndarray, "example coordinate"]
    """Estimated, then exact recovery of each."""
    defined: bool
    """False, and everything but `difference` NaN, if clean and corrupted do not differ beyond noise."""
    trusted: bool
    """Whether the verified parts correlate by at least 0.9, with a relative error of at most 0.5."""
    noising: bool
    integrated: bool
    n_pairs: int
    n_carrying: int
    """Parts whose interval lies above their null with an adjusted p of at most 0.05."""
    n_skipped: int
    """Modules that the globs match but that cannot be patched."""

    def reading(self) -> str:
        """Name the parts that seem to carry the answer, and say whether to believe it."""
        if not self.defined:
            return (
                f"Clean and corrupted runs differ by {self.difference}, which is within noise: "
                "this model shows no effect that a patch could recover."
            )
        return f"{self._finding()} {self._check()}"

    def _finding(self) -> str:
        does = "destroy" if self.noising else "restore"
        carries = stand_out(self.low, self.null, self.p_value)
        carrying = [
            f"{self.part[k]} {self.recovery[k]:.2f} [{self.low[k]:.2f}, {self.high[k]:.2f}]"
            for k in np.argsort(-self.recovery, kind="stable")
            if carries[k]
        ]
        if not carrying:
            return (
                f"By their gradients, no part would {does} more of the answer than its null "
                f"(smallest adjusted p = {self.p_value.min():.2g}, {self.n_pairs} pairs)."
            )
        more = f" and {len(carrying) - _SHOWN} more" if len(carrying) > _SHOWN else ""
        return (
            f"By their gradients, {len(carrying)} of {len(self.part)} parts would {does} the answer, the strongest "
            f"first: {', '.join(carrying[:_SHOWN])}{more}."
        )

    def _check(self) -> str:
        if not self.verified:
            return "None of it was verified by exact patching: take it as a guess."
        correlated = "" if np.isnan(self.correlation.value) else f"r = {self.correlation.value:.2f}, "
        numbers = (
            f"{correlated}{self.sign_agreement.value:.0%} of signs right, relative error "
            f"{self.relative_error.value:.2g}, {len(self.verified)} parts"
        )
        if self.trusted:
            return f"Exact patches confirm the estimates ({numbers})."
        instead = "patch_sites" if self.integrated else "method='integrated' or patch_sites"
        return (
            f"The estimates are not to be trusted: exact patches disagree ({numbers}), as where a softmax or a "
            f"nonlinearity saturates. Use {instead}."
        )


def attribution_patching(
    model: nn.Module,
    clean: Num[np.ndarray, "sample ..."],
    corrupted: Num[np.ndarray, "sample ..."],
    target: Int[np.ndarray, "sample"] | None = None,
    corrupted_target: Int[np.ndarray, "sample"] | None = None,
    *,
    config: AttributionPatchingConfig = AttributionPatchingConfig(),
) -> AttributionPatching:
    """Estimate through which parts a model's answer flows, without patching each.

    Use it where there are too many parts to patch one by one: heads, positions or units of a large model. Estimates
    are first order: a part behind a saturated softmax or a dead unit looks idle though patching it would matter, and
    parts that each have an effect need not add up. So a sample is patched exactly, and how well it agrees is part of
    the answer; where it does not, use the integrated method or `patch_sites`. Like patching, it cannot tell a cause
    from a relay.

    Parameters
    ----------
    model
        Any differentiable module; run in eval mode, and left as it was.
    clean
        Inputs with the right answer, samples first, passed to `model` as its only argument.
    corrupted
        The same inputs with what matters changed; row i belongs to clean row i. At least 2 pairs, better 50.
    target
        The clean prompt's answer, as a class. Needed unless the metric is kl or distance.
    corrupted_target
        The corrupted prompt's answer, for the logit difference.
    config
        Parts, direction, method, metric, verification.

    Returns
    -------
    AttributionPatching
        Estimated recovery of every part (dimensionless, 1 = all of the answer), with interval, null and p-value; exact
        recovery of the verified ones, and the agreement of both.

    Raises
    ------
    ShapeError
        If the arrays do not pair up, there are fewer than 2 pairs, the output is not (sample[, position], class), or no
        site has positions and they are asked for.
    ConfigurationError
        If the metric needs a target and there is none, a target is not a class of the output, or an attention does not
        say how many heads it has.
    DegenerateInputError
        If the inputs or the model's outputs are not finite.
    NotFoundError
        If a glob matches no module, no module that can be patched, or (by head) no attention.
    MemoryBudgetError
        If a pass does not fit in memory.

    Notes
    -----
    Ratio of means over pairs, as in the module docstring. Integrated lines move one site at a time, not the inputs: so
    they are defined for tokens, and sum to what patching that site does. The control reuses the gradient at each pair
    with the activation of the next pair in a random circle. Of the corrections of [@kramar2024] neither is made here:
    where keys and queries saturate, the verified sample shows it.

    References
    ----------
    [@nanda2023b]
    [@kramar2024]
    [@sundararajan2017]

    Examples
    --------
    >>> import torch
    >>> from mechint_core.random import generator
    >>> from mechint_core.synthetic.linear_network import LinearNetwork
    >>> draws = generator(0, "example")
    >>> clean, corrupted = draws.normal(size=(40, 8)), draws.normal(size=(40, 8))
    >>> model = LinearNetwork((3.0, 1.0))  # two routes, which carry 3/4 and 1/4 of the answer
    >>> answer = model(torch.from_numpy(clean)).argmax(dim=1).numpy()
    >>> config = AttributionPatchingConfig(sites=("routes.*",))
    >>> attribution_patching(model, clean, corrupted, answer, config=config).recovery.round(6).tolist()
    [0.75, 0.25]
    """
    pairs = PromptPairs.of(clean, corrupted, target, corrupted_target, config.metric)
    with memory_remedy(f"Use batch_rows below {config.batch_rows}, or a smaller cache_bytes."):
        with inference(model):
            components = find_components(
                model,
                samples_to(to_model(pairs.clean[:2], model), config.sample_axis),
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
            sites=components.sites,
            bytes_per_row=components.bytes_per_row,
            noising=config.noising,
        )
        with differentiation(model):
            found = attribute(
                runs,
                pairs,
                components.parts,
                n_steps=config.n_steps if config.method == "integrated" else 0,
                control_seed=config.seed if config.control and not config.noising else None,
            )
        recovery = recovery_of(
            found.scores, noising=config.noising, n_draws=config.n_draws, level=config.level, seed=config.seed
        )
        verified = choose_to_verify(recovery, config.n_verified, generator(config.seed, "verified"))
        chosen = [components.parts[k] for k in verified]
        exact = np.empty((0, len(pairs)))
        if chosen:
            with inference(model):
                exact = runs.score_parts(pairs, [(each.site, each.part) for each in chosen]).patched
    checked = verify(found.scores, recovery, verified, exact, noising=config.noising, config=config)
    return _result(found, recovery, components, checked.fields(components.names), config)


def _result(
    found: Attributed,
    recovery: Recovery,
    components: Components,
    verification: dict[str, Any],
    config: AttributionPatchingConfig,
) -> AttributionPatching:
    site, grid = component_grid(components.names, recovery.value, config.by)
    if config.by == "site" and config.position is None:
        site, grid = components.sites, position_grid(found, recovery, noising=config.noising)
    return AttributionPatching(
        **verification,
        strongest=recovery.strongest(),
        difference=recovery.difference,
        part=components.names,
        recovery=recovery.value,
        low=recovery.low,
        high=recovery.high,
        null=recovery.null,
        p_value=recovery.p_value,
        site=site,
        grid=grid,
        defined=recovery.defined,
        noising=config.noising,
        integrated=config.method == "integrated",
        n_pairs=len(found.scores.clean),
        n_carrying=int(stand_out(recovery.low, recovery.null, recovery.p_value).sum()),
        n_skipped=components.n_skipped,
    )
