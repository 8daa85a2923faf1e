"""An attention-only transformer whose circuit is known: "... A B ... A" is continued by B.

    head 1 of layer 0   previous-token head   attends from i to i - 1, writes which token is there
    head 0 of layer 1   induction head        attends from the last A to where "previous token" is A: the place of B,
                                              and writes the token there into the answer

The residual stream is made of subspaces that are orthogonal by construction:

    token | place | previous token | answer | spare

The read-out sees `answer` only. All other heads read the whole stream at random and write into `spare`, which no head
of the circuit reads: they are busy, and nothing depends on them. So the circuit's edges are exactly `INDUCTION_EDGES`,
and cutting all others changes no bit of the logits.

Source: [@elhage2021], [@olsson2022].
"""

from typing import Final, Literal, get_args

import numpy as np
import torch
from jaxtyping import Int

from mechint_core.errors import ConfigurationError
from mechint_core.random import generator, torch_generator
from mechint_core.synthetic.small_transformer import Edge, SmallTransformer

Change = Literal["prompt", "first", "second", "last"]

BOS: Final = 0
"""Token that begins every sequence; letters are 1, 2, ..."""
PREVIOUS_HEAD: Final = "layers.0.attention.1"
INDUCTION_HEAD: Final = "layers.1.attention.0"

INDUCTION_POSITION_EDGES: Final[frozenset[Edge]] = frozenset(
    {("input", f"{PREVIOUS_HEAD}:query"), ("input", f"{PREVIOUS_HEAD}:key")}
)
"""Edges of the circuit that carry places only. They are the same in every prompt, so that no exchange of activations
between prompts can show them; cutting them to zero does."""

INDUCTION_EDGES: Final[frozenset[Edge]] = INDUCTION_POSITION_EDGES | {
    ("input", f"{PREVIOUS_HEAD}:value"),
    (PREVIOUS_HEAD, f"{INDUCTION_HEAD}:key"),
    ("input", f"{INDUCTION_HEAD}:query"),
    ("input", f"{INDUCTION_HEAD}:value"),
    (INDUCTION_HEAD, "output"),
}
"""The true circuit: all edges on which the answer depends."""

CHANGED_EDGES: Final[dict[Change, frozenset[Edge]]] = {
    "prompt": INDUCTION_EDGES - INDUCTION_POSITION_EDGES,
    "first": frozenset(
        {
            ("input", f"{PREVIOUS_HEAD}:value"),
            (PREVIOUS_HEAD, f"{INDUCTION_HEAD}:key"),
            (INDUCTION_HEAD, "output"),
        }
    ),
    "second": frozenset({("input", f"{INDUCTION_HEAD}:value"), (INDUCTION_HEAD, "output")}),
    "last": frozenset({("input", f"{INDUCTION_HEAD}:query"), (INDUCTION_HEAD, "output")}),
}
"""The edges through which each change of the prompt changes the answer: those that patching between the pair can show.
Through any other edge of the circuit less than a thousandth of the answer goes, and through all other edges nothing."""


def induction_model(
    *,
    n_letters: int = 12,
    n_positions: int = 12,
    n_heads: int = 4,
    n_spare: int = 8,
    sharpness: float = 12.0,
    gain: float = 10.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> SmallTransformer:
    """Return the transformer with its circuit set by hand and its other heads drawn at random.

    Parameters
    ----------
    n_letters
        Tokens besides the one that begins a sequence; at least 5.
    n_positions
        Longest sequence.
    n_heads
        Heads per layer, at least 2. One of each layer belongs to the circuit.
    n_spare
        Units that the other heads write into.
    sharpness
        Score of what a head of the circuit looks for, above 0 for everything else. It attends elsewhere with weight of
        about n_positions exp(-sharpness); the larger, the smaller are gradients through its queries and keys.
    gain
        Logit of the answer, the other letters' being near 0.
    seed
        Of the other heads.
    dtype
        Of the weights.

    Returns
    -------
    SmallTransformer
        Two layers, attention only, causal; logits (sample, position, class) over BOS and letters.

    Raises
    ------
    ConfigurationError
        If a size, the sharpness or the gain is too small.

    Examples
    --------
    >>> model = induction_model()
    >>> int(model(torch.tensor([[0, 5, 3, 7, 1, 3]]))[0, -1].argmax())
    7
    """
    if n_letters < 5 or n_positions < 6 or n_heads < 2 or n_spare < 1 or min(sharpness, gain) <= 0:
        raise ConfigurationError(
            "the model needs at least 5 letters, 6 positions, 2 heads and 1 spare unit, and positive sharpness and "
            f"gain. Got {n_letters}, {n_positions}, {n_heads}, {n_spare}, {sharpness} and {gain}."
        )
    vocabulary = n_letters + 1
    sizes = [vocabulary, n_positions, vocabulary, vocabulary, n_spare]
    token, place, previous, answer, spare = torch.eye(sum(sizes), dtype=torch.float64).split(sizes)
    model = SmallTransformer(
        vocabulary=vocabulary,
        n_positions=n_positions,
        width=sum(sizes),
        n_layers=2,
        n_heads=n_heads,
        head_width=max(vocabulary, n_positions),
        dtype=dtype,
    ).clear()
    draws = torch_generator(seed, "induction_model")
    for layer in range(2):
        for head in range(n_heads):
            model.attention_of(layer).draw_head(head, spare, draws)
    one_back = torch.diag(torch.ones(n_positions - 1, dtype=torch.float64), 1)
    model.attention_of(0).set_head(1, query=sharpness * one_back @ place, key=place, value=token, output=previous.T)
    model.attention_of(1).set_head(0, query=sharpness * token, key=previous, value=token, output=answer.T)
    model.embed.token.data.copy_(token)
    model.embed.position.data.copy_(place)
    model.unembed.weight.data.copy_(gain * answer)
    return model


def induction_prompts(
    n_prompts: int, *, change: Change = "prompt", n_letters: int = 12, length: int = 12, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return prompts "... A B ... C D ... A" (in either order), and the same changed so that D is the answer.

    A, B, C and D are four letters drawn anew for each prompt, and occur nowhere else in it. The change is one of

        prompt   another prompt: C at the end, both pairs elsewhere, other fillers; all edges that carry tokens
        first    A and C change places where they are first seen: what the previous-token head reports
        second   B and D change places: what the induction head copies
        last     C at the end: what the induction head looks for

    Parameters
    ----------
    n_prompts
        Number of pairs, at least 1.
    change
        How corrupted differs from clean; `CHANGED_EDGES` says which edges carry the difference.
    n_letters, length
        At most what the model has; at least 5 and 6.
    seed
        Of the draws.

    Returns
    -------
    dict
        `clean` and `corrupted` (sample, position), `target` (B) and `corrupted_target` (D) (sample). The answer is read
        at the last position.

    Raises
    ------
    ConfigurationError
        If there is no such change, or a size is too small.
    """
    if change not in get_args(Change):
        raise ConfigurationError(f"change must be one of {', '.join(get_args(Change))}. Got {change!r}.")
    if n_prompts < 1 or n_letters < 5 or length < 6:
        raise ConfigurationError(
            f"there must be at least 1 prompt, 5 letters, 6 positions. Got {n_prompts}, {n_letters}, {length}."
        )
    draws = generator(seed, "induction_prompts")
    letters = draws.permuted(np.tile(np.arange(1, n_letters + 1), (n_prompts, 1)), axis=1)
    a, b, c, d = letters[:, :4].T
    n_places = length // 2 - 1  # pairs begin at 1, 3, 5, ...
    first = draws.permuted(np.tile(np.arange(n_places), (n_prompts, 1)), axis=1)[:, :2]
    elsewhere = (first + draws.integers(1, n_places, (n_prompts, 1))) % n_places

    def prompts(pairs: list[np.ndarray], places: np.ndarray, last: np.ndarray, fillers: np.ndarray) -> np.ndarray:
        made, rows = fillers.copy(), np.arange(n_prompts)
        made[:, 0], made[:, -1] = BOS, last
        for (opener, follower), place in zip(zip(pairs[::2], pairs[1::2], strict=True), places.T, strict=True):
            made[rows, 2 * place + 1], made[rows, 2 * place + 2] = opener, follower
        return made

    fillers, others = (_fillers(letters[:, 4:], length, draws) for _ in range(2))
    corrupted = {
        "prompt": ([a, b, c, d], elsewhere, c, others),
        "first": ([c, b, a, d], first, a, fillers),
        "second": ([a, d, c, b], first, a, fillers),
        "last": ([a, b, c, d], first, c, fillers),
    }
    return {
        "clean": prompts([a, b, c, d], first, a, fillers),
        "corrupted": prompts(*corrupted[change]),
        "target": b,
        "corrupted_target": d,
    }


def _fillers(
    letters: Int[np.ndarray, "sample row"], length: int, draws: np.random.Generator
) -> Int[np.ndarray, "sample position"]:
    return np.take_along_axis(letters, draws.integers(0, letters.shape[1], (len(letters), length)), axis=1)
