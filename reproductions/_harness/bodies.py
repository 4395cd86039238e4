"""What a training step of each body of Table 1 holds in memory and takes in time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from _harness.costs import slope
from _harness.storage import peak_bytes
from _harness.training import Job, build
from ctflow import Solver
from ctflow.dynamics import ODEBlock
from ctflow.errors import GradientWarning

__all__ = ["Growth", "Pace", "growth_of_memory", "paces"]


@dataclass(frozen=True)
class Growth:
    """Peak storage of a training step against the depth of the body.

    Args:
        body: Whose.
        depth: Blocks, or steps of the solver.
        kib: Peak live storage of forward and backward pass at each depth, in KiB, without weights
            and their gradients.
    """

    body: str
    depth: list[int]
    kib: list[float]

    @property
    def ratio(self) -> float:
        """Peak at the largest depth over that at the smallest."""
        return self.kib[-1] / self.kib[0]

    @property
    def exponent(self) -> float:
        """Slope in doubly logarithmic axes: 0 for O(1), 1 for O(L)."""
        return slope(self.depth, self.kib)


@dataclass(frozen=True)
class Pace:
    """Time of a training step of the ODE-Net.

    Args:
        solver: Backend and gradient.
        milliseconds: Median over the rounds, forward and backward.
        forward: Evaluations of the field in the forward pass.
        backward: Likewise backward.
    """

    solver: str
    milliseconds: float
    forward: float
    backward: float


def growth_of_memory(job: Job, depths: Sequence[int], batch: int) -> list[Growth]:
    """Peak storage of the body alone, in a network of the job's size, with the native solver.

    Args:
        job: Whose channels and downsampling are taken.
        depths: Blocks of the residual network, and steps of the Runge-Kutta method.
        batch: Images in a step.
    """
    x = torch.randn(batch, 1, 28, 28)
    small = build(replace(job, net="no block")).stem(x).detach()
    found: list[Growth] = []
    blocks = [_residual(job, depth) for depth in depths]
    found.append(_growth("ResNet", depths, blocks, small))
    for name, gradient in (("RK-Net", "direct"), ("", "checkpointed"), ("ODE-Net", "adjoint")):
        bodies: list[nn.Module] = []
        for depth in depths:
            body: ODEBlock = build(replace(job, net="ODE-Net")).body  # pyright: ignore
            body.solver = Solver(method="rk4", step=1 / depth, gradient=gradient)  # pyright: ignore
            bodies.append(body)
        found.append(_growth(f"{name} ({gradient})".strip(), depths, bodies, small))
    return found


def paces(job: Job, solvers: dict[str, Solver], batch: int, rounds: int) -> list[Pace]:
    """The same training step under several solvers, in turn, on one thread."""
    torch.manual_seed(job.seed)
    x, y = torch.randn(batch, 1, 28, 28), torch.randint(0, 10, (batch,))
    model = build(replace(job, net="ODE-Net", identity=False))
    times: dict[str, list[float]] = {name: [] for name in solvers}
    counts: dict[str, tuple[float, float]] = {}
    for _ in range(rounds + 1):
        for name, solver in solvers.items():
            model.body.solver = solver
            began = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", GradientWarning)
                cross_entropy(model(x), y).backward()
            times[name].append(1e3 * (time.perf_counter() - began))
            stats = model.body.stats
            backward = 0.0 if stats.backward is None else float(stats.backward.n_f_evals.max())
            counts[name] = float(stats.forward.n_f_evals.max()), backward
    return [Pace(name, median(times[name][1:]), *counts[name]) for name in solvers]


def _residual(job: Job, depth: int) -> nn.Module:
    blocks = [build(replace(job, net="ResNet-1")).body for _ in range(depth)]
    return nn.Sequential(*blocks)


def _growth(name: str, depths: Sequence[int], bodies: Sequence[nn.Module], x: Tensor) -> Growth:
    return Growth(name, list(depths), [peak_bytes(_step(body, x)) / 1024 for body in bodies])


def _step(body: nn.Module, x: Tensor) -> Callable[[], Sequence[Tensor]]:
    """A forward and a backward pass, whose gradients are handed over as results."""

    def run() -> Sequence[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradientWarning)
            return torch.autograd.grad(body(x).square().mean(), list(body.parameters()))

    return run
