import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from mechint_core.features.dictionaries.sparse_codes import SparseCodes, batch_topk, sparse_encode, topk
from mechint_core.random import torch_generator


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch_generator(seed, "test"), dtype=torch.float64)


def encoder(n=6, d=5, n_latents=8, seed=0):
    x, weight, bias = draw(n, d, seed=seed), draw(n_latents, d, seed=seed + 1), draw(n_latents, seed=seed + 2)
    return x, weight.requires_grad_(), bias.requires_grad_()


def dense_mask(codes, n_latents):
    ones = torch.ones_like(codes.values)
    return SparseCodes(ones, codes.latents, codes.starts).dense(n_latents)


# Known answer
def test_topk__keeps_exactly_k_of_every_sample():
    x, weight, bias = encoder(n=50)

    kept = dense_mask(sparse_encode(x, weight, bias, topk(3)), 8)

    assert (kept.sum(dim=1) == 3).all()


def test_batch_topk__keeps_exactly_k_per_sample_over_the_batch_and_not_in_each():
    x, weight, bias = encoder(n=50)

    kept = dense_mask(sparse_encode(x, weight, bias, batch_topk(2.5)), 8)

    assert kept.sum() == 125
    assert len(set(kept.sum(dim=1).tolist())) > 1


def test_batch_topk__ties_go_to_the_earliest():
    pre = torch.tensor([[1.0, 2.0, 2.0], [2.0, 0.0, 2.0]])

    latents, starts = batch_topk(1.5)(pre)

    assert (latents.tolist(), starts.tolist()) == ([1, 2, 0], [0, 2])


def test_batch_topk__survives_a_threshold_guess_from_unlucky_values():
    """Every 257th value is a giant, so the guessed threshold leaves too few candidates."""
    pre = draw(257, 40)
    pre.view(-1)[::257] = 1e6

    latents, starts = batch_topk(10)(pre)

    kept = SparseCodes(torch.ones(len(latents), dtype=torch.float64), latents, starts).dense(40) > 0
    assert kept.sum() == 2570
    assert pre[kept].min() >= pre[~kept].max()


def test_sparse_encode__leaves_negative_entries_at_zero():
    x, weight = torch.ones(2, 1), -torch.ones(3, 1)

    assert (sparse_encode(x, weight, torch.zeros(3), topk(2)).values == 0).all()


# Oracle
@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 12), st.integers(0, 20), st.booleans())
def test_sparse_encode__equals_the_masked_dense_encoder_with_its_gradients(n, k, n_latents, seed, whole_batch):
    """The oracle is autograd through the dense product; both sum the same terms, in float64."""
    k = min(k, n_latents)
    x, weight, bias = encoder(n, 5, n_latents, seed)
    decoder, target = draw(n_latents, 5, seed=seed + 3).requires_grad_(), draw(n, 5, seed=seed + 4)
    x.requires_grad_()
    leaves = (x, weight, bias, decoder)

    codes = sparse_encode(x, weight, bias, (batch_topk if whole_batch else topk)(k))
    ours = (codes.matmul(decoder) - target).square().sum()
    dense = torch.relu(x @ weight.T + bias) * dense_mask(codes, n_latents)
    oracle = (dense @ decoder - target).square().sum()

    torch.testing.assert_close(codes.dense(n_latents), dense, rtol=1e-12, atol=1e-12)
    for own, true in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(oracle, leaves), strict=True):
        torch.testing.assert_close(own, true, rtol=1e-9, atol=1e-9)


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 30), st.floats(0.05, 30), st.integers(0, 20))
def test_batch_topk__equals_sorting_everything(n, n_latents, k, seed):
    pre = draw(n, n_latents, seed=seed)
    kept = min(pre.numel(), max(1, round(k * n)))

    latents, starts = batch_topk(k)(pre)

    mask = SparseCodes(torch.ones(len(latents), dtype=torch.float64), latents, starts).dense(n_latents) > 0
    oracle = torch.zeros(pre.numel(), dtype=torch.bool)
    oracle[pre.flatten().argsort(descending=True)[:kept]] = True
    assert (mask.flatten() == oracle).all()


def test_sparse_encode__passes_gradcheck():
    x, weight, bias = encoder()

    def values(x, weight, bias):
        return sparse_encode(x, weight, bias, topk(3)).values

    assert torch.autograd.gradcheck(values, (x.requires_grad_(), weight, bias))


# Law
@settings(max_examples=30)
@given(st.integers(1, 20), st.integers(1, 10), st.integers(0, 20))
def test_transpose__is_the_transposed_matrix(n, n_latents, seed):
    latents, starts = batch_topk(min(2, n_latents))(draw(n, n_latents, seed=seed))
    codes = SparseCodes(draw(len(latents), seed=seed + 1), latents, starts)

    assert torch.equal(codes.transpose(n_latents).dense(n), codes.dense(n_latents).T)


# Bad input
def test_topk__refuses_more_entries_than_there_are():
    with pytest.raises(RuntimeError, match="out of range"):
        topk(9)(torch.zeros(2, 8))
