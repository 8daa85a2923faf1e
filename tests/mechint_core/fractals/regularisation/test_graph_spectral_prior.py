import doctest
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from mechint_core.errors import ConfigurationError, DegenerateInputError, DtypeError, ShapeError
from mechint_core.fractals import GraphSpectralPrior
from mechint_core.fractals.regularisation import graph_spectral_prior
from mechint_core.random import generator, torch_generator

EXPONENTS = [-1.0, 0.0, 1.0, 2.0, 4.0]


def ring(n_nodes: int) -> torch.Tensor:
    one = torch.eye(n_nodes, dtype=torch.float64)
    return one.roll(1, dims=0) + one.roll(-1, dims=0)


def grid(side: int) -> torch.Tensor:
    """A square sheet: many of its frequencies belong to two modes."""
    path = torch.diag(torch.ones(side - 1, dtype=torch.float64), 1)
    path = path + path.T
    one = torch.eye(side, dtype=torch.float64)
    return torch.kron(path, one) + torch.kron(one, path)


def random_graph(n_nodes: int, seed: int = 0) -> torch.Tensor:
    weight = generator(seed, "graph").exponential(size=(n_nodes, n_nodes)) ** 3
    return torch.from_numpy(np.triu(weight, 1) + np.triu(weight, 1).T)


GRAPHS = {"ring": ring(40), "odd ring": ring(41), "grid": grid(7), "random": random_graph(40)}


def white(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_generator(seed, "hidden"), dtype=torch.float64)


def planted(adjacency: torch.Tensor, exponent: float, n_states: int) -> torch.Tensor:
    """States whose power over the modes of the graph is sqrt(mu)^-exponent."""
    mu, modes = np.linalg.eigh(np.diag(adjacency.sum(dim=1)) - adjacency.numpy())
    amplitude = np.where(mu > 1e-9, np.maximum(mu, 1e-9) ** (-exponent / 4), 1.0)
    return torch.from_numpy((white(n_states, len(mu)).numpy() * amplitude) @ modes.T)


# Known answer
@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_graph_spectral_prior__exponent_of_planted_states(graph, exponent):
    """2000 states: each log power has a standard error of 0.03, their slope one of 0.01."""
    hidden = planted(GRAPHS[graph], exponent, 2000)

    assert GraphSpectralPrior(GRAPHS[graph], 1.0).exponent(hidden).item() == pytest.approx(exponent, abs=0.03)


def test_graph_spectral_prior__exponent_of_modes_is_exact():
    """One state per mode, scaled: no sampling at all."""
    mu, modes = torch.linalg.eigh(torch.diag(ring(16).sum(dim=1)) - ring(16))
    hidden = (modes * mu.clamp(min=1e-3) ** -0.75).T

    assert GraphSpectralPrior(ring(16), 1.0).exponent(hidden).item() == pytest.approx(3, abs=1e-12)


def test_graph_spectral_prior__of_a_free_field_is_2():
    """A Gaussian field on the grid with precision L + a little, drawn by Cholesky: no eigenvector is used."""
    laplacian = np.diag(grid(6).sum(dim=1)) - grid(6).numpy()
    factor = np.linalg.cholesky(np.linalg.inv(laplacian + 1e-6 * np.eye(36)))
    hidden = torch.from_numpy(white(4000, 36).numpy() @ factor.T)

    assert GraphSpectralPrior(grid(6), 1.0).exponent(hidden).item() == pytest.approx(2, abs=0.03)


@pytest.mark.parametrize("target", [-1.0, 1.0, 2.0])
def test_graph_spectral_prior__adam_takes_independent_units_to_the_target_in_200_steps(target):
    hidden = white(10, 20, 49).requires_grad_()
    prior = GraphSpectralPrior(grid(7), target)
    adam = torch.optim.Adam([hidden], lr=0.1)

    for _ in range(200):
        adam.zero_grad()
        prior(hidden).backward()
        adam.step()

    assert prior.exponent(hidden).item() == pytest.approx(target, abs=0.05)


def test_graph_spectral_prior__is_the_weighted_square_of_what_is_missing():
    hidden = white(5, 40)
    prior = GraphSpectralPrior(ring(40), target_exponent=2.0, weight=0.1)

    assert prior(hidden).item() == pytest.approx(0.1 * (prior.exponent(hidden).item() - 2) ** 2, rel=1e-12)


@pytest.mark.parametrize("level", [0.0, 0.1, -1e8])
def test_graph_spectral_prior__of_equal_units_is_0_with_gradient_0(level):
    hidden = torch.full((30, 40), level, requires_grad=True)
    prior = GraphSpectralPrior(ring(40), 1.0)

    penalty = prior(hidden)
    penalty.backward()

    assert penalty.item() == 0
    assert hidden.grad.abs().max() == 0
    assert prior.exponent(hidden).isnan()


def test_graph_spectral_prior__of_equal_units_within_each_component_is_0():
    two_rings = torch.block_diag(ring(12), ring(12))
    hidden = (white(30, 2).repeat_interleave(12, dim=1)).requires_grad_()

    penalty = GraphSpectralPrior(two_rings, 1.0)(hidden)
    penalty.backward()

    assert penalty.item() == 0
    assert hidden.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_graph_spectral_prior__of_one_mode_alone_is_finite(dtype):
    wave = torch.cos(2 * torch.pi * torch.arange(40, dtype=dtype) / 8).requires_grad_()

    penalty = GraphSpectralPrior(ring(40), 1.0)(wave)
    penalty.backward()

    assert torch.isfinite(penalty)
    assert torch.isfinite(wave.grad).all()


# Oracle
@pytest.mark.parametrize("n_nodes", [12, 33])
def test_graph_spectral_prior__on_a_ring_is_the_slope_of_the_fourier_spectrum(n_nodes):
    """On a ring the modes are Fourier's: two of each frequency, but one of the last where n is even."""
    hidden = white(50, n_nodes)
    k = np.arange(1, n_nodes // 2 + 1)
    power = (np.abs(np.fft.rfft(hidden.numpy(), axis=1)) ** 2).mean(axis=0)[1:]
    times = np.where(2 * k == n_nodes, 1, 2)

    expected = -np.polyfit(np.log(2 * np.sin(np.pi * k / n_nodes)), np.log(power), 1, w=np.sqrt(times))[0]

    assert GraphSpectralPrior(ring(n_nodes), 1.0).exponent(hidden).item() == pytest.approx(expected, abs=1e-10)


# Law
@pytest.mark.parametrize("graph", [ring(6), grid(3), random_graph(7)])
def test_graph_spectral_prior__gradient_is_that_of_finite_differences(graph):
    hidden = white(4, len(graph)).requires_grad_()

    assert torch.autograd.gradcheck(GraphSpectralPrior(graph, 1.0, 0.7), (hidden,), atol=1e-6)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), graph=st.sampled_from(sorted(GRAPHS)))
def test_graph_spectral_prior__ignores_the_names_of_nodes(seed, graph):
    """Also where frequencies have several modes, of which eigh returns others for another order of the nodes."""
    adjacency = GRAPHS[graph]
    order = torch.from_numpy(generator(seed, "order").permutation(len(adjacency)))
    hidden = white(20, len(adjacency), seed=seed)

    renamed = GraphSpectralPrior(adjacency[order][:, order], 1.0).exponent(hidden[:, order])

    assert renamed.item() == pytest.approx(GraphSpectralPrior(adjacency, 1.0).exponent(hidden).item(), abs=1e-9)


@given(seed=st.integers(0, 2**31), power=st.floats(-8, 8), shift=st.floats(-10, 10))
def test_graph_spectral_prior__ignores_scale_of_states_and_of_weights_and_shift(seed, power, shift):
    x = white(10, 12, seed=seed)
    prior = GraphSpectralPrior(ring(12), 1.0)
    expected = pytest.approx(prior.exponent(x).item(), abs=1e-10)

    assert prior.exponent(10.0**power * x).item() == expected
    assert prior.exponent(x + shift).item() == expected
    assert GraphSpectralPrior(10.0**power * ring(12), 1.0).exponent(x).item() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [-90, -27, 27, 90])
def test_graph_spectral_prior__scaled_by_a_power_of_two_has_the_same_bits(dtype, power):
    x = white(5, 12).to(dtype)
    scaled = (x * 2.0**power).requires_grad_()
    prior = GraphSpectralPrior(ring(12), 1.0)

    penalty = prior(scaled)
    penalty.backward()

    assert penalty.item() == prior(x).item()
    assert torch.isfinite(scaled.grad).all()


def test_graph_spectral_prior__takes_every_state_alike():
    x = white(4, 30, 12)
    prior = GraphSpectralPrior(ring(12), 1.0)

    assert prior.exponent(x).item() == pytest.approx(prior.exponent(x.reshape(-1, 12).flip(0)).item(), abs=1e-12)
    assert prior.exponent(x[0, 0]).item() == prior.exponent(x[0, :1]).item()


def test_graph_spectral_prior__keeps_its_graph_in_the_state():
    prior, other = GraphSpectralPrior(random_graph(12), 1.0), GraphSpectralPrior(random_graph(12, seed=1), 1.0)
    other.load_state_dict(prior.state_dict())

    assert other(white(5, 12)).item() == prior(white(5, 12)).item()
    assert not list(prior.parameters())


def test_graph_spectral_prior__examples_are_true():
    assert doctest.testmod(graph_spectral_prior, extraglobs={"torch": torch}).failed == 0


# Bad input
@pytest.mark.parametrize(
    ("adjacency", "error", "message"),
    [
        (torch.ones(3, 4), ShapeError, r"must be \(node, node\). Got shape \(3, 4\)"),
        (torch.ones(3), ShapeError, r"must be \(node, node\)"),
        (torch.full((3, 3), math.nan), DegenerateInputError, "must be finite"),
        (-ring(9), DegenerateInputError, "symmetric and not negative"),
        (ring(9).triu(), DegenerateInputError, "two directions that differ"),
        (torch.ones(9, 9), DegenerateInputError, "at least 3 different frequencies above 0. Got 1"),
        (torch.zeros(9, 9), DegenerateInputError, "at least 3 different frequencies above 0. Got 0"),
        (ring(5), DegenerateInputError, "at least 3 different frequencies above 0. Got 2"),
    ],
)
def test_graph_spectral_prior__raises_on_what_is_no_graph(adjacency, error, message):
    with pytest.raises(error, match=message):
        GraphSpectralPrior(adjacency, 1.0)


@pytest.mark.parametrize(("target", "weight"), [(math.inf, 1.0), (1.0, -1.0)])
def test_graph_spectral_prior__raises_on_an_impossible_option(target, weight):
    with pytest.raises(ConfigurationError, match="must be finite"):
        GraphSpectralPrior(ring(9), target, weight)


@pytest.mark.parametrize("shape", [(4, 8), (), (0, 9)])
def test_graph_spectral_prior__raises_where_units_are_not_the_nodes(shape):
    with pytest.raises(ShapeError, match=r"must have 9 units, one per node. Got shape"):
        GraphSpectralPrior(ring(9), 1.0)(torch.ones(shape))


def test_graph_spectral_prior__raises_on_values_that_are_not_real_or_not_finite():
    with pytest.raises(DtypeError, match="must hold real numbers"):
        GraphSpectralPrior(ring(9), 1.0)(torch.ones(4, 9, dtype=torch.int64))
    with pytest.raises(DegenerateInputError, match="NaN or infinity in 36 of 36"):
        GraphSpectralPrior(ring(9), 1.0)(torch.full((4, 9), math.inf))
