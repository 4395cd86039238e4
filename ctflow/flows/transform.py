"""The flow map as an ordinary `torch.distributions.Transform`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.distributions.transforms import _InverseTransform  # pyright: ignore[reportPrivateUsage]

from ctflow.errors import InvalidProblem
from ctflow.flows.transport import Carried, Transport, arrived

__all__ = ["FlowTransform"]


class FlowTransform(Transform):
    """The map  z(t0) -> z(t1)  along a field, with its log-determinant from the same solve.

    What a solve found is kept until the next one, so that a `TransformedDistribution`, or a chain
    of transforms, that asks first for the inverse and then for the log-determinant pays for one
    solve. It is found again by identity: by the same tensor, unchanged, under the same parameters.

    Args:
        transport: Field, divergence and solver.
        t: Start and end; data lie at the end.
        event_dim: Dimensions of one point.
        context: Rows that broadcast against the points, [..., C], or None.

    Raises:
        InvalidProblem: If t is not two times.
        SolveFailed: When called, if any point did not arrive; carries the partial `Solution`.
    """

    bijective = True

    def __init__(
        self,
        transport: Transport,
        t: Sequence[float] | Tensor,
        *,
        event_dim: int = 1,
        context: Tensor | None = None,
    ) -> None:
        """Nothing is solved yet."""
        super().__init__()  # torch's own cache stays off: it does not notice new parameters
        _check_ends(t)
        self.transport = transport
        self.t = t
        self.event_dim_ = event_dim
        self.context = context
        self._kept: _Kept | None = None

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> Any:  # noqa: ANN401
        """Real points of so many dimensions."""
        return constraints.independent(constraints.real, self.event_dim_)

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> Any:  # noqa: ANN401
        """Real points of so many dimensions."""
        return constraints.independent(constraints.real, self.event_dim_)

    @property
    def inv(self) -> Transform:
        """The map from data to base."""
        # Torch's own property keeps it on the transform, which it refers to: such a cycle would
        # hold the graph of the last solve until the garbage collector comes by.
        return _InverseTransform(self)

    def with_cache(self, cache_size: int = 1) -> FlowTransform:  # noqa: ARG002
        """The transform itself, which always keeps its last solve."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without the last solve, whose graph can be neither copied nor pickled."""
        return self.__dict__ | {"_kept": None}

    def _call(self, x: Tensor) -> Tensor:
        kept = self._found(x, "x")
        return self._solve(x, forwards=True).y if kept is None else kept.y

    def _inverse(self, y: Tensor) -> Tensor:
        kept = self._found(y, "y")
        return self._solve(y, forwards=False).x if kept is None else kept.x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-determinant of the map at x [..., *event], [...]; y = map(x)."""
        kept = self._found(y, "y") or self._found(x, "x") or self._solve(x, forwards=True)
        return kept.log_det

    def carry(self, points: Tensor, context: Tensor | None, forwards: bool) -> Carried:
        """Carry points [N, *event] with a row of context each; failures are values."""
        t = self.t if forwards else _reversed(self.t)
        return self.transport.carry(points, t, context)

    def flat(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        """Points [..., *event] as [N, *event], and the context as [N, C] beside them.

        Raises:
            InvalidProblem: If their shape fits neither the event's nor the context's.
        """
        shape, event = self._split(points)
        context = self.context
        if context is not None:
            try:
                shape = torch.broadcast_shapes(shape, context.shape[:-1])
            except RuntimeError:
                raise InvalidProblem(
                    f"points must broadcast against the context, got {list(points.shape)} for a "
                    f"context of {list(context.shape)}. One row of context goes with each point."
                ) from None
            context = context.expand(*shape, -1).reshape(-1, context.shape[-1])
        return points.expand(*shape, *event).reshape(-1, *event), context

    def _split(self, points: Tensor) -> tuple[torch.Size, torch.Size]:
        """Batch and event shape."""
        if points.dim() < self.event_dim_:
            raise InvalidProblem(
                f"points must have at least {self.event_dim_} dimensions, got shape "
                f"{list(points.shape)}. Add the dimension of the variables."
            )
        cut = points.dim() - self.event_dim_
        return points.shape[:cut], points.shape[cut:]

    def _solve(self, start: Tensor, forwards: bool) -> _Kept:
        flat, context = self.flat(start)
        batch, event = self._split(start)
        if context is not None and self.context is not None:
            batch = torch.broadcast_shapes(batch, self.context.shape[:-1])
        carried = self.carry(flat, context, forwards)
        arrived(carried.solution, batch)
        end, log_det = carried.z.reshape(*batch, *event), carried.log_det.reshape(batch)
        x, y = (start, end) if forwards else (end, start)
        self._kept = _Kept(x, y, log_det if forwards else -log_det, self._guard(x, y))
        return self._kept

    def _found(self, tensor: Tensor, side: str) -> _Kept | None:
        kept = self._kept
        if kept is None or (kept.x if side == "x" else kept.y) is not tensor:
            return None
        return kept if kept.guard == self._guard(kept.x, kept.y) else None

    def _guard(self, x: Tensor, y: Tensor) -> tuple[object, ...]:
        """What must be as it was for a solve to hold again."""
        versions = tuple(_version(tensor) for tensor in (x, y, self.context, self.t))
        return (*versions, torch.is_grad_enabled(), self.transport.versions())


class _Kept(NamedTuple):
    """A solve: both ends, the log-determinant from x to y, and what it depended on."""

    x: Tensor
    y: Tensor
    log_det: Tensor
    guard: tuple[object, ...]


def _check_ends(t: Sequence[float] | Tensor) -> None:
    try:
        n = len(t)
    except TypeError:  # one number
        n = 1
    if n != 2:
        raise InvalidProblem(
            f"`t` must be a start and an end, got {n} time{'s' * (n != 1)}. For the density at "
            "times between use `at`, for paths `trajectory`."
        )


def _version(value: object) -> object:
    if not isinstance(value, Tensor) or value.is_inference():
        return None
    return value._version


def _reversed(t: Sequence[float] | Tensor) -> Sequence[float] | Tensor:
    return t.flip(0) if isinstance(t, Tensor) else (t[1], t[0])
