"""Extrapolation methods (Gragg, Bulirsch, Stoer) as a backend of ctflow.

A step of length H is taken by the midpoint rule in n = 2, 4, 6, ... parts. The error of each has an
expansion in (H / n)^2, so that k of them combine to order 2k (Hairer, Norsett, Wanner, Solving
Ordinary Differential Equations I, section II.9).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ctflow import ODEProblem, Solution, Solver, Stats, Status, Unsupported
from ctflow.backends import Feature
from ctflow.backends.field import Field
from ctflow.backends.protocol import resolved
from ctflow.backends.times import shift
from ctflow.solution import Counts, GradientReport, Stop
from ctflow.state import Layout
from ctflow.transforms import active

__all__ = ["ExtrapolationBackend"]

_PARTS = {"gbs6": (2, 4, 6), "gbs8": (2, 4, 6, 8), "gbs10": (2, 4, 6, 8, 10)}


def _weights(parts: Sequence[int]) -> tuple[float, ...]:
    """Weights of the solutions by n parts that cancel all powers of (H / n)^2 but the last."""
    return tuple(prod(n * n / (n * n - m * m) for m in parts if m != n) for n in parts)


def _step(
    field: Field, t: float, h: float, y: Tensor, f0: Tensor, parts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """One step from t to t + h: the state there and an estimate of its error, [1, N] each."""
    found: list[Tensor] = []
    for n in parts:
        before, now = y, y + h / n * f0
        for i in range(1, n):
            time = torch.full((1,), t + h * i / n, dtype=y.dtype, device=y.device)
            before, now = now, before + 2 * h / n * field(time, now)
        found.append(now)
    best = sum(w * x for w, x in zip(_weights(parts), found, strict=True))
    lower = sum(w * x for w, x in zip(_weights(parts[1:]), found[1:], strict=True))
    return best, best - lower


class _Run(NamedTuple):
    """How a solve went.

    Attributes:
        outputs: States at the output times, [1, N] each; NaN where it did not arrive.
        status: How it ended.
        counts: Evaluations, steps, accepted and rejected ones.
        stops: Where it stood, if it did not arrive.
    """

    outputs: list[Tensor]
    status: Status
    counts: tuple[int, int, int, int]
    stops: tuple[Stop, ...]


def _run(field: Field, solver: Solver, y: Tensor, grid: Sequence[float]) -> _Run:
    """Step from output to output; autograd records the steps that count and nothing else."""
    parts = _PARTS[str(solver.method)]
    order = 2 * len(parts) - 1  # of the estimate
    t, forwards = grid[0], grid[-1] > grid[0]
    outputs, status = [y], Status.OK
    f0 = _slope(field, t, y)
    evaluations, tried, accepted = 1, 0, 0
    size = 0.01 * _norm(y, y, solver) / max(_norm(f0, y, solver), 1e-6)  # Hairer, II.4
    size, h = max(size, 1e-6), 0.0
    if not bool(torch.isfinite(f0).all()):
        status = Status.NON_FINITE
    while status is Status.OK and len(outputs) < len(grid):
        end = grid[len(outputs)]
        arrives = size >= 0.99 * abs(end - t)  # no splinter of a step before an output
        h = end - t if arrives else size if forwards else -size
        if tried == solver.max_steps:
            status = Status.MAX_STEPS
            break
        new, error = _step(field, t, h, y, f0, parts)
        tried, evaluations = tried + 1, evaluations + sum(parts) - len(parts)
        ratio = _norm(error, torch.maximum(y.abs(), new.abs()), solver)
        finite = bool(torch.isfinite(new).all())
        if finite and ratio <= 1.0:
            t, y, accepted = end if arrives else t + h, new, accepted + 1
            f0 = _slope(field, t, y)
            evaluations += 1
            if arrives:
                outputs.append(y)
        elif abs(h) < 1e-14 * max(abs(t), abs(end), 1e-300):
            status = Status.STEP_TOO_SMALL if finite else Status.NON_FINITE
        grow = 0.9 * max(ratio, 1e-12) ** (-1 / order) if finite else 0.2
        size = abs(h) * min(max(grow, 0.2), 5.0)
    counts = (evaluations, tried, accepted, tried - accepted)
    if status is Status.OK:
        return _Run(outputs, status, counts, ())
    reached = [x.detach() for x in outputs]  # what failed sends no gradient
    missing = [torch.full_like(reached[0], torch.nan)] * (len(grid) - len(reached))
    stop = Stop(0, t, h, f_is_finite=bool(torch.isfinite(f0).all()))
    return _Run([*reached, *missing], status, counts, (stop,))


def _slope(field: Field, t: float, y: Tensor) -> Tensor:
    return field(torch.full((1,), t, dtype=y.dtype, device=y.device), y)


def _norm(x: Tensor, y: Tensor, solver: Solver) -> float:
    """Root mean square in tolerances; a constant of the gradient."""
    scale = (solver.atol or 0.0) + (solver.rtol or 0.0) * y.detach().abs()
    return float((x.detach() / scale).square().mean().sqrt())


@dataclass(frozen=True)
class ExtrapolationBackend:
    """Methods `gbs6`, `gbs8` and `gbs10`, with adaptive steps and direct gradients."""

    @property
    def name(self) -> str:
        """Its name in messages and tables."""
        return "extrapolation"

    @property
    def features(self) -> frozenset[Feature]:
        """What it can do; what is not here, ctflow refuses for it."""
        return frozenset(
            {Feature.ADAPTIVE, Feature.DIRECT, Feature.TIME_GRADIENTS, Feature.SECOND_ORDER}
        )

    def refuse(self, problem: ODEProblem, solver: Solver) -> list[str]:
        """Reasons why it cannot do what is asked."""
        reasons: list[str] = []
        if solver.method not in (None, *_PARTS):
            reasons.append(f"method={solver.method!r} is not one of {', '.join(_PARTS)}")
        if solver.step is not None:
            reasons.append("`step`: its steps adapt")
        if solver.coupling == "per_sample":
            reasons.append("coupling='per_sample': it has one step size for the whole state")
        if problem.t.dim() == 2:
            reasons.append("`t` gives each sample its own times; it has one grid for all")
        if solver.gradient not in (None, "direct"):
            reasons.append(f"gradient={solver.gradient!r} is not direct")
        if solver.backward is not None:
            reasons.append("`backward` tolerances belong to gradient='adjoint'")
        return reasons

    def solve(self, problem: ODEProblem, solver: Solver) -> Solution:
        """Solve with complete settings; see `ctflow.backends.Backend.solve`."""
        if active():
            raise Unsupported(
                "backend 'extrapolation' cannot be used under torch.func transforms, whose values "
                "decide its steps. Use backend='native' with gradient='direct'."
            )
        layout = Layout.of(problem.y0, per_sample=False)
        field = Field(problem, layout)
        times = problem.t.double()
        y0 = layout.pack(problem.y0)
        moving = times.requires_grad and torch.is_grad_enabled()
        start = shift(field, times[:1], y0, -1.0, None, "direct") if moving else y0
        run = _run(field, solver, start, times.tolist())
        outputs = run.outputs
        if not run.stops:
            outputs[0] = y0  # which no time moves
        if moving and not run.stops:
            later = zip(times[1:].split(1), outputs[1:], strict=True)
            outputs[1:] = [shift(field, t, y, 1.0, None, "direct") for t, y in later]
        counts = Counts(*(torch.tensor([n]) for n in run.counts))
        stats = Stats(resolved(solver, self), counts, Counts.zeros(1))
        y, status = layout.unpack(torch.stack(outputs)), torch.tensor([int(run.status)])
        report = GradientReport("this gradient is that of the steps taken")
        return Solution(problem.t, y, status, stats, run.stops, None, report)
