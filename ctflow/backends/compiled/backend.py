"""`backend="compiled"`: the whole adaptive solve as one program."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ctflow.backends.captures import Autocast, refuse_second
from ctflow.backends.compiled.library import Family, Inputs, Sketch
from ctflow.backends.compiled.phases import (
    Backward,
    Forward,
    control_key,
    control_values,
)
from ctflow.backends.compiled.programs import BackwardProgram, ForwardProgram
from ctflow.backends.compiled.reads import Reads, note_counters, read
from ctflow.backends.compiled.trace import Traced, trace
from ctflow.backends.field import Field
from ctflow.backends.native.backend import NativeBackend, adaptive_or_fixed, counted
from ctflow.backends.native.control import Control
from ctflow.backends.native.gradients.replay import well
from ctflow.backends.native.gradients.times import attach
from ctflow.backends.native.loop import Outcome
from ctflow.backends.native.step import warm
from ctflow.backends.native.tableau import METHODS, Tableau
from ctflow.backends.protocol import Feature, Solver, resolved
from ctflow.backends.times import shift
from ctflow.errors import Unsupported
from ctflow.problem import ODEProblem
from ctflow.solution import Counts, GradientReport, Solution, Stats, Status, Stop
from ctflow.state import Layout, leaves_of, map_leaves

__all__ = ["CompiledBackend"]

_RECORD = 64 * 2**20  # bytes of records that a first solve sets aside
_FEWEST, _MOST = 16, 4096  # records
_FAMILIES: OrderedDict[object, Family] = OrderedDict()
_KEPT = 256


@dataclass(frozen=True)
class CompiledBackend:
    """ctflow's solver as compiled programs: native's numbers without Python in the loop.

    Args:
        tableau: A method of your own, in place of the one that `Solver.method` names.
        control: A step-size control of your own, in place of `Solver.step`, `rtol` and `atol`.
        exact: Leave elementary functions to the compiler; False approximates tanh in float32 by a
            rational function within 3 units in the last place.

    Cost:
        Compiling takes tens of seconds a program, once a machine: programs are kept on disk
        (`CTFLOW_CACHE_DIR`). Everything but Python values and sizes is an input.
    """

    tableau: Tableau | None = None
    control: Control | None = None
    exact: bool = False

    @property
    def name(self) -> str:
        """Its name in messages and tables."""
        return "compiled"

    @property
    def features(self) -> frozenset[Feature]:
        """What it can do."""
        return frozenset(Feature) - {Feature.SECOND_ORDER, Feature.DIRECT, Feature.ADJOINT}

    def refuse(self, problem: ODEProblem, solver: Solver) -> list[str]:
        """Reasons why it cannot do what is asked."""
        reasons = NativeBackend(self.tableau, self.control).refuse(problem, solver)
        if solver.gradient not in (None, "checkpointed"):
            reasons.append(f"gradient={solver.gradient!r} is not offered: only 'checkpointed' is")
        return reasons

    def solve(self, problem: ODEProblem, solver: Solver) -> Solution:
        """Solve with complete settings; see `ctflow.backends.Backend.solve`."""
        return cast("Solution", self._solve(problem, solver))  # pyright: ignore

    @torch.compiler.disable  # pyright: ignore - it is compiled already
    def _solve(self, problem: ODEProblem, solver: Solver) -> Solution:
        tableau = self.tableau or METHODS[str(solver.method)]
        layout = Layout.of(problem.y0, per_sample=solver.coupling == "per_sample")
        control = self.control or adaptive_or_fixed(solver, counted(problem, layout), layout.size)
        reads = read(problem)
        _refuse_transforms(problem, reads)
        times = problem.t.float() if problem.t.device.type == "mps" else problem.t.double()
        times = times.expand(layout.batch, -1)
        y0 = layout.pack(problem.y0)
        recorded = torch.is_grad_enabled()
        wanted = (
            tuple(i for i, x in enumerate(reads.tensors) if x.requires_grad) if recorded else ()
        )
        moving = recorded and times.requires_grad
        job = _Job(
            problem, reads, layout, tableau, control, self.exact, solver, times.detach(),
            wanted if recorded and (wanted or y0.requires_grad or moving) else None,
            Autocast.now(layout.device.type),
        )  # fmt: skip
        stats: list[Stats] = []
        if job.wanted is None:
            with torch.inference_mode(False), torch.no_grad():
                y0 = y0.clone() if y0.is_inference() else y0
                found = _forward(job, y0.detach())
            out = found.out.clone() if torch.is_inference_mode_enabled() else found.out
        else:
            gradient = str(solver.gradient)
            field = Field(problem, layout)
            start = y0
            if moving:
                with torch.no_grad():
                    f0 = field(times[:, 0].to(y0.dtype), y0)
                start = shift(field, times[:, 0], y0, -1.0, f0, gradient)
            tensors = (reads.tensors[i] for i in job.wanted)
            kept: list[_Found] = []
            out = _Solve.apply(job, kept, stats, start, *tensors)  # pyright: ignore
            found = kept[0]
            out = attach(field, times, y0, out, found.outcome, gradient) if moving else out
        result = Stats(
            resolved(replace(solver, method=tableau.name), self),
            found.outcome.counts,
            None,
            found.outcome.trace,
        )
        stats.append(result)
        report = GradientReport("this gradient is that of the steps taken")
        return Solution(
            problem.t,
            layout.unpack(out),
            found.outcome.status,
            result,
            found.outcome.stops,
            None,
            report,
        )


def _refuse_transforms(problem: ODEProblem, reads: Reads) -> None:
    """Programs know nothing of functorch's wrappers or of tangents."""
    tensors = [*leaves_of(problem.y0), problem.t, *reads.tensors]
    for x in tensors:
        if torch._C._functorch.is_functorch_wrapped_tensor(x) or (  # pyright: ignore
            forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None  # pyright: ignore
        ):
            raise Unsupported(
                "backend 'compiled' cannot be used under torch.func transforms or in forward mode. "
                "Use backend='native' with gradient='direct'."
            )


class _Job(NamedTuple):
    """One solve, before it begins."""

    problem: ODEProblem
    reads: Reads
    layout: Layout
    tableau: Tableau
    control: Control
    exact: bool
    solver: Solver
    times: Tensor
    wanted: tuple[int, ...] | None
    autocast: Autocast

    @property
    def inside(self) -> bool:
        """Whether there are outputs between start and end."""
        return self.times.shape[1] > 2

    def key(self, kind: str) -> tuple[object, ...]:
        """Everything a program depends on but sizes."""
        tensors = tuple((x.dtype, x.device) for x in self.reads.tensors)
        layout = self.layout
        wanted = self.wanted if kind == "backward" else self.wanted is not None or self.inside
        return (
            kind, self.reads.key, tensors, wanted, self.tableau, control_key(self.control),
            self.exact, self.inside, layout.treespec, layout.dtype, layout.device,
            tuple(len(s) for s in layout.shapes), tuple(s[1:] for s in layout.shapes),
            layout.per_sample, self.autocast, torch.get_num_threads(),
        )  # fmt: skip

    def traced(self, sketch: Sketch, tensors: Sequence[Tensor]) -> Traced:
        """f as graphs, with the sizes of a sketch; the last tensor is as long as the batch."""
        own, extent = self.layout, tensors[-1].shape[0]
        with sketch.mode:
            y0 = map_leaves(
                lambda x: torch.empty(
                    (extent, *x.shape[1:]) if x.dim() and x.shape[0] == self.extent else x.shape,
                    dtype=x.dtype, device=x.device,
                ),
                self.problem.y0,
            )  # fmt: skip
            layout = Layout.of(y0, own.per_sample)
            y = layout.pack(y0)
            t = torch.empty(layout.batch, dtype=y.dtype, device=y.device)
            found = trace(self.problem, self.reads, layout, (t, y), tensors, self.wanted)
            if note_counters(self.problem.f, self.reads):
                again = trace(self.problem, self.reads, layout, (t, y), tensors, None)
                if again.value.code != found.value.code:
                    raise Unsupported(
                        "backend 'compiled' cannot follow an `f` that depends on how often it was "
                        "called, got an attribute that it counts with. Use backend='native'."
                    )
            sketch.mode.allow_non_fake_inputs = True  # from here on the code is our own
            return found

    @property
    def extent(self) -> int:
        """Size of the state's first dimension."""
        leaf = leaves_of(self.problem.y0)[0]
        return leaf.shape[0] if leaf.dim() else 1


class _Found(NamedTuple):
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


def _family(key: tuple[object, ...], name: str) -> Family:
    family = _FAMILIES.get(key)
    if family is None:
        family = _FAMILIES[key] = Family(name)
        while len(_FAMILIES) > _KEPT:
            _FAMILIES.popitem(last=False)
    else:
        _FAMILIES.move_to_end(key)
    return family


_RECORD_NAMES = ("records", None, None)
_FORWARD_NAMES = (
    (), (None,), (None,), (None,), (None, None), (None, None), (None, None), ("outputs", None),
    _RECORD_NAMES,
)  # fmt: skip


def _rest(job: _Job) -> list[Tensor]:
    """What every program takes at its end: the tensors of `f`, and one as long as the batch."""
    extent = torch.empty(job.extent, dtype=torch.uint8, device=job.layout.device)
    tensors = (x.detach() if x.requires_grad else x for x in job.reads.tensors)
    return [*(x if x.is_contiguous() else x.contiguous() for x in tensors), extent]


def _forward(job: _Job, y: Tensor) -> _Found:
    """Run the forward program until every sample is done."""
    batch, n_variables = y.shape
    times, tableau = job.times, job.tableau
    t0, t1 = times[:, 0], times[:, -1].contiguous()
    direction = torch.sign(t1 - t0)
    wanted = times[:, 1:].T.contiguous()
    keep = job.wanted is not None
    n_powers = len(tableau.p[0]) if job.inside else 0
    key = job.key("forward")
    family = _family(key, f"forward of {_name_of(job.problem.f)}")
    values, rest = control_values(job.control, times), _rest(job)

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
        names = _FORWARD_NAMES if job.inside else (*_FORWARD_NAMES[:7], (None, None), _RECORD_NAMES)
        names = (
            *names,
            _RECORD_NAMES if states.dim() > 1 else (None,),
            (*_RECORD_NAMES, None) if job.inside else (None,),
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
    return _Found(torch.cat((start.unsqueeze(0), out)), outcome, chunks, ends)


def _room(family: Family, y: Tensor, n_states: int, max_steps: int) -> int:
    """How many records to set aside: what was needed before and a quarter more."""
    fits = _RECORD // max(1, n_states * y.numel() * y.element_size())
    first = min(max(fits, _FEWEST), 256)
    asked = family.longest + family.longest // 4 + 4 if family.longest else first
    return max(2, min(max(asked, 2), max(fits, _FEWEST), _MOST, max_steps + 1))


def _outcome(
    job: _Job,
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
    job: _Job, sketch: Sketch, fakes: Sequence[Tensor]
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


def _backward_module(job: _Job, sketch: Sketch, fakes: Sequence[Tensor]) -> BackwardProgram:
    """The backward program of a job, with the sizes of a sketch."""
    n_totals = len(job.wanted or ())
    warm(job.tableau, job.times.dtype, job.times.device)
    traced = job.traced(sketch, fakes[11 + n_totals :])
    phases = Backward(job.tableau, traced, job.inside)
    with sketch.mode:
        return BackwardProgram(phases, fakes, job.exact)


def _name_of(f: object) -> str:
    return getattr(f, "__name__", type(f).__name__)


class _Solve(torch.autograd.Function):
    """The solve as one node of autograd's graph."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        job: _Job,
        kept: list[_Found],
        stats: list[Stats],
        y0: Tensor,
        *wanted: Tensor,
    ) -> Tensor:
        """Run the program and keep its records."""
        found = _forward(job, y0.detach())
        kept.append(found)
        ctx.save_for_backward(y0, *wanted, *job.reads.tensors)
        ctx.job, ctx.found, ctx.stats = job, found, stats
        return found.out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401
        """Redo the steps from last to first."""
        y0, *wanted = ctx.saved_tensors  # also checks that nothing was changed in place
        job: _Job = ctx.job
        with torch.no_grad():
            a, totals = _pull_back(job, ctx.found, gradients[0], ctx.stats)
        found = [a, *totals]
        asked = [
            g if need else None for g, need in zip(found, ctx.needs_input_grad[3:], strict=True)
        ]
        gradient = str(job.solver.gradient)
        del wanted
        return None, None, None, *refuse_second(asked, gradient, (gradients[0], y0))


def _pull_back(
    job: _Job, found: _Found, g: Tensor, stats: list[Stats]
) -> tuple[Tensor, list[Tensor]]:
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
    rest = _rest(job)
    later, a = g[1:].contiguous(), g[-1].contiguous()
    wanted = times[:, 1:].T.contiguous()
    direction = torch.sign(times[:, -1:] - times[:, :1])
    ahead = (times[:, 1:-1] * direction).contiguous()
    family = _family(job.key("backward"), f"backward of {_name_of(job.problem.f)}")
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
    (None,), (None, None), (None,), (None, None), _RECORD_NAMES, _RECORD_NAMES,
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
