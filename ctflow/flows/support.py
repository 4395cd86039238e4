"""Log-densities of a base distribution where some points may lie off its support."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["log_prob_on_support"]


def log_prob_on_support(base: Distribution, z: Tensor, usable: Tensor) -> Tensor:
    """Log-density under the base: -inf off its support, and any number where not usable.

    Points that are off the support, or not usable, are put aside before the base sees them: torch's
    distributions raise for them where they validate, and give NaN or a wrong number where not.

    Args:
        base: Distribution with events.
        z: Points, [..., *event].
        usable: Which of them are points at all, [...].

    Returns:
        [...]; what was put aside gets no gradient.
    """
    support: Any = cast("Any", base).support
    with torch.no_grad():
        inside = usable & support.check(torch.nan_to_num(z))
    if bool(inside.all()):
        return base.log_prob(z)
    shown = inside.reshape(*inside.shape, *(1,) * len(base.event_shape))
    safe = torch.where(shown, z, _inner_point(base, z))
    return torch.where(inside, base.log_prob(safe), z.new_full((), -torch.inf))


def _inner_point(base: Distribution, z: Tensor) -> Tensor:
    """A point on the support for each place of the batch."""
    try:
        mean = base.mean.detach().expand(z.shape)
        support: Any = cast("Any", base).support
        if bool(support.check(mean).all()):
            return mean
    except NotImplementedError:
        pass
    with torch.random.fork_rng(devices=[z.device] if z.device.type == "cuda" else []):
        return base.sample().expand(z.shape)
