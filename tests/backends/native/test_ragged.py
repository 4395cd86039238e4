"""Times of each sample's own: directions, lengths, and the sample alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctflow import InvalidProblem, ODEProblem, Solution, Solver, Unsupported, solve
from tests.checks import check_close, check_relative
from tests.problems import FLOAT, blow_up

GRADIENTS = ["direct", "checkpointed", "adjoint"]
gradients = pytest.mark.parametrize("gradient", GRADIENTS)
ROWS = [
    [0.0, 0.5, 1.0, 2.0, 2.5],
    [1.0, 0.2, -0.5],
    [-1.0, -0.9],
    [0.3],
    [0.0, 3.0, 3.1, 3.2],
]
Y0 = torch.tensor([[1.0, -0.4], [0.3, 0.2], [-1.5, 2.0], [0.7, 0.1], [0.5, 0.5]], dtype=FLOAT)


def padded(rows: list[list[float]], value: float) -> tuple[Tensor, Tensor]:
    """Times [B, T] and which of them count."""
    longest = max(map(len, rows))
    t = torch.tensor([row + [value] * (longest - len(row)) for row in rows], dtype=FLOAT)
    return t, torch.arange(longest) < torch.tensor([[len(row)] for row in rows])


class Swing(nn.Module):
    """dy/dt = rate t y + shift: known in closed form by its integral."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(-0.4, dtype=FLOAT))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rate * t * y

    def exact(self, t: Tensor, y0: Tensor) -> Tensor:
        """States of one sample at its times."""
        return y0 * torch.exp(self.rate * (t * t - t[0] * t[0]) / 2).unsqueeze(1)


def run(f: Any, y0: Tensor, t: Tensor, mask: Tensor | None, **settings: Any) -> Solution:  # noqa: ANN401
    """With a step size for each sample."""
    return solve(ODEProblem(f, y0, t, mask=mask), Solver(rtol=1e-9, atol=1e-9, **settings))


@pytest.mark.parametrize("padding", [0.0, math.nan, 1e30])
def test_outputs_behind_the_last_time_repeat_it(padding: float) -> None:
    """Whatever stands there; the others are those of each sample alone, bits and costs."""
    f = Swing()
    t, mask = padded(ROWS, padding)
    with torch.no_grad():
        solution = run(f, Y0, t, mask)
        for b, row in enumerate(ROWS):
            y = solution.y[:, b]
            assert torch.equal(y[len(row) :], y[len(row) - 1].expand_as(y[len(row) :]))
            assert torch.equal(
                solution.t[b, len(row) - 1 :].unique(), t[b, len(row) - 1].reshape(1)
            )
            check_close(y[: len(row)], f.exact(t[b, : len(row)], Y0[b]), rtol=1e-7, atol=1e-9)
            if len(row) > 1:
                alone = run(f, Y0[b : b + 1], t[b : b + 1, : len(row)], None)
                assert torch.equal(alone.y[:, 0], y[: len(row)])
                for name, column in vars(alone.stats.forward).items():
                    assert column[0] == getattr(solution.stats.forward, name)[b], name
    assert solution.ok
    assert solution.y.isfinite().all()


@gradients
def test_gradients_are_those_of_the_samples_alone(gradient: str) -> None:
    """Of a masked loss: state, shared parameter, times; nothing flows to the padding."""
    f = Swing()
    t, mask = padded(ROWS, 7.0)
    weights = torch.cos(torch.arange(5 * 5 * 2, dtype=FLOAT)).reshape(5, 5, 2)
    y0, times = Y0.clone().requires_grad_(), t.clone().requires_grad_()
    y = run(f, y0, times, mask, gradient=gradient).y
    found = torch.autograd.grad((y * weights * mask.T.unsqueeze(2)).sum(), (y0, f.rate, times))
    start, own = Y0.clone().requires_grad_(), t.clone().requires_grad_()
    total = sum(
        (f.exact(own[b, : len(row)], start[b]) * weights[: len(row), b]).sum()
        for b, row in enumerate(ROWS)
    )
    wanted = torch.autograd.grad(total, (start, f.rate, own))  # type: ignore[arg-type]
    for one, other in zip(found, wanted, strict=True):
        check_close(one, other, rtol=1e-6, atol=1e-7)
    assert found[2][~mask].abs().max() == 0


@gradients
def test_a_loss_that_sees_the_padding_sees_the_last_state_again(gradient: str) -> None:
    """Its gradient is that of the last state so many times, of a single time too."""
    f = Swing()
    t, mask = padded(ROWS, 0.0)
    y0 = Y0.clone().requires_grad_()
    found = torch.autograd.grad(run(f, y0, t, mask, gradient=gradient).y.sum(), (y0, f.rate))
    start = Y0.clone().requires_grad_()
    parts = [f.exact(t[b, : len(row)], start[b]) for b, row in enumerate(ROWS)]
    total = sum(y.sum() + (5 - len(y)) * y[-1].sum() for y in parts)
    wanted = torch.autograd.grad(total, (start, f.rate))  # type: ignore[arg-type]
    for one, other in zip(found, wanted, strict=True):
        check_close(one, other, rtol=1e-6, atol=1e-7)


@gradients
@pytest.mark.parametrize("method", ["dopri5", "dop853"])
def test_both_directions_share_a_batch(gradient: str, method: str) -> None:
    """Rows up and down: values and every gradient of times."""
    f = Swing()
    t = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.5, -1.0], [-1.0, -2.0, -2.5]], dtype=FLOAT)
    times, y0 = t.clone().requires_grad_(), Y0[:3].clone().requires_grad_()
    y = run(f, y0, times, None, gradient=gradient, method=method).y
    own, start = t.clone().requires_grad_(), Y0[:3].clone().requires_grad_()
    exact = torch.stack([f.exact(own[b], start[b]) for b in range(3)], dim=1)
    found = torch.autograd.grad(y.square().sum(), (y0, times, f.rate))
    wanted = torch.autograd.grad(exact.square().sum(), (start, own, f.rate))
    for one, other in zip((y, *found), (exact, *wanted), strict=True):
        check_relative(one.detach(), other.detach(), rtol=1e-6)


@gradients
def test_a_failed_sample_among_ragged_ones_is_alone_in_failing(gradient: str) -> None:
    """NaN where it did not arrive, a constant of the gradient."""
    t, mask = padded([[0.0, 0.5, 1.0], [0.0, 1.0], [0.0]], 0.0)
    y0 = torch.tensor([[0.5], [2.0], [0.3]], dtype=FLOAT, requires_grad=True)
    solution = run(blow_up, y0, t, mask, gradient=gradient)
    assert solution.status[[0, 2]].tolist() == [0, 0] != solution.status[1]
    (slope,) = torch.autograd.grad(solution.y[-1, [0, 2]].sum(), y0)
    check_close(slope.flatten(), torch.tensor([4.0, 0.0, 1.0], dtype=FLOAT), rtol=1e-6)


def test_without_a_mask_nothing_may_repeat() -> None:
    """A repeated time is a mistake where no mask says otherwise."""
    t, _ = padded([[0.0, 1.0, 2.0], [0.0, 1.0]], 1.0)
    with pytest.raises(InvalidProblem, match=r"t\[1\]\[2\]=1 after t\[1\]\[1\]=1"):
        ODEProblem(blow_up, Y0[:2], t)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[True, False, True], [True, True, True]], "for sample 0. Move the times"),
        ([[True, True, True], [False, False, False]], "for sample 1. Move the times"),
        ([[True, True], [True, True]], r"shape \[B, T\] of `t`"),
        ([[1, 1, 1], [1, 1, 1]], "must be a bool tensor, got torch.int64"),
    ],
)
def test_a_mask_that_makes_no_sense_is_refused(mask: list[list[bool]], message: str) -> None:
    """By name, with the sample."""
    t = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], dtype=FLOAT)
    with pytest.raises(InvalidProblem, match=message):
        ODEProblem(blow_up, Y0[:2], t, mask=torch.tensor(mask))


@pytest.mark.parametrize(
    ("row", "message"), [([1.0, 0.5, 2.0], r"t\[1\]\[2\]=2 after t\[1\]\[1\]=0.5"),
                         ([0.0, math.nan, 1.0], "must be finite"), ([math.inf, 9, 9], "finite")]
)  # fmt: skip
def test_times_that_count_are_checked(row: list[float], message: str) -> None:
    """Row 1 of two with different lengths."""
    t = torch.tensor([[0.0, 1.0, 9.0], row], dtype=FLOAT)
    n = 1 if math.isinf(row[0]) else 3
    mask = torch.arange(3) < torch.tensor([[2], [n]])
    with pytest.raises(InvalidProblem, match=message):
        ODEProblem(blow_up, Y0[:2], t, mask=mask)


def test_compiled_refuses_by_name() -> None:
    """And names native."""
    t, mask = padded([[0.0, 1.0, 2.0], [0.0, 1.0]], 1.0)
    with pytest.raises(Unsupported, match=r"no `mask` of times.*native"):
        solve(ODEProblem(blow_up, Y0[:2], t, mask=mask), Solver("compiled"))
