"""Callbacks of torchdiffeq."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ctflow.compat.torchdiffeq import odeint, odeint_adjoint
from tests.compat.fields import DOUBLE, GRID, IMPLICIT, Count, Network, start, times

_NAMES = ("callback_step", "callback_accept_step", "callback_reject_step")


@pytest.mark.parametrize("method", ["dopri5", "adaptive_heun"])
def test_every_attempt_is_told_and_then_what_became_of_it(method: str) -> None:
    """Forward and backward."""
    f = Count(Network(), *_NAMES, *(f"{name}_adjoint" for name in _NAMES))
    y = odeint_adjoint(f, start(), times(), rtol=1e-5, atol=1e-5, method=method)
    y.sum().backward()
    n = {name: len(seen) for name, seen in f.seen.items()}
    for end in ("", "_adjoint"):
        assert n[f"callback_step{end}"] > 0
        both = n[f"callback_accept_step{end}"] + n[f"callback_reject_step{end}"]
        assert n[f"callback_step{end}"] == both


@pytest.mark.parametrize("method", [*GRID, *IMPLICIT])
def test_steps_on_a_grid_are_told(method: str) -> None:
    """One for each, forward and backward."""
    f = Count(lambda t, y: -y, "callback_step", "callback_step_adjoint")
    y = odeint_adjoint(f, start(), times(2, 1.0), method=method, options={"step_size": 0.1})
    y.sum().backward()
    assert [len(seen) for seen in f.seen.values()] == [10, 10]


def test_a_callback_is_told_before_the_step_where_it_stands() -> None:
    """With the state in the caller's structure, the caller's time, and a positive size."""
    order: list[str] = []

    class Pair:
        def __call__(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            order.append("f")
            return -y[0], -y[1]

        def callback_step(self, t0: Tensor, y0: tuple[Tensor, Tensor], dt: Tensor) -> None:
            order.append("step")
            assert float(dt) > 0
            torch.testing.assert_close(y0[1], torch.exp(2 - t0).expand(3), rtol=0.1, atol=0)
            assert t0.shape == dt.shape == ()

    y0 = (torch.ones(2, dtype=DOUBLE), torch.ones(3, dtype=DOUBLE))
    t = times(2).flip(0)
    odeint(Pair(), y0, t, method="rk4", options={"step_size": 1.0})
    assert order == ["f", "step", "f", "f", "f", "step", "f", "f", "f", "f"]


@pytest.mark.parametrize("name", _NAMES)
def test_a_callback_that_is_never_called_brings_a_warning(name: str) -> None:
    """It changes no number; the warning points at the program."""
    with pytest.warns(UserWarning, match=name) as caught:
        odeint(Count(Network(), name), start().detach(), times(), method="scipy_solver")
    assert caught[0].filename == __file__
