"""Fields of every kind of operation are followed, and solved with native's values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctflow import ODEProblem, Solver, solve
from ctflow.backends.compiled import job
from ctflow.backends.compiled.backend import CompiledBackend
from ctflow.backends.compiled.trace import Traced
from ctflow.dynamics import ConvField
from ctflow.state import expand_time
from tests.backends.compiled.conftest import operator_by_operator

DTYPE = torch.float64
TIMES = torch.tensor([0.0, 0.3, 0.8, 1.0], dtype=DTYPE)
NATIVE = Solver(rtol=1e-6, atol=1e-8)
COMPILED = Solver(backend=CompiledBackend(), rtol=1e-6, atol=1e-8)


class Attention(nn.Module):
    """Points that attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """[B, P, 4]."""
        scores = self.query(y) @ self.key(y).transpose(1, 2) / 2
        return torch.softmax(scores, -1) @ self.value(y) - y * torch.cos(t)


class Control(nn.Module):
    """A path of data, interpolated between its knots."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 3)
        self.register_buffer("knots", torch.linspace(0, 1, 5))
        self.register_buffer("path", torch.sin(torch.arange(15.0)).reshape(5, 3))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """[B, 3]."""
        i = torch.searchsorted(self.knots, t.reshape(1)).clamp(1, 4)
        weight = (t - self.knots[i - 1]) / (self.knots[i] - self.knots[i - 1])
        x = torch.lerp(self.path[i - 1], self.path[i], weight.unsqueeze(-1))
        return torch.tanh(self.net(y)) * x


class Energy(nn.Module):
    """Differentiated inside f: (q, p)' = (dH/dp, -dH/dq)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Softplus(), nn.Linear(8, 1))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """[B, 4]."""
        with torch.enable_grad():
            y = y if y.requires_grad else y.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.net(y).sum(), y, create_graph=True)
        dq, dp = g.chunk(2, dim=-1)
        return torch.cat((dp, -dq), dim=-1)


class Divergence(nn.Module):
    """State and log-density: the exact trace by functional transforms."""

    def __init__(self, reverse: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        self.jacobian = torch.func.jacrev if reverse else torch.func.jacfwd

    def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """[B, 2] and [B]."""

        def drift(x: Tensor) -> Tensor:
            return self.net(torch.cat((x, t.reshape(1))))

        jacobian = torch.func.vmap(self.jacobian(drift))(y[0])
        return torch.func.vmap(drift)(y[0]), -jacobian.diagonal(dim1=1, dim2=2).sum(1)


class RowByRow(Divergence):
    """The same with two hidden layers, by one product for each variable.

    Args:
        detached: Whether the last row is kept from the derivative.
    """

    def __init__(self, detached: bool = False) -> None:
        super().__init__(reverse=True)
        self.net = nn.Sequential(
            nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 2)
        )
        self.detached = detached

    def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """[B, 2] and [B]."""

        def drift(x: Tensor) -> Tensor:
            return self.net(torch.cat((x, t.expand(x.shape[0], 1)), dim=1))

        velocity, pull = torch.func.vjp(drift, y[0])
        rows = [pull(e.expand_as(velocity))[0] for e in torch.eye(2, dtype=velocity.dtype)]
        last = rows[1].detach() if self.detached else rows[1]
        return velocity, -(rows[0][:, 0] + last[:, 1])


class Normalised(nn.Module):
    """Layer norm, batch norm in eval mode, a parametrised weight, several activations."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(8)
        norm.running_mean = torch.linspace(-0.5, 0.5, 8)
        last = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3))
        self.net = nn.Sequential(
            nn.Linear(3, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8), norm, nn.SiLU(),
            nn.Linear(8, 8), nn.ELU(), last,
        )  # fmt: skip
        self.eval()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """[B, 3]."""
        return self.net(y) - t * y


def _pieces(t: Tensor, y: Tensor) -> Tensor:
    """`where`, `cat`, indexing, reductions, a change in place of something new."""
    shifted = torch.cat((y[:, 1:], y[:, :1] + t), dim=1)
    bent = torch.where(y > 0, -y, -0.5 * y)
    fresh = shifted.clone()
    fresh[:, 0] += y.mean(1)
    fresh.mul_(0.3)
    return bent + fresh + 0.1 * torch.cumsum(y, 1) - 0.05 * y.amax(1, keepdim=True)


def _of_time(t: Tensor, y: Tensor) -> Tensor:
    """Elementary functions."""
    t = expand_time(t, y)
    return torch.exp(-t) * torch.sin(3 * y) + torch.sigmoid(y) - torch.log1p(y * y) / (1 + t)


def _upwind(t: Tensor, y: Tensor) -> Tensor:
    """A partial differential equation on a ring, by rolls and a circular convolution."""
    kernel = y.new_tensor([[[1.0, -2.0, 1.0]]])
    spread = F.conv1d(F.pad(y.unsqueeze(1), (1, 1), mode="circular"), kernel).squeeze(1)
    return 0.2 * spread - y * (y - torch.roll(y, 1, dims=1))


FIELDS: dict[str, tuple[Callable[[], Callable[..., object]], tuple[int, ...]]] = {
    "pieces": (lambda: _pieces, (5, 3)),
    "elementary functions": (lambda: _of_time, (5, 3)),
    "ring": (lambda: _upwind, (2, 16)),
    "normalised": (Normalised, (5, 3)),
    "attention": (Attention, (2, 5, 4)),
    "control path": (Control, (5, 3)),
    "Hamiltonian": (Energy, (5, 4)),
    "divergence, reverse": (lambda: Divergence(True), (5, 2)),
    "divergence, forward": (lambda: Divergence(False), (5, 2)),
    "divergence, row by row": (RowByRow, (5, 2)),
    "divergence, detached": (lambda: RowByRow(detached=True), (5, 2)),
    "convolution and group norm": (lambda: ConvField(8, activation=nn.Softplus), (2, 8, 5, 5)),
    "no batch": (lambda: lambda t, y: -(y**3) + torch.sin(t), ()),
}


def _run(f: Callable[..., object], y0: Tensor, solver: Solver) -> tuple[list[Tensor], Tensor, int]:
    """States, the gradient of everything, and the steps."""
    start = y0.clone().requires_grad_()
    state = (start, start[:, 0] * 0) if isinstance(f, Divergence) else start
    solution = solve(ODEProblem(f, state, TIMES), solver)  # pyright: ignore
    assert solution.ok
    states = list(torch.utils._pytree.tree_leaves(solution.y))
    wanted = [start, *(p for p in getattr(f, "parameters", list)())]
    loss = sum(((x - 0.3) ** 2).mean() for x in states)
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)  # pyright: ignore
    flat = torch.cat([g.reshape(-1) for g in gradients])
    return [x.detach() for x in states], flat, int(solution.stats.forward.n_steps)


@pytest.mark.slow
def test_a_trace_by_one_product_is_for_any_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its derivative too, unless `f` keeps a part of it from that."""
    products: dict[bool, list[int]] = {False: [], True: []}
    follow = job.trace

    def followed(*args: Any) -> Traced:  # noqa: ANN401
        found = follow(*args)
        if found.pulled is not None:
            targets = [node.target for node in found.pulled.graph.nodes]
            kinds = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
            products[f.detached].append(sum(target in kinds for target in targets))
        return found

    monkeypatch.setattr(job, "trace", followed)
    with operator_by_operator():
        for detached in (False, True):
            torch.manual_seed(0)
            f = RowByRow(detached).to(DTYPE)
            for n in (5, 7):
                y0 = 0.5 * torch.randn(n, 2, dtype=DTYPE)
                _, gradient, _ = _run(f, y0, COMPILED)
                _, wanted, _ = _run(f, y0, NATIVE)
                torch.testing.assert_close(gradient, wanted, rtol=1e-7, atol=1e-9)
    condensed, whole = set(products[False]), set(products[True])
    assert len(condensed) == len(whole) == 1
    assert max(condensed) < min(whole)


# A trace by columns is followed in a few seconds, but four times: one way in every run.
LONG = ("divergence, forward", "divergence, row by row", "divergence, detached")


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.slow if x in LONG else ()) for x in FIELDS]
)
def test_a_field_is_solved_as_by_native(name: str) -> None:
    """To rounding, which steps amplify up to the tolerance where the field has kinks in time."""
    rtol = 1e-6 if name == "control path" else 1e-8
    make, shape = FIELDS[name]
    torch.manual_seed(0)
    f = make()
    f = f.to(DTYPE) if isinstance(f, nn.Module) else f
    y0 = 0.5 * torch.randn(shape, dtype=DTYPE)
    states, gradient, steps = _run(f, y0, COMPILED)
    wanted, reference, native_steps = _run(f, y0, NATIVE)
    assert abs(steps - native_steps) <= 1
    for x, y in zip(states, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=1e-9)
    assert float((gradient - reference).norm()) <= rtol * float(reference.norm())
