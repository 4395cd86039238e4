"""Products of middle size are part of the program, and what follows them is done block by block.

To call a library takes 2 microseconds (MKL) to 18 (oneDNN) beside the arithmetic, which for a
network of 64 units and a few hundred samples is half of the time; and MKL multiplies with half of
the vector's width on processors that are not Intel's.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch._inductor import lowering

from ctflow.backends.compiled.kernels import written_out
from ctflow.backends.compiled.splice import settled

__all__ = ["LARGE", "UNROLLED", "by_blocks", "by_dots", "by_library"]

UNROLLED = 8
"""Inner dimension up to which a product is no more than a few fused operations."""

LARGE = 2**24
"""Multiplications from which on an intermediate that holds each of them is too much."""

_LIBRARY: ContextVar[bool] = ContextVar("_LIBRARY", default=False)


def by_blocks(a: Tensor, b: Tensor) -> Tensor:
    """The product a @ b of float32: [M, K], [K, N] -> [M, N]."""
    lies = a.is_contiguous() or a.t().is_contiguous()
    return _product(a if lies else settled(a), b if b.is_contiguous() else settled(b))


def by_dots(a: Tensor, b: Tensor) -> Tensor:
    """The product a @ b.t() of float32, for a long inner dimension: [M, K], [N, K] -> [M, N]."""
    a, b = (x if x.is_contiguous() else settled(x) for x in (a, b))
    return _product(a, b.t())


@torch.library.custom_op("ctflow::product", mutates_args=())
def _product(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


@_product.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[1]))


@lowering.register_lowering(torch.ops.ctflow.product.default, type_promotion_kind=None)  # pyright: ignore
def _lowered(a: Any, b: Any) -> Any:  # noqa: ANN401
    found = None if _LIBRARY.get() else written_out(a, b)
    return lowering.lowerings[torch.ops.aten.mm.default](a, b) if found is None else found


@contextmanager
def by_library() -> Generator[None]:
    """Compile with products left to a library."""
    token = _LIBRARY.set(True)
    try:
        yield
    finally:
        _LIBRARY.reset(token)
