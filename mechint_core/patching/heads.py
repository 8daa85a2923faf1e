"""Where the attention heads of a model are, found from the model.

    attention(x) = [h_1 ... h_H] W_o + b        head h is a slice of units of the input of the output projection

An attention module is told by the names of its parts (the projections of queries, keys and values, and of the output),
as its library gives them; PyTorch's own by its class. Patching head h at `site`, `layers.0.attention.output:input`, is
patching what head h writes. With grouped queries a head is a query head.

Heads are labelled module.head: `layers.0.attention.1` is head 1 of the module `layers.0.attention`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from mechint_core.errors import ConfigurationError, NotFoundError
from mechint_core.patching.parts import head_units

_PARTS: Final = (
    (("query", "key", "value"), "output"),  # ours
    (("q_proj", "k_proj", "v_proj"), "o_proj"),  # Llama, Mistral, Qwen, Gemma
    (("q_proj", "k_proj", "v_proj"), "out_proj"),  # OPT, GPT-J, BART, CLIP, Whisper
    (("q_proj", "k_proj", "v_proj"), "dense"),  # Phi
    (("qkv_proj",), "o_proj"),  # Phi-3
    (("c_attn",), "c_proj"),  # GPT-2
    (("query_key_value",), "dense"),  # GPT-NeoX, BLOOM, Falcon
    (("self.query", "self.key", "self.value"), "output.dense"),  # BERT, RoBERTa, ELECTRA
    (("attention.query", "attention.key", "attention.value"), "output.dense"),  # ViT, BEiT
    (("q_lin", "k_lin", "v_lin"), "out_lin"),  # DistilBERT
    (("q", "k", "v"), "o"),  # T5
    (("qkv",), "proj"),  # timm
    (("Wqkv",), "out_proj"),  # MPT
)
"""Names of the projections of queries, keys and values (in one or in three), and of the output's."""
_COUNTS: Final = ("n_heads", "num_heads", "num_attention_heads", "n_head")


@dataclass(frozen=True, slots=True)
class AttentionHeads:
    """The heads of one attention module."""

    module: str
    """Name of the attention module."""
    projection: str
    """Name of the module that projects the heads to the residual stream."""
    n_heads: int
    n_units: int
    """Of all heads together."""
    inputs: tuple[str, ...] = ()
    """Names of the modules that project to queries, keys and values, or of the one that does; none in PyTorch's own."""

    @property
    def site(self) -> str:
        """Where the heads lie side by side."""
        return f"{self.projection}:input"

    def label(self, head: int) -> str:
        """Return the name of a head, `layers.0.attention.1`."""
        return f"{self.module}.{head}" if self.module else str(head)

    def units(self, head: int, n_units: int | None = None) -> slice:
        """Return a head's units at `site`, which has `n_units`."""
        return head_units(head, self.n_heads, self.n_units if n_units is None else n_units)


def attention_heads(model: nn.Module, *, n_heads: int | None = None) -> tuple[AttentionHeads, ...]:
    """Return the attention modules of `model` and their heads, in the model's order; none if it has no attention.

    Parameters
    ----------
    model
        Any module.
    n_heads
        How many heads each attention has, if the model does not say.

    Raises
    ------
    ConfigurationError
        If an attention module does not say how many heads it has, or they cannot share its units.
    """
    found = (_heads_of(name, module, n_heads) for name, module in model.named_modules())
    return tuple(each for each in found if each is not None)


def find_head(heads: Sequence[AttentionHeads], label: str) -> tuple[AttentionHeads, int]:
    """Return the attention module and the number of the head with this label.

    Raises
    ------
    NotFoundError
        If there is no such head.
    """
    named = {each.label(head): (each, head) for each in heads for head in range(each.n_heads)}
    if label not in named:
        raise NotFoundError(
            f"a head must be one of the model's, module.number. Got {label!r}. There are: {', '.join(named) or 'none'}."
        )
    return named[label]


def _heads_of(name: str, module: nn.Module, n_heads: int | None) -> AttentionHeads | None:
    parts = _parts_of(module)
    if parts is None:
        return None
    inputs, output = parts
    count = n_heads or _count(module)
    where = f"{name}.{output}" if name else output
    n_units = _n_inputs(module.get_submodule(output))
    if count is None or n_units is None or n_units % count:
        raise ConfigurationError(
            f"the attention {name!r} must say how many heads share its {n_units or 'unknown number of'} units, by one "
            f"of {', '.join(_COUNTS)}. Got {count}. Give n_heads."
        )
    return AttentionHeads(name, where, count, n_units, tuple(f"{name}.{each}" if name else each for each in inputs))


def _parts_of(module: nn.Module) -> tuple[tuple[str, ...], str] | None:
    if isinstance(module, nn.MultiheadAttention):
        return (), "out_proj"
    return next((parts for parts in _PARTS if all(_has(module, part) for part in (*parts[0], parts[1]))), None)


def _has(module: Any, path: str) -> bool:
    for name in path.split("."):
        module = getattr(module, "_modules", {}).get(name)
    return isinstance(module, nn.Module)


def _count(module: nn.Module) -> int | None:
    """Return how many heads the module says it has, itself, in its config, or in the part that holds its queries."""
    said = (
        module,
        getattr(module, "config", None),
        *module.children(),
        *(getattr(child, "config", None) for child in module.children()),
    )
    counts = (getattr(each, name, None) for each in said for name in _COUNTS)
    return next((count for count in counts if isinstance(count, int) and count > 0), None)


def _n_inputs(projection: nn.Module) -> int | None:
    """Return how many units a projection takes, if it says: a linear layer, or the transposed one of `transformers`."""
    for name in ("in_features", "nx"):
        if isinstance(number := getattr(projection, name, None), int):
            return number
    return None
