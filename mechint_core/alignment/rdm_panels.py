"""The dissimilarities of a stored system, run by run: for more conditions than an RDM in memory allows.

    run of rows a ... b - 1    D_ij for a <= i < b and i < j < n, in the order of `numpy.triu_indices`

The runs one after the other are the condensed matrix. A panel of rows is held at a time, and the conditions after it
are read block by block, so memory does not grow with the number of pairs.

Source: the identities of `_distances` and `_crossnobis`.
Cost: n² p; the system is read n / (2 rows of a panel) times.
Chunked over: conditions, both ways.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechint_core.alignment._crossnobis import across_folds, whitened
from mechint_core.alignment._distances import PREPARE, difference_products, fill_run, first_pair, scale_of
from mechint_core.alignment._measures import CROSSVALIDATED, STREAMING, Dissimilarity, Measure, poisson_rates
from mechint_core.errors import ConfigurationError, DegenerateInputError, ShapeError
from mechint_core.kernels.linear_kernels import PILOT_ROWS
from mechint_core.parallel import BLOCK_BYTES, Rows, len_rows

PANEL_BYTES = 32 * 2**20
"""Memory of one panel, unless the caller says how many rows; a run takes up to as much again."""


def rdm_panels(
    x: Rows | Sequence[Rows],
    *,
    metric: Dissimilarity = "correlation",
    whitening: Float[np.ndarray, "unit component"] | None = None,
    prior: float = 1.0,
    prior_weight: float = 0.1,
    panel_rows: int | None = None,
    block_rows: int | None = None,
) -> Iterator[Float[np.ndarray, "pair"]]:
    """Return an iterator over runs of the condensed matrix, of which two are never held together.

    Parameters
    ----------
    x
        One row per condition, in memory or stored; of a cross-validated measure one such array per fold.
    metric
        The dissimilarity, as in `RDMConfig`.
    whitening
        Of mahalanobis and crossnobis: what makes the noise of x W white (`NoiseCovariance.whitening`).
    prior, prior_weight
        What poisson shrinks rates to, and how much.
    panel_rows, block_rows
        Conditions of one run, and conditions read at once. The answer does not depend on them beyond rounding.

    Raises
    ------
    ShapeError
        If `x` is not one array of (condition, unit) with at least 2 conditions, or for a cross-validated measure at
        least two of one shape.
    ConfigurationError
        If an option is impossible, or mahalanobis has no whitening.
    DegenerateInputError
        While it runs: if `x` is not finite, or a condition has no such dissimilarity.

    Examples
    --------
    >>> corners = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    >>> [run.tolist() for run in rdm_panels(corners, metric="euclidean", panel_rows=2)]
    [[2.0, 2.0, 4.0, 4.0, 2.0], [2.0]]
    """
    measure = Measure(metric=metric, prior=prior, prior_weight=prior_weight)
    folds = list(x) if isinstance(x, Sequence) else [x]
    shapes = {tuple(fold.shape) for fold in folds}
    if len(shapes) != 1 or len(folds[0].shape) != 2 or len_rows(folds[0]) < 2 or 0 in folds[0].shape:
        raise ShapeError(f"x must be (condition, unit), the same in every fold. Got shapes {sorted(shapes)}.")
    if (len(folds) > 1) != (metric in CROSSVALIDATED):
        raise ShapeError(f"x must be one array, or for {CROSSVALIDATED} one per fold. Got {len(folds)} for {metric!r}.")
    if metric == "mahalanobis" and whitening is None:
        raise ConfigurationError("whitening must be given for mahalanobis. Got None: use metric='euclidean'.")
    panel_rows = max(1, PANEL_BYTES // (8 * len_rows(folds[0]))) if panel_rows is None else panel_rows
    block_rows = max(1, BLOCK_BYTES // (8 * folds[0].shape[1] * len(folds))) if block_rows is None else block_rows
    if min(panel_rows, block_rows) < 1:
        raise ConfigurationError(f"panel_rows and block_rows must be at least 1. Got {panel_rows} and {block_rows}.")
    return _panels(_Sides.of(folds, measure, whitening), panel_rows, block_rows)


def _panels(sides: "_Sides", panel_rows: int, block_rows: int) -> Iterator[np.ndarray]:
    n = len_rows(sides.folds[0])
    for start in range(0, n - 1, panel_rows):
        stop = min(start + panel_rows, n - 1)
        these, panel = sides(start, stop), np.empty((stop - start, n - start - 1))
        for first in range(start + 1, n, block_rows):
            columns = slice(first - start - 1, min(first + block_rows, n) - start - 1)
            panel[:, columns] = difference_products(these, sides(first, min(first + block_rows, n)), sides.scale)
        run = np.empty(first_pair(stop, n) - first_pair(start, n))
        fill_run(run, panel)
        del panel
        yield run if sides.measure.metric in CROSSVALIDATED else np.maximum(run, 0, out=run)


@dataclass(frozen=True, slots=True)
class _Sides:
    """Rows a ... b - 1 as the two sets whose products of differences are the dissimilarities."""

    folds: list[Rows]
    measure: Measure
    whitening: np.ndarray | None
    shift: np.ndarray
    """The mean of the first rows of each fold, made ready: it changes no distance, and cancels less."""

    @classmethod
    def of(cls, folds: list[Rows], measure: Measure, whitening: np.ndarray | None) -> "_Sides":
        unshifted = cls(folds, measure, whitening, np.zeros(1))
        return cls(folds, measure, whitening, unshifted.ready(0, PILOT_ROWS).mean(axis=0))

    @property
    def scale(self) -> float:
        """What turns a product of differences into the dissimilarity."""
        metric, (_, n_units), n_folds = self.measure.metric, self.folds[0].shape, len(self.folds)
        if metric in STREAMING:
            return scale_of(STREAMING[metric], n_units)
        both_ways = 2 if "poisson" in metric else 1
        return 1 / (n_units * both_ways * (n_folds * (n_folds - 1) if n_folds > 1 else 1))

    def __call__(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.ready(start, stop) - self.shift
        if self.measure.metric == "crossnobis":
            return across_folds(rows)
        if "poisson" not in self.measure.metric:
            return rows[:, 0], rows[:, 0]
        rates, logs = np.split(rows, 2, axis=2)
        if len(self.folds) > 1:
            return across_folds(rates, logs)
        return rows[:, 0], np.hstack([logs[:, 0], rates[:, 0]])

    def ready(self, start: int, stop: int) -> np.ndarray:
        """Return rows as (condition, fold, unit): prepared, whitened, or rates and their logarithms."""
        rows = np.stack([fold[start:stop] for fold in self.folds], axis=1).astype(np.float64, copy=False)
        if not np.all(np.isfinite(rows)):
            raise DegenerateInputError("x must be finite. Got NaN or infinity: leave those conditions out first.")
        metric = self.measure.metric
        if metric in STREAMING:
            return PREPARE[STREAMING[metric]](rows[:, 0])[:, None]
        if "poisson" in metric:
            rates = poisson_rates(rows, self.measure)
            return np.concatenate([rates, np.log(rates)], axis=2)
        return whitened(rows, self.whitening)
