"""A plain pre-norm transformer, small and open: random for tests of machinery, or with weights set by hand.

    x = E[token] + P          x <- x + attention(norm(x))          x <- x + mlp(norm(x))          y = U norm(x)

    attention(x)_i = c + sum_h O_h sum_j softmax_j(q_hi . k_hj / sqrt(head_width)) v_hj

It is written out, not fused, so that everything a circuit is made of is a named module:

    embed                          (sample, position, unit)           token plus position
    layers.0.attention_norm        (sample, position, unit)           LayerNorm, or Identity
    layers.0.attention             (sample, position, unit)           with query, key, value, output inside
    layers.0.attention.pattern     (sample, head, position, position) where each position attends to
    layers.0.attention.output      its input is the concatenated heads (sample, position, unit)
    layers.0.mlp_norm, layers.0.mlp (with read, hidden, write)
    final_norm, unembed            (sample, position, class)

Circuits name an edge by who writes and who reads: ("input", "layers.0.attention.1:value") is what head 1 of the first
layer takes from the embedding to make its values. Writers are `input`, heads and mlps; readers are heads (each by its
query, key and value, or as a whole), mlps and `output`.

Source: [@elhage2021].
"""

import math
from collections.abc import Iterable
from typing import Final, Literal, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mechint_core.errors import ConfigurationError, ShapeError
from mechint_core.random import torch_generator

Activation = Literal["gelu", "relu", "tanh", "identity"]
Edge = tuple[str, str]
"""(who writes, who reads)."""

ACTIVATIONS: Final = {"gelu": nn.GELU, "relu": nn.ReLU, "tanh": nn.Tanh, "identity": nn.Identity}
SMALL: Final = 0.1
"""Standard deviation of random biases, and of random gains around 1: not 0, so that forgetting them shows."""


class SmallTransformer(nn.Module):
    """Tokens (sample, position) to one row of outputs per position; no row depends on another.

    Parameters
    ----------
    vocabulary, n_positions
        Number of tokens, and the longest sequence.
    width
        Units of the residual stream.
    n_layers, n_heads
        Blocks, and attention heads in each.
    head_width
        Units of a head; None is width / n_heads.
    hidden
        Units of each mlp; 0 makes blocks of attention only.
    n_outputs
        Outputs of the read-out; None is one per token.
    n_key_value_heads
        Grouped-query attention: that many keys and values, each shared by neighbouring heads. None is one per head.
    causal
        Whether a position sees only itself and earlier ones.
    norm
        Whether a LayerNorm comes before each attention, mlp and the read-out.
    activation
        Of the mlps.
    seed
        The same seed gives the same weights in every precision, up to rounding. Outputs are of order 1.
    dtype
        Of all weights.

    Raises
    ------
    ConfigurationError
        If a size is below 1, heads do not divide the width, key-value heads do not divide the heads, or the activation
        is not known.

    Examples
    --------
    >>> model = SmallTransformer(vocabulary=5, n_layers=1, hidden=8)
    >>> model(torch.tensor([[0, 3, 1]])).shape
    torch.Size([1, 3, 5])
    """

    def __init__(
        self,
        *,
        vocabulary: int = 16,
        n_positions: int = 16,
        width: int = 16,
        n_layers: int = 2,
        n_heads: int = 2,
        head_width: int | None = None,
        hidden: int = 0,
        n_outputs: int | None = None,
        n_key_value_heads: int | None = None,
        causal: bool = True,
        norm: bool = False,
        activation: Activation = "gelu",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        n_shared = n_heads if n_key_value_heads is None else n_key_value_heads
        if min(vocabulary, n_positions, width, n_layers, n_heads, n_shared) < 1 or hidden < 0:
            raise ConfigurationError("sizes must be at least 1, and hidden at least 0. Got a smaller one.")
        if n_heads % n_shared or (head_width is None and width % n_heads):
            raise ConfigurationError(
                f"n_heads must be a multiple of n_key_value_heads and divide width, or head_width be given. "
                f"Got {n_heads} heads, {n_shared} key-value heads, width {width}."
            )
        if activation not in get_args(Activation):
            raise ConfigurationError(f"activation must be one of {', '.join(ACTIVATIONS)}. Got {activation!r}.")
        heads = (n_heads, n_shared, width // n_heads if head_width is None else head_width)
        self.embed = Embedding(vocabulary, n_positions, width)
        self.layers = nn.ModuleList(Block(width, heads, hidden, causal, norm, activation) for _ in range(n_layers))
        self.final_norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.unembed = nn.Linear(width, vocabulary if n_outputs is None else n_outputs, bias=False)
        self.to(dtype)
        _draw_weights(self, n_layers, seed)

    def forward(self, tokens: Int[Tensor, "sample position"]) -> Float[Tensor, "row position class"]:
        """Return the outputs at every position; one row per sample, unless a hook repeats rows on the way.

        Raises
        ------
        ShapeError
            If the sequences are longer than `n_positions`.
        """
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.unembed(self.final_norm(x))

    def attention_of(self, layer: int) -> "Attention":
        """Return the attention of one layer, for setting its heads by hand."""
        return cast(Block, self.layers[layer]).attention

    def mlp_of(self, layer: int) -> "Mlp":
        """Return the mlp of one layer, for setting its weights by hand; there is none where hidden is 0."""
        return cast(Block, self.layers[layer]).mlp

    @torch.no_grad()
    def clear(self) -> "SmallTransformer":
        """Set every weight to 0 (the gains of norms to 1) before weights are set by hand; return self."""
        for parameter in self.parameters():
            parameter.zero_()
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        return self


class Embedding(nn.Module):
    """Token plus position."""

    def __init__(self, vocabulary: int, n_positions: int, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(vocabulary, width))
        self.position = nn.Parameter(torch.empty(n_positions, width))

    def forward(self, tokens: Int[Tensor, "sample position"]) -> Float[Tensor, "sample position unit"]:
        """Return the residual stream before the first block."""
        length = tokens.shape[1]
        if length > len(self.position):
            raise ShapeError(f"sequences must have at most {len(self.position)} positions. Got {length}.")
        return functional.embedding(tokens, self.token) + self.position[:length]


class Block(nn.Module):
    """Attention, then an mlp (if it has one), each added to the residual stream."""

    def __init__(
        self, width: int, heads: tuple[int, int, int], hidden: int, causal: bool, norm: bool, activation: Activation
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.attention = Attention(width, *heads, causal=causal)
        self.has_mlp = hidden > 0
        if self.has_mlp:
            self.mlp_norm = nn.LayerNorm(width) if norm else nn.Identity()
            self.mlp = Mlp(width, hidden, activation)

    def forward(self, x: Float[Tensor, "sample position unit"]) -> Float[Tensor, "row position unit"]:
        """Return the residual stream after this block."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x)) if self.has_mlp else x


class Attention(nn.Module):
    """Heads side by side; head h has rows h head_width to (h + 1) head_width of query, and columns of output."""

    def __init__(self, width: int, n_heads: int, n_key_value_heads: int, head_width: int, *, causal: bool) -> None:
        super().__init__()
        self.n_heads, self.n_key_value_heads, self.head_width = n_heads, n_key_value_heads, head_width
        self.causal = causal
        self.query = nn.Linear(width, n_heads * head_width)
        self.key = nn.Linear(width, n_key_value_heads * head_width)
        self.value = nn.Linear(width, n_key_value_heads * head_width)
        self.pattern = nn.Identity()
        self.output = nn.Linear(n_heads * head_width, width)

    def forward(self, x: Float[Tensor, "sample position unit"]) -> Float[Tensor, "row position unit"]:
        """Return what all heads write."""
        query, key, value = self._heads(self.query(x)), self._heads(self.key(x)), self._heads(self.value(x))
        scores = query @ key.mT / math.sqrt(self.head_width)
        if self.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        read = self.pattern(scores.softmax(dim=-1)) @ value
        return self.output(read.transpose(1, 2).flatten(2))

    @torch.no_grad()
    def set_head(
        self,
        head: int,
        *,
        query: Float[Tensor, "row unit"],
        key: Float[Tensor, "row unit"],
        value: Float[Tensor, "column unit"],
        output: Float[Tensor, "unit column"],
    ) -> None:
        """Make `head` attend by softmax of (query x_i) . (key x_j) and write output value x_j.

        Matrices may be narrower than the head; the rest of it is 0. The scale 1 / sqrt(head_width) is divided out.

        Raises
        ------
        ConfigurationError
            If the head shares its keys and values, or a matrix is wider than it.
        """
        if self.n_key_value_heads != self.n_heads:
            raise ConfigurationError("a head set by hand must have its own keys and values. Got shared ones.")
        if max(len(query), len(value)) > self.head_width:
            raise ConfigurationError(f"matrices must fit in a head of {self.head_width}. Got a wider one.")
        first = head * self.head_width
        for linear in (self.query, self.key, self.value):
            linear.weight[first : first + self.head_width] = 0
        self.output.weight[:, first : first + self.head_width] = 0
        self.query.weight[first : first + len(query)] = query * math.sqrt(self.head_width)
        self.key.weight[first : first + len(key)] = key
        self.value.weight[first : first + len(value)] = value
        self.output.weight[:, first : first + len(value)] = output

    @torch.no_grad()
    def draw_head(self, head: int, writes: Float[Tensor, "row unit"], draws: torch.Generator) -> None:
        """Make `head` a distractor: it reads everything at random, and writes only into the rows of `writes`."""
        query, key, value = (_normal(self.head_width, self.query.in_features, draws) for _ in range(3))
        output = writes.T.double() @ _normal(len(writes), self.head_width, draws) / math.sqrt(self.head_width)
        self.set_head(head, query=query / math.sqrt(self.head_width), key=key, value=value, output=output)

    def _heads(self, x: Float[Tensor, "sample position row"]) -> Float[Tensor, "sample head position column"]:
        split = x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        return split.repeat_interleave(self.n_heads // split.shape[1], dim=1)


class Mlp(nn.Module):
    """One hidden layer; `hidden` is its activation."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.read = nn.Linear(width, hidden)
        self.hidden = ACTIVATIONS[activation]()
        self.write = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "sample position unit"]) -> Float[Tensor, "sample position unit"]:
        """Return what the mlp writes."""
        return self.write(self.hidden(self.read(x)))

    @torch.no_grad()
    def set_units(
        self, *, read: Float[Tensor, "row unit"], bias: Float[Tensor, "row"], write: Float[Tensor, "unit row"]
    ) -> None:
        """Make the first hidden units compute activation(read x + bias) and add write times that; the others idle."""
        for parameter in (self.read.weight, self.read.bias, self.write.weight):
            parameter.zero_()
        self.read.weight[: len(read)], self.read.bias[: len(read)] = read, bias
        self.write.weight[:, : len(read)] = write

    @torch.no_grad()
    def draw_units(self, writes: Float[Tensor, "row unit"], draws: torch.Generator) -> None:
        """Make it a distractor: it reads everything at random, and writes only into the rows of `writes`."""
        n_hidden, width = self.read.weight.shape
        read, write = _normal(n_hidden, width, draws), _normal(len(writes), n_hidden, draws) / math.sqrt(n_hidden)
        self.set_units(read=read, bias=torch.zeros(n_hidden), write=writes.T.double() @ write)


def whole_heads(edges: Iterable[Edge]) -> frozenset[Edge]:
    """Return `edges` between whole heads: the same, without which input of a head is read."""
    return frozenset((sender, receiver.partition(":")[0]) for sender, receiver in edges)


def _normal(n_rows: int, n_columns: int, draws: torch.Generator) -> Float[Tensor, "row column"]:
    """Draw from N(0, 1): what reads a stream in which few units are 1 and the others 0 is then of order 1."""
    return torch.randn(n_rows, n_columns, generator=draws, dtype=torch.float64)


@torch.no_grad()
def _draw_weights(model: SmallTransformer, n_layers: int, seed: int) -> None:
    """Draw all weights, by name; what is written to the residual stream is scaled so that depth does not inflate it."""
    draws = torch_generator(seed, "small_transformer")
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=draws, dtype=torch.float64)
        if parameter.ndim == 1:
            parameter.copy_(SMALL * noise + (1 if name.endswith("norm.weight") else 0))
        elif name.startswith("embed."):
            parameter.copy_(noise / math.sqrt(2))
        else:
            depth = 2 * n_layers if name.endswith(("output.weight", "write.weight")) else 1
            parameter.copy_(noise / math.sqrt(parameter.shape[1] * depth))
