"""How a latent ODE of spirals begins: one turning path, and one variable that mirrors it."""

from __future__ import annotations

import math

import torch
from torch import nn

from ctflow.dynamics import MLP

__all__ = ["begin_mirrored", "begin_turning"]

NARROW = 0.3  # tanh(NARROW z) / NARROW is nearly z where the prior has its mass
STEEP = 0.4  # of a product's units: steep enough that it bends where both factors are 1
BEND = math.atanh(1 / math.sqrt(3))  # where tanh bends most
CURVE = 4 / (3 * math.sqrt(3))  # its second derivative there, with the sign changed


@torch.no_grad()
def begin_turning(field: MLP, rate: float, rest: float) -> None:
    """Start a field of one hidden layer as a rotation of the first two variables.

        dz_1/dt = -rate z_2,    dz_2/dt = rate z_1,    and nearly 0 for the others.

    Two hidden units do it, one for each variable; the others begin as torch draws them, and what
    is read off them is shrunk.

    Args:
        field: Its weights are changed.
        rate: Radians in a unit of time.
        rest: By how much the rest of the last layer is shrunk.
    """
    first, last = _linear_layers(field)
    _shrink(last, rest)
    for unit in (0, 1):
        _read(first, unit, {unit: NARROW}, 0.0)
        _give(last, unit, 1 - unit, (1, -1)[unit] * rate / NARROW)


@torch.no_grad()
def begin_mirrored(decoder: nn.Sequential, reach: float, rest: float) -> None:
    """Start a decoder of one hidden layer so that the third variable's sign mirrors the path.

        x_1 = reach z_1,    x_2 = reach z_2 z_3,

    of which z_1 takes one hidden unit. The product takes four, as a difference of squares,

        4 a b = (a + b)^2 - (a - b)^2,    u^2 ~ (tanh(c + u) + tanh(c - u) - 2 tanh(c)) / tanh''(c).

    The others begin as torch draws them, shrunk in both layers.

    Args:
        decoder: Its weights are changed.
        reach: Coordinates for a latent variable of 1.
        rest: By how much all else is shrunk.
    """
    first, last = _linear_layers(decoder)
    _shrink(first, rest)
    _shrink(last, rest)
    _read(first, 0, {0: NARROW}, 0.0)
    _give(last, 0, 0, reach / NARROW)
    size = reach / (4 * CURVE * STEEP**2)
    halves = [(sign, bend) for sign in (1, -1) for bend in (1, -1)]
    for unit, (sign, bend) in enumerate(halves, start=1):
        _read(first, unit, {1: STEEP, 2: sign * STEEP}, bend * BEND)
        _give(last, unit, 1, -sign * bend * size)


def _linear_layers(network: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    """The two of a network of one hidden layer."""
    first, last = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
    return first, last


def _shrink(layer: nn.Linear, rest: float) -> None:
    for parameter in layer.parameters():
        parameter *= rest


def _read(first: nn.Linear, unit: int, weights: dict[int, float], bias: float) -> None:
    """Let a hidden unit see these variables alone."""
    row = first.weight[unit]
    row.zero_()
    for place, weight in weights.items():
        row[place] = weight
    first.bias[unit] = bias


def _give(last: nn.Linear, unit: int, output: int, weight: float) -> None:
    """Let a hidden unit speak to one output alone."""
    last.weight[:, unit] = 0.0
    last.weight[output, unit] = weight
