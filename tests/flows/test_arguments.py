"""A flow refuses parts that it cannot be made of, by name, before any work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, Poisson

from ctflow.errors import InvalidProblem
from ctflow.flows import ContinuousFlow, Hutchinson, kinetic, log_density

FLOAT = torch.float64


def standard() -> Independent:
    """The standard normal distribution in the plane."""
    return Independent(Normal(torch.zeros(2, dtype=FLOAT), torch.ones(2, dtype=FLOAT)), 1)


def still(t: Tensor, z: Tensor) -> Tensor:
    """A field in which nothing moves."""
    return torch.zeros_like(z)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ContinuousFlow(nn.Linear(2, 2), still), "`base` must be a .*Distribution, got Li"),
        (lambda: ContinuousFlow(Normal(0.0, 1.0), still), "events of at least one dimension"),
        (lambda: ContinuousFlow(Independent(Poisson(torch.ones(2)), 1), still), "have a density"),
        (lambda: ContinuousFlow(standard(), 3), "`field` must be a function or a module, got 3"),
        (lambda: ContinuousFlow(standard(), still, 1.0), "a start and an end, got 1 time"),
        (lambda: ContinuousFlow(standard(), still, torch.zeros(3)), "got 3 times"),
        (lambda: ContinuousFlow(standard(), still, divergence="exact"), "or None, got 'exact'"),
        (lambda: ContinuousFlow(standard(), still, divergence=Hutchinson), r"Hutchinson\(\)"),
        (lambda: ContinuousFlow(standard(), still, running_costs=kinetic), r"Write \[kinetic\]"),
        (lambda: ContinuousFlow(standard(), still, running_costs=[1]), r"`running_costs\[0\]` mus"),
        (lambda: ContinuousFlow(standard(), still, context=[0.0]), "a tensor .*, got list"),
        (lambda: ContinuousFlow(standard(), still, context=torch.tensor(0.0)), "got a 0-dim tens"),
        (lambda: ContinuousFlow(standard(), still, solver=3), "`solver` must be a Solver or the"),
        (lambda: ContinuousFlow(standard(), still).at(0.0), "the distribution is `flow.base`"),
    ],
)
def test_a_part_of_another_kind_is_refused(make: Callable[[], object], said: str) -> None:
    """When the flow is made."""
    with pytest.raises(InvalidProblem, match=said):
        make()


@pytest.mark.parametrize("ask", [ContinuousFlow.log_prob, log_density])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([[0.0, 0.0]], "`value` must be a tensor .*, got list"),
        (torch.zeros(4, 3), r"must end in the event shape \[2\], got \[4, 3\]"),
        (torch.zeros(()), r"must end in the event shape \[2\], got \[\]"),
        (torch.zeros(4, 2), r"must broadcast against batch \[3\] and event \[2\], got \[4, 2\]"),
    ],
)
def test_points_that_do_not_fit_are_refused(
    ask: Callable[[ContinuousFlow, object], object], value: object, said: str
) -> None:
    """With the shape that was wanted."""
    flow = ContinuousFlow(standard().expand((3,)), still)
    with pytest.raises(InvalidProblem, match=said):
        ask(flow, value)


def test_a_start_of_paths_that_does_not_fit_is_refused() -> None:
    """By the name of its argument."""
    with pytest.raises(InvalidProblem, match=r"`z` must end in the event shape \[2\]"):
        ContinuousFlow(standard(), still).trajectory(torch.zeros(4, 3), (0.0, 1.0))
