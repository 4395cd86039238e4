"""torchode as a backend of ctflow: dopri5 and tsit5 with a step size for each sample.

What torchode leaves to its caller is done here: a failed sample stops its batch there, so the
others are solved again without it; what was not reached holds uninitialised memory, so it becomes
NaN; gradients of times are ctflow's closed form; steps go back into the graph only as constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torchode
from torch import Tensor
from torchode.status_codes import REACHED_MAX_STEPS, SUCCESS

from ctflow import ODEProblem, Solution, Solver, Stats, Status, Unsupported
from ctflow.backends import Feature
from ctflow.backends.field import Field
from ctflow.backends.protocol import resolved
from ctflow.backends.times import shift
from ctflow.solution import Counts, GradientReport, Stop
from ctflow.state import Layout

__all__ = ["TorchodeBackend"]

_METHODS = {"dopri5": torchode.Dopri5, "tsit5": torchode.Tsit5}


@dataclass(frozen=True)
class TorchodeBackend:
    """The solvers of torchode (Lienen 2022), tested with its version 1.0.1."""

    @property
    def name(self) -> str:
        """Its name in messages and tables."""
        return "torchode"

    @property
    def features(self) -> frozenset[Feature]:
        """What it can do."""
        return frozenset(
            {
                Feature.ADAPTIVE,
                Feature.PER_SAMPLE,
                Feature.DIRECT,
                Feature.TIME_GRADIENTS,
                Feature.SECOND_ORDER,
            }
        )

    def refuse(self, problem: ODEProblem, solver: Solver) -> list[str]:
        """Reasons why it cannot do what is asked."""
        reasons: list[str] = []
        if (solver.method or "dopri5") not in _METHODS:
            reasons.append(f"method={solver.method!r} is not one of {', '.join(_METHODS)}")
        if solver.step is not None:
            reasons.append("`step`: its methods adapt their steps here")
        if solver.gradient not in (None, "direct"):
            reasons.append(f"gradient={solver.gradient!r} is not direct")
        if solver.backward is not None:
            reasons.append("`backward` tolerances belong to gradient='adjoint'")
        return reasons

    def solve(self, problem: ODEProblem, solver: Solver) -> Solution:
        """Solve with complete settings; see `ctflow.backends.Backend.solve`."""
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise Unsupported(
                "backend 'torchode' cannot be used under torch.func transforms: it writes into "
                "tensors. Use backend='native' with gradient='direct'."
            )
        layout = Layout.of(problem.y0, per_sample=solver.coupling == "per_sample")
        field = Field(problem, layout)
        times = problem.t.double().expand(layout.batch, -1)
        y0 = layout.pack(problem.y0)
        moving = times.requires_grad and torch.is_grad_enabled()
        start = shift(field, times[:, 0], y0, -1.0, None, "direct") if moving else y0
        run = _run(field, solver, start, times.detach())
        out = _attach(field, times, y0, run) if moving else run.out
        stats = Stats(resolved(solver, self), run.counts, Counts.zeros(layout.batch))
        report = GradientReport("this gradient is that of the steps taken")
        y = layout.unpack(out)
        return Solution(problem.t, y, run.status, stats, run.stops, None, report)


class _Run(NamedTuple):
    """How a solve went.

    Attributes:
        out: States at the output times, [T, B, N].
        status: `Status` of each sample, int64 [B].
        counts: What it cost.
        stops: Where failed samples stood.
    """

    out: Tensor
    status: Tensor
    counts: Counts
    stops: tuple[Stop, ...]


def _run(field: Field, solver: Solver, y0: Tensor, grid: Tensor) -> _Run:
    """Solve; again without those who failed, each in the place of a healthy one, until none does.

    Args:
        field: dy/dt on flat tensors.
        solver: Complete settings.
        y0: Initial states, [B, N].
        grid: Output times, [B, T], detached.
    """
    batch = y0.shape[0]
    with torch.no_grad():
        bad = ~torch.isfinite(field(grid[:, 0].to(y0.dtype), y0)).all(dim=1)
    status = torch.where(bad, int(Status.NON_FINITE), int(Status.OK))
    kept = torch.full((grid.shape[1], *y0.shape), torch.nan, dtype=y0.dtype, device=y0.device)
    kept[0] = y0.detach()
    counts = [torch.zeros(batch, dtype=torch.int64) for _ in range(3)]
    counts[0] += bad
    while True:
        well = (status == Status.OK).nonzero().flatten()
        if not len(well):
            out = kept
            break
        source = torch.where(status == Status.OK, torch.arange(batch), well[0]).to(y0.device)
        found = _solve(field, solver, y0[source], grid[source])
        own = status == Status.OK
        new = torch.tensor(
            [_STATUS.get(int(code), Status.NON_FINITE) for code in found.status.tolist()]
        )
        broken = own & (new != Status.OK)
        done = broken if bool(broken.any()) else own
        numbers = (found.stats["n_f_evals"], found.stats["n_steps"], found.stats["n_accepted"])
        counts = [torch.where(done, n.cpu(), c) for n, c in zip(numbers, counts, strict=True)]
        out = found.ys.transpose(0, 1)
        if not bool(broken.any()):
            out = torch.where(own.to(out.device).unsqueeze(1), out, kept)
            break
        for i in broken.nonzero().flatten().tolist():
            reached = int(found.stats["n_initialized"][i])
            ahead = out[:reached, i].detach()
            finite = torch.isfinite(ahead).all(dim=1).cumprod(0).bool()
            kept[:reached, i] = torch.where(finite.unsqueeze(1), ahead, torch.nan)
        status = torch.where(broken, new, status)
    n_f_evals, n_steps, n_accepted = counts
    stops = tuple(
        Stop(i, float(grid[i, 0]), float("nan"), f_is_finite=not bool(bad[i]))
        for i in (status != Status.OK).nonzero().flatten().tolist()
    )
    every = Counts(n_f_evals + 1, n_steps, n_accepted, n_steps - n_accepted)
    return _Run(out, status, every, stops)


_STATUS = {SUCCESS: Status.OK, REACHED_MAX_STEPS: Status.MAX_STEPS}


def _solve(field: Field, solver: Solver, y0: Tensor, grid: Tensor) -> torchode.Solution:
    """One call of torchode; its step sizes are constants of the graph."""
    dtype = y0.dtype
    term = torchode.ODETerm(lambda t, y: field(t.to(dtype), y))
    method = _METHODS[str(solver.method)](term=term)
    control = torchode.IntegralController(atol=solver.atol, rtol=solver.rtol, term=term)
    adjoint = torchode.AutoDiffAdjoint(
        method,
        control.to(y0.device),
        max_steps=solver.max_steps + 1,  # its limit is reached by the attempt that must not be
        backprop_through_step_size_control=False,
    )
    return adjoint.solve(torchode.InitialValueProblem(y0, t_eval=grid), term)


def _attach(field: Field, times: Tensor, y0: Tensor, run: _Run) -> Tensor:
    """The outputs with the gradients of their times; output 0 is y0, which no time moves."""
    well = (run.status == Status.OK).to(y0.device).unsqueeze(1)
    shifted = [torch.where(well, y0, run.out[0])]
    for t, y in zip(times.unbind(1)[1:], run.out.unbind(0)[1:], strict=True):
        safe = torch.where(well, y, y0.detach())
        shifted.append(torch.where(well, shift(field, t, safe, 1.0, None, "direct"), y))
    return torch.stack(shifted)
