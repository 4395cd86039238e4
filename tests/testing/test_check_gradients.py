"""`check_gradients`: all gradients agree, or the one that does not is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ctflow import InvalidProblem, ODEProblem, Solver
from ctflow.backends import Feature, available, get
from ctflow.testing import CheckFailed, check_gradients, every_solver, inspect_gradients
from tests.problems import FLOAT, decay
from tests.testing.broken_dynamics import WrongSine, network


def forced(batched: bool = False) -> ODEProblem:
    """A network with parameters, an argument, a time-dependent rate and an interior output."""
    net = network()

    def f(t: Tensor, y: Tensor, args: dict[str, Tensor]) -> Tensor:
        return torch.sin(t) * net(y) + args["force"]

    y0 = torch.linspace(-1, 1, 6, dtype=FLOAT).reshape(3, 2)
    args = {"force": torch.ones(2, dtype=FLOAT)}
    return ODEProblem(f, y0, [0.0, 0.4, 1.0], args=args, batched=batched)


@pytest.mark.parametrize("batched", [False, True])
def test_every_gradient_of_every_backend_agrees(batched: bool) -> None:
    """Backends that are installed join by themselves, one line for each gradient method."""
    problem = forced(batched)
    report = check_gradients(problem)
    routes = list(every_solver(problem))
    offered = {Feature.DIRECT, Feature.CHECKPOINTED, Feature.ADJOINT}
    names = {str(solver.backend) for solver in routes}
    assert names == set(available()) - {"compiled"}
    assert len(routes) == sum(len(offered & get(name).features) for name in names)
    assert len(report.having("passed")) == len(routes) + 4  # y0, params, args, t by differences


@pytest.mark.parametrize("shape", ["tuple", "dict", "times of each sample", "backwards"])
def test_structures_and_times_of_all_kinds(shape: str) -> None:
    """Nothing but the state's dtype is asked for."""
    y0, t = torch.ones(2, 3, dtype=FLOAT), torch.tensor([0.0, 1.0], dtype=FLOAT)
    problems = {
        "tuple": ODEProblem(lambda t, y: (y[1], -y[0]), (y0, 2 * y0), t),
        "dict": ODEProblem(lambda t, y: {"a": torch.cos(t) * y["a"]}, {"a": y0}, t),
        "times of each sample": ODEProblem(decay, y0, torch.stack([t, 2 * t]), batched=True),
        "backwards": ODEProblem(lambda t, y: t * y, y0, t.flip(0)),
    }
    assert check_gradients(problems[shape], [Solver(), Solver(gradient="adjoint")]).ok


def test_a_wrong_derivative_of_the_field_fails_by_differences() -> None:
    """All backends agree on the wrong gradient; finite differences do not."""
    problem = ODEProblem(lambda t, y: WrongSine.apply(y), torch.ones(2, dtype=FLOAT), [0.0, 1.0])
    report = inspect_gradients(problem, ["native"])
    assert "finite differences of y0" in report.failed
    assert "native" not in report.failed


def test_a_gradient_that_is_no_number_fails() -> None:
    """By differences, and for every solver."""
    scale = torch.zeros((), dtype=FLOAT, requires_grad=True)
    y0 = torch.ones(2, dtype=FLOAT)
    problem = ODEProblem(lambda t, y: -y + 0 * torch.sqrt(scale), y0, [0.0, 1.0])
    report = inspect_gradients(problem, ["native"])
    assert {"finite differences of params", "native"} <= set(report.failed), str(report)


def test_a_tolerance_that_is_too_loose_is_named() -> None:
    """A gradient further off than a hundredth is wrong, whatever was asked for."""
    a = torch.tensor(1.0, dtype=FLOAT, requires_grad=True)
    problem = ODEProblem(
        lambda t, y: (torch.sin(5 * a * t) - 1) * y,
        torch.ones(1, dtype=FLOAT),
        [0.0, 5.0],
    )
    loose = Solver(backend="torchdiffeq", rtol=1e-3, atol=1e-6)
    with pytest.raises(CheckFailed, match="FAILED torchdiffeq: the gradient of"):
        check_gradients(problem, [loose], loss=lambda y: y[-1].sum())


def test_what_a_solver_refuses_is_shown_and_fails_nothing() -> None:
    """It is a limit, said in words."""
    report = check_gradients(forced(), [Solver(backend="torchdiffeq", gradient="checkpointed")])
    assert "checkpointed" in report.note("torchdiffeq checkpointed")


def test_inputs_and_parameters_are_left_as_they_were() -> None:
    """Finite differences move them and put them back."""
    rate = torch.tensor(0.5, dtype=FLOAT, requires_grad=True)
    y0 = torch.ones(2, dtype=FLOAT)
    check_gradients(ODEProblem(lambda t, y: -rate * y, y0, [0.0, 1.0]), ["native"])
    assert (rate.item(), rate.grad, y0.requires_grad) == (0.5, None, False)


def test_float32_is_refused() -> None:
    """Differences would measure rounding."""
    with pytest.raises(InvalidProblem, match="float64"):
        check_gradients(ODEProblem(decay, torch.ones(2), [0.0, 1.0]))


def test_what_compiles_first_is_skipped_with_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report tells how to have it."""
    names = ("native", "compiled")
    monkeypatch.setattr("ctflow.testing.routes.registry.available", lambda: names)
    report = check_gradients(forced())
    assert "every_solver(problem, ['compiled'])" in report.note("compiled")
    assert all(f.name.startswith(("native", "finite")) for f in report.having("passed"))
