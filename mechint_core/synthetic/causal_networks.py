"""Networks whose causal effects are known in closed form.

    TwoRouteNetwork       y = M (c' x + b m),  m = a x              total c' + ab = direct c' + indirect ab
    InteractionNetwork    y = c' x + b m + g x m,  m = a_0 + a x    total = natural direct + total indirect
    LinearCausalModel     x_j = u_j + sum_i B_ij x_i on a DAG       moving x_i by 1 moves x_j by ((I - B)^-1)_ij
    ConceptNetwork        logits = (-gain k.h, gain k.h)            moving h by v moves their difference by 2 gain k.v

Every quantity in them is the output of a named module, so that it can be read, patched and held fixed.

Source: [@pearl2001], [@robins1992] for mediation; [@pearl2009] for interventions.
"""

from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechint_core.errors import ConfigurationError
from mechint_core.random import generator, torch_generator


class TwoRouteNetwork(nn.Module):
    """A direct and a mediated route to the same outcome: `exposure` -> `direct`, `mediator` -> `mediated`, `outcome`.

    Whatever the data and whatever metric is linear in the outputs, the share of the effect that goes through the
    mediator is ab / (c' + ab), negative or above 1 where the routes oppose each other.

    Parameters
    ----------
    direct, to_mediator, from_mediator
        c', a and b.
    n_units, n_outputs
        Size of x and m, and of y. The common map M is random; it is 1 where both are 1.
    seed
        Of M.

    Raises
    ------
    ConfigurationError
        If a size is below 1, or the total effect is 0.

    Examples
    --------
    >>> network = TwoRouteNetwork(direct=1.0, to_mediator=2.0, from_mediator=1.5)
    >>> network.total_effect, network.direct_effect, network.indirect_effect, network.mediated_share
    (4.0, 1.0, 3.0, 0.75)
    """

    def __init__(
        self,
        *,
        direct: float = 1.0,
        to_mediator: float = 2.0,
        from_mediator: float = 1.5,
        n_units: int = 1,
        n_outputs: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.direct_effect, self.indirect_effect = direct, to_mediator * from_mediator
        self.total_effect = self.direct_effect + self.indirect_effect
        """Change of y per unit of M x."""
        if min(n_units, n_outputs) < 1 or self.total_effect == 0:
            raise ConfigurationError(
                f"sizes must be at least 1 and the total effect not 0. Got {n_units} units, {n_outputs} outputs and a "
                f"total of {self.total_effect}."
            )
        self.mediated_share = self.indirect_effect / self.total_effect
        same = torch.eye(n_units, dtype=torch.float64)
        common = torch.randn(n_outputs, n_units, generator=torch_generator(seed, "two_routes"), dtype=torch.float64)
        if n_units == n_outputs == 1:
            common = same
        self.exposure = nn.Identity()
        self.direct = _linear(direct * common)
        self.mediator = _linear(to_mediator * same)
        self.mediated = _linear(from_mediator * common)
        self.outcome = nn.Identity()

    def forward(self, x: Float[Tensor, "sample unit"]) -> Float[Tensor, "row class"]:
        """Return the outcome."""
        x = self.exposure(x)
        return self.outcome(self.direct(x) + self.mediated(self.mediator(x)))


@dataclass(frozen=True, slots=True)
class MediationEffects:
    """How an outcome Y(x, M(x')) changes from exposure x_0 to x_1; all in units of the outcome."""

    total: float
    """Y(x1, M(x1)) - Y(x0, M(x0)) = natural_direct + total_indirect = total_direct + natural_indirect."""
    natural_direct: float
    """Y(x1, M(x0)) - Y(x0, M(x0)): the exposure changes, the mediator stays as it was."""
    natural_indirect: float
    """Y(x0, M(x1)) - Y(x0, M(x0)): the mediator changes as it would, the exposure stays."""
    total_direct: float
    """Y(x1, M(x1)) - Y(x0, M(x1)): what going back with the exposure alone takes away."""
    total_indirect: float
    """Y(x1, M(x1)) - Y(x1, M(x0)): what going back with the mediator alone takes away."""

    @property
    def interaction(self) -> float:
        """What only both routes together do: total - natural_direct - natural_indirect, 0 where routes add up."""
        return self.total - self.natural_direct - self.natural_indirect


class InteractionNetwork(nn.Module):
    """A mediator that also changes how strongly the exposure acts: `exposure` -> `mediator`, `outcome`.

    Direct and indirect effect do not add up to the total one, and each has two versions that differ.

    Parameters
    ----------
    direct, to_mediator, from_mediator, interaction
        c', a, b and g.
    mediator_offset
        a_0: the mediator without exposure.

    Examples
    --------
    >>> network = InteractionNetwork()
    >>> network.effects(0.0, 1.0)
    MediationEffects(total=5.0, natural_direct=1.5, natural_indirect=3.0, total_direct=2.0, total_indirect=3.5)
    """

    def __init__(
        self,
        *,
        direct: float = 1.0,
        to_mediator: float = 1.0,
        from_mediator: float = 3.0,
        interaction: float = 0.5,
        mediator_offset: float = 1.0,
    ) -> None:
        super().__init__()
        self.exposure = nn.Identity()
        self.mediator = _linear(torch.tensor([[to_mediator]]), offset=mediator_offset)
        self.outcome = _Moderated(direct, from_mediator, interaction)

    def forward(self, x: Float[Tensor, "sample 1"]) -> Float[Tensor, "row 1"]:
        """Return the outcome."""
        x = self.exposure(x)
        return self.outcome(x, self.mediator(x))

    def effects(self, before: float, after: float) -> MediationEffects:
        """Return the effects of moving the exposure from `before` to `after`."""
        step, a, outcome = after - before, self.mediator.weight.item(), self.outcome
        mediator = [a * x + self.mediator.bias.item() for x in (before, after)]
        natural_direct, total_direct = ((outcome.direct + outcome.interaction * m) * step for m in mediator)
        natural_indirect, total_indirect = (
            (outcome.from_mediator + outcome.interaction * x) * a * step for x in (before, after)
        )
        return MediationEffects(
            total=natural_direct + total_indirect,
            natural_direct=natural_direct,
            natural_indirect=natural_indirect,
            total_direct=total_direct,
            total_indirect=total_indirect,
        )


class _Moderated(nn.Module):
    """c' x + b m + g x m."""

    def __init__(self, direct: float, from_mediator: float, interaction: float) -> None:
        super().__init__()
        self.direct, self.from_mediator, self.interaction = direct, from_mediator, interaction

    def forward(self, x: Float[Tensor, "row 1"], m: Float[Tensor, "row 1"]) -> Float[Tensor, "row 1"]:
        return self.direct * x + self.from_mediator * m + self.interaction * x * m


class LinearCausalModel(nn.Module):
    """Linear structural equations on a DAG; the output of `variables.j` is x_j, and may be held fixed.

    Parameters
    ----------
    weights
        B (row, column): the direct effect of the row's variable on the column's; zero where there is no edge.

    Raises
    ------
    ConfigurationError
        If the weights are not square and finite, or have a cycle.

    Examples
    --------
    >>> model = LinearCausalModel(np.array([[0.0, 2, 1], [0, 0, 3], [0, 0, 0]]))  # x_0 -> x_1 -> x_2, and x_0 -> x_2
    >>> model(torch.tensor([[1.0, 0, 0]], dtype=torch.float64)).tolist()
    [[1.0, 2.0, 7.0]]
    >>> model.total_effects[0].tolist()
    [1.0, 2.0, 7.0]
    """

    def __init__(self, weights: Float[np.ndarray, "row column"]) -> None:
        super().__init__()
        n = len(weights)
        if weights.shape != (n, n) or not n or not np.isfinite(weights).all():
            raise ConfigurationError(f"weights must be a square matrix of finite numbers. Got shape {weights.shape}.")
        self.weights = np.array(weights, dtype=np.float64)
        """B: direct effects, row on column."""
        self.edges: Bool[np.ndarray, "row column"] = self.weights != 0
        """Whether row is a direct cause of column."""
        self.causes = tuple(tuple(np.flatnonzero(column).tolist()) for column in self.edges.T)
        """Of each variable, its direct causes."""
        self.order = _causes_first(self.causes)
        """The variables, each after its causes."""
        self.sites = tuple(f"variables.{j}" for j in range(n))
        """The modules whose outputs (sample, 1) are the variables."""
        self.total_effects: Float[np.ndarray, "row column"] = np.linalg.inv(np.eye(n) - self.weights)
        """(I - B)^-1: how far x_column moves when do(x_row) moves x_row by 1, over all paths; 1 on the diagonal."""
        self.variables = nn.ModuleList(
            _linear(torch.tensor([[1.0, *self.weights[list(causes), j]]])) for j, causes in enumerate(self.causes)
        )

    def forward(self, noise: Float[Tensor, "sample unit"]) -> Float[Tensor, "row unit"]:
        """Return all variables, given their u: x_j = u_j + sum_i B_ij x_i over the causes i of j."""
        value: dict[int, Tensor] = {}
        for j in self.order:
            value[j] = self.variables[j](torch.cat([noise[:, j : j + 1], *(value[i] for i in self.causes[j])], dim=1))
        return torch.cat([value[j] for j in range(len(value))], dim=1)

    def covariance(self, scale: float = 1.0) -> Float[np.ndarray, "row column"]:
        """Return the covariance of the variables where the u are independent with standard deviation `scale`."""
        return scale**2 * self.total_effects.T @ self.total_effects


def random_causal_model(n_variables: int, *, density: float = 0.4, seed: int = 0) -> LinearCausalModel:
    """Return a linear model on a random DAG, whose order is not that of its variables' numbers.

    Parameters
    ----------
    n_variables
        At least 1.
    density
        Chance in [0, 1] that one of two variables is a cause of the other.
    seed
        Of order, edges, and effects: 0.5 to 1.5 in size, of either sign.

    Raises
    ------
    ConfigurationError
        If there is no variable, or the density is out of its range.
    """
    if n_variables < 1 or not 0 <= density <= 1:
        raise ConfigurationError(
            f"there must be at least 1 variable, and a density in [0, 1]. Got {n_variables} and {density}."
        )
    draws, shape = generator(seed, "random_causal_model"), (n_variables, n_variables)
    rank = draws.permutation(n_variables)
    effects = draws.uniform(0.5, 1.5, shape) * draws.choice([-1, 1], shape)
    return LinearCausalModel(effects * (draws.random(shape) < density) * (rank[:, None] < rank))


class ConceptNetwork(nn.Module):
    """A state `hidden` and a read-out of one direction in it: `readout` gives logits (-gain k.h, gain k.h).

    Adding t v to the state moves the difference of the logits by exactly 2 gain t k.v: the dose-response of steering.

    Parameters
    ----------
    n_units
        Of the state.
    gain
        Of the read-out.
    seed
        Of the concept, a random direction.

    Raises
    ------
    ConfigurationError
        If there is no unit.
    """

    def __init__(self, n_units: int = 16, *, gain: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        if n_units < 1:
            raise ConfigurationError(f"n_units must be at least 1. Got {n_units}.")
        drawn = torch.randn(n_units, generator=torch_generator(seed, "concept"), dtype=torch.float64)
        self.concept = (drawn / drawn.norm()).numpy()
        """k (unit), of length 1."""
        self.gain = gain
        self.hidden = nn.Identity()
        self.readout = _linear(gain * torch.from_numpy(np.stack([-self.concept, self.concept])))

    def forward(self, x: Float[Tensor, "sample unit"]) -> Float[Tensor, "row 2"]:
        """Return the logits of the concept's absence and presence."""
        return self.readout(self.hidden(x))

    def slope(self, direction: Float[np.ndarray, "unit"]) -> float:
        """Return by how much adding `direction` once moves the second logit less the first."""
        return float(2 * self.gain * self.concept @ direction)

    def samples(
        self, n_samples: int, *, separation: float = 4.0, seed: int = 0
    ) -> tuple[Float[np.ndarray, "sample unit"], Int[np.ndarray, "sample"]]:
        """Return states of two equally large groups, N(-k separation / 2, I) and N(k separation / 2, I), and groups."""
        draws = generator(seed, "concept_samples")
        present = draws.permutation(np.arange(n_samples) % 2)
        noise = draws.standard_normal((n_samples, len(self.concept)))
        return noise + separation * (present[:, None] - 0.5) * self.concept, present


def _linear(weight: Float[Tensor, "row column"], *, offset: float | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=offset is not None, dtype=torch.float64)
    layer.weight.data.copy_(weight)
    if offset is not None:
        layer.bias.data.fill_(offset)
    return layer


def _causes_first(causes: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    try:
        return tuple(TopologicalSorter(dict(enumerate(causes))).static_order())
    except CycleError as problem:
        raise ConfigurationError(f"the graph must have no cycle. Got {problem.args[1]}. Remove one edge.") from None
