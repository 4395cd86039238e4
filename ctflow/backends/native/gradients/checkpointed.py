"""Keep the accepted steps, redo each in the backward pass: direct's numbers in far less memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctflow.backends.captures import (
    Autocast,
    Captures,
    pull,
    refuse_second,
    refuse_several,
    sequence_number,
)
from ctflow.backends.native.gradients.replay import exchange, hits_of_the_well, well
from ctflow.backends.native.interpolate import evaluate
from ctflow.backends.native.loop import Integration, Outcome
from ctflow.backends.native.observers import Hits, KeepCourse, LocalError, Recorded, RecordGrid
from ctflow.backends.native.step import FlatField, extended
from ctflow.errors import InvalidProblem
from ctflow.solution import Counts, Stats
from ctflow.transforms import active

__all__ = ["run"]


def run(
    plan: Integration,
    field: FlatField,
    captures: Captures,
    y0: Tensor,
    f0: Tensor,
    errors: LocalError | None = None,
    course: KeepCourse | None = None,
) -> tuple[Tensor, Outcome, list[Stats]]:
    """Solve without a graph and let the backward pass redo one step at a time.

    Args:
        plan: Method, control, times, limit.
        field: dy/dt on flat tensors.
        captures: What `field` reads beside t and y.
        y0: Initial state, [B, N].
        f0: `field` there, detached.
        errors: Adds up local errors, if they are wanted; it must be new.
        course: Keeps whole steps, if they are wanted; likewise.

    Returns:
        States at the output times, [T, B, N]; how the solve went; and a list into which the
        caller puts the `Stats` that the backward pass shall complete.

    Cost:
        Memory of one state for each accepted step. Backward: every accepted step again (one
        evaluation less than stages under first-same-as-last), with its vector-Jacobian products.
    """
    job = _Job(plan, field, captures, f0.detach(), errors, course, [], [])
    found: Sequence[Tensor] = _Checkpointed.apply(job, y0, *captures.inputs)  # pyright: ignore
    total = None if errors is None else found[1]
    kept = None
    if course is not None and len(course.steps):
        t0, t1 = (torch.stack([step[i] for step in course.steps]) for i in (0, 1))
        kept = (t0, t1, found[-2], found[-1])
        course.steps.clear()
    return found[0], job.outcomes[0]._replace(local_error=total, course=kept), job.stats


class _Job(NamedTuple):
    """What forward and backward share; forward fills `outcomes`, the caller `stats`."""

    plan: Integration
    field: FlatField
    captures: Captures
    f0: Tensor
    errors: LocalError | None
    course: KeepCourse | None
    outcomes: list[Outcome]
    stats: list[Stats]


class _Checkpointed(torch.autograd.Function):
    """The solve as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, job: _Job, y0: Tensor, *inputs: Tensor) -> Any:  # noqa: ANN401
        """Run the loop and keep its steps."""
        plan = job.plan
        save, record = plan.saver(job.field, y0), RecordGrid()
        more = [observer for observer in (job.errors, job.course) if observer is not None]
        job.outcomes.append(plan(job.field, y0, job.f0, [save, record, *more]))
        ctx.save_for_backward(y0, *inputs)
        ctx.job, ctx.kept = job, list(zip(record.steps, save.hits, strict=True))
        ctx.autocast = Autocast.now(y0.device.type)
        out = save.result()
        ctx.end = out[-1].clone()
        found = [out]
        if job.errors is not None:
            total = job.errors.total
            found.append(y0[:, 0] * 0 if total is None else total)
        kept = None if job.course is None else job.course.result()
        return (*found, *(() if kept is None else kept[2:]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401
        """Redo the steps from last to first."""
        if active():  # what is only vectorised may pass, torch.vmap may not
            refuse_several(gradients, "checkpointed")
        y0, *inputs = ctx.saved_tensors  # also checks that nothing was changed in place
        job: _Job = ctx.job
        with torch.no_grad(), ctx.autocast.again():
            found = _pull_back(job, ctx.kept, ctx.end, gradients)
        asked = [
            None if not need else g for g, need in zip(found, ctx.needs_input_grad[1:], strict=True)
        ]
        return None, *refuse_second(asked, "checkpointed", (*gradients, y0, *inputs))


def _pull_back(
    job: _Job, kept: list[tuple[Recorded, Hits]], end: Tensor, gradients: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradient of y0 and of each captured tensor, from that of what `forward` returned."""
    g = gradients[0]
    source = well(job.outcomes[0])
    total: list[Tensor | None] = [None] * len(job.captures.inputs)
    if source is None:
        return [torch.zeros_like(g[0]), *total]
    if job.outcomes[0].stops:  # a failed sample is a constant
        arrived = (job.outcomes[0].status == 0).to(g.device)
        g = torch.where(arrived.unsqueeze(1), g, 0.0)
        of_errors = [torch.where(arrived, e, 0.0) for e in gradients[1 : 1 + bool(job.errors)]]
        gradients = [g, *of_errors, *(torch.zeros_like(x) for x in gradients[1 + len(of_errors) :])]
    a = torch.zeros_like(g[0])
    y_after = exchange(source, end)
    with job.captures.cut() as leaves:
        watched = _Watched(job, leaves)
        for i, (step, hits) in reversed(list(enumerate(kept))):
            step = Recorded(*(exchange(source, x) for x in step))
            own = hits_of_the_well(source, hits)
            course = () if job.course is None else (gradients[-2][i], gradients[-1][i])
            a, shares, y1 = _pull_back_step(watched, leaves, step, own, a, gradients, course)
            for j, share in enumerate(shares):
                total[j] = _add(total[j], share)
            _check_same(y1, y_after)
            y_after = step.y0
    n_redone = torch.full_like(job.outcomes[0].counts.n_steps, watched.n_f_evals)
    n_steps = torch.full_like(n_redone, len(kept))
    for stats in job.stats:
        stats.backward = Counts(n_redone, n_steps, n_steps, torch.zeros_like(n_steps))
    at_rest = job.plan.grid[:, -1] == job.plan.grid[:, 0]
    if bool(at_rest.any()):  # all their outputs are the initial state
        a = a + torch.where(at_rest.unsqueeze(1), g[1:].sum(0), 0.0)
    return [a + g[0], *total]


def _pull_back_step(
    field: _Watched,
    leaves: tuple[Tensor, ...],
    kept: Recorded,
    hits: Hits,
    a: Tensor,
    gradients: Sequence[Tensor],
    of_course: Sequence[Tensor],
) -> tuple[Tensor, tuple[Tensor | None, ...], Tensor]:
    """Cotangent of one step's start and of the leaves, from that of its end and of its outputs."""
    tableau, errors = field.job.plan.tableau, field.job.errors
    with torch.enable_grad():
        y0 = kept.y0.detach().requires_grad_()
        inside = bool((kept.t1[hits.row] != hits.times).any())
        inside = inside or bool(of_course)
        field.begin(last_needed=errors is not None or inside or not tableau.fsal)
        step = field.job.plan.step(field, kept.t0, kept.t1, y0, None)
        outputs, cotangents = [step.y1], [a]
        step = extended(field, tableau, step) if inside else step
        if len(hits.row):
            outputs.append(evaluate(tableau, step, hits.row, hits.times))
            cotangents.append(gradients[0][hits.column, hits.row])
        if errors is not None:
            outputs.append(errors.of(step))
            cotangents.append(gradients[1])
        if of_course and field.job.course is not None:
            outputs.append(field.job.course.stages(step))
            cotangents.append(of_course[1])
    da, *shares = pull(outputs, (y0, *leaves), cotangents, keep=False)
    da = torch.zeros_like(a) if da is None else da
    return da + of_course[0] if of_course else da, tuple(shares), step.y1.detach()


class _Watched:
    """The field in the backward pass: counted, skipped where it cannot matter, and watched."""

    def __init__(self, job: _Job, leaves: tuple[Tensor, ...]) -> None:
        self.job = job
        self.n_f_evals = 0
        self._leaves = leaves
        self._stage, self._skipped = 0, 0

    def begin(self, last_needed: bool) -> None:
        """Begin a step; its last stage is left out where it enters nothing."""
        self._stage = 0
        self._skipped = 0 if last_needed else self.job.plan.tableau.stages

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate, and refuse what the forward pass could not have known."""
        self._stage += 1
        if self._stage == self._skipped:
            return torch.zeros_like(y)
        self.n_f_evals += 1
        marker = sequence_number()
        dy = self.job.field(t, y)
        self.job.captures.recheck(dy, y, marker, self._leaves, t)
        return dy


def _check_same(y1: Tensor, recorded: Tensor) -> None:
    """Raise if redoing a step gave another state than the one the forward pass went on from.

    It may differ by rounding, because devices sum in any order: by half the digits, not by more.
    """
    off = (y1 - recorded).abs().amax()
    size = torch.maximum(y1.abs().amax(), recorded.abs().amax())
    if not bool(off <= torch.finfo(y1.dtype).eps ** 0.5 * size):
        raise InvalidProblem(
            f"`f` must give the same value twice, got a state that differs by {float(off):.2g} "
            "when a step was redone in the backward pass. Remove dropout and other noise from "
            "`f`, keep batch norm in eval mode, and change nothing it reads before backward; or "
            "use gradient='direct'."
        )


def _add(total: Tensor | None, share: Tensor | None) -> Tensor | None:
    if total is None or share is None:
        return share if total is None else total
    return total + share
