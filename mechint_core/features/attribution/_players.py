"""The game whose Shapley values attribute an answer: who the players are, and what a coalition is worth.

    v(S) = f(z_S)       z_S has the sample's coordinates of the parts in S, the baseline's of the others

or, with whole sites as players, the answer when every site outside S gives the baseline's activation, and those in S
compute with what they then receive.
"""

from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from mechint_core.errors import ConfigurationError
from mechint_core.features.attribution._attributed_answer import Answer
from mechint_core.features.attribution._attribution_question import AttributionConfig, Reference, Samples
from mechint_core.features.attribution._baseline import Baseline
from mechint_core.features.attribution._coalitions import Worth
from mechint_core.features.attribution._parts import Parts, parts_of
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.models import match_sites, rewritten


class PartsGame:
    """The parts of one site, or of the input, as players."""

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        dictionary: SparseDictionary | None,
        config: AttributionConfig,
        kind: Reference,
    ) -> None:
        tokens = samples.inputs.dtype.kind != "f" and not config.site and samples.baseline is not None
        if tokens and config.parts != "position":
            raise ConfigurationError(f"tokens have positions only. Got parts={config.parts!r}. Use 'position'.")
        self.answer = Answer(model, samples, dictionary, config, integers=tokens)
        self._baseline = Baseline(self.answer, kind)
        self._parts: Parts = parts_of(self.answer, self.answer.coordinates(self.answer.inputs[:1]).shape[1:])
        self.names = self._parts.names

    def differs(self, rows: Int[Tensor, "row"]) -> Bool[np.ndarray, "row player"]:
        """Return which players are not what they are in the baseline."""
        z, start = self._ends(rows)
        return (self._parts.sums((z != start).double()) > 0).cpu().numpy()

    def worth(self, rows: Int[Tensor, "row"], players: Int[np.ndarray, "player"]) -> Worth:
        """Return v of coalitions of `players` for the samples `rows`; all other players are absent."""
        z, start = self._ends(rows)
        owner, device = self._parts.owner, rows.device

        def v(of: Int[np.ndarray, "pair"], present: Bool[np.ndarray, "pair player"]) -> Float[np.ndarray, "pair"]:
            found = np.empty(len(of))
            for batch in self.answer.batches(len(of)):
                at, there = batch.cpu().numpy(), torch.zeros(len(batch), len(self.names), dtype=torch.bool)
                there[:, players] = torch.from_numpy(present[at])
                sample = torch.from_numpy(of[at]).to(device)
                mixed = torch.where(there.to(device)[:, owner], z[sample], start[sample])
                found[at] = self.answer.values(mixed, rows[sample]).cpu().numpy()
            return found

        return v

    def _ends(self, rows: Int[Tensor, "row"]) -> tuple[Num[Tensor, "row ..."], Num[Tensor, "row ..."]]:
        z = self.answer.coordinates(self.answer.inputs[rows])
        return z, self._baseline.of(rows, z)


class SitesGame:
    """Whole sites as players."""

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        dictionary: SparseDictionary | None,
        config: AttributionConfig,
        kind: Reference,
    ) -> None:
        if dictionary is not None or config.n_heads or not config.site:
            raise ConfigurationError(
                "sites as players need a glob in config.site, and no dictionary or n_heads. "
                f"Got site={config.site!r}, n_heads={config.n_heads}."
            )
        self.names = match_sites(model, [config.site])
        self._answers = [Answer(model, samples, None, replace(config, site=name)) for name in self.names]
        self._baselines = [Baseline(each, kind) for each in self._answers]
        self.answer = min(self._answers, key=lambda each: each.batch_rows)

    def differs(self, rows: Int[Tensor, "row"]) -> Bool[np.ndarray, "row player"]:
        """Return which sites may matter: all, for what one gives depends on the others."""
        return np.ones((len(rows), len(self.names)), dtype=bool)

    def worth(self, rows: Int[Tensor, "row"], players: Int[np.ndarray, "player"]) -> Worth:
        """Return v of coalitions of `players` for the samples `rows`."""
        starts = [
            baseline.of(rows, answer.coordinates(answer.inputs[rows]))
            for answer, baseline in zip(self._answers, self._baselines, strict=True)
        ]

        def v(of: Int[np.ndarray, "pair"], present: Bool[np.ndarray, "pair player"]) -> Float[np.ndarray, "pair"]:
            found = np.empty(len(of))
            for batch in self.answer.batches(len(of)):
                at = batch.cpu().numpy()
                sample = torch.from_numpy(of[at]).to(rows.device)
                there = torch.from_numpy(present[at]).to(rows.device)
                found[at] = self._answer_with(
                    there, [starts[player][sample] for player in players], rows[sample], players
                )
            return found

        return v

    def _answer_with(
        self, there: Bool[Tensor, "pair player"], starts: list[Tensor], rows: Tensor, players: np.ndarray
    ) -> Float[np.ndarray, "pair"]:
        with ExitStack() as hooks, torch.no_grad():
            for column, player in enumerate(players):
                answer = self._answers[player]
                keep = partial(_kept, there[:, column], starts[column])
                hooks.enter_context(rewritten(answer.model, answer.site, partial(_exchanged, answer, keep)))
            return self.answer.own(rows).cpu().numpy()


def _exchanged(answer: Answer, keep: partial[Tensor], activation: Tensor) -> Tensor:
    return answer.exchanged(activation, keep)


def _kept(there: Bool[Tensor, "row"], start: Tensor, z: Tensor) -> Tensor:
    return torch.where(there.reshape(-1, *[1] * (z.ndim - 1)), z, start)
