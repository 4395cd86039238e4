"""PI and PID control, limits of the step, and times to step on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ctflow import (
    Controller,
    InvalidProblem,
    ODEProblem,
    SDEProblem,
    Solution,
    Solver,
    Status,
    Unsupported,
    solve,
    solve_sde,
)
from ctflow.backends.native.backend import NativeBackend
from ctflow.backends.native.control import Adaptive, Fixed
from ctflow.backends.native.methods import METHODS
from ctflow.backends.native.step import Step
from tests.checks import check_relative
from tests.problems import FLOAT, blow_up, decay, limit_cycle, row_wise

pytestmark = pytest.mark.once

DOPRI5, E = METHODS["dopri5"], METHODS["dopri5"].e or ()
NAMES = ["i", "pi", "pid", Controller(i=0.3, p=0.2, safety=0.8)]
controllers = pytest.mark.parametrize("controller", NAMES, ids=str)
Y0 = torch.tensor([0.2, 0.1], dtype=FLOAT)


def step_with_error(*errors: float) -> Step:
    """A step of length 1 for each sample, whose error estimate is so many tolerances of 1e-3."""
    zero = torch.zeros(len(errors), 1, dtype=FLOAT)
    k = torch.tensor(errors, dtype=FLOAT).unsqueeze(1) * 1e-3 / E[0]
    t0 = torch.zeros(len(errors), dtype=FLOAT)
    return Step(t0, t0 + 1, zero, zero, zero + 1, (k, *[zero] * 6))


def sizes(
    betas: tuple[float, float, float], errors: list[float], tried: float = 1.0
) -> list[float]:
    """Sizes after steps of length 1 with such errors, one after the other."""
    control = Adaptive(1e-3, 1e-3, betas=betas)
    memory, found = None, list[float]()
    for error in errors:
        size = torch.tensor([tried], dtype=FLOAT)
        verdict = control.judge(DOPRI5, step_with_error(error), size, memory)
        memory = verdict.memory
        found.append(verdict.size.item())
    return found


def run(f: Any, y0: Tensor, t: list[float], **settings: Any) -> Solution:  # noqa: ANN401
    """One system."""
    return solve(ODEProblem(f, y0, t), Solver(**settings))  # pyright: ignore


EXPONENTS = {
    "i": (1.0, 0.0, 0.0),
    "pi": (0.7, -0.4, 0.0),  # Gustafsson; PI34
    "pi33": (2 / 3, -1 / 3, 0.0),
    "pi42": (3 / 5, -1 / 5, 0.0),
    "pi_dopri5": (5 * (0.2 - 0.75 * 0.04), -5 * 0.04, 0.0),  # dopri5.f: expo1 and beta
    "h211pi": (1 / 6, 1 / 6, 0.0),
    "h312pid": (1 / 18, 1 / 9, 1 / 18),
    "pid": (0.58, -0.21, 0.1),  # ARKODE
}


@pytest.mark.parametrize("name", EXPONENTS)
def test_the_coefficients_are_those_of_their_sources(name: Any) -> None:  # noqa: ANN401
    """As exponents of the last three errors, times -k."""
    assert Solver(controller=name).coefficients.betas == pytest.approx(EXPONENTS[name])


@pytest.mark.parametrize("name", EXPONENTS)
def test_at_a_constant_error_every_controller_finds_the_step_that_meets_the_tolerance(
    name: Any,  # noqa: ANN401
) -> None:
    """Error h^5: h becomes 0.9^(1 / the sum of the exponents) of the tolerance's own step."""
    solver = Solver(controller=name)
    control = Adaptive(1e-3, 1e-3, betas=solver.coefficients.betas)
    memory, h = None, torch.tensor([0.5], dtype=FLOAT)
    for _ in range(60):
        verdict = control.judge(DOPRI5, step_with_error(float(h) ** 5), torch.ones(1), memory)
        h, memory = h * verdict.size, verdict.memory
    assert float(h) == pytest.approx(0.9 ** (1 / sum(solver.coefficients.betas)), rel=1e-6)


def test_pi_control_follows_its_formula() -> None:
    """0.9 r_n^(-0.7/5) r_(n-1)^(0.4/5), with 1 before the first."""
    found = sizes((0.7, -0.4, 0.0), [0.5, 0.2, 0.9])
    wanted = [0.9 * 0.5**-0.14, 0.9 * 0.2**-0.14 * 0.5**0.08, 0.9 * 0.9**-0.14 * 0.2**0.08]
    assert found == pytest.approx(wanted, rel=1e-12)


def test_pid_control_remembers_two_errors() -> None:
    """r_n^(-0.58/5) r_(n-1)^(0.21/5) r_(n-2)^(-0.1/5)."""
    found = sizes((0.58, -0.21, 0.1), [0.5, 0.2, 0.9])[-1]
    assert found == pytest.approx(0.9 * 0.9**-0.116 * 0.2**0.042 * 0.5**-0.02, rel=1e-12)


def test_a_rejected_step_is_repeated_by_its_own_error_and_not_remembered() -> None:
    """0.9 r^(-1/5) for the repetition; the next accepted steps know nothing of its error."""
    found = sizes((0.7, -0.4, 0.0), [0.5, 4.0, 0.9, 0.3])
    assert found[1] == pytest.approx(0.9 * 4.0**-0.2)
    assert found[2] == pytest.approx(0.9 * 0.9**-0.14 * 0.5**0.08)
    assert found[3] == pytest.approx(0.9 * 0.3**-0.14 * 0.9**0.08)


@pytest.mark.parametrize("betas", [(1.0, 0.0, 0.0), (0.7, -0.4, 0.0)])
def test_the_step_after_a_repeated_one_is_no_longer_than_it(betas: Any) -> None:  # noqa: ANN401
    """However small its error (Hairer I, II.4); the one after that may be."""
    _, repeated, after = sizes(betas, [4.0, 1e-6, 1e-6])
    assert repeated == 1.0
    assert after > 2.0


@pytest.mark.parametrize("error", [0.0, 1e-12, math.nan, math.inf, 1e30])
def test_extreme_errors_stay_within_the_factors(error: float) -> None:
    """From a fifth to ten times the step."""
    for size in sizes((0.58, -0.21, 0.1), [error, error, 0.5]):
        assert 0.2 <= size <= 10.0


def test_a_step_that_was_cut_short_neither_shortens_the_next_nor_is_remembered() -> None:
    """Its small error says nothing of full steps."""
    assert sizes((0.7, -0.4, 0.0), [1e-6], tried=40.0) == [40.0]
    control = Adaptive(1e-3, 1e-3, betas=(0.7, -0.4, 0.0))
    cut = control.judge(DOPRI5, step_with_error(1e-6), torch.tensor([40.0], dtype=FLOAT))
    assert cut.memory is not None
    assert torch.equal(cut.memory, control.blank(torch.zeros(1, dtype=FLOAT)))


@controllers
@pytest.mark.parametrize("method", ["bosh3", "tsit5", "dop853"])
@pytest.mark.parametrize("rtol", [1e-4, 1e-8])
def test_every_controller_holds_the_tolerance(controller: Any, method: str, rtol: float) -> None:  # noqa: ANN401
    """On the limit cycle, at every output."""
    t = torch.linspace(0, 8, 20, dtype=FLOAT)
    solver = Solver(method=method, rtol=rtol, atol=rtol * 1e-2, controller=controller)
    y = solve(ODEProblem(limit_cycle.f, Y0, t), solver).y
    check_relative(y, limit_cycle.exact(t, t[0], Y0), rtol=10 * rtol)


def test_pi_control_rejects_fewer_steps_where_the_stability_limit_rules() -> None:
    """What it is for (Hairer II, IV.2): y' = -200 (y - cos t) under dopri5."""

    def stiff(t: Tensor, y: Tensor) -> Tensor:
        return -200 * (y - torch.cos(t))

    rejected = {
        name: int(run(stiff, torch.ones(1, dtype=FLOAT), [0.0, 10.0], rtol=1e-4, atol=1e-4,
                      controller=name).stats.forward.n_rejected)
        for name in ("i", "pi")
    }  # fmt: skip
    assert rejected["pi"] < rejected["i"] / 2


@controllers
@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "adjoint"])
def test_gradients_do_not_depend_on_the_controller(controller: Any, gradient: str) -> None:  # noqa: ANN401
    """Right by the tolerance with each."""
    y0 = Y0.clone().requires_grad_()
    found = run(limit_cycle.f, y0, [0.0, 2.0], rtol=1e-9, atol=1e-10, gradient=gradient,
                controller=controller).y[-1].sum()  # fmt: skip
    t = torch.tensor([0.0, 2.0], dtype=FLOAT)
    exact = limit_cycle.exact(t[1], t[0], y0).sum()
    slopes = [torch.autograd.grad(x, y0)[0] for x in (found, exact)]
    check_relative(*slopes, rtol=1e-7)


@controllers
def test_the_result_of_a_sample_does_not_depend_on_its_batch(controller: Any) -> None:  # noqa: ANN401
    """Bits and costs, with a memory for each sample."""
    y0 = torch.randn(5, 3, dtype=FLOAT, generator=torch.Generator().manual_seed(0)) * 3
    t = [0.0, 0.4, 3.0]
    solver = Solver(controller=controller, rtol=1e-5, atol=1e-5, max_step=0.5, step_t=(0.3, 1.1))
    batch = solve(ODEProblem(row_wise, y0, t, batched=True), solver)  # pyright: ignore
    for b in range(5):
        alone = solve(ODEProblem(row_wise, y0[b : b + 1], t, batched=True), solver)  # pyright: ignore
        assert torch.equal(batch.y[:, b], alone.y[:, 0])
        for name, column in vars(batch.stats.forward).items():
            assert column[b] == getattr(alone.stats.forward, name)[0], name


def test_no_step_is_longer_than_the_largest() -> None:
    """Also the first."""
    steps = run(decay, Y0, [0.0, 2.0], max_step=0.1).stats.step_times[0].diff()
    assert steps.max() <= 0.1 * (1 + 1e-9)
    assert len(steps) >= 20


def test_a_pulse_that_lies_between_steps_is_found_with_a_largest_step() -> None:
    """Undetected by the default, which jumps over it: y = 0 where it should be 1."""

    def pulse(t: Tensor, y: Tensor) -> Tensor:
        width = 0.05
        return torch.exp(-(((t - 50) / width) ** 2) / 2).expand_as(y) / width / 2.5066282746

    zero = torch.zeros(1, dtype=FLOAT)
    found = [float(run(pulse, zero, [0.0, 100.0], **own).y[-1])
             for own in ({}, {"max_step": 0.2}, {"step_t": [49.9, 50.0]})]  # fmt: skip
    assert found == pytest.approx([0.0, 1.0, 1.0], abs=1e-4)


def test_a_sample_that_needs_a_smaller_step_than_allowed_fails() -> None:
    """It is neither cut off nor taken all the same."""
    problem = ODEProblem(
        blow_up, torch.tensor([[0.5], [2.0]], dtype=FLOAT), [0.0, 1.0], batched=True
    )  # pyright: ignore
    solution = solve(problem, Solver(min_step=1e-3, rtol=1e-8, atol=1e-8))
    assert solution.status.tolist() == [Status.OK, Status.STEP_TOO_SMALL]
    assert solution.stats.step_times[1].diff().nan_to_num(1.0).min() >= 1e-3 * (1 - 1e-9)


def test_the_smallest_step_is_taken_where_the_errors_would_shorten_it() -> None:
    """Steps of the least size are tried before a sample is given up."""
    steps = run(decay, Y0, [0.0, 1.0], min_step=0.2, rtol=1e-3, atol=1e-3).stats.step_times[0]
    assert steps.diff()[:-1].min() >= 0.2 * (1 - 1e-9)


def test_the_first_step_is_the_given_one() -> None:
    """And spares the evaluation that looks for one."""
    own, found = (run(decay, Y0, [0.0, 1.0], first_step=s).stats for s in (1e-3, None))
    assert own.step_times[0, 1] == 1e-3
    first = own.forward.n_f_evals - 6 * own.forward.n_steps
    assert first == found.forward.n_f_evals - 6 * found.forward.n_steps - 1


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("settings", [{}, {"method": "rk4", "step": 0.3}, {"controller": "pi"}])
def test_steps_end_at_the_given_times(direction: int, settings: dict[str, Any]) -> None:
    """In both directions; those outside are left out."""
    stops = [0.7, 0.2, 5.0, -5.0, 0.0, 0.7]
    step_t = [direction * x for x in stops]
    times = run(decay, Y0, [0.0, direction * 1.0], step_t=step_t, **settings).stats.step_times[0]
    assert {0.2, 0.7} <= {abs(x) for x in times.tolist()}


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "adjoint"])
def test_the_backward_pass_steps_there_too(gradient: str) -> None:
    """Gradients are right; the adjoint's own solve stops at each."""
    y0 = Y0.clone().requires_grad_()
    stops = [0.1 * i for i in range(1, 20)]
    solution = run(limit_cycle.f, y0, [0.0, 2.0], rtol=1e-8, atol=1e-8, gradient=gradient,
                   step_t=stops)  # fmt: skip
    (found,) = torch.autograd.grad(solution.y[-1].sum(), y0)
    t = torch.tensor([0.0, 2.0], dtype=FLOAT)
    (wanted,) = torch.autograd.grad(limit_cycle.exact(t[1], t[0], y0).sum(), y0)
    check_relative(found, wanted, rtol=1e-6)
    assert solution.stats.backward is not None
    if gradient != "direct":
        assert int(solution.stats.backward.n_accepted) >= 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"controller": "pdi"}, "`controller` must be one of 'i', 'pi'"),
        ({"min_step": 0.0}, "`min_step` must be finite and positive"),
        ({"max_step": math.inf}, "`max_step` must be finite and positive"),
        ({"first_step": -1.0}, "`first_step` must be finite and positive"),
        ({"min_step": 0.2, "max_step": 0.1}, "`min_step` must not be above `max_step`"),
        ({"step": 0.1, "controller": "pi"}, "belong to adaptive steps"),
        ({"step": 0.1, "max_step": 0.1}, "belong to adaptive steps"),
        ({"step_t": [0.1, math.nan]}, "`step_t` must be finite numbers"),
        ({"step_t": 0.5}, "`step_t` must be finite numbers"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    """When the settings are made."""
    with pytest.raises(InvalidProblem, match=message):
        Solver(**settings)


@pytest.mark.parametrize(
    "values", [{"i": 0.0}, {"p": math.nan}, {"safety": 1.1}, {"shrink": 0.0}, {"grow": 1.0}]
)
def test_a_controller_that_cannot_work_is_refused(values: dict[str, float]) -> None:
    """When it is made."""
    with pytest.raises(InvalidProblem, match="must"):
        Controller(**values)


SETTINGS = [{"controller": "pi"}, {"max_step": 0.1}, {"step_t": [0.5]}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("backend", ["torchdiffeq", "scipy"])
def test_backends_that_cannot_refuse_by_name(backend: str, settings: dict[str, Any]) -> None:
    """Nothing that was written is left out in silence."""
    pytest.importorskip(backend)
    with pytest.raises(Unsupported, match=r"`controller`.*`step_t`"):
        run(decay, Y0, [0.0, 1.0], backend=backend, **settings)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_stochastic_equations_refuse_them(settings: dict[str, Any]) -> None:
    """By name."""
    pytest.importorskip("torchsde")
    problem = SDEProblem(decay, lambda t, y: torch.ones_like(y), Y0[None], [0.0, 1.0])  # pyright: ignore
    with pytest.raises(Unsupported, match="takes no `controller`"):
        solve_sde(problem, Solver("torchsde", **settings))


def test_a_control_of_ones_own_refuses_a_controller_beside_it() -> None:
    """One of them would be left out."""
    with pytest.raises(Unsupported, match="its own `control`"):
        run(decay, Y0, [0.0, 1.0], backend=NativeBackend(control=Fixed(0.1)), controller="pi")


@pytest.mark.parametrize("controller", ["i", pytest.param("pid", marks=pytest.mark.slow)])
def test_a_limit_that_never_binds_changes_no_adjoint(controller: str) -> None:
    """A sample that has arrived takes steps of length 0, which are no step below the least."""
    generator = torch.Generator().manual_seed(0)
    w = 0.6 * torch.randn(3, 3, generator=generator, dtype=FLOAT) + torch.eye(3, dtype=FLOAT)
    w.requires_grad_()

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t < 0.4, 1.0, 3.0) * torch.tanh(y @ w.T) - y * torch.sin(8 * t)

    for _ in range(12):
        y0 = torch.randn(4, 3, generator=generator, dtype=FLOAT, requires_grad=True)
        problem = ODEProblem(f, y0, [0.0, 0.33, 0.7, 1.2], batched=True)
        found: list[Tensor] = []
        for most in (None, 10.0):
            solver = Solver(
                gradient="adjoint", rtol=1e-5, atol=1e-7, max_step=most, controller=controller
            )
            found.append(torch.autograd.grad(solve(problem, solver).y.sum(), w)[0])  # pyright: ignore
        assert torch.equal(*found)


def test_a_first_step_outside_the_limits_is_refused() -> None:
    """On either side."""
    for limits in ({"max_step": 0.05}, {"min_step": 2.0}):
        with pytest.raises(InvalidProblem, match="`first_step` must lie between"):
            Solver(first_step=1.0, **limits)
