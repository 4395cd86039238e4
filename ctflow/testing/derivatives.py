"""The derivatives of a field: right by finite differences, and no tensor forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctflow.backends.captures import Captures, pull, sequence_number
from ctflow.backends.field import Field
from ctflow.errors import CtflowError
from ctflow.problem import ODEProblem
from ctflow.state import Layout, map_leaves
from ctflow.testing.examples import Case
from ctflow.testing.subject import Subject, named_tensors, size_of

__all__ = ["Reach", "derivative", "reach"]


def derivative(subject: Subject, case: Case) -> str | None:
    """Whether vector-Jacobian products agree with central differences along a random direction.

    Zeros are where ReLUs and maxima have their kinks, and there no derivative is the right one:
    what is wrong must be wrong a little beside the example as well.
    """
    wrong = _disagree(subject, case)
    if wrong is None:
        return None
    aside = 1e-3 * (subject.box.high - subject.box.low)
    moved = map_leaves(lambda y: y + aside * subject.directions(y), case.y)
    return None if _disagree(subject, Case(case.t, moved)) is None else wrong


def _disagree(subject: Subject, case: Case) -> str | None:
    """At one place. Tensors computed elsewhere are cut off and moved themselves.

    (What they were computed from does not move them any more.)
    """
    field, captures, state = _watched(subject, case)
    t = case.t.reshape(1)
    with torch.enable_grad():
        marker = sequence_number()
        try:
            captures.discover(field(t, state.clone()), state, marker)
        except CtflowError:  # `reach` tells of it
            return _compare("`y`", field, t, state, [state], subject)
        with captures.cut() as leaves:
            return _compare("`y`", field, t, state, [state], subject) or _compare(
                "its parameters", field, t, state, list(leaves), subject
            )


def _watched(subject: Subject, case: Case) -> tuple[Field, Captures, Tensor]:
    times = torch.tensor([subject.box.t0, subject.box.t1], dtype=torch.float64)
    problem = ODEProblem(subject.f, case.y, times, args=subject.args)
    layout = Layout.of(case.y, per_sample=False)
    field = Field(problem, layout)
    state = layout.pack(case.y).detach().clone().requires_grad_()
    return field, Captures(problem, field), state


def _compare(
    name: str, field: Field, t: Tensor, state: Tensor, inputs: list[Tensor], subject: Subject
) -> str | None:
    if not inputs:
        return None
    dy = field(t, state.clone())
    weight = subject.directions(dy)
    nothing: list[Tensor | None] = [None] * len(inputs)
    found = pull((dy,), inputs, (weight,), keep=True) if dy.requires_grad else nothing

    def weighted() -> float:  # at a copy, in case `f` returns its input
        return float((field(t, state.detach().clone()) * weight).double().sum())

    along = [subject.directions(x) for x in inputs]
    pairs = [(g, v) for g, v in zip(found, along, strict=True) if g is not None]
    by_autograd = math.fsum(float((g * v).sum()) for g, v in pairs)
    norm = math.hypot(*(float(torch.linalg.vector_norm(g)) for g, _ in pairs))
    eps = torch.finfo(dy.dtype).eps
    box = subject.box
    least = max(abs(box.low), abs(box.high)) if inputs[0] is state else 1.0
    step = eps ** (1 / 3) * max(size_of(*inputs), least)
    by_difference, doubt = _central(weighted, inputs, along, step)
    # What rounding does to the difference, its own doubt (curvature, a kink), a share of the whole.
    rounding = 10 * eps * size_of(dy) * dy.numel() / step
    scale = max(norm, abs(by_difference))
    if abs(by_autograd - by_difference) <= 100 * eps**0.5 * scale + 4 * doubt + rounding:
        return None
    return (
        f"with respect to {name}, autograd gives {by_autograd:.6g} along a random direction and "
        f"a finite difference {by_difference:.6g}"
    )


@torch.no_grad()
def _central(
    evaluate: Callable[[], float], inputs: list[Tensor], along: list[Tensor], step: float
) -> tuple[float, float]:
    """A central difference along a direction, and its doubt.

    The doubt is how much it moves when the step is halved; and how much the slopes on both sides
    differ: at a kink anything between them is a derivative, and a solve never stands there.
    """
    kept = [x.detach().clone() for x in inputs]
    values: dict[float, float] = {}
    try:
        for h in (step, -step, step / 2, -step / 2, 0.0):
            for x, old, v in zip(inputs, kept, along, strict=True):
                x.data.copy_(old + h * v)  # past the version counter: a field may return `x` itself
            values[h] = evaluate()
    finally:
        for x, old in zip(inputs, kept, strict=True):
            x.data.copy_(old)
    wide, narrow = ((values[h] - values[-h]) / (2 * h) for h in (step, step / 2))
    bend = abs(values[step] - 2 * values[0.0] + values[-step]) / step
    return narrow, max(abs(wide - narrow), bend)


class Reach(NamedTuple):
    """Which tensors a field depends on.

    Attributes:
        unused: Names of tensors that want a gradient and never got one.
        computed: Shapes of tensors with a history of their own, which ctflow found.
        lost: What ctflow says of one that it could not find; empty if there is none.
    """

    unused: tuple[str, ...]
    computed: tuple[tuple[int, ...], ...]
    lost: str


def reach(subject: Subject) -> Reach:
    """Look, over all examples, for which tensors the field's value depends on."""
    used: set[int] = set()
    wanted: dict[int, Tensor] = {}
    computed: dict[int, Tensor] = {}
    lost = ""
    names = {id(x): name for name, x in named_tensors(subject.f)}
    for case in subject.cases:
        field, captures, state = _watched(subject, case)
        with torch.enable_grad():
            marker = sequence_number()
            dy = field(case.t.reshape(1), state)
            try:
                captures.discover(dy, state, marker)
            except CtflowError as error:
                lost = str(error)
        wanted |= {id(x): x for x in captures.inputs if x.is_leaf}
        wanted |= {id(x): x for _, x in named_tensors(subject.f) if x.requires_grad and x.is_leaf}
        computed |= {id(x): x for x in captures.inputs if not x.is_leaf}
        used |= _used(dy, wanted)
    unused = [_label(x, names) for key, x in wanted.items() if key not in used]
    shapes = tuple(tuple(x.shape) for x in computed.values())
    return Reach(tuple(unused), shapes, lost)


def _used(dy: Tensor, wanted: dict[int, Any]) -> set[int]:
    if not (dy.requires_grad and wanted):
        return set()
    tensors = list(wanted.values())
    found = pull((dy,), tensors, (torch.ones_like(dy),), keep=True)
    return {key for key, g in zip(wanted, found, strict=True) if g is not None}


def _label(x: Tensor, names: dict[int, str]) -> str:
    return names.get(id(x)) or f"a tensor of shape {list(x.shape)}"
