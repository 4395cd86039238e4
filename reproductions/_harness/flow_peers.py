"""One training step of a flow in the plane by everybody who can do it, with shared weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from _harness.shapes import SHAPES
from ctflow import Solver
from ctflow.flows import ContinuousFlow, HyperPlanar, KnowsDivergence, matching_loss

__all__ = ["MODELS", "Model", "Step", "base", "free_form", "planar", "steps"]


@dataclass(frozen=True)
class Model:
    """A field, and who beside us has one like it.

    Args:
        name: For tables.
        field: f(t, z), t 0-dim.
        t: Where the base lies, and where the data: at 1 and 0 in zuko.
        zuko: zuko's flow over the very same weights, if it has this field.
    """

    name: str
    field: nn.Module
    t: tuple[float, float] = (0.0, 1.0)
    zuko: Any = None


@dataclass(frozen=True)
class Step:
    """A contestant.

    Args:
        key: Its name.
        log_prob: Log-densities [N] of points [N, 2], with the graph for a gradient.
    """

    key: str
    log_prob: Callable[[Tensor], Tensor]


class ZukoField(nn.Module):
    """zuko's free-form field, as a function of a time for all samples or one for each."""

    def __init__(self, transform: Any) -> None:  # noqa: ANN401 - zuko has no stubs
        """Keep zuko's module, whose parameters these are."""
        super().__init__()
        self.transform = transform

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Velocity [N, D] at z [N, D] and t, 0-dim or [N, 1]."""
        return self.transform.f(t if t.dim() == 0 else t[:, 0], z)


def free_form(width: int, tolerance: float, dtype: torch.dtype = torch.float32) -> Model:
    """zuko's own flow: two hidden layers with ELU, and six features of the time."""
    from zuko.flows import CNF  # optional

    flow = CNF(2, hidden_features=(width, width), atol=tolerance, rtol=tolerance, exact=True)
    flow = flow.to(dtype)
    return _seasoned(Model("free-form", ZukoField(flow.transform), (1.0, 0.0), flow), dtype)


def planar(width: int, tolerance: float, dtype: torch.dtype = torch.float32) -> Model:
    """The paper's: planar units with weights that are functions of time, and a closed trace."""
    del tolerance
    return _seasoned(Model("planar", HyperPlanar(2, width).to(dtype)), dtype)


MODELS = {"free-form": free_form, "planar": planar}


def base(dtype: torch.dtype, device: str = "cpu") -> Independent:
    """N(0, I) in the plane."""
    zeros = torch.zeros(2, dtype=dtype, device=device)
    return Independent(Normal(zeros, torch.ones_like(zeros)), 1)


def steps(
    model: Model, backends: Sequence[str], tolerance: float, dtype: torch.dtype = torch.float32
) -> Iterator[Step]:
    """Everybody, at one tolerance; their gradients are those that each is fastest with.

    Args:
        model: What is trained.
        backends: Of ctflow.
        tolerance: rtol and atol.
        dtype: Of weights and points.
    """
    for name in backends:
        # Compiled, to evaluate again is cheaper than to fetch what was kept from memory.
        gradient = "checkpointed" if name == "compiled" else "direct"
        solver = Solver(name, rtol=tolerance, atol=tolerance, coupling="shared", gradient=gradient)
        flow = ContinuousFlow(base(dtype), model.field, model.t, solver=solver)
        yield Step(f"ctflow {name}", flow.log_prob)
    yield Step("torchdiffeq", _torchdiffeq(model, tolerance, dtype, adjoint=False))
    yield Step("torchdiffeq adjoint", _torchdiffeq(model, tolerance, dtype, adjoint=True))
    if model.zuko is not None:
        yield Step("zuko", lambda x: model.zuko().log_prob(x))


class _Augmented(nn.Module):
    """(dz, d log p)/dt as torchdiffeq's example writes it: the trace by one gradient a variable."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z = state[0]
        if isinstance(self.field, KnowsDivergence):
            return self.field.with_divergence(t, z)
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            velocity = self.field(t, z)
            trace = torch.zeros_like(z[:, 0])
            for i in range(z.shape[1]):
                (row,) = torch.autograd.grad(velocity[:, i].sum(), z, create_graph=True)
                trace = trace + row[:, i]
        return velocity, trace


def _torchdiffeq(
    model: Model, tolerance: float, dtype: torch.dtype, *, adjoint: bool
) -> Callable[[Tensor], Tensor]:
    """A flow as it is written by hand on torchdiffeq, without ctflow."""
    import torchdiffeq

    augmented, start = _Augmented(model.field), base(dtype)
    solve: Any = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint

    def log_prob(x: Tensor) -> Tensor:
        t = torch.tensor(model.t, dtype=dtype).flip(0)
        state = (x, torch.zeros_like(x[:, 0]))
        z, log_det = solve(augmented, state, t, rtol=tolerance, atol=tolerance, method="dopri5")
        return start.log_prob(z[-1]) + log_det[-1]

    return log_prob


def _seasoned(model: Model, dtype: torch.dtype, iterations: int = 400) -> Model:
    """The model after a little flow matching with two moons: as drawn it hardly moves."""
    optimiser = torch.optim.Adam(model.field.parameters(), lr=5e-3)
    for _ in range(iterations):
        x = SHAPES["moons"].sample(256).to(dtype)
        z = torch.randn_like(x)
        ends = (z, x) if model.t[0] == 0 else (x, z)
        loss = matching_loss(model.field, *ends)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model
