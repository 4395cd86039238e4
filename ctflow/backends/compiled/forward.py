"""The forward solve: its program, run until every sample is done."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctflow.backends.compiled.controls import control_values, memory_before
from ctflow.backends.compiled.forward_program import Forward, ForwardProgram, Head, Summary
from ctflow.backends.compiled.job import RECORD_NAMES, Job, family_of, rest_of
from ctflow.backends.compiled.keep import split
from ctflow.backends.compiled.library import Family, Inputs, Sketch
from ctflow.backends.native.loop import Outcome
from ctflow.backends.native.step import warm
from ctflow.solution import Counts, Status, Stop

__all__ = ["Found", "Run", "forward"]

_RECORD = 64 * 2**20  # bytes of records that a first solve sets aside
_PASSING = 4 * 2**20  # bytes of records where none is needed later
_SPARE = 2**20  # bytes of them that are left for the next solve
_FEWEST, _MOST = 16, 4096  # records


class Run(NamedTuple):
    """One run of the program, for the backward pass.

    Attributes:
        n: Steps recorded.
        steps: Start and end of each, [2, B, C].
        states: State at the start of each, [C, B, N].
        kept: What the derivative of each evaluation needs, [C, ...] each.
        windows: Which outputs lie in each step, from and to, [2, B, C].
        widest: Most outputs in one step.
        clock: Time, size of the next step, largest |y| at the end, and what the control then
            remembers, [3 + M, B].
        y: State at the end, [B, N].
    """

    n: int
    steps: Tensor
    states: Tensor
    kept: list[Tensor]
    windows: Tensor
    widest: int
    clock: Tensor
    y: Tensor


class Found(NamedTuple):
    """What a forward solve found and keeps.

    Attributes:
        out: States at the output times, [T, B, N].
        outcome: How it went.
        runs: For the backward pass; empty where nothing has to be kept.
        largest: Largest |y| at the ends of steps, [B], for the adjoint.
    """

    out: Tensor
    outcome: Outcome
    runs: list[Run]
    largest: Tensor


def forward(job: Job, y: Tensor) -> Found:
    """Run the forward program until every sample is done.

    Args:
        job: The solve.
        y: Initial state, [B, N], detached.
    """
    y = y.contiguous()
    batch, n_variables = y.shape
    times, tableau = job.times, job.tableau
    n_powers = len(tableau.p[0]) if job.inside else 0
    family = family_of(job, "forward")
    values, rest = control_values(job.control, times), rest_of(job)
    shapes = _kept(job, family, y) if job.keeps_evaluations else []
    dense = job.dense_dtype
    size = (job.keeps_states or job.inside) * y.numel() * y.element_size()
    size += n_powers * y.numel() * dense.itemsize + sum(s.numel() * d.itemsize for s, d in shapes)
    names = _names(job.inside, job.keeps_states, tuple(len(shape) for shape, _ in shapes))

    def make(sketch: Sketch, fakes: Sequence[Tensor]) -> ForwardProgram:
        return _module(job, sketch, fakes, 3 + len(shapes))

    if family.memory is None:
        family.memory = len(memory_before(job.control, tableau, times[:, 0], y))
    clock, ticks = _blank(batch, family.memory, times.dtype, y.device)
    max_steps, steps = job.solver.max_steps, 0
    out: Tensor | None = None
    runs: list[Run] = []
    ends: list[tuple[Tensor, int]] = []
    while True:
        room = _room(family, size, max_steps, job.keeps_nothing)
        head = Head(max_steps, room, steps, out is None, len(runs) + 1)
        records = torch.empty((2, batch, room), dtype=times.dtype, device=y.device)
        about = (
            (room, batch, n_variables) if job.keeps_states else (0,),
            (room, n_powers, batch, n_variables) if job.inside else (0,),
        )
        spare = family.spare.pop(about, None) if job.keeps_nothing else None
        states, powers = spare or (
            _empty(about[0], y.dtype, y.device), _empty(about[1], dense, y.device),
        )  # fmt: skip
        kept = [torch.empty((room, *s), dtype=d, device=y.device) for s, d in shapes]
        inputs = Inputs(
            [_whole_numbers(head, y.device), times, clock, ticks, y, records, states, powers,
             *kept, *values, *job.stop_values, *rest],
            names,
            rest[-1].shape[0],
        )  # fmt: skip
        program = family.get(inputs, make)
        summary, clock, ticks, counts, found, windows, y = program(inputs.tensors)
        told = Summary(*summary.tolist())
        if job.keeps_nothing and room * size <= _SPARE:
            family.spare = {about: (states, powers)}  # read no more
        steps = told.steps
        family.longest = max(family.longest, told.n)
        out = found if out is None else torch.where(torch.isnan(out), found, out)
        runs.append(Run(told.n, records, states, kept, windows, told.widest, clock, y))
        ends.append((records, told.n))
        if not told.on_the_way:
            break
    if y.device.type != "cpu":
        ticks, counts = ticks.cpu(), counts.cpu()
    status = ticks[0]
    stops = _stops(status, ticks, clock) if told.failed else ()
    counted = Counts(*counts.unbind(0))
    outcome = Outcome(status, counted, stops, _Trace(times, ends), clock[1])
    return Found(out, outcome, [] if job.keeps_nothing else runs, clock[2])


class _Trace(Sequence[Tensor]):
    """Ends of the steps, [B] each, the start first: cut up when they are asked for.

    Args:
        times: The start first, [B, T].
        runs: Of each run of the program starts and ends, [2, B, C], and how many of them.
    """

    def __init__(self, times: Tensor, runs: Sequence[tuple[Tensor, int]]) -> None:
        self._times, self._runs = times, runs

    def __len__(self) -> int:
        return 1 + sum(n for _, n in self._runs)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401
        parts = (self._times[:, :1], *(records[1, :, :n] for records, n in self._runs))
        return torch.cat(parts, dim=1).unbind(1)[index]


@lru_cache(maxsize=64)
def _names(
    inside: bool, keeps_states: bool, kept: tuple[int, ...]
) -> tuple[tuple[str | None, ...], ...]:
    """Which sizes of the first inputs are free from the start; `kept` by their dimensions."""
    return (
        (None,),
        (None, "outputs" if inside else None),
        (None, None),
        (None, None),
        (None, None),
        (None, None, "records"),
        RECORD_NAMES if keeps_states else (None,),
        (*RECORD_NAMES, None) if inside else (None,),
        *(("records", *(None,) * dim) for dim in kept),
    )


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A buffer; the same one wherever there is nothing to keep."""
    return torch.empty(shape, dtype=dtype, device=device) if shape[0] else _nothing(dtype, device)


@lru_cache(maxsize=64)
def _nothing(dtype: torch.dtype, device: torch.device) -> Tensor:
    """No number at all."""
    with torch.inference_mode(False):
        return torch.empty(0, dtype=dtype, device=device)


@lru_cache(maxsize=256)
def _whole_numbers(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Whole numbers as a tensor that no program writes to."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


@lru_cache(maxsize=64)
def _blank(
    batch: int, memory: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Clock and ticks before the first run, which does not read them."""
    with torch.inference_mode(False):
        clock = torch.zeros((3 + memory, batch), dtype=dtype, device=device)
        return clock, torch.zeros((3, batch), dtype=torch.int64, device=device)


def _room(family: Family, size: int, max_steps: int, passing: bool) -> int:
    """How many records of `size` bytes to set aside: as many as before and a quarter more."""
    fits = max((_PASSING if passing else _RECORD) // max(1, size), _FEWEST)
    longest = family.longest
    asked = longest + longest // 4 + 4 if longest else min(fits, 256)
    return max(2, min(asked, fits, _MOST, max_steps + 1))


def _stops(status: Tensor, ticks: Tensor, clock: Tensor) -> tuple[Stop, ...]:
    """Where failed samples stood."""
    found: list[Stop] = []
    for sample in status.nonzero().flatten().tolist():
        bad_start = int(status[sample]) == Status.NON_FINITE and int(ticks[1, sample]) == 0
        t, size = float(clock[0, sample]), float(clock[1, sample])
        found.append(Stop(sample, t, size, not bad_start))
    return tuple(found)


def _kept(job: Job, family: Family, y: Tensor) -> list[tuple[torch.Size, torch.dtype]]:
    """Shapes of what is kept of one step's evaluations; follows f once for each size."""
    sizes = (y.shape, tuple(x.shape for x in job.reads.tensors))
    known = family.kept.get(sizes)
    if known is None:
        sketch = Sketch(())
        stand_ins = [sketch.tensor(x, (None,) * x.dim()) for x in rest_of(job)]
        saved = split(job.traced(sketch, stand_ins)).saved
        known = family.kept[sizes] = [(x.shape, x.dtype) for x in saved] * job.redone
    return known


def _module(job: Job, sketch: Sketch, fakes: Sequence[Tensor], n_buffers: int) -> ForwardProgram:
    """The forward program of a job."""
    n_values, n_stops = len(control_values(job.control, job.times)), len(job.stop_values)
    warm(job.tableau, job.times.dtype, job.times.device)
    keeps = job.keeps_evaluations
    traced = (job if keeps else job._replace(wanted=None)).traced(
        sketch, fakes[5 + n_buffers + n_values + n_stops :]
    )
    watch = job.wanted is not None and job.solver.gradient == "adjoint"
    kept = split(traced).kept if keeps else None
    phases = Forward(
        job.tableau, job.control, traced, n_values, job.inside, watch, job.carries, job.redone,
        n_stops, kept,
    )  # fmt: skip
    with sketch.mode, torch.no_grad():
        return ForwardProgram(phases, fakes, n_buffers, job.exact)
