"""Record what a model computes: one task per checkpoint, every site in one pass over the data."""

from collections.abc import Iterator
from contextlib import ExitStack

from prefect import task

from mechint_core.models import load_model, record_activations
from mechint_core.store import ActivationStore, ActivationWriter
from tasks.references import ArrayReference, ModelReference, Reference, digest_of


class CollectionWork(Reference):
    """One checkpoint's activations: everything they depend on, and where they go."""

    model: ModelReference
    inputs: dict[str, ArrayReference]
    keywords: dict[str, str]
    """Field -> keyword of the model's forward; empty where it is passed by place."""
    sites: list[str]
    store: str
    run: str
    step: int
    batch_size: int
    dtype: str

    @property
    def identity(self) -> str:
        """Digest of what the activations depend on; the batch size is not part of it."""
        inputs = {name: each.identity for name, each in self.inputs.items()}
        return digest_of([self.model.identity, inputs, self.keywords, self.dtype])

    def missing(self) -> list[str]:
        """Return the sites that the store does not hold as this work would make them."""
        store = ActivationStore(self.store)
        return [site for site in self.sites if not self._holds(store, site)]

    def _holds(self, store: ActivationStore, site: str) -> bool:
        if not store.has_activations(self.run, self.step, site):
            return False
        return store.activations(self.run, self.step, site).source.get("identity") == self.identity


@task(name="collect_activations", task_run_name="collect @{work.step}", retries=1, retry_delay_seconds=2)
def collect_activations(work: CollectionWork) -> int:
    """Record the missing sites of one checkpoint; return how many there were."""
    sites = work.missing()
    if not sites:
        return 0
    model = load_model(
        work.model.factory, work.model.arguments, work.model.checkpoint or None, device=work.model.device
    )
    positional = not any(work.keywords.values())
    inputs = {work.keywords[name] or name: each.read() for name, each in work.inputs.items()}
    n_samples = len(next(iter(inputs.values())))
    blocks = record_activations(
        model,
        inputs,
        sites,
        batch_size=work.batch_size,
        dtype=work.dtype,
        device=work.model.device,
        positional=positional,
    )
    with ExitStack() as open_writers:
        writers: dict[str, ActivationWriter] = {}
        for _, recorded in blocks:
            for site, values in recorded.items():
                if site not in writers:
                    writers[site] = open_writers.enter_context(_writer(work, site, n_samples, values.ndim))
                writers[site].append(values)
    return len(sites)


def _writer(work: CollectionWork, site: str, n_samples: int, n_axes: int):
    axes = ("sample", "unit") if n_axes == 2 else ("sample", "position", "unit")
    source = {
        "identity": work.identity,
        "factory": work.model.factory,
        "checkpoint": work.model.digest,
        "inputs": {name: each.digest for name, each in work.inputs.items()},
    }
    return ActivationStore(work.store).write_activations(
        work.run, work.step, site, n_samples=n_samples, axes=axes, dtype=work.dtype, source=source
    )


__all__ = ["CollectionWork", "Iterator", "collect_activations"]
