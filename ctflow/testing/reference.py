"""What gradients are measured against: one that is exact for steps that are held fixed.

A solve at a tight tolerance lays down a grid; values, gradients and finite differences are those of
the same steps. Differences through an adaptive solve would measure its moving steps as well.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ctflow.api import solve
from ctflow.backends.captures import pull
from ctflow.backends.field import Field
from ctflow.backends.native.backend import NativeBackend
from ctflow.backends.native.control import OnGrid
from ctflow.backends.protocol import Solver
from ctflow.problem import ODEProblem
from ctflow.solution import raise_if_failed
from ctflow.state import Layout, map_leaves
from ctflow.testing.asked import Asked
from ctflow.testing.subject import flat, size_of

__all__ = ["difference_along", "frozen", "growth", "on_grid"]

_TIGHT = 1e-10  # tolerance of the solve that lays down the steps, in float64
_LOOKS = 6  # places on the path at which the field's Lipschitz constant is estimated


def frozen(problem: ODEProblem, tight: float = _TIGHT, at_least: int = 0) -> OnGrid:
    """Steps fine enough to be called exact, the output times among them.

    Args:
        problem: What is asked.
        tight: Tolerance of the adaptive solve that lays them down.
        at_least: So many further nodes, evenly spread: no step can jump over anything longer.
    """
    size = max(size_of(flat(problem.y0)), 1e-3)
    solver = Solver(method="dopri5", rtol=tight, atol=tight * size, gradient="direct")
    with torch.no_grad():
        solution = raise_if_failed(solve(problem, replace(solver, max_steps=100_000)))
    own = solution.stats.step_times.reshape(-1)
    t = problem.t.detach().double().reshape(-1).cpu()
    ends = torch.stack([t.min(), t.max()])
    more = torch.linspace(float(ends[0]), float(ends[1]), at_least + 2, dtype=torch.float64)
    nodes = torch.cat([own[torch.isfinite(own)].double(), more])
    return OnGrid(_with_times(nodes, problem.t))


def _with_times(nodes: Tensor, t: Tensor) -> Tensor:
    """The nodes and the output times; nodes hardly beside an output time give way to it."""
    times = t.detach().double().reshape(-1).cpu()
    near = (nodes.unsqueeze(1) - times).abs().amin(dim=1)
    kept = nodes[near > 1e-5 * (times.max() - times.min())]
    return torch.cat([kept, times]).unique()


def on_grid(grid: OnGrid, coupling: Any = None) -> Solver:  # noqa: ANN401
    """The solver that takes these steps, back-propagating through them."""
    backend = NativeBackend(control=grid)
    return Solver(backend=backend, method="dopri5", gradient="direct", coupling=coupling)


def difference_along(asked: Asked, grid: OnGrid, part: str, seed: int = 0) -> tuple[float, float]:
    """Finite difference and derivative of the loss along a random direction of one part.

    Args:
        asked: The problem.
        grid: Its fixed steps.
        part: Which inputs are moved.
        seed: Of the direction.

    Returns:
        Central difference on the grid, and the gradient's own product with the direction.
    """
    tensors = asked.parts[part]
    generator = torch.Generator().manual_seed(seed)
    along = [torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x) for x in tensors]
    nodes = grid.nodes
    found = asked.gradient(on_grid(grid)).parts[part]
    product = math.fsum(float((g * v).sum()) for g, v in zip(found, along, strict=True))
    step = torch.finfo(torch.float64).eps ** (1 / 3) * max(size_of(*tensors), 1e-2)
    if part == "t":  # times keep their order, and their distance from other nodes
        gaps = asked.problem.t.detach().diff(dim=-1).abs()
        step = min(step, 1e-6 * float(gaps.min()))
    kept = [x.detach().clone() for x in tensors]
    values: dict[float, float] = {}
    inner = nodes[(nodes.unsqueeze(1) - asked.problem.t.detach().reshape(-1)).abs().amin(1) > 0]
    try:
        for h in (step, -step):
            for x, old, v in zip(tensors, kept, along, strict=True):
                x.data.copy_(old + h * v)  # past the version counter: nobody's graph is alive
            here = OnGrid(_with_times(inner, asked.problem.t)) if part == "t" else grid
            values[h] = asked.value(on_grid(here))
    finally:
        for x, old in zip(tensors, kept, strict=True):
            x.data.copy_(old)
    return (values[step] - values[-step]) / (2 * step), product


def growth(problem: ODEProblem, y: Any) -> float:  # noqa: ANN401
    """exp(L T): what a solve may at most make of an error (Hairer I, theorem I.10.2).

    Args:
        problem: What is asked.
        y: States at the output times, with T first.

    Returns:
        The bound, with L the largest of a few power iterations on df/dy along the path.
    """
    layout = Layout.of(problem.y0, per_sample=False)
    field = Field(problem, layout)
    times = problem.t.detach()
    row = times if times.dim() == 1 else times[0]
    largest = 0.0
    for i in sorted({round(k * (len(row) - 1) / (_LOOKS - 1)) for k in range(_LOOKS)}):
        state = layout.pack(map_leaves(lambda leaf, i=i: leaf[i].detach(), y))
        largest = max(largest, _lipschitz(field, row[i].reshape(1).to(state.dtype), state))
    length = float((times[..., -1] - times[..., 0]).abs().max())
    return math.exp(min(largest * length, 50.0))


def _lipschitz(field: Field, t: Tensor, y: Tensor) -> float:
    """Norm of df/dy, estimated by three power iterations with differences and products."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)
    h = 1e-6 * max(size_of(y), 1.0)
    norm = 0.0
    for _ in range(3):
        v = v / v.norm().clamp(min=1e-30)
        with torch.no_grad():
            w = (field(t, y + h * v) - field(t, y - h * v)) / (2 * h)
        norm = max(norm, float(w.norm()))
        leaf = y.detach().clone().requires_grad_()
        with torch.enable_grad():
            dy = field(t, leaf)
        back = pull((dy,), (leaf,), (w,), keep=True)[0] if dy.requires_grad else None
        if back is None:
            return norm
        v = back
    return norm
