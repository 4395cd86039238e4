"""The paper's continuous adjoint on our own loop: memory of the outputs alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctflow.backends.adjoint import AdjointField, RanAway, conclude, scale_of, walk
from ctflow.backends.adjoint_node import pulled_back, remember
from ctflow.backends.captures import Captures
from ctflow.backends.field import Field
from ctflow.backends.native.control import Adaptive, Control
from ctflow.backends.native.gradients.quadrature import FAR, WithQuadrature
from ctflow.backends.native.gradients.replay import exchange, well
from ctflow.backends.native.loop import Integration, Outcome
from ctflow.backends.native.step import Step
from ctflow.backends.protocol import Tolerances, is_absolute, leaves_out
from ctflow.errors import SolveFailed
from ctflow.solution import Counts, GradientReport, Stats, Status

__all__ = ["backward_size", "begun", "run", "used_up"]


class _Range:
    """Largest |y| that the forward pass saw, [B]."""

    def __init__(self, y0: Tensor) -> None:
        self.largest = y0.detach().abs().amax(dim=1)

    def __call__(self, step: Step, t_new: Tensor) -> None:
        """Look at the end of a step that counts."""
        seen = torch.maximum(self.largest, step.y1.abs().amax(dim=1))
        self.largest = torch.where(t_new == step.t1, seen, self.largest)


class _Job(NamedTuple):
    """What forward and backward share; forward fills `outcomes`, the caller `stats`."""

    plan: Integration
    backward: Control
    own: Tolerances | None
    field: Field
    captures: Captures
    f0: Tensor
    report: GradientReport
    range: _Range
    outcomes: list[Outcome]
    stats: list[Stats]


def run(
    plan: Integration,
    backward: Control,
    own: Tolerances | None,
    field: Field,
    captures: Captures,
    y0: Tensor,
    f0: Tensor,
    report: GradientReport,
) -> tuple[Tensor, Outcome, list[Stats]]:
    """Solve without a graph; the backward pass solves the adjoint equation.

    Args:
        plan: Method, control, times, limit.
        backward: Control of the backward solve.
        own: Its tolerances, where they are not those of the forward pass.
        field: dy/dt on flat tensors.
        captures: What `field` reads beside t and y.
        y0: Initial state, [B, N].
        f0: `field` there, detached.
        report: Filled by the backward pass.

    Returns:
        States at the output times, [T, B, N]; how the solve went; and a list into which the
        caller puts the `Stats` that the backward pass shall complete.

    Cost:
        Memory of the outputs. Backward: for each step one evaluation and one vector-Jacobian
        product a stage, and two products with respect to all parameters.
    """
    job = _Job(plan, backward, own, field, captures, f0, report, _Range(y0), [], [])
    out: Tensor = _Adjoint.apply(job, y0, *captures.inputs)  # pyright: ignore
    return out, job.outcomes[0], job.stats


def begun(backward: Control, forward: Control, size: float | Tensor) -> Control:
    """The control of the backward solve, which begins with a size that the forward one found.

    To find one anew would take a product with df/dy and several small steps.

    Args:
        backward: The control.
        forward: That of the forward pass; where its steps were given, nothing is known.
        size: Size of the backward solve's first step, [B], as `backward_size` has it.
    """
    if isinstance(backward, Adaptive) and isinstance(forward, Adaptive):
        return replace(backward, first_size=size)
    return backward


def backward_size(outcome: Outcome) -> Tensor:
    """Size of the backward solve's first step, [B].

    It starts where the forward solve arrived, along the same solution, on which the next step
    would have been of `outcome.size`. The adjoint jumps where f has a kink, and takes shorter
    steps there than the state: it begins with 0.3 of that, which costs a smooth f a step at most.
    Where one step was enough forwards, one is tried backwards.

    Args:
        outcome: How the forward solve went.
    """
    alone = (outcome.counts.n_accepted == 1).to(outcome.size.device)
    return torch.where(alone, outcome.size, 0.3 * outcome.size)


class _Adjoint(torch.autograd.Function):
    """The solve as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, job: _Job, y0: Tensor, *inputs: Tensor) -> Tensor:  # noqa: ANN401
        """Run the loop and keep the outputs."""
        plan = job.plan
        save = plan.saver(job.field, y0)
        job.outcomes.append(plan(job.field, y0, job.f0, [save, job.range]))
        out = save.result()
        remember(ctx, out, inputs)
        ctx.job = job
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401
        """Solve the adjoint equation."""
        return None, *pulled_back(ctx, gradients, partial(_pull_back, ctx.job), 1)


def _pull_back(job: _Job, out: Tensor, g: Tensor) -> list[Tensor]:
    """Gradient of y0 and of each captured tensor, from that of the outputs g [T, B, N]."""
    outcome = job.outcomes[0]
    source = well(outcome)
    if source is None:
        return [torch.zeros_like(g[0]), *(torch.zeros_like(x) for x in job.captures.inputs)]
    if outcome.stops:  # a failed sample is a constant, and a healthy one stands in for it
        g = torch.where((outcome.status == 0).to(g.device).unsqueeze(1), g, 0.0)
        out = out[:, source.to(out.device)]
    times = exchange(source, job.plan.grid)
    bound = FAR * exchange(source, job.range.largest)
    control = begun(job.backward, job.plan.control, exchange(source, backward_size(outcome)))
    scale = scale_of(g.abs().amax(dim=(0, 2)), is_absolute(job.own)).unsqueeze(1)
    with job.captures.cut() as leaves:
        field = AdjointField(job.field, job.captures, leaves)
        solver = _Backward(job, control, field, scale / scale.amax(), bound)
        a, found = walk(solver, field, times, out, g / scale)
    error = solver.quadrature_error()
    conclude(job.report, times, found, solver.gradients, error if leaves_out(job.own) else 0.0)
    for stats in job.stats:
        stats.backward = solver.counts(field.n_f_evals)
    return [a * scale, *(q * scale.amax() for q in solver.gradients)]


class _Backward:
    """Solves one interval after the other with our loop; the step size is kept across them."""

    def __init__(
        self, job: _Job, control: Control, field: AdjointField, share: Tensor, bound: Tensor
    ) -> None:
        self._job = job
        self._control = WithQuadrature(control, field, share, bound, leaves_out(job.own))
        self._size: Tensor | None = None
        self._counts: list[Counts] = []  # not the outcomes, whose traces grow by a time a step
        self._left = job.plan.max_steps

    @property
    def gradients(self) -> list[Tensor]:
        """Parameters' gradients so far."""
        return self._control.total

    def quadrature_error(self) -> float:
        """Estimated error of the parameters' gradient in units of tolerance."""
        return self._control.error()

    def counts(self, n_f_evals: int) -> Counts:
        """Costs of the whole backward solve."""
        columns = [
            torch.stack(column).sum(0)
            for column in zip(
                *((c.n_steps, c.n_accepted, c.n_rejected) for c in self._counts), strict=True
            )
        ]
        return Counts(torch.full_like(columns[0], n_f_evals), *columns)

    def back(self, t_from: Tensor, t_to: Tensor, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """State and adjoint at t_to."""
        grid = torch.stack([t_from, t_to], dim=1)
        plan = self._job.plan._replace(
            grid=grid, control=self._control, max_steps=max(self._left, 1), size=self._size
        )
        start = torch.cat([y, a], dim=1)
        save = plan.saver(self._control.field_of_both, start)
        before = list(self._control.total)
        outcome = plan(self._control.field_of_both, start, None, [self._control.commit, save])
        self._counts.append(outcome.counts)
        self._left -= int(outcome.counts.n_steps.max())
        if outcome.stops:
            self._control.total = before
            stop = outcome.stops[0]
            raise RanAway(stop.t, self._why(Status(int(outcome.status[stop.sample]))))
        self._size = outcome.size
        rebuilt, a_end = save.result()[1].chunk(2, dim=1)
        return rebuilt, a_end

    def forth(self, t_from: Tensor, t_to: Tensor, y: Tensor) -> Tensor:
        """State at t_to, with the forward pass's settings."""
        grid = torch.stack([t_from, t_to], dim=1)
        plan = self._job.plan._replace(grid=grid)
        save = plan.saver(self._job.field, y)
        plan(self._job.field, y, None, [save])
        return save.result()[1]

    def _why(self, status: Status) -> str:
        if status == Status.MAX_STEPS:
            if self._left <= 0:
                raise used_up(self._job.plan.max_steps)
            return "it took too many steps"
        return "the state rebuilt backwards left the range of the forward pass"


def used_up(max_steps: int) -> SolveFailed:
    """The backward solve took all the steps it may take."""
    return SolveFailed(
        f"the adjoint's backward solve took its limit of {max_steps} steps. Use "
        "gradient='checkpointed', a larger `max_steps`, or looser `backward` tolerances."
    )
