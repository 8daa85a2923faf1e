"""What training minimises, kind by kind, against the equations as the papers print them."""

import pytest
import torch
from torch.nn import functional

from mechint_core.features import SparseAutoencoder, SparseAutoencoderConfig, Transcoder
from mechint_core.features.dictionaries.objectives import OBJECTIVES, Moment
from mechint_core.random import torch_generator

ACTIVATIONS = ("batch_topk", "topk", "relu", "gated", "jumprelu")
NONE_DEAD = torch.zeros(12, dtype=torch.bool)
WHOLE = Moment(penalty=1.0, share=1.0, dead=NONE_DEAD)
HALF = Moment(penalty=0.5, share=0.5, dead=NONE_DEAD)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch_generator(seed, "test"), dtype=torch.float64)


def made(activation, *, kind=SparseAutoencoder, **options):
    """Six units, twelve latents, all weights random, in float64; and its objective, random too."""
    config = SparseAutoencoderConfig(activation=activation, k=3, n_latents=12, **options)
    dictionary = (kind(6, 12, config=config) if kind is SparseAutoencoder else kind(6, 4, config=config)).double()
    objective = OBJECTIVES[activation](dictionary.config, 12).double()
    with torch.no_grad():
        for at, (name, parameter) in enumerate(sorted(dictionary.named_parameters())):
            parameter.copy_(draw(*parameter.shape, seed=100 + at) * (0.3 if name.startswith("b_") else 1))
        for at, (_, parameter) in enumerate(sorted(objective.named_parameters())):
            parameter.add_(0.2 * draw(*parameter.shape, seed=200 + at))
        if config.unit_norm:
            dictionary.W_dec.copy_(functional.normalize(dictionary.W_dec, dim=1))
    return dictionary, objective


def gradients(loss, *modules):
    parameters = [parameter for module in modules for _, parameter in sorted(module.named_parameters())]
    return torch.autograd.grad(loss, parameters, allow_unused=True)


def agree(loss, oracle, *modules) -> bool:
    """The same sums in float64, in another order."""
    torch.testing.assert_close(loss, oracle, rtol=1e-12, atol=0)
    for own, true in zip(gradients(loss, *modules), gradients(oracle, *modules), strict=True):
        torch.testing.assert_close(own, true, rtol=1e-9, atol=1e-12)
    return True


# Known answer
def test_levels__average_the_error_of_every_prefix():
    """Matryoshka: the codes are those of the flat dictionary, and each prefix reconstructs alone."""
    nested, objective = made("topk", levels=(2, 7))
    x = draw(40, 6)

    codes = nested.encode(x)
    errors = [(x - codes[:, :end] @ nested.W_dec[:end] - nested.b_dec).square().mean() for end in (2, 7, 12)]

    assert agree(objective(nested, x, x, WHOLE).loss, torch.stack(errors).mean(), nested)


def test_penalty__has_the_size_of_the_sum_and_the_slope_of_the_power():
    dictionary, objective = made("relu", p_end=0.5, sparsity_coef=2.0)
    x = draw(40, 6)
    codes = functional.relu((x - dictionary.b_dec) @ dictionary.W_enc.T + dictionary.b_enc)
    codes = codes * dictionary.W_dec.norm(dim=1)
    powers = torch.where(codes > 0, codes.clamp_min(1e-4), 0).pow(0.5).sum()

    error = (x - codes @ functional.normalize(dictionary.W_dec, dim=1) - dictionary.b_dec).square().mean()
    oracle = error + 2 * (codes.sum() / powers).detach() / 40 * powers
    found = objective(dictionary, x, x, WHOLE).loss

    assert (found - error).item() == pytest.approx(2 * codes.sum().item() / 40)
    assert agree(found, oracle, dictionary)


def test_jump__passes_gradients_to_thresholds_through_the_kernel():
    """The rectangle of width h around t: codes inside it pull with t / h, L0 with 1 / h."""
    dictionary, objective = made("jumprelu", bandwidth=0.4, sparsity_coef=0.7, auxiliary_coef=0.0)
    x = draw(60, 6)
    found = objective(dictionary, x, x, WHOLE)
    (slope,) = torch.autograd.grad(found.loss, [objective.log_threshold])

    pre = (x - dictionary.b_dec) @ dictionary.W_enc.T + dictionary.b_enc
    t = objective.log_threshold.exp().detach()
    codes = torch.where(pre > t, pre, 0)
    error = x - codes @ dictionary.W_dec - dictionary.b_dec
    to_codes = -2 * error @ dictionary.W_dec.T / x.numel()
    near = ((pre - t).abs() < 0.2).double()
    to_l0 = 0.7 * 2 * ((codes > 0).double().sum() / 60 / 3 - 1) / 3
    oracle = -(near * to_codes).sum(dim=0) * t / 0.4 - near.sum(dim=0) / 60 * to_l0 / 0.4

    assert near.sum() > 10
    torch.testing.assert_close(slope, oracle * t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("silenced_by", ["bias", "direction"])
def test_auxiliary__reaches_a_latent_that_never_opens(silenced_by):
    """No gradient passes a closed ReLU; the auxiliary loss must reach such a latent all the same."""
    dictionary, objective = made("topk", auxiliary_coef=1.0)
    x = draw(50, 6) + 20
    if silenced_by == "bias":
        dictionary.b_enc.data[0] = -1e3
    else:
        dictionary.W_enc.data[0] = -1.0
    dead = torch.arange(12) == 0

    objective(dictionary, x, x, Moment(1.0, 1.0, dead)).loss.backward()

    assert dictionary.W_enc.grad[0].norm() > 1e-3
    assert dictionary.W_dec.grad[0].norm() > 1e-3


# Oracle
@pytest.mark.parametrize("tied_weights", [False, True])
@pytest.mark.parametrize("activation", ["batch_topk", "topk", "relu"])
def test_objective__equals_the_textbook_form_with_its_gradients(activation, tied_weights):
    """Dense, with b_dec subtracted from x."""
    dictionary, objective = made(activation, tied_weights=tied_weights, sparsity_coef=0.3)
    x = draw(40, 6)

    pre = functional.linear(x - dictionary.b_dec, dictionary.W_enc, dictionary.b_enc)
    codes = functional.relu(pre)
    if activation == "topk":
        codes = codes * torch.zeros_like(pre).scatter(1, pre.topk(3, dim=1).indices, 1.0)
    if activation == "batch_topk":
        codes = codes * (pre >= pre.flatten().topk(120).values[-1])
    oracle = (x - codes @ dictionary.W_dec - dictionary.b_dec).square().sum() / x.numel()
    if activation == "relu":
        norms = 1.0 if tied_weights else dictionary.W_dec.norm(dim=1)  # tied rows are kept at norm 1
        oracle = oracle + 0.3 * 0.5 * (codes * norms).sum(dim=1).mean()
    found = objective(dictionary, x, x, HALF)

    assert agree(found.loss, oracle, dictionary)
    assert found.l0.item() == pytest.approx(((codes > 0).sum() / 40).item())
    assert torch.equal(found.fired, (codes > 0).any(dim=0))


def test_gated__equals_the_textbook_form_with_its_gradients():
    """Magnitudes and gates share W_enc up to e^r; the gate's own reconstruction holds the decoder constant."""
    dictionary, objective = made("gated", sparsity_coef=0.3)
    x = draw(40, 6)

    z = (x - dictionary.b_dec) @ dictionary.W_enc.T
    norm = dictionary.W_dec.norm(dim=1)
    b_gate, b_mag = objective.b_gate, dictionary.b_enc
    gate = functional.relu(z + b_gate)
    codes = (gate > 0) * functional.relu(z * objective.r.exp() + b_mag)
    error = x - codes @ dictionary.W_dec - dictionary.b_dec
    held = dictionary.W_dec.detach() / norm.detach()[:, None]
    by_gate = x - (gate * norm) @ held - dictionary.b_dec.detach()
    sparsity = 0.3 * (gate * norm).sum(dim=1).mean()

    assert agree(
        objective(dictionary, x, x, WHOLE).loss,
        error.square().mean() + by_gate.square().mean() + sparsity,
        dictionary,
        objective,
    )


def test_auxiliary__is_the_share_of_the_detached_residual_that_dead_latents_miss():
    dictionary, objective = made("topk", auxiliary_coef=0.25)
    x, dead = draw(40, 6), torch.arange(12) < 5
    alive = objective(dictionary, x, x, WHOLE)

    residual = alive.error
    pre = functional.relu((x - x.mean(dim=0)) @ dictionary.W_enc[dead].T)
    codes = pre * torch.zeros_like(pre).scatter(1, pre.topk(3, dim=1).indices, 1.0)  # d / 2 = 3 of the 5
    missed = (residual - codes @ dictionary.W_dec[dead]).square().sum()
    oracle = alive.loss + 0.25 * missed / (residual - residual.mean(dim=0)).square().sum()

    assert agree(objective(dictionary, x, x, Moment(1.0, 1.0, dead)).loss, oracle, dictionary)


@pytest.mark.parametrize("levels", [(), (2, 7)])
@pytest.mark.parametrize("activation", ["batch_topk", "topk", "relu"])
def test_objective__passes_gradcheck(activation, levels):
    dictionary, objective = made(activation, sparsity_coef=0.3, levels=levels)
    x = draw(7, 6)
    parameters = dict(dictionary.named_parameters())

    def loss(*values):
        call = torch.func.functional_call
        replaced = dict(zip(parameters, values, strict=True))
        return call(_Loss(dictionary, objective), {f"dictionary.{name}": each for name, each in replaced.items()}, (x,))

    assert torch.autograd.gradcheck(loss, tuple(parameters.values()))


class _Loss(torch.nn.Module):
    def __init__(self, dictionary, objective):
        super().__init__()
        self.dictionary, self.objective = dictionary, objective

    def forward(self, x):
        return self.objective(self.dictionary, x, x, WHOLE).loss


# Law
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("decoder_norm", ["unit", "weighted"])
def test_fold__gives_the_dictionary_that_was_trained(activation, decoder_norm):
    """Its reconstruction of the batch leaves the very error that training saw, and its rows have norm 1."""
    dictionary, objective = made(activation, decoder_norm=decoder_norm)
    x = draw(40, 6)
    passed = objective(dictionary, x, x, WHOLE)

    objective.fold(dictionary)
    if activation == "batch_topk":
        dictionary.threshold.fill_(passed.threshold * (1 - 1e-12))

    torch.testing.assert_close(x - dictionary(x), passed.error, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(12).double())
    assert ((dictionary.encode(x) > 0).sum() / 40).item() == pytest.approx(passed.l0.item())


@pytest.mark.parametrize("activation", ["batch_topk", "topk", "relu", "gated"])
def test_objective__does_not_see_a_norm_moved_from_decoder_to_encoder(activation):
    """Norm-weighted: what a row's length gains, its latent's code pays."""
    dictionary, objective = made(activation, decoder_norm="weighted", sparsity_coef=0.3)
    x, factor = draw(40, 6), draw(12, seed=5).exp()
    before = objective(dictionary, x, x, WHOLE).loss

    with torch.no_grad():
        dictionary.W_dec.mul_(factor[:, None])
        dictionary.W_enc.div_(factor[:, None])
        dictionary.b_enc.div_(factor)
        if activation == "gated":
            objective.b_gate.div_(factor)

    torch.testing.assert_close(objective(dictionary, x, x, WHOLE).loss, before)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_objective__of_a_transcoder_is_the_error_of_what_it_writes(activation):
    dictionary, objective = made(activation, kind=Transcoder, sparsity_coef=0.0, auxiliary_coef=0.0)
    x, y = draw(40, 6), draw(40, 4, seed=1)

    passed = objective(dictionary, x, y, WHOLE)
    objective.fold(dictionary)
    if activation == "batch_topk":
        dictionary.threshold.fill_(passed.threshold * (1 - 1e-12))

    torch.testing.assert_close(y - dictionary(x), passed.error, rtol=1e-9, atol=1e-9)
