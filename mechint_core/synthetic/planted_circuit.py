"""A network in which it is known which parts suffice and which are needed, AND and OR included.

    v_k = s              the report of part k, if it belongs to the circuit
    m   = q min_g max_{k in g} q v_k
    logits = (-m, m)

A prompt asks for one of two answers, q = +1 or -1, and carries a signal s: the strength t > 0 of that answer when
clean (s = q t), and of the other one when corrupted (s = -q t). The circuit is a tuple of groups: every group must be
intact (AND), and one intact member keeps a group intact (OR). With ((0,), (1,), (2, 3)):

    0 and 1 are an AND-pair    each is needed: corrupting one loses all, restoring one alone brings back nothing
    2 and 3 are an OR-pair     backups of each other: corrupting one loses nothing, either of them will do
    {0, 1, 2} and {0, 1, 3}    are the minimal circuits; a set of parts suffices if and only if it holds one of them

All parts, those of the circuit too, also write noise that depends on the prompt; the answer does not read it.

Source: [@heimersheim2024] for AND, OR and which patching shows them.
"""

from collections.abc import Iterable, Sequence
from itertools import chain, product
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechint_core.errors import ConfigurationError
from mechint_core.random import generator, torch_generator

N_NUISANCE: Final = 4
"""Inputs, besides question and signal, that only noise depends on; and units of that noise."""


class PlantedCircuit(nn.Module):
    """Parts `parts.0`, `parts.1`, ... that write into a common `stream`, and the `answer` that reads it.

    Parameters
    ----------
    groups
        The circuit: parts, by number, that back each other up; all groups are needed.
    n_parts
        Parts in all, at most 16, so that a search over all subsets ends.
    seed
        Of the noise.

    Raises
    ------
    ConfigurationError
        If a group is empty, a part is in two places or does not exist, or there are too many.

    Examples
    --------
    >>> network = PlantedCircuit(((0,), (1, 2)), n_parts=4)
    >>> [sorted(each) for each in network.minimal_circuits]
    [[0, 1], [0, 2]]
    >>> network.suffices({0, 2, 3}), network.suffices({1, 2})
    (True, False)
    """

    def __init__(
        self, groups: Sequence[Sequence[int]] = ((0,), (1,), (2, 3)), *, n_parts: int = 8, seed: int = 0
    ) -> None:
        super().__init__()
        members = list(chain.from_iterable(groups))
        if not groups or not all(groups) or len(set(members)) < len(members) or not set(members) <= set(range(n_parts)):
            raise ConfigurationError(f"groups must not be empty, and share no part of the {n_parts}. Got {groups}.")
        if n_parts > 16:
            raise ConfigurationError(f"n_parts must be at most 16. Got {n_parts}.")
        self.groups = tuple(tuple(group) for group in groups)
        self.needed = frozenset(group[0] for group in self.groups if len(group) == 1)
        """Parts without a backup: those that every circuit holds."""
        self.minimal_circuits = frozenset(frozenset(chosen) for chosen in product(*self.groups))
        """All sets of parts that suffice and of which none can be left out."""
        self.sites = tuple(f"parts.{k}" for k in range(n_parts))
        draws = torch_generator(seed, "planted_circuit")
        self.question = _silent(n_parts)
        with torch.no_grad():
            self.question.weight[0, 0] = 1
            self.parts = nn.ModuleList(_part(k, n_parts, reports=k in members, draws=draws) for k in range(n_parts))
        self.stream = nn.Identity()
        self.answer = _Answer(self.groups)

    def forward(self, x: Float[Tensor, "sample unit"]) -> Float[Tensor, "row 2"]:
        """Return the logits of the answers q = -1 and q = +1 to prompts (question, signal, nuisance ...)."""
        return self.answer(self.stream(sum((part(x) for part in self.parts), start=self.question(x))))

    def suffices(self, parts: Iterable[int]) -> bool:
        """Return whether the clean answer is kept where only `parts` are clean."""
        kept = set(parts)
        return all(kept & set(group) for group in self.groups)


def planted_prompts(n_prompts: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Return prompts and the same with the opposite signal.

    Parameters
    ----------
    n_prompts
        Number of pairs, at least 1.
    seed
        Of the draws.

    Returns
    -------
    dict
        `clean` and `corrupted` (sample, unit), with the same question, the opposite signal, of a strength between 0.5
        and 1.5, and other nuisance; `target` and `corrupted_target` (sample), 0 or 1.

    Raises
    ------
    ConfigurationError
        If there is no prompt.
    """
    if n_prompts < 1:
        raise ConfigurationError(f"there must be at least 1 prompt. Got {n_prompts}.")
    draws = generator(seed, "planted_prompts")
    target = draws.permutation(np.arange(n_prompts) % 2)
    question, strength = 2.0 * target - 1, draws.uniform(0.5, 1.5, n_prompts)
    clean, corrupted = (
        np.column_stack([question, sign * question * strength, draws.standard_normal((n_prompts, N_NUISANCE))])
        for sign in (1, -1)
    )
    return {"clean": clean, "corrupted": corrupted, "target": target, "corrupted_target": 1 - target}


class _Answer(nn.Module):
    """The strength of the asked answer in the weakest group, each as strong as its strongest member."""

    def __init__(self, groups: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.groups = [[1 + k for k in group] for group in groups]

    def forward(self, stream: Float[Tensor, "row unit"]) -> Float[Tensor, "row 2"]:
        question = stream[:, :1]
        agreement = question * stream
        strongest = [agreement[:, group].amax(dim=1, keepdim=True) for group in self.groups]
        answer = question * torch.cat(strongest, dim=1).amin(dim=1, keepdim=True)
        return torch.cat([-answer, answer], dim=1)


def _part(k: int, n_parts: int, *, reports: bool, draws: torch.Generator) -> nn.Linear:
    """Return a part that writes the signal into its own unit, if it reports, and random mixtures into the noise."""
    part = _silent(n_parts)
    part.weight[1 + k, 1] = float(reports)
    part.weight[1 + n_parts :] = torch.randn(N_NUISANCE, 2 + N_NUISANCE, generator=draws, dtype=torch.float64)
    return part


def _silent(n_parts: int) -> nn.Linear:
    """Return a map from (question, signal, nuisance ...) to (question, report of each part, noise ...) that is 0."""
    layer = nn.Linear(2 + N_NUISANCE, 1 + n_parts + N_NUISANCE, bias=False, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    return layer
