"""The gradient of the steps taken: each recorded step is redone, from last to first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ctflow.backends.captures import refuse_second
from ctflow.backends.compiled.forward import Found, forward
from ctflow.backends.compiled.job import RECORD_NAMES, Job, family_of, rest_of
from ctflow.backends.compiled.library import Inputs, Sketch
from ctflow.backends.compiled.phases import Backward
from ctflow.backends.compiled.programs import BackwardProgram
from ctflow.backends.native.gradients.replay import well
from ctflow.backends.native.step import warm
from ctflow.solution import Counts, Stats

__all__ = ["Checkpointed"]


class Checkpointed(torch.autograd.Function):
    """The solve as one node of autograd's graph."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        job: Job,
        kept: list[Found],
        stats: list[Stats],
        y0: Tensor,
        *wanted: Tensor,
    ) -> Tensor:
        """Run the program and keep its records."""
        found = forward(job, y0.detach())
        kept.append(found)
        ctx.save_for_backward(y0, *wanted, *job.reads.tensors)
        ctx.job, ctx.found, ctx.stats = job, found, stats
        return found.out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401
        """Redo the steps from last to first."""
        y0 = ctx.saved_tensors[0]  # also checks that nothing was changed in place
        job: Job = ctx.job
        with torch.no_grad():
            a, totals = pull_back(job, ctx.found, gradients[0], ctx.stats)
        found = [a, *totals]
        asked = [
            g if need else None for g, need in zip(found, ctx.needs_input_grad[3:], strict=True)
        ]
        gradient = str(job.solver.gradient)
        return None, None, None, *refuse_second(asked, gradient, (gradients[0], y0))


def pull_back(job: Job, found: Found, g: Tensor, stats: list[Stats]) -> tuple[Tensor, list[Tensor]]:
    """Gradients of the initial state and of the tensors, from those of the outputs [T, B, N]."""
    outcome = found.outcome
    wanted_tensors = [job.reads.tensors[i] for i in job.wanted or ()]
    totals = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in wanted_tensors]
    source = well(outcome)
    if source is None:
        return torch.zeros_like(g[0]), totals
    times, chunks, ends = job.times, found.chunks, found.ends
    if outcome.stops:
        own = source.to(g.device)
        g = torch.where((outcome.status == 0).to(g.device).unsqueeze(1), g, 0.0)
        times = times[own]
        chunks = [(n, record[:, :, own], states[:, own]) for n, record, states in chunks]
        ends = [(t[own], y[own]) for t, y in ends]
    rest = rest_of(job)
    later, a = g[1:].contiguous(), g[-1].contiguous()
    wanted = times[:, 1:].T.contiguous()
    direction = torch.sign(times[:, -1:] - times[:, :1])
    ahead = (times[:, 1:-1] * direction).contiguous()
    family = family_of(job, "backward")
    n_steps = 0
    for (n, record, states), (t_end, y_end) in zip(reversed(chunks), reversed(ends), strict=True):
        n_steps += n
        if n == 0:
            continue
        if job.inside:
            begin, stop, width = _windows(record, n, ahead, direction)
            window = torch.arange(width, device=g.device)
        else:
            begin = stop = window = g.new_empty(0, dtype=torch.int64)
        inputs = Inputs(
            [torch.tensor([n], device=g.device), a, t_end.contiguous(), y_end, record, states,
             later, wanted, begin, stop.clone(), window.clone(), *totals, *rest],
            _BACKWARD_NAMES if job.inside else _BACKWARD_NAMES_AT_END,
            rest[-1].shape[0],
        )  # fmt: skip
        program = family.get(inputs, lambda sketch, fakes: _backward_module(job, sketch, fakes))
        a, *shares = program(inputs.tensors)
        if shares:
            torch._foreach_add_(totals, shares)  # pyright: ignore
    tableau = job.tableau
    per_step = tableau.stages - tableau.fsal
    n_evals = n_steps * per_step + (len(chunks) if job.inside and tableau.fsal else 0)
    like = outcome.counts.n_steps
    for one in stats:
        one.backward = Counts(
            torch.full_like(like, n_evals),
            torch.full_like(like, n_steps),
            torch.full_like(like, n_steps),
            torch.zeros_like(like),
        )
    return a + g[0], totals


_BACKWARD_NAMES = (
    (None,), (None, None), (None,), (None, None), RECORD_NAMES, RECORD_NAMES,
    ("outputs", None, None), ("outputs", None), ("records", None), ("records", None), ("window",),
)  # fmt: skip
_BACKWARD_NAMES_AT_END = (
    *_BACKWARD_NAMES[:6], (None, None, None), (None, None), (None,), (None,), (None,),
)  # fmt: skip


def _windows(
    record: Tensor, n: int, ahead: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor, int]:
    """For each step and sample the range of its outputs, [C, B] each, and the longest range."""
    starts, stops = (record[:n, i].T.contiguous() * direction for i in (0, 1))
    begin, stop = record.new_zeros((2, record.shape[0], record.shape[2]), dtype=torch.int64)
    begin[:n] = torch.searchsorted(ahead, starts, right=True).T
    stop[:n] = torch.searchsorted(ahead, stops, right=True).T
    return begin, stop, max(2, int((stop - begin).amax()))


def _backward_module(job: Job, sketch: Sketch, fakes: Sequence[Tensor]) -> BackwardProgram:
    """The backward program of a job, with the sizes of a sketch."""
    n_totals = len(job.wanted or ())
    warm(job.tableau, job.times.dtype, job.times.device)
    traced = job.traced(sketch, fakes[11 + n_totals :])
    phases = Backward(job.tableau, traced, job.inside)
    with sketch.mode:
        return BackwardProgram(phases, fakes, job.exact)
