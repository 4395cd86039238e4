"""One compiled solve before it begins: what its programs are made of and found by."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctflow.backends.captures import Autocast
from ctflow.backends.compiled.controls import control_key
from ctflow.backends.compiled.followed import check_followed
from ctflow.backends.compiled.library import Family, Sketch
from ctflow.backends.compiled.reads import Reads, check_unchanged, note_counters
from ctflow.backends.compiled.trace import Traced, trace
from ctflow.backends.field import Field
from ctflow.backends.native.control import Control
from ctflow.backends.native.stops import Stops
from ctflow.backends.protocol import Solver
from ctflow.backends.tableau import Tableau
from ctflow.errors import Unsupported
from ctflow.problem import ODEProblem
from ctflow.state import Layout, as_real, leaves_of, map_leaves

__all__ = ["RECORD_NAMES", "Job", "as_given", "family_of", "rest_of", "totals_of"]

RECORD_NAMES = ("records", None, None)  # free dimensions of what is recorded step by step
_FAMILIES: OrderedDict[object, Family] = OrderedDict()
_KEPT = 256


class Job(NamedTuple):
    """One solve, before it begins.

    Attributes:
        problem: What is asked.
        reads: What its f reads.
        layout: How its state lies in [B, N].
        tableau: The method.
        control: Step sizes.
        exact: No approximations of elementary functions.
        solver: Complete settings.
        times: Output times, [B, T], in time's own dtype, detached.
        wanted: Which of the tensors of `reads` a gradient is wanted of; None for no gradient.
        autocast: The state of autocast.
        stops: Times at which steps must end.
    """

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
    stops: Stops | None = None

    @property
    def inside(self) -> bool:
        """Whether there are outputs between start and end."""
        return self.times.shape[1] > 2

    @property
    def jumps(self) -> bool:
        """Whether f may be discontinuous at some of the stops."""
        return self.stops is not None and bool(len(self.stops.jumps))

    @property
    def carries(self) -> bool:
        """Whether a step's last stage is the first of the next.

        Not across a jump; nor where stages of the interpolant build on the last one, whose
        derivative could then not be left to the next step.
        """
        return self.tableau.fsal and not self.jumps and not (self.inside and self.tableau.further)

    @property
    def redone(self) -> int:
        """Evaluations of one step."""
        further = self.tableau.further if self.inside else 0
        return self.tableau.stages + further - self.carries

    @property
    def dense_dtype(self) -> torch.dtype:
        """That of a step's interpolant: time's own where many powers cancel."""
        return self.times.dtype if self.tableau.further else self.layout.dtype

    @property
    def stop_values(self) -> tuple[Tensor, ...]:
        """The stops as inputs of a program: times, and jumps where there are any."""
        if self.stops is None:
            return ()
        return tuple(_padded(x) for x in (self.stops if self.jumps else self.stops[:1]))

    @property
    def keeps_evaluations(self) -> bool:
        """Whether the forward pass keeps what the derivative of each evaluation needs.

        Per sample a step that counts for some is a rejected trial of others, whose evaluations
        must not be kept: there the steps are redone, which gives the same numbers.
        """
        direct = self.wanted is not None and self.solver.gradient == "direct"
        return direct and not self.layout.per_sample

    @property
    def keeps_states(self) -> bool:
        """Whether the forward pass keeps the state at the start of each step."""
        gradient = None if self.wanted is None else self.solver.gradient
        redone = gradient == "checkpointed" or (gradient == "direct" and self.layout.per_sample)
        return self.inside or redone

    @property
    def keeps_nothing(self) -> bool:
        """Whether records may be forgotten once the outputs inside them are known."""
        return self.wanted is None or self.solver.gradient == "adjoint"

    def key(self, kind: str) -> tuple[object, ...]:
        """Everything a program depends on but sizes."""
        tensors = tuple((x.dtype, x.device) for x in self.reads.tensors)
        layout = self.layout
        adjoint = self.wanted is not None and self.solver.gradient == "adjoint"
        if kind == "forward":
            kept = self.wanted if self.keeps_evaluations else None
            about = (self.keeps_states, kept, adjoint)
        else:
            about = (self.keeps_evaluations, self.wanted)
        return (
            kind, about, self.reads.key, tensors, self.tableau, control_key(self.control),
            self.exact, self.inside, self.stops is not None, self.jumps, layout.treespec,
            layout.dtype, layout.device,
            tuple((len(s), s[1:]) for s in layout.shapes), layout.per_sample, self.autocast,
            torch.get_num_threads(), torch.get_default_dtype(), torch.get_default_device(),
        )  # fmt: skip

    def traced(self, sketch: Sketch, tensors: Sequence[Tensor]) -> Traced:
        """f as graphs, with the sizes of a sketch; the last tensor is as long as the batch."""
        check_unchanged(self.problem.f, self.reads)
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

            def actual(size: Any) -> int:  # noqa: ANN401 - a number, or a symbol
                if isinstance(size, int):
                    return size
                free: Any = extent
                return size.node.hint // free.node.hint * self.extent

            def follow(wanted: tuple[int, ...] | None) -> Traced:
                return trace(self.problem, self.reads, layout, (t, y), tensors, wanted, actual)

            found = follow(self.wanted)
            if note_counters(self.problem.f, self.reads):
                again = follow(None)
                if again.value.code != found.value.code:
                    raise Unsupported(
                        "backend 'compiled' cannot follow an `f` that depends on how often it was "
                        "called, got an attribute that it counts with. Use backend='native'."
                    )
            sketch.note_decisions()
            sketch.mode.allow_non_fake_inputs = True  # from here on the code is our own
        self._check(found)
        return found

    def _check(self, traced: Traced) -> None:
        """Hold what was followed against `f` itself, at the start."""
        y = self.layout.pack(self.problem.y0).detach()
        field, inputs = Field(self.problem, self.layout), (self.times[:, 0].to(y.dtype), y)
        check_followed(field, traced, inputs, self.reads, rest_of(self))

    @property
    def extent(self) -> int:
        """Size of the state's first dimension."""
        leaf = leaves_of(self.problem.y0)[0]
        return leaf.shape[0] if leaf.dim() else 1


def _padded(times: Tensor) -> Tensor:
    """Times with NaN at the end, which none is ahead of: few lengths for many numbers of stops."""
    length = 1 << (len(times) - 1).bit_length()
    return torch.nn.functional.pad(times, (0, length - len(times)), value=torch.nan)


def family_of(job: Job, kind: str) -> Family:
    """The programs of one kind for this job: "forward", "backward"."""
    key = job.key(kind)
    family = _FAMILIES.get(key)
    if family is None:
        family = _FAMILIES[key] = Family(f"{kind} of {_name_of(job.problem.f)}")
        while len(_FAMILIES) > _KEPT:
            _FAMILIES.popitem(last=False)
    else:
        _FAMILIES.move_to_end(key)
    return family


def rest_of(job: Job) -> list[Tensor]:
    """What every program takes at its end: the tensors of `f`, and one as long as the batch.

    Complex ones as real and imaginary part: no loop takes them otherwise.
    """
    real = map(as_real, job.reads.tensors)
    tensors = (x if x.is_contiguous() else x.detach().contiguous() for x in real)
    return [*tensors, _as_long_as(job.extent, job.layout.device)]


def totals_of(job: Job) -> list[Tensor]:
    """Zeros for the gradient of each wanted tensor, real as `rest_of` hands them over."""
    wanted = (as_real(job.reads.tensors[i].detach()) for i in job.wanted or ())
    return [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in wanted]


def as_given(job: Job, totals: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the wanted tensors, complex where these are."""
    wanted = (job.reads.tensors[i] for i in job.wanted or ())
    return [
        torch.view_as_complex(total) if x.is_complex() else total
        for x, total in zip(wanted, totals, strict=True)
    ]


@lru_cache(maxsize=64)
def _as_long_as(extent: int, device: torch.device) -> Tensor:
    """A tensor whose size alone counts."""
    with torch.inference_mode(False):
        return torch.zeros(extent, dtype=torch.uint8, device=device)


def _name_of(f: object) -> str:
    return getattr(f, "__name__", type(f).__name__)
