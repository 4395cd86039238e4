"""The 25 non-stiff problems of DETEST, all from t = 0 to 20.

Source:
    Hull, Enright, Fellen, Sedgwick 1972, Comparing numerical methods for ordinary differential
    equations, SIAM J. Numer. Anal. 9, pages 603 to 637, appendix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["END", "PROBLEMS", "Problem"]

END = 20.0


class Problem(NamedTuple):
    """One of them.

    Attributes:
        name: Class and number, "B4".
        f: dy/dt for times 0-dim or [B, 1] and states [..., N].
        y0: Initial state, [N].
    """

    name: str
    f: Callable[[Tensor, Tensor], Tensor]
    y0: Tensor


def _stack(*parts: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*parts), dim=-1)


def _plain(t: Tensor) -> Tensor:
    """Time that broadcasts against one variable [...]."""
    return t.squeeze(-1) if t.dim() else t


def _a5(t: Tensor, y: Tensor) -> Tensor:
    return (y - t) / (y + t)


def _b1(_: Tensor, y: Tensor) -> Tensor:
    a, b = y.unbind(-1)
    return _stack(2 * (a - a * b), -(b - a * b))


def _b2(_: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    return _stack(-a + b, a - 2 * b + c, b - c)


def _b3(_: Tensor, y: Tensor) -> Tensor:
    a, b, _ = y.unbind(-1)
    return _stack(-a, a - b * b, b * b)


def _b4(_: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    r = torch.sqrt(a * a + b * b)
    return _stack(-b - a * c / r, a - b * c / r, a / r)


def _b5(_: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    return _stack(b * c, -a * c, -0.51 * a * b)


def _linear(matrix: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda _, y: y @ matrix.T


def _chain(rates: list[float]) -> Tensor:
    """y_i' = r_(i-1) y_(i-1) - r_i y_i; the last only gathers."""
    n = len(rates) + 1
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for i, rate in enumerate(rates):
        matrix[i, i] = -rate
        matrix[i + 1, i] = rate
    return matrix


def _diffusion(n: int) -> Tensor:
    """-2 on the diagonal, 1 beside it."""
    one = torch.ones(n - 1, dtype=torch.float64)
    return torch.diag(one, 1) + torch.diag(one, -1) - 2 * torch.eye(n, dtype=torch.float64)


def _first(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)[0]


# The sun with the inner planets, and Jupiter, Saturn, Uranus, Neptune, Pluto; 100 days, au.
_SUN, _GRAVITY = 1.00000597682, 2.95912208286
_MASSES = torch.tensor(
    [0.000954786104043, 0.000285583733151, 0.0000437273164546, 0.0000517759138449,
     0.00000277777777778], dtype=torch.float64,
)  # fmt: skip
_PLANETS = torch.tensor(
    [3.42947415189, 3.35386959711, 1.35494901715, 6.64145542550, 5.97156957878, 2.18231499728,
     11.2630437207, 14.6952576794, 6.27960525067, -30.1552268759, 1.65699966404, 1.43785752721,
     -21.1238353380, 28.4465098142, 15.3882659679,
     -0.557160570446, 0.505696783289, 0.230578543901, -0.415570776342, 0.365682722812,
     0.169143213293, -0.325325669158, 0.189706021964, 0.0877265322780, -0.0240476254170,
     -0.287659532608, -0.117219543175, -0.176860753121, -0.216393453025, -0.0148647893090],
    dtype=torch.float64,
)  # fmt: skip


def _c5(_: Tensor, y: Tensor) -> Tensor:
    place, speed = (part.unflatten(-1, (5, 3)) for part in y.split(15, dim=-1))
    cube = place.square().sum(-1, keepdim=True) ** 1.5  # [..., 5, 1]
    apart = place.unsqueeze(-3) - place.unsqueeze(-2)  # [..., j, k, 3]: from j to k
    distance = apart.square().sum(-1, keepdim=True) ** 1.5
    pull = apart / torch.where(distance > 0, distance, 1.0)  # none of a planet on itself
    others = 1 - torch.eye(5, dtype=y.dtype).unsqueeze(-1)
    indirect = (place / cube).unsqueeze(-3) * others
    mutual = ((pull - indirect) * _MASSES.to(y).unsqueeze(-1)).sum(-2)
    own = -(_SUN + _MASSES.to(y).unsqueeze(-1)) * place / cube
    return torch.cat([speed.flatten(-2), _GRAVITY * (own + mutual).flatten(-2)], dim=-1)


def _orbit(_: Tensor, y: Tensor) -> Tensor:
    place, speed = y.split(2, dim=-1)
    return torch.cat([speed, -place / place.square().sum(-1, keepdim=True) ** 1.5], dim=-1)


def _ellipse(eccentricity: float) -> Tensor:
    speed = math.sqrt((1 + eccentricity) / (1 - eccentricity))
    return torch.tensor([1 - eccentricity, 0.0, 0.0, speed], dtype=torch.float64)


def _e1(t: Tensor, y: Tensor) -> Tensor:
    a, b = y.unbind(-1)
    x = _plain(t) + 1
    return _stack(b, -(b / x + (1 - 0.25 / (x * x)) * a))


def _e2(_: Tensor, y: Tensor) -> Tensor:
    a, b = y.unbind(-1)
    return _stack(b, (1 - a * a) * b - a)


def _e3(t: Tensor, y: Tensor) -> Tensor:
    a, b = y.unbind(-1)
    return _stack(b, a**3 / 6 - a + 2 * torch.sin(2.78535 * _plain(t)))


def _e4(_: Tensor, y: Tensor) -> Tensor:
    b = y[..., 1]
    return _stack(b, 0.032 - 0.4 * b * b)


def _e5(t: Tensor, y: Tensor) -> Tensor:
    _, b = y.unbind(-1)
    return _stack(b, torch.sqrt(1 + b * b) / (25 - _plain(t)))


def _at(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


PROBLEMS = (
    Problem("A1", lambda _, y: -y, _at(1.0)),
    Problem("A2", lambda _, y: -(y**3) / 2, _at(1.0)),
    Problem("A3", lambda t, y: y * torch.cos(t), _at(1.0)),
    Problem("A4", lambda _, y: y / 4 * (1 - y / 20), _at(1.0)),
    Problem("A5", _a5, _at(4.0)),
    Problem("B1", _b1, _at(1.0, 3.0)),
    Problem("B2", _b2, _at(2.0, 0.0, 1.0)),
    Problem("B3", _b3, _at(1.0, 0.0, 0.0)),
    Problem("B4", _b4, _at(3.0, 0.0, 0.0)),
    Problem("B5", _b5, _at(0.0, 1.0, 1.0)),
    Problem("C1", _linear(_chain([1.0] * 9)), _first(10)),
    Problem("C2", _linear(_chain([float(i) for i in range(1, 10)])), _first(10)),
    Problem("C3", _linear(_diffusion(10)), _first(10)),
    Problem("C4", _linear(_diffusion(51)), _first(51)),
    Problem("C5", _c5, _PLANETS),
    *(Problem(f"D{i}", _orbit, _ellipse(0.2 * i - 0.1)) for i in range(1, 6)),
    Problem("E1", _e1, _at(0.6713967071418030, 0.09540051444747446)),
    Problem("E2", _e2, _at(2.0, 0.0)),
    Problem("E3", _e3, _at(0.0, 0.0)),
    Problem("E4", _e4, _at(30.0, 0.0)),
    Problem("E5", _e5, _at(0.0, 0.0)),
)
