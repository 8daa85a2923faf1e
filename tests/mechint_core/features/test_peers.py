"""One training step from the same weights: losses and gradients of SAELens and dictionary_learning, and ours.

Theirs sum squared errors over units, ours average them: with d units, theirs = d ours, and their penalty weights are
d times ours. SAELens adds up the errors of nested levels, ours (and dictionary_learning's) is their mean. Everything
is in float64, and compared to 1e-9; to 1e-5 where a part is float32 all the same: SAELens's thresholds,
dictionary_learning's auxiliary loss, our L0.
"""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mechint_core.features.dictionaries.config import SparseAutoencoderConfig
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.features.dictionaries.objectives import OBJECTIVES, Moment, Objective, Passed
from mechint_core.features.sparse_autoencoder import SparseAutoencoder
from mechint_core.features.transcoder import Transcoder
from mechint_core.random import torch_generator
from tests.peers import dictionary_learning, sae_lens

pytestmark = pytest.mark.oracle

D, N_LATENTS, N_SAMPLES, K = 6, 12, 40, 3
PENALTY = 0.3
LEVELS = (2, 5)
FLOAT64 = {"rtol": 1e-9, "atol": 1e-11}
FLOAT32 = {"rtol": 1e-5, "atol": 1e-7}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch_generator(seed, "test"), dtype=torch.float64)


X = draw(N_SAMPLES, D)


class Ours(NamedTuple):
    dictionary: SparseDictionary
    objective: Objective

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.dictionary.named_parameters()) | dict(self.objective.named_parameters())

    def passed(self, x=X, y=None, dead=None) -> Passed:
        dead = torch.zeros(N_LATENTS, dtype=torch.bool) if dead is None else dead
        return self.objective(self.dictionary, x, x if y is None else y, Moment(penalty=1.0, share=1.0, dead=dead))

    def step(self, x=X, y=None, dead=None) -> tuple[Tensor, dict[str, Tensor]]:
        return gradients(self.passed(x, y, dead).loss, self.parameters())


def ours(activation, *, transcoder=False, skip=False, **options) -> Ours:
    """A dictionary with random weights, and its objective; unit rows unless asked for others."""
    options = {"k": K, "n_latents": N_LATENTS, "decoder_norm": "unit", "sparsity_coef": PENALTY} | options
    config = SparseAutoencoderConfig(activation=activation, **options)
    made = Transcoder(D, D, skip=skip, config=config) if transcoder else SparseAutoencoder(D, N_LATENTS, config=config)
    both = Ours(made.double(), OBJECTIVES[activation](made.config, N_LATENTS).double())
    with torch.no_grad():
        for at, (name, each) in enumerate(sorted(both.parameters().items())):
            each.copy_((1.0 if each.ndim == 2 else 0.3) * draw(*each.shape, seed=10 + at))
            if name == "log_threshold":
                each.copy_((0.3 + 0.1 * each.abs()).log())
        if made.config.unit_norm:
            made.W_dec.copy_(functional.normalize(made.W_dec, dim=1))
    return both


def gradients(loss: Tensor, parameters: dict[str, nn.Parameter]) -> tuple[Tensor, dict[str, Tensor]]:
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return loss.detach(), {name: grad for name, grad in zip(parameters, found, strict=True) if grad is not None}


def same_weights(made: Ours, theirs: nn.Module, names: dict[str, str]) -> dict[str, nn.Parameter]:
    """Copy our weights into theirs; return theirs under our names. What is transposed shows by its shape."""
    parameters = {own: theirs.get_parameter(name) for own, name in names.items()}
    values = {name: each.detach() for name, each in made.parameters().items()}
    if "log_threshold" in values:
        values["threshold"] = values["log_threshold"].exp()
    with torch.no_grad():
        for own, parameter in parameters.items():
            parameter.copy_(values[own] if values[own].shape == parameter.shape else values[own].T)
    return parameters


def assert_same(own: tuple[Tensor, dict], their: tuple[Tensor, dict], *, factor=D, but=(), tolerance=FLOAT64):
    """Their loss and gradients are `factor` times ours, `but` for the gradients named."""
    torch.testing.assert_close(their[0].double(), factor * own[0], **tolerance)
    assert_same_gradients(own, their, factor=factor, but=but, tolerance=tolerance)


def assert_same_gradients(own, their, *, factor=D, but=(), tolerance=FLOAT64):
    assert set(their[1]) - set(but) <= set(own[1])
    for name in set(their[1]) - set(but):
        mine, found = factor * own[1][name], their[1][name].double()
        torch.testing.assert_close(found if found.shape == mine.shape else found.T, mine, **tolerance)
        assert mine.norm() > 1e-3, name


PLAIN = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}


def saelens_step(architecture, made: Ours, names=PLAIN, coefficients=None, x=X, **options):
    kind, config = sae_lens().registry.get_sae_training_class(architecture)
    theirs = kind(config(d_in=D, d_sae=N_LATENTS, dtype="float64", **options))
    parameters = same_weights(made, theirs, names)
    given = sae_lens().saes.sae.TrainStepInput(
        sae_in=x,
        coefficients=coefficients or {},
        dead_neuron_mask=torch.zeros(N_LATENTS, dtype=torch.bool),
        n_training_steps=0,
        is_logging_step=False,
    )
    return gradients(theirs.training_forward_pass(given).loss, parameters)


LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_enc": "encoder.bias", "b_dec": "b_dec"}
AUTOENCODER = LINEAR | {"b_dec": "bias"}
GATED = {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_dec": "decoder_bias"}
GATED |= {"b_enc": "mag_bias", "b_gate": "gate_bias", "r": "r_mag"}


def dictionary_learning_trainer(name, made: Ours, names=LINEAR, **options):
    trainers = dictionary_learning().trainers
    kind = (
        trainers.matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer if name == "Matryoshka" else getattr(trainers, name)
    )
    fixed = {"steps": 9, "warmup_steps": 0, "activation_dim": D, "dict_size": N_LATENTS, "layer": 0, "lm_name": ""}
    trainer = kind(**fixed, device="cpu", seed=None, **options)
    trainer.ae.double()
    return trainer, same_weights(made, trainer.ae, names)


# Oracle
def test_relu__is_saelens_standard():
    made = ours("relu", decoder_norm="weighted")

    their = saelens_step("standard", made, coefficients={"l1": D * PENALTY})

    assert_same(made.step(), their)


def test_relu__is_dictionary_learnings_standard_where_rows_are_kept_at_norm_1():
    made = ours("relu")
    trainer, parameters = dictionary_learning_trainer(
        "StandardTrainer", made, AUTOENCODER, l1_penalty=D * PENALTY, sparsity_warmup_steps=None
    )

    assert_same(made.step(), gradients(trainer.loss(X, step=0), parameters))


def test_p_anneal__has_the_gradient_of_dictionary_learnings():
    """Theirs rescales its weight when p moves, ours at every step: compared at the weight that ours has now."""
    made, p = ours("relu", p_end=0.5), 0.5
    trainer, parameters = dictionary_learning_trainer(
        "PAnnealTrainer", made, AUTOENCODER, sparsity_function="Lp^p", sparsity_warmup_steps=None, anneal_start=5
    )
    codes = trainer.ae.encode(X).detach()
    trainer.p, trainer.sparsity_coeff = p, D * PENALTY * float(codes.sum() / codes.pow(p).sum())

    assert codes[codes > 0].min() > 1e-3  # ours flattens f^p below 1e-4
    assert_same(made.step(), gradients(trainer.loss(X, step=0), parameters))


def test_gated__is_saelens_but_for_what_reaches_the_decoder():
    """Theirs also trains the decoder on the gate's reconstruction; the paper and ours hold it constant there."""
    made = ours("gated", decoder_norm="weighted")
    names = {"W_enc": "W_enc", "W_dec": "W_dec", "b_dec": "b_dec", "b_enc": "b_mag", "b_gate": "b_gate", "r": "r_mag"}

    their = saelens_step("gated", made, names, coefficients={"l1": D * PENALTY})

    assert_same(made.step(), their, but=("W_dec", "b_dec"))


def test_gated__is_dictionary_learnings():
    made = ours("gated")
    trainer, parameters = dictionary_learning_trainer(
        "GatedSAETrainer", made, GATED, l1_penalty=D * PENALTY, sparsity_warmup_steps=None
    )

    assert_same(made.step(), gradients(trainer.loss(X, step=0), parameters))


@pytest.mark.parametrize("decoder_norm", ["unit", "weighted"])
@pytest.mark.parametrize(("activation", "architecture"), [("topk", "topk"), ("batch_topk", "batchtopk")])
def test_topk__is_saelens(activation, architecture, decoder_norm):
    """No latent is dead: the auxiliary losses differ on purpose, see `objectives.py`."""
    made = ours(activation, decoder_norm=decoder_norm)

    their = saelens_step(architecture, made, k=K, rescale_acts_by_decoder_norm=decoder_norm == "weighted")

    assert_same(made.step(), their)


@pytest.mark.parametrize(("activation", "kind"), [("topk", "TopKTrainer"), ("batch_topk", "BatchTopKTrainer")])
def test_topk__is_dictionary_learnings(activation, kind):
    made = ours(activation)
    trainer, parameters = dictionary_learning_trainer(kind, made, k=K)

    assert_same(made.step(), gradients(trainer.loss(X, step=0), parameters))


@pytest.mark.parametrize(("activation", "kind"), [("topk", "TopKTrainer"), ("batch_topk", "BatchTopKTrainer")])
def test_auxiliary__is_dictionary_learnings_where_dead_latents_hear_the_same(activation, kind):
    """Ours hear x - mean(x) without their bias: what theirs hear if b_dec = mean(x) and b_enc = 0.

    Its gradient for b_dec and b_enc is theirs alone. Theirs weighs it against an error summed over units.
    """
    made, dead = ours(activation, auxiliary_coef=0.5, k=1), torch.arange(N_LATENTS) < 4
    with torch.no_grad():
        made.dictionary.b_dec.copy_(X.mean(dim=0))
        made.dictionary.b_enc.zero_()
        made.dictionary.W_enc[dead] *= 1e-2  # too weak to be among the largest
    trainer, parameters = dictionary_learning_trainer(kind, made, k=1, auxk_alpha=D * 0.5)
    trainer.num_tokens_since_fired[dead] = trainer.dead_feature_threshold

    own, without = made.step(dead=dead), made.step()
    their = gradients(trainer.loss(X, step=0), parameters)

    assert trainer.dead_features == 4
    assert own[0] > without[0] + 0.1
    assert_same(own, their, but=("b_enc", "b_dec"), tolerance=FLOAT32)


def test_jumprelu__has_saelens_gradient_for_the_same_pull_on_l0():
    """Theirs charges l L0, ours c (L0 / k - 1)^2: the same pull where l = 2 c (L0 / k - 1) / k."""
    made = ours("jumprelu", bandwidth=0.4)
    l0 = float(made.passed().l0)
    pull = 2 * PENALTY * (l0 / K - 1) / K

    own = with_threshold(made)
    their = saelens_step("jumprelu", made, PLAIN | {"threshold": "threshold"}, {"l0": D * pull}, jumprelu_bandwidth=0.4)

    assert_same_gradients(own, their, tolerance=FLOAT32)
    charged = own[0] - PENALTY * (l0 / K - 1) ** 2 + pull * l0
    torch.testing.assert_close(their[0], D * charged, **FLOAT32)


def test_jumprelu__is_saelens_quadratic_for_one_vector():
    """Theirs charges every vector for its own distance from the target, ours the batch for its mean."""
    made, x = ours("jumprelu", bandwidth=1.5), X[4:5]

    their = saelens_step(
        "jumprelu",
        made,
        PLAIN | {"threshold": "threshold"},
        {"l0": D * PENALTY / (2 * K)},
        x=x,
        jumprelu_bandwidth=1.5,
        jumprelu_sparsity_loss_mode="quadratic",
        target_l0=K,
    )

    assert_same(with_threshold(made, x), their, tolerance=FLOAT32)


def test_jumprelu__has_dictionary_learnings_loss():
    """Its gradient for the threshold has the upper half of the kernel only: it sees codes after the jump.

    It does not subtract b_dec from x, like a transcoder.
    """
    made = ours("jumprelu", transcoder=True, bandwidth=0.4)
    trainer, parameters = dictionary_learning_trainer(
        "JumpReluTrainer",
        made,
        PLAIN | {"threshold": "threshold"},
        bandwidth=0.4,
        sparsity_penalty=D * PENALTY,
        sparsity_warmup_steps=None,
        target_l0=K,
    )

    their = gradients(trainer.loss(X, step=0), parameters)

    assert_same(with_threshold(made), their, but=("threshold",), tolerance=FLOAT32)


def with_threshold(made: Ours, x=X) -> tuple[Tensor, dict[str, Tensor]]:
    """Our step, with the gradient for the threshold in place of its logarithm's: dL/dt = (dL/dlog t) / t."""
    loss, found = made.step(x)
    return loss, found | {"threshold": found["log_threshold"] / made.objective.log_threshold.exp().detach()}


@pytest.mark.parametrize("decoder_norm", ["unit", "weighted"])
def test_matryoshka__is_saelens(decoder_norm):
    made = ours("batch_topk", levels=LEVELS, decoder_norm=decoder_norm)

    their = saelens_step(
        "matryoshka_batchtopk",
        made,
        k=K,
        matryoshka_widths=[*LEVELS, N_LATENTS],
        rescale_acts_by_decoder_norm=decoder_norm == "weighted",
    )

    assert_same(made.step(), their, factor=D * (len(LEVELS) + 1))


def test_matryoshka__is_dictionary_learnings():
    made = ours("batch_topk", levels=LEVELS)
    shares = [size / N_LATENTS for size in made.objective.sizes]
    trainer, parameters = dictionary_learning_trainer(
        "Matryoshka", made, PLAIN, k=K, group_fractions=shares, group_weights=[1.0, 1.0, 1.0]
    )

    assert_same(made.step(), gradients(trainer.loss(X, step=0), parameters))


@pytest.mark.parametrize("skip", [False, True])
def test_transcoder__is_saelens(skip):
    """Their transcoders are for inference: the loss is written here, on their forward pass."""
    made, y = ours("relu", transcoder=True, skip=skip), draw(N_SAMPLES, D, seed=1)
    kind, config = sae_lens().registry.get_sae_class("skip_transcoder" if skip else "transcoder")
    theirs = kind(config(d_in=D, d_out=D, d_sae=N_LATENTS, apply_b_dec_to_input=False, dtype="float64")).double()
    parameters = same_weights(made, theirs, PLAIN | ({"W_skip": "W_skip"} if skip else {}))

    error = (theirs(X) - y).square().sum(dim=1) + D * PENALTY * theirs.encode(X).sum(dim=1)

    assert_same(made.step(X, y), gradients(error.mean(), parameters))
