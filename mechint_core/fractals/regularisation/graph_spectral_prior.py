"""A penalty that shapes hidden states over a graph of their units: rough from node to node, or smooth over regions.

    L       = D - A = sum_k mu_k u_k u_k'              D: the nodes' summed weights
    P_k     = mean of (u_k . h)^2 over states, and over the modes that have the same mu
    beta    = -slope of ln P_k over ln sqrt(mu_k)      mu_k > 0
    penalty = weight * (beta - target)^2

On a ring sqrt(mu_k) = 2 sin(pi k / n) is the spatial frequency, so power is 1 / frequency^beta as in `SpectralPrior`: 0
for units that know nothing of their neighbours, 2 for the Gaussian field whose precision is L, 4 for that of L^2. Which
modes of one mu `eigh` returns is arbitrary; their mean power is not.

Source: [@shuman2013]
Cost: one eigendecomposition for the graph, then states x node^2 multiplications.
"""

from typing import Final, cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechint_core.errors import DegenerateInputError, ShapeError
from mechint_core.fractals.regularisation._hidden_states import (
    in_single_precision,
    mean_square,
    power_of_two_above,
    require_exponent,
    require_finite,
    require_real,
    require_weight,
    rounding_floor,
    slope,
)

SAME: Final = 1e-9
"""Eigenvalues closer than this share of the largest are one."""


@final
class GraphSpectralPrior(nn.Module):
    """A penalty on hidden states whose power over the modes of a graph is not 1 / sqrt(mu)^target_exponent.

    The graph says which units are neighbours: places on a sheet, recurrent connections, similar tuning. Each state is
    a signal on it, less its mean over every component. The power law is assumed, not tested.

    Parameters
    ----------
    adjacency
        Weights (node, node) of an undirected graph: symmetric, not negative. One node per unit; the diagonal has no
        effect.
    target_exponent
        The beta to reach.
    weight
        Factor of the penalty, at least 0.

    Raises
    ------
    ConfigurationError
        If the target is not finite, or the weight negative or not finite.
    ShapeError
        If `adjacency` is not square.
    DegenerateInputError
        If `adjacency` is not finite or not symmetric, has a negative weight, or fewer than 3 different frequencies.

    References
    ----------
    [@shuman2013]

    Examples
    --------
    On a ring of 64 units, independent units have exponent 0:

    >>> ring = torch.eye(64).roll(1, dims=0) + torch.eye(64).roll(-1, dims=0)
    >>> hidden = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    >>> GraphSpectralPrior(ring, target_exponent=2.0).exponent(hidden).abs() < 0.02
    tensor(True)
    """

    def __init__(self, adjacency: Tensor, target_exponent: float, weight: float = 1.0) -> None:
        super().__init__()
        require_exponent(target_exponent)
        require_weight(weight)
        self.target_exponent, self.weight = target_exponent, weight
        modes, same, mu, first = _modes(adjacency)
        self.register_buffer("modes", modes)
        self.register_buffer("first", first)
        self.register_buffer("same", same)
        self.register_buffer("log_frequency", mu.log() / 2)

    def forward(self, hidden: Tensor) -> Float[Tensor, ""]:
        """Return the penalty of states (..., unit); 0, with gradient 0, where the nodes of each component are equal.

        Raises
        ------
        DtypeError
            If `hidden` does not hold real numbers.
        ShapeError
            If its last axis is not the nodes, or there is no state.
        DegenerateInputError
            If a value is NaN or infinite.
        """
        beta, varies = self._exponent(hidden)
        return self.weight * mean_square(beta - self.target_exponent, varies)

    def exponent(self, hidden: Tensor) -> Float[Tensor, ""]:
        """Return the beta of states (..., unit), NaN where the nodes of each component are equal."""
        beta, varies = self._exponent(hidden)
        return torch.where(varies, beta, torch.nan)[0]

    def extra_repr(self) -> str:
        """Say what is asked for."""
        return f"target_exponent={self.target_exponent}, weight={self.weight}"

    def _exponent(self, hidden: Tensor) -> tuple[Float[Tensor, "1"], Bool[Tensor, "1"]]:
        x = self._states(hidden)
        modes, same, log_frequency = (cast(Tensor, each).to(x) for each in (self.modes, self.same, self.log_frequency))
        power = (same @ (x @ modes).square().mean(dim=0))[:, None]
        floor = rounding_floor(x.dtype) * x.detach().square().mean()
        varies = power.detach().mean(dim=0) > floor
        log_power = torch.log(torch.where(varies, power + floor, 1))
        return -slope(log_frequency, log_power), varies

    def _states(self, hidden: Tensor) -> Float[Tensor, "sample node"]:
        """Return the states from the first node of each component on, divided by a power of two."""
        require_real(hidden)
        n_nodes = len(cast(Tensor, self.modes))
        if hidden.ndim == 0 or hidden.shape[-1] != n_nodes or 0 in hidden.shape:
            raise ShapeError(f"hidden must have {n_nodes} units, one per node. Got shape {tuple(hidden.shape)}.")
        require_finite(hidden)
        x = in_single_precision(hidden.reshape(-1, n_nodes))
        moved = x - x[:, cast(Tensor, self.first)]  # exactly 0 where the nodes of a component are equal
        return moved / power_of_two_above(moved.detach().abs().max())


def _modes(
    adjacency: Tensor,
) -> tuple[Float[Tensor, "node row"], Float[Tensor, "row row"], Float[Tensor, "row"], Int[Tensor, "node"]]:
    """Return the modes with mu > 0, what averages those of one mu, their mu, and the first node of each component."""
    mu, modes = torch.linalg.eigh(_laplacian(adjacency))
    near = SAME * mu[-1]
    still = modes[:, mu <= near]  # constant on every component: still still' is 1 / size within one, 0 between two
    together = still @ still.T > 0.5 / len(mu)
    mu, modes = mu[mu > near], modes[:, mu > near]
    group = (torch.diff(mu, prepend=mu[:1]) > near).cumsum(dim=0)
    if len(group.unique()) < 3:
        raise DegenerateInputError(
            f"adjacency must have at least 3 different frequencies above 0. Got {len(group.unique())}. "
            "Nodes that are all connected alike have 1: leave the weakest edges out."
        )
    member = (group[:, None] == group).to(mu)
    same = member / member.sum(dim=1, keepdim=True)
    return modes, same, same @ mu, together.to(mu).argmax(dim=1)


def _laplacian(adjacency: Tensor) -> Float[Tensor, "node node"]:
    """Return D - A of an undirected graph, in double precision."""
    a = adjacency.detach().double()
    if a.ndim != 2 or a.shape[0] != a.shape[1] or len(a) == 0:
        raise ShapeError(f"adjacency must be (node, node). Got shape {tuple(a.shape)}.")
    if not torch.isfinite(a).all():
        raise DegenerateInputError("adjacency must be finite. Got NaN or infinity.")
    if (a < 0).any() or not torch.allclose(a, a.T, rtol=1e-6, atol=0):
        raise DegenerateInputError(
            "adjacency must be symmetric and not negative. Got a negative weight, or two directions that differ. "
            "Pass (W.abs() + W.abs().T) / 2 for directed or signed connections W."
        )
    return torch.diag(a.sum(dim=1)) - (a + a.T) / 2
