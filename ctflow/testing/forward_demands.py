"""What a backend's forward pass must hold to: one function for each demand, one route at a time.

Each returns what is wrong, or None. What it raises counts as wrong too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ctflow.api import solve
from ctflow.backends.protocol import Feature, Solver
from ctflow.errors import Unsupported
from ctflow.problem import ODEProblem
from ctflow.solution import Status
from ctflow.state import leaves_of
from ctflow.testing.bench import FLOAT, RTOL, Bench, Known, Turning, gap
from ctflow.testing.subject import flat

__all__ = [
    "between_steps",
    "closed_form",
    "failures",
    "fixed_steps",
    "honest",
    "inputs_kept",
    "inside",
    "max_steps",
    "methods",
    "per_sample",
    "precision",
    "statistics",
    "structures",
]

_ALLOWED = 1e3 * RTOL
"""Errors are amplified by up to e^2 here, and an interpolant adds some dozen tolerances."""

_METHODS = ("dopri5", "tsit5", "bosh3", "dop853", "dopri8", "adams", "lsoda", "bdf", "radau")
_FIXED = ("euler", "midpoint", "rk4")


def closed_form(bench: Bench, solver: Solver) -> str | None:
    """Outputs at the ends, forwards and backwards in time, against a known solution."""
    for times in ((0.0, 0.7, 2.0), (1.5, 0.2, -0.5)):
        known = Known(*times)
        y = bench.run(known.plain(), solver).y
        if not torch.equal(y[0], known.inputs["y0"]):
            return "output 0 is not `y0`, bit for bit"
        off = gap(y[-1], known.exact()[-1])
        if off > _ALLOWED:
            return f"at t={times[-1]:g} the state is off by {off:.2g}, {_ALLOWED:.0e} allowed"
    return None


def precision(bench: Bench, solver: Solver) -> str | None:
    """A tolerance of 1e-11 is met: states and times are kept in float64."""
    known = Known(0.0, 0.7, 2.0)
    tight = replace(solver, rtol=1e-11, atol=1e-11)
    off = gap(bench.run(known.plain(), tight).y[-1], known.exact()[-1])
    return f"at a tolerance of 1e-11 the state is off by {off:.2g}" if off > 1e-8 else None


def between_steps(bench: Bench, solver: Solver) -> str | None:
    """Many outputs, most of them inside steps, are as good as those at the ends of steps."""
    known = Known(*torch.linspace(0.0, 2.0, 41).tolist())
    y = bench.run(known.plain(), solver).y
    off = max(gap(a, b) for a, b in zip(y, known.exact(), strict=True))
    if off > _ALLOWED:
        return f"outputs inside steps are off by {off:.2g}, {_ALLOWED:.0e} allowed"
    return None


def methods(bench: Bench, solver: Solver) -> str | None:
    """Every adaptive method that is not refused, at a moderate tolerance."""
    for name in _METHODS:
        known = Known(0.0, 0.5, 1.0)
        chosen = replace(solver, method=name, rtol=1e-6, atol=1e-6)
        if not bench.accepts(known.plain(), chosen):
            continue
        off = gap(bench.run(known.plain(), chosen).y, known.exact())
        if off > 1e-3:  # multistep and low-order methods lose more of their tolerance
            return f"method={name!r} at 1e-6 is off by {off:.2g}"
    return None


def fixed_steps(bench: Bench, solver: Solver) -> str | None:
    """Fixed steps are that long, and the error falls with them."""
    if not bench.has(Feature.FIXED):
        return None
    tried = 0
    for name in _FIXED:
        known = Known(0.0, 1.0)
        chosen = replace(solver, method=name, rtol=None, atol=None, step=0.1)
        if not bench.accepts(known.plain(), chosen):
            continue
        tried += 1
        wide = bench.run(known.plain(), chosen)
        narrow = bench.run(known.plain(), replace(chosen, step=0.05))
        if int(wide.stats.forward.n_steps.amax()) != 10:
            return f"method={name!r}, step=0.1 takes {int(wide.stats.forward.n_steps.amax())} steps"
        errors = [gap(x.y[-1], known.exact()[-1]) for x in (wide, narrow)]
        if errors[1] > 0.7 * errors[0]:
            before, after = (f"{error:.2g}" for error in errors)
            return f"method={name!r}: half the step changes the error from {before} to {after}"
    return None if tried else f"it declares fixed steps and refuses all of {', '.join(_FIXED)}"


def inputs_kept(bench: Bench, solver: Solver) -> str | None:
    """`y0`, `t` and `args` are the caller's."""
    known = Known(0.0, 0.7, 2.0)
    problem = known.plain()
    given = {"y0": problem.y0, "t": problem.t, "args": problem.args}
    before = {name: flat(x).clone() for name, x in given.items()}
    bench.run(problem, solver)
    changed = [name for name, x in given.items() if not torch.equal(flat(x), before[name])]
    return f"it changed `{changed[0]}` in place" if changed else None


def inside(bench: Bench, solver: Solver) -> str | None:
    """`f` is never evaluated outside [t0, t1], in either direction."""
    for times in ((0.0, 0.3, 1.0), (1.0, 0.4, 0.0)):
        seen: list[float] = []

        def f(t: Tensor, y: Tensor, seen: list[float] = seen) -> Tensor:
            seen.extend(t.detach().reshape(-1).tolist())
            return torch.cos(3 * t) * y

        try:
            bench.run(_from_ones(f, times), solver)
        except Unsupported:  # it cannot follow Python that looks at times
            if wrong := _inside_by_values(bench, solver, times):
                return wrong
            continue
        if min(seen) < 0.0 or max(seen) > 1.0:
            where = min(seen) if min(seen) < 0.0 else max(seen)
            return f"`f` was evaluated at t={where:.6g}, outside [0, 1]"
    return None


def _inside_by_values(bench: Bench, solver: Solver, times: Sequence[float]) -> str | None:
    """The same for a program: NaN outside changes neither steps nor outputs."""
    free = bench.run(_from_ones(Turning(3.0), times), solver)
    walled = bench.run(_from_ones(Turning(3.0, end=1.0), times), solver)
    same = torch.equal(free.stats.forward.n_steps, walled.stats.forward.n_steps)
    if same and torch.equal(free.y, walled.y):
        return None
    return "an `f` that is NaN outside [0, 1] is solved in other steps than one that goes on"


def _from_ones(f: Callable[[Tensor, Tensor], Tensor], times: Sequence[float]) -> ODEProblem:
    y0 = torch.ones(2, 2, dtype=FLOAT)
    return ODEProblem(f, y0, torch.tensor(times, dtype=FLOAT), batched=True)


def failures(bench: Bench, solver: Solver) -> str | None:  # noqa: ARG001 - every demand has it
    """What cannot be solved says so in `status`, and NaN stands for what was not reached."""
    fields: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "a pole": _pole,
        "NaN at the start": lambda t, y: (t + y) * torch.nan,
        "NaN on the way": lambda t, y: torch.where(t > 0.5, torch.nan, -y),
    }
    for name, f in fields.items():
        y0 = torch.full((2, 1), 2.0, dtype=FLOAT)
        t = torch.tensor([0.0, 0.25, 1.0], dtype=FLOAT)
        found = solve(ODEProblem(f, y0, t, batched=True), replace(solver, max_steps=2000))
        if wrong := _inconsistent(found.y, found.status, found.ok):
            return f"{name}: {wrong}"
    return None


def _pole(t: Tensor, y: Tensor) -> Tensor:  # noqa: ARG001
    """dy/dt = y^2, whose solution has a pole at 1 / y0."""
    return y * y


def _inconsistent(y: Tensor, status: Tensor, ok: bool) -> str | None:
    if ok or bool((status == Status.OK).any()):
        return "the status is OK"
    if bool(torch.isfinite(y[-1]).any()):
        return "there are numbers where it did not arrive, no NaN"
    return None if not bool(y.isinf().any()) else "there are infinities among the outputs"


def honest(bench: Bench, solver: Solver) -> str | None:
    """What is not declared is refused: gradient methods, couplings, methods that nobody has."""
    known = Known(0.0, 1.0)
    problem = known.plain()
    asked: list[tuple[bool, str, Solver]] = [
        (bench.has(Feature.DIRECT), "gradient='direct'", replace(solver, gradient="direct")),
        (
            bench.has(Feature.CHECKPOINTED),
            "gradient='checkpointed'",
            replace(solver, gradient="checkpointed"),
        ),
        (bench.has(Feature.ADJOINT), "gradient='adjoint'", replace(solver, gradient="adjoint")),
        (
            bench.has(Feature.PER_SAMPLE),
            "coupling='per_sample'",
            replace(solver, coupling="per_sample"),
        ),
        (False, "method='no such method'", replace(solver, method="no such method")),
    ]
    for declared, what, chosen in asked:
        reasons = bench.backend.refuse(problem, chosen)
        if declared and reasons:
            return f"it declares {what} and refuses it: {reasons[0]}"
        if not declared and not reasons:
            return f"it does not declare {what} and does not refuse it"
    return None


def max_steps(bench: Bench, solver: Solver) -> str | None:
    """The limit counts the attempted steps of the whole solve, not those of an output interval."""
    problem = _from_ones(Turning(5.0), range(9))
    n = int(bench.run(problem, solver).stats.forward.n_steps.amax())
    if n < 16:
        return f"its statistics count {n} steps for ten turns of a rate at 1e-8"
    few = solve(problem, replace(solver, max_steps=n // 2))
    if few.ok:
        return f"with max_steps={n // 2} it went all the way, which takes {n} steps"
    if not bool(torch.isnan(few.y[-1]).all()):
        return "it stopped at the limit, and the last output is not NaN"
    return None


def per_sample(bench: Bench, solver: Solver) -> str | None:
    """A sample's result, steps and status do not depend on its batch."""
    if solver.coupling != "per_sample":
        return None
    rates = torch.tensor([[0.5], [40.0], [1.0]], dtype=FLOAT)

    def problem(rows: slice) -> ODEProblem:
        own = rates[rows]
        y0 = torch.ones(len(own), 1, dtype=FLOAT)
        t = torch.tensor([0.0, 0.4, 1.0], dtype=FLOAT)
        return ODEProblem(lambda t, y: own * (torch.cos(t) - y), y0, t, batched=True)

    loose = replace(solver, rtol=1e-5, atol=1e-5)
    together = bench.run(problem(slice(0, 3)), loose)
    for i in range(3):
        alone = bench.run(problem(slice(i, i + 1)), loose)
        off = gap(together.y[:, i], alone.y[:, 0])
        if off > 1e-10:  # the tolerance is 1e-5: another step sequence would differ by about that
            return f"sample {i} alone and in a batch with a stiff one differ by {off:.2g}"
        n = [int(x.stats.forward.n_steps[j]) for x, j in ((together, i), (alone, 0))]
        if n[0] != n[1]:
            return f"sample {i} takes {n[1]} steps alone and {n[0]} in its batch"
    y0 = torch.tensor([[0.5], [3.0]], dtype=FLOAT)  # of y' = y^2, the second has a pole at 1/3
    pole = ODEProblem(_pole, y0, torch.tensor([0.0, 0.25, 1.0], dtype=FLOAT), batched=True)
    found = solve(pole, replace(solver, max_steps=2000))
    if (
        found.status.tolist()[0] != Status.OK
        or gap(found.y[2, 0], torch.ones(1, dtype=FLOAT)) > 1e-4
    ):
        return "a sample that fails takes another one with it"
    return None if int(found.status[1]) != Status.OK else "a sample with a pole has status OK"


def statistics(bench: Bench, solver: Solver) -> str | None:
    """Counts that fit together, and evaluations as many as there were."""
    field = Turning(3.0)
    with torch.no_grad():
        bench.run(_from_ones(field, (0.0, 0.3, 1.0)), solver)  # whoever makes a program does so now
        field.n_calls = 0
        found = bench.run(_from_ones(field, (0.0, 0.3, 1.0)), solver)
    counts = found.stats.forward
    if not torch.equal(counts.n_steps, counts.n_accepted + counts.n_rejected):
        return "attempted steps are not the accepted and the rejected ones"
    n = int(counts.n_f_evals.amax())
    if n < int(counts.n_steps.amax()):
        return f"it reports {n} evaluations in {int(counts.n_steps.amax())} steps"
    if field.n_calls and abs(n - field.n_calls) > 2:  # one at the start more or less is taste
        return f"it reports {n} evaluations, and there were {field.n_calls}"
    return None  # without any call, it has a program of its own


def structures(bench: Bench, solver: Solver) -> str | None:
    """States of any structure, shape and float dtype come back as they went in."""
    for name, y0 in _states():
        problem = ODEProblem(_decay, y0, torch.tensor([0.0, 0.5, 1.0]), batched=True)
        dtype = leaves_of(y0)[0].dtype
        tolerance = RTOL if dtype == FLOAT else 1e-5
        chosen = replace(solver, rtol=tolerance, atol=tolerance)
        if not bench.accepts(problem, chosen):
            continue  # a backend may refuse a structure, in words
        y = bench.run(problem, chosen).y
        shapes = [(x.shape, x.dtype) for x in leaves_of(y)]
        wanted = [((3, *x.shape), dtype) for x in leaves_of(y0)]
        if type(y) is not type(y0) or [(tuple(a), b) for a, b in shapes] != wanted:
            return f"a {name} comes back as {shapes}"
        off = max(
            gap(x[-1], x0 * math.exp(-1.0))
            for x, x0 in zip(leaves_of(y), leaves_of(y0), strict=True)
        )
        if off > 1e3 * tolerance:
            return f"the solution of a {name} is off by {off:.2g}"
    return None


def _states() -> Iterator[tuple[str, Any]]:
    x = torch.linspace(-1, 1, 6, dtype=FLOAT).reshape(3, 2)
    yield "tensor", x
    yield "image", torch.ones(2, 1, 2, 2, dtype=FLOAT)
    yield "tuple", (x, x.reshape(3, 1, 2))
    yield "dict", {"b": x, "a": x[:, :1].clone()}
    yield "float32 tensor", x.float()


def _decay(t: Tensor, y: Any) -> Any:  # noqa: ANN401, ARG001
    if isinstance(y, Tensor):
        return -y
    return {k: -v for k, v in y.items()} if isinstance(y, dict) else tuple(-v for v in y)  # pyright: ignore
