"""A configuration's data sets: read from where they are named, committed to the store."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flows.sections import DatasetSection
from mechint_core.errors import ConfigurationError
from mechint_core.models import load_factory
from mechint_core.store import ActivationStore
from tasks.references import ArrayReference


def load_dataset(name: str, section: DatasetSection) -> dict[str, np.ndarray]:
    """Return the arrays of a data set: all with the same number of samples."""
    if section.path is not None:
        try:
            with np.load(section.path, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
        except (OSError, ValueError) as problem:
            raise ConfigurationError(
                f"datasets.{name}.path must be an .npz file of plain arrays. {problem}"
            ) from problem
    else:
        made: Any = load_factory(str(section.factory))(**section.arguments)
        if not isinstance(made, Mapping):
            raise ConfigurationError(
                f"datasets.{name}.factory must return a mapping of arrays. Got {type(made).__name__}."
            )
        arrays = {str(key): np.asarray(value) for key, value in made.items()}
    lengths = {key: len(value) if value.ndim else 0 for key, value in arrays.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ConfigurationError(
            f"datasets.{name} must hold arrays with the same number of samples, >= 1. Got {lengths}."
        )
    return arrays


def commit_dataset(
    store: ActivationStore,
    dataset: str,
    arrays: Mapping[str, np.ndarray],
    *,
    axes: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, ArrayReference]:
    """Return references to the data set's arrays, after writing them if the store holds others."""
    store.write_inputs(dataset, arrays, source={"dataset": dataset}, axes=axes)
    return {
        name: ArrayReference(store=store.location, dataset=dataset, field=name, digest=stored.digest)
        for name, stored in store.inputs(dataset).items()
    }
