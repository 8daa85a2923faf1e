"""Write the dissimilarities of a stored system into the store, where a Result has no room for them."""

from prefect import task

from mechint_core.alignment.rdm_panels import Dissimilarity, rdm_panels
from mechint_core.parallel import len_rows
from mechint_core.store import ActivationStore
from tasks.references import ArrayReference, Reference, digest_of


class DissimilarityWork(Reference):
    """One system's dissimilarities: everything they depend on, and where they go."""

    folds: list[ArrayReference]
    """One row per condition: one array, or one per fold for a cross-validated measure."""
    metric: Dissimilarity = "correlation"
    whitening: ArrayReference | None = None
    """(unit, component), of mahalanobis and crossnobis."""
    prior: float = 1.0
    prior_weight: float = 0.1
    store: str
    run: str
    step: int
    site: str
    name: str = ""
    """Of the matrix; the metric, if empty."""

    @property
    def identity(self) -> str:
        """Digest of what the dissimilarities depend on."""
        whitening = self.whitening.identity if self.whitening else None
        folds = [each.identity for each in self.folds]
        return digest_of([folds, self.metric, whitening, self.prior, self.prior_weight])

    @property
    def place(self) -> tuple[str, int, str, str]:
        """The run, step, site and name that the store has them under."""
        return self.run, self.step, self.site, self.name or self.metric

    def is_done(self) -> bool:
        """Whether the store holds these very dissimilarities, committed."""
        source = ActivationStore(self.store).dissimilarities_source(*self.place)
        return source is not None and source.get("identity") == self.identity


@task(name="write_dissimilarities", task_run_name="dissimilarities of {work.site} @{work.step}", retries=1)
def write_dissimilarities(work: DissimilarityWork) -> int:
    """Write every pair of conditions, run by run; return how many were written."""
    if work.is_done():
        return 0
    folds = [each.open() for each in work.folds]
    runs = rdm_panels(
        folds if len(folds) > 1 else folds[0],
        metric=work.metric,
        whitening=work.whitening.read() if work.whitening else None,
        prior=work.prior,
        prior_weight=work.prior_weight,
    )
    n = len_rows(folds[0])
    n_pairs = n * (n - 1) // 2
    source = {"identity": work.identity, "metric": work.metric, "folds": [each.digest for each in work.folds]}
    with ActivationStore(work.store).write_dissimilarities(*work.place, n_pairs=n_pairs, source=source) as writer:
        for run in runs:
            writer.append(run)
    return n_pairs
