"""A vector field under examination: how it is called, and how two of its values are compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ctflow.backends.places import tensors_in
from ctflow.state import Layout, leaves_of, map_leaves
from ctflow.testing.examples import Box, Case

__all__ = [
    "Subject",
    "difference",
    "flat",
    "fresh",
    "named_tensors",
    "rounding",
    "rows",
    "said",
    "size_of",
    "untouched_copy",
]

_TINY = 1e-30
_ROUNDING = 1e3
"""Units in the last place of the largest number by which two ways of summing may differ."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A field, and where it is looked at.

    Args:
        f: `f(t, y)`, or `f(t, y, args)` where `args` is given.
        args: Its third argument, or None.
        box: Where the examples come from.
        cases: The examples.
        seed: Seed of random directions.
        untouched: A copy of the field from before its first evaluation, if there is one.
    """

    f: Callable[..., Any]
    args: Any
    box: Box
    cases: tuple[Case, ...]
    seed: int
    untouched: Callable[..., Any] | None = None

    def returned(self, t: Tensor, y: Any) -> Any:  # noqa: ANN401
        """What the field returns, as it is, for the very tensors that are handed in."""
        return self.f(t, y) if self.args is None else self.f(t, y, self.args)

    def __call__(self, t: Tensor, y: Any) -> Any:  # noqa: ANN401
        """Evaluate the field at copies; the derivative has the state's structure and order.

        Raises:
            InvalidProblem: If it cannot be brought into that.
        """
        layout = Layout.of(y, per_sample=False)
        dy = self.returned(t.clone(), map_leaves(torch.clone, y))
        return layout.unpack(layout.pack_derivative(dy))

    def value(self, case: Case) -> Tensor:
        """The field at an example as one detached vector, evaluated as in a forward pass."""
        with torch.enable_grad():
            return flat(self(case.t, fresh(case.y))).detach()

    @property
    def module(self) -> nn.Module | None:
        """The module whose mode and buffers belong to the field, if it is one."""
        return self.f if isinstance(self.f, nn.Module) else None

    @property
    def name(self) -> str:
        """What to call it in a report."""
        return str(getattr(self.f, "__qualname__", type(self.f).__name__)).split(".")[-1]

    def directions(self, like: Tensor) -> Tensor:
        """A random direction with entries of size 1."""
        generator = torch.Generator().manual_seed(self.seed)
        signs = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.float64)
        lengths = 0.5 + torch.rand(like.shape, generator=generator, dtype=torch.float64)
        return ((2 * signs - 1) * lengths).to(like)


def flat(y: object) -> Tensor:
    """All numbers of a state as one vector."""
    return torch.cat([leaf.reshape(-1) for leaf in leaves_of(y)])


def fresh(y: Any) -> Any:  # noqa: ANN401
    """A copy of a state whose leaves want a gradient, as they do in a solve."""
    return map_leaves(lambda leaf: leaf.detach().clone().requires_grad_(), y)


def rows(y: Any, chosen: Sequence[int]) -> Any:  # noqa: ANN401
    """Some samples of a batch."""
    return map_leaves(lambda leaf: leaf[list(chosen)], y)


def rounding(value: Tensor) -> float:
    """How much two ways to compute a value may differ, relative to its largest number."""
    return _ROUNDING * torch.finfo(value.dtype).eps


def said(error: Exception) -> str:
    """What was raised, in one line."""
    message = " ".join(str(error).split()).partition(" from user code: ")[0]  # dynamo adds its own
    return f"{type(error).__name__}: {message[:300]}"


def untouched_copy(f: Callable[..., Any]) -> Callable[..., Any] | None:
    """A copy that nobody has evaluated; None where copies share what they keep, or cannot be made.

    Layers without a size yet draw their weights when they are first called: a copy draws others.
    """
    if isinstance(f, nn.Module) and any(is_lazy(x) for x in (*f.parameters(), *f.buffers())):
        return None
    with suppress(Exception):  # of whatever kind, it is the user's object
        other = copy.deepcopy(f)
        return None if other is f else other
    return None


def size_of(*values: Tensor) -> float:
    """The largest number in any of them."""
    sizes = [float(value.detach().abs().amax()) for value in values if value.numel()]
    return max([*sizes, _TINY])


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference of two vectors in units of their largest number; NaN equals NaN."""
    unequal = ~((a == b) | (a.isnan() & b.isnan()))
    if not bool(unequal.any()):
        return 0.0
    gap = (a - b)[unequal].abs().amax()
    if not bool(torch.isfinite(gap)):
        return float("inf")
    finite = [x[torch.isfinite(x)] for x in (a, b)]
    return float(gap) / size_of(*finite)


def named_tensors(f: object) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in reach of a field, by a name: a module's own, then what it keeps elsewhere."""
    known: set[int] = set()
    if isinstance(f, nn.Module):
        for name, x in (*f.named_parameters(), *f.named_buffers()):
            known.add(id(x))
            yield name, x
    for x, place in tensors_in(f):
        if id(x) not in known and x.layout == torch.strided:
            known.add(id(x))
            name = place.key if isinstance(place.key, str) else "a tensor"
            yield f"{name} of shape {list(x.shape)}", x
