"""Option dicts: every entry is honoured, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from ctflow import InvalidProblem, SolveFailed, Unsupported
from ctflow.compat.torchdiffeq import odeint, odeint_adjoint
from tests.compat.fields import BOTH, DOUBLE, Count, Network, start, times

_BOTH_CALLS = ("callback_accept_step", "callback_reject_step", "callback_step")


def _solve(lib: ModuleType, f: Callable[..., Any] | None = None, **options: object) -> Count:
    """A solve with its accepted, rejected and attempted steps noted."""
    f = Count(f or Network(), *_BOTH_CALLS)
    lib.odeint(f, start().detach(), times(3), rtol=1e-6, atol=1e-6, options=options)
    return f


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"first_step": 1e-3},
        {"max_step": 0.05},
        {"safety": 0.5},
        {"ifactor": 1.5},
        {"dfactor": 0.9, "first_step": 1.0},
        {"first_step": 2.0},
        {"norm": lambda y: y.abs().max()},
        {"norm": lambda y: 10 * y.abs().max()},
        {"step_t": torch.tensor([0.3, 0.7])},
    ],
    ids=lambda options: ", ".join(options) or "none",
)
def test_an_option_has_torchdiffeqs_effect_on_the_steps(options: dict[str, Any]) -> None:
    """The same attempts up to the last, which torchdiffeq takes beyond the end."""
    theirs, mine = (_solve(lib, **options).seen for lib in BOTH)
    for name in ("callback_accept_step", "callback_reject_step"):
        a, b = ([(t, dt) for t, _, dt in found[name]] for found in (theirs, mine))
        if "step_t" in options:  # behind one, torchdiffeq goes on from the short step's size
            a, b = a[:2], b[:2]
        assert len(b) in (len(a), len(a) - 1) or "step_t" in options
        for (t0, h0), (t1, h1) in zip(a[:-1], b[:-1], strict=False):
            assert abs(t0 - t1) < 1e-5
            assert abs(h0 - h1) < 1e-5


def test_steps_end_at_step_t_and_jump_t() -> None:
    """On either side; f sees the near side of a jump, then the far one."""
    seen: list[float] = []

    def jumps(t: Tensor, y: Tensor) -> Tensor:
        seen.append(float(t))
        return torch.where(t < 0.5, -0.5 * y, y**2)

    f = Count(jumps, "callback_accept_step")
    options = {"step_t": torch.tensor([0.25]), "jump_t": torch.tensor([0.5])}
    odeint(f, torch.ones(1, dtype=DOUBLE), times(2, 1.0), options=options)
    begun = [t for t, _, _ in f.seen["callback_accept_step"]]
    assert 0.25 in begun
    assert 0.5 in begun
    assert 0.5 not in seen


@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
def test_a_declared_jump_saves_evaluations(interface: Callable[..., Any]) -> None:
    """Forward, and in the adjoint's backward pass."""
    counts: list[tuple[int, int]] = []
    for options in (None, {"jump_t": torch.tensor([0.5])}):
        calls = [0]

        def jumps(t: Tensor, y: Tensor, calls: list[int] = calls) -> Tensor:
            calls[0] += 1
            return -0.5 * y if t < 0.5 else y**2

        y = interface(jumps, start()[0], times(2, 1.0), rtol=1e-6, atol=1e-6, options=options)
        forward = calls[0]
        y.sum().backward()
        counts.append((forward, calls[0] - forward))
    assert counts[1][0] < counts[0][0]
    assert interface is odeint or counts[1][1] < counts[0][1]


@pytest.mark.parametrize("perturb", [True, False])
@pytest.mark.parametrize("method", ["rk4", "midpoint", "implicit_adams", "trapezoid"])
@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
def test_perturb_keeps_f_off_the_grid(
    interface: Callable[..., Any], method: str, perturb: bool
) -> None:
    """And without it f sees the grid; in the backward pass too."""
    seen: list[float] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.append(float(t))
        return -y

    options = {"step_size": 0.5, "perturb": perturb}
    y = interface(f, start(), times(2, 1.0), method=method, options=options)
    assert (0.0 in seen, 0.5 in seen) == (not perturb, not perturb)
    seen.clear()
    y.sum().backward()
    if interface is odeint_adjoint:
        assert (1.0 in seen, 0.5 in seen) == (not perturb, not perturb)


def test_a_grid_may_be_constructed() -> None:
    """In the backward pass it is asked for again, from the end to the start."""
    asked: list[list[float]] = []

    def construct(f: object, y0: Tensor, t: Tensor) -> Tensor:
        asked.append(t.tolist())
        return torch.linspace(float(t[0]), float(t[-1]), 11)

    x0 = torch.ones(1, requires_grad=True)
    options = {"grid_constructor": construct}
    t = torch.tensor([0.0, 1.0])
    y = odeint_adjoint(lambda t, y: y, x0, t, method="euler", options=options, adjoint_params=())
    y[-1].sum().backward()
    assert asked == [[0.0, 1.0], [1.0, 0.0]]
    torch.testing.assert_close(y[-1].item(), 1.1**10, rtol=1e-5, atol=0)
    torch.testing.assert_close(x0.grad.item(), 1.1**10, rtol=1e-5, atol=0)


def test_max_num_steps_counts_from_output_to_output() -> None:
    """As in torchdiffeq: the limit is not that of the whole solve."""
    options = {"max_step": 0.1, "max_num_steps": 11}
    odeint(Network(), start(), times(3), options=options)  # twenty steps
    with pytest.raises(SolveFailed, match="max_num_steps=11"):
        odeint(Network(), start(), times(2), options=options)


def test_a_step_of_the_least_size_counts_and_is_told() -> None:
    """torchdiffeq accepts it without a word."""
    with pytest.warns(UserWarning, match="min_step"):
        y = odeint(Network(), start(), times(2), options={"min_step": 1.0})
    theirs = BOTH[0].odeint(Network(), start(), times(2), options={"min_step": 1.0})
    torch.testing.assert_close(y[-1], theirs[-1], rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("dopri5", {"step_size": 0.1}, "does not have the option 'step_size'"),
        ("dopri5", {"first_stp": 0.1}, "does not have the option 'first_stp'"),
        ("rk4", {"first_step": 0.1}, "methods that adapt their steps"),
        ("rk4", {"norm": abs}, "'norm'"),
        ("euler", {"max_iters": 3}, "'max_iters'"),
        ("implicit_euler", {"max_order": 3}, "'max_order'"),
        ("dopri5", {"dtype": torch.float32}, "dtype=torch.float32 is not honoured"),
        ("scipy_solver", {"min_step": 0.1}, "min_step of scipy_solver"),
        ("scipy_solver", {"rtol": 0.1}, "'rtol'"),
    ],
)
def test_what_is_not_honoured_raises(method: str, options: dict[str, Any], words: str) -> None:
    """torchdiffeq warns of some of these, and takes others without effect."""
    with pytest.raises(Unsupported, match=words):
        odeint(Network().float(), start().float(), times(), method=method, options=options)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("dopri5", {"first_step": -1.0}, "positive and in order"),
        ("dopri5", {"min_step": 1.0, "max_step": 0.1}, "positive and in order"),
        ("dopri5", {"safety": 2.0}, "0 < safety <= 1"),
        ("dopri5", {"ifactor": 0.5}, "ifactor"),
        ("dopri5", {"max_num_steps": 0}, "max_num_steps"),
        ("dopri5", {"norm": 3}, "`norm` must be a function"),
        ("dopri5", {"norm": lambda y: y}, "one real number"),
        ("dopri5", {"step_t": 0.5}, "`step_t` must be a tensor"),
        ("dopri5", {"step_t": torch.ones(2)}, "repeated elements"),
        ("rk4", {"step_size": 0.0}, "`step_size` must be finite and positive"),
        ("rk4", {"step_size": 0.1, "grid_constructor": print}, "mutually exclusive"),
        ("rk4", {"grid_constructor": lambda f, y, t: t[1:]}, "must return a tensor"),
        ("rk4", {"interp": "quintic"}, "`interp`"),
        ("explicit_adams", {"max_order": 13}, "max_order"),
        ("scipy_solver", {"solver": "RK78"}, "`solver`"),
        ("dopri5", [("first_step", 1.0)], "`options` must be a dict"),
    ],
)
def test_an_option_without_meaning_is_refused(method: str, options: object, words: str) -> None:
    """Before any work."""
    with pytest.raises(InvalidProblem, match=words):
        odeint(Network(), start(), times(), method=method, options=options)


def test_what_belongs_to_the_adjoint_is_checked_before_the_solve() -> None:
    """Not in the backward pass, hours later."""
    field = Network()
    with pytest.raises(Unsupported, match="'step_size'"):
        odeint_adjoint(field, start(), times(), adjoint_options={"step_size": 0.1})
    with pytest.raises(InvalidProblem, match="adjoint_options"):
        odeint_adjoint(field, start(), times(), adjoint_method="rk4", options={"first_step": 0.1})
    with pytest.raises(InvalidProblem, match="'seminorm' or a function"):
        odeint_adjoint(field, start(), times(), adjoint_options={"norm": "rms"})
    with pytest.raises(InvalidProblem, match="must hold tensors"):
        odeint_adjoint(field, start(), times(), adjoint_params=("weight",))
    assert field.n_calls == 0


def test_an_iteration_that_does_not_settle_is_a_failure() -> None:
    """torchdiffeq warns and goes on with what it has."""
    stiff = {"step_size": 0.25, "max_order": 4}
    with pytest.raises(SolveFailed, match="did not settle"):
        odeint(lambda t, y: -200 * y, start(), times(2), method="implicit_adams", options=stiff)
