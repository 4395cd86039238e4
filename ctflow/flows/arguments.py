"""What a flow is made of, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Distribution

from ctflow.errors import InvalidProblem
from ctflow.flows.divergence import Divergence

__all__ = ["batch_of", "check_base", "check_parts", "check_points"]


def check_base(base: object) -> None:
    """Refuse what points cannot flow from.

    Raises:
        InvalidProblem: If it is no distribution, has no event dimension, or is discrete.
    """
    if not isinstance(base, Distribution):
        raise InvalidProblem(
            f"`base` must be a torch.distributions.Distribution, got {type(base).__name__}. "
            "For a standard normal one: Independent(Normal(torch.zeros(D), torch.ones(D)), 1)."
        )
    if not base.event_shape:
        raise InvalidProblem(
            "`base` must be over events of at least one dimension, got an event shape of []. "
            "Wrap it: torch.distributions.Independent(base, 1)."
        )
    try:
        discrete = cast("Any", base).support.is_discrete
    except NotImplementedError:  # it does not say
        return
    if discrete:
        raise InvalidProblem(
            f"`base` must have a density, got {type(base).__name__} over discrete values. "
            "Use a continuous distribution; add uniform noise to discrete data."
        )


def check_parts(field: object, divergence: object, costs: object) -> None:
    """Refuse what cannot be evaluated.

    Raises:
        InvalidProblem: If field or a cost is not callable, the costs are no sequence, or the
            divergence is no `Divergence`.
    """
    if not isinstance(costs, Sequence):
        raise InvalidProblem(
            f"`running_costs` must be a sequence, got {costs!r}. Write [kinetic], with brackets."
        )
    costs = cast("Sequence[object]", costs)
    rows = ((f"running_costs[{i}]", cost) for i, cost in enumerate(costs))
    for name, value in (("field", field), *rows):
        if not callable(value):
            raise InvalidProblem(
                f"`{name}` must be a function or a module, got {value!r}. "
                "A field is f(t, z), a running cost takes the rates at a place."
            )
    if divergence is None:
        return
    if isinstance(divergence, type) or not isinstance(divergence, Divergence):
        raise InvalidProblem(
            f"`divergence` must be a Divergence or None, got {divergence!r}. "
            "Write Exact(), Hutchinson() or HutchPlusPlus()."
        )


def batch_of(base: Distribution, context: object) -> torch.Size:
    """The batch shape of base and context [*batch, C] together.

    Raises:
        InvalidProblem: If the context is no tensor, or does not broadcast.
    """
    if context is None:
        return base.batch_shape
    if not isinstance(context, Tensor) or context.dim() == 0:
        got = "a 0-dim tensor" if isinstance(context, Tensor) else type(context).__name__
        raise InvalidProblem(
            f"`context` must be a tensor [*batch, C], got {got}. "
            "Its last dimension holds the features."
        )
    try:
        return torch.broadcast_shapes(base.batch_shape, context.shape[:-1])
    except RuntimeError:
        raise InvalidProblem(
            f"`context` must broadcast against the base's batch shape {list(base.batch_shape)}, "
            f"got {list(context.shape)}. Its last dimension holds the features."
        ) from None


def check_points(value: object, base: Distribution, name: str = "value") -> torch.Size:
    """The shape of points [..., *event] beside the batch of a flow.

    Raises:
        InvalidProblem: If they are no tensor, of another event shape, or do not broadcast.
    """
    event = len(base.event_shape)
    if not isinstance(value, Tensor):
        raise InvalidProblem(
            f"`{name}` must be a tensor [..., *event], got {type(value).__name__}. "
            "Use torch.as_tensor, in the dtype of the field."
        )
    if value.shape[value.dim() - event :] != base.event_shape:
        raise InvalidProblem(
            f"`{name}` must end in the event shape {list(base.event_shape)}, got "
            f"{list(value.shape)}. Put one point in the last {event} dimensions."
        )
    try:
        return torch.broadcast_shapes(value.shape, base.batch_shape + base.event_shape)
    except RuntimeError:
        raise InvalidProblem(
            f"`{name}` must broadcast against batch {list(base.batch_shape)} and event "
            f"{list(base.event_shape)}, got {list(value.shape)}. One point goes with each of the "
            "batch; more of them in front."
        ) from None
