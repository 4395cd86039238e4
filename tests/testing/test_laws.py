"""Declared laws: a field that obeys passes, one that does not fails under the law's name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctflow.testing import (
    Autonomous,
    Conserves,
    DivergenceFree,
    Equivariant,
    FlowProperty,
    Hamiltonian,
    Law,
    Linear,
    TimeReversal,
    inspect_dynamics,
)
from tests.problems import FLOAT
from tests.testing.broken_dynamics import Remembering, network, state


def pendulum(t: Tensor, y: Tensor) -> Tensor:
    """Angle and speed."""
    return torch.stack([y[..., 1], -torch.sin(y[..., 0])], dim=-1)


def damped(t: Tensor, y: Tensor) -> Tensor:
    """The same with friction."""
    return pendulum(t, y) - torch.tensor([0.0, 0.1], dtype=FLOAT) * y


def energy(y: Tensor) -> Tensor:
    """Of the pendulum, for each sample."""
    return 0.5 * y[..., 1] ** 2 - torch.cos(y[..., 0])


def turn(y: Tensor) -> Tensor:
    """Rotate states by half a radian."""
    c, s = math.cos(0.5), math.sin(0.5)
    return torch.stack([c * y[..., 0] - s * y[..., 1], s * y[..., 0] + c * y[..., 1]], dim=-1)


def mirror(y: Tensor) -> Tensor:
    """Reverse the speed."""
    return torch.stack([y[..., 0], -y[..., 1]], dim=-1)


def inwards(t: Tensor, y: Tensor) -> Tensor:
    """Towards the origin, the same from all sides."""
    return -y * (y * y).sum(-1, keepdim=True)


Field = Callable[..., Any]
LAWS: dict[str, tuple[Law, Callable[[], Field], Callable[[], Field]]] = {
    "linear": (Linear(), lambda: lambda t, y: t * y.flip(-1), lambda: lambda t, y: y + 1),
    "autonomous": (Autonomous(), lambda: pendulum, lambda: lambda t, y: t * y),
    "conserves": (Conserves(energy), lambda: pendulum, lambda: damped),
    "hamiltonian": (Hamiltonian(energy), lambda: pendulum, lambda: lambda t, y: -pendulum(t, y)),
    "divergence_free": (DivergenceFree(), lambda: pendulum, lambda: damped),
    "equivariant": (Equivariant(turn), lambda: inwards, lambda: pendulum),
    "time_reversal": (TimeReversal(mirror), lambda: pendulum, lambda: damped),
    "flow": (FlowProperty(), lambda: damped, lambda: lambda t, y: -40 * y),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_field_that_obeys_passes(name: str) -> None:
    """On all examples."""
    law, right, _ = LAWS[name]
    report = inspect_dynamics(right(), state(), laws=[law], compiled=False)
    assert not report.failures, str(report)
    assert name in [finding.name for finding in report.having("passed")]


@pytest.mark.parametrize("name", LAWS)
def test_a_field_that_does_not_fails_under_the_name_of_the_law(name: str) -> None:
    """With an example and a cause."""
    law, _, wrong = LAWS[name]
    report = inspect_dynamics(wrong(), state() + 0.3, laws=[law], compiled=False, box=(0.1, 2))
    assert report.failed == (name,), str(report)
    assert report.failures[0].example
    assert report.failures[0].cause


def test_a_law_says_nothing_of_a_field_that_does_not_repeat_itself() -> None:
    """The fault is named once."""
    report = inspect_dynamics(Remembering(), state(), laws=[Linear()], compiled=False)
    assert report.failed == ("repeatable",)
    assert "says nothing without repeatable" in report.note("linear")


def test_a_network_breaks_conservation() -> None:
    """Nothing in its structure keeps an energy."""
    net = nn.Sequential(network())
    report = inspect_dynamics(
        lambda t, y: net(y), state(), laws=[Conserves(energy)], compiled=False
    )
    assert report.failed == ("conserves",)


def test_leaves_may_come_back_in_another_order() -> None:
    """A dict's keys belong together, however they are ordered."""

    def f(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"v": -torch.sin(y["x"]), "x": y["v"]}

    def total(y: dict[str, Tensor]) -> Tensor:
        return (0.5 * y["v"] ** 2 - torch.cos(y["x"])).sum(-1)

    states = {"x": state(), "v": state() + 0.3}
    assert inspect_dynamics(f, states, laws=[Conserves(total)], compiled=False).ok


def test_what_a_quantity_does_not_depend_on_counts_nothing() -> None:
    """A leaf that it leaves out may do as it likes."""

    def f(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"x": pendulum(t, y["x"]), "clock": torch.ones_like(y["clock"])}

    states = {"x": state(), "clock": state()[:, :1]}
    law = Conserves(lambda y: energy(y["x"]))
    assert inspect_dynamics(f, states, laws=[law], compiled=False).ok


def test_divergence_is_that_of_each_sample() -> None:
    """Growth of one does not make up for the decay of another."""
    signs = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=FLOAT)
    law = DivergenceFree()
    report = inspect_dynamics(
        lambda t, y, s: s * y, state(), args=signs, laws=[law], compiled=False
    )
    assert report.failed == ("divergence_free",)


QUANTITIES: dict[str, tuple[Law, str]] = {
    "a key of a tensor": (Conserves(lambda y: y["q"]), "must be a function of the state"),
    "a number for each variable": (Conserves(lambda y: y), "must return one number"),
    "a constant": (Conserves(lambda y: y.detach().sum(-1)), "must depend on the state"),
    "an energy that is a float": (Hamiltonian(lambda y: 1.0), "must return one number"),  # pyright: ignore
}


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("name", QUANTITIES)
def test_a_quantity_that_is_none_is_told_as_that(name: str) -> None:
    """The field may be right."""
    law, words = QUANTITIES[name]
    report = inspect_dynamics(pendulum, state(), laws=[law], compiled=False)
    assert words in report.failures[0].what, str(report)


def test_positions_and_momenta_stand_side_by_side() -> None:
    """Three variables have no halves."""
    law = Hamiltonian(lambda y: y.sum(-1))
    report = inspect_dynamics(lambda t, y: -y, torch.ones(4, 3, dtype=FLOAT), laws=[law])
    assert "[..., 2 N]" in report.failures[0].what
