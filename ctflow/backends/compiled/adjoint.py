"""The paper's continuous adjoint as a compiled program: memory of the outputs alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctflow.backends import adjoint as walk
from ctflow.backends.captures import refuse_second
from ctflow.backends.compiled.adjoint_program import (
    AdjointPhases,
    AdjointProgram,
    EffectProgram,
    Ends,
    Head,
    Kept,
)
from ctflow.backends.compiled.controls import backward_of, control_values, started
from ctflow.backends.compiled.forward import Found, forward
from ctflow.backends.compiled.job import Job, as_given, family_of, rest_of, totals_of
from ctflow.backends.compiled.library import Inputs, Sketch
from ctflow.backends.field import Field
from ctflow.backends.native.backend import NativeBackend
from ctflow.backends.native.gradients.adjoint import backward_size, used_up
from ctflow.backends.native.gradients.quadrature import quadrature_error
from ctflow.backends.native.gradients.replay import exchange, well
from ctflow.backends.native.step import warm
from ctflow.backends.protocol import Tolerances, leaves_out
from ctflow.solution import Counts, GradientReport, Stats
from ctflow.state import leaves_of

__all__ = ["Adjoint"]


class Adjoint(torch.autograd.Function):
    """The solve as one node of autograd's graph."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        job: Job,
        kept: list[Found],
        stats: list[Stats],
        report: GradientReport,
        y0: Tensor,
        *wanted: Tensor,
    ) -> Tensor:
        """Run the program; nothing is recorded."""
        found = forward(job, y0.detach())
        kept.append(found)
        ctx.save_for_backward(found.out, y0, *wanted, *job.reads.tensors)
        ctx.back = _Back(job, found.outcome, found.largest, stats, report)
        return found.out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401
        """Solve the adjoint equation."""
        out, y0 = ctx.saved_tensors[:2]  # also checks that nothing was changed in place
        back: _Back = ctx.back
        with torch.no_grad():
            found = back.pull(out.detach(), gradients[0])
            if found is None:
                found = back.by_native(y0.detach(), gradients[0])
        asked = [
            g if need else None for g, need in zip(found, ctx.needs_input_grad[4:], strict=True)
        ]
        return None, None, None, None, *refuse_second(asked, "adjoint", (gradients[0], y0))


class _Shape(NamedTuple):
    """Free dimensions of the inputs."""

    walk: Sequence[Sequence[str | None]]
    effect: Sequence[Sequence[str | None]]


def _shape(name: str | None) -> _Shape:
    times, grid, states = (None, name), (name, None), (name, None, None)
    return _Shape(
        ((None,), times, states, states, (None,), states, states, grid),
        ((None,), times, states, states, states, grid, grid, (name,)),
    )


_OUTPUTS, _ENDS = _shape("outputs"), _shape(None)


class _Back(NamedTuple):
    """The backward pass of one solve."""

    job: Job
    outcome: Any
    largest: Tensor
    stats: list[Stats]
    report: GradientReport

    def pull(self, out: Tensor, g: Tensor) -> list[Tensor] | None:
        """Gradient of y0 and of each wanted tensor, from that of the outputs g [T, B, N].

        None if the state rebuilt backwards ran away.

        Raises:
            SolveFailed: If the walk took all its steps.
        """
        job, outcome = self.job, self.outcome
        totals = totals_of(job)
        times, largest, size = job.times, self.largest, backward_size(outcome)
        if outcome.stops:  # a failed sample is a constant, and a healthy one stands in for it
            source = well(outcome)
            if source is None:
                return [torch.zeros_like(g[0]), *as_given(job, totals)]
            g = torch.where((outcome.status == 0).to(g.device).unsqueeze(1), g, 0.0)
            out = out[:, source.to(out.device)]
            times, largest, size = (exchange(source, x) for x in (times, largest, size))
        control = backward_of(job.solver, job.control, out.shape[2])
        seminorm = leaves_out(job.solver.backward)
        job = job._replace(control=control)
        values = started(control, control_values(control, times), size)
        n, limit = times.shape[1], job.solver.max_steps
        ends = Ends(times, out, g.contiguous(), largest)
        kept = Kept(torch.empty_like(out), torch.empty_like(out), out.new_empty((n, out.shape[1])))
        estimates = [torch.zeros_like(x) for x in totals] if seminorm else []
        rest = rest_of(job)
        inputs = Inputs(
            [torch.tensor(Head(n - 1, limit), device=g.device), *ends, *kept, *totals, *estimates,
             *values, *job.stop_values, *rest],
            (_OUTPUTS if job.inside else _ENDS).walk,
            rest[-1].shape[0],
        )  # fmt: skip
        family = family_of(job, _name(job.solver.backward))
        program = family.get(inputs, _Maker(job).walk)
        head, costs, a, factor = program(inputs.tensors)
        told = Head(*head.tolist())
        if told.lost:
            return None
        if told.left:
            raise used_up(limit)
        drift = kept.drifts[:-1].T.cpu()
        error, shared = torch.zeros_like(drift), drift.new_zeros(n - 1)
        if told.look:
            costs[0] += 2 * (n - 1)
            error, shared = self._look_closer(job, ends, kept, rest)
        if told.look or seminorm:
            off = quadrature_error(estimates, totals, control) if seminorm else 0.0
            walk.warn(self.report, times, walk.Found(drift, error, shared), totals, off)
        else:
            self.report.fill(drift, error, 0.0, ())
        for one in self.stats:
            one.backward = Counts(*costs.cpu().unbind(0))
        if totals:
            torch._foreach_mul_(totals, factor)  # pyright: ignore
        return [a, *as_given(job, totals)]

    def _look_closer(
        self, job: Job, ends: Ends, kept: Kept, rest: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Estimate what the drift did: errors of the adjoint and of the parameters' gradient."""
        left = torch.tensor([ends.times.shape[1] - 1], device=ends.g.device)
        errors = torch.zeros_like(kept.drifts)
        shared = errors.new_zeros(errors.shape[0])
        inputs = Inputs(
            [left, ends.times, ends.out, *kept, errors, shared, *rest],
            (_OUTPUTS if job.inside else _ENDS).effect,
            rest[-1].shape[0],
        )
        family = family_of(job, "effect of drift")
        family.get(inputs, _Maker(job).effect)(inputs.tensors)
        return errors[:-1].T.cpu(), shared[:-1].cpu()

    def by_native(self, y0: Tensor, g: Tensor) -> list[Tensor]:
        """The same by native's loop, which splits intervals where the state runs away."""
        job = self.job
        wanted = job.wanted or ()
        field = Field(job.problem, job.layout)
        start = y0.clone().requires_grad_()
        leaves = [
            x.detach().requires_grad_() if i in wanted else x.detach()
            for i, x in enumerate(job.reads.tensors)
        ]
        with torch.enable_grad(), job.autocast.again(), job.reads.replaced(field, leaves):
            problem = replace(
                job.problem,
                y0=job.layout.unpack(start),
                t=job.problem.t.detach(),
                args=field.args,
                params=None,
            )
            solution = NativeBackend(job.tableau, job.control).solve(problem, job.solver)
            found = torch.autograd.grad(
                leaves_of(solution.y),
                (start, *(leaves[i] for i in wanted)),
                leaves_of(job.layout.unpack(g)),
                allow_unused=True,
                materialize_grads=True,
            )
        theirs = solution.gradient_report
        if theirs.filled:
            self.report.fill(theirs.drift, theirs.error, theirs.quadrature_error, theirs.messages)
        for one in self.stats:
            one.backward = solution.stats.backward
        return list(found)


class _Maker(NamedTuple):
    """Makes the programs of a job."""

    job: Job

    def walk(self, sketch: Sketch, fakes: Sequence[Tensor]) -> AdjointProgram:
        """The walk over all intervals."""
        job = self.job
        n_values = len(control_values(job.control, job.times))
        n_stops, n_totals = len(job.stop_values), len(job.wanted or ())
        first = 8 + n_totals * (1 + leaves_out(job.solver.backward)) + n_values + n_stops
        phases = self._phases(sketch, fakes[first:], n_values, n_stops, fakes[2].shape[1])
        with sketch.mode, torch.no_grad():
            return AdjointProgram(phases, fakes, job.exact)

    def effect(self, sketch: Sketch, fakes: Sequence[Tensor]) -> EffectProgram:
        """What the drift did."""
        phases = self._phases(sketch, fakes[8:], 0, 0, fakes[2].shape[1])
        with sketch.mode, torch.no_grad():
            return EffectProgram(phases, fakes, self.job.exact)

    def _phases(
        self, sketch: Sketch, tensors: Sequence[Tensor], n_values: int, n_stops: int, batch: int
    ) -> AdjointPhases:
        job = self.job
        warm(job.tableau, job.times.dtype, job.times.device)
        with job.autocast.again():
            traced = job.traced(sketch, tensors)
        return AdjointPhases(
            job.tableau, job.control, traced, n_values, job.solver.backward, _carries(job, batch),
            n_stops,
        )  # fmt: skip


def _name(own: Tolerances | None) -> str:
    """Of the programs for these tolerances, whose numbers are inputs."""
    if own is None:
        return "adjoint"
    full, relative = own.norm == "full", own.unit == "gradient"
    return f"adjoint{'' if full else ' under seminorm'}{'' if relative else ', absolute'}"


def _carries(job: Job, batch: int) -> bool:
    """Whether the derivative at the end of a step serves the next one."""
    return batch == 1 and job.carries and not job.inside
