"""How a backend must behave beside its outputs: limits, failures, counts, what it declares.

One function for each demand, one route at a time; each returns what is wrong, or None. What it
raises counts as wrong too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ctflow.api import solve
from ctflow.backends.protocol import Feature, Solver
from ctflow.errors import Unsupported
from ctflow.problem import ODEProblem
from ctflow.solution import Status
from ctflow.testing.bench import FLOAT, Bench, Known, Turning, gap

__all__ = [
    "failures",
    "honest",
    "inside",
    "local_error",
    "max_steps",
    "per_sample",
    "statistics",
    "uncontrolled",
]


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


def uncontrolled(bench: Bench, solver: Solver) -> str | None:
    """A part of the state that is left out of the error norm does not choose the steps."""
    if not bench.has(Feature.UNCONTROLLED):
        return None

    def f(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return torch.cos(t) * y[0], torch.sin(300 * t) + 0 * y[1]

    one = torch.ones(2, 1, dtype=FLOAT)
    t = torch.tensor([0.0, 1.0], dtype=FLOAT)
    alone = ODEProblem(lambda t, y: torch.cos(t) * y, one, t, batched=True)
    both = ODEProblem(f, (one, 0 * one), t, batched=True, uncontrolled=1)
    if not bench.accepts(both, solver):
        return None
    n, wanted = (
        int(bench.run(problem, solver).stats.forward.n_steps.amax()) for problem in (both, alone)
    )
    if n > 2 * wanted:
        return f"with a fast part outside the norm it takes {n} steps, and {wanted} without it"
    return None


def local_error(bench: Bench, solver: Solver) -> str | None:
    """Estimates of its own error, where declared: positive, differentiable, by tolerance."""
    if not bench.has(Feature.LOCAL_ERROR):
        return None
    y0 = torch.ones(2, 2, dtype=FLOAT, requires_grad=True)
    problem = replace(_from_ones(Turning(5.0), (0.0, 1.0)), y0=y0, local_error=True)
    found: list[float] = []
    for tolerance in (1e-4, 1e-8):
        error = bench.run(problem, replace(solver, rtol=tolerance, atol=tolerance)).local_error
        if error is None:
            return "it declares estimates of its local error and gives none"
        if not error.requires_grad:
            return "its estimate of the local error has no gradient"
        found.append(float(error.detach().amax()))
    if not 0 < found[1] < found[0]:
        return f"it estimates {found[0]:.2g} at a tolerance of 1e-4, and {found[1]:.2g} at 1e-8"
    return None
