"""A field with its kinks rounded off: what the same field would cost without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ctflow.state import Layout
from ctflow.testing.subject import Subject

__all__ = ["Smoothing", "averaged"]

_SHIFTS = 17  # places that an average is taken over, up to 2.5 widths away
_WIDTH = 0.1  # of an average, as a share of the box


def averaged(subject: Subject) -> Callable[..., Any]:
    """The field averaged over small shifts of the state along a random direction.

    For kinks of whatever origin: with normal weights, it is smooth up to the distance of the
    shifts.
    """
    layout = Layout.of(subject.cases[0].y, per_sample=False)
    places = torch.linspace(-2.5, 2.5, _SHIFTS, dtype=torch.float64)
    weights = torch.softmax(-0.5 * places.square(), dim=0).tolist()
    length = _WIDTH * (subject.box.high - subject.box.low)

    def field(t: Tensor, y: Any, *args: Any) -> Any:  # noqa: ANN401
        row = layout.pack(y)
        along = length * subject.directions(row)
        total = torch.zeros_like(row)
        for weight, place in zip(weights, places.tolist(), strict=True):
            dy = subject.f(t, layout.unpack(row + place * along), *args)
            total = total + weight * layout.pack_derivative(dy)
        return layout.unpack(total)

    return field


class Smoothing(TorchDispatchMode):
    """Evaluates operators that have a kink by smooth ones, whoever calls them.

    The ramp max(x, 0) becomes x Phi(x / w), Phi being the normal distribution function: GELU
    (arXiv 1606.08415), as wide as the spread w of the x that the field meets at the examples. The
    others are sums of ramps. The step of a comparison that chooses between two values becomes
    Phi(x / w). What stays on one side at all examples has no kink there, and is left alone: a
    guard such as clamp(min=1e-6).

    Args:
        subject: Whose operators are looked at, once at every example.

    Attributes:
        names: The operators that have a smooth one in their place.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.names: tuple[str, ...] = ()
        self._f = subject.f
        self._spreads: list[_Spread] = []  # in the order in which one call comes to them
        self._place = 0
        self._signs: dict[int, tuple[Tensor, Tensor]] = {}  # comparison -> (itself, x of x > 0)
        self._measuring = True
        with torch.no_grad():
            for case in subject.cases:
                arguments = () if subject.args is None else (subject.args,)
                self.field(case.t, case.y, *arguments)
        self._measuring = False
        named = (s.name.strip("_").removesuffix("_kernel") for s in self._spreads if s.has_kink)
        self.names = tuple(dict.fromkeys(named))

    def field(self, t: Tensor, y: Any, *args: Any) -> Any:  # noqa: ANN401
        """The smooth field."""
        self._place = 0
        self._signs.clear()
        with self:
            return self._f(t, y, *args)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operator, or its smooth one."""
        del types
        packet: str = func.overloadpacket.__name__  # pyright: ignore[reportFunctionMemberAccess]
        name, named = packet.removesuffix("_"), kwargs or {}
        floating = bool(args) and isinstance(args[0], Tensor) and args[0].is_floating_point()
        if name in _COMPARISONS and packet == name and floating:
            return self._compared(name, func(*args, **named), args)
        if name in _RAMPS and floating:
            found = _RAMPS[name](lambda x: self._ramp(name, x), *args, **named)
        elif name in _SWITCHES and any(id(x) in self._signs for x in args):
            steps = [self._step(x) if id(x) in self._signs else x for x in args]
            found = _SWITCHES[name](*steps, **named)
            found = torch.where(torch.isfinite(found), found, func(*args, **named))
        else:
            return func(*args, **named)
        return found if packet == name else args[0].copy_(found)

    def _compared(self, name: str, found: Tensor, args: tuple[Any, ...]) -> Tensor:
        """Remember what is compared: it becomes a step when something is chosen by it."""
        gap = args[0] - args[1]
        self._signs[id(found)] = (found, gap if name in ("gt", "ge") else -gap)
        return found

    def _ramp(self, name: str, x: Tensor) -> Tensor:
        spread = self._at(name, x)
        return x * spread.step(x) if spread.has_kink and not self._measuring else x.clamp(min=0.0)

    def _step(self, comparison: Tensor) -> Tensor:
        exact, x = self._signs[id(comparison)]
        spread = self._at("a comparison", x)
        return spread.step(x) if spread.has_kink and not self._measuring else exact.to(x.dtype)

    def _at(self, name: str, x: Tensor) -> _Spread:
        """The spread of this place in a call; a place that no example came to has none."""
        if self._place == len(self._spreads):
            self._spreads.append(_Spread(name))
        spread = self._spreads[self._place]
        self._place += 1
        if self._measuring:
            spread.add(x)
        return spread


@dataclass
class _Spread:
    """What values an operator meets.

    Args:
        name: The operator.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, x: Tensor) -> None:
        wide = x.detach().double()
        self.low = min(self.low, float(wide.amin()))
        self.high = max(self.high, float(wide.amax()))
        self.n += wide.numel()
        self.total += float(wide.sum())
        self.squares += float(wide.square().sum())

    @property
    def has_kink(self) -> bool:
        """Whether both of its sides are met."""
        return self.low < 0.0 < self.high

    def step(self, x: Tensor) -> Tensor:
        """Phi(x / w)."""
        mean = self.total / self.n
        width = max(self.squares / self.n - mean**2, 1e-300) ** 0.5
        return torch.special.ndtr(x / width)


_COMPARISONS = ("gt", "ge", "lt", "le")

Ramp = Callable[[Tensor], Tensor]


def _clamp(ramp: Ramp, x: Tensor, min: Any = None, max: Any = None) -> Tensor:  # noqa: ANN401
    above = x if min is None else min + ramp(x - min)
    return above if max is None else above - ramp(x - max)


def _hardtanh(ramp: Ramp, x: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    return _clamp(ramp, x, low, high)


def _leaky(ramp: Ramp, x: Tensor, slope: Any = 0.01) -> Tensor:  # noqa: ANN401
    return slope * x + (1 - slope) * ramp(x)


_RAMPS: dict[str, Callable[..., Tensor]] = {
    "relu": lambda ramp, x: ramp(x),
    "leaky_relu": _leaky,
    "_prelu_kernel": _leaky,
    "abs": lambda ramp, x: ramp(x) + ramp(-x),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": lambda ramp, x, high: x - ramp(x - high),
    "hardtanh": _hardtanh,
    "hardsigmoid": lambda ramp, x: _clamp(ramp, x / 6 + 0.5, 0.0, 1.0),
    "hardswish": lambda ramp, x: x * _clamp(ramp, x / 6 + 0.5, 0.0, 1.0),
    "maximum": lambda ramp, a, b: b + ramp(a - b),
    "minimum": lambda ramp, a, b: a - ramp(a - b),
}
"""Operators with a kink as sums of ramps."""

_SWITCHES: dict[str, Callable[..., Tensor]] = {
    "where": lambda step, a, b: b + (a - b) * step,
    "masked_fill": lambda x, step, value: x + (value - x) * step,
    "mul": lambda a, b: a * b,
    "_to_copy": lambda step, dtype=None, **_: step.to(dtype),
}
"""What chooses by a comparison, the comparison being a number from 0 to 1."""
