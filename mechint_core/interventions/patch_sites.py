"""Find the sites through which a model's answer flows.

Each site in turn is given the activation of another run, and the answer is scored by a metric m:

    denoising   clean activation into the corrupted run:  R = (m_patched - m_corrupted) / (m_clean - m_corrupted)
    noising     corrupted activation into the clean run:  D = (m_clean - m_patched)     / (m_clean - m_corrupted)

R = 1 means that this site alone brings the whole answer back (it is sufficient); D = 1 that it alone destroys it (it
is necessary). Numerator and denominator are averaged over prompt pairs before they are divided.

Source: [@vig2020], [@meng2022], [@zhang2024].
Cost: (4 + 2 S) forwards of all pairs for S sites, the patched ones packed into passes of `batch_rows`.
Chunked over: prompt pairs.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal, get_args

import numpy as np
from jaxtyping import Float, Int, Num
from torch import nn

from mechint_core.errors import ConfigurationError
from mechint_core.figure import Bars, Figure
from mechint_core.models import inference, memory_remedy, samples_to, to_model
from mechint_core.patching import (
    PairedConfig,
    PairRuns,
    PairScores,
    PromptPairs,
    Recovery,
    Slice,
    Usable,
    recovery_of,
    usable_sites,
)
from mechint_core.result import NAN, Estimate, Result

Direction = Literal["denoising", "noising"]

ALPHA: Final = 0.05
"""A site carries the answer if its p-value is at most this and its interval lies above its null."""
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchSitesConfig(PairedConfig):
    """What to patch, and which way."""

    sites: tuple[str, ...] = ("*",)
    """Globs over module names. Modules that do not give one activation per sample are left out and counted."""
    direction: Direction = "denoising"
    """denoising tests sufficiency: parts of an AND look null one by one. noising tests necessity: backups hide it."""
    position: int | None = None
    """Patch this position only (second axis of a sample's activation); None patches the whole activation."""
    control: bool = True
    """When denoising, patch another prompt's activation too, for the null: twice the cost. Otherwise the null is 0."""

    def __post_init__(self) -> None:
        PairedConfig.__post_init__(self)
        if self.direction not in get_args(Direction):
            raise ConfigurationError(f"direction must be denoising or noising. Got {self.direction!r}.")
        if isinstance(self.sites, str) or not self.sites:
            raise ConfigurationError(f"sites must be a tuple of at least one glob. Got {self.sites!r}.")


@dataclass(frozen=True, slots=True)
class PatchedSites(Result):
    """What patching each site recovers of the answer (denoising) or destroys of it (noising)."""

    technique: ClassVar[str] = "patch_sites"
    evidence: ClassVar[str] = (
        "Interval: bootstrap over prompt pairs. Null: the same site patched with another prompt's clean activation; "
        "when noising, no effect. p: sign flips of own less null, adjusted for the number of sites."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Bars(
            values="recovery",
            labels="site",
            low="low",
            high="high",
            null="null",
            title="What patching one site moves of the answer (tick: another prompt's activation)",
            value_label="share of clean minus corrupted",
        ),
    )

    strongest: Estimate
    """The largest recovery of a site; its p-value is adjusted for the choice, its interval is not."""
    difference: Estimate
    """Mean metric of the clean less the corrupted runs: the effect that recovery is a share of. Null: 0."""
    site: Annotated[tuple[str, ...], "site"]
    """In the model's order."""
    recovery: Float[np.ndarray, "site"]
    """R when denoising, D when noising. 1 is all, 0 none; not clipped, for sites may oppose the answer or overshoot."""
    low: Float[np.ndarray, "site"]
    high: Float[np.ndarray, "site"]
    null: Float[np.ndarray, "site"]
    """Recovery by another prompt's activation at the same site; 0 when noising, or without control."""
    p_value: Float[np.ndarray, "site"]
    defined: bool
    """False, and everything but `difference` NaN, if clean and corrupted do not differ beyond noise."""
    noising: bool
    n_pairs: int
    n_carrying: int
    """Sites whose interval lies above their null with an adjusted p of at most 0.05."""
    n_skipped: int
    """Modules that the globs match but that cannot be patched."""

    def reading(self) -> str:
        """Name the sites through which the answer flows, in the model's order."""
        if not self.defined:
            return (
                f"Clean and corrupted runs differ by {self.difference}, which is within noise: "
                "this model shows no effect that a patch could recover."
            )
        whose, does = ("corrupted", "destroys") if self.noising else ("clean", "restores")
        carrying = [
            f"{name} {value:.2f} [{low:.2f}, {high:.2f}]"
            for name, value, low, high, null, p in zip(
                self.site, self.recovery, self.low, self.high, self.null, self.p_value, strict=True
            )
            if _carries(low, null, p)
        ]
        if not carrying:
            return (
                f"No site's {whose} activation moves the answer more than its null does "
                f"(smallest adjusted p = {self.p_value.min():.2g}, {self.n_pairs} pairs)."
            )
        others = "" if len(carrying) == len(self.site) else " The others are not distinguishable from their null."
        return (
            f"One site's {whose} activation {does} the answer at {len(carrying)} of {len(self.site)} sites, in the "
            f"model's order: {_listed(carrying)}.{others}"
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
    pairs = PromptPairs.of(clean, corrupted, target, corrupted_target, config.metric)
    noising = config.direction == "noising"
    with inference(model), memory_remedy(f"Use batch_rows below {config.batch_rows}, or a smaller cache_bytes."):
        few = samples_to(to_model(clean[:2], model), config.sample_axis)
        usable = usable_sites(model, few, config.sites, sample_axis=config.sample_axis, position=config.position)
        runs = PairRuns(
            model=model, config=config, sites=usable.sites, bytes_per_row=usable.bytes_per_row, noising=noising
        )
        scores = runs.score_parts(
            pairs,
            [(site, Slice(config.position)) for site in usable.sites],
            control_seed=config.seed if config.control and not noising else None,
        )
    return _result(scores, usable, config)


def _result(scores: PairScores, usable: Usable, config: PatchSitesConfig) -> PatchedSites:
    found = recovery_of(
        scores, noising=config.direction == "noising", n_draws=config.n_draws, level=config.level, seed=config.seed
    )
    return PatchedSites(
        strongest=_strongest(found, config.level),
        difference=found.difference,
        site=usable.sites,
        recovery=found.value,
        low=found.low,
        high=found.high,
        null=found.null,
        p_value=found.p_value,
        defined=found.defined,
        noising=config.direction == "noising",
        n_pairs=len(scores.clean),
        n_carrying=sum(_carries(*each) for each in zip(found.low, found.null, found.p_value, strict=True)),
        n_skipped=usable.n_skipped,
    )


def _strongest(found: Recovery, level: float) -> Estimate:
    if not found.defined:
        return Estimate(NAN, level=level)
    at = int(found.value.argmax())
    parts = (found.value, found.low, found.high, found.null, found.p_value)
    return Estimate(*(float(part[at]) for part in parts), level=level)


def _carries(low: float, null: float, p_value: float) -> bool:
    return bool(low > null and p_value <= ALPHA)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
