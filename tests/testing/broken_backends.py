"""Our own solver with one fault each: thin wrappers that break what they hand on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ctflow import ODEProblem, Solution, Solver, Status, Tolerances, Unsupported
from ctflow.backends import Feature
from ctflow.backends.captures import Captures, sequence_number
from ctflow.backends.field import Field
from ctflow.backends.native.backend import NativeBackend
from ctflow.backends.native.methods import METHODS
from ctflow.errors import GradientWarning
from ctflow.state import Layout, leaves_of, map_leaves
from ctflow.testing.bench import Turning

__all__ = ["BROKEN", "Solve", "Wrapped", "nan_gradient", "program"]

Solve = Callable[[ODEProblem, Solver], Solution]
DIRECT = frozenset({Feature.ADAPTIVE, Feature.DIRECT, Feature.TIME_GRADIENTS, Feature.SECOND_ORDER})
ADJOINT = frozenset({Feature.ADAPTIVE, Feature.ADJOINT, Feature.TIME_GRADIENTS})
NAMES = {Feature.DIRECT: "direct", Feature.CHECKPOINTED: "checkpointed", Feature.ADJOINT: "adjoint"}


@dataclass(frozen=True)
class Wrapped:
    """A backend that solves as ours does, in a way of its own.

    Args:
        name: What is wrong with it.
        solve_as: Solves, given how ours would; `None` adds no fault.
        features: What it declares, and refuses the rest of.
        native: Who solves.
    """

    name: str
    solve_as: Callable[[Solve, ODEProblem, Solver], Solution] | None = None
    features: frozenset[Feature] = DIRECT
    native: NativeBackend = field(default_factory=NativeBackend)

    def refuse(self, problem: ODEProblem, solver: Solver) -> list[str]:
        """What is not among its features, and what ours refuses."""
        offered = [NAMES[feature] for feature in self.features if feature in NAMES]
        reasons = self.native.refuse(problem, solver)
        if solver.gradient not in (None, *offered):
            reasons.append(f"gradient={solver.gradient!r}")
        if solver.method not in (None, "dopri5"):
            reasons.append(f"method={solver.method!r}")
        if solver.coupling == "per_sample" and Feature.PER_SAMPLE not in self.features:
            reasons.append("coupling='per_sample'")
        return reasons + (["`step`"] if solver.step is not None else [])

    def solve(self, problem: ODEProblem, solver: Solver) -> Solution:
        """Solve, with the fault."""
        if self.solve_as is None:
            return self.native.solve(problem, solver)
        return self.solve_as(self.native.solve, problem, solver)


class OnlyTo(torch.autograd.Function):
    """f(t, y), of which only some tensors get a gradient."""

    @staticmethod
    def forward(ctx: Any, call: Any, t: Any, y: Tensor, *kept: Tensor) -> Tensor:  # noqa: ANN401
        ctx.call, ctx.t, ctx.kept = call, t, kept
        ctx.save_for_backward(y)
        return call(t, y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # noqa: ANN401
        y = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            dy = ctx.call(ctx.t, y)
        kept = [x for x in ctx.kept if x.requires_grad]
        found = iter(
            torch.autograd.grad(dy, [y, *kept], grads[0], retain_graph=True, allow_unused=True)
        )
        shares = [next(found) if x.requires_grad else None for x in (y, *ctx.kept)]
        return None, None, *shares


def known_leaves(problem: ODEProblem) -> tuple[Tensor, ...]:
    """What a hasty author would call the inputs: leaves that are found before the start."""
    found = Captures(problem, Field(problem, Layout.of(problem.y0, per_sample=False))).inputs
    return tuple(x for x in found if x.is_leaf)


def dropped_context(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
    """Only leaves get a gradient; a computed context does not."""
    kept = known_leaves(problem)

    def f(t: Tensor, y: Any, *args: Any) -> Any:  # noqa: ANN401
        if not isinstance(y, Tensor):
            return problem.f(t, y, *args)
        return OnlyTo.apply(lambda t, y: problem.f(t, y, *args), t, y, *kept)

    return solve(replace(problem, f=f), solver)


def unguarded_late_branch(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
    """What is reached late for the first time gets no gradient, and nothing says so."""
    kept = known_leaves(problem)
    start = float(problem.t.detach().flatten()[0])

    def f(t: Tensor, y: Any, *args: Any) -> Any:  # noqa: ANN401
        if not isinstance(y, Tensor) or problem.params is None or float(t.detach().max()) == start:
            return problem.f(t, y, *args)
        return OnlyTo.apply(lambda t, y: problem.f(t, y, *args), t, y, *kept)

    return solve(replace(problem, f=f), solver)


class Flipped(torch.autograd.Function):
    """The identity with a gradient of the wrong sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401
        return -grads[0]


def flipped_start(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
    """The gradient of t0 has the wrong sign."""
    t = torch.cat([Flipped.apply(problem.t[:1]), problem.t[1:]])
    return solve(replace(problem, t=t), solver)


def counted_twice(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
    """What reaches output 0 is added to the gradient of y0 a second time."""
    found = solve(problem, solver)
    if not isinstance(problem.y0, Tensor):
        return found
    again = problem.y0 - problem.y0.detach()
    return replace(found, y=torch.cat([found.y[:1] + again, found.y[1:]]))


class Opaque(torch.autograd.Function):
    """A solve whose backward pass is not recorded."""

    @staticmethod
    def forward(ctx: Any, run: Any, *inputs: Tensor) -> Tensor:  # noqa: ANN401
        ctx.run, ctx.inputs = run, inputs
        with torch.no_grad():
            return run().y.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # noqa: ANN401
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", GradientWarning)
            y = ctx.run().y
            found = torch.autograd.grad(y, ctx.inputs, grads[0].detach(), allow_unused=True)
        return None, *(None if g is None else g.detach() for g in found)


def opaque(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
    """First derivatives are right, and constants to whoever differentiates them."""
    with torch.no_grad():
        found = solve(problem, solver)
    inputs = [problem.y0, problem.t, *_inputs(problem)]
    inputs = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    if not (inputs and torch.is_grad_enabled() and isinstance(problem.y0, Tensor) and found.ok):
        return found
    return replace(found, y=Opaque.apply(lambda: solve(problem, solver), *inputs))


def _inputs(problem: ODEProblem) -> Sequence[Tensor]:
    layout = Layout.of(problem.y0, per_sample=False)
    field = Field(problem, layout)
    captures = Captures(problem, field)
    leaf, start = layout.pack(problem.y0).detach().requires_grad_(), problem.t.detach()[:1]
    marker = sequence_number()
    captures.discover(field(start.to(leaf.dtype), leaf), leaf, marker)  # computed ones too
    return captures.inputs


def truncated_quadrature(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
    """The parameters' integral is left out of the error control, and no warning is given."""
    own = Tolerances(float(solver.rtol or 0), float(solver.atol or 1), "seminorm")
    return opaque(solve, problem, replace(solver, backward=own))


def always_ok(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
    """NaN with status OK."""
    found = solve(problem, solver)
    return replace(found, status=torch.zeros_like(found.status), stops=())


def coupled(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
    """One step size for all samples, sold as one for each."""
    found = solve(problem, replace(solver, coupling="shared"))
    if solver.coupling == "shared":
        return found
    n = Layout.of(problem.y0, per_sample=True).batch
    forward = found.stats.forward
    each = type(forward)(
        *(
            x.expand(n).clone()
            for x in (forward.n_f_evals, forward.n_steps, forward.n_accepted, forward.n_rejected)
        )
    )
    found.stats.forward = each
    return replace(found, status=found.status.expand(n))


def dropped_args(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
    """`args` reach f, and no gradient reaches them."""
    args = map_leaves(lambda x: x.detach() if isinstance(x, Tensor) else x, problem.args)
    return solve(replace(problem, args=args), solver)


def times_of_the_first(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
    """Every sample is solved at the times of the first."""
    if problem.t.dim() == 1:
        return solve(problem, solver)
    return solve(replace(problem, t=problem.t[:1].expand_as(problem.t)), solver)


def all_in_the_norm(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
    """What shall stay out of the error norm chooses the steps."""
    return solve(replace(problem, uncontrolled=0), solver)


def no_local_error(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
    """It is declared and forgotten."""
    return solve(replace(problem, local_error=False), solver)


def nan_gradient(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
    """Right outputs whose gradient is no number, for states that are no bare tensor."""
    found = solve(problem, solver)
    if isinstance(problem.y0, Tensor):
        return found
    zero = torch.zeros((), dtype=leaves_of(problem.y0)[0].dtype)
    poison = sum(leaf.sum() for leaf in leaves_of(problem.y0)) * zero
    return replace(found, y=map_leaves(lambda x: x + torch.sqrt(poison.abs()), found.y))


def limit_per_interval(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
    """The step limit is counted from one output to the next."""
    few = solve(problem, solver)
    if few.ok or int(few.status[0]) != Status.MAX_STEPS or problem.t.dim() == 2:
        return few
    y, parts = problem.y0, [problem.y0]
    for i in range(len(problem.t) - 1):
        found = solve(replace(problem, y0=y, t=problem.t[i : i + 2]), solver)
        if not found.ok:
            return few
        y = found.y[-1]
        parts.append(y)
    return replace(few, y=torch.stack(parts), status=torch.zeros_like(few.status), stops=())


def mutated_start(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
    """The caller's y0 is where the result is written."""
    found = solve(problem, solver)
    if isinstance(problem.y0, Tensor) and not problem.y0.requires_grad:
        found = replace(found, y=found.y.clone())
        problem.y0.copy_(found.y[-1].detach())
    return found


def beyond_the_end(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
    """f is asked for a time after the last."""
    t = problem.t.detach()
    late = (t[..., -1] + 0.05 * (t[..., -1] - t[..., 0])).reshape(-1)[0]
    with torch.no_grad():
        arguments = () if problem.args is None else (problem.args,)
        problem.f(late, problem.y0, *arguments)
    return solve(problem, solver)


def in_float32(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
    """The state is kept in a narrower dtype on its way, with the tolerance that this can meet."""

    def f(t: Tensor, y: Any, *args: Any) -> Any:  # noqa: ANN401
        wide = problem.f(t.double(), map_leaves(torch.Tensor.double, y), *args)
        return map_leaves(torch.Tensor.float, wide)

    y0 = map_leaves(torch.Tensor.float, problem.y0)
    tolerance = max(float(solver.rtol or 0), 1e-6)
    own = replace(solver, rtol=tolerance, atol=tolerance)
    found = solve(replace(problem, y0=y0, f=f), own)
    dtype = leaves_of(problem.y0)[0].dtype
    y = map_leaves(lambda x: x.to(dtype), found.y)
    if isinstance(y, Tensor):
        y = torch.cat([problem.y0.detach().unsqueeze(0), y[1:]])
    return replace(found, y=y)


def program_beyond_the_end(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
    """It cannot follow Python that notes times, and its last step goes past the end."""
    refuse_notes(problem.f)
    t = problem.t.detach()
    if not isinstance(problem.f, Turning):
        return solve(problem, solver)
    longer = torch.cat([problem.t, t[-1:] + 0.05 * (t[-1:] - t[:1])])
    found = solve(replace(problem, t=longer), solver)
    return replace(found, t=problem.t, y=found.y[:-1])


def program(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
    """A sound one whose steps run no Python of `f`."""
    refuse_notes(problem.f)
    found = solve(problem, solver)
    if isinstance(problem.f, Turning):
        problem.f.n_calls = 0
    return found


def refuse_notes(f: Callable[..., Any]) -> None:
    """As a tracer refuses Python that looks at values."""
    if "tolist" in getattr(getattr(f, "__code__", None), "co_names", ()):
        raise Unsupported("`f` depends on the values of tensors. Use backend='native'.")


def wrong_weights() -> NativeBackend:
    """Two weights of dopri5 are off by 1e-3; the stages and the error estimate are right."""
    table = METHODS["dopri5"]
    b = (table.b[0] + 1e-3, *table.b[1:3], table.b[3] - 1e-3, *table.b[4:])
    broken = replace(table)
    object.__setattr__(broken, "b", b)  # past the checks of the tableau, which would refuse it
    return NativeBackend(tableau=broken)


def low_order_interpolant() -> NativeBackend:
    """Straight lines inside a step."""
    table = METHODS["dopri5"]
    return NativeBackend(tableau=replace(table, p=tuple((w,) for w in table.b), dense_order=1))


BOTH = DIRECT | {Feature.PER_SAMPLE}
BROKEN: dict[str, tuple[Callable[[], Wrapped], str]] = {
    "dropped context": (lambda: Wrapped("broken", dropped_context), "gradient_captured"),
    "t0 gradient of wrong sign": (lambda: Wrapped("broken", flipped_start), "gradient_t0"),
    "g_0 counted twice": (lambda: Wrapped("broken", counted_twice), "gradient_output_0"),
    "unguarded late branch": (lambda: Wrapped("broken", unguarded_late_branch), "late_branch"),
    "detached second order": (lambda: Wrapped("broken", opaque), "second_order"),
    "low-order interpolant": (
        lambda: Wrapped("broken", native=low_order_interpolant()),
        "between_steps",
    ),
    "NaN with status OK": (lambda: Wrapped("broken", always_ok), "failures"),
    "coupled samples sold as per-sample": (
        lambda: Wrapped("broken", coupled, BOTH),
        "per_sample",
    ),
    "dropped args": (lambda: Wrapped("broken", dropped_args), "gradient_args"),
    "limit counted per interval": (lambda: Wrapped("broken", limit_per_interval), "max_steps"),
    "mutated y0": (lambda: Wrapped("broken", mutated_start), "inputs"),
    "truncated quadrature": (
        lambda: Wrapped("broken", truncated_quadrature, ADJOINT),
        "quadrature",
    ),
    "times of the first sample for all": (
        lambda: Wrapped("broken", times_of_the_first, BOTH),
        "sample_times",
    ),
    "everything in the error norm": (
        lambda: Wrapped("broken", all_in_the_norm, DIRECT | {Feature.UNCONTROLLED}),
        "uncontrolled",
    ),
    "no local error": (
        lambda: Wrapped("broken", no_local_error, DIRECT | {Feature.LOCAL_ERROR}),
        "local_error",
    ),
    "float32 inside": (lambda: Wrapped("broken", in_float32), "precision"),
    "evaluation beyond t1 in a program": (
        lambda: Wrapped("broken", program_beyond_the_end),
        "inside",
    ),
    "evaluation beyond t1": (lambda: Wrapped("broken", beyond_the_end), "inside"),
    "wrong b in the tableau": (lambda: Wrapped("broken", native=wrong_weights()), "closed_form"),
}
"""Name of the fault -> the backend, and the demand that names it."""
