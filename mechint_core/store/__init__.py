"""Activations, inputs, results and dictionaries on disk or in a bucket: whole or absent, and verifiable."""

from mechint_core.store.activation_store import ActivationStore as ActivationStore
from mechint_core.store.arrays import StoredArray as StoredArray
from mechint_core.store.entries import Entry as Entry
from mechint_core.store.folders import StoredFolder as StoredFolder
from mechint_core.store.record import About as About, ResultKey as ResultKey, StoredResult as StoredResult
from mechint_core.store.writing import ActivationWriter as ActivationWriter
