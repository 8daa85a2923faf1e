"""Shapley values of a game: exact, by permutations, or by a regression over coalitions.

    phi_i = sum_{S without i} |S|! (n - |S| - 1)! / n! (v(S + i) - v(S))                                exact

    phi_i = mean over orders of v(those before i, and i) - v(those before i)                            permutation
            an order and its reverse make one draw; their errors tend to cancel

    phi   = argmin sum_S w(|S|) (v(S) - v(0) - sum_{i in S} phi_i)^2,  sum_i phi_i = v(all) - v(0)      kernel
            w(s) = (n - 1) / (C(n, s) s (n - s)); coalitions drawn by w, each with its complement

All three give sum_i phi_i = v(all) - v(none) whatever the draws.

Source: [@shapley1953]; [@castro2009], [@mitchell2022] for permutations; [@lundberg2017], [@covert2021] for the kernel.
Cost: values of v per sample: 2^n; 2 n n_pairs; n_coalitions.
"""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import comb

Worth = Callable[[Int[np.ndarray, "pair"], Bool[np.ndarray, "pair player"]], Float[np.ndarray, "pair"]]
"""(sample of each pair, players present) -> v."""

MASK_CELLS: Final = 2**24
"""Presences (coalition x player) held at once."""


class Shapley(NamedTuple):
    """Values of every sample's players, and their sampling error."""

    value: Float[np.ndarray, "sample player"]
    standard_error: Float[np.ndarray, "sample player"]
    """0 where every coalition was asked for."""
    change: Float[np.ndarray, "sample"]
    """v(all) - v(none)."""
    n_coalitions: float
    """Values of v per sample."""
    complete: bool
    """Whether these were all."""


def exact(worth: Worth, n_samples: int, n_players: int) -> Shapley:
    """Enumerate all coalitions."""
    present = (np.arange(2**n_players)[:, None] >> np.arange(n_players)) & 1 == 1
    size = present.sum(axis=1)
    joining = np.array([1 / (n_players * math.comb(n_players - 1, s)) for s in range(n_players)])
    weight = np.where(present, joining[size - 1, None], -joining[np.minimum(size, n_players - 1), None])
    v = np.stack([worth(np.full(len(present), row), present) for row in range(n_samples)])
    value = v @ weight
    return Shapley(value, np.zeros_like(value), v[:, -1] - v[:, 0], len(present), complete=True)


def by_permutations(
    worth: Worth,
    differs: Bool[np.ndarray, "sample player"],
    *,
    n_pairs: int,
    rng: np.random.Generator,
) -> Shapley:
    """Average marginal contributions over `n_pairs` orders and their reverses, drawn for each sample.

    Players who do not differ from their baseline are worth nothing, and take no part.
    """
    n_samples, n_players = differs.shape
    ends = _ends(worth, n_samples, n_players)
    first, second = np.zeros((2, n_samples, n_players))
    for _ in range(n_pairs):
        rank = np.argsort(np.argsort(rng.random(differs.shape) + ~differs, axis=1), axis=1)  # who is idle comes last
        reverse = np.where(differs, differs.sum(axis=1, keepdims=True) - 1 - rank, rank)
        pair = (_marginals(worth, rank, differs, ends) + _marginals(worth, reverse, differs, ends)) / 2
        first += pair / n_pairs
        second += pair**2 / n_pairs
    variance = np.maximum(second - first**2, 0) / max(n_pairs - 1, 1)
    asked = 2 + 2 * n_pairs * float(np.maximum(differs.sum(axis=1) - 1, 0).mean())
    return Shapley(first, np.sqrt(variance), ends[1] - ends[0], asked, complete=False)


def by_kernel(
    worth: Worth,
    n_samples: int,
    n_players: int,
    *,
    n_coalitions: int,
    rng: np.random.Generator,
) -> Shapley:
    """Regress v on the players' presence, over the same coalitions for all samples."""
    present, weight, drawn = _kernel_coalitions(n_players, n_coalitions, rng)
    none, everyone = _ends(worth, n_samples, n_players)
    v = np.stack([worth(np.full(len(present), row), present) for row in range(n_samples)])
    # The last player takes what the others leave: phi_n = v(all) - v(none) - sum of the others.
    last = present[:, -1:].astype(np.float64)
    design = (present[:, :-1] - last) * np.sqrt(weight)[:, None]
    wanted = (v - none[:, None] - last[:, 0] * (everyone - none)[:, None]) * np.sqrt(weight)
    solve = np.linalg.pinv(design)
    others = wanted @ solve.T
    value = np.column_stack([others, everyone - none - others.sum(axis=1)])
    error = _clustered_error(solve, wanted - others @ design.T) if drawn else np.zeros_like(value)
    return Shapley(value, error, everyone - none, len(present) + 2, complete=not drawn)


def _ends(
    worth: Worth, n_samples: int, n_players: int
) -> tuple[Float[np.ndarray, "sample"], Float[np.ndarray, "sample"]]:
    """Return v(none) and v(all)."""
    rows = np.arange(n_samples)
    none, everyone = (np.full((n_samples, n_players), each) for each in (False, True))
    return worth(rows, none), worth(rows, everyone)


def _marginals(
    worth: Worth,
    rank: Int[np.ndarray, "sample player"],
    differs: Bool[np.ndarray, "sample player"],
    ends: tuple[Float[np.ndarray, "sample"], Float[np.ndarray, "sample"]],
) -> Float[np.ndarray, "sample player"]:
    """Return what each player adds to those of lower rank."""
    n_players = rank.shape[1]
    walk = np.repeat(ends[1][:, None], n_players + 1, axis=1)  # v after 0, 1, ... players have come
    walk[:, 0] = np.where(differs.any(axis=1), ends[0], ends[1])
    sample, step = np.nonzero(np.arange(n_players) < differs.sum(axis=1, keepdims=True))
    sample, step = sample[step > 0], step[step > 0]
    for part in np.array_split(np.arange(len(sample)), max(1, -(-len(sample) * n_players // MASK_CELLS))):
        if len(part):
            walk[sample[part], step[part]] = worth(sample[part], rank[sample[part]] < step[part][:, None])
    return np.take_along_axis(np.diff(walk, axis=1), rank, axis=1)


def _kernel_coalitions(
    n_players: int, n_coalitions: int, rng: np.random.Generator
) -> tuple[Bool[np.ndarray, "coalition player"], Float[np.ndarray, "coalition"], bool]:
    """Return coalitions, their weights, and whether they were drawn: all of them where that is not more."""
    sizes = np.arange(1, n_players)
    if n_players < 24 and 2**n_players - 2 <= n_coalitions:
        present = (np.arange(1, 2**n_players - 1)[:, None] >> np.arange(n_players)) & 1 == 1
        size = present.sum(axis=1)
        return present, (n_players - 1) / (comb(n_players, size) * size * (n_players - size)), False
    chance = 1 / (sizes * (n_players - sizes))
    size = rng.choice(sizes, size=n_coalitions // 2, p=chance / chance.sum())
    rank = np.argsort(rng.random((len(size), n_players)), axis=1)
    half = rank < size[:, None]
    present = np.stack([half, ~half], axis=1).reshape(-1, n_players)  # each beside its complement
    return present, np.ones(len(present)), True


def _clustered_error(
    solve: Float[np.ndarray, "free coalition"], residual: Float[np.ndarray, "sample coalition"]
) -> Float[np.ndarray, "sample player"]:
    """Return standard errors of a regression whose residuals come in pairs: a coalition and its complement."""
    weight = np.vstack([solve, -solve.sum(axis=0)])
    by_pair = np.stack([(weight * each).reshape(len(weight), -1, 2).sum(axis=2) for each in residual])
    n_pairs, n_free = by_pair.shape[2], len(solve)
    return np.sqrt((by_pair**2).sum(axis=2) * n_pairs / max(n_pairs - n_free, 1))
