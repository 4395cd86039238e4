"""The paper's two-dimensional spirals: exact logarithmic ones, as its own figures have them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["FALL", "N_SEEN", "RADIUS", "SPACING", "Spirals", "make_spirals"]

SPACING = 2 * math.pi / 100  # radians, and units of time, between samples
FALL = 0.0941795  # of the logarithm of the radius for each radian, to 1e-6 from the paper's figures
RADIUS = 2.5  # at the start; the paper does not say, but with it and the noise its errors agree
N_SEEN = 100  # samples of the observed revolution; the rest is extrapolation


class Spirals(NamedTuple):
    """A set of spirals, half of each direction.

    Attributes:
        t: Times, [T].
        truth: Points without noise, [N, T, 2].
        noisy: Points with it, [N, T, 2].
        seen: Which of the first `N_SEEN` points are observed, bool [N, N_SEEN].
        direction: +1.0 counter-clockwise, -1.0 clockwise, [N].
    """

    t: Tensor
    truth: Tensor
    noisy: Tensor
    seen: Tensor
    direction: Tensor

    def part(self, start: int, end: int | None) -> Spirals:
        """Spirals from `start` to `end`."""
        rows = (x[start:end] for x in self[1:])
        return Spirals(self.t, *rows)

    @property
    def observed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values [N, N_SEEN, 2], times [N_SEEN] and mask of the observed revolution."""
        return self.noisy[:, :N_SEEN], self.t[:N_SEEN], self.seen


def make_spirals(
    n: int, n_points: int, seed: int, *, length: int = 280, noise: float = 0.1
) -> Spirals:
    """Spirals r(theta) = RADIUS exp(-FALL |theta - theta0|) from start angles all around.

    Args:
        n: How many.
        n_points: Points observed of the first revolution, drawn for each without replacement.
        seed: Of angles, noise and choice.
        length: Samples of each, at least `N_SEEN`.
        noise: Standard deviation of each coordinate's noise.
    """
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(n, 1, generator=generator)
    direction = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)
    t = SPACING * torch.arange(length)
    radius = RADIUS * torch.exp(-FALL * t)
    theta = angle + direction[:, None] * t
    truth = torch.stack([radius * theta.cos(), radius * theta.sin()], dim=-1)
    noisy = truth + noise * torch.randn(truth.shape, generator=generator)
    chosen = torch.rand(n, N_SEEN, generator=generator).argsort(dim=1)[:, :n_points]
    seen = torch.zeros(n, N_SEEN, dtype=torch.bool).scatter(1, chosen, True)
    return Spirals(t, truth, noisy, seen, direction)
