"""A problem with everything that wants a gradient, solved and differentiated by any backend."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ctflow import ODEProblem, Solution, Solver, solve
from tests.checks import check

__all__ = ["TDQ", "TOL", "Everything", "differentiated", "everything", "solved"]

TOL = 1e-8
TDQ = Solver(backend="torchdiffeq", rtol=TOL, atol=TOL)


class Everything(NamedTuple):
    """A problem and the leaves that its solution depends on."""

    problem: ODEProblem
    leaves: tuple[Tensor, ...]


def everything(direction: int = 1) -> Everything:
    """Time-dependent dynamics with parameters, args, a computed context, and times of their own."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.5
    y0 = torch.tensor([[1.0, -0.5], [0.3, 0.8]], dtype=torch.float64, requires_grad=True)
    t = (torch.tensor([0.1, 0.4, 0.77, 1.3]).double() * direction).requires_grad_()
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    source = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    context = 2 * source  # a tensor with a history, reached through a closure alone

    def f(t: Tensor, y: Tensor, args: dict[str, Tensor]) -> Tensor:
        inputs = torch.cat([y, t.expand(2, 1)], dim=1)
        return args["rate"] * net(inputs) + context * torch.sin(3 * t)

    problem = ODEProblem(f, y0, t, args={"rate": rate})
    return Everything(problem, (y0, t, rate, source, *net.parameters()))


def differentiated(solver: Solver, direction: int = 1) -> tuple[Tensor, tuple[Tensor, ...]]:
    """States of `everything`, and the gradient of a loss on all of them to every leaf."""
    problem, leaves = everything(direction)
    y = solved(problem, solver).y
    weights = torch.arange(1, y.numel() + 1, dtype=y.dtype).reshape(y.shape)
    loss = (weights * y**2).sum() / y.numel()
    return y.detach(), torch.autograd.grad(loss, leaves)


def solved(problem: ODEProblem, solver: Solver, **settings: object) -> Solution:
    """A solution that reached the end."""
    solution = solve(problem, replace(solver, **settings))
    check(solution.ok, f"the solve stopped: {solution.stops}")
    return solution
