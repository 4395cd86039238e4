"""Log-densities of a base distribution where some points may lie off its support."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    TransformedDistribution,
)

__all__ = ["log_prob_on_support"]


def log_prob_on_support(base: Distribution, z: Tensor, usable: Tensor) -> Tensor:
    """Log-density under the base: -inf off its support, and any number where not usable.

    Points that are off the support, or not usable, are put aside before the base sees them: torch's
    distributions raise for them where they validate, and give NaN or a wrong number where not.
    Where a distribution is made of others, those are asked one by one: torch's mixture takes for
    its support what all of its components share, and a transformed one hands the points on.

    Args:
        base: Distribution.
        z: Points with all of its batch, [..., *batch, *event].
        usable: Which of them are points at all, [..., *batch].

    Returns:
        [..., *batch]; what was put aside gets no gradient.
    """
    kind = type(base)  # a subclass may have a density of its own
    for container, of_parts in _CONTAINERS.items():
        if kind is container:
            return of_parts(base, z, usable)
    with torch.no_grad():
        inside = usable & _supported(base, z)
    if bool(inside.all()):
        return base.log_prob(z)
    found = base.log_prob(_safe(base, z, inside))
    return torch.where(inside, found, z.new_full((), -torch.inf))


def _of_independent(base: Independent[Any], z: Tensor, usable: Tensor) -> Tensor:
    """The sum over its own last batch dimensions."""
    inner = base.base_dist
    last = base.reinterpreted_batch_ndims
    return _summed(log_prob_on_support(inner, z, _spread(usable, z, inner, last)), last)


def _of_mixture(base: MixtureSameFamily, z: Tensor, usable: Tensor) -> Tensor:
    """The mean over its components, of which some may have no density here."""
    parts = base.component_distribution
    batch = (*usable.shape, parts.batch_shape[-1])
    shown = z.unsqueeze(-1 - len(base.event_shape)).expand(*batch, *base.event_shape)
    found = log_prob_on_support(parts, shown, usable.unsqueeze(-1).expand(batch))
    weights = torch.log_softmax(base.mixture_distribution.logits, dim=-1)
    nowhere = (found == -torch.inf).all(dim=-1)  # there the gradient of logsumexp is NaN
    total = torch.logsumexp(found.masked_fill(nowhere.unsqueeze(-1), 0.0) + weights, dim=-1)
    return total.masked_fill(nowhere, -torch.inf)


def _of_transformed(base: TransformedDistribution, z: Tensor, usable: Tensor) -> Tensor:
    """As torch has it, with its own base asked in the same way."""
    with torch.no_grad():
        inside = usable & _supported(base, z)
    y = z if bool(inside.all()) else _safe(base, z, inside)
    event = len(base.event_shape)
    total = torch.zeros_like(inside, dtype=z.dtype)
    for transform in reversed(base.transforms):
        x = cast("Any", transform).inv(y)
        event += transform.domain.event_dim - transform.codomain.event_dim
        log_det = transform.log_abs_det_jacobian(x, y)
        total = total - _summed(log_det, event - transform.domain.event_dim)
        y = x
    inner = base.base_dist
    last = event - len(inner.event_shape)
    known = _spread(inside, y, inner, last)
    total = total + _summed(log_prob_on_support(inner, y, known), last)
    return torch.where(inside, total, z.new_full((), -torch.inf))


_CONTAINERS: Mapping[type, Callable[[Any, Tensor, Tensor], Tensor]] = {
    Independent: _of_independent,
    MixtureSameFamily: _of_mixture,
    TransformedDistribution: _of_transformed,
}


def _spread(flags: Tensor, z: Tensor, inner: Distribution, last: int) -> Tensor:
    """Flags of a distribution's events as flags of its inner one's, of which it has more."""
    batch = z.shape[: z.dim() - len(inner.event_shape)]
    return flags.reshape(*flags.shape, *(1,) * last).expand(batch)


def _summed(value: Tensor, last: int) -> Tensor:
    """Over so many last dimensions."""
    return value.sum(dim=tuple(range(-last, 0))) if last else value


def _supported(base: Distribution, z: Tensor) -> Tensor:
    """Which points lie on the support, [...]; all of them where the base does not know it."""
    try:
        support: Any = cast("Any", base).support
    except NotImplementedError:
        return torch.ones(z.shape[: z.dim() - len(base.event_shape)], device=z.device).bool()
    return support.check(torch.nan_to_num(z))


def _safe(base: Distribution, z: Tensor, inside: Tensor) -> Tensor:
    """The points, with one on the support in the place of those that are not inside."""
    shown = inside.reshape(*inside.shape, *(1,) * len(base.event_shape))
    return torch.where(shown, z, _inner_point(base, z))


def _inner_point(base: Distribution, z: Tensor) -> Tensor:
    """A point on the support for each place of the batch."""
    try:
        mean = base.mean.detach().expand(z.shape)
        if bool(_supported(base, mean).all()):
            return mean
    except NotImplementedError:
        pass
    with torch.random.fork_rng(devices=[z.device] if z.device.type == "cuda" else []):
        return base.sample().expand(z.shape)
