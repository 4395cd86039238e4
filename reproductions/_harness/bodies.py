"""What a training step of each body of Table 1 holds in memory and takes in time, by depth."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from _harness.comparison import evaluations
from _harness.costs import slope
from _harness.storage import peak_bytes
from _harness.training import Job, build
from ctflow import Solver
from ctflow.dynamics import ODEBlock
from ctflow.errors import GradientWarning

__all__ = ["Growth", "growth_by_depth"]


@dataclass(frozen=True)
class Growth:
    """Memory and time of a training step against the depth of the body.

    Args:
        body: Whose.
        depth: Blocks, or steps of the solver.
        kib: Peak live storage of forward and backward pass at each depth, in KiB, without weights
            and their gradients.
        milliseconds: Time of the processor at each depth, the least of several.
        evaluations: Of a block or of the field, forward and backward.
    """

    body: str
    depth: list[int]
    kib: list[float]
    milliseconds: list[float]
    evaluations: list[float]

    @property
    def ratio(self) -> float:
        """Peak at the largest depth over that at the smallest."""
        return self.kib[-1] / self.kib[0]

    @property
    def exponent(self) -> float:
        """Slope of memory in doubly logarithmic axes: 0 for O(1), 1 for O(L)."""
        return slope(self.depth, self.kib)

    @property
    def time_exponent(self) -> float:
        """Slope of time against evaluations, likewise."""
        return slope(self.evaluations, self.milliseconds)

    def record(self) -> dict[str, object]:
        """As it stands in a result file."""
        return asdict(self) | {"exponent": self.exponent, "time_exponent": self.time_exponent}


def growth_by_depth(job: Job, depths: Sequence[int], batch: int, repeats: int) -> list[Growth]:
    """Memory and time of the body alone, in a network of the job's size, with the native solver.

    Args:
        job: Whose channels and downsampling are taken.
        depths: Blocks of the residual network, and steps of the Runge-Kutta method.
        batch: Images in a step.
        repeats: Of the timing.
    """
    x = torch.randn(batch, 1, 28, 28)
    small = build(replace(job, net="no block")).stem(x).detach()
    found: list[Growth] = []
    blocks = [_residual(job, depth) for depth in depths]
    found.append(_growth("ResNet", depths, blocks, small, repeats))
    for name, gradient in (("RK-Net", "direct"), ("", "checkpointed"), ("ODE-Net", "adjoint")):
        bodies: list[nn.Module] = []
        for depth in depths:
            body: ODEBlock = build(replace(job, net="ODE-Net")).body  # pyright: ignore
            body.solver = Solver(method="rk4", step=1 / depth, gradient=gradient)  # pyright: ignore
            bodies.append(body)
        found.append(_growth(f"{name} ({gradient})".strip(), depths, bodies, small, repeats))
    return found


def _residual(job: Job, depth: int) -> nn.Module:
    blocks = [build(replace(job, net="ResNet-1")).body for _ in range(depth)]
    return nn.Sequential(*blocks)


def _growth(
    name: str, depths: Sequence[int], bodies: Sequence[nn.Module], x: Tensor, repeats: int
) -> Growth:
    growth = Growth(name, list(depths), [], [], [])
    for depth, body in zip(depths, bodies, strict=True):
        run = _step(body, x)
        growth.kib.append(peak_bytes(run) / 1024)
        times: list[float] = []
        for _ in range(repeats):
            began = time.process_time()
            run()
            times.append(1e3 * (time.process_time() - began))
        growth.milliseconds.append(round(min(times), 3))
        stats = body.stats if isinstance(body, ODEBlock) else None
        growth.evaluations.append(depth if stats is None else sum(evaluations(stats)))
    return growth


def _step(body: nn.Module, x: Tensor) -> Callable[[], Sequence[Tensor]]:
    """A forward and a backward pass, whose gradients are handed over as results."""

    def run() -> Sequence[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradientWarning)
            return torch.autograd.grad(body(x).square().mean(), list(body.parameters()))

    return run
