"""One compiled solve before it begins: what its programs are made of and found by."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ctflow.backends.captures import Autocast
from ctflow.backends.compiled.library import Family, Sketch
from ctflow.backends.compiled.phases import control_key
from ctflow.backends.compiled.reads import Reads, note_counters
from ctflow.backends.compiled.trace import Traced, trace
from ctflow.backends.native.control import Control
from ctflow.backends.native.tableau import Tableau
from ctflow.backends.protocol import Solver
from ctflow.errors import Unsupported
from ctflow.problem import ODEProblem
from ctflow.state import Layout, leaves_of, map_leaves

__all__ = ["RECORD_NAMES", "Job", "family_of", "rest_of"]

RECORD_NAMES = ("records", None, None)  # free dimensions of what is recorded step by step
_FAMILIES: OrderedDict[object, Family] = OrderedDict()
_KEPT = 256


class Job(NamedTuple):
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
    """What every program takes at its end: the tensors of `f`, and one as long as the batch."""
    extent = torch.empty(job.extent, dtype=torch.uint8, device=job.layout.device)
    tensors = (x.detach() if x.requires_grad else x for x in job.reads.tensors)
    return [*(x if x.is_contiguous() else x.contiguous() for x in tensors), extent]


def _name_of(f: object) -> str:
    return getattr(f, "__name__", type(f).__name__)
