"""The likelihood of 10,000 points is the same whoever solves."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, Normal

from ctflow import Solver
from ctflow.flows import ContinuousFlow, GatedPlanar

FLOAT = torch.float64
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def flow() -> ContinuousFlow:
    """A planar flow with fixed weights that moves points by about one."""
    torch.manual_seed(0)
    field = GatedPlanar(2, 16).double()
    with torch.no_grad():
        field.planar.u.mul_(3.0)
    base = Independent(Normal(torch.zeros(2, dtype=FLOAT), torch.ones(2, dtype=FLOAT)), 1)
    return ContinuousFlow(base, field, solver=Solver(rtol=1e-8, atol=1e-8, coupling="shared"))


@pytest.fixture(scope="module")
def reference(flow: ContinuousFlow) -> tuple[torch.Tensor, torch.Tensor]:
    """Points, and their log-densities at a tight tolerance."""
    torch.manual_seed(1)
    x = flow.sample((10_000,))
    with torch.no_grad():
        return x, flow.log_prob(x)


COMPILED = pytest.param("compiled", marks=[pytest.mark.compiler, pytest.mark.slow])


@pytest.mark.parametrize("name", ["native", "torchdiffeq", "scipy", COMPILED])
def test_ten_thousand_points_agree(
    name: str, flow: ContinuousFlow, reference: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """To ten times the tolerance, each of them."""
    x, wanted = reference
    solver = Solver(backend=name, rtol=TOLERANCE, atol=TOLERANCE)
    again = ContinuousFlow(flow.base, flow.field, solver=solver)
    with torch.no_grad():
        off = again.log_prob(x) - wanted
    # Every point, by the measure that steps are controlled by: atol + rtol |log p|.
    assert float((off.abs() / (1 + wanted.abs())).max()) < 10 * TOLERANCE
    assert float(off.square().mean().sqrt()) < 10 * TOLERANCE
