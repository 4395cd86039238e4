"""What surrounds a solve: torch.func's transforms, torch's forward mode, and torch.compile.

Inside them a tensor is wrapped, once for each transform that it belongs to. Steps, times and
statuses are plain numbers all the same, so what decides them is looked at below the wrappers: of
torch.vmap, which makes one call of many, the numbers of all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = [
    "active",
    "any_batched",
    "bare",
    "is_batched",
    "is_moving",
    "least",
    "levels",
    "plain",
    "touched",
    "untraced",
]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_functorch = torch._C._functorch  # pyright: ignore


def active() -> bool:
    """Whether a transform, or a level of forward mode, surrounds this call."""
    if torch.compiler.is_compiling():  # which takes transforms apart before it comes here
        return False
    return _functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0  # pyright: ignore


def bare() -> bool:
    """Whether nothing surrounds this call: no transform, no compiler, and nobody takes notes.

    Then what nobody else holds may be written to in place.
    """
    if torch.compiler.is_compiling() or active():
        return False
    modes = torch._C._TorchDispatchModeKey  # pyright: ignore
    found = torch._C._get_dispatch_mode  # pyright: ignore
    return found(modes.PROXY) is None and found(modes.FUNCTIONAL) is None


def is_batched(x: Tensor) -> bool:
    """Whether torch.vmap gives x another value in each of its calls.

    So it is too in a backward pass that is asked for several cotangents at once.
    """
    if _functorch.is_legacy_batchedtensor(x):  # of `is_grads_batched` and `vectorize=True`
        return True
    if not active():
        return False
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_batchedtensor(x):
            return True
        x = _functorch.get_unwrapped(x)
    return False


def any_batched(values: Iterable[object]) -> bool:
    """Whether torch.vmap gives any tensor among them another value in each of its calls."""
    return active() and any(isinstance(x, Tensor) and is_batched(x) for x in values)


def plain(x: Tensor) -> Tensor:
    """The numbers alone, detached; under torch.vmap with its dimension, wherever it lies."""
    if not active():
        return x.detach() if x.requires_grad else x
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x.detach()


def least(x: Tensor) -> Tensor:
    """The least value of all calls of torch.vmap, element by element: a plain tensor like x.

    Of a mask it says where it holds in every call.
    """
    while active() and _functorch.is_functorch_wrapped_tensor(x):
        inner = _functorch.get_unwrapped(x)
        if _functorch.is_batchedtensor(x):
            inner = inner.amin(dim=_functorch.maybe_get_bdim(x))
        x = inner
    return x.detach()


def is_moving(t: Tensor) -> bool:
    """Whether a derivative with respect to t may be wanted, in either mode."""
    return t.requires_grad or (active() and levels(t) != 0)


def touched(values: Iterable[object]) -> bool:
    """Whether any tensor among them is wrapped by a transform or has a tangent."""
    return active() and any(
        isinstance(x, Tensor) and (_functorch.is_functorch_wrapped_tensor(x) or _has_tangent(x))
        for x in values
    )


def levels(t: Tensor) -> int | None:
    """How many times at most what surrounds the call differentiates by t; None for no end of it.

    Each transform of torch.func differentiates once, and so does a level of forward mode; what
    autograd records by itself may be differentiated again and again. Tangents can only be seen of
    the innermost transform: of those around it, each that wraps t is taken to give it one.
    """
    layers = _functorch.get_interpreter_stack() or []
    forward = {layer.level() for layer in layers if layer.key() == _functorch.TransformType.Jvp}
    innermost = layers[-1].level() if layers else None
    count = 0
    while _functorch.is_functorch_wrapped_tensor(t):
        level = _functorch.maybe_get_level(t)
        count += t.requires_grad or (level in forward and (level != innermost or _has_tangent(t)))
        t = _functorch.get_unwrapped(t)
    return None if t.requires_grad else count + _has_tangent(t)


def _has_tangent(t: Tensor) -> bool:
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None  # pyright: ignore


def untraced(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Keep a function, and all that it calls, out of the graphs of a torch.compile around it.

    As `torch.compiler.disable`, which imports torch's compiler where it is written, a second and
    more: here that waits until someone else has imported it.
    """
    disabled: list[Callable[_P, _T]] = []

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if not disabled:
            if "torch._dynamo" not in sys.modules:
                return function(*args, **kwargs)
            disabled.append(torch.compiler.disable(function))  # pyright: ignore
        return disabled[0](*args, **kwargs)

    return call
