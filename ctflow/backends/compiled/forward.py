"""The forward solve: its program, run until every sample is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ctflow.backends.compiled.job import RECORD_NAMES, Job, family_of, rest_of
from ctflow.backends.compiled.library import Family, Inputs, Sketch
from ctflow.backends.compiled.phases import Forward, control_values
from ctflow.backends.compiled.programs import ForwardProgram
from ctflow.backends.native.loop import Outcome
from ctflow.backends.native.step import warm
from ctflow.solution import Counts, Status, Stop

__all__ = ["Found", "forward"]

_RECORD = 64 * 2**20  # bytes of records that a first solve sets aside
_FEWEST, _MOST = 16, 4096  # records


class Found(NamedTuple):
    """What a forward solve found and keeps.

    Attributes:
        out: States at the output times, [T, B, N].
        outcome: How it went.
        chunks: (n, times, states) of each run of the program.
        ends: (time, state) at the end of each run.
    """

    out: Tensor
    outcome: Outcome
    chunks: list[tuple[int, Tensor, Tensor]]
    ends: list[tuple[Tensor, Tensor]]


_FORWARD_NAMES = (
    (), (None,), (None,), (None,), (None, None), (None, None), (None, None), ("outputs", None),
    RECORD_NAMES,
)  # fmt: skip


def forward(job: Job, y: Tensor) -> Found:
    """Run the forward program until every sample is done."""
    batch, n_variables = y.shape
    times, tableau = job.times, job.tableau
    t0, t1 = times[:, 0], times[:, -1].contiguous()
    direction = torch.sign(t1 - t0)
    wanted = times[:, 1:].T.contiguous()
    keep = job.wanted is not None
    n_powers = len(tableau.p[0]) if job.inside else 0
    family = family_of(job, "forward")
    values, rest = control_values(job.control, times), rest_of(job)

    def make(sketch: Sketch, fakes: Sequence[Tensor]) -> ForwardProgram:
        module, family.n_probes = _forward_module(job, sketch, fakes)
        return module

    given = torch.zeros_like(t0)
    clock = torch.stack((t0, given))
    ticks = torch.zeros((3, batch), dtype=torch.int64, device=y.device)
    fresh, steps, start = torch.ones((), dtype=torch.bool, device=y.device), 0, y
    chunks: list[tuple[int, Tensor, Tensor]] = []
    trace_times = [t0.unsqueeze(0)]
    out: Tensor | None = None
    ends: list[tuple[Tensor, Tensor]] = []
    while True:
        room = _room(family, y, 1 + n_powers if keep or job.inside else 0, job.solver.max_steps)
        record = y.new_empty((room, 2, batch), dtype=times.dtype)
        states = y.new_empty((room, batch, n_variables) if keep or job.inside else (0,))
        powers = y.new_empty((room, n_powers, batch, n_variables) if job.inside else (0,))
        limits = torch.tensor([job.solver.max_steps, room, steps], device=y.device)
        tensors = [fresh, limits, t1, direction, clock, ticks, y, wanted, record, states, powers]
        names = _FORWARD_NAMES if job.inside else (*_FORWARD_NAMES[:7], (None, None), RECORD_NAMES)
        names = (
            *names,
            RECORD_NAMES if states.dim() > 1 else (None,),
            (*RECORD_NAMES, None) if job.inside else (None,),
        )
        inputs = Inputs([*tensors, *values, *rest], names, rest[-1].shape[0])
        program = family.get(inputs, make)
        marks, clock, ticks, y, found = program(inputs.tensors)
        steps, n = cast("list[int]", marks.tolist())
        family.longest = max(family.longest, n)
        out = found if out is None else torch.where(torch.isnan(out), found, out)
        chunks.append((n, record, states))
        ends.append((clock[0], y))
        trace_times.append(record[:n, 1])
        on_the_way = (ticks[0] == Status.OK) & (clock[0] != t1)
        if n < room or steps >= job.solver.max_steps or not bool(on_the_way.any()):
            break
        fresh = torch.zeros_like(fresh)
    outcome = _outcome(job, family, clock, ticks, t1, steps, len(chunks), trace_times)
    return Found(torch.cat((start.unsqueeze(0), out)), outcome, chunks, ends)


def _room(family: Family, y: Tensor, n_states: int, max_steps: int) -> int:
    """How many records to set aside: what was needed before and a quarter more."""
    fits = _RECORD // max(1, n_states * y.numel() * y.element_size())
    first = min(max(fits, _FEWEST), 256)
    asked = family.longest + family.longest // 4 + 4 if family.longest else first
    return max(2, min(max(asked, 2), max(fits, _FEWEST), _MOST, max_steps + 1))


def _outcome(
    job: Job,
    family: Family,
    clock: Tensor,
    ticks: Tensor,
    t1: Tensor,
    steps: int,
    n_chunks: int,
    trace_times: list[Tensor],
) -> Outcome:
    """Statistics and failures, from what the program counted."""
    status, done, rejected = ticks.cpu().unbind(0)
    unfinished = (status == Status.OK) & (clock[0] != t1).cpu()
    if bool(unfinished.any()):
        status = torch.where(unfinished, int(Status.MAX_STEPS), status)
        done = torch.where(unfinished, steps, done)
    tableau = job.tableau
    n_probes = family.n_probes
    evals = n_chunks * (1 + n_probes) + done * (tableau.stages - tableau.fsal)
    counts = Counts(evals, done.clone(), done - rejected, rejected.clone())
    stops: list[Stop] = []
    if int(status.count_nonzero()):
        for sample in status.nonzero().flatten().tolist():
            bad_start = int(status[sample]) == Status.NON_FINITE and int(done[sample]) == 0
            stops.append(
                Stop(sample, float(clock[0, sample]), float(clock[1, sample]), not bad_start)
            )
    passed = torch.cat([*trace_times[:1], *trace_times[1:]])
    return Outcome(status.clone(), counts, tuple(stops), passed.unbind(0), clock[1])


def _forward_module(
    job: Job, sketch: Sketch, fakes: Sequence[Tensor]
) -> tuple[ForwardProgram, int]:
    """The forward program of a job, and the evaluations that its first step's size takes."""
    control, tableau = job.control, job.tableau
    values = control_values(control, job.times)
    own = fakes[11 + len(values) :]
    warm(tableau, job.times.dtype, job.times.device)
    traced = job._replace(wanted=None).traced(sketch, own)
    phases = Forward(
        tableau, control, traced.value, len(values), job.wanted is not None, job.inside
    )
    with sketch.mode, torch.no_grad():
        module = ForwardProgram(phases, fakes, job.exact)
    return module, phases.probes[-1]
