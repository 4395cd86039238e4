"""The note on smoothness says what a kink costs: the evaluations with it, and without it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ctflow.testing import inspect_dynamics
from ctflow.testing.examples import Box
from ctflow.testing.smoothing import Smoothing
from ctflow.testing.subject import Subject
from tests.problems import FLOAT
from tests.testing.broken_dynamics import OnState

PRICE = re.compile(r"from a random place in the box it takes (\d+) evaluations, and (\d+) (.*)$")
STATES = torch.zeros(8, 2, dtype=FLOAT)


def network(activation: nn.Module) -> OnState:
    """Two hidden layers, with weights of a size that training leads to."""
    torch.manual_seed(0)
    layers = [nn.Linear(2, 32), activation, nn.Linear(32, 32), activation, nn.Linear(32, 2)]
    net = nn.Sequential(*layers).to(FLOAT)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2.0)
    return OnState(net)


def price(f: Callable[..., Tensor]) -> tuple[int, int, str]:
    """Evaluations with and without the kinks, and how they were rounded off."""
    note = inspect_dynamics(f, STATES, compiled=False).note("smoothness")
    found = PRICE.search(note)
    assert found is not None, note
    return int(found[1]), int(found[2]), found[3]


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (nn.ReLU(), "relu"),
        (nn.ReLU(inplace=True), "relu"),
        (nn.LeakyReLU(), "leaky_relu"),
        (nn.PReLU(dtype=FLOAT), "_prelu_kernel"),
        (nn.Hardtanh(), "hardtanh"),
        (nn.ReLU6(), "hardtanh"),
        (nn.Hardswish(), "hardswish"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_a_kinked_activation_costs_more_than_twice_a_smooth_one(
    activation: nn.Module, name: str
) -> None:
    """Counted in solves of the same network from the same state."""
    kinked, smooth, how = price(network(activation))
    assert how == f"with {name.strip('_').removesuffix('_kernel')} rounded off"
    assert kinked > 1.5 * smooth if name == "hardswish" else kinked > 2 * smooth


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "abs": lambda t, y: y.abs() - 2 * y.flip(-1),
    "clamp": lambda t, y: 4 * y.clamp(-0.5, 0.5) - 2 * y.flip(-1),
    "a comparison of states": lambda t, y: torch.where(y > 0.3, y, 0.3) - 3 * y.flip(-1),
    "a comparison of times": lambda t, y: torch.where(t < 0.5, 3.0, -1.0) * y,
    "a mask": lambda t, y: (y > 0) * y * 3 - 2 * y.flip(-1),
    "a filled mask": lambda t, y: y.masked_fill(y > 0, 0.0) - 2 * y.flip(-1),
    "a gate": lambda t, y: (y > 0).to(y.dtype) * y * 3 - 2 * y.flip(-1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_count_as_modules_do(name: str) -> None:
    """What a lambda calls is seen as well, choices by comparison among it."""
    kinked, smooth, how = price(FUNCTIONS[name])
    assert kinked > 1.2 * smooth
    assert how.endswith("rounded off")


def test_a_kink_of_unknown_origin_is_averaged_over() -> None:
    """Straight lines between the entries of a table."""
    table = torch.linspace(-4, 4, 33, dtype=FLOAT)
    values = torch.sin(3 * table)

    def interpolated(t: Tensor, y: Tensor) -> Tensor:
        i = torch.searchsorted(table, y.contiguous()).clamp(1, 32)
        share = (y - table[i - 1]) / (table[i] - table[i - 1])
        return torch.lerp(values[i - 1], values[i], share)

    kinked, smooth, how = price(interpolated)
    assert kinked > 1.5 * smooth
    assert how == "as an average over small shifts of `y`"


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.GELU(), nn.Softplus()])
def test_a_smooth_activation_has_no_price(activation: nn.Module) -> None:
    """There is nothing to round off."""
    note = inspect_dynamics(network(activation), STATES, compiled=False).note("smoothness")
    assert note.startswith("no kink seen")
    assert "rounded off" not in note


def test_a_guard_that_never_acts_is_no_kink() -> None:
    """A clamp far below what it is given."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -torch.log((1 + y * y).clamp(min=1e-6))

    assert inspect_dynamics(f, STATES, compiled=False).note("smoothness").startswith("no kink")


def test_rounded_off_it_is_the_gelu_of_the_same_width() -> None:
    """For inputs with a spread of 1; and near the original where that is large."""
    box = Box(STATES, -(3**0.5), 3**0.5, 0.0, 1.0, True)
    subject = Subject(lambda t, y: torch.relu(y), None, box, box.cases(400, 0)[3:], 0)
    smoothing = Smoothing(subject)
    y = torch.linspace(-6, 6, 50, dtype=FLOAT)
    found = smoothing.field(torch.tensor(0.0), y)
    torch.testing.assert_close(found, nn.functional.gelu(y), atol=0.02, rtol=0)
    assert smoothing.names == ("relu",)
