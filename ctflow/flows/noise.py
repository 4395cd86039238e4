"""Random probes that belong to a sample, whatever row of whatever batch it stands in."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ctflow.state import widest

__all__ = ["Law", "draw_seed", "probes"]

Law: TypeAlias = Literal["rademacher", "gaussian"]

# splitmix64 (Steele, Lea, Flood 2014): increment and multipliers, as signed 64-bit integers.
_STEP = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
_MANTISSA = 52  # bits of a uniform number, which leaves room for the half that keeps it inside


def draw_seed() -> int:
    """A seed from torch's generator, so that `torch.manual_seed` repeats what follows."""
    return int(torch.randint(2**62, ()))


def probes(z: Tensor, n_probes: int, law: Law, seed: int) -> Tensor:
    """Probes with mean zero and unit covariance, a function of the seed and of each sample alone.

    The numbers come from a counter-based generator whose key is the sample's own bits: permuting
    the rows permutes the probes, and neighbours make no difference. Equal samples get equal probes.

    Args:
        z: Samples, [N, ...]; read, never differentiated.
        n_probes: How many probes for each sample, K.
        law: "rademacher" (entries +-1) or "gaussian".
        seed: Another seed gives other probes.

    Returns:
        [K, N, ...] in the dtype of z.

    Source:
        The mixing function of splitmix64: Steele, Lea and Flood, OOPSLA 2014, section 5.

    Example:
        >>> z = torch.randn(3, 2)
        >>> e = probes(z, 1, "rademacher", seed=0)
        >>> torch.equal(probes(z.flip(0), 1, "rademacher", seed=0), e.flip(1))
        True
    """
    flat = z.detach().reshape(z.shape[0], -1)
    flat = flat if widest(z.device) == torch.float64 else flat.cpu()  # the same probes everywhere
    size = flat.shape[1]
    place = torch.arange(size, device=flat.device)
    key = _mix(_mix(_bits(flat) + _mix(place)).sum(dim=1) + seed)  # [N]
    counter = torch.arange(n_probes * size, device=flat.device).reshape(n_probes, 1, size)
    bits = _mix(key.unsqueeze(1) + counter * _STEP)  # [K, N, size]
    if law == "rademacher":
        drawn = torch.where(bits < 0, -1.0, 1.0)
    else:
        uniform = (_shift(bits, 64 - _MANTISSA).double() + 0.5) / 2**_MANTISSA  # in (0, 1)
        drawn = math.sqrt(2) * torch.erfinv(2 * uniform - 1)
    return drawn.to(z).reshape(n_probes, *z.shape)


def _bits(flat: Tensor) -> Tensor:
    """The bits of each number; zero has one sign."""
    return (flat.double() + 0.0).contiguous().view(torch.int64)


def _mix(x: Tensor) -> Tensor:
    """Scramble 64-bit integers; their arithmetic wraps around."""
    x = x + _STEP
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _shift(x: Tensor, n: int) -> Tensor:
    """Logical shift to the right, which torch does not have for signed integers."""
    return (x >> n) & (2 ** (64 - n) - 1)
