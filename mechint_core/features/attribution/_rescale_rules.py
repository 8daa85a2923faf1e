"""How far a difference of inputs goes through each nonlinear function: the rules of DeepLIFT, exact for two runs.

A function y = g(x) meets the sample's x and the baseline's x'. Its rule is a linear map M with

    M (x - x') = g(x) - g(x')          exactly, for every x and x'; and M -> dg/dx as x' -> x

so that contributions add up at every step, however deep. With mean(a) = (a + a') / 2 and d = x - x':

    elementwise    M = (g(x) - g(x')) / d
    product        a b:      M (da, db) = da mean(b) + mean(a) db          (also matmul, convolution, einsum)
    quotient       a / b:    M (da, db) = da mean(1/b) - mean(a) db / (b b')
    softmax        s_j:      M d = r_j (d_j - sum_k r_k d_k / sum_k r_k),  r_j = (s_j - s'_j) / (log s_j - log s'_j)
    log-sum-exp              M d = sum_k r_k d_k / sum_k r_k               with the same r, the logarithmic mean
    normalisation  c / s:    M d = d mean(1/s) - mean(c) <2 mean(c) d> / (s s' (s + s')),  s = sqrt(<c^2> + eps)
    maximum        x_i, x'_j largest:  M d = w d_i + (1 - w) d_j,  w in [0, 1], for d_j <= max x - max x' <= d_i

<.> is the mean over the normalised axes. A rule returns the value of g(x) with M as its derivative.

Source: [@shrikumar2017] for the elementwise rule and the chain; the others close for the same reason and are derived
here.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from mechint_core.errors import ConfigurationError

Function = Callable[..., Any]
Arguments = Sequence[Any]
Rule = Callable[[Function, Arguments, dict[str, Any], Arguments], Any]
"""(function, the sample's arguments, keyword arguments, the baseline's arguments) -> value that carries M."""

NEAR: Final = 1e-6
"""Below this distance, relative to the inputs, a quotient of differences is rounding; the slope between them is not."""


def carry(value: Tensor, linear: Tensor) -> Tensor:
    """Return `value` with the derivative of `linear`."""
    return value.detach() + (linear - linear.detach())


def elementwise(function: Function, args: Arguments, kwargs: dict[str, Any], base: Arguments) -> Tensor:
    """(g(x) - g(x')) / (x - x'), and the slope half-way where they nearly meet."""
    at = only_varying(function, args)
    x, x0 = args[at].detach(), base[at]

    def g(value: Tensor) -> Tensor:
        return function(*args[:at], value, *args[at + 1 :], **kwargs)

    value, difference = g(x), x - x0
    near = difference.abs() <= NEAR * torch.minimum(x.abs(), x0.abs()).clamp_max(1)
    ratio = (value - g(x0)) / torch.where(near, 1, difference)
    if bool(near.any()):
        with torch.enable_grad():
            middle = ((x + x0) / 2).requires_grad_()
            (slope,) = torch.autograd.grad(g(middle).sum(), middle)
        ratio = torch.where(near, slope.nan_to_num(0, 0, 0), ratio)  # sqrt at 0: any slope, for nothing moves
    return carry(value, ratio * args[at])


def product(function: Function, args: Arguments, kwargs: dict[str, Any], base: Arguments) -> Tensor:
    """Let each difference meet the mean of the other factor: a function linear in its first two arguments."""
    return _bilinear(function, args, kwargs, base, 0, 1)


def einsum(function: Function, args: Arguments, kwargs: dict[str, Any], base: Arguments) -> Tensor:
    """`torch.einsum(equation, ...)`: the same, for the two operands that vary."""
    args, base = (args[0], *_operands(args)), (base[0], *_operands(base))
    varying = [index for index, each in enumerate(args) if varies(each)]
    if len(varying) > 2:
        raise no_rule("an einsum of three quantities that depend on what is attributed to")
    return _bilinear(function, args, kwargs, base, varying[0], varying[-1])


def quotient(function: Function, args: Arguments, kwargs: dict[str, Any], base: Arguments) -> Tensor:
    """Join `a / b`."""
    if kwargs.get("rounding_mode"):
        raise no_rule(f"{function.__name__} with rounding")
    a, b = args[0], args[1]
    b1, b0, a0 = b.detach(), base[1], base[0]
    linear = a * (1 / b1 + 1 / b0) / 2 - _mean(a, a0) * b / (b1 * b0)
    return carry(function(*_detached(args), **kwargs), linear)


def softmax(function: Function, args: Arguments, kwargs: dict[str, Any], base: Arguments) -> Tensor:
    """Take differences from their mean under r, times r."""
    r, dim = _logarithmic_mean(args, kwargs, base)
    x = _finite(args[0], r)
    return carry(function(*_detached(args), **kwargs), r * (x - _mean_under(r, x, dim)))


def log_softmax(function: Function, args: Arguments, kwargs: dict[str, Any], base: Arguments) -> Tensor:
    """Take differences from their mean under r."""
    r, dim = _logarithmic_mean(args, kwargs, base)
    x = _finite(args[0], r)
    return carry(function(*_detached(args), **kwargs), x - _mean_under(r, x, dim))


def logsumexp(function: Function, args: Arguments, kwargs: dict[str, Any], base: Arguments) -> Tensor:
    """Take the mean difference under r."""
    keep = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
    r, dim = _logarithmic_mean(args[:2], {key: each for key, each in kwargs.items() if key == "dim"}, base[:2])
    mean = _mean_under(r, _finite(args[0], r), dim)
    return carry(function(*_detached(args), **kwargs), mean if keep else mean.squeeze(dim))


def layer_norm(function: Function, args: Arguments, kwargs: dict[str, Any], base: Arguments) -> Tensor:
    """`torch.layer_norm(x, shape, weight, bias, eps)`."""
    only_varying(function, args)
    x, shape, weight = args[0], args[1], args[2] if len(args) > 2 else None
    eps = args[4] if len(args) > 4 else 1e-5
    dims = tuple(range(-len(shape), 0))
    linear = _normalised(x - x.mean(dims, keepdim=True), base[0] - base[0].mean(dims, keepdim=True), eps, dims)
    return carry(function(*_detached(args), **kwargs), linear if weight is None else linear * weight)


def rms_norm(function: Function, args: Arguments, kwargs: dict[str, Any], base: Arguments) -> Tensor:
    """`torch.rms_norm(x, shape, weight, eps)`."""
    only_varying(function, args)
    x, shape, weight = args[0], args[1], args[2] if len(args) > 2 else None
    eps = args[3] if len(args) > 3 and args[3] is not None else torch.finfo(x.dtype).eps
    linear = _normalised(x, base[0], eps, tuple(range(-len(shape), 0)))
    return carry(function(*_detached(args), **kwargs), linear if weight is None else linear * weight)


def group_norm(function: Function, args: Arguments, kwargs: dict[str, Any], base: Arguments) -> Tensor:
    """`torch.group_norm(x, groups, weight, bias, eps)`."""
    only_varying(function, args)
    x, n_groups, weight, eps = args[0], args[1], args[2], args[4]
    c, c0 = (each.unflatten(1, (n_groups, -1)).flatten(2) for each in (x, base[0]))
    linear = _normalised(c - c.mean(-1, keepdim=True), c0 - c0.mean(-1, keepdim=True), eps, (-1,)).view_as(x)
    scaled = linear if weight is None else linear * weight.view(-1, *[1] * (x.ndim - 2))
    return carry(function(*_detached(args), **kwargs), scaled)


def maximum_over(function: Function, args: Arguments, kwargs: dict[str, Any], base: Arguments) -> Any:
    """`x.amax(dim)` and `x.max(dim)`: between the sample's largest and the baseline's."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if not isinstance(dim, int):
        raise no_rule(f"{function.__name__} without one axis")
    keep = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
    (value, at), (value0, at0) = (each.detach().max(dim, keepdim=True) for each in (args[0], base[0]))
    linear = _between(args[0], base[0], value - value0, at, at0, dim)
    made = carry(value, linear) if keep else carry(value, linear).squeeze(dim)
    indices = at if keep else at.squeeze(dim)
    return made if function.__name__ == "amax" else torch.return_types.max((made, indices))


def max_pool(function: Function, args: Arguments, kwargs: dict[str, Any], base: Arguments) -> Tensor:
    """`functional.max_poolNd`: the same, in every window."""
    if kwargs.get("return_indices"):
        raise no_rule(f"{function.__name__} with return_indices")
    n = int(function.__name__[-2])
    (value, at), (value0, at0) = (
        function(each.detach(), *args[1:], **{**kwargs, "return_indices": True}) for each in (args[0], base[0])
    )
    flat, flat0, change, at, at0 = (each.flatten(-n) for each in (args[0], base[0], value - value0, at, at0))
    return carry(value, _between(flat, flat0, change, at, at0, -1).view_as(value))


def batch_norm(function: Function, args: Arguments, kwargs: dict[str, Any], _: Arguments) -> Tensor:
    """`torch.batch_norm(x, weight, bias, mean, variance, training, ...)`: linear with the stored statistics."""
    if args[5]:
        raise no_rule("batch_norm with the statistics of the batch")
    only_varying(function, args)
    return function(*args, **kwargs)


def dropout(function: Function, args: Arguments, kwargs: dict[str, Any], _: Arguments) -> Tensor:
    """`torch.dropout(x, p, training)`: nothing when the model is evaluated."""
    if args[2]:
        raise no_rule(f"{function.__name__} that is switched on in eval mode")
    return function(*args, **kwargs)


def is_linear(name: str, args: Arguments) -> bool:
    """Whether a product or quotient is linear here, for what else it takes is the same in both runs."""
    if name in _PRODUCTS or name in _QUOTIENTS:
        return not (varies(args[1]) and (name in _QUOTIENTS or varies(args[0])))
    return name == "einsum" and sum(varies(each) for each in _operands(args)) == 1


def varies(value: Any) -> bool:
    """Whether a tensor, or one in a tuple or list, depends on what is attributed to."""
    if isinstance(value, Tensor):
        return value.requires_grad
    return isinstance(value, tuple | list) and any(varies(each) for each in value)


def only_varying(function: Function, args: Arguments) -> int:
    """Return which argument varies; refuse more than one."""
    varying = [index for index, each in enumerate(args) if varies(each)]
    if len(varying) != 1:
        raise no_rule(f"{function.__name__} of several quantities that depend on what is attributed to")
    return varying[0]


def no_rule(what: str) -> ConfigurationError:
    """Return the refusal of a function without a rule."""
    return ConfigurationError(
        f"deeplift must have a rule for every function the answer passes through. Got {what}. "
        "Use integrated_gradients, or attribute to a site behind it."
    )


def _bilinear(function: Function, args: Arguments, kwargs: dict[str, Any], base: Arguments, i: int, j: int) -> Tensor:
    constant = _detached(args)
    first = function(*_put(args, j, _mean(args[j], base[j])), **kwargs)
    second = function(*_put(_put(constant, i, _mean(args[i], base[i])), j, args[j]), **kwargs)
    return carry(function(*constant, **kwargs), first + second)


def _operands(args: Arguments) -> Arguments:
    """Return the tensors of an einsum, which come one by one or in a list."""
    return tuple(args[1]) if isinstance(args[1], tuple | list) else args[1:]


def _put(args: Arguments, at: int, value: Any) -> Arguments:
    return (*args[:at], value, *args[at + 1 :])


def _detached(args: Arguments) -> Arguments:
    return tuple(each.detach() if isinstance(each, Tensor) else each for each in args)


def _mean(value: Any, base: Any) -> Any:
    return (value.detach() + base) / 2 if isinstance(value, Tensor) else value


def _logarithmic_mean(args: Arguments, kwargs: dict[str, Any], base: Arguments) -> tuple[Tensor, int]:
    """Return r = (s - s') / (log s - log s') of two softmaxes, which is s where they meet, and their axis."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if not isinstance(dim, int):
        if not (isinstance(dim, tuple | list) and len(dim) == 1):
            raise no_rule("a softmax or logsumexp over several axes")
        dim = dim[0]
    log_s, log_s0 = (torch.log_softmax(each.detach(), dim) for each in (args[0], base[0]))
    gap = log_s - log_s0
    # sinh(gap / 2) / (gap / 2), by its series where the quotient would be rounding
    near = torch.exp((log_s + log_s0) / 2) * (1 + gap**2 / 24 + gap**4 / 1920)
    r = torch.where(gap.abs() < 1e-3, near, (log_s.exp() - log_s0.exp()) / gap)
    return torch.where(log_s.isfinite() & log_s0.isfinite(), r, 0), dim


def _finite(x: Tensor, r: Tensor) -> Tensor:
    """Leave out what a mask of -inf has taken away."""
    return torch.where(r > 0, x, 0) if not bool(x.detach().isfinite().all()) else x


def _mean_under(r: Tensor, x: Tensor, dim: int) -> Tensor:
    return (r * x).sum(dim, keepdim=True) / r.sum(dim, keepdim=True)


def _normalised(c: Tensor, c0: Tensor, eps: float, dims: tuple[int, ...]) -> Tensor:
    """Return the linear map of c / sqrt(<c^2> + eps), applied to c."""
    both = c.detach() + c0
    s, s0 = (torch.sqrt(each.square().mean(dims, keepdim=True) + eps) for each in (c.detach(), c0))
    of_scale = (both * c).mean(dims, keepdim=True) / (s * s0 * (s + s0))
    return c * (1 / s + 1 / s0) / 2 - both / 2 * of_scale


def _between(x: Tensor, x0: Tensor, change: Tensor, at: Tensor, at0: Tensor, dim: int) -> Tensor:
    """Return w x_i + (1 - w) x_j whose difference is the change of the maximum; i and j are the two runs' largest."""
    d = x.detach() - x0
    up, down = d.gather(dim, at), d.gather(dim, at0)
    w = torch.where(up > down, (change - down) / torch.where(up > down, up - down, 1), 0.5)
    return w * x.gather(dim, at) + (1 - w) * x.gather(dim, at0)


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


_ELEMENTWISE: Final = words(
    "relu relu6 leaky_relu hardtanh hardsigmoid hardswish hardshrink softshrink threshold abs absolute clamp clip "
    "clamp_min clamp_max elu celu selu gelu silu mish softplus sigmoid log_sigmoid tanh prelu exp exp2 expm1 log log2 "
    "log10 log1p sqrt rsqrt reciprocal square pow rpow ipow erf erfc sin cos tan atan arctan sinh cosh asinh"
)
_PRODUCTS: Final = words(
    "mul imul rmul multiply matmul rmatmul mm bmm mv dot vdot inner outer ger linear "
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
)
_QUOTIENTS: Final = frozenset(("div", "truediv", "itruediv", "true_divide", "divide"))
RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(_PRODUCTS, product),
    **dict.fromkeys(_QUOTIENTS, quotient),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), max_pool),
    **dict.fromkeys(("max", "amax"), maximum_over),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), dropout),
    "einsum": einsum,
    "softmax": softmax,
    "log_softmax": log_softmax,
    "logsumexp": logsumexp,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "batch_norm": batch_norm,
}
"""By the name of the function, whether it is called as an operator, a method, in place or not."""
