"""One Runge-Kutta step: a pure function of tensors, used by every backend of our own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ctflow.backends.native.method import Method
from ctflow.backends.tableau import Tableau
from ctflow.transforms import bare

__all__ = [
    "FlatField",
    "Step",
    "combine",
    "extended",
    "joined",
    "moved_by",
    "rk_step",
    "scaled",
    "stage_times",
    "warm",
]


class FlatField(Protocol):
    """dy/dt on flat tensors: times [B] in the dtype of y, states [B, N] -> [B, N]."""

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate it once."""
        ...


class Step(NamedTuple):
    """What one step of every sample computed.

    Attributes:
        t0: Start, [B], in time's own dtype.
        t1: End, [B].
        y0: State at the start, [B, N].
        y1: State at the end, [B, N].
        h: t1 - t0 in the dtype of y, [B, 1]; negative where time runs down.
        k: The stages, each [B, N]; with those of the interpolant after `extended`.
        seen: Least and greatest time that f saw, [B] each, in the dtype of y; None for t0 and t1.
    """

    t0: Tensor
    t1: Tensor
    y0: Tensor
    y1: Tensor
    h: Tensor
    k: tuple[Tensor, ...]
    seen: tuple[Tensor, Tensor] | None = None

    @property
    def first_time(self) -> Tensor:
        """Time of the first stage as f saw it, [B]."""
        return _within(self.t0.to(self.y0.dtype), self.seen)


def rk_step(
    field: FlatField,
    tableau: Tableau,
    t0: Tensor,
    t1: Tensor,
    y0: Tensor,
    f0: Tensor | None,
    seen: tuple[Tensor, Tensor] | None = None,
) -> Step:
    """Advance every sample from t0 to t1 by one explicit Runge-Kutta step.

    A sample with t1 = t0 keeps its state bit for bit.

    Args:
        field: dy/dt on flat tensors.
        tableau: The method.
        t0: Start, [B].
        t1: End, [B]; no stage is evaluated beyond it.
        y0: State at t0, [B, N].
        f0: `field(t0, y0)` where it is known already, else None.
        seen: Least and greatest time that f may see, [B] each, in the dtype of y.

    Returns:
        The step.

    Cost:
        One evaluation for each stage; one less with `f0`.

    Source:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, definition II.1.1.
    """
    h = (t1 - t0).to(y0.dtype).unsqueeze(-1)
    times = stage_times(tableau, t0, t1, y0.dtype, seen)
    k = [field(times[0], y0) if f0 is None else f0]
    y = y0
    for i in range(1, tableau.stages):
        y = moved_by(y0, tableau.a[i], k, h)
        k.append(field(times[i], y))
    y1 = y if tableau.fsal else moved_by(y0, tableau.b, k, h)
    return Step(t0, t1, y0, y1, h, tuple(k), seen)


def extended(field: FlatField, tableau: Method, step: Step) -> Step:
    """The step with the stages that only the interpolant uses; itself where there are none.

    Cost:
        One evaluation for each of `tableau.further`.
    """
    if len(step.k) == len(tableau.a):
        return step
    k, times = list(step.k), stage_times(tableau, step.t0, step.t1, step.y0.dtype, step.seen)
    for i in range(len(k), len(tableau.a)):
        k.append(field(times[i], moved_by(step.y0, tableau.a[i], k, step.h)))
    return step._replace(k=tuple(k))


def joined(steps: Sequence[Step]) -> Step:
    """Several steps as one of as many samples more, for what looks at samples one by one."""
    t0, t1, y0, y1, h = (
        torch.cat([step[i] for step in steps])  # pyright: ignore[reportArgumentType]
        for i in range(5)
    )
    k = tuple(torch.cat(each) for each in zip(*(step.k for step in steps), strict=True))
    return Step(t0, t1, y0, y1, h, k)


def combine(weights: Sequence[float], k: Sequence[Tensor]) -> Tensor:
    """Sum of the stages by their weights, zero weights left out; [B, N]."""
    total, weight = scaled(weights, k)
    return total if weight == 1 else total * weight


def moved_by(y0: Tensor, weights: Sequence[float], k: Sequence[Tensor], h: Tensor) -> Tensor:
    """y0 + h times the sum of the stages by their weights, [B, N]; h is [B, 1]."""
    total, weight = scaled(weights, k)
    return torch.addcmul(y0, total, h, value=weight)


def scaled(weights: Sequence[float], k: Sequence[Tensor]) -> tuple[Tensor, float]:
    """The sum of the stages by their weights as a tensor and a factor on it.

    The factor is the weight of largest absolute value, so that its stage is taken as it is. What
    comes next can often be told the factor, where a product with a number is an operation of its
    own, and a slow one: torch makes a tensor of the number first.
    """
    order = _order(tuple(weights[: len(k)]))
    if not order:
        return torch.zeros_like(k[0]), 1.0
    first, weight = order[0]
    total, add = k[first], torch.add
    again = Tensor.add_ if bare() else torch.add  # no memory is asked for where the sum is ours
    for i, w in order[1:]:
        total, add = add(total, k[i], alpha=w), again
    return total, weight


@lru_cache(maxsize=1024)
def _order(weights: tuple[float, ...]) -> tuple[tuple[int, float], ...]:
    """Indices of the weights that are not 0: the largest and itself, the others over it."""
    found = [i for i, w in enumerate(weights) if w]
    if not found:
        return ()
    first = max(found, key=lambda i: abs(weights[i]))
    rest = ((i, weights[i] / weights[first]) for i in found if i != first)
    return ((first, weights[first]), *rest)


def warm(tableau: Method, dtype: torch.dtype, device: torch.device) -> None:
    """Make the method's constants now: code that is only followed must find them made."""
    _nodes(tableau, dtype, device)


def stage_times(
    tableau: Method,
    t0: Tensor,
    t1: Tensor,
    dtype: torch.dtype,
    seen: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, ...]:
    """Time of each stage, [B], as f sees it."""
    # lerp is exact at both ends, where t0 + (t1 - t0) may round past t1.
    times = torch.lerp(t0, t1, _nodes(tableau, t0.dtype, t0.device)).to(dtype)
    return _within(times, seen).unbind(0)


def _within(times: Tensor, seen: tuple[Tensor, Tensor] | None) -> Tensor:
    return times if seen is None else torch.clamp(times, *seen)


@lru_cache(maxsize=64)
def _nodes(tableau: Method, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The nodes c as a column, [S, 1]."""
    with torch.inference_mode(False):
        return torch.tensor(tableau.c, dtype=dtype, device=device).unsqueeze(1)
