"""`compare`: the same problem under several solvers, in one table."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from statistics import median

import torch

from ctflow.api import as_solver
from ctflow.backends.protocol import Solver
from ctflow.errors import CtflowError
from ctflow.problem import ODEProblem
from ctflow.state import leaves_of
from ctflow.testing.asked import Asked, Gradient, Loss, infinite_if_nan
from ctflow.testing.memory import LiveStorage
from ctflow.testing.reference import frozen, on_grid
from ctflow.testing.report import plain
from ctflow.testing.routes import COMPILING, every_solver, label, left_out

__all__ = ["Comparison", "Row", "compare"]


@dataclass(frozen=True)
class Row:
    """One solver.

    Args:
        solver: Backend, gradient method, and what else was set.
        value: Norm of the difference from the reference's outputs, relative.
        gradient: The same of the gradient of everything: y0, parameters, args, times.
        n_forward: Evaluations of `f` in the forward pass, of the sample that took most.
        n_backward: In the backward pass; back-propagation alone evaluates nothing.
        seconds: Time of both passes, median.
        n_bytes: Most tensor storage alive at once in both; None where that cannot be seen.
        doubted: Whether it said itself that its gradient may be wrong.
        failure: Why there are no numbers; empty if there are.
    """

    solver: str
    value: float
    gradient: float
    n_forward: int
    n_backward: int
    seconds: float
    n_bytes: int | None
    doubted: bool = False
    failure: str = ""


@dataclass(frozen=True)
class Comparison:
    """A row for each solver, in the order in which they were given.

    Args:
        rows: The rows.
        reference: What they are compared with.
        left_out: Installed backends that are not among them, because they compile first.
    """

    rows: tuple[Row, ...]
    reference: str
    left_out: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        rows = [plain(asdict(row)) for row in self.rows]
        return {"reference": self.reference, "rows": rows, "left_out": list(self.left_out)}

    @property
    def widest(self) -> float:
        """The largest disagreement of a row, in value or gradient."""
        found = [max(row.value, row.gradient) for row in self.rows if not row.failure]
        return max(found, default=math.nan)

    def __str__(self) -> str:
        """The table."""
        width = max([len(row.solver) for row in self.rows], default=0)
        head = f"{'solver':{width}}    value  gradient  evaluations       ms      kB"
        lines = [head, "-" * len(head)]
        for row in self.rows:
            if row.failure:
                lines.append(f"{row.solver:{width}}  {row.failure}")
                continue
            mark = " (!)" if row.doubted else ""
            calls = f"{row.n_forward} + {row.n_backward}"
            lines.append(
                f"{row.solver:{width}}  {row.value:7.1e}   {row.gradient:7.1e}  {calls:>11}  "
                f"{1e3 * row.seconds:7.1f}  {_kilobytes(row.n_bytes):>6}{mark}"
            )
        lines.append(f"value, gradient: relative difference from {self.reference}")
        for name in self.left_out:
            lines.append(f"{name} is left out: it compiles first; name it to have it here")
        if any(row.doubted for row in self.rows):
            lines.append("(!) says itself that its gradient is in doubt")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The rows as JSON."""
        return json.dumps(self.as_dict(), indent=2)


def compare(
    problem: ODEProblem,
    solvers: Iterable[Solver | str] | None = None,
    *,
    loss: Loss | None = None,
    rtol: float | None = None,
    repeats: int = 3,
    seed: int = 0,
) -> Comparison:
    """Solve and differentiate a problem with several solvers and put the results side by side.

    Args:
        problem: What is asked.
        solvers: Which; None: each installed backend with each gradient method it offers, but for
            those that compile first: they are taken where they are named.
        loss: Scalar of the outputs that is differentiated; None: all of them, weighted at random.
        rtol: Tolerance, relative and absolute, of the solvers where they name none; None: the
            default of the dtype.
        repeats: Timed runs, after one to warm up.
        seed: Of the weights.

    Returns:
        A row for each solver: differences from a reference on a frozen grid of tight steps, and
        costs. What a solver refuses, or fails at, stands in its row.

    Raises:
        SolveFailed: If the reference cannot be solved.
        InvalidProblem: If its gradient is not finite.

    Cost:
        `repeats` + 2 solves with their gradients for each solver.

    Example:
        >>> import torch
        >>> from ctflow import ODEProblem, Solver
        >>> problem = ODEProblem(lambda t, y: -y, torch.ones(3, dtype=torch.float64), [0.0, 1.0])
        >>> table = compare(problem, [Solver(gradient="direct"), Solver(gradient="adjoint")])
        >>> [row.solver for row in table.rows], table.widest < 1e-5
        (['native direct', 'native adjoint'], True)
    """
    asked = Asked.of(problem, loss, seed, narrow=True)
    dtype: torch.dtype = leaves_of(asked.problem.y0)[0].dtype
    tight = max(1e-10, 50 * torch.finfo(dtype).eps)
    coupling = "per_sample" if asked.problem.t.dim() == 2 else None
    reference = asked.gradient(on_grid(frozen(asked.problem, tight), coupling))
    reference.check_finite()
    chosen = every_solver(asked.problem) if solvers is None else map(as_solver, solvers)
    rows: list[Row] = []
    for solver in chosen:
        own = solver.rtol is not None or solver.step is not None or rtol is None
        full = solver if own else replace(solver, rtol=rtol, atol=solver.atol or rtol)
        rows.append(_row(asked, full, reference, repeats))
    absent = left_out() if solvers is None else ()
    return Comparison(tuple(rows), f"a solve at {tight:.1g} on fixed steps", absent)


def _kilobytes(n_bytes: int | None) -> str:
    return "-" if n_bytes is None else f"{n_bytes / 1024:.0f}"


def _row(asked: Asked, solver: Solver, reference: Gradient, repeats: int) -> Row:
    name = label(solver)
    try:
        found = asked.gradient(solver)
    except CtflowError as error:
        nothing = (math.nan, math.nan, 0, 0, math.nan, None, False)
        return Row(name, *nothing, " ".join(str(error).split()))
    n_bytes = None
    if found.solution.stats.solver.backend not in COMPILING:  # programs allocate out of sight
        with LiveStorage() as storage:
            asked.gradient(solver)
        n_bytes = storage.peak
    times: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        asked.gradient(solver)
        times.append(time.perf_counter() - began)
    stats = found.solution.stats
    gap = float((found.y - reference.y).norm()) / max(float(reference.y.norm()), 1e-300)
    backward = stats.backward
    return Row(
        name,
        infinite_if_nan(gap),
        reference.distance(found) / max(reference.norm, 1e-300),
        int(stats.forward.n_f_evals.amax()),
        0 if backward is None else int(backward.n_f_evals.amax()),
        median(times) if times else math.nan,
        n_bytes,
        bool(found.doubts),
    )
