"""Layer by region: which site of a network matches which part of a brain best, and how sure that is.

    best site of region r    argmax over sites s of score_sr
    chance of being best     share of bootstrap draws b in which score_sr^b is the largest of its region

Every entry is an alignment estimated before (`brain_alignment`), with the same draws of conditions and subjects for all
of them: differences between sites are paired, so two sites that share their noise can be told apart although their
intervals overlap.

Source: [@yamins2014] (layers and regions), [@benjamini1995].
Cost: one pass over the draws.
Chunked over: nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Float

from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.figure import Bars, Figure, Matrix
from mechint_core.kernels.false_discovery import false_discovery_rate
from mechint_core.kernels.resampling import percentile_interval
from mechint_core.result import Estimate, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRegionMatrixConfig:
    """What the rows and columns are called."""

    sites: tuple[str, ...] = ()
    """Names of the rows; numbered by default."""
    regions: tuple[str, ...] = ()
    """Names of the columns; numbered by default."""
    level: float = 0.95
    """Confidence of the interval, and 1 - the false discovery rate."""

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ConfigurationError(f"level must be between 0 and 1. Got {self.level}.")


@dataclass(frozen=True, slots=True)
class LayerRegionMatrixResult(Result):
    """The map of sites by regions."""

    technique: ClassVar[str] = "layer_region_matrix"
    evidence: ClassVar[str] = (
        "The interval is the paired bootstrap of conditions (and subjects) that every entry shares; the null of an "
        "entry is that of its alignment, q-values control the false discovery rate over all entries."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Matrix(
            values="score", x="region", y="site", title="How well each site matches each region", x_label="region",
            y_label="site", value_label="alignment",
        ),
        Matrix(
            values="ceiled", x="region", y="site", title="The same as a share of the noise ceiling", x_label="region",
            y_label="site", value_label="share of the ceiling",
        ),
        Bars(values="best_score", labels="matched", title="Each region's best site", low="best_low", high="best_high"),
    )  # fmt: skip

    strongest: Estimate
    """The largest entry."""
    n_significant: int
    """Entries whose q-value is below 1 - level."""
    site: Annotated[tuple[str, ...], "site"]
    region: Annotated[tuple[str, ...], "region"]
    matched: Annotated[tuple[str, ...], "region"]
    """`site~region` of each region's best site."""
    score: Float[np.ndarray, "site region"]
    ceiled: Float[np.ndarray, "site region"]
    """Score over ceiling; not clipped, NaN where there is no ceiling."""
    q_value: Float[np.ndarray, "site region"]
    best_share: Float[np.ndarray, "site region"]
    """Share of the draws in which the site is its region's best."""
    best_score: Float[np.ndarray, "region"]
    best_low: Float[np.ndarray, "region"]
    best_high: Float[np.ndarray, "region"]

    def reading(self) -> str:
        """Say which site matches each region best, and in what share of the draws it does."""
        if not self.n_significant:
            return f"None of the {self.score.size} pairs of site and region is aligned beyond its null."
        best = self.score.argmax(axis=0)
        said = ", ".join(
            f"{region} {self.site[site]} ({self.score[site, column]:.3f}, best in {self.best_share[site, column]:.0%})"
            for column, (region, site) in enumerate(zip(self.region, best, strict=True))
        )
        return f"{self.n_significant} of {self.score.size} pairs are aligned beyond their null. Best sites: {said}."


def layer_region_matrix(
    score: Float[np.ndarray, "site region"],
    null: Float[np.ndarray, "site region"],
    p_value: Float[np.ndarray, "site region"],
    ceiling: Float[np.ndarray, "site region"],
    draws: Sequence[Float[np.ndarray, "draw"]],
    *,
    config: LayerRegionMatrixConfig = LayerRegionMatrixConfig(),
) -> LayerRegionMatrixResult:
    """Find the site of a network that matches each part of a brain best.

    Use it on alignments of one measure with one recording at one checkpoint. It assumes that all of them used the same
    draws (the same seed), so that they are paired. That a layer matches a region better than another one does not say
    that it computes the same: wider and noisier layers can match better by their dimension alone.

    Parameters
    ----------
    score
        Alignment of every site with every region.
    null
        What each would be without any alignment.
    p_value
        Of each against that.
    ceiling
        What the noise of the recording allows; NaN where it is not known.
    draws
        The bootstrap draws of every entry, site by site: those of site 0 with each region, then those of site 1, ...
    config
        The names.

    Returns
    -------
    LayerRegionMatrixResult
        Scores in the units of the measure; shares in [0, 1].

    Raises
    ------
    ShapeError
        If the tables differ in shape, or there are not equally many draws for each of their entries.
    DegenerateInputError
        If a score is not finite.
    ConfigurationError
        If there are names, but not one for each row or column.

    References
    ----------
    [@yamins2014]
    [@benjamini1995]

    Examples
    --------
    >>> score, draws = np.array([[0.1], [0.4]]), [np.array([0.0, 0.2]), np.array([0.3, 0.5])]
    >>> p_value, ceiling = np.array([[0.5], [0.01]]), np.array([[0.5], [0.5]])
    >>> layer_region_matrix(score, np.zeros((2, 1)), p_value, ceiling, draws).best_share.tolist()
    [[0.0], [1.0]]
    """
    drawn = _check({"score": score, "null": null, "p_value": p_value, "ceiling": ceiling}, draws)
    sites = _names("sites", config.sites, score.shape[0])
    regions = _names("regions", config.regions, score.shape[1])
    best, columns = score.argmax(axis=0), np.arange(score.shape[1])
    ends = np.array([percentile_interval(drawn[site, column], config.level) for column, site in enumerate(best)])
    q_value = false_discovery_rate(p_value)
    top = int(score[best, columns].argmax())
    strongest = int(best[top]), top
    return LayerRegionMatrixResult(
        strongest=Estimate(
            float(score[strongest]),
            *ends[top].tolist(),
            null=float(null[strongest]),
            p_value=float(p_value[strongest]),
            level=config.level,
        ),
        n_significant=int(np.sum(q_value <= 1 - config.level)),
        site=sites,
        region=regions,
        matched=tuple(f"{sites[site]}~{regions[column]}" for column, site in enumerate(best)),
        score=score,
        ceiled=score / np.where(ceiling > 0, ceiling, np.nan),
        q_value=q_value,
        best_share=_best_share(drawn),
        best_score=score[best, columns],
        best_low=ends[:, 0],
        best_high=ends[:, 1],
    )


def _check(tables: Mapping[str, np.ndarray], draws: Sequence[np.ndarray]) -> Float[np.ndarray, "site region draw"]:
    """Return the draws as one array."""
    score, shapes = tables["score"], {name: each.shape for name, each in tables.items()}
    if score.ndim != 2 or score.size == 0 or len(set(shapes.values())) != 1:
        raise ShapeError(f"score, null, p_value and ceiling must be one (site, region) shape. Got {shapes}.")
    lengths = {each.shape for each in draws}
    if len(draws) != score.size or len(lengths) != 1 or lengths in ({()}, {(0,)}):
        raise ShapeError(
            f"draws must hold equally many draws for each of {score.size} entries. Got {len(draws)}, {lengths}."
        )
    if not np.all(np.isfinite(score)):
        raise DegenerateInputError("every score must be finite. Got NaN: leave out that site or region.")
    return np.stack(list(draws)).reshape(*score.shape, -1).astype(np.float64)


def _names(what: str, given: tuple[str, ...], n: int) -> tuple[str, ...]:
    if given and len(given) != n:
        raise ConfigurationError(f"{what} must name each of {n}. Got {len(given)}: {', '.join(given)}.")
    return given or tuple(str(number) for number in range(n))


def _best_share(drawn: Float[np.ndarray, "site region draw"]) -> Float[np.ndarray, "site region"]:
    """Share a draw in which several sites are equally good; leave out draws in which a score is undefined."""
    best = drawn == drawn.max(axis=0)
    with np.errstate(invalid="ignore"):  # a draw without a defined score has no best site
        return np.nanmean(best / best.sum(axis=0), axis=2)
