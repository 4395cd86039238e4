"""Step control, times to step on, jumps and interpolants with stages of their own: as native."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctflow import Controller, ODEProblem, Solution, Solver, Status, Unsupported, solve
from ctflow.backends.compiled.backend import CompiledBackend
from ctflow.backends.compiled.build import counts
from ctflow.backends.native.backend import NativeBackend
from ctflow.backends.native.control import Adaptive, Span, Verdict
from ctflow.backends.native.step import FlatField, Step
from ctflow.backends.tableau import Tableau

DTYPE = torch.float64
PLACE = 0.5
SETTINGS: dict[str, Solver] = {
    "pi": Solver(controller="pi"),
    "pid": Solver(controller="pid"),
    "own controller": Solver(controller=Controller(i=0.3, p=0.2, safety=0.8)),
    "most": Solver(max_step=0.04),
    "least and first": Solver(min_step=1e-4, first_step=0.01, controller="pi"),
    "step_t": Solver(step_t=(0.21, 0.5, 0.77)),
    "vern7": Solver(method="vern7"),
    "dopri8": Solver(method="dopri8"),
    "dop853": Solver(method="dop853"),
}
WAYS = [("shared", "checkpointed"), ("per_sample", "adjoint")]
# Following a program takes seconds: each setting is in every run one way, with --slow all of them.
EVERY_RUN = {
    ("pi", "shared"), ("pid", "per_sample"), ("own controller", "shared"), ("most", "per_sample"),
    ("least and first", "shared"), ("step_t", "per_sample"),
}  # fmt: skip


class Switched(nn.Module):
    """A small network, and a push that changes sign at 0.5."""

    def __init__(self, push: float, dtype: torch.dtype = DTYPE) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(torch.randn(3, 3, generator=generator, dtype=DTYPE).to(dtype))
        self.push = push

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate it."""
        sign = torch.where(t < PLACE, 1.0, -1.0).to(y.dtype)
        return torch.tanh(y @ self.w) * torch.cos(3 * t) + self.push * sign


def run(
    solver: Solver, grid: list[float], jumps: tuple[float, ...] = (), dtype: torch.dtype = DTYPE
) -> tuple[Solution, list[Tensor]]:
    """Values; gradients of y0, the weights and the times."""
    f = Switched(0.7 if jumps else 0.0, dtype)
    y0 = torch.linspace(-1, 1, 6, dtype=dtype).reshape(2, 3).requires_grad_()
    t = torch.tensor(grid, dtype=DTYPE, requires_grad=True)
    solution = solve(ODEProblem(f, y0, t, jump_t=list(jumps) or None), solver)
    assert solution.ok
    assert isinstance(solution.y, Tensor)
    found = torch.autograd.grad((solution.y**2).sum(), [y0, f.w, t])
    return solution, [solution.y.detach(), *found]


def check_agrees(solver: Solver, grid: list[float], jumps: tuple[float, ...] = ()) -> None:
    """Values, gradients and steps as native's."""
    native, wanted = run(solver, grid, jumps)
    compiled, found = run(replace(solver, backend=CompiledBackend()), grid, jumps)
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10)
    ours, theirs = compiled.stats.forward, native.stats.forward
    assert ours.n_steps.tolist() == theirs.n_steps.tolist()
    assert ours.n_rejected.tolist() == theirs.n_rejected.tolist()


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    ("name", "coupling", "gradient"),
    [
        *(
            pytest.param(name, *way, marks=[] if (name, way[0]) in EVERY_RUN else pytest.mark.slow)
            for name in list(SETTINGS)[:6]
            for way in WAYS
        ),
        pytest.param("pid", "per_sample", "checkpointed", marks=pytest.mark.slow),
        pytest.param("pid", "shared", "direct", marks=pytest.mark.slow),
        ("vern7", "per_sample", "checkpointed"),
        pytest.param("dopri8", "shared", "checkpointed", marks=pytest.mark.slow),
        ("dop853", "shared", "direct"),
        pytest.param("dop853", "shared", "adjoint", marks=pytest.mark.slow),
    ],
)
def test_agrees_with_native(name: str, coupling: str, gradient: str) -> None:
    """With outputs inside steps."""
    solver = replace(SETTINGS[name], rtol=1e-5, atol=1e-7)
    solver = replace(solver, coupling=coupling, gradient=gradient)  # pyright: ignore
    check_agrees(solver, [0.0, 0.3, 0.35, 0.8, 1.0])


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    ("coupling", "gradient"), [*WAYS, ("shared", "direct"), ("shared", "adjoint")]
)
@pytest.mark.parametrize(
    "grid", [pytest.param([0.0, 1.0], marks=pytest.mark.slow), [1.0, 0.5, 0.1]], ids=str
)
def test_a_jump_is_passed_as_native_passes_it(
    grid: list[float], coupling: str, gradient: str
) -> None:
    """In both directions, with outputs and ends at its place."""
    solver = Solver(rtol=1e-8, atol=1e-9, coupling=coupling, gradient=gradient)  # pyright: ignore
    check_agrees(solver, grid, (PLACE, 0.9))


@pytest.mark.usefixtures("by_operator")
@pytest.mark.parametrize("grid", [[0.0, PLACE], [1.0, PLACE], [0.0, 1.0]], ids=str)
def test_no_stage_sees_the_other_side_of_a_jump(grid: list[float]) -> None:
    """What is NaN there would show: at the place itself, and on the side that is not solved."""
    low, high = min(grid), max(grid)

    def f(t: Tensor, y: Tensor) -> Tensor:
        outside = (t == PLACE) | (t < low) | (t > high)
        return torch.where(outside, torch.nan, -y)

    solver = Solver(backend=CompiledBackend(), rtol=1e-6, atol=1e-6)
    solution = solve(ODEProblem(f, torch.ones(1, dtype=DTYPE), grid, jump_t=[PLACE]), solver)
    assert solution.ok
    assert bool(torch.isfinite(torch.as_tensor(solution.y)).all())


@pytest.mark.usefixtures("by_operator")
def test_records_that_overflow_do_not_make_a_controller_forget() -> None:
    """Many more steps than a run of the program holds, under PID control."""
    solver = Solver(controller="pid", rtol=1e-12, atol=1e-14, coupling="per_sample")
    solver = replace(solver, gradient="checkpointed")
    check_agrees(solver, [0.0, 0.4, 4.0])


@pytest.mark.usefixtures("either_way")
def test_other_limits_and_stops_need_no_other_program() -> None:
    """They are inputs, whatever their values; stops up to the next power of two."""
    before = None
    for i in range(3):
        size = 0.05 + 0.01 * i
        stops = tuple(0.1 + 0.2 * j + 0.01 * i for j in range(4 - i % 2))
        solver = Solver(rtol=1e-6, atol=1e-8, max_step=size, first_step=size / 3, step_t=stops)
        check_agrees(replace(solver, gradient="checkpointed"), [0.0, 0.3, 1.0])
        assert before is None or counts.compiled == before, "another value compiled again"
        before = counts.compiled


@pytest.mark.usefixtures("by_operator")
@pytest.mark.parametrize("method", [pytest.param("vern7", marks=pytest.mark.slow), "dop853"])
def test_in_float32_a_high_order_interpolant_loses_nothing(method: str) -> None:
    """Its powers cancel: they are added up in float64."""
    solver = Solver(method=method, rtol=1e-4, atol=1e-5, gradient="checkpointed")
    grid = torch.linspace(0, 1, 21).tolist()
    _, wanted = run(solver, grid, dtype=torch.float32)
    _, found = run(replace(solver, backend=CompiledBackend()), grid, dtype=torch.float32)
    eps = torch.finfo(torch.float32).eps
    for x, y in zip(found, wanted, strict=True):
        assert float((x - y).abs().max()) <= 100 * eps * float(y.abs().max())


@pytest.mark.usefixtures("by_operator")
def test_a_step_below_the_least_fails_as_native_says() -> None:
    """With the same status, at the same time."""
    found: list[Any] = []
    for backend in ("native", CompiledBackend()):
        solver = Solver(backend=backend, min_step=1e-2, rtol=1e-8, atol=1e-8)
        y0 = torch.ones(1, dtype=DTYPE)
        found.append(solve(ODEProblem(lambda t, y: y**2, y0, [0.0, 2.0]), solver))
    native, ours = found
    assert ours.status.tolist() == native.status.tolist() == [Status.STEP_TOO_SMALL]
    assert abs(ours.stops[0].t - native.stops[0].t) < 1e-9


class Forgetful(Adaptive):
    """Remembers three numbers, and then two."""

    def judge(
        self, tableau: Tableau, step: Step, size: Tensor, memory: Tensor | None = None
    ) -> Verdict:
        verdict = super().judge(tableau, step, size)
        kept = torch.ones(3 if memory is None else 2, len(size), dtype=step.y0.dtype)
        return verdict._replace(memory=kept)


@pytest.mark.usefixtures("by_operator")
def test_a_control_that_remembers_now_this_now_that_is_refused() -> None:
    """Instead of being told something else than native would tell it."""
    backend = CompiledBackend(control=Forgetful(1e-5, 1e-5, betas=(0.7, -0.4, 0.0)))
    problem = ODEProblem(lambda t, y: -y, torch.ones(2, dtype=DTYPE), [0.0, 1.0])
    with pytest.raises(Unsupported, match="Forgetful, which does not"):
        solve(problem, Solver(backend=backend))


class Halving:
    """A control of one's own that remembers the number of steps."""

    def first(
        self, field: FlatField, tableau: Tableau, span: Span, y0: Tensor, f0: Tensor
    ) -> tuple[Tensor, int]:
        return 0.1 * torch.ones_like(span.t0), 0

    def end(self, t: Tensor, size: Tensor, span: Span) -> Tensor:
        return torch.addcmul(t, span.direction, size)

    def judge(
        self, tableau: Tableau, step: Step, size: Tensor, memory: Tensor | None = None
    ) -> Verdict:
        finite = torch.isfinite(step.y1).all(dim=1)
        before = torch.ones(1, len(size), dtype=step.y0.dtype) if memory is None else memory
        return Verdict(finite, 0.1 / before[0].to(size.dtype), finite, before + 1)


@pytest.mark.usefixtures("by_operator")
def test_what_a_control_of_ones_own_remembers_arrives() -> None:
    """Its steps are native's."""
    problem = ODEProblem(lambda t, y: -y, torch.ones(2, dtype=DTYPE), [0.0, 0.45])
    steps = [
        list(map(float, solve(problem, Solver(backend=backend)).stats.step_times[0]))
        for backend in (NativeBackend(control=Halving()), CompiledBackend(control=Halving()))
    ]
    assert steps[0] == pytest.approx(steps[1])
    assert len(steps[0]) > 5


class Changing:
    """A control whose size is a plain attribute."""

    def __init__(self, size: float) -> None:
        self.size = size
        self.notes = [1, 2]

    def first(
        self, field: FlatField, tableau: Tableau, span: Span, y0: Tensor, f0: Tensor
    ) -> tuple[Tensor, int]:
        return self.size * torch.ones_like(span.t0), 0

    def end(self, t: Tensor, size: Tensor, span: Span) -> Tensor:
        return torch.addcmul(t, span.direction, size)

    def judge(
        self, tableau: Tableau, step: Step, size: Tensor, memory: Tensor | None = None
    ) -> Verdict:
        finite = torch.isfinite(step.y1).all(dim=1)
        return Verdict(finite, size, finite)


@pytest.mark.usefixtures("by_operator")
def test_a_control_that_changes_between_solves_is_seen() -> None:
    """Its attributes are part of the program."""
    control = Changing(0.1)
    problem = ODEProblem(lambda t, y: -y, torch.ones(2, dtype=DTYPE), [0.0, 1.0])
    n_steps: list[int] = []
    for size in (0.1, 0.25):
        control.size = size
        solution = solve(problem, Solver(backend=CompiledBackend(control=control)))
        n_steps.append(int(solution.stats.forward.n_steps))
    assert n_steps == [10, 4]
