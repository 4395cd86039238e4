"""The paper's continuous adjoint on our own loop: memory of the outputs alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctflow.backends.adjoint import AdjointField, Evaluated, RanAway, conclude, walk
from ctflow.backends.captures import Autocast, Captures, refuse_second
from ctflow.backends.field import Field
from ctflow.backends.native.control import Adaptive, Control, Span, Verdict
from ctflow.backends.native.gradients.replay import exchange, well
from ctflow.backends.native.loop import Integration, Outcome
from ctflow.backends.native.observers import SaveAt
from ctflow.backends.native.step import FlatField, Step
from ctflow.backends.native.tableau import Tableau
from ctflow.errors import SolveFailed
from ctflow.solution import Counts, GradientReport, Stats, Status

__all__ = ["run"]


_FAR = 10.0  # a rebuilt state this many times larger than any of the forward pass is lost


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
    seminorm: bool
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
    seminorm: bool,
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
        seminorm: Leave the parameters' quadrature out of the step decision.
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
    job = _Job(plan, backward, seminorm, field, captures, f0, report, _Range(y0), [], [])
    out: Tensor = _Adjoint.apply(job, y0, *captures.inputs)  # pyright: ignore
    return out, job.outcomes[0], job.stats


class _Adjoint(torch.autograd.Function):
    """The solve as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, job: _Job, y0: Tensor, *inputs: Tensor) -> Tensor:  # noqa: ANN401
        """Run the loop and keep the outputs."""
        plan = job.plan
        save = SaveAt(plan.tableau, plan.grid, plan.span.direction, y0)
        job.outcomes.append(plan(job.field, y0, job.f0, [save, job.range]))
        out = save.result()
        ctx.save_for_backward(out, *inputs)
        ctx.job, ctx.autocast = job, Autocast.now(y0.device.type)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401
        """Solve the adjoint equation."""
        out, *inputs = ctx.saved_tensors  # also checks that nothing was changed in place
        job: _Job = ctx.job
        with torch.no_grad(), ctx.autocast.again():
            found = _pull_back(job, out.detach(), gradients[0])
        asked = [
            g if need else None for g, need in zip(found, ctx.needs_input_grad[1:], strict=True)
        ]
        return None, *refuse_second(asked, "adjoint", (gradients[0], out, *inputs))


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
    bound = _FAR * exchange(source, job.range.largest)
    size = g.abs().amax(dim=(0, 2))  # the adjoint is linear: each sample's is solved at size 1
    scale = torch.where(size > 0, size, 1.0).unsqueeze(1)
    with job.captures.cut() as leaves:
        field = AdjointField(job.field, job.captures, leaves)
        solver = _Backward(job, field, scale / scale.amax(), bound)
        a, found = walk(solver, field, times, out, g / scale)
    error = solver.quadrature_error()
    conclude(job.report, times, found, solver.gradients, error if job.seminorm else 0.0)
    for stats in job.stats:
        stats.backward = solver.counts(field.n_f_evals)
    return [a * scale, *(q * scale.amax() for q in solver.gradients)]


class _Backward:
    """Solves one interval after the other with our loop; the step size is kept across them."""

    def __init__(self, job: _Job, field: AdjointField, share: Tensor, bound: Tensor) -> None:
        self._job = job
        self._control = _WithQuadrature(job.backward, field, share, bound, job.seminorm)
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
        save = SaveAt(plan.tableau, grid, plan.span.direction, start)
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
        save = SaveAt(plan.tableau, grid, plan.span.direction, y)
        plan(self._job.field, y, None, [save])
        return save.result()[1]

    def _why(self, status: Status) -> str:
        if status == Status.MAX_STEPS:
            if self._left <= 0:
                raise SolveFailed(
                    f"the adjoint's backward solve took its limit of {self._job.plan.max_steps} "
                    "steps. Use gradient='checkpointed', a larger `max_steps`, or looser "
                    "`backward` tolerances."
                )
            return "it took too many steps"
        return "the state rebuilt backwards left the range of the forward pass"


class _WithQuadrature:
    """A step-size control that sums up the parameters' gradient and watches its error.

    The quadrature's error estimate is a block of its own: one number for all samples, because the
    sum over samples is what is wanted. It is computed for the steps that would be accepted; if it
    is above tolerance none of them counts.

    Args:
        control: Judges state and adjoint.
        field: Their derivatives.
        share: Factor on each sample's adjoint in the sum, [B, 1].
        bound: Largest |y| that a rebuilt state may have, [B]; beyond it the sample is given up.
        seminorm: Sum the error up, but let it decide nothing.
    """

    def __init__(
        self, control: Control, field: AdjointField, share: Tensor, bound: Tensor, seminorm: bool
    ) -> None:
        self._control = control
        self._field = field
        self._share = share
        self._bound = bound
        self._seminorm = seminorm
        self._known: dict[int, tuple[Tensor, Evaluated]] = {}
        self._pending: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.total = [torch.zeros_like(leaf) for leaf in field.leaves]
        self._estimate = [torch.zeros_like(leaf) for leaf in field.leaves]

    def field_of_both(self, t: Tensor, y: Tensor) -> Tensor:
        """d[y, a]/dt = [f, -a df/dy] on [B, 2 N]."""
        state, a = y.chunk(2, dim=1)
        place = self._field(t, state, a)
        derivative = torch.cat([place.dy.detach(), -place.pulled], dim=1)
        self._known[id(derivative)] = (derivative, place)
        return derivative

    def first(
        self, field: FlatField, tableau: Tableau, span: Span, y0: Tensor, f0: Tensor
    ) -> tuple[Tensor, int]:
        """The control's own first step."""
        return self._control.first(field, tableau, span, y0, f0)

    def end(self, t: Tensor, size: Tensor, span: Span) -> Tensor:
        """The control's own."""
        return self._control.end(t, size, span)

    def judge(self, tableau: Tableau, step: Step, size: Tensor) -> Verdict:
        """Accept where the control does and the quadrature's error allows it."""
        verdict = self._give_up(step, self._control.judge(tableau, step, size))
        places = self._places(step)
        counts = verdict.accepted.unsqueeze(1)
        forward_h = -step.h  # the integral runs forward in time
        weight = torch.where(counts, forward_h * self._share, 0.0)
        share = self._sum(tableau.b, places, weight, keep=True)
        estimate = [] if tableau.e is None else self._sum(tableau.e, places, weight, keep=True)
        self._pending = (share, estimate)
        if self._seminorm or not estimate or not isinstance(self._control, Adaptive):
            return verdict
        ratio = _ratio(estimate, self.total, share, self._control).reshape(1)
        taken = (step.t1 - step.t0).abs()
        suggested = taken * self._control.factor(tableau, ratio).to(taken.dtype)
        within = ratio <= 1
        at_rest = taken == 0  # it keeps the size with which it will go on in the next interval
        most = torch.where(within | at_rest, torch.maximum(suggested, size), suggested)
        rejected = within & ~verdict.accepted
        size = torch.where(rejected, verdict.size, torch.minimum(verdict.size, most))
        return Verdict(verdict.accepted & within, size, verdict.finite & (ratio < torch.inf))

    def _give_up(self, step: Step, verdict: Verdict) -> Verdict:
        """Stop a sample whose rebuilt state is far outside what the forward pass saw."""
        far = step.y0.chunk(2, dim=1)[0].abs().amax(dim=1) > self._bound
        return Verdict(
            verdict.accepted & ~far, torch.where(far, 0.0, verdict.size), verdict.finite & ~far
        )

    def commit(self, step: Step, t_new: Tensor) -> None:
        """Add what the step contributed; forget its graphs but the last."""
        share, estimate = self._pending
        for i, part in enumerate(share):
            self.total[i] = self.total[i] + part
        for i, part in enumerate(estimate):
            self._estimate[i] = self._estimate[i] + part

    def error(self) -> float:
        """Norm of the summed estimates in units of tolerance."""
        if not (self.total and isinstance(self._control, Adaptive)):
            return 0.0
        return float(_ratio(self._estimate, self.total, None, self._control))

    def _places(self, step: Step) -> list[Evaluated]:
        """The stages with their graphs; a first stage that was pieced together is redone."""
        found: list[Evaluated] = []
        for k in step.k:
            kept = self._known.get(id(k))
            if kept is None:
                y, a = step.y0.chunk(2, dim=1)
                found.append(self._field(step.t0.to(y.dtype), y, a))
            else:
                found.append(kept[1])
        ends = (step.k[0], step.k[-1])
        self._known = {id(k): self._known[id(k)] for k in ends if id(k) in self._known}
        return found

    def _sum(
        self, weights: tuple[float, ...], places: list[Evaluated], h: Tensor, keep: bool
    ) -> list[Tensor]:
        used = [(w, p) for w, p in zip(weights, places, strict=True) if w]
        return self._field.parameters([p for _, p in used], [w * h * p.a for w, p in used], keep)


def _ratio(
    estimate: list[Tensor], total: list[Tensor], share: list[Tensor] | None, control: Adaptive
) -> Tensor:
    """Root mean square of estimate over tolerance, all parameters together."""
    square, count = torch.zeros((), dtype=torch.float64, device=total[0].device), 0
    for i, error in enumerate(estimate):
        size = (
            total[i].abs()
            if share is None
            else torch.maximum(total[i].abs(), (total[i] + share[i]).abs())
        )
        square = square + ((error.abs() / (control.atol + control.rtol * size)) ** 2).sum()
        count += error.numel()
    return (square / max(count, 1)).sqrt()
