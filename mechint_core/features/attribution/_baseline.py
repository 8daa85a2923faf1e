"""Where attribution starts: what a part is worth when it says nothing.

zeros   every coordinate 0 (with a dictionary: no latent active, nothing unexplained)
mean    the mean of the samples' coordinates
given   what the model computes at the site on inputs of one's choice: one for all samples, or one each
"""

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from mechint_core.features.attribution._attributed_answer import Answer
from mechint_core.features.attribution._attribution_question import Reference


class Baseline:
    """The baseline's coordinates for any rows of the samples."""

    def __init__(self, answer: Answer, kind: Reference) -> None:
        self._answer = answer
        given = answer.samples.baseline
        self._inputs = None if given is None else answer.tensor(given)
        self._row: Tensor | None = None
        if self._inputs is None and kind == "mean":
            self._row = _mean(answer)
        elif self._inputs is not None and len(self._inputs) == 1:
            self._row = answer.coordinates(self._inputs)

    def of(self, rows: Int[Tensor, "row"], like: Num[Tensor, "row ..."]) -> Num[Tensor, "row ..."]:
        """Return the baseline of `rows`, whose own coordinates are `like`."""
        if self._row is not None:
            return self._row.expand_as(like)
        if self._inputs is not None:
            return self._answer.coordinates(self._inputs[rows])
        return torch.zeros_like(like)

    def ends(self) -> tuple[Float[Tensor, "sample"], Float[Tensor, "sample"]]:
        """Return the answer at every sample, and at its baseline."""
        own, start = list[Tensor](), list[Tensor]()
        for rows in self._answer.batches(self._answer.n_samples):
            z = self._answer.coordinates(self._answer.inputs[rows])
            own.append(self._answer.values(z, rows))
            start.append(self._answer.values(self.of(rows, z), rows))
        return torch.cat(own), torch.cat(start)


def _mean(answer: Answer) -> Num[Tensor, "1 ..."]:
    total = torch.zeros((), dtype=torch.float64, device=answer.inputs.device)
    for rows in answer.batches(answer.n_samples):
        total = total + answer.coordinates(answer.inputs[rows]).sum(dim=0, keepdim=True, dtype=torch.float64)
    return (total / answer.n_samples).to(answer.precision)
