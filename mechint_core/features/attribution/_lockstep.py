"""Run a model on the baseline and on the sample in step, and put a rule in the place of every nonlinear function.

    Listening   f(baseline)    notes the arguments of every nonlinear function, in their order
    Joining     f(sample)      each meets its counterpart: its own value, the rule's linear map as derivative

The gradient of f(sample) is then DeepLIFT's multipliers. It works on functions, not modules, so `F.relu`, `x.softmax`
and `a @ b` are met wherever they are called. Only functions whose arguments depend on what is attributed to matter.
Of these, each is

    linear        left as it is
    a query       of a shape or a kind: left as it is
    nonlinear     replaced by its rule (`_rescale_rules`)
    composed      of Python code in `torch`: followed into; or of those in `REWRITTEN`: written out
    anything else refused by name

Cost: the two runs, and twice the work of every product of two varying quantities.
"""

import functools
import types
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from mechint_core.features.attribution._rescale_rules import (
    RULES,
    Arguments,
    Function,
    is_linear,
    no_rule,
    varies,
    words,
)

LINEAR: Final = words(
    "add iadd radd sub isub rsub subtract neg negative positive pos sum mean cumsum diff broadcast_tensors "
    "view view_as reshape reshape_as flatten ravel unflatten transpose permute movedim moveaxis swapaxes swapdims t T "
    "mT H mH real squeeze unsqueeze expand expand_as broadcast_to repeat repeat_interleave tile contiguous clone to "
    "float double half bfloat16 type_as cat concat concatenate stack hstack vstack dstack column_stack split chunk "
    "unbind tensor_split iter getitem setitem narrow select index_select index_copy index_add gather scatter "
    "scatter_add copy take_along_dim flip roll pad constant_pad_nd masked_fill where tril triu diagonal unfold im2col "
    "col2im avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d pixel_shuffle pixel_unshuffle "
    "channel_shuffle"
)
"""Linear in all that varies, jointly."""

QUERIES: Final = words(
    "shape size dim ndim ndimension numel nelement stride storage_offset len device get_device dtype layout names "
    "element_size itemsize nbytes requires_grad is_leaf grad_fn is_cuda is_cpu is_mps is_meta is_nested is_sparse "
    "is_quantized is_floating_point is_complex is_contiguous is_conj is_neg is_inference is_same_size "
    "zeros_like ones_like empty_like rand_like new_zeros new_ones new_empty"
)
"""What does not depend on the numbers of a tensor."""

REFERRING: Final = words("to type_as expand_as view_as reshape_as")
"""What takes only the kind or the shape of a second tensor."""

Heard = deque[tuple[str, Arguments]]
"""Name and arguments of each nonlinear function, in the order of the calls."""


class _InStep(TorchFunctionMode, ABC):
    """Meets every call of a torch function."""

    def __init__(self) -> None:
        super().__init__()
        self._followed: list[Function] = []

    def __torch_function__(
        self, func: Function, types: Any, args: Arguments = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        name, in_place = _name(func)
        asked = name in QUERIES or (name in REFERRING and not varies(args[0]))
        if asked or not (varies(args) or varies(list(options.values()))):
            return func(*args, **options)
        if _is_composed(func):
            return self._follow(name, func, args, options)
        if name in REWRITTEN:
            with self:
                return _written(REWRITTEN[name](*args, **options), args, in_place=in_place)
        if name in LINEAR or is_linear(name, args):
            return _still_varies(name, func(*args, **options), args)
        if name not in RULES or varies(list(options.values())):
            raise no_rule(name + ("" if name not in RULES else " with a varying keyword argument"))
        return self.meet(name, func, args, options)

    @abstractmethod
    def meet(self, name: str, function: Function, args: Arguments, kwargs: dict[str, Any]) -> Any:
        """Do what this run does with a nonlinear function."""

    def _follow(self, name: str, function: Function, args: Arguments, kwargs: dict[str, Any]) -> Any:
        if function in self._followed:  # it hands itself over again further in
            raise no_rule(name)
        self._followed.append(function)
        try:
            with self:
                return _body(function)(*args, **kwargs)
        finally:
            self._followed.pop()


class Listening(_InStep):
    """The baseline's run: notes what the nonlinear functions are given."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: Heard = deque()
        """What the nonlinear functions were given, in their order."""

    def meet(self, name: str, function: Function, args: Arguments, kwargs: dict[str, Any]) -> Any:
        """Note a copy of the arguments, and compute."""
        self.heard.append((name, _copied(args)))
        return function(*args, **kwargs)


class Joining(_InStep):
    """The sample's run: joins every nonlinear function to its counterpart in the baseline's."""

    def __init__(self, heard: Heard) -> None:
        super().__init__()
        self._heard = heard

    def meet(self, name: str, function: Function, args: Arguments, kwargs: dict[str, Any]) -> Any:
        """Return the value, with the rule's linear map as derivative."""
        if not self._heard or self._heard[0][0] != name or _shapes(self._heard[0][1]) != _shapes(args):
            raise no_rule(f"{name} where the baseline's run has another function: the model branches on its input")
        _, base = self._heard.popleft()
        plain = _out_of_place(function, name)
        result = RULES[name](plain, args, kwargs, base)
        return _written(result, args, in_place=plain is not function)


def _name(function: Function) -> tuple[str, bool]:
    """Return the plain name of a function, method, operator or property, and whether it works in place."""
    name: str = function.__name__
    if name == "__get__":
        name = function.__self__.__name__  # type: ignore[attr-defined]
    if name == "__float__":  # a number; not to be taken for the method that gives a tensor of floats
        return name, False
    in_place = (name.endswith("_") and not name.endswith("__")) or name in _AUGMENTED
    return name.strip("_"), in_place


_AUGMENTED: Final = {"__imul__": torch.mul, "__itruediv__": torch.div, "__ipow__": torch.pow}


def _out_of_place(function: Function, name: str) -> Function:
    """Return the function that gives a new tensor; itself if it does so."""
    if function.__name__ in _AUGMENTED:
        return _AUGMENTED[function.__name__]
    if not _name(function)[1]:
        return function
    return next(getattr(place, name) for place in (torch, Tensor, functional) if hasattr(place, name))


def _written(result: Any, args: Arguments, *, in_place: bool) -> Any:
    return args[0].copy_(result) if in_place else result


def _still_varies(name: str, result: Any, args: Arguments) -> Any:
    """Refuse a conversion to integers and the like, which would end the chain unseen."""
    if not varies(args[0] if result is None else result):
        raise no_rule(f"{name} to something that has no derivative")
    return result


def _copied(value: Any) -> Any:
    """Copy what varies: the model may overwrite it."""
    if isinstance(value, Tensor):
        return value.detach().clone() if value.requires_grad else value
    return type(value)(_copied(each) for each in value) if isinstance(value, tuple | list) else value


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape
    return [_shapes(each) for each in value] if isinstance(value, tuple | list) else None


def _is_composed(function: Function) -> bool:
    """Whether this is Python code that hands itself over to a mode first; its body then calls simpler functions."""
    return (
        isinstance(function, types.FunctionType)
        and (function.__module__ == functional.__name__ or _name(function)[0] not in _KNOWN)
        and any(name in _HANDS_OVER for name in function.__code__.co_names)
    )


def _never(*_: Any) -> bool:
    return False


@functools.cache
def _body(function: types.FunctionType) -> Callable[..., Any]:
    """Return the same function, which does not hand itself over."""
    scope = {**function.__globals__, **dict.fromkeys(_HANDS_OVER, _never)}
    made = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


_HANDS_OVER: Final = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float | int = 0.0,
    is_causal: bool = False,
    scale: float | int | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention`: softmax(q k^T scale + mask) v."""
    if dropout_p or enable_gqa:
        raise no_rule("attention with dropout or shared keys")
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(dim=-1) @ value


def _affine(bias: Tensor, a: Tensor, b: Tensor, *, beta: float | int = 1, alpha: float | int = 1) -> Tensor:
    return bias * beta + (a @ b) * alpha


def _variance(
    x: Tensor,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | int | None = None,
) -> Tensor:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    mean = x.mean() if dim is None else x.mean(dim, keepdim=True)
    squares = (x - mean).square()
    total = squares.sum() if dim is None else squares.sum(dim, keepdim=keepdim)
    return total / (x.numel() / mean.numel() - (float(unbiased) if correction is None else correction))


def _deviation(*args: Any, **kwargs: Any) -> Tensor:
    return _variance(*args, **kwargs).sqrt()


def _length(x: Tensor, ord: float | int = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    if ord != 2 or dtype is not None:
        raise no_rule(f"a norm of order {ord}")
    squares = x.square()
    return (squares.sum() if dim is None else squares.sum(dim, keepdim=keepdim)).sqrt()


def _larger(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(a, b)).amax(0)


def _smaller(a: Tensor, b: Tensor) -> Tensor:
    return -_larger(-a, -b)


def _gated(x: Tensor, dim: int = -1) -> Tensor:
    value, gate = x.chunk(2, dim)
    return value * torch.sigmoid(gate)


REWRITTEN: Final[dict[str, Callable[..., Any]]] = {
    "scaled_dot_product_attention": _attention,
    "addmm": _affine,
    "baddbmm": _affine,
    "var": _variance,
    "std": _deviation,
    "linalg_vector_norm": _length,
    "glu": _gated,
    "maximum": _larger,
    "minimum": _smaller,
}
"""Functions written out in others that have rules."""

_KNOWN: Final = LINEAR | QUERIES | RULES.keys() | REWRITTEN.keys()
