"""A small transformer that groks (a + b) mod p: a real training run, in about a minute of CPU.

    x = E[a, b, =] + P,   m = x_= + attention(x)_=,   r = m + mlp(m),   logits = U r

One layer, no layer norm, only the '=' position is computed past the attention scores (exact for one layer).
Full batch, AdamW with weight decay on everything, cross-entropy from a float64 log-softmax. First the network
memorises its training pairs, then a circuit made of a few Fourier frequencies forms, then weight decay removes
what was memorised and the test pairs follow: the best understood phase transition of deep learning.

Every intermediate is a named module, so that globs find it: `embed` (sample, position, unit), `embed.a`,
`embed.b`, `embed.equals`, `attention.pattern` (sample, position, head), `attention.heads`, `attention`,
`mlp.hidden`, `mlp`, `residual`, `unembed` (the logits).

Source: [@nanda2023], [@power2022].
Cost: 0.5 MFLOP per training pair and epoch; the default run is 2500 epochs of 1740 pairs.
"""

import json
import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from mechint_core.errors import CheckpointError, ConfigurationError
from mechint_core.random import generator, torch_generator

EQUALS_POSITION: Final = 2
STATE_FILE: Final = "training_state"
HISTORY_FILE: Final = "history.json"
MEASURES: Final = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "squared_weights")

History = dict[str, list[float | int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModularAdditionConfig:
    """The network, its data and how it is trained. The defaults grok for every seed tried."""

    prime: int = 59
    """Numbers are added modulo this."""
    train_share: float = 0.5
    """Share of the p^2 pairs that is trained on; with 0.4 the plateau is long and some seeds never finish."""
    seed: int = 0
    """Chooses the initial weights and the training pairs."""
    width: int = 128
    """Units of the residual stream."""
    heads: int = 4
    """Attention heads; divides `width`."""
    hidden: int = 256
    """Units of the ReLU layer."""
    epochs: int = 2500
    """Full-batch steps."""
    learning_rate: float = 1e-3
    """Of AdamW, after the warm-up."""
    weight_decay: float = 1.0
    """Decoupled, on every parameter."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Of AdamW."""
    warm_up: int = 10
    """Steps over which the learning rate rises linearly."""
    checkpoint_every: int = 100
    """Spacing of the late checkpoints; before twice this, checkpoints are at 0 and the powers of two."""
    log_every: int = 20
    """Spacing of the logged losses; checkpoints are logged too."""
    threads: int = 1
    """Torch threads. The exact trajectory depends on their number, so it belongs to the run."""

    def __post_init__(self) -> None:
        if self.prime < 3 or self.width < 1 or self.hidden < 1 or self.heads < 1 or self.width % self.heads:
            raise ConfigurationError(f"prime must be at least 3 and heads must divide width. Got {self}.")
        if not 0 < self.train_share < 1:
            raise ConfigurationError(f"train_share must lie strictly between 0 and 1. Got {self.train_share}.")
        if min(self.epochs, self.checkpoint_every, self.log_every, self.threads, self.warm_up) < 1:
            raise ConfigurationError(f"epochs, spacings, warm_up and threads must be at least 1. Got {self}.")

    def checkpoint_steps(self) -> list[int]:
        """Return the steps that are saved: 0, powers of two, then evenly spaced, and the last."""
        early = [0, *(2**power for power in range(64) if 2**power < min(2 * self.checkpoint_every, self.epochs))]
        late = range(2 * self.checkpoint_every, self.epochs, self.checkpoint_every)
        return [*early, *late, self.epochs]


class ModularAdditionTransformer(nn.Module):
    """One attention layer and one ReLU layer on the tokens (a, b, =); returns the logits of the answer."""

    def __init__(self, *, prime: int = 59, width: int = 128, heads: int = 4, hidden: int = 256, seed: int = 0) -> None:
        super().__init__()
        self.embed = _Embedding(prime + 1, width)
        self.attention = _Attention(width, heads)
        self.mlp = _Mlp(width, hidden)
        self.residual = nn.Identity()
        self.unembed = nn.Linear(width, prime, bias=False)
        _initialise(self, seed)

    def forward(self, tokens: Int[Tensor, "sample position"]) -> Float[Tensor, "sample class"]:
        """Return one row of logits per row of tokens (a, b, =)."""
        embedded = self.embed(tokens)
        return self._read_out(embedded[:, EQUALS_POSITION] + self.attention(embedded))

    def logits_of_pairs(self, a: Int[Tensor, "sample"], b: Int[Tensor, "sample"]) -> Float[Tensor, "sample class"]:
        """Return what `forward` returns for the tokens (a, b, =), at 0.4 of its cost.

        A key or value depends on one token only, so each is computed once per token instead of once per pair.
        No embedding passes through `embed`: for training, not for hooks on that module.
        """
        prime = len(self.embed.token) - 1
        numbers, place = self.embed.token[:prime], self.embed.position
        equals = self.embed.token[prime:] + place[EQUALS_POSITION:]
        table = torch.cat([numbers + place[0], numbers + place[1], equals])
        rows = torch.stack([a, prime + b, torch.full_like(a, 2 * prime)], dim=1)
        # functional.embedding: the backward of `table[rows]` is 50 times slower on a CPU.
        scores = functional.embedding(rows, self.attention.scores(equals, table))
        value = functional.embedding(rows, self.attention.value(table))
        return self._read_out(equals + self.attention.mix(scores, value))

    def _read_out(self, middle: Float[Tensor, "sample unit"]) -> Float[Tensor, "sample class"]:
        return self.unembed(self.residual(middle + self.mlp(middle)))


class _Embedding(nn.Module):
    """Token plus position; each position passes through its own named module."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(tokens, width))
        self.position = nn.Parameter(torch.empty(EQUALS_POSITION + 1, width))
        self.a, self.b, self.equals = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, tokens: Int[Tensor, "sample position"]) -> Float[Tensor, "sample position unit"]:
        embedded = functional.embedding(tokens, self.token) + self.position
        points = zip((self.a, self.b, self.equals), embedded.unbind(1), strict=True)
        return torch.stack([point(column) for point, column in points], dim=1)


class _Attention(nn.Module):
    """What the '=' position reads from the three positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.n_heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.pattern, self.heads = nn.Identity(), nn.Identity()

    def forward(self, x: Float[Tensor, "sample position unit"]) -> Float[Tensor, "sample unit"]:
        return self.mix(self.scores(x[:, EQUALS_POSITION:], x), self.value(x))

    def scores(self, asking: Float[Tensor, "..."], asked: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return how much `asking` attends to `asked`, one score per head, before the softmax."""
        products = self.query(asking) * self.key(asked)
        return products.unflatten(-1, (self.n_heads, -1)).sum(-1) / math.sqrt(products.shape[-1] / self.n_heads)

    def mix(
        self, scores: Float[Tensor, "sample position head"], value: Float[Tensor, "sample position unit"]
    ) -> Float[Tensor, "sample unit"]:
        """Average the values of each head by its attention pattern, and write to the residual stream."""
        pattern = self.pattern(scores.softmax(dim=1))
        read = (pattern[..., None] * value.unflatten(-1, (self.n_heads, -1))).sum(dim=1)
        return self.output(self.heads(read.flatten(1)))


class _Mlp(nn.Module):
    """One ReLU layer; `hidden` is its activation."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.read = nn.Linear(width, hidden)
        self.hidden = nn.ReLU()
        self.write = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "sample unit"]) -> Float[Tensor, "sample unit"]:
        return self.write(self.hidden(self.read(x)))


def build_model(**arguments: Any) -> nn.Module:
    """Make the untrained network from the network fields of `ModularAdditionConfig` (others are ignored)."""
    return _network(ModularAdditionConfig(**arguments))


def build_dataset(**arguments: Any) -> dict[str, np.ndarray]:
    """Return all p^2 inputs, pair (a, b) at row a p + b, from the fields of `ModularAdditionConfig`.

    `tokens` (sample, position) are a, b and the '=' token p; `a`, `b` and `answer` = (a + b) mod p label the
    samples; `split` is 1 where the pair is trained on and 0 where it is held out.
    """
    config = ModularAdditionConfig(**arguments)
    a, b = np.divmod(np.arange(config.prime**2), config.prime)
    split = np.zeros(config.prime**2, dtype=np.int8)
    n_train = round(config.train_share * config.prime**2)
    split[generator(config.seed, "modular_addition", "split").permutation(config.prime**2)[:n_train]] = 1
    tokens = np.stack([a, b, np.full_like(a, config.prime)], axis=1)
    return {"tokens": tokens, "a": a, "b": b, "answer": (a + b) % config.prime, "split": split}


def build_prompt_pairs(*, n_prompts: int = 256, **arguments: Any) -> dict[str, np.ndarray]:
    """Return prompts (a, b, =) and the same with another b, for patching: the answer must change with the input.

    `clean` and `corrupted` are tokens (sample, position); `answer` and `corrupted_answer` are what they call for.
    The prompts are `n_prompts` pairs drawn without repetition (all p^2 if there are fewer), trained on or not.
    """
    config = ModularAdditionConfig(**arguments)
    rng, p = generator(config.seed, "modular_addition", "prompts"), config.prime
    a, b = np.divmod(rng.permutation(p**2)[:n_prompts], p)
    other = (b + rng.integers(1, p, len(b))) % p
    clean, corrupted = (np.stack([a, second, np.full_like(a, p)], axis=1) for second in (b, other))
    return {"clean": clean, "corrupted": corrupted, "answer": (a + b) % p, "corrupted_answer": (a + other) % p}


def train(
    config: ModularAdditionConfig,
    folder: Path | str,
    *,
    on_progress: Callable[[int, Mapping[str, float]], None] | None = None,
) -> History:
    """Train the network, leaving `step_00000000.safetensors`, ... and `history.json` in `folder`.

    A stopped run continues from its last checkpoint and ends with the same bits as one that was not stopped; a
    finished one is left as it is. Each file appears whole (written beside, then renamed).

    Parameters
    ----------
    config
        The network, its data and how it is trained.
    folder
        Made if it is not there. Belongs to one config.
    on_progress
        Called as `on_progress(step, measures)` at every logged step.

    Returns
    -------
    History
        Logged `step`, losses (nats) and accuracies on both splits, and the sum of squared weights.

    Raises
    ------
    CheckpointError
        If `folder` holds the run of another config.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _torch_threads(config.threads):
        run = _Run(config, folder)
        run.resume()
        while run.step < config.epochs:
            run.advance(on_progress)
    return run.history


class _Run:
    """A training run in memory: network, optimiser, data, history, and the step it is at."""

    def __init__(self, config: ModularAdditionConfig, folder: Path) -> None:
        self.config, self.folder, self.step = config, folder, -1
        self.history: History = {name: [] for name in ("step", *MEASURES)}
        self.model = _network(config)
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), config.learning_rate, config.betas, weight_decay=config.weight_decay, fused=True
        )
        data = build_dataset(**asdict(config))
        pairs = torch.from_numpy(np.stack([data["a"], data["b"], data["answer"]]))
        trained = torch.from_numpy(data["split"] == 1)
        self.train_set, self.test_set = pairs[:, trained].contiguous(), pairs[:, ~trained].contiguous()
        self.saved = frozenset(config.checkpoint_steps())

    def advance(self, on_progress: Callable[[int, Mapping[str, float]], None] | None) -> None:
        """Take one step (the first call only looks at step 0), then log and save where that is due."""
        if self.step >= 0:
            self._update()
        self.step += 1
        if self.step in self.saved or self.step % self.config.log_every == 0:
            measures = self._measure()
            for name, value in {"step": self.step, **measures}.items():
                self.history[name].append(value)
            if on_progress is not None:
                on_progress(self.step, measures)
        if self.step in self.saved:
            self._save()

    def resume(self) -> None:
        """Load the last saved state, if there is one."""
        if not (self.folder / STATE_FILE).exists():
            return
        with safe_open(self.folder / STATE_FILE, framework="pt") as state:
            about = cast("dict[str, str]", state.metadata())
            if json.loads(about["config"]) != json.loads(json.dumps(asdict(self.config))):
                raise CheckpointError(
                    f"{self.folder} must hold a run of this config. Got the run of {about['config']}. "
                    "Choose another folder, or delete this one."
                )
            self.step, self.history = int(about["step"]), json.loads(about["history"])
            moments: dict[int, dict[str, Tensor]] = {}
            for index, (name, parameter) in enumerate(self.parameters.items()):
                parameter.data.copy_(state.get_tensor(f"weight/{name}"))
                if self.step > 0:
                    moments[index] = {key: state.get_tensor(f"{key}/{name}") for key in ("exp_avg", "exp_avg_sq")}
                    moments[index]["step"] = torch.tensor(float(self.step))
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    def _update(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * min(1.0, (self.step + 1) / self.config.warm_up)
        self.optimizer.zero_grad()
        a, b, answer = self.train_set
        _loss(self.model.logits_of_pairs(a, b), answer).backward()
        self.optimizer.step()

    @torch.no_grad()
    def _measure(self) -> dict[str, float]:
        measures: dict[str, float] = {}
        for split, (a, b, answer) in (("train", self.train_set), ("test", self.test_set)):
            logits = self.model.logits_of_pairs(a, b)
            measures[f"{split}_loss"] = float(_loss(logits, answer))
            measures[f"{split}_accuracy"] = float((logits.argmax(-1) == answer).double().mean())
        squared = sum(float(each.double().square().sum()) for each in self.parameters.values())
        return {**measures, "squared_weights": squared}

    def _save(self) -> None:
        weights = {name: parameter.detach() for name, parameter in self.parameters.items()}
        _write_tensors(self.folder / f"step_{self.step:08d}.safetensors", weights, {"step": str(self.step)})
        history = json.dumps(self.history)
        _write_text(self.folder / HISTORY_FILE, history)
        state = {f"weight/{name}": weight for name, weight in weights.items()}
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state.get(parameter, {})
            state |= {f"{key}/{name}": moments[key] for key in ("exp_avg", "exp_avg_sq") if key in moments}
        about = {"config": json.dumps(asdict(self.config)), "step": str(self.step), "history": history}
        # Last, because it commits the others: a run that is stopped before this takes these steps again.
        _write_tensors(self.folder / STATE_FILE, state, about)


def _loss(logits: Float[Tensor, "sample class"], answer: Int[Tensor, "sample"]) -> Float[Tensor, ""]:
    # float64: once the network is sure, float32 rounds log-probabilities to 0 and the gradient stalls.
    return functional.nll_loss(functional.log_softmax(logits, dim=-1, dtype=torch.float64), answer)


def _network(config: ModularAdditionConfig) -> ModularAdditionTransformer:
    return ModularAdditionTransformer(
        prime=config.prime, width=config.width, heads=config.heads, hidden=config.hidden, seed=config.seed
    )


@torch.no_grad()
def _initialise(model: nn.Module, seed: int) -> None:
    """Draw every matrix from N(0, 1 / fan_in), in order of name; biases start at 0."""
    draws = torch_generator(seed, "modular_addition", "weights")
    for _, parameter in sorted(model.named_parameters()):
        if parameter.ndim == 1:
            parameter.zero_()
        else:
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=draws)


def _write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    beside = path.with_name(path.name + ".partial")
    save_file(tensors, beside, about)
    beside.replace(path)


def _write_text(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


@contextmanager
def _torch_threads(threads: int) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
