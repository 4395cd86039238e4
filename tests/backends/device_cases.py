"""Small problems of every kind, to be solved on two devices: values and gradients are compared."""

# ruff: noqa: ANN401 - settings are whatever a solver takes

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from ctflow import Event, ODEProblem, Solver, odeint_dense, odeint_event, solve
from ctflow.dynamics import MLP
from ctflow.flows import ContinuousFlow, Divergence, Exact, Hutchinson


def net(device: str) -> MLP:
    """The same weights on either."""
    torch.manual_seed(0)
    made = MLP(2, (8,))
    for module in [*made.modules()]:
        for name, p in [*module.named_parameters(recurse=False)]:
            setattr(module, name, nn.Parameter(p.detach().to(device)))
    return made


def gradients(device: str, **settings: Any) -> list[Tensor]:
    """States, and the gradients by y0, times and parameters."""
    f = net(device)
    y0 = torch.tensor([[1.0, 0.5], [-0.5, 0.3]]).to(device).requires_grad_()
    t = torch.tensor([0.0, 0.4, 1.0]).to(device).requires_grad_()
    solution = solve(ODEProblem(f, y0, t), Solver(rtol=1e-4, atol=1e-5, **settings))
    loss = (solution.y**2).sum()
    return [solution.y, *torch.autograd.grad(loss, [y0, t, *f.parameters()])]


def cost(device: str, backend: str = "native") -> list[Tensor]:
    """A running cost by the adjoint."""
    y0 = torch.tensor([[1.0, 0.5]]).to(device).requires_grad_()
    problem = ODEProblem(net(device), y0, (0.0, 1.0), running_cost=lambda t, y: (y**2).sum(-1))
    solution = solve(problem, Solver(backend, gradient="adjoint", rtol=1e-4, atol=1e-5))
    total = solution.cost
    return [total, *torch.autograd.grad(total.sum(), [y0])]


def dense(device: str) -> list[Tensor]:
    """Between the steps."""
    y0 = torch.tensor([[1.0, 0.5]]).to(device)
    found = odeint_dense(net(device), y0, (0.0, 1.0), rtol=1e-4, atol=1e-5)
    return [found(0.3), found.derivative(0.3)]


def event(device: str) -> list[Tensor]:
    """A ball that falls."""
    y0 = torch.tensor([1.0, 0.0]).to(device).requires_grad_()

    def fall(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -torch.ones_like(y[0])])

    found = odeint_event(fall, y0, (0.0, 3.0), Event(lambda t, y: y[0]), rtol=1e-5, atol=1e-6)
    return [found.t, *torch.autograd.grad(found.t.sum(), [y0])]


def stiff(device: str) -> list[Tensor]:
    """By the implicit method."""
    return gradients(device, method="rodas5p", gradient="checkpointed")


def flow(device: str, divergence: Divergence, **settings: Any) -> list[Tensor]:
    """A log-density, whose field differentiates, and its gradient."""
    base = Independent(Normal(torch.zeros(2).to(device), torch.ones(2).to(device)), 1)
    f = net(device)
    made = ContinuousFlow(base, f, divergence=divergence, solver=Solver(**settings))
    found = made.log_prob(torch.tensor([[0.3, -0.2], [1.0, 0.1]]).to(device))
    return [found, *torch.autograd.grad(found.sum(), [*f.parameters()])]


def large(device: str, rows: int = 32, **settings: Any) -> list[Tensor]:
    """A hidden layer that a device computes by library calls, and outputs inside steps."""
    torch.manual_seed(0)
    f = MLP(16, (64,)).to(device)
    y0 = torch.randn(rows, 16).to(device).requires_grad_()
    t = torch.linspace(0, 1, 7).to(device)
    solver = Solver(rtol=1e-4, atol=1e-5, coupling="shared", **settings)
    y = solve(ODEProblem(f, y0, t), solver).y
    return [y, *torch.autograd.grad((y**2).mean(), [y0, *f.parameters()])]


CASES: dict[str, Callable[[str], list[Tensor]]] = {
    "direct": lambda device: gradients(device, gradient="direct"),
    "checkpointed": lambda device: gradients(device, gradient="checkpointed"),
    "adjoint": lambda device: gradients(device, gradient="adjoint"),
    "shared": lambda device: gradients(device, gradient="direct", coupling="shared"),
    "rk4": lambda device: gradients(device, method="rk4", step=0.1),
    "scipy": lambda device: gradients(device, backend="scipy"),
    "torchdiffeq": lambda device: gradients(device, backend="torchdiffeq"),
    "running cost": cost,
    "dense": dense,
    "event": event,
    "rodas5p": stiff,
    "flow, probes": lambda device: flow(device, Hutchinson(seed=0), gradient="checkpointed"),
    "flow, exact": lambda device: flow(device, Exact("reverse"), gradient="checkpointed"),
    "flow, adjoint": lambda device: flow(device, Exact("reverse"), gradient="adjoint"),
}  # fmt: skip
