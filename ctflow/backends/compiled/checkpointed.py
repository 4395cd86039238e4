"""The gradient of the steps taken: each recorded step is redone, from last to first."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ctflow.backends.captures import refuse_second
from ctflow.backends.compiled.backward_program import Backward, BackwardProgram
from ctflow.backends.compiled.forward import Found, Run, forward
from ctflow.backends.compiled.job import RECORD_NAMES, Job, as_given, family_of, rest_of, totals_of
from ctflow.backends.compiled.keep import split
from ctflow.backends.compiled.library import Inputs, Sketch
from ctflow.backends.native.gradients.replay import well
from ctflow.backends.native.loop import Outcome
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
        # Not what holds the output, whose graph leads here: a cycle, that keeps the records.
        ctx.job, ctx.outcome, ctx.runs, ctx.stats = job, found.outcome, found.runs, stats
        return found.out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401
        """Redo the steps from last to first."""
        y0 = ctx.saved_tensors[0]  # also checks that nothing was changed in place
        job: Job = ctx.job
        with torch.no_grad():
            a, totals = pull_back(job, ctx.outcome, ctx.runs, gradients[0], ctx.stats)
        found = [a, *totals]
        asked = [
            g if need else None for g, need in zip(found, ctx.needs_input_grad[3:], strict=True)
        ]
        return None, None, None, *refuse_second(asked, str(job.solver.gradient), (gradients[0], y0))


def pull_back(
    job: Job, outcome: Outcome, runs: list[Run], g: Tensor, stats: list[Stats]
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of the initial state and of the tensors, from those of the outputs [T, B, N]."""
    grid = job.times
    totals = totals_of(job)
    if outcome.stops:
        source = well(outcome)
        if source is None:
            return torch.zeros_like(g[0]), as_given(job, totals)
        own = source.to(g.device)
        g = torch.where((outcome.status == 0).to(g.device).unsqueeze(1), g, 0.0)
        grid, runs = grid[own], [_of(own, run) for run in runs]
    g, rest = g.contiguous(), rest_of(job)
    a = g[-1]
    family = family_of(job, "backward")
    n_kept = len(runs[0].kept)

    def make(sketch: Sketch, fakes: Sequence[Tensor]) -> BackwardProgram:
        return _module(job, sketch, fakes, n_kept)

    names = _names(job, runs[0].kept)
    for run in reversed(runs):
        if run.n == 0:
            continue
        window = _range(max(2, run.widest), g.device) if job.inside else run.windows
        inputs = Inputs(
            [torch.tensor([run.n], device=g.device), a, run.clock, run.y, grid, g, run.steps,
             run.states, run.windows, window, *run.kept, *totals, *job.stop_values, *rest],
            names,
            rest[-1].shape[0],
        )  # fmt: skip
        program = family.get(inputs, make)
        a, *shares = program(inputs.tensors)
        if shares:
            torch._foreach_add_(totals, shares)  # pyright: ignore
    _count(job, outcome, runs, stats)
    return a + g[0], as_given(job, totals)


def _of(own: Tensor, run: Run) -> Run:
    """The records with healthy samples in the places of failed ones."""
    return run._replace(
        steps=run.steps[:, own].contiguous(),
        states=run.states[:, own].contiguous() if run.states.dim() > 1 else run.states,
        windows=run.windows[:, own].contiguous() if run.windows.dim() > 1 else run.windows,
        clock=run.clock[:, own].contiguous(),
        y=run.y[own],
    )


def _count(job: Job, outcome: Outcome, runs: Sequence[Run], stats: list[Stats]) -> None:
    """Put the cost of the backward pass where the user reads it."""
    n_steps = sum(run.n for run in runs)
    n_evals = 0 if job.keeps_evaluations else n_steps * job.redone
    n_evals += len(runs) if job.inside and job.carries else 0
    like = outcome.counts.n_steps
    for one in stats:
        one.backward = Counts(
            torch.full_like(like, n_evals),
            torch.full_like(like, n_steps),
            torch.full_like(like, n_steps),
            torch.zeros_like(like),
        )


@lru_cache(maxsize=64)
def _range(n: int, device: torch.device) -> Tensor:
    """0, 1, 2, ..."""
    with torch.inference_mode(False):
        return torch.arange(n, device=device)


def _names(job: Job, kept: Sequence[Tensor]) -> list[tuple[str | None, ...]]:
    """Which sizes of the first inputs are free from the start."""
    inside = job.inside
    outputs = "outputs" if inside else None
    return [
        (None,), (None, None), (None, None), (None, None),
        (None, outputs), (outputs, None, None), (None, None, "records"),
        RECORD_NAMES if job.keeps_states else (None,),
        (None, None, "records") if inside else (None,),
        ("window",) if inside else (None,),
        *(("records", *(None for _ in x.shape[1:])) for x in kept),
    ]  # fmt: skip


def _module(job: Job, sketch: Sketch, fakes: Sequence[Tensor], n_kept: int) -> BackwardProgram:
    """The backward program of a job, with the sizes of a sketch."""
    n_totals = len(job.wanted or ())
    warm(job.tableau, job.times.dtype, job.times.device)
    n_stops = len(job.stop_values)
    traced = job.traced(sketch, fakes[10 + n_kept + n_totals + n_stops :])
    recalled = split(traced).recalled if job.keeps_evaluations else None
    phases = Backward(
        job.tableau, traced, job.inside, job.carries, job.redone, job.dense_dtype, n_stops, recalled
    )
    with sketch.mode:
        return BackwardProgram(phases, fakes, n_kept, job.exact)
