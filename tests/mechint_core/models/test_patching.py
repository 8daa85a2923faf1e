"""Writing into activations of a live model."""

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from mechint_core.errors import NotFoundError, ShapeError
from mechint_core.models import Patch, capture, inference, patched, rewritten, select
from mechint_core.random import torch_generator


def network():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    draws = torch_generator(0, "test model")
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=draws)
    return model


def inputs(n=5, stream="x"):
    return torch.randn(n, 3, generator=torch_generator(0, stream))


def hooks_of(model):
    return sum(len(each._forward_hooks) for each in model.modules())


# Known answer
def test_patched__whole_activation_decides_everything_after_it():
    model = network()
    values = torch.full((5, 4), -2.0)
    with patched(model, [Patch("0", values)]):
        output = model(inputs())
    assert torch.equal(output, model[2](torch.zeros(5, 4)))
    assert torch.equal(values, torch.full((5, 4), -2.0))  # the in-place ReLU after it wrote into a copy
    assert hooks_of(model) == 0


def test_patched__selected_rows_and_positions_only():
    model = nn.Sequential(nn.Identity())
    x = torch.zeros(3, 4, 2)
    with patched(model, [Patch("0", torch.ones(2, 2), select(slice(1, 3), -1, 0))]):
        rows_first = model(x)
    with patched(model, [Patch("0", torch.ones(2, 2), select(slice(1, 3), -1, 1))]):
        positions_first = model(x)
    assert rows_first.sum() == 4
    assert (rows_first[1:, 3] == 1).all()
    assert positions_first.sum() == 4
    assert (positions_first[-1, 1:3] == 1).all()
    assert x.sum() == 0


def test_patched__later_patches_at_a_site_win():
    model = nn.Sequential(nn.Identity())
    with patched(model, [Patch("0", torch.ones(2, 1)), Patch("0", torch.full((1, 1), 5.0), (slice(0, 1),))]):
        assert model(torch.zeros(2, 1)).tolist() == [[5.0], [1.0]]


def test_patched__replaces_the_hidden_part_of_a_tuple():
    model = nn.Sequential(nn.LSTM(3, 3))
    with patched(model, [Patch("0", torch.ones(4, 2, 3))]):
        output, (hidden, _) = model(torch.zeros(4, 2, 3))
    assert (output == 1).all()
    assert (hidden != 1).all()


# Oracle
def test_patched__equals_running_the_rest_of_the_network():
    model, x = network(), inputs()
    values = inputs(stream="other") @ torch.ones(3, 4)
    with patched(model, [Patch("0", values)]):
        assert torch.equal(model(x), model[1:](values.clone()))


# Law
@given(st.sampled_from(["self_attn", "linear1", "linear2", "norm1", "dropout"]), st.booleans())
def test_patched__writing_what_was_read_changes_no_bit(site, batch_first):
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.4, batch_first=batch_first)
    x = torch.randn(4, 6, 8, generator=torch_generator(0, "x"))
    with inference(model):
        with capture(model, [site]) as seen:
            plain = model(x)
        with patched(model, [Patch(site, seen[site])]):
            assert torch.equal(model(x), plain)
        assert torch.equal(model(x), plain)


@given(st.permutations(["0", "2"]))
def test_patched__order_of_sites_does_not_matter(sites):
    model = network()
    values = {"0": torch.ones(5, 4), "2": torch.ones(5, 2)}
    with patched(model, [Patch(site, values[site], (slice(0, 5),)) for site in sites]):
        assert torch.equal(model(inputs()), values["2"])


# Bad input
def test_patched__raises_on_values_of_another_shape_and_removes_its_hooks():
    model = network()
    wrong = [Patch("0", torch.ones(1, 4))]
    message = r"'0' must have the shape of what it replaces, \(5, 4\). Got \(1, 4\)"
    with pytest.raises(ShapeError, match=message), patched(model, wrong):
        model(inputs())
    assert hooks_of(model) == 0


def test_patched__raises_on_an_unknown_site_and_removes_its_hooks():
    model = network()
    patches = [Patch("0", torch.ones(1, 4)), Patch("7", torch.ones(1))]
    with pytest.raises(NotFoundError, match="'7'"), patched(model, patches):
        pass
    assert hooks_of(model) == 0


def test_rewritten__replaces_and_passes_gradients_and_leaves_no_hook():
    model, x = network(), inputs()
    with rewritten(model, "0", lambda h: 2 * h):
        doubled = model(x)
    assert torch.equal(doubled, model[2](torch.relu(2 * model[0](x))))

    x.requires_grad_()
    with rewritten(model, "0", lambda h: h.square()):
        model(x).sum().backward()
    assert x.grad is not None
    assert hooks_of(model) == 0


def test_rewritten__refuses_another_shape():
    model = network()
    with pytest.raises(ShapeError, match="must have its shape"), rewritten(model, "0", lambda h: h[:, :2]):
        model(inputs())
    assert hooks_of(model) == 0
