"""Back-propagate through the solver: autograd records the accepted steps."""

from __future__ import annotations

import torch
from torch import Tensor

from ctflow.backends.native.gradients.replay import exchange, hits_of_the_well, well
from ctflow.backends.native.loop import Integration, Outcome
from ctflow.backends.native.observers import KeepCourse, LocalError, RecordGrid
from ctflow.backends.native.step import FlatField

__all__ = ["run"]


def run(
    plan: Integration,
    field: FlatField,
    y0: Tensor,
    errors: LocalError | None = None,
    course: KeepCourse | None = None,
) -> tuple[Tensor, Outcome]:
    """Solve so that autograd differentiates the accepted steps; step sizes are constants.

    With one sample the loop itself is recorded: a rejected step's graph is dropped. With several,
    the loop is run without a graph first, and its grid is then walked again with one: a loop that
    masks rejected rows would give NaN gradients wherever a rejected trial overflowed.

    Args:
        plan: Method, control, times, limit.
        field: dy/dt on flat tensors.
        y0: Initial state, [B, N].
        errors: Adds up local errors, if they are wanted; it must be new.
        course: Keeps whole steps, if they are wanted; likewise.

    Returns:
        States at the output times, [T, B, N], and how the solve went.

    Cost:
        Memory of every accepted step's graph. Several samples: the accepted steps twice.
    """
    if y0.shape[0] == 1:
        save = plan.saver(field, y0)
        more = [observer for observer in (errors, course) if observer is not None]
        outcome = plan(field, y0, None, [save, *more])
        out, total = save.result(), None if errors is None else errors.total
        if outcome.stops:
            out, total = out.detach(), None if total is None else total.detach()
        return out, outcome._replace(local_error=total, course=_kept(course))
    with torch.no_grad():
        start = y0.detach()
        save, record = plan.saver(field, start), RecordGrid()
        outcome = plan(field, start, None, [save, record])
        source = well(outcome)
        if source is None:
            return save.result(), outcome
    again = plan.saver(field, y0)
    # A view: a failed neighbour must not change the order in which its gradient is added up.
    y, f0, n_again = exchange(source, y0.view_as(y0)), None, 0
    well_rows = (outcome.status == 0).to(y0.device)
    for kept, hits in zip(record.steps, save.hits, strict=True):
        t0, t1 = exchange(source, kept.t0), exchange(source, kept.t1)
        step = plan.step(field, t0, t1, y, f0)
        n_again += plan.tableau.evaluations(f0 is not None)
        again.save(step, hits_of_the_well(source, hits))
        if errors is not None:
            errors.add(torch.where(well_rows, errors.of(step), 0.0))
        if course is not None:
            course(step, t1)
        y, f0 = step.y1, None
        if plan.tableau.fsal and not plan.ends_in_jump(t0, t1):
            # Whoever rests keeps its f: an evaluation of its own would round the gradient anew.
            f0 = torch.where((t0 != t1).unsqueeze(1), step.k[-1], step.k[0])
    out = again.result()
    failed = ~well_rows.unsqueeze(1)
    out = torch.where(failed, save.result(), out) if outcome.stops else out
    counts, total = outcome.counts, None if errors is None else errors.total
    counts.n_f_evals.add_(n_again + again.n_f_evals)
    if course is not None:
        counts.n_f_evals.add_(course.n_f_evals)
    return out, outcome._replace(local_error=total, course=_kept(course))


def _kept(course: KeepCourse | None) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    return None if course is None else course.result()
