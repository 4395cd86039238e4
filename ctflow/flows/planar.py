"""Planar fields: M units, a divergence in O(M), and three ways to depend on time."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ctflow.errors import InvalidProblem
from ctflow.state import expand_time

__all__ = ["GatedPlanar", "HyperPlanar", "Planar"]

_SHARPNESS = 6.0  # a feature turns within about a third of the unit interval: measured to suit


class _Units(NamedTuple):
    """Weights of M planar units, shared by all samples or, with a leading N, one set for each.

    Args:
        w: [M, D] or [N, M, D].
        b: [M] or [N, M].
        u: [M, D] or [N, M, D]; gates are folded in.
    """

    w: Tensor
    b: Tensor
    u: Tensor


def _velocity(units: _Units, z: Tensor) -> Tensor:
    """sum_m u_m tanh(w_m . z + b_m) at z [N, D]."""
    h = torch.tanh(_inner(units, z))
    return h @ units.u if units.u.dim() == 2 else torch.einsum("nm,nmd->nd", h, units.u)


def _with_divergence(units: _Units, z: Tensor) -> tuple[Tensor, Tensor]:
    """Velocity [N, D], and  sum_m (1 - tanh^2) u_m . w_m  [N]."""
    h = torch.tanh(_inner(units, z))
    overlap = (units.u * units.w).sum(dim=-1)  # [M] or [N, M]
    if units.u.dim() == 2:
        return h @ units.u, (1 - h.square()) @ overlap
    velocity = torch.einsum("nm,nmd->nd", h, units.u)
    return velocity, ((1 - h.square()) * overlap).sum(dim=1)


def _inner(units: _Units, z: Tensor) -> Tensor:
    """w_m . z + b_m, [N, M]."""
    if units.w.dim() == 2:
        return torch.addmm(units.b, z, units.w.t())
    return torch.einsum("nd,nmd->nm", z, units.w) + units.b


class Planar(nn.Module):
    """A sum of M planar units that does not look at the time.

        dz/dt = sum_m u_m tanh(w_m . z + b_m)
        tr(df/dz) = sum_m (1 - tanh^2(w_m . z + b_m)) u_m . w_m

    (The paper's eq. 10 has d log p/dt = + sum tr; by its own eq. 8 the sign is minus.)

    Args:
        dim: Variables, D.
        n_units: M.

    Cost:
        O(M D) a sample, trace included; nothing is differentiated.

    Source:
        Chen et al. 2018 (arXiv 1806.07366v5), eqs. 9 and 10.

    Example:
        >>> field = Planar(2, 16)
        >>> velocity, divergence = field.with_divergence(torch.tensor(0.0), torch.randn(5, 2))
        >>> velocity.shape, divergence.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(self, dim: int, n_units: int) -> None:
        """Draw weights at which the sum is of order one half."""
        super().__init__()
        _check_sizes(dim=dim, n_units=n_units)
        self.w = nn.Parameter(torch.randn(n_units, dim))
        self.b = nn.Parameter(torch.randn(n_units))
        self.u = nn.Parameter(torch.randn(n_units, dim) * 0.5 / math.sqrt(n_units))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:  # noqa: ARG002
        """Velocity at z [N, D]; `t` is not used."""
        return _velocity(self._units(), z)

    def with_divergence(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Velocity [N, D] and divergence [N]; `t` is not used."""
        return _with_divergence(self._units(), z)

    def _units(self) -> _Units:
        return _Units(self.w, self.b, self.u)


class GatedPlanar(nn.Module):
    """A sum of M planar units, each with a gate that the time opens and closes.

        dz/dt = sum_m sigma_m(t) u_m tanh(w_m . z + b_m),  sigma_m(t) in (0, 1)

    The gates are sigmoids of a network of t with one hidden layer.

    Args:
        dim: Variables, D.
        n_units: M.
        hidden: Width of the gates' network.

    Cost:
        O(M (D + hidden)) a sample, trace included; under shared steps the gates cost once a batch.

    Source:
        Chen et al. 2018 (arXiv 1806.07366v5), section 4, "Time-dependent dynamics".

    Example:
        >>> GatedPlanar(2, 16)(torch.full((5, 1), 0.5), torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(self, dim: int, n_units: int, hidden: int = 16) -> None:
        """Draw weights; the gates begin half open."""
        super().__init__()
        _check_sizes(dim=dim, n_units=n_units, hidden=hidden)
        self.planar = Planar(dim, n_units)
        self.gate = nn.Sequential(nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, n_units))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Velocity at z [N, D] and t, 0-dim or [N, 1]."""
        return _velocity(self._units(t, z), z)

    def with_divergence(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity [N, D] and divergence [N]."""
        return _with_divergence(self._units(t, z), z)

    def _units(self, t: Tensor, z: Tensor) -> _Units:
        gates = torch.sigmoid(self.gate(_column(t, z)))  # [M] or [N, M]
        planar = self.planar
        if gates.dim() == 1:
            return _Units(planar.w, planar.b, gates.unsqueeze(1) * planar.u)
        n, m = gates.shape
        return _Units(
            planar.w.expand(n, *planar.w.shape),
            planar.b.expand(n, m),
            gates.unsqueeze(2) * planar.u,
        )


class HyperPlanar(nn.Module):
    """A sum of M planar units whose weights are functions of the time, made by a network.

        dz/dt = sum_m sigma_m(t) u_m(t) tanh(w_m(t) . z + b_m(t))

    The network maps t through two hidden layers to w, b, u and the gates of all units. It begins
    with features of times in [0, 1], which is the interval to use it on.

    Args:
        dim: Variables, D.
        n_units: M.
        hidden: Width of the network's two layers.

    Cost:
        O(M D hidden) for each distinct time: once a batch under shared steps, which therefore suit
        it; O(M D) a sample beside it.

    Source:
        Chen et al. 2018 (arXiv 1806.07366v5), section 4: parameters as functions of t, and gates.
        The paper gives no sizes; two tanh layers are those of the released example
        (torchdiffeq, examples/cnf.py), which averages the units where eq. 10 sums them.

    Example:
        >>> HyperPlanar(2, 16)(torch.tensor(0.5), torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(self, dim: int, n_units: int, hidden: int = 32) -> None:
        """Draw weights; the first layer's features turn at times spread over [0, 1]."""
        super().__init__()
        _check_sizes(dim=dim, n_units=n_units, hidden=hidden)
        self.dim, self.n_units = dim, n_units
        first = nn.Linear(1, hidden)
        nn.init.normal_(first.weight, std=_SHARPNESS)
        with torch.no_grad():  # as torch draws them, all would be nearly linear on the interval
            first.bias.copy_(-first.weight.squeeze(1) * torch.rand(hidden))
        self.network = nn.Sequential(
            first,
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, n_units * (2 * dim + 2)),
        )
        self.start = nn.Parameter(torch.randn(n_units, 2 * dim + 1))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Velocity at z [N, D] and t, 0-dim or [N, 1]."""
        return _velocity(self._units(t, z), z)

    def with_divergence(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity [N, D] and divergence [N]."""
        return _with_divergence(self._units(t, z), z)

    def _units(self, t: Tensor, z: Tensor) -> _Units:
        made = self.network(_column(t, z))
        made = made.reshape(*made.shape[:-1], self.n_units, 2 * self.dim + 2)
        weights = made[..., :-1] + self.start
        w, u, b = weights.split([self.dim, self.dim, 1], dim=-1)
        gate = torch.sigmoid(made[..., -1:]) / math.sqrt(self.n_units)
        return _Units(w, b.squeeze(-1), gate * u)


def _column(t: Tensor, z: Tensor) -> Tensor:
    """The time as one feature: [1], or [N, 1]."""
    return (t.reshape(1) if t.dim() == 0 else expand_time(t, z)).to(z.dtype)


def _check_sizes(**sizes: object) -> None:
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise InvalidProblem(
                f"`{name}` must be a positive integer, got {size!r}. It counts variables or units."
            )
