"""Whether the compiled backend can follow a field: asked without compiling, or a compiler."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ctflow.backends.compiled.reads import read
from ctflow.backends.compiled.trace import trace
from ctflow.problem import ODEProblem
from ctflow.state import Layout, map_leaves
from ctflow.testing.subject import Subject

__all__ = ["follow"]


def follow(subject: Subject) -> None:
    """Follow the field, and its derivative, into the graphs that programs are made of.

    Raises:
        CtflowError: If that is not possible: what stands in the way, and in which line.
    """
    times = torch.tensor([subject.box.t0, subject.box.t1], dtype=torch.float64)
    problem = ODEProblem(subject.f, subject.cases[0].y, times, args=subject.args)
    reads = read(problem)
    wanted = tuple(i for i, x in enumerate(reads.tensors) if x.requires_grad)
    mode = FakeTensorMode()
    stand_ins = [mode.from_tensor(x.detach()) for x in reads.tensors]

    def empty(x: Tensor) -> Tensor:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)

    with mode:
        y0 = map_leaves(empty, problem.y0)
        layout = Layout.of(y0, per_sample=False)
        y = layout.pack(y0)
        t = torch.empty(1, dtype=y.dtype, device=y.device)
        trace(problem, reads, layout, (t, y), stand_ins, wanted)
