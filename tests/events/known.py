"""Hybrid systems whose events are known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from ctflow import Event

__all__ = ["FLOAT", "TIGHT", "Ball", "Neuron", "oscillator", "steady"]

FLOAT = torch.float64
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def oscillator(t: Tensor, y: Tensor) -> Tensor:
    """y = (cos t, -sin t) from (1, 0); (sin t, cos t) from (0, 1)."""
    return torch.stack([y[..., 1], -y[..., 0]], dim=-1)


def steady(t: Tensor, y: Tensor) -> Tensor:
    """dy/dt = 1: a solver takes it in steps as long as it may."""
    return torch.ones_like(y)


class Ball:
    """A ball that falls from a height and loses speed where it hits the floor.

    Args:
        height: Where it is let go, 0-dim or [B].
        gravity: Acceleration.
        restitution: Speed after a bounce over speed before.
        floor: Height of the floor, a parameter of the event function.
    """

    def __init__(self, height: Tensor, gravity: Tensor, restitution: Tensor, floor: Tensor) -> None:
        self.height, self.gravity = height, gravity
        self.restitution, self.floor = restitution, floor

    @property
    def y0(self) -> Tensor:
        """Height and speed, [2] or [B, 2]."""
        return torch.stack([self.height, 0 * self.height], dim=-1)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """Free fall."""
        return torch.stack([y[..., 1], -self.gravity + 0 * y[..., 1]], dim=-1)

    def bounce(self, terminal: bool | int = False) -> Event:
        """Contact with the floor on the way down."""
        return Event(
            lambda t, y: y[..., 0] - self.floor,
            direction=-1,
            terminal=terminal,
            change=lambda t, y: torch.stack([y[..., 0], -self.restitution * y[..., 1]], dim=-1),
        )

    def times(self, n: int, start: Tensor | float = 0.0) -> Tensor:
        """Times of the first n bounces, [n] or [n, B]."""
        fall = torch.sqrt(2 * (self.height - self.floor) / self.gravity)
        between = [2 * self.restitution**k for k in range(1, n)]
        return torch.stack(
            [start + fall * (1 + sum(between[:k], torch.zeros(()))) for k in range(n)]
        )

    def heights(self, t: Tensor) -> Tensor:
        """Height at times up to the third bounce from a start at t[0], [T]."""
        first, second, _ = self.times(3, t[0]).unbind()
        speed = self.restitution * self.gravity * (first - t[0])
        again = self.floor + _thrown(speed, t - first, self.gravity)
        last = self.floor + _thrown(self.restitution * speed, t - second, self.gravity)
        falls = self.height + _thrown(torch.zeros(()), t - t[0], self.gravity)
        return torch.where(t <= first, falls, torch.where(t <= second, again, last))


def _thrown(speed: Tensor, t: Tensor, gravity: Tensor) -> Tensor:
    return speed * t - gravity * t**2 / 2


class Neuron:
    """Leaky integrate-and-fire: tau dV/dt = I - V, which fires at a threshold and is reset.

    Args:
        current: I of each neuron, [B].
        tau: Time constant.
        threshold: Potential at which it fires, a parameter of the event function.
        reset: Potential behind it, a parameter of the change.
    """

    def __init__(self, current: Tensor, tau: Tensor, threshold: Tensor, reset: Tensor) -> None:
        self.current, self.tau, self.threshold, self.reset = current, tau, threshold, reset

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """dV/dt, [B, 1]."""
        return (self.current[:, None] - y) / self.tau

    def fire(self) -> Event:
        """The threshold on the way up."""
        return Event(
            lambda t, y: y[:, 0] - self.threshold,
            direction=1,
            terminal=False,
            change=lambda t, y: self.reset + 0 * y,
        )

    def times(self, n: int) -> Tensor:
        """Times at which neurons fire that start at 0, [B, n]; those below threshold never do."""
        fires = self.current > self.threshold
        current = torch.where(fires, self.current, 2.0)
        first = self.tau * torch.log(current / (current - self.threshold))
        period = self.tau * torch.log((current - self.reset) / (current - self.threshold))
        times = first[:, None] + period[:, None] * torch.arange(n)
        return torch.where(fires[:, None], times, torch.inf)
