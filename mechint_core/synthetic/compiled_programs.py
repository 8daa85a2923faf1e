"""Two programs compiled by hand into transformers: every weight, and so every edge of the circuit, is known.

reverse, on BOS t_1 ... t_n PAD ... PAD, with position 0 at BOS and T positions in all

    layer 0, head 0    attends everywhere alike to "is a letter"        count = n
    layer 0, mlp       count to one-hot, by second differences of relu(count - m)
    layer 1, mlp       length n AND position i                          goal = n + 1 - i on letters, i elsewhere
    layer 2, head 0    attends from i to its goal, copies the token     t_{n+1-i}

fraction of previous tokens, on BOS t_1 ... t_n

    layer 0, mlp       is_x = relu(token is x)
    layer 1, head 0    attends from i to 1 ... i alike, averages is_x   #{j <= i: t_j = x} / i

Each variable has a subspace of the residual stream to itself, and the read-out sees that of the answer only. All other
heads and mlps read the whole stream at random and write into spare units that no part of the program reads.

Attention is all but hard, so that gradients through queries and keys are near 1e-8, and a squared distance from the
clean output has none at all there: attribution by one gradient is put to a test that integrated gradients pass.

Source: [@lindner2023] for the programs and the idea; the weights are our own.
"""

from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechint_core.errors import ConfigurationError
from mechint_core.random import generator, torch_generator
from mechint_core.synthetic.small_transformer import Edge, SmallTransformer

BOS: Final = 0
"""Token that begins every sequence; letters are 1 ... n_letters, and PAD is the token after the last letter."""
SHARPNESS: Final = 20.0
"""Score of what a head looks for, 0 being that of all else: any other place gets a weight of at most 2.1e-9."""
N_HEADS: Final = 2
N_SPARE: Final = 8

REVERSE_POSITION_EDGES: Final[frozenset[Edge]] = frozenset(
    {("input", "layers.1.mlp"), ("input", "layers.2.attention.0:key")}
)
"""Edges that carry places only: the same in every prompt, so that no exchange of activations between prompts can show
them; cutting them to zero does."""

REVERSE_EDGES: Final[frozenset[Edge]] = REVERSE_POSITION_EDGES | {
    ("input", "layers.0.attention.0:value"),
    ("layers.0.attention.0", "layers.0.mlp"),
    ("layers.0.mlp", "layers.1.mlp"),
    ("layers.1.mlp", "layers.2.attention.0:query"),
    ("input", "layers.2.attention.0:value"),
    ("layers.2.attention.0", "output"),
}
"""All edges of the program that reverses."""

FRACTION_POSITION_EDGES: Final[frozenset[Edge]] = frozenset(
    {("input", "layers.1.attention.0:query"), ("input", "layers.1.attention.0:key")}
)
"""Edges that carry places only."""

FRACTION_EDGES: Final[frozenset[Edge]] = FRACTION_POSITION_EDGES | {
    ("input", "layers.0.mlp"),
    ("layers.0.mlp", "layers.1.attention.0:value"),
    ("layers.1.attention.0", "output"),
}
"""All edges of the program that computes fractions."""


def reverse_model(
    *, n_letters: int = 3, max_length: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64
) -> SmallTransformer:
    """Return a transformer whose most likely tokens are the reversed sequence; BOS and PAD stay where they are.

    Parameters
    ----------
    n_letters
        Tokens besides BOS and PAD.
    max_length
        Most letters of a sequence. Inputs have max_length + 1 positions always: BOS, the letters, PAD to the end.
    seed
        Of the parts that do not matter.
    dtype
        Of the weights.

    Returns
    -------
    SmallTransformer
        Three layers, not causal. Outputs (sample, position, class): 1 at the answer and 0 elsewhere, to 2.1e-9 per
        position.

    Raises
    ------
    ConfigurationError
        If there is not at least 1 letter and a maximal length of 1.

    Examples
    --------
    >>> model = reverse_model(n_letters=3, max_length=5)
    >>> model(torch.tensor([[0, 1, 2, 3, 4, 4]])).argmax(dim=-1).tolist()
    [[0, 3, 2, 1, 4, 4]]
    """
    _check_sizes(n_letters, max_length)
    n_tokens, n_positions = n_letters + 2, max_length + 1
    sizes = [n_tokens, n_positions, 1, n_positions, n_positions, n_tokens, N_SPARE]
    token, place, count, length, goal, answer, spare = _subspaces(sizes)
    model = _blank(n_tokens, n_positions, sizes, n_layers=3, n_hidden=n_positions**2, dtype=dtype)
    _distract(model, spare, torch_generator(seed, "reverse_model"))

    is_letter, nothing = token[1:-1].sum(dim=0, keepdim=True), torch.zeros_like(count)
    model.attention_of(0).set_head(0, query=nothing, key=nothing, value=n_positions * is_letter, output=count.T)
    model.mlp_of(0).set_units(**_one_hot(count, length))
    model.mlp_of(1).set_units(**_goals(length, place, goal))
    model.attention_of(2).set_head(0, query=SHARPNESS * goal, key=place, value=token, output=answer.T)
    return _embed_and_read_out(model, token, place, answer)


def fraction_of_previous_model(
    *, n_letters: int = 3, max_length: int = 5, letter: int = 1, seed: int = 0, dtype: torch.dtype = torch.float64
) -> SmallTransformer:
    """Return a transformer that gives at each position the share of tokens so far, itself included, that are `letter`.

    Parameters
    ----------
    n_letters
        Tokens besides BOS.
    max_length
        Most letters of a sequence; shorter ones need no padding.
    letter
        The token whose share is computed, 1 ... n_letters.
    seed
        Of the parts that do not matter.
    dtype
        Of the weights.

    Returns
    -------
    SmallTransformer
        Two layers, not causal. Outputs (sample, position, 1): the share, in [0, 1], to 2.1e-9 per position; BOS
        does not count, and 0 is returned there.

    Raises
    ------
    ConfigurationError
        If there is not at least 1 letter and a maximal length of 1, or no such letter.

    Examples
    --------
    >>> model = fraction_of_previous_model(letter=2)
    >>> [round(share, 3) for share in model(torch.tensor([[0, 1, 2, 2, 3]]))[0, 1:, 0].tolist()]
    [0.0, 0.5, 0.667, 0.5]
    """
    _check_sizes(n_letters, max_length)
    if not 1 <= letter <= n_letters:
        raise ConfigurationError(f"letter must be one of 1 ... {n_letters}. Got {letter}.")
    n_tokens, n_positions = n_letters + 1, max_length + 1
    sizes = [n_tokens, n_positions, 1, 1, N_SPARE]
    token, place, is_x, answer, spare = _subspaces(sizes)
    model = _blank(n_tokens, n_positions, sizes, n_layers=2, n_hidden=N_SPARE, dtype=dtype, n_outputs=1)
    _distract(model, spare, torch_generator(seed, "fraction_of_previous_model"))

    up_to = torch.ones(n_positions, n_positions, dtype=torch.float64).triu()  # column i: the positions 0 ... i
    up_to[0, 1:] = 0  # of which BOS counts for itself alone
    model.mlp_of(0).set_units(read=token[letter : letter + 1], bias=torch.zeros(1), write=is_x.T)
    model.attention_of(1).set_head(0, query=SHARPNESS * up_to @ place, key=place, value=is_x, output=answer.T)
    return _embed_and_read_out(model, token, place, answer)


def reverse_prompts(
    n_prompts: int, *, n_letters: int = 3, max_length: int = 5, seed: int = 0
) -> dict[str, Int[np.ndarray, "..."]]:
    """Return pairs of sequences of different length, and the first letter of each reversed.

    Parameters
    ----------
    n_prompts
        Number of pairs, at least 1.
    n_letters, max_length
        Of the model; at least 2.
    seed
        Of the draws.

    Returns
    -------
    dict
        `clean` and `corrupted` (sample, position), of 1 ... max_length letters each; `target` and `corrupted_target`
        (sample), two different letters: their last, which is the answer at position 1.

    Raises
    ------
    ConfigurationError
        If a size is too small.
    """
    if n_prompts < 1 or min(n_letters, max_length) < 2:
        raise ConfigurationError(
            f"there must be at least 1 prompt, 2 letters and a maximal length of 2. "
            f"Got {n_prompts}, {n_letters} and {max_length}."
        )
    draws = generator(seed, "reverse_prompts")
    lengths = draws.permuted(np.tile(np.arange(1, max_length + 1), (n_prompts, 1)), axis=1)[:, :2]
    last = draws.permuted(np.tile(np.arange(1, n_letters + 1), (n_prompts, 1)), axis=1)[:, :2]
    rows, at = np.arange(n_prompts), np.arange(max_length + 1)
    made: list[np.ndarray] = []
    for length, letter in zip(lengths.T, last.T, strict=True):
        tokens = draws.integers(1, n_letters + 1, (n_prompts, max_length + 1))
        tokens[rows, length] = letter
        tokens[at > length[:, None]] = n_letters + 1
        tokens[:, 0] = BOS
        made.append(tokens)
    return {"clean": made[0], "corrupted": made[1], "target": last[:, 0], "corrupted_target": last[:, 1]}


def fraction_prompts(
    n_prompts: int, *, n_letters: int = 3, length: int = 5, letter: int = 1, seed: int = 0
) -> dict[str, Int[np.ndarray, "..."]]:
    """Return pairs of random sequences: at every position one of the two, by lot, has `letter`, and the other has not.

    Parameters
    ----------
    n_prompts
        Number of pairs, at least 1.
    n_letters, length, letter
        Of the model: at least 2 letters, at least 1 position.
    seed
        Of the draws.

    Returns
    -------
    dict
        `clean` and `corrupted` (sample, position), BOS first. The answer is a number, so there is no target: compare
        whole outputs.

    Raises
    ------
    ConfigurationError
        If a size is too small, or there is no such letter.
    """
    if n_prompts < 1 or n_letters < 2 or length < 1 or not 1 <= letter <= n_letters:
        raise ConfigurationError(
            "there must be at least 1 prompt, 2 letters, of which letter is one, and 1 position. "
            f"Got {n_prompts}, {n_letters}, {letter} and {length}."
        )
    draws = generator(seed, "fraction_prompts")
    others = (letter + draws.integers(0, n_letters - 1, (n_prompts, length))) % n_letters + 1
    has_it = draws.random((n_prompts, length)) < 0.5
    clean, corrupted = (
        np.pad(np.where(mask, letter, others), ((0, 0), (1, 0)), constant_values=BOS) for mask in (has_it, ~has_it)
    )
    return {"clean": clean, "corrupted": corrupted}


def _subspaces(sizes: list[int]) -> tuple[Float[Tensor, "row unit"], ...]:
    """Return for each variable the matrix that reads it from the residual stream; its transpose writes it."""
    return torch.eye(sum(sizes), dtype=torch.float64).split(sizes)


def _blank(
    n_tokens: int,
    n_positions: int,
    sizes: list[int],
    *,
    n_layers: int,
    n_hidden: int,
    dtype: torch.dtype,
    n_outputs: int | None = None,
) -> SmallTransformer:
    return SmallTransformer(
        vocabulary=n_tokens,
        n_positions=n_positions,
        width=sum(sizes),
        n_layers=n_layers,
        n_heads=N_HEADS,
        head_width=max(n_tokens, n_positions),
        hidden=n_hidden,
        n_outputs=n_outputs,
        causal=False,
        activation="relu",
        dtype=dtype,
    ).clear()


def _distract(model: SmallTransformer, spare: Float[Tensor, "row unit"], draws: torch.Generator) -> None:
    """Draw every head and mlp at random; those of the program are then set over it."""
    for layer in range(len(model.layers)):
        for head in range(N_HEADS):
            model.attention_of(layer).draw_head(head, spare, draws)
        model.mlp_of(layer).draw_units(spare, draws)


def _one_hot(count: Float[Tensor, "1 unit"], length: Float[Tensor, "row unit"]) -> dict[str, Tensor]:
    """Return units relu(count - m), m = -1, 0, ..., whose second differences are 1 at m + 1 = count and 0 elsewhere."""
    n = len(length)
    peak = torch.zeros(n, n + 2, dtype=torch.float64)
    for offset, weight in enumerate((1.0, -2.0, 1.0)):
        peak.diagonal(offset).fill_(weight)
    return {"read": count.expand(n + 2, -1), "bias": -torch.arange(-1.0, n + 1), "write": length.T @ peak}


def _goals(
    length: Float[Tensor, "row unit"], place: Float[Tensor, "row unit"], goal: Float[Tensor, "row unit"]
) -> dict[str, Tensor]:
    """Return units relu(length n + position i - 1), one for each n and i, that write where i is to look."""
    n_positions = len(place)
    n, i = torch.cartesian_prod(torch.arange(n_positions), torch.arange(n_positions)).unbind(1)
    looks_at = torch.where((i >= 1) & (i <= n), n + 1 - i, i)
    return {"read": length[n] + place[i], "bias": -torch.ones(n_positions**2), "write": goal[looks_at].T}


@torch.no_grad()
def _embed_and_read_out(
    model: SmallTransformer,
    token: Float[Tensor, "row unit"],
    place: Float[Tensor, "position unit"],
    answer: Float[Tensor, "class unit"],
) -> SmallTransformer:
    model.embed.token.copy_(token)
    model.embed.position.copy_(place)
    model.unembed.weight.copy_(answer)
    return model


def _check_sizes(n_letters: int, max_length: int) -> None:
    if min(n_letters, max_length) < 1:
        raise ConfigurationError(
            f"there must be at least 1 letter and a maximal length of 1. Got {n_letters} and {max_length}."
        )
