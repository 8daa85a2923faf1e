"""What training a sparse dictionary minimises. The kinds differ in the activation, the penalty and the nesting.

    loss = mean over levels l of |y - y_hat_l|^2 / d  +  what keeps the codes sparse  +  what keeps latents alive

y is what the dictionary should write: x itself, or a transcoder's target. y_hat_l is what the latents of the first
l levels reconstruct, b_dec included; without nesting there is one level, the whole dictionary [@bussmann2025].

    pre = n (W_enc (x - b_dec) + b_enc),    y_hat = sum_j f_j W_dec,j / n_j + b_dec,    n_j = |W_dec,j|

                f_j                              sparse because                        alive because
    relu        relu(pre_j)                      c sum_j f_j^p                         resampled
    gated       [g_j > 0] relu(e^r_j z_j + b_j)  c sum_j relu(g_j)^p                   resampled
    jumprelu    [pre_j > t_j] pre_j              c (L0 / k - 1)^2                      a |e - e_hat|^2 / var(e)
    topk        pre_j, the k largest of x        k                                     a |e - e_hat|^2 / var(e)
    batch_topk  pre_j, the k B largest of all    k                                     a |e - e_hat|^2 / var(e)

Where rows are kept at norm 1, n_j = 1. Else the codes above are in units of n_j, so that no latent escapes its
penalty by a long row, nor wins its place among the largest by it: the dictionary that is used in the end,
`effective`, is the one that is trained.

z is pre without its bias; g = z + b_gate. The gate has a reconstruction of its own, from relu(g) by the decoder held
constant, so that it opens for what explains x [@rajamanoharan2024].

t > 0 feels L0 and the error through a kernel of width `bandwidth` around itself [@rajamanoharan2024b]. Charging for
the distance of L0 from k, rather than for L0, makes k mean the same here as elsewhere.

e = y - y_hat, held constant, is what the living latents leave; e_hat is what the best d/2 dead ones make of it,
without the decoder's bias. Unlike in [@gao2024] they hear x minus the batch's mean, without their own bias: no
gradient passes a ReLU that never opens, so a latent that training has driven below zero could not come back.
(Planted 128 features in 64 units, 12 seeds of 1960 steps: none dead; with their own bias, 1 in every other run.)

p falls linearly from 1 to `p_end` [@karvonen2024]. The penalty is scaled to the value it would have at p = 1, where
the paper scales it now and then by what p's last step changed.

Source: [@bricken2023; @conerly2024; @rajamanoharan2024; @rajamanoharan2024b; @gao2024; @bussmann2024; @bussmann2025].
Cost: relu and jumprelu five dense products of samples x units x latents per step, gated seven; topk and batch_topk
one and some sparse. Nesting adds only the sums over levels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from mechint_core.features.dictionaries.config import SparseAutoencoderConfig
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.features.dictionaries.sparse_codes import batch_topk, sparse_encode, topk

LOSS_PARTS = ("reconstruction", "sparsity", "revival")
SMALLEST_CODE = 1e-4
"""Codes below this are charged as this where p < 1: the slope of f^p at 0 is infinite."""


class Effective(NamedTuple):
    """A dictionary with decoder rows of norm 1: the one that is trained, whatever holds its numbers."""

    W_enc: Float[Tensor, "latent unit"]
    W_dec: Float[Tensor, "latent unit"]
    norm: Float[Tensor, "latent"] | None
    """What the dictionary's own biases and codes are multiplied by; None where it is 1."""

    def scaled(self, bias: Float[Tensor, "latent"]) -> Float[Tensor, "latent"]:
        """Return a bias of the codes in these units."""
        return bias if self.norm is None else bias * self.norm


class Passed(NamedTuple):
    """What one training pass over a batch found."""

    loss: Tensor
    parts: Float[Tensor, "part"]
    """What the loss is the sum of: `LOSS_PARTS`, without gradient."""
    error: Float[Tensor, "sample other_unit"]
    """y - y_hat, without gradient."""
    l0: Tensor
    """Mean number of active latents."""
    fired: Bool[Tensor, "latent"]
    threshold: Tensor
    """Smallest active code: what batch_topk used in place of a threshold. NaN for the others."""


class Moment(NamedTuple):
    """Where training is."""

    penalty: float
    """Share of the penalty's weight that its warm-up has reached."""
    share: float
    """Share of the run."""
    dead: Bool[Tensor, "latent"]


class Objective(nn.Module, ABC):
    """The loss of one kind of dictionary, with the parameters that only training needs."""

    revives_by_resampling = False
    """Whether dead latents must be given new weights, because the loss has nothing for them."""

    def __init__(self, config: SparseAutoencoderConfig, n_latents: int) -> None:
        super().__init__()
        self.config = config
        self.sizes = config.level_sizes(n_latents)

    @abstractmethod
    def forward(
        self,
        dictionary: SparseDictionary,
        x: Float[Tensor, "sample unit"],
        y: Float[Tensor, "sample other_unit"],
        moment: Moment,
    ) -> Passed:
        """Return the loss on a batch of vectors x, of which the dictionary should write y."""

    @torch.no_grad()
    def fold(self, dictionary: SparseDictionary) -> None:
        """Give `dictionary` the weights, biases and thresholds of the one that was trained."""
        now = effective(dictionary)
        if now.norm is None:
            return
        dictionary.W_enc.copy_(now.W_enc)
        dictionary.W_dec.copy_(now.W_dec)
        dictionary.b_enc.mul_(now.norm)

    def _levels(self, parts: Sequence[Tensor], start: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean squared error over levels, and the error of the last."""
        error, loss = y - start, y.new_zeros(())
        for part in parts:
            error = error - part
            loss = loss + error.square().mean()
        return loss / len(parts), error


@final
class Penalised(Objective):
    """relu: the sum of the codes, or of a power of them, is charged for."""

    revives_by_resampling = True

    def forward(self, dictionary: SparseDictionary, x: Tensor, y: Tensor, moment: Moment) -> Passed:
        """Return the loss on a batch."""
        now = effective(dictionary)
        codes = torch.addmm(now.scaled(dictionary.encoder_bias()), x, now.W_enc.T).relu_()
        loss, error = self._levels(_parts(codes, now.W_dec, self.sizes), _start(dictionary, x), y)
        mean_codes = codes.sum(dim=0) / len(x)  # not mean(): its gradient would be one more dense array
        charge = _charge(codes, mean_codes, self.config, moment)
        return _passed(loss, self.config.penalty * moment.penalty * charge, None, error, codes, mean_codes > 0)


@final
class Gated(Objective):
    """gated: one half decides which latents fire, the other how strongly."""

    revives_by_resampling = True

    def __init__(self, config: SparseAutoencoderConfig, n_latents: int) -> None:
        super().__init__(config, n_latents)
        self.r = nn.Parameter(torch.zeros(n_latents))
        self.b_gate = nn.Parameter(torch.zeros(n_latents))

    def forward(self, dictionary: SparseDictionary, x: Tensor, y: Tensor, moment: Moment) -> Passed:
        """Return the loss on a batch."""
        now = effective(dictionary)
        unbiased = dictionary.encoder_bias() - dictionary.b_enc
        z = torch.addmm(now.scaled(unbiased), x, now.W_enc.T)
        gate = functional.relu(z + now.scaled(self.b_gate))
        codes = torch.where(gate > 0, functional.relu(z * self.r.exp() + now.scaled(dictionary.b_enc)), 0.0)
        start = _start(dictionary, x)
        loss, error = self._levels(_parts(codes, now.W_dec, self.sizes), start, y)
        by_gate = _parts(gate, now.W_dec.detach(), self.sizes)
        gate_loss, _ = self._levels(by_gate, start.detach(), y)
        mean_gate = gate.sum(dim=0) / len(x)
        charge = _charge(gate, mean_gate, self.config, moment)
        sparsity = self.config.penalty * moment.penalty * charge
        return _passed(loss + gate_loss, sparsity, None, error, codes, mean_gate > 0)

    @torch.no_grad()
    def fold(self, dictionary: SparseDictionary) -> None:
        """Turn the gate into a threshold: g > 0 exactly where e^r z + b > b - e^r b_gate."""
        norm = effective(dictionary).norm
        super().fold(dictionary)
        b_gate = self.b_gate if norm is None else self.b_gate * norm
        dictionary.threshold.copy_(dictionary.b_enc - self.r.exp() * b_gate)
        dictionary.W_enc.mul_(self.r.exp()[:, None])


@final
class JumpRelu(Objective):
    """jumprelu: a threshold per latent."""

    def __init__(self, config: SparseAutoencoderConfig, n_latents: int) -> None:
        super().__init__(config, n_latents)
        self.log_threshold = nn.Parameter(torch.full((n_latents,), config.bandwidth).log())

    def forward(self, dictionary: SparseDictionary, x: Tensor, y: Tensor, moment: Moment) -> Passed:
        """Return the loss on a batch."""
        now = effective(dictionary)
        pre = torch.addmm(now.scaled(dictionary.encoder_bias()), x, now.W_enc.T)
        codes, l0 = _jump(pre, self.log_threshold.exp(), self.config.bandwidth)
        loss, error = self._levels(_parts(codes, now.W_dec, self.sizes), _start(dictionary, x), y)
        sparsity = self.config.penalty * moment.penalty * (l0 / self.config.k - 1).square()
        revival = self.config.auxiliary_coef * _auxiliary(now, x, error.detach(), moment.dead)
        fired = (codes.detach() > 0).any(dim=0)
        return _passed(loss, sparsity, revival, error, codes, fired)

    @torch.no_grad()
    def fold(self, dictionary: SparseDictionary) -> None:
        """Keep the thresholds."""
        super().fold(dictionary)
        dictionary.threshold.copy_(self.log_threshold.exp())


@final
class TopK(Objective):
    """topk, batch_topk: only the largest codes are kept; dead latents learn from what is left."""

    def forward(self, dictionary: SparseDictionary, x: Tensor, y: Tensor, moment: Moment) -> Passed:
        """Return the loss on a batch."""
        now, k = effective(dictionary), self._k(moment)
        select = topk(round(k)) if self.config.activation == "topk" else batch_topk(k)
        codes = sparse_encode(x, now.W_enc, now.scaled(dictionary.encoder_bias()), select)
        loss, error = self._levels(codes.nested(now.W_dec, self.sizes), _start(dictionary, x), y)
        revival = self.config.auxiliary_coef * _auxiliary(now, x, error.detach(), moment.dead)
        active = codes.values.detach() > 0
        fired = torch.zeros_like(moment.dead)
        fired[codes.latents[active]] = True
        least = torch.where(active, codes.values.detach(), torch.inf).min()
        parts = torch.stack([loss, torch.zeros_like(loss), revival]).detach()
        return Passed(loss + revival, parts, error.detach(), active.sum() / len(x), fired, least)

    def _k(self, moment: Moment) -> float:
        """Return how many are kept at this moment: k in the end."""
        excess = (self.config.first_k - 1) * (1 - moment.penalty)
        return min(sum(self.sizes), self.config.k * (1 + excess))


OBJECTIVES: dict[str, type[Objective]] = {
    "relu": Penalised,
    "gated": Gated,
    "jumprelu": JumpRelu,
    "topk": TopK,
    "batch_topk": TopK,
}


def effective(dictionary: SparseDictionary) -> Effective:
    """Return the dictionary's weights for decoder rows of norm 1."""
    if dictionary.config.unit_norm:
        return Effective(dictionary.W_enc, dictionary.W_dec, None)
    norm = dictionary.W_dec.norm(dim=1).clamp_min(torch.finfo(dictionary.W_dec.dtype).tiny)
    return Effective(dictionary.W_enc * norm[:, None], dictionary.W_dec / norm[:, None], norm)


def _start(dictionary: SparseDictionary, x: Float[Tensor, "sample unit"]) -> Float[Tensor, "*sample other_unit"]:
    """Return what the dictionary writes before any latent fires."""
    return dictionary.b_dec if dictionary.W_skip is None else torch.addmm(dictionary.b_dec, x, dictionary.W_skip.T)


def _parts(
    codes: Float[Tensor, "sample latent"], table: Float[Tensor, "latent unit"], sizes: Sequence[int]
) -> list[Tensor]:
    """Return what the latents of each level add."""
    if len(sizes) == 1:
        return [codes @ table]  # splitting in one costs a copy of the codes' gradient
    groups = zip(codes.split(list(sizes), dim=1), table.split(list(sizes)), strict=True)
    return [own @ rows for own, rows in groups]


def _charge(codes: Tensor, mean_codes: Tensor, config: SparseAutoencoderConfig, moment: Moment) -> Tensor:
    """Return the mean over samples of sum f^p, at the size that sum f has."""
    total = mean_codes.sum()
    if config.p_end == 1:
        return total
    p = 1 + (config.p_end - 1) * moment.share
    powers = torch.where(codes > 0, codes.clamp_min(SMALLEST_CODE), 0.0).pow(p).sum() / len(codes)
    return powers * (total / powers.clamp_min(torch.finfo(codes.dtype).tiny)).detach()


def _passed(
    loss: Tensor, sparsity: Tensor, revival: Tensor | None, error: Tensor, codes: Tensor, fired: Tensor
) -> Passed:
    """Return what was found with dense codes."""
    revival = torch.zeros_like(loss) if revival is None else revival
    l0 = _count(codes.detach() > 0, codes) / len(codes)  # 7 times faster on booleans
    parts = torch.stack([loss, sparsity, revival]).detach()
    total, nothing = loss + sparsity + revival, codes.new_tensor(torch.nan)
    return Passed(total, parts, error.detach(), l0, fired.detach(), nothing)


def _count(mask: Tensor, like: Tensor) -> Tensor:
    """Return how many hold, in the precision of `like` or float32: bfloat16 counts to 256."""
    return torch.count_nonzero(mask).to(torch.promote_types(like.dtype, torch.float32))


def _auxiliary(
    now: Effective,
    x: Float[Tensor, "sample unit"],
    residual: Float[Tensor, "sample other_unit"],
    dead: Bool[Tensor, "latent"],
) -> Tensor:
    """Return the share of the residual that the best dead latents fail to explain; 0 when none is dead."""
    latents = dead.nonzero().squeeze(1)
    variance = (residual - residual.mean(dim=0)).square().mean()
    if len(latents) == 0 or variance == 0:
        return x.new_zeros(())
    most = max(1, min(len(latents), now.W_enc.shape[1] // 2))
    weight = now.W_enc[latents]  # on x - mean(x), not on x - b_dec: see the top of this file
    codes = sparse_encode(x, weight, -weight @ x.mean(dim=0), topk(most))
    return (residual - codes.matmul(now.W_dec[latents])).square().mean() / variance


def _jump(pre: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    """Return the codes above their threshold, and L0, both with gradients for the threshold."""
    found: Any = _Jump.apply(pre, threshold, bandwidth)
    return found


class _Jump(torch.autograd.Function):
    """f = pre [pre > t];  L0 = mean over samples of sum_j [pre_j > t_j].

    df_j/dt_j = -(t_j / h) K,   dL0/dt_j = -(1 / h) K,   K = [|pre_j - t_j| < h / 2]: a rectangle in place of Dirac's.
    """

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        open_ = pre > threshold
        ctx.save_for_backward(pre, threshold, open_)
        ctx.bandwidth = bandwidth
        return pre * open_, _count(open_, pre) / len(pre)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, threshold, open_ = ctx.saved_tensors
        of_codes, of_l0 = grad_outputs
        near = ((pre - threshold).abs() < ctx.bandwidth / 2).to(pre.dtype)
        felt = torch.einsum("sl,sl->l", near, of_codes) * threshold + near.sum(dim=0) * (of_l0 / len(pre))
        return of_codes * open_, -felt / ctx.bandwidth, None
