"""Random initial value problems with a loss, and the gradient of everything that enters them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils import _pytree as pytree

from ctflow import ODEProblem, Solution, Solver, solve
from tests.problems import FLOAT

__all__ = [
    "CORES",
    "PARTS",
    "SHAPES",
    "Choices",
    "Trial",
    "gradient_of",
    "make_trial",
    "reference",
    "reference_second",
    "second_of",
    "tangent_of",
]


class Core(nn.Module):
    """dy/dt on rows [B, N] with times [B, 1] or [1, 1] and a force [N]; Lipschitz constant ~ 1."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        super().__init__()
        a = torch.randn(n, n, dtype=FLOAT, generator=generator)
        self.a = nn.Parameter(a / torch.linalg.matrix_norm(a, 2))
        self.b = nn.Parameter(0.3 * torch.randn(n, dtype=FLOAT, generator=generator))

    def forward(self, t: Tensor, y: Tensor, force: Tensor) -> Tensor:
        raise NotImplementedError


class LinearCore(Core):
    """A y + b + u."""

    def forward(self, t: Tensor, y: Tensor, force: Tensor) -> Tensor:
        return y @ self.a.T + self.b + force


class Rotation(Core):
    """(A - A^T) y / 2 at a rate that depends on time."""

    def forward(self, t: Tensor, y: Tensor, force: Tensor) -> Tensor:
        return 0.5 * torch.cos(t) * (y @ (self.a - self.a.T)) + 0.1 * self.b * force


class Network(Core):
    """A tanh(A y + b + u t)."""

    def forward(self, t: Tensor, y: Tensor, force: Tensor) -> Tensor:
        return torch.tanh(y @ self.a.T + self.b + force * t) @ self.a


class Forced(Core):
    """-y / 2 + sin(3 t) b + u cos(t y)."""

    def forward(self, t: Tensor, y: Tensor, force: Tensor) -> Tensor:
        return -0.5 * y + torch.sin(3 * t) * self.b + 0.3 * force * torch.cos(t * y) @ self.a


PARTS = ("y0", "params", "args", "t")
CORES = {core.__name__: core for core in (LinearCore, Rotation, Network, Forced)}
SHAPES: dict[str, Any] = {  # of one sample
    "tensor": (3,),
    "matrix": (2, 2),
    "tuple": ((2,), (1, 2)),
    "dict": {"z": (1,), "a": (2,)},
    "nested": [{"u": (2,)}, ((1,), (1,))],
}


class OnLeaves(nn.Module):
    """A core on states of any structure: the leaves of a sample side by side are its row."""

    def __init__(self, core: Core, batched: bool) -> None:
        super().__init__()
        self.core = core
        self.batched = batched

    def forward(self, t: Tensor, y: Any, args: dict[str, Any]) -> Any:  # noqa: ANN401
        leaves, spec = pytree.tree_flatten(y)
        rows = [x.reshape(x.shape[0] if self.batched else 1, -1) for x in leaves]
        dy = self.core(t.reshape(-1, 1), torch.cat(rows, 1), args["strength"] * args["force"])
        parts = dy.split([row.shape[1] for row in rows], dim=1)
        shaped = [part.reshape(x.shape) for part, x in zip(parts, leaves, strict=True)]
        return pytree.tree_unflatten(shaped, spec)


def second_of(trial: Trial, solver: Solver) -> tuple[Tensor, ...]:
    """The Hessian of the loss times a fixed vector, for all inputs."""
    inputs = trial.inputs
    first = torch.autograd.grad(
        trial.loss(solver), inputs, create_graph=True, allow_unused=True, materialize_grads=True
    )
    along = [torch.linspace(-1, 1, x.numel(), dtype=FLOAT).reshape(x.shape) for x in inputs]
    product = torch.stack([(g * v).sum() for g, v in zip(first, along, strict=True)]).sum()
    found = torch.autograd.grad(product, inputs, allow_unused=True, materialize_grads=True)
    return tuple(found)


def tangent_of(trial: Trial, solver: Solver) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Derivative of the loss along a fixed vector, in forward mode, and that vector."""
    problem = trial.problem
    along = [torch.linspace(-1, 1, x.numel(), dtype=FLOAT).reshape(x.shape) for x in trial.inputs]
    with forward_ad.dual_level():
        pairs = zip(trial.inputs, along, strict=True)
        duals = {id(x): forward_ad.make_dual(x.detach(), v) for x, v in pairs}

        def dual(x: Any) -> Any:  # noqa: ANN401
            return duals.get(id(x), x.detach()) if isinstance(x, Tensor) else x

        params = {name: dual(x) for name, x in problem.f.named_parameters()}  # pyright: ignore

        def f(t: Tensor, y: Any, args: Any) -> Any:  # noqa: ANN401
            return functional_call(problem.f, params, (t, y, args))  # pyright: ignore

        y0, args = (pytree.tree_map(dual, x) for x in (problem.y0, problem.args))
        moved = ODEProblem(f, y0, dual(problem.t), args=args, batched=problem.batched)
        found = forward_ad.unpack_dual(replace(trial, problem=moved).loss(solver)).tangent
    if found is None:
        raise AssertionError("the tangent was lost")
    return found, tuple(along)


@dataclass(frozen=True)
class Choices:
    """What a trial is made of: names of its dynamics and structure, and where its numbers begin."""

    core: str
    shape: str
    batch: int | None
    times: tuple[float, ...]
    loss: str
    seed: int
    wanted: tuple[str, ...] = PARTS


@dataclass(frozen=True)
class Trial:
    """A problem, a loss on some of its outputs, and how much it may amplify an error.

    Args:
        problem: With a gradient wanted of each of the parts.
        entries: Indices of the outputs that enter the loss.
        weights: Weight of each variable in the loss, the structure of y0.
        growth: Lipschitz constant times duration.
        parts: What a gradient is wanted of: some of y0, parameters, args and times.
    """

    problem: ODEProblem
    entries: tuple[int, ...]
    weights: Any
    growth: float
    parts: dict[str, tuple[Tensor, ...]] = field(repr=False)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Everything a gradient is wanted of."""
        return tuple(x for part in self.parts.values() for x in part)

    def amplified(self, rtol: float) -> float:
        """What a solver with this tolerance may do to a gradient.

        Errors grow by exp(L T) at most (Hairer I, theorem I.10.2), those of the gradient too; at
        interior times an interpolant, whose error nobody controls, adds a few dozen tolerances.
        """
        return 100 * rtol * math.exp(self.growth)

    def solution(self, solver: Solver) -> Solution:
        """Solve it; raise if it fails."""
        solution = solve(self.problem, solver)
        if not solution.ok:
            raise AssertionError(f"{solver} failed: {solution.stops}")
        return solution

    def loss(self, solver: Solver) -> Tensor:
        """A smooth, non-linear function of the chosen outputs."""
        y = pytree.tree_leaves(self.solution(solver).y)
        weights = pytree.tree_leaves(self.weights)
        chosen = [(leaf[list(self.entries)], w) for leaf, w in zip(y, weights, strict=True)]
        return torch.stack([(w * x + 0.1 * x * x).sum() for x, w in chosen]).sum()

    def with_times(self, t: Tensor) -> Trial:
        """The same at other times."""
        return replace(self, problem=replace(self.problem, t=t), parts={**self.parts, "t": (t,)})


def gradient_of(trial: Trial, solver: Solver) -> tuple[Tensor, ...]:
    """Gradient of the loss with respect to all inputs; zeros where there is none."""
    found = torch.autograd.grad(
        trial.loss(solver), trial.inputs, allow_unused=True, materialize_grads=True
    )
    return tuple(found)


def make_trial(choices: Choices) -> Trial:
    """The trial that these choices stand for, with numbers drawn from the seed."""
    generator = torch.Generator().manual_seed(choices.seed)
    batch, n_times = choices.batch, len(choices.times)

    def normal(size: tuple[int, ...]) -> Tensor:
        size = size if batch is None else (batch, *size)
        return 0.7 * torch.randn(*size, dtype=FLOAT, generator=generator)

    def state() -> Any:  # noqa: ANN401
        return pytree.tree_map(normal, SHAPES[choices.shape], is_leaf=_is_shape)

    y0, weights = state(), state()
    leaves = pytree.tree_leaves(y0)
    n = sum(leaf.numel() for leaf in leaves) // (batch or 1)
    f = OnLeaves(CORES[choices.core](n, generator), batch is not None)
    force = torch.randn(n, dtype=FLOAT, generator=generator)
    t = torch.tensor(choices.times, dtype=FLOAT)
    every = {"y0": tuple(leaves), "params": tuple(f.parameters()), "args": (force,), "t": (t,)}
    for part, tensors in every.items():
        for x in tensors:
            x.requires_grad_(part in choices.wanted)
    args = {"force": force, "strength": 0.5}
    problem = ODEProblem(f, y0, t, args=args, batched=batch is not None)
    entries = {"last": (-1,), "interior": (n_times // 2,), "all": tuple(range(n_times))}
    parts = {part: every[part] for part in choices.wanted}
    growth = abs(choices.times[-1] - choices.times[0])
    return Trial(problem, entries[choices.loss], weights, growth, parts)


def _is_shape(x: object) -> bool:
    return isinstance(x, tuple) and isinstance(x[0], int)


@functools.lru_cache(maxsize=128)
def reference(choices: Choices) -> tuple[Tensor, ...]:
    """The gradient at a tolerance of 1e-11."""
    return gradient_of(make_trial(choices), Solver(gradient="direct", rtol=1e-11, atol=1e-11))


@functools.lru_cache(maxsize=128)
def reference_second(choices: Choices) -> tuple[Tensor, ...]:
    """The Hessian times the vector: differences of the reference gradient."""
    trial, step = make_trial(choices), 1e-4
    solver = Solver(gradient="direct", rtol=1e-12, atol=1e-12)
    along = [torch.linspace(-1, 1, x.numel(), dtype=FLOAT).reshape(x.shape) for x in trial.inputs]
    total = [torch.zeros_like(x) for x in trial.inputs]
    for k, weight in {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}.items():
        other = make_trial(choices)
        with torch.no_grad():
            for x, v in zip(other.inputs, along, strict=True):
                x += k * step * v
        total = [
            a + weight / step * g for a, g in zip(total, gradient_of(other, solver), strict=True)
        ]
    return tuple(total)
