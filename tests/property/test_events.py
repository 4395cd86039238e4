"""Events of random linear oscillators: times, states and gradients in closed form."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("hypothesis")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ctflow import Event, Solver, odeint_event
from tests.checks import check_close, check_relative

FLOAT = torch.float64
RTOL = 1e-9


def within(low: float, high: float) -> Any:  # noqa: ANN401
    """Numbers of a range."""
    return st.floats(low, high, allow_subnormal=False)


def turning(omega: Tensor) -> Any:  # noqa: ANN401
    """(cos, -sin) of omega t + phase, times an amplitude."""
    return lambda t, y: omega * torch.stack([y[..., 1], -y[..., 0]], dim=-1)


@settings(max_examples=16)
@given(
    omega=within(0.5, 3.0), phases=st.lists(within(0.0, 6.28), min_size=1, max_size=3),
    amplitude=within(0.5, 2.0), share=within(-0.9, 0.9), length=within(1.0, 6.0),
    start=within(-2.0, 2.0), forwards=st.booleans(), direction=st.sampled_from([-1, 0, 1]),
    gradient=st.sampled_from(["direct", "checkpointed", "adjoint"]),
    method=st.sampled_from(["dopri5", "tsit5", "vern7", "dop853"]), per_sample=st.booleans(),
)  # fmt: skip
def test_an_oscillator_passes_a_level_when_it_should(
    omega: float, phases: list[float], amplitude: float, share: float, length: float, start: float,
    forwards: bool, direction: int, gradient: Any, method: str, per_sample: bool,  # noqa: ANN401
) -> None:  # fmt: skip
    """Amplitude times cos(omega (t - start) + phase) = level, all times in the interval."""
    phases = phases if per_sample else phases[:1]
    sign = 1 if forwards else -1
    values = (omega, amplitude, amplitude * share, start)
    leaves = [torch.tensor(x, dtype=FLOAT, requires_grad=True) for x in values]
    om, amp, level, t0 = leaves
    phase = torch.tensor(phases, dtype=FLOAT, requires_grad=True)
    y0 = amp * torch.stack([torch.cos(phase), -torch.sin(phase)], dim=1)
    t = torch.stack([t0, t0.detach() + sign * length])
    event = Event(lambda t, y: y[..., 0] - level, direction=direction, terminal=False)
    coupling: Any = "per_sample" if per_sample else "shared"
    solver = Solver(method=method, gradient=gradient, rtol=RTOL, atol=RTOL, coupling=coupling)
    found = odeint_event(turning(om), y0 if per_sample else y0[0], t, event, solver=solver)
    times, mask = (found.t, found.mask) if per_sample else (found.t[None], found.mask[None])
    exact = [_passes(om, p, level / amp, t0, sign, length, direction) for p in phase]
    # A zero within 1e-6 of the ends may be on either side of them; hypothesis does look there.
    if any(bool((e.detach() - t0.detach()).abs().sub(length).abs().lt(1e-6).any()) for e in exact):
        return
    assert mask.sum(dim=1).tolist() == [len(e) for e in exact]
    ours, theirs = times[mask], torch.cat(exact)
    if not len(ours):
        return
    check_close(ours, theirs, rtol=0.0, atol=1e3 * RTOL)
    weights = torch.linspace(0.5, 1.5, len(ours), dtype=FLOAT)
    wanted = [om, amp, level, t0, phase]
    pair = (
        torch.autograd.grad((weights * x).sum(), wanted, materialize_grads=True, allow_unused=True)
        for x in (ours, theirs)
    )
    check_relative(*pair, rtol=1e4 * RTOL)


def _passes(
    omega: Tensor, phase: Tensor, share: Tensor, t0: Tensor, sign: int, length: float,
    direction: int,
) -> Tensor:  # fmt: skip
    """Times at which cos(omega (t - t0) + phase) = share, in the order of the solve."""
    found = []
    for turn in range(-6, 7):
        for branch in (1, -1):  # at +acos the cosine falls, at -acos it rises as t grows
            t = t0 + (branch * torch.acos(share) + 2 * torch.pi * turn - phase) / omega
            ahead = float(sign * (t - t0).detach())
            if 1e-9 < ahead < length and direction * branch * sign in (0, -1):
                found.append((ahead, t))
    ordered = [t for _, t in sorted(found, key=lambda pair: pair[0])]
    return torch.stack(ordered) if ordered else torch.zeros(0, dtype=FLOAT)
