"""What a backend's outputs must hold to: one function for each demand, one route at a time.

Each returns what is wrong, or None. What it raises counts as wrong too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ctflow.backends.protocol import Feature, Solver
from ctflow.problem import ODEProblem
from ctflow.state import leaves_of
from ctflow.testing.bench import FLOAT, RTOL, Bench, Known, gap
from ctflow.testing.subject import flat

__all__ = [
    "between_steps",
    "closed_form",
    "fixed_steps",
    "inputs_kept",
    "methods",
    "precision",
    "sample_times",
    "structures",
]

_ALLOWED = 1e3 * RTOL
"""Errors are amplified by up to e^2 here, and an interpolant adds some dozen tolerances."""

_METHODS = (
    "dopri5", "tsit5", "bosh3", "dop853", "dopri8", "rodas5p", "adams", "lsoda", "bdf", "radau",
)  # fmt: skip
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


def sample_times(bench: Bench, solver: Solver) -> str | None:
    """Each sample has output times of its own, if the backend takes them."""
    known = Known((0.0, 0.7, 2.0), (0.5, 1.0, 1.2), (-1.0, 0.0, 0.1))
    if solver.coupling != "per_sample" or not bench.accepts(known.plain(), solver):
        return None
    found, wanted = bench.run(known.plain(), solver).y, known.exact()
    for i in range(3):
        off = gap(found[:, i], wanted[:, i])
        if off > _ALLOWED:
            return f"at the times of sample {i} the state is off by {off:.2g}"
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
        if isinstance(y, dict) and isinstance(y0, dict):
            y = {key: y[key] for key in y0}  # by name: leaves come in the order of insertion
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
