"""Information about a field that is no judgement: outside, smoothness, stiffness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ctflow.api import solve
from ctflow.backends.protocol import Solver
from ctflow.problem import ODEProblem
from ctflow.solution import Solution
from ctflow.state import Layout, map_leaves
from ctflow.testing.examples import Case
from ctflow.testing.report import Finding
from ctflow.testing.smoothing import Smoothing, averaged
from ctflow.testing.subject import Subject, difference, flat, size_of

__all__ = ["outside", "precision", "smoothness", "stiffness"]

_LARGEST = 64  # variables up to which the whole Jacobian is looked at
_POINTS = 33  # on each line along which kinks are looked for
_REGION = 3.3  # dopri5 is stable for |h lambda| up to this on the negative axis (Hairer II, IV.2)
_TOLERANCE = 1e-6  # of a solve that is counted, where the dtype resolves it

Field = Callable[..., Any]


def outside(subject: Subject, noisy: bool) -> Finding:
    """What the field does just outside the interval: ctflow never looks there, others do."""
    if noisy:
        return Finding("outside", "skipped", "says nothing without repeatable")
    box = subject.box
    beyond = 0.01 * (box.t1 - box.t0)
    said: list[str] = []
    for end, name in ((box.t0 - beyond, "before"), (box.t1 + beyond, "after")):
        case = Case(box.time(end), subject.cases[0].y)
        try:
            value = subject.value(case)
        except Exception as error:  # whatever the user's code raises there is the information
            said.append(f"{name} the interval it raises {type(error).__name__}")
            continue
        inside = subject.value(Case(box.time(box.t0 if name == "before" else box.t1), case.y))
        if not bool(torch.isfinite(value).all()):
            said.append(f"{name} the interval it is not finite")
        elif difference(value, inside) > 0.5:
            said.append(f"just {name} the interval it jumps")
    what = "; ".join(said) or "it goes on just outside the interval"
    return Finding("outside", "note", f"{what} (ctflow never evaluates it there)")


def smoothness(subject: Subject, noisy: bool) -> Finding:
    """Kinks along random lines, what a solve costs, and what it would cost without the kinks.

    Noise would look like kinks, and is told as noise.
    """
    start = _solved(subject, subject.f, subject.cases[0])
    cost = (
        f"a solve at rtol = atol = {start.stats.solver.rtol:g} took {_evaluations(start)}, "
        f"{int(start.stats.forward.n_rejected.amax())} of "
        f"{int(start.stats.forward.n_steps.amax())} steps rejected"
    )
    if not start.ok:
        cost += ", and did not arrive"
    if noisy:
        return Finding("smoothness", "note", f"it is noisy; {cost}")
    lines = subject.cases[-4:]
    kinks = sum(_has_kink(subject, case) for case in lines)
    smoothing = Smoothing(subject)
    if not kinks and not smoothing.names:
        return Finding("smoothness", "note", f"no kink seen; {cost}")
    seen = f"its derivative jumps on {kinks} of {len(lines)} lines through the box"
    seen = seen if kinks else f"it has a kink ({', '.join(smoothing.names)})"
    what = f"{seen}; {cost}; {_price(subject, smoothing)}"
    cause = "ReLU, abs, clamp or max; tanh, softplus or SiLU cost fewer steps."
    return Finding("smoothness", "note", what, cause=cause)


def _price(subject: Subject, smoothing: Smoothing) -> str:
    """Evaluations of a solve from a random place, and of the same with the kinks rounded off."""
    start = subject.cases[-1]
    kinked = _solved(subject, subject.f, start)
    what = f"from a random place in the box it takes {_evaluations(kinked)}"
    if not kinked.ok:
        return f"{what} without arriving"
    if smoothing.names:
        smooth = _solved(subject, smoothing.field, start)
        how = f"with {' and '.join(smoothing.names)} rounded off"
    else:
        most = int(kinked.stats.forward.n_steps.amax())
        smooth = _solved(subject, averaged(subject), start, max_steps=most)
        how = "as an average over small shifts of `y`"
    return f"{what}, and {int(smooth.stats.forward.n_f_evals.amax())} {how}" if smooth.ok else what


def _solved(subject: Subject, f: Field, start: Case, max_steps: int = 1000) -> Solution:
    times = torch.tensor([subject.box.t0, subject.box.t1], dtype=torch.float64)
    problem = ODEProblem(f, start.y, times, args=subject.args)
    tolerance = max(_TOLERANCE, 8 * torch.finfo(start.t.dtype).eps)
    with torch.no_grad():
        return solve(problem, Solver(rtol=tolerance, atol=tolerance, max_steps=max_steps))


def _evaluations(solution: Solution) -> str:
    return f"{int(solution.stats.forward.n_f_evals.amax())} evaluations"


@torch.no_grad()
def _has_kink(subject: Subject, case: Case) -> bool:
    """Whether slopes along a line jump by as much when the line is looked at more closely."""
    layout = Layout.of(case.y, per_sample=False)
    start = layout.pack(case.y).detach()
    along = subject.directions(start)
    length = 0.1 * (subject.box.high - subject.box.low)

    def largest_jump(h: float) -> float:
        shares = [h * i / (_POINTS - 1) for i in range(_POINTS)]
        states = [layout.unpack(start + share * along) for share in shares]
        values = torch.stack([flat(subject(case.t, y)) for y in states]).double()
        slopes = values.diff(dim=0) * ((_POINTS - 1) / h)
        return float(slopes.diff(dim=0).abs().amax() / slopes.abs().amax().clamp(min=1e-30))

    # A smooth slope changes by a quarter as much between points that are four times closer.
    return (
        largest_jump(length / 4)
        > 0.5 * largest_jump(length)
        > 100 * torch.finfo(case.t.dtype).eps ** 0.5
    )


@torch.no_grad()
def precision(subject: Subject) -> Finding | None:
    """Whether values jump between neighbouring states: what no solve can be more accurate than.

    At a step h of half the dtype's digits, second differences are h^2 for a smooth field, and
    rounding for one that computes in a narrower dtype.
    """
    layout = Layout.of(subject.cases[0].y, per_sample=False)
    eps = torch.finfo(layout.dtype).eps
    jumps: list[float] = []
    for case in subject.cases[-4:]:
        start = layout.pack(case.y).detach()
        along = eps**0.5 * size_of(start) * subject.directions(start)
        before, here, after = (
            flat(subject(case.t, layout.unpack(start + k * along))).double() for k in (-1, 0, 1)
        )
        jump = float((before - 2 * here + after).abs().amax())
        least = max(0.2 * float((after - before).abs().amax()), 1e3 * eps * size_of(here))
        jumps += [jump / size_of(here)] if jump > least else []
    if len(jumps) < 3:  # a kink may lie on one of the lines
        return None
    what = f"between neighbouring states its values jump by {max(jumps):.1g} of their size"
    cause = (
        "a narrower dtype inside (`.float()`, autocast), or an iteration that is stopped early. "
        "No tolerance below that can be met."
    )
    return Finding("precision", "note", what, cause=cause)


def stiffness(subject: Subject) -> Finding:
    """The fastest decay at the examples, against the length of the interval."""
    layout = Layout.of(subject.cases[0].y, per_sample=False)
    if layout.size > _LARGEST:
        sample = subject if not subject.box.batched else _one_sample(subject)
        layout = Layout.of(sample.cases[0].y, per_sample=False)
        if layout.size > _LARGEST:
            return Finding("stiffness", "skipped", f"{layout.size} variables are too many to ask")
        subject = sample
    found = [_jacobian(subject, layout, case) for case in subject.cases[:4]]
    matrices = [matrix for matrix in found if bool(torch.isfinite(matrix).all())]
    if not matrices:  # LAPACK would not come back from them
        return Finding("stiffness", "skipped", "its derivative is not finite")
    rates = torch.cat([torch.linalg.eigvals(matrix) for matrix in matrices])
    length = abs(subject.box.t1 - subject.box.t0)
    backwards = subject.box.t1 < subject.box.t0
    fastest = float((rates.real if backwards else -rates.real).amax())
    turning = float(rates.abs().amax())
    n = fastest * length / _REGION
    what = (
        f"the fastest decay is {max(fastest, 0.0) + 0.0:.3g} and the largest rate {turning:.3g} "
        "per unit of time"
    )
    cause = ""
    if n > 100:
        what += f"; explicit methods need at least {n:.0f} steps for the interval"
        cause = "a stiff problem. Try Solver(method='rodas5p')."
    return Finding("stiffness", "note", what, cause=cause)


def _one_sample(subject: Subject) -> Subject:
    cases = tuple(Case(c.t, map_leaves(lambda y: y[:1], c.y)) for c in subject.cases)
    return replace(subject, cases=cases)


def _jacobian(subject: Subject, layout: Layout, case: Case) -> Tensor:
    def of_vector(y: Tensor) -> Tensor:
        return layout.pack(subject(case.t, layout.unpack(y)))[0]

    y = layout.pack(case.y).detach()
    found = torch.autograd.functional.jacobian(of_vector, y)  # pyright: ignore
    return found.reshape(layout.size, layout.size).double()  # pyright: ignore
