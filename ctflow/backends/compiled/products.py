"""Long matrix products go to oneDNN, which uses all of the processor where MKL does not.

On processors that are not Intel's, MKL multiplies with half of the vector's width. The compiler
knows oneDNN's product for weights that are constants of the program only, and fuses functions into
it whose rounding is oneDNN's; so it has another name here, under which it is left as it is.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor
from torch._inductor import ir, lowering

from ctflow.backends.compiled.splice import settled

__all__ = ["HAS_ONEDNN", "LARGE", "UNROLLED", "by_onednn"]

UNROLLED = 8
"""Inner dimension up to which a product is no more than a few fused operations."""

LARGE = 2**24
"""Multiplications from which on an intermediate that holds each of them is too much."""

HAS_ONEDNN = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")


def by_onednn(a: Tensor, b: Tensor, *added: Tensor) -> Tensor:
    """The product a @ b of float32, plus a row or nothing: [M, K], [K, N], [N] -> [M, N]."""
    return _linear(a, settled(b.t()), added[0] if added else None)


@torch.library.custom_op("ctflow::linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")  # pyright: ignore


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    del bias
    return x.new_empty((x.shape[0], weight.shape[0]))


@lowering.register_lowering(torch.ops.ctflow.linear.default, type_promotion_kind=None)  # pyright: ignore
def _lowered(x: Any, weight: Any, bias: Any) -> Any:  # noqa: ANN401
    from torch._inductor import mkldnn_ir  # not in every build

    return ir.TensorBox.create(mkldnn_ir.LinearUnary.create(x, weight, bias, "none", [], ""))
