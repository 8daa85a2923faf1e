"""Training sparse dictionaries: several in one pass over the data, resumable at any step without changing a bit.

    x' = (x - centre) / scale       per site: see `standardisation.py`
    Adam on x', step size rising over `warmup`, falling over `decay`; the gradient clipped
    threshold = mean over recent steps of the smallest code that batch_topk kept
    resampling: a dead latent starts anew as a badly explained vector e of a batch, drawn with chance ~ |e|^4:
        W_dec,j = e / |e|,   W_enc,j = 0.2 mean |W_enc| of the living along it,   b_enc,j = 0,   Adam's memory 0

Everything a step depends on is the weights, Adam's moments, the dead counters, the threshold's mean and two integers
of the loader; resampling draws by the number of the step. `save` writes them, one file per dictionary, each replaced
atomically: dictionaries whose files are of different steps wait for the last. (Same bits means: on the same kind of
processor and with the same number of threads, which decide how sums are split.) A dictionary comes out the same, bit
for bit, whether others share its pass or not, as long as the vectors of the pass fit in the shuffle buffer; beyond
it, the order of the data depends on the buffer.

Source: [@bricken2023] for resampling; [@gao2024] for the step size.
Cost: `n_epochs` reads of the rows. Memory: `TrainingPass.memory_bytes`.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from mechint_core.errors import DegenerateInputError
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.features.dictionaries.objectives import LOSS_PARTS, OBJECTIVES, Moment, Passed
from mechint_core.features.dictionaries.standardisation import Standardisation
from mechint_core.models.running import torch_device
from mechint_core.random import torch_generator

OnProgress = Callable[[int, dict[str, float]], None]

METRICS = ("loss", "fvu", "l0", "dead_share", *LOSS_PARTS)
MAX_DEAD_VECTORS = 10_000_000
MIN_DEAD_BATCHES = 4
MAX_THRESHOLD_STEPS = 100
NOT_PER_LATENT = ("b_dec", "W_skip")
NEW_ENCODER_NORM = 0.2
"""Of a resampled latent, against the living: it must not disturb them before it has learned."""


class Length(NamedTuple):
    """How long a run is."""

    n_steps: int
    n_vectors: int
    """Seen in all, counting every epoch."""


class Trainer:
    """One dictionary in training: its weights, its optimiser, and what it has seen.

    Parameters
    ----------
    dictionary
        With its initial weights. It is trained in place, in the units of x'.
    read, written
        Units of the vectors it reads, and of those it should write.
    length
        Of the whole run.
    """

    def __init__(
        self, dictionary: SparseDictionary, read: Standardisation, written: Standardisation, length: Length
    ) -> None:
        self.config, self.length = dictionary.config, length
        self.device = torch_device(self.config.device)
        self.read, self.written = read.to(self.device), written.to(self.device)
        self.dictionary = dictionary.to(self.device)
        self.objective = OBJECTIVES[self.config.activation](self.config, dictionary.hidden_dim).to(self.device)
        self.n_done = 0
        self.metrics: Float[Tensor, "step metric"] = torch.zeros(length.n_steps, len(METRICS), device=self.device)
        self._silent = torch.zeros(dictionary.hidden_dim, dtype=torch.int64, device=self.device)
        self._threshold = torch.zeros(2, dtype=torch.float64, device=self.device)  # weighted sum, sum of the weights
        self._peak_lr = self.config.lr or 1e-3 * (16384 / dictionary.hidden_dim) ** 0.5
        self._adam = torch.optim.Adam(list(self.parameters().values()), lr=self._peak_lr, fused=True)
        self._resampled_at = self._resampling_steps()
        mixed = self.config.mixed_precision
        self._mixed = self.device.type == "cuda" and torch.cuda.is_bf16_supported() if mixed is None else mixed

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return all that is trained, by name."""
        own = dict(self.dictionary.named_parameters())
        return own | {f"objective.{name}": each for name, each in self.objective.named_parameters()}

    def step(self, x: Float[Tensor, "sample unit"], y: Float[Tensor, "sample other_unit"]) -> None:
        """Make one step on vectors as they are stored: x is read, and y should be written."""
        x, y = self._standardised(x, y)
        share = (self.n_done + 1) / self.length.n_steps
        self._adam.param_groups[0]["lr"] = self._peak_lr * self._step_size(share)
        passed = self._descend(x, y, Moment(_rising(share, self.config.sparsity_ramp), share, self._dead()))
        self._silent = torch.where(passed.fired, 0, self._silent + len(x))
        self._follow(passed.threshold)
        fvu = passed.error.square().sum() / (y - y.mean(dim=0)).square().sum()
        dead_share = self._dead().double().mean()
        found = torch.stack([passed.loss.detach(), fvu, passed.l0, dead_share.to(fvu.dtype)])
        self.metrics[self.n_done] = torch.cat([found, passed.parts])
        self.n_done += 1
        if self.n_done in self._resampled_at:
            self._resample(x, passed.error)

    def finished(self) -> SparseDictionary:
        """Return the dictionary as it is now, for vectors as they are stored, on the CPU."""
        trained = copy.deepcopy(self.dictionary)
        if self._threshold[1]:
            trained.threshold.fill_(float(self._threshold[0] / self._threshold[1]))
        self.objective.fold(trained)
        return trained.folded(self.read, self.written).cpu()

    def state(self) -> dict[str, Tensor]:
        """Return all that the next steps depend on, besides the number of steps made and what is known at the start."""
        tensors = {f"model.{name}": each for name, each in self._weights().items()}
        for name, parameter in self.parameters().items():
            moments = self._adam.state.get(parameter, {})
            tensors |= {f"adam.{name}.{key}": value for key, value in moments.items()}
        return tensors | {"silent": self._silent, "threshold": self._threshold, "metrics": self.metrics[: self.n_done]}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], n_done: int) -> None:
        """Go to where `state` was taken, after `n_done` steps."""
        self.n_done = n_done
        for name, own in self._weights().items():
            own.copy_(tensors[f"model.{name}"])
        for name, parameter in self.parameters().items():
            moments = {key: tensors[f"adam.{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq") if n_done}
            if moments:
                self._adam.state[parameter] = {key: value.to(self.device) for key, value in moments.items()}
        self._silent.copy_(tensors["silent"])
        self._threshold.copy_(tensors["threshold"])
        self.metrics[:n_done] = tensors["metrics"].to(self.device)

    def _weights(self) -> dict[str, Tensor]:
        return self.dictionary.tensors() | {name: each.data for name, each in self.parameters().items()}

    def _standardised(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        same = y is x
        x = self.read.apply(x.to(self.device))
        y = x if same else self.written.apply(y.to(self.device))
        if not torch.isfinite(x.sum() + y.sum()):
            raise DegenerateInputError("activations must be finite. Got NaN or infinity in a batch.")
        if self.config.exclude_norm_above is None:
            return x, y
        near = x.norm(dim=1) <= self.config.exclude_norm_above * self.read.median_norm
        if not near.any():
            raise DegenerateInputError(
                f"some vectors must be within {self.config.exclude_norm_above} times the median distance from the "
                "centre. Got a batch without any: raise exclude_norm_above."
            )
        return x[near], (x if same else y)[near]

    def _descend(self, x: Tensor, y: Tensor, moment: Moment) -> Passed:
        """Make the step itself: loss, gradient, its limits, Adam, norms."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._mixed):
            passed = self.objective(self.dictionary, x, y, moment)
        self._adam.zero_grad()
        passed.loss.backward()
        if self.config.unit_norm:
            _take_growth(self.dictionary.W_dec)
        torch.nn.utils.clip_grad_norm_(list(self.parameters().values()), self.config.clip)
        self._adam.step()
        if self.config.unit_norm:
            with torch.no_grad():
                self.dictionary.W_dec.copy_(functional.normalize(self.dictionary.W_dec, dim=1))
        if not all(torch.isfinite(each.detach().square().sum()) for each in self.parameters().values()):
            raise DegenerateInputError(
                f"training must not diverge. Got weights that are not finite after step {self.n_done + 1}: lower lr."
            )
        return passed

    def _step_size(self, share: float) -> float:
        """Return the step size as a share of its peak."""
        left = 1 - share + 1 / self.length.n_steps
        return min(_rising(share, self.config.warmup), _rising(left, self.config.decay))

    @property
    def _window(self) -> float:
        """After how many vectors a silent latent is dead."""
        window = min(self.config.dead_window * self.length.n_vectors, MAX_DEAD_VECTORS)
        return float(max(MIN_DEAD_BATCHES * self.config.batch_size, window))

    def _dead(self) -> Bool[Tensor, "latent"]:
        return self._silent >= self._window

    def _follow(self, least: Tensor) -> None:
        """Add one batch's threshold to its running mean."""
        if self.config.activation != "batch_topk" or not torch.isfinite(least):
            return
        weight = 1 / max(1.0, min(self.config.threshold_window * self.length.n_steps, MAX_THRESHOLD_STEPS))
        new = torch.stack([least.double(), torch.ones_like(least, dtype=torch.float64)])
        self._threshold.lerp_(new, weight)

    def _resampling_steps(self) -> frozenset[int]:
        n = self.config.resamplings if self.objective.revives_by_resampling else 0
        return frozenset(self.length.n_steps * (1 + i) // (2 * n) for i in range(n)) - {0}

    @torch.no_grad()
    def _resample(self, x: Tensor, error: Tensor) -> None:
        """Give dead latents the directions of vectors that are badly explained."""
        dead = self._dead().nonzero().squeeze(1).cpu()
        chance = error.square().sum(dim=1).double().square().cpu()
        if len(dead) == 0 or chance.sum() <= 0:
            return
        draws = torch_generator(self.config.seed, "resampling", self.n_done)
        rows = torch.multinomial(chance, len(dead), replacement=True, generator=draws).to(self.device)
        dead = dead.to(self.device)
        alive = torch.ones_like(self._silent, dtype=torch.bool).index_fill_(0, dead, value=False)
        size = self.dictionary.W_enc[alive].norm(dim=1).mean() if alive.any() else x.new_ones(())
        row_norm = 1.0 if self.config.unit_norm else float(self.dictionary.W_dec[alive].norm(dim=1).mean()) or 1.0
        self.dictionary.W_dec[dead] = row_norm * functional.normalize(error[rows], dim=1)
        if not self.config.tied_weights:
            toward = error if self.dictionary.reconstructs else x
            self.dictionary.W_enc[dead] = NEW_ENCODER_NORM * size * functional.normalize(toward[rows], dim=1)
        self.dictionary.b_enc[dead] = 0
        for name, each in self.objective.named_parameters():
            each[dead] = 0.0 if name in ("r", "b_gate") else each[dead]
        for name, parameter in self.parameters().items():
            if name.removeprefix("objective.") not in NOT_PER_LATENT:
                for key in ("exp_avg", "exp_avg_sq"):
                    self._adam.state[parameter][key][dead] = 0
        self._silent[dead] = 0


def _rising(share: float, over: float) -> float:
    """Return the height of a ramp that reaches 1 when `share` reaches `over`."""
    return min(1.0, share / over) if over else 1.0


@torch.no_grad()
def _take_growth(rows: torch.nn.Parameter) -> None:
    """Take from the gradient the part that would only change the norm of its rows."""
    if rows.grad is not None:
        along = torch.einsum("lu,lu->l", rows.grad, rows)
        rows.grad.addcmul_(along[:, None], rows, value=-1)
