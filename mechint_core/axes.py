"""The vocabulary of axis names: singular, full words, the same in signatures, Zarr dimension names and reports.

To name a new axis, add it here with one line that says what one step along it is.
"""

from typing import Final

AXES: Final[dict[str, str]] = {
    "sample": "one input of the data set, or one of its positions when they are flattened",
    "other_sample": "a sample of the second system in a comparison",
    "position": "one place in a sequence",
    "unit": "one coordinate of an activation vector",
    "other_unit": "one coordinate of the second system in a comparison",
    "head": "one attention head",
    "latent": "one dictionary feature",
    "dictionary": "one trained dictionary",
    "other_dictionary": "the dictionary a dictionary is compared with",
    "example": "one of the few shown of many, the strongest first",
    "neighbour": "one of the latents most like a latent, the nearest first",
    "feature": "one planted (true) feature",
    "part": "one of the parts an answer is attributed to: a unit, head, position, latent or site",
    "site": "one module whose output is recorded",
    "checkpoint": "one saved step of training",
    "other_checkpoint": "the checkpoint a checkpoint is compared with",
    "condition": "one stimulus, class or value of a variable",
    "pair": "one unordered pair of conditions, in the order of numpy.triu_indices(n, 1)",
    "class": "one output of a classifier",
    "control": "one thing that is put in another's place, to compare with",
    "measure": "one scalar followed through training",
    "phase": "one stretch of training between two change points",
    "boundary": "one change point",
    "burst": "one stretch of training in which a representation moves fastest",
    "frequency": "one Fourier frequency",
    "scale": "one window length or lag",
    "time": "one step of a time series",
    "series": "one time series",
    "bar": "one class of persistent homology",
    "endpoint": "birth, then death",
    "cloud": "one set of points",
    "coordinate": "one axis of a drawing or an embedding",
    "dimension": "one homology dimension",
    "sparsity": "one number of features that a probe may use",
    "pass": "one training pass or logged step of an optimiser",
    "draw": "one bootstrap, permutation or surrogate draw",
    "row": "one row of a generic matrix",
    "column": "one column of a generic matrix",
}
