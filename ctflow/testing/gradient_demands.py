"""What a backend's gradients must hold to: one function for each demand, one route at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ctflow.backends.captures import pull
from ctflow.backends.protocol import Feature, Solver
from ctflow.errors import CtflowError, GradientWarning
from ctflow.problem import ODEProblem
from ctflow.testing.bench import FLOAT, RTOL, Bench, Known, gap

__all__ = [
    "gradient_of_args",
    "gradient_of_captured",
    "gradient_of_output_0",
    "gradient_of_params",
    "gradient_of_sample_times",
    "gradient_of_t0",
    "gradient_of_times",
    "gradient_of_y0",
    "late_branch",
    "no_grad",
    "quadrature",
    "second_order",
]

_ALLOWED = 1e3 * RTOL
"""Errors are amplified by up to e^2 here, and an interpolant adds some dozen tolerances."""

_TIMES = (0.2, 0.9, 1.6)


def gradient_of_y0(bench: Bench, solver: Solver) -> str | None:
    """Through the solve alone: output 0 is not in the loss."""
    return _against_closed_form(bench, solver, "y0")


def gradient_of_params(bench: Bench, solver: Solver) -> str | None:
    """Of a module's parameter."""
    return _against_closed_form(bench, solver, "a")


def gradient_of_args(bench: Bench, solver: Solver) -> str | None:
    """Of the third argument of `f`."""
    return _against_closed_form(bench, solver, "k")


def gradient_of_captured(bench: Bench, solver: Solver) -> str | None:
    """Of what a tensor that `f` keeps as an attribute was computed from."""
    return _against_closed_form(bench, solver, "w")


def gradient_of_t0(bench: Bench, solver: Solver) -> str | None:
    """dL/dt0 = -a(t0+) . f(t0, y0)."""
    return _against_closed_form(bench, solver, "t", slice(0, 1))


def gradient_of_times(bench: Bench, solver: Solver) -> str | None:
    """dL/dt_i = g_i . f(t_i, y_i), at inner and last output times."""
    return _against_closed_form(bench, solver, "t", slice(1, None))


def gradient_of_sample_times(bench: Bench, solver: Solver) -> str | None:
    """Of output times that each sample has of its own, and of the rest beside them."""
    known = Known((0.0, 0.7, 2.0), (0.5, 1.0, 1.2), (-1.0, 0.0, 0.1))
    if solver.coupling != "per_sample" or not bench.accepts(known.problem, solver):
        return None
    names = ["y0", "a", "t"] if bench.has(Feature.TIME_GRADIENTS) else ["y0", "a"]
    for name in names:
        wanted = _gradient(_loss(known.exact()[1:]), known.inputs[name])
        with _no_warning():
            found = _gradient(_loss(bench.run(known.problem, solver).y[1:]), known.inputs[name])
        if found is None or wanted is None:
            return f"there is none of {name}"
        off = gap(found, wanted)
        if off > _ALLOWED:
            return f"that of {name} is off by {off:.2g}"
    return None


def gradient_of_output_0(bench: Bench, solver: Solver) -> str | None:
    """Output 0 is `y0`: what reaches it arrives once, and nowhere else."""
    known = Known(*_TIMES)
    names = ["y0", "a", "k"]
    y = bench.run(known.problem, solver).y
    loss = (_weights(y[0]) * y[0]).sum()
    found = pull((loss,), [known.inputs[n] for n in names], (torch.ones_like(loss),), keep=False)
    if found[0] is None or gap(found[0], _weights(y[0])) > 1e-12:
        return "the gradient of a loss on output 0 alone is not that loss's own"
    if any(g is not None and float(g.abs().amax()) > 0 for g in found[1:]):
        return "a loss on output 0 alone has a gradient of parameters"
    return None


def _against_closed_form(
    bench: Bench, solver: Solver, name: str, entries: slice = slice(None)
) -> str | None:
    if name == "t" and not bench.has(Feature.TIME_GRADIENTS):
        return None
    for direction in (1.0, -1.0):
        known = Known(*(direction * t for t in _TIMES))
        x = known.inputs[name]
        wanted = _gradient(_loss(known.exact()[1:]), x)
        with _no_warning():
            found = _gradient(_loss(bench.run(known.problem, solver).y[1:]), x)
        if found is None or wanted is None:
            return "there is none"
        off = gap(found.reshape(-1)[entries], wanted.reshape(-1)[entries])
        if off > _ALLOWED:
            shown = [f"{float(g.reshape(-1)[entries][0]):.6g}" for g in (found, wanted)]
            when = "" if direction > 0 else " backwards in time"
            return f"off by {off:.2g}{when}: it begins with {shown[0]} for {shown[1]}"
    return None


def late_branch(bench: Bench, solver: Solver) -> str | None:
    """A tensor that `f` reaches late only, where nobody finds it: right, or refused."""
    base = torch.tensor(0.7, dtype=FLOAT, requires_grad=True)
    rate = torch.tensor(-0.5, dtype=FLOAT, requires_grad=True)
    kept = _endless(base * 2.0)

    def f(t: Tensor, y: Tensor) -> Tensor:
        late = next(kept) * y if bool((t > 0.5).all()) else torch.zeros_like(y)
        return rate * y + late * torch.clamp(t - 0.5, min=0.0) ** 3

    y0 = torch.ones(2, 2, dtype=FLOAT)
    t = torch.tensor([0.0, 1.0], dtype=FLOAT)
    try:
        with _no_warning():
            y = bench.run(ODEProblem(f, y0, t, batched=True, params=(rate,)), solver).y[-1]
            loss = y.sum()
            _, found = pull((loss,), (rate, base), (torch.ones_like(loss),), keep=False)
    except CtflowError:
        return None
    # y(1) = exp(rate + 2 base int_0.5^1 (t - 1/2)^3 dt), and the integral is 1 / 64.
    wanted = 4 * torch.exp(rate + 2 * base / 64).detach() * 2 / 64
    if found is None:
        return "the gradient of a tensor that is used late is lost, silently"
    off = abs(float(found) - float(wanted)) / float(wanted)
    return f"the gradient of a tensor that is used late is off by {off:.2g}" if off > 1e-4 else None


def second_order(bench: Bench, solver: Solver) -> str | None:
    """A second differentiation is right or refused; no part of it is silently missing."""
    known = Known(*_TIMES)
    inputs = [known.inputs[name] for name in ("y0", "a", "k")]
    wanted = _second(_loss(known.exact()[1:]), inputs)
    try:
        with _no_warning():
            found = _second(_loss(bench.run(known.problem, solver).y[1:]), inputs)
    except CtflowError:
        offered = bench.has(Feature.SECOND_ORDER) and solver.gradient == "direct"
        return "it declares second derivatives and refuses them" if offered else None
    except RuntimeError as error:
        return f"the first derivative is a constant ({' '.join(str(error).split())[:90]})"
    off = max(gap(g, w) for g, w in zip(found, wanted, strict=True))
    return f"second derivatives are off by {off:.2g}" if off > 10 * _ALLOWED else None


def quadrature(bench: Bench, solver: Solver) -> str | None:
    """For  y' = theta sin(20 t)^2 - y / 10  at theta = 0: a right gradient, or a warning.

    The state is smooth and the parameters' integrand is not: who leaves it out of the error
    control is wrong by a sixth (arXiv 2009.09457 leaves it out on purpose).
    """
    if solver.gradient != "adjoint":
        return None  # others differentiate the steps taken, as they say
    theta = torch.zeros((), dtype=FLOAT, requires_grad=True)
    y0, t = torch.ones(1, 1, dtype=FLOAT), torch.tensor([0.0, 3.0], dtype=FLOAT)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return theta * torch.sin(20 * t) ** 2 - 0.1 * y

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = bench.run(ODEProblem(f, y0, t, batched=True), solver).y[-1]
        found = _gradient(y.sum(), theta)
    # int_0^3 exp(-(3 - t) / 10) sin(20 t)^2 dt
    s = torch.linspace(0.0, 3.0, 20_001, dtype=FLOAT)
    wanted = torch.trapezoid(torch.exp(-(3.0 - s) / 10) * torch.sin(20 * s) ** 2, s)
    off = float("inf") if found is None else abs(float(found - wanted)) / float(wanted)
    if off > 1e-3 and not any(issubclass(w.category, GradientWarning) for w in caught):
        return f"the parameters' gradient is off by {off:.2g}, and nothing warns of it"
    return None


def no_grad(bench: Bench, solver: Solver) -> str | None:
    """No history under no_grad; the same numbers."""
    known = Known(*_TIMES)
    with torch.no_grad():
        quiet = bench.run(known.problem, solver).y
    if quiet.requires_grad:
        return "an output made under no_grad requires a gradient"
    off = gap(quiet, bench.run(known.problem, solver).y)
    return f"outputs with and without gradients differ by {off:.2g}" if off > _ALLOWED else None


def _endless(x: Tensor) -> Iterator[Tensor]:
    while True:
        yield x


def _weights(x: Tensor) -> Tensor:
    return torch.linspace(0.5, 1.5, x.numel(), dtype=FLOAT).reshape(x.shape)


def _loss(y: Tensor) -> Tensor:
    return (_weights(y) * y + 0.3 * y * y).sum()


def _gradient(loss: Tensor, x: Tensor) -> Tensor | None:
    if not loss.requires_grad:
        return None
    return pull((loss,), (x,), (torch.ones_like(loss),), keep=True)[0]


def _second(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The Hessian times a fixed vector; zeros where there is none."""
    first = torch.autograd.grad(loss, inputs, create_graph=True)
    along = [torch.linspace(-1, 1, x.numel(), dtype=FLOAT).reshape(x.shape) for x in inputs]
    product = torch.stack([(g * v).sum() for g, v in zip(first, along, strict=True)]).sum()
    found = pull((product,), inputs, (torch.ones_like(product),), keep=False)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


def _no_warning() -> warnings.catch_warnings[None]:
    return warnings.catch_warnings(action="ignore", category=GradientWarning)
