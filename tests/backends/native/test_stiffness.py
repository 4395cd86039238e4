"""A failed solve says "stiff" where stability, not accuracy, bounded its steps, and only there."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from ctflow import ODEProblem, SolveFailed, Solver, odeint, solve
from ctflow.backends.native import stiffness
from ctflow.backends.native.methods import METHODS
from ctflow.backends.native.stiffness import fastest_decay, stability_bound
from ctflow.solution import raise_if_failed
from tests.problems import FLOAT, Linear, blow_up


def van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    """At mu = 1000."""
    return torch.stack([y[1], 1000.0 * (1 - y[0] ** 2) * y[1] - y[0]])


def lorenz(t: Tensor, y: Tensor) -> Tensor:
    """Chaotic."""
    x, v, z = y.unbind()
    return torch.stack([10 * (v - x), x * (28 - z) - v, x * v - 8 / 3 * z])


def heat(t: Tensor, y: Tensor) -> Tensor:
    """On a ring of 200 points: more than the Krylov space holds."""
    return 4e4 * (torch.roll(y, 1) - 2 * y + torch.roll(y, -1))


def vector(*values: float) -> Tensor:
    """A state [N]."""
    return torch.tensor(values, dtype=FLOAT)


def failure(f: Callable[[Tensor, Tensor], Tensor], y0: Tensor, end: float, solver: Solver) -> str:
    """What the failure says."""
    with pytest.raises(SolveFailed) as caught:
        odeint(f, y0, [0.0, end], solver=solver)
    return str(caught.value)


STIFF = {
    "van der Pol": (van_der_pol, vector(2.0, 0.0), 2000.0),
    "relaxation": (lambda t, y: -1e4 * (y - torch.cos(t)), vector(1.0), 100.0),
    "heat": (heat, torch.sin(torch.arange(200, dtype=FLOAT)), 10.0),
}


@pytest.mark.parametrize("name", STIFF)
@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "dop853"])
def test_an_explicit_method_on_a_stiff_problem_says_so(name: str, method: str) -> None:
    """The estimate is near 1, and the method that is made for it is named."""
    solver = Solver(method=method, rtol=1e-4, atol=1e-4, max_steps=150)
    said = failure(*STIFF[name], solver)
    assert "MAX_STEPS" in said
    found = re.search(rf"stiff here: .* are ([\d.]+) of what {method} is stable for", said)
    assert found is not None, said
    assert 0.75 < float(found[1]) < 1.3
    assert "method='rodas5p'" in said
    assert "backend='native'" in said


def test_a_stiff_problem_by_default_settings_says_so() -> None:
    """With dopri5 and the default limit of steps."""
    problem = ODEProblem(van_der_pol, vector(2.0, 0.0), [0.0, 2000.0])
    with pytest.raises(SolveFailed, match=r"is stiff here.*'rodas5p'"):
        raise_if_failed(solve(problem, Solver(max_steps=1000)))


PLAIN = {
    "oscillator": (lambda t, y: torch.stack([y[1], -y[0]]), vector(1.0, 0.0), 1e5, {}),
    "damped": (lambda t, y: torch.stack([y[1], -y[0] - 0.1 * y[1]]), vector(1.0, 0.0), 1e5,
               {"rtol": 1e-2}),
    "lorenz": (lorenz, vector(1.0, 1.0, 1.0), 1e3, {}),
    "lorenz, loose": (lorenz, vector(1.0, 1.0, 1.0), 1e3, {"rtol": 1e-3, "atol": 1e-3}),
    "growth": (lambda t, y: y, vector(1.0), 100.0, {}),
    "tight": (lambda t, y: -y, vector(1.0), 100.0, {"rtol": 1e-12, "atol": 1e-14}),
    "forced": (lambda t, y: -y + torch.cos(50 * t), vector(1.0), 100.0, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_a_problem_that_only_ran_out_of_steps_is_not_called_stiff(name: str) -> None:
    """Whatever oscillates, grows, is chaotic, or is followed by many accurate steps."""
    f, y0, end, settings = PLAIN[name]
    said = failure(f, y0, end, Solver(max_steps=40, **settings))
    assert "MAX_STEPS" in said
    assert "stiff" not in said
    assert "rodas5p" not in said


@pytest.mark.parametrize("step", [1e-2, 1e-1])
def test_a_fixed_step_that_is_too_long_for_a_decay_says_so(step: float) -> None:
    """The state overflows; a pole at the same step is no such thing."""
    fixed = Solver(method="rk4", step=step)
    said = failure(lambda t, y: -1e4 * (y - torch.cos(t)), vector(1.0), 100.0, fixed)
    assert "stiff here" in said
    assert "stiff" not in failure(blow_up, vector(1.0), 2.0, fixed)


def test_backwards_in_time_growth_is_what_decays() -> None:
    """Of two rates the growing one, whatever decays beside it forwards."""
    rates = vector(1e4, -2.0)
    backwards = ODEProblem(lambda t, y: rates * (y - torch.cos(t)), vector(1.0, 1.0), [0.0, -10.0])
    stop = solve(backwards, Solver(max_steps=200)).stops[0]
    assert stop.stiffness == pytest.approx(1.0, abs=0.2)


def test_of_a_batch_the_sample_that_failed_is_judged() -> None:
    """Beside a mild one, which arrives."""
    rates = vector(1.0, 1e4)[:, None]
    y0 = torch.ones(2, 1, dtype=FLOAT)
    problem = ODEProblem(lambda t, y: -rates * (y - torch.cos(t)), y0, [0.0, 1.0], batched=True)
    solution = solve(problem, Solver(max_steps=150))
    assert solution.status.tolist() == [0, 1]
    assert solution.stops[0].stiffness == pytest.approx(1.0, abs=0.25)


def test_an_f_that_cannot_be_differentiated_leaves_the_question_open() -> None:
    """Then the message says that it may be."""

    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, y: Tensor) -> Tensor:
            return -1e4 * y

        @staticmethod
        def backward(ctx: object, *_: object) -> Tensor:
            raise RuntimeError("no derivative")

    problem = ODEProblem(lambda t, y: Opaque.apply(y), vector(1.0), [0.0, 100.0])
    with torch.no_grad():
        solution = solve(problem, Solver(max_steps=50))
    assert solution.stops[0].stiffness is None
    with pytest.raises(SolveFailed, match="stiff problem is another possible cause"):
        raise_if_failed(solution)


def test_a_solve_that_succeeds_pays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is estimated; once where it failed."""
    asked: list[int] = []

    def watched(field: object, t: Tensor, y: Tensor, row: int, direction: float) -> float:
        asked.append(row)
        return 1.0

    monkeypatch.setattr(stiffness, "fastest_decay", watched)
    problem = ODEProblem(lambda t, y: -y, vector(1.0), [0.0, 100.0])
    assert solve(problem).ok
    assert asked == []
    assert not solve(problem, Solver(max_steps=20)).ok
    assert asked == [0]


@dataclass
class Counted:
    """A field that counts."""

    net: nn.Module
    calls: int = 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.net(t, y)


@pytest.mark.parametrize("n", [1, 2, 7, 30, 60])
def test_the_fastest_decay_is_that_of_the_eigenvalues(n: int) -> None:
    """Exact up to 30 variables; beyond them for what stands out, by one evaluation."""
    generator = torch.Generator().manual_seed(n)
    a = torch.randn(n, n, dtype=FLOAT, generator=generator)
    a[0, 0] -= 50.0
    field = Counted(Linear(a))
    y = torch.zeros(2, n, dtype=FLOAT)
    found = fastest_decay(field, torch.zeros(2, dtype=FLOAT), y, 1)
    assert found == pytest.approx(float(-torch.linalg.eigvals(a).real.min()), rel=1e-6)
    assert field.calls == 1


@pytest.mark.parametrize(
    ("name", "bound"),
    [("euler", 2.0), ("midpoint", 2.0), ("bosh3", 2.51), ("rk4", 2.78), ("dopri5", 3.3)],
)
def test_the_bound_of_stability_is_the_published_one(name: str, bound: float) -> None:
    """Hairer, Wanner II, section IV.2; by the method's own stability function."""
    assert stability_bound(METHODS[name]) == pytest.approx(bound, abs=0.02)


@pytest.mark.parametrize("name", METHODS)
def test_every_explicit_method_has_a_bound(name: str) -> None:
    """So that every failure can be judged."""
    assert 1.9 < stability_bound(METHODS[name]) < 10
