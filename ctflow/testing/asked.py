"""A problem with a gradient wanted of everything that enters it, and a reference for that gradient.

The reference is exact for steps that are held fixed: a solve at a tight tolerance lays down a grid,
and values, gradients and finite differences are those of the same steps. Differences through an
adaptive solve would measure its moving steps as well.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctflow.api import solve
from ctflow.backends.captures import Captures, pull, sequence_number
from ctflow.backends.field import Field
from ctflow.backends.native.backend import NativeBackend
from ctflow.backends.native.control import OnGrid
from ctflow.backends.protocol import Solver
from ctflow.errors import GradientWarning, InvalidProblem
from ctflow.problem import ODEProblem
from ctflow.solution import Solution, raise_if_failed
from ctflow.state import Layout, flatten_args, leaves_of, map_leaves
from ctflow.testing.subject import flat, size_of

__all__ = [
    "Asked",
    "Gradient",
    "Loss",
    "default_loss",
    "difference_along",
    "frozen",
    "growth",
    "on_grid",
]

Loss = Callable[[Any], Tensor]
"""What is differentiated: a scalar of the outputs, each leaf [T, *shape]."""

_TIGHT = 1e-10  # tolerance of the solve that lays down the reference's steps, in float64
_LOOKS = 6  # places on the path at which the field's Lipschitz constant is estimated


class Gradient(NamedTuple):
    """What one solver made of a problem.

    Attributes:
        y: Outputs, [T, B, M], detached; B is 1 unless dimension 0 is a batch.
        parts: Name of the part -> gradients of its tensors, zeros where there is none.
        solution: The solution, with the counts of its backward pass.
        doubts: What it said itself against its gradient.
    """

    y: Tensor
    parts: dict[str, tuple[Tensor, ...]]
    solution: Solution
    doubts: tuple[str, ...]

    @property
    def norm(self) -> float:
        """Norm of the whole gradient."""
        return math.hypot(*(float(g.norm()) for part in self.parts.values() for g in part))

    def distance(self, other: Gradient, part: str | None = None) -> float:
        """Norm of the difference from another one, of a part or of the whole."""
        names = self.parts if part is None else (part,)
        pairs = [p for n in names for p in zip(self.parts[n], other.parts[n], strict=True)]
        return math.hypot(*(float((a - b).norm()) for a, b in pairs))


@dataclass(frozen=True, eq=False)
class Asked:
    """A problem with a gradient wanted of y0, parameters, args and times.

    Args:
        problem: With fresh leaves for y0, args and t.
        parts: "y0", "params", "args", "t": the tensors of each.
        loss: What is differentiated.
    """

    problem: ODEProblem
    parts: dict[str, tuple[Tensor, ...]]
    loss: Loss

    @classmethod
    def of(
        cls, problem: ODEProblem, loss: Loss | None, seed: int = 0, narrow: bool = False
    ) -> Asked:
        """The same problem with its own leaves; parameters are those that `f` is found to read.

        Args:
            problem: What is asked.
            loss: What is differentiated; None: the outputs after the first, weighted at random.
            seed: Of the weights.
            narrow: Whether a dtype below float64 will do.

        Raises:
            InvalidProblem: If the state is not float64, unless `narrow`.
        """
        dtype = leaves_of(problem.y0)[0].dtype
        if dtype != torch.float64 and not narrow:
            raise InvalidProblem(
                f"gradients are compared in float64, got a state of {dtype}. "
                "Use `.double()` on `y0` and on the module."
            )
        y0 = map_leaves(_leaf, problem.y0)
        args, rebuild = flatten_args(problem.args)
        own = [_leaf(x) if _is_floating(x) else x for x in args]
        t = problem.t.detach().double().clone().requires_grad_()
        changed = replace(problem, y0=y0, args=None if problem.args is None else rebuild(own), t=t)
        handed = tuple(x for x in own if _is_floating(x))
        params = [x for x in _read(changed) if all(x is not other for other in handed)]
        parts = {"y0": tuple(leaves_of(y0)), "params": tuple(params), "args": handed, "t": (t,)}
        parts = {name: tensors for name, tensors in parts.items() if tensors}
        return cls(changed, parts, loss or default_loss(seed))

    def gradient(self, solver: Solver) -> Gradient:
        """Solve, differentiate, and keep what the backward pass says of itself.

        Raises:
            SolveFailed: If a sample did not arrive.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", GradientWarning)
            solution = raise_if_failed(solve(self.problem, solver))
            loss = self.loss(solution.y)
            tensors = [x for part in self.parts.values() for x in part]
            found = pull((loss,), tensors, (torch.ones_like(loss),), keep=True)
        for other in caught:
            if not issubclass(other.category, GradientWarning):
                warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
        doubts = [str(w.message) for w in caught if issubclass(w.category, GradientWarning)]
        filled = iter(
            torch.zeros_like(x) if g is None else g.detach()
            for g, x in zip(found, tensors, strict=True)
        )
        parts = {name: tuple(next(filled) for _ in part) for name, part in self.parts.items()}
        return Gradient(self._by_time(solution.y), parts, solution, tuple(doubts))

    def _by_time(self, y: Any) -> Tensor:  # noqa: ANN401
        per_sample = self.problem.batched or self.problem.t.dim() == 2
        leading = 2 if per_sample else 1
        leaves = [leaf.detach() for leaf in leaves_of(y)]
        flattened = [leaf.reshape(*leaf.shape[:leading], -1) for leaf in leaves]
        together = torch.cat(flattened, dim=-1)
        return together if per_sample else together.unsqueeze(1)

    def value(self, solver: Solver) -> float:
        """The loss alone."""
        with torch.no_grad():
            return float(self.loss(raise_if_failed(solve(self.problem, solver)).y))


def default_loss(seed: int) -> Loss:
    """Every output with a random weight, linear and quadratic: no part can hide."""

    def loss(y: Any) -> Tensor:  # noqa: ANN401
        generator = torch.Generator().manual_seed(seed)
        total: list[Tensor] = []
        for leaf in leaves_of(y):
            weight = torch.rand(leaf.shape, generator=generator, dtype=torch.float64) + 0.5
            sign = 2.0 * torch.randint(0, 2, leaf.shape, generator=generator) - 1.0
            total.append(((weight * sign).to(leaf) * leaf + 0.1 * leaf * leaf).sum())
        return torch.stack(total).sum()

    return loss


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


def _read(problem: ODEProblem) -> list[Tensor]:
    """Leaves that `f` reads and that want a gradient."""
    per_sample = problem.t.dim() == 2
    layout = Layout.of(problem.y0, per_sample)
    field = Field(problem, layout)
    captures = Captures(problem, field)
    leaf = layout.pack(problem.y0).detach().requires_grad_()
    start = problem.t.detach()[..., 0].expand(layout.batch).to(layout.dtype)
    with torch.enable_grad():
        marker = sequence_number()
        captures.discover(field(start, leaf), leaf, marker)
    return [x for x in captures.inputs if x.is_leaf]


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def _is_floating(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()
