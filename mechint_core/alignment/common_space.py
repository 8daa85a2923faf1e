"""A common space: several subjects (or seeds, or models) rotated until they agree best with their mean.

    min over Q_1 ... Q_m of  (1/m) Σ_k ||X_k Q_k - T||²,      T = (1/m) Σ_k X_k Q_k         each ||X_k|| = 1

by turns: given T, Q_k is the Procrustes rotation of X_k onto it; given all Q_k, T is their mean. Neither turn can raise
the objective. Systems with fewer units are padded with zeros. The rotations found on one half of the samples are scored
on the other: the correlation of each system with the mean of the others, brought into its own coordinates.

All of it is a function of the cross-products X_kᵀ X_l, so that one pass over the rows is enough.

Source: [@gower1975], [@haxby2011] (hyperalignment), [@schonemann1966], [@nastase2019] (leave-one-out correlation).
Cost: n (Σp)² for the products; m² p³ per turn.
Chunked over: samples, where no system has more units than samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mechint_core.alignment import _shapes
from mechint_core.alignment._shapes import Narrowed, check_systems, pick
from mechint_core.errors import ConfigurationError, DegenerateInputError, MemoryBudgetError
from mechint_core.figure import Curve, Figure, Matrix
from mechint_core.kernels.fisher_interval import fisher_interval
from mechint_core.kernels.halved_moments import HalvedMoments, Moments, halved_moments, random_half
from mechint_core.kernels.leave_one_out import CANCELLED, agreement_with_others
from mechint_core.kernels.resampling import p_value
from mechint_core.kernels.row_views import SideBySide
from mechint_core.parallel import LANES, Rows
from mechint_core.random import generator
from mechint_core.result import NAN, Estimate, Result

BUDGET_BYTES = 4 * 2**30
"""Memory that the cross-products may take."""
CONSTANT = 1e-24
"""A share of the squared size below which a system is rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonSpaceConfig:
    """How systems are brought into a common space, and how that is judged."""

    max_turns: int = 100
    """Turns after which the search ends, converged or not."""
    tolerance: float = 1e-7
    """The search has converged when a turn lowers the objective by less than this share."""
    n_inference: int = 300
    """Samples, drawn at random, from which the width of the interval is estimated."""
    n_permutations: int = 999
    """Draws of the null."""
    level: float = 0.95
    """Confidence of the interval."""
    seed: int = 0
    """Names the halves and the draws."""

    def __post_init__(self) -> None:
        if self.max_turns < 1 or not 0 < self.tolerance < 1:
            raise ConfigurationError(
                f"max_turns must be at least 1 and tolerance in (0, 1). Got {self.max_turns} and {self.tolerance}."
            )
        if self.n_inference < 8 or self.n_permutations < 0:
            raise ConfigurationError(
                "n_inference must be at least 8 and n_permutations at least 0. "
                f"Got {self.n_inference} and {self.n_permutations}."
            )
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level must be between 0 and 1. Got {self.level}.")


@dataclass(frozen=True, slots=True)
class CommonSpaceResult(Result):
    """How well a group of systems predicts each of its members, once in a common space."""

    technique: ClassVar[str] = "common_space"
    evidence: ClassVar[str] = (
        "Scored on the half of the samples that did not choose the rotations; the intervals are infinitesimal "
        "jackknives over those samples; the null relabels them in every system: exact variance, normal products."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Matrix(
            values="agreement", title="Held-out correlation of two systems in the common space", x_label="system",
            y_label="system", value_label="correlation",
        ),
        Curve(
            y=("objective",), title="Mean squared distance to the template", x_label="turn", y_label="of size 1",
        ),
        Curve(
            y=("score", "unaligned_score"), title="Correlation with the others: aligned, and as they are",
            x_label="system", y_label="correlation",
        ),
    )  # fmt: skip
    invariances: ClassVar[tuple[str, ...]] = ("orthogonal", "isotropic scaling", "translation")
    """Changes of any system that leave `held_out` as it is."""

    held_out: Estimate
    """Correlation of a system with the others in the common space, on held-out samples; the mean over systems."""
    unaligned: Estimate
    """The same without any rotation: unit i of one is unit i of the other. NaN where systems differ in units,
    or where the others cancel."""
    gain: Estimate
    """`held_out` less `unaligned`."""
    n_samples: int
    n_systems: int
    n_turns: int
    converged: bool
    score: Float[np.ndarray, "system"]
    """Held-out correlation of each system with the others."""
    unaligned_score: Float[np.ndarray, "system"]
    agreement: Float[np.ndarray, "system other_system"]
    """Held-out correlation of two systems in the common space."""
    objective: Float[np.ndarray, "pass"]
    """Mean squared distance to the template, before the first turn and after each one, over all samples."""
    maps: Float[np.ndarray, "system unit coordinate"]
    """From the units of each system (less their means) to the common space, found on all samples; rows of units that
    a system does not have are 0."""

    def reading(self) -> str:
        """Say how well the group predicts a member, and what the rotation gained."""
        found, gain = self.held_out, self.gain
        text = (
            f"In their common space each of {self.n_systems} systems correlates with the others by {found.value:.3f} "
            f"[{found.low:.3f}, {found.high:.3f}] on held-out samples"
        )
        if found.p_value > 1 - found.level:
            return f"{text}: not distinguishable from shuffled samples (p = {found.p_value:.2g})."
        if math.isnan(gain.value):
            return f"{text} (p = {found.p_value:.2g})."
        return f"{text}, {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] more than as they are."


def common_space(
    systems: Sequence[Float[Rows, "sample _"]], *, config: CommonSpaceConfig = CommonSpaceConfig()
) -> CommonSpaceResult:
    """Ask whether several systems share a space up to rotation, and find it.

    Use it to pool subjects whose channels do not correspond, or seeds whose units do not, and to carry data of one
    into another. It assumes that row i of every system answers the same sample. It keeps each system's own distances,
    so that what only a shear would bring together stays apart. It cannot tell a common signal from a common nuisance.

    Parameters
    ----------
    systems
        Two or more, each (sample, unit) with the same samples, at least 8, in memory or stored; read block by block
        in float64. They may differ in their units; one with more units than samples is read whole.
    config
        When the search ends, and how interval and null are found.

    Returns
    -------
    CommonSpaceResult
        Correlations in [-1, 1]: 1 if all systems are rotations of one, 0 on average if they are unrelated.

    Raises
    ------
    ShapeError
        If there are fewer than 2 systems or 8 samples, or the systems do not align.
    DegenerateInputError
        If a system holds NaN or infinity, or is constant over the samples of a half.
    MemoryBudgetError
        If the cross-products of all units would take more than 4 GiB.

    Notes
    -----
    The search starts from the rotations onto the system with the most units. With two systems it is the Procrustes
    problem. `held_out` is lower than what rotations from all samples would give: half of them are kept for scoring.

    References
    ----------
    [@gower1975]
    [@haxby2011]
    [@schonemann1966]
    [@nastase2019]

    Examples
    --------
    >>> x = np.cos(np.outer(np.arange(24.0) ** 2, [1.0, 2.0]))
    >>> quarter_turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> found = common_space([x, x @ quarter_turn, 3 - 2 * x])
    >>> round(found.held_out.value, 9), found.converged
    (1.0, True)
    """
    n = check_systems(systems)
    narrowed = [Narrowed.of(each, centred=True) for each in systems]
    group = _Group.of([each.rows.shape[1] for each in narrowed])
    picked = pick(n, config.n_inference, config.seed, "common_space")
    moments = halved_moments(
        SideBySide([each.rows for each in narrowed]),
        random_half(n, config.seed),
        picked=picked,
        block_rows=_shapes.BLOCK_ROWS or None,
    )
    every, fitted = group.search(moments.whole, config), group.search(moments.halves[0], config)
    aligned = _scored(group, moments, fitted.turns, config, null=True)
    bases = _unit_maps(systems, narrowed)
    unaligned = _scored(group, moments, bases, config, null=False) if bases else _nothing(len(systems), config.level)
    return CommonSpaceResult(
        held_out=aligned.estimate,
        unaligned=unaligned.estimate,
        gain=_gain(aligned, unaligned, moments.halves[1].n, config.level),
        n_samples=n,
        n_systems=len(systems),
        n_turns=len(every.objective) - 1,
        converged=every.converged and fitted.converged,
        score=aligned.score,
        unaligned_score=unaligned.score,
        agreement=aligned.agreement,
        objective=np.array(every.objective),
        maps=_maps(systems, narrowed, every.turns),
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """Where a search ended."""

    turns: list[np.ndarray]
    objective: list[float]
    converged: bool


@dataclass(frozen=True, slots=True)
class _Group:
    """Which coordinates of the systems, side by side, belong to whom."""

    parts: list[slice]
    width: int
    """Coordinates of the common space."""

    @classmethod
    def of(cls, widths: list[int]) -> "_Group":
        total = sum(widths)
        if total**2 * 8 * 2 * (LANES + 2) > BUDGET_BYTES:
            raise MemoryBudgetError(
                f"systems must have fewer units together: the products of {total} units would take more than "
                f"{BUDGET_BYTES / 2**30:.0f} GiB. Keep the leading principal components of each."
            )
        edges = np.cumsum([0, *widths]).tolist()
        return cls([slice(a, b) for a, b in pairwise(edges)], max(widths))

    def sizes(self, moments: Moments) -> np.ndarray:
        """Return ||X_k|| of each system."""
        diagonal = np.diag(moments.cross)
        return np.sqrt([max(0.0, float(diagonal[part].sum())) for part in self.parts])

    def search(self, moments: Moments, config: CommonSpaceConfig) -> _Found:
        """Turn all systems towards their mean until the objective stays."""
        sizes = self.sizes(moments)
        if not np.all(sizes > 0):
            raise DegenerateInputError("every system must vary over its samples. Got the same row every time.")
        scale = np.concatenate([np.full(p.stop - p.start, 1 / s) for p, s in zip(self.parts, sizes, strict=True)])
        cross = moments.cross * scale * scale[:, None]
        first = self.parts[int(np.argmax([part.stop - part.start for part in self.parts]))]
        turns = [_polar(cross[part, first]) for part in self.parts]
        objective = [self._objective(cross, turns)]
        for _ in range(config.max_turns):
            joint = cross @ np.vstack(turns)  # m X_kᵀ T
            turns = [_polar(joint[part]) for part in self.parts]
            objective.append(self._objective(cross, turns))
            if objective[-2] - objective[-1] <= config.tolerance * objective[-2]:
                return _Found(turns, objective, True)
        return _Found(turns, objective, False)

    def _objective(self, cross: np.ndarray, turns: list[np.ndarray]) -> float:
        joint, m = np.vstack(turns), len(turns)
        return max(0.0, 1 - float(np.vdot(joint, cross @ joint)) / m**2)

    def products(self, cross: np.ndarray, turns: list[np.ndarray]) -> np.ndarray:
        """Return <X_k Q_k, X_l Q_l>."""
        m = len(turns)
        found = np.empty((m, m))
        for k, (part, turn) in enumerate(zip(self.parts, turns, strict=True)):
            turned = turn.T @ cross[part]
            for other in range(k, m):
                found[k, other] = found[other, k] = np.vdot(turned[:, self.parts[other]], turns[other].T)
        return found


def _polar(matrix: np.ndarray) -> np.ndarray:
    """Return the rotation (with zeros padded, where it is not square) nearest to a matrix."""
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


@dataclass(frozen=True, slots=True)
class _Scored:
    """How well each system agrees with the others on the second half."""

    estimate: Estimate
    score: np.ndarray
    agreement: np.ndarray
    influence: np.ndarray


def _scored(
    group: _Group, moments: HalvedMoments, turns: list[np.ndarray], config: CommonSpaceConfig, *, null: bool
) -> _Scored:
    sizes, scored = group.sizes(moments.halves[0]), moments.halves[1]
    turns = [turn / size for turn, size in zip(turns, sizes, strict=True)]
    products = group.products(scored.cross, turns)
    own = np.diag(products)
    if not np.all(own > CONSTANT):
        raise DegenerateInputError("every system must vary over the samples of each half. Got a constant one.")
    score = agreement_with_others(products)
    rows = moments.picked[moments.picked_half == 1]
    turned = np.stack([rows[:, part] @ turn for part, turn in zip(group.parts, turns, strict=True)])
    influence = scored.n * _influence(products, np.einsum("kic,lic->ikl", turned, turned))
    value, error = float(score.mean()), float(influence.std(ddof=1)) / math.sqrt(scored.n)
    low, high = fisher_interval(value, error, config.level)
    draws = _null(group, scored, turns, products, config) if null else np.empty(0)
    typical = float(draws.mean()) if len(draws) else NAN
    estimate = Estimate(value, low, high, typical, p_value(value, draws), config.level)
    return _Scored(estimate, score, products / np.sqrt(np.outer(own, own)), influence)


def _influence(products: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Return the derivative of the mean score in the weight of each row, whose part of the products is given."""

    def sums(t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        own, with_all = np.diagonal(t, axis1=-2, axis2=-1), t.sum(axis=-1)
        return with_all - own, own, with_all.sum(axis=-1, keepdims=True) - 2 * with_all + own

    (between, own, others), (d_between, d_own, d_others) = sums(products), sums(parts)
    others = np.where(others > CANCELLED * own.sum(), others, np.nan)  # they cancel: no correlation with them
    norm = np.sqrt(own * others)
    return np.mean(d_between / norm - between / norm / 2 * (d_own / own + d_others / others), axis=1)


def _null(
    group: _Group, scored: Moments, turns: list[np.ndarray], products: np.ndarray, config: CommonSpaceConfig
) -> np.ndarray:
    """Return scores with the scored samples relabelled: products of two systems have mean 0 and a known variance."""
    m = len(turns)
    covariances = [t.T @ scored.cross[part, part] @ t for part, t in zip(group.parts, turns, strict=True)]
    flat = np.stack([each.ravel() for each in covariances])
    spread = np.sqrt(np.maximum(flat @ flat.T, 0) / scored.freedom)
    upper = np.triu(generator(config.seed, "null").normal(size=(config.n_permutations, m, m)), 1)
    drawn = spread * (upper + np.swapaxes(upper, 1, 2)) + np.diag(np.diag(products))
    return agreement_with_others(drawn).mean(axis=1)


def _unit_maps(systems: Sequence[Rows], narrowed: list[Narrowed]) -> list[np.ndarray]:
    """Return the maps back to units, in which unit i of one system is unit i of another; none if they differ."""
    if len({each.shape[1] for each in systems}) != 1:
        return []
    return [each.to_units(np.eye(each.rows.shape[1])).T for each in narrowed]


def _nothing(m: int, level: float) -> _Scored:
    return _Scored(Estimate(NAN, level=level), np.full(m, NAN), np.full((m, m), NAN), np.full(1, NAN))


def _gain(aligned: _Scored, unaligned: _Scored, n: int, level: float) -> Estimate:
    """Compare the two scores on the same samples; half the difference is within [-1, 1], as a correlation is."""
    value = aligned.estimate.value - unaligned.estimate.value
    if math.isnan(value):
        return Estimate(NAN, level=level)
    error = float((aligned.influence - unaligned.influence).std(ddof=1)) / math.sqrt(n)
    low, high = fisher_interval(value / 2, error / 2, level)
    return Estimate(value, 2 * low, 2 * high, level=level)


def _maps(systems: Sequence[Rows], narrowed: list[Narrowed], turns: list[np.ndarray]) -> np.ndarray:
    maps = np.zeros((len(systems), max(each.shape[1] for each in systems), turns[0].shape[1]))
    for k, (each, turn) in enumerate(zip(narrowed, turns, strict=True)):
        maps[k, : systems[k].shape[1]] = each.to_units(turn)
    return maps
