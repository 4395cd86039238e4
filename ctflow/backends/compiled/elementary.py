"""How an elementary function of float32 is written out in C++: few operations, fused with the rest.

The compiler calls a library for each vector, and what surrounds the call has to leave its
registers. What is written out here bears no more than 3 units in the last place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._inductor import lowering
from torch._inductor.codegen.cpp import CppOverrides, CppVecOverrides
from torch._inductor.dtype_propagation import DtypePropagationOpsHandler
from torch._inductor.ir import ops_wrapper
from torch._inductor.ops_handler import DefaultHandler
from torch._inductor.virtualized import V

__all__ = ["fast_tanh"]

# tanh x = u / (u + 2) of u = exp(2x) - 1, and 2x = n log 2 + r with n whole: then
# u = 2^n q + (2^n - 1) of q = exp(r) - 1 = r + r^2 P(r), |r| <= log(2) / 2. P by powers from the
# first, a minimax fit of q's relative error, 1.3e-8 (weighted least squares, reweighted).
_P = (0.49999998, 0.16666543, 0.0416672, 0.008366547, 0.0013882516)
_BOUND = 9.2  # beyond it float32 rounds tanh to 1
_SHIFT = 12582912.0  # 1.5 * 2^23: added to a number, it leaves the nearest whole one at the end

_TANH = """
    const F size = {least}({abs}, F({bound}f));
    const F shifted = {fma}(size, F(2.88539008f), F({shift}f));
    const F whole = shifted - F({shift}f);
    const F r = {fma}(whole, F(-0.693147181f), size + size);
    F p = F({p[4]}f);
    p = {fma}(p, r, F({p[3]}f));
    p = {fma}(p, r, F({p[2]}f));
    p = {fma}(p, r, F({p[1]}f));
    p = {fma}(p, r, F({p[0]}f));
    const F q = {fma}(r * r, p, r);
    const F power = {power};
    const F u = {fma}(power, q, power - F(1.0f));
    const F found = u / (u + F(2.0f));
"""


@torch.library.custom_op("ctflow::tanh", mutates_args=())
def fast_tanh(x: Tensor) -> Tensor:
    """tanh of float32 within 2.6 units in the last place."""
    return x.tanh()


@fast_tanh.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _text(**parts: str) -> str:
    return _TANH.format(p=_P, bound=_BOUND, shift=_SHIFT, **parts)


def _of_number(x: Any) -> str:  # noqa: ANN401
    """tanh of one number, with the roundings of a vector's."""
    text = _text(
        least="std::min<F>", abs=f"std::abs({x})", fma="std::fma",
        power="c10::bit_cast<float>((c10::bit_cast<uint32_t>(shifted) << 23) + 0x3f800000u)",
    )  # fmt: skip
    return f"[&]()\n{{\n    using F = float;{text}    return std::copysign(found, {x});\n}}\n()"


def _of_vector(x: Any) -> str:  # noqa: ANN401
    """tanh of a vector, or of several side by side."""
    text = _text(
        least="at::vec::clamp_max", abs="x.abs()", fma="at::vec::fmadd",
        power="at::vec::cast<float>((at::vec::cast<int32_t>(shifted) << I(23)) + I(0x3f800000))",
    )  # fmt: skip
    own = (
        "    using F = at::vec::Vectorized<float>;\n"
        "    using I = at::vec::Vectorized<int32_t>;\n"
        f"    const auto one = [](const F& x)\n    {{{text}"
        "    return found | (x & F(-0.0f));\n    };\n"
    )
    kernel: Any = V.kernel
    several = kernel._get_num_vectors(torch.float32) > 1
    return f"[&]()\n{{\n{own}    return {f'{x}.unary_op(one)' if several else f'one({x})'};\n}}\n()"


def _dtype(_: Any, x: Any) -> torch.dtype:  # noqa: ANN401
    return x.dtype


# The compiler's tables of operations on numbers are classes: one more method in each.
_HANDLER: Any = DefaultHandler
_DTYPES: Any = DtypePropagationOpsHandler
_NUMBERS: Any = CppOverrides
_VECTORS: Any = CppVecOverrides
_HANDLER.ctflow_tanh = _HANDLER._call_default("ctflow_tanh")
_DTYPES.ctflow_tanh = _dtype
_NUMBERS.ctflow_tanh = staticmethod(_of_number)
_VECTORS.ctflow_tanh = staticmethod(_of_vector)


@lowering.register_lowering(torch.ops.ctflow.tanh.default)  # pyright: ignore
def _lowered(x: Any) -> Any:  # noqa: ANN401
    found = lowering.make_pointwise(ops_wrapper("ctflow_tanh"))(x)
    if len(V.graph.current_node.users) > 1:
        found.realize()  # else each of its readers computes it anew
    return found
