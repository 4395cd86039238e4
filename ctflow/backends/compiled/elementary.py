"""How tanh and softplus of float32 are written out in C++: few operations, fused with the rest.

For these the compiler calls a library with each vector, and what surrounds the call has to leave
its registers. What is written out here errs by no more than 3 units in the last place.

Both are built around an exponential. With w = n log 2 + r, n whole and |r| <= log(2) / 2, it is
exp(w) = 2^n (1 + q) of q = exp(r) - 1 = r + r^2 P(r).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._inductor import lowering
from torch._inductor.codegen.cpp import CppOverrides, CppVecOverrides
from torch._inductor.dtype_propagation import DtypePropagationOpsHandler
from torch._inductor.ir import ops_wrapper
from torch._inductor.ops_handler import DefaultHandler
from torch._inductor.virtualized import V

__all__ = ["softplus", "tanh"]

_CLOSE = "fma(whole, F(-0.693147182f), w)"  # w - n log 2 where n is small
_CLOSER = "fma(whole, F(-1.42860677e-6f), fma(whole, F(-0.693145752f), w))"  # any n of float32


def _exponential(r: str) -> str:
    """The lines from w to q, which leave n in the last bits of `shifted`.

    1.5 * 2^23, added, leaves whole numbers there. P is a minimax fit of q's relative error, 1.3e-8
    (weighted least squares, reweighted).
    """
    return f"""
    const F shifted = fma(w, F(1.44269504f), F(12582912.0f));
    const F whole = shifted - F(12582912.0f);
    const F r = {r};
    F p = fma(F(0.0013882516f), r, F(0.008366547f));
    p = fma(p, r, F(0.0416672f));
    p = fma(p, r, F(0.16666543f));
    p = fma(p, r, F(0.49999998f));
    const F q = fma(r * r, p, r);
"""


# Beyond the bounds float32 rounds the result to that at the bound.
_TEXTS: Mapping[str, str] = MappingProxyType(
    {
        # u / (u + 2) of u = exp(2 |x|) - 1
        "tanh": f"""
    const F size = most(magnitude(x), F(9.2f));
    const F w = size + size;
{_exponential(_CLOSE)}
    const F power = number((bits(shifted) << I(23)) + I(0x3f800000));
    const F u = fma(power, q, power - F(1.0f));
    return signed_as(u / (u + F(2.0f)), x);
""",
        # max(x, 0) + log(1 + e) of e = exp(-|x|), which may be below 2^-126: then in two factors.
        # log(1 + e) = 2 artanh s of s = e / (e + 2) <= 1 / 3; again a minimax fit, 4.5e-9.
        "softplus": f"""
    const F w = F(0.0f) - most(magnitude(x), F(104.0f));
{_exponential(_CLOSER)}
    const F power = number((bits(shifted) << I(23)) + I(0x5f800000));
    const F e = fma(power, q, power) * F(0x1p-64f);
    const F s = e / (e + F(2.0f));
    const F z = s * s;
    F a = fma(F(0.28018772f), z, F(0.28000537f));
    a = fma(a, z, F(0.40021597f));
    a = fma(a, z, F(0.66666415f));
    return least(x, F(0.0f)) + fma(s * z, a, s + s);
""",
    }
)

_ONE_NUMBER = """
    using F = float;
    using I = int32_t;
    const auto fma = [](F a, F b, F c) { return std::fma(a, b, c); };
    const auto most = [](F a, F limit) { return std::min<F>(a, limit); };
    const auto least = [](F a, F limit) { return std::max<F>(a, limit); };
    const auto magnitude = [](F a) { return std::abs(a); };
    const auto signed_as = [](F a, F b) { return std::copysign(a, b); };
    const auto bits = [](F a) { return c10::bit_cast<I>(a); };
    const auto number = [](I a) { return c10::bit_cast<F>(a); };
"""

_VECTOR = """
    using F = at::vec::Vectorized<float>;
    using I = at::vec::Vectorized<int32_t>;
    const auto fma = [](F a, F b, F c) { return at::vec::fmadd(a, b, c); };
    const auto most = [](F a, F limit) { return at::vec::clamp_max(a, limit); };
    const auto least = [](F a, F limit) { return at::vec::clamp_min(a, limit); };
    const auto magnitude = [](F a) { return a.abs(); };
    const auto signed_as = [](F a, F b) { return a | (b & F(-0.0f)); };
    const auto bits = [](F a) { return at::vec::cast<int32_t>(a); };
    const auto number = [](I a) { return at::vec::cast<float>(a); };
"""


def _of_number(name: str, x: Any) -> str:  # noqa: ANN401
    """A function of one number, with the roundings of a vector's."""
    return f"[](const float x)\n{{{_ONE_NUMBER}{_TEXTS[name]}}}\n({x})"


def _of_vector(name: str, x: Any) -> str:  # noqa: ANN401
    """A function of a vector, or of several side by side."""
    own = f"[](const at::vec::Vectorized<float> x)\n{{{_VECTOR}{_TEXTS[name]}}}\n"
    kernel: Any = V.kernel
    return f"{x}.unary_op({own})" if kernel._get_num_vectors(torch.float32) > 1 else f"{own}({x})"


def _dtype(_: Any, x: Any) -> torch.dtype:  # noqa: ANN401
    return x.dtype


def _lowered(name: str, x: Any) -> Any:  # noqa: ANN401
    found = lowering.make_pointwise(ops_wrapper(name))(x)
    if len(V.graph.current_node.users) > 1:
        found.realize()  # else each of its readers computes it anew
    return found


def _written_out(name: str, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An operation of float32 that the compiler knows; in Python it is torch's own."""

    def plain(x: Tensor) -> Tensor:
        return function(x)

    operation: Any = torch.library.custom_op(f"ctflow::{name}", plain, mutates_args=())
    operation.register_fake(torch.empty_like)
    # The compiler's tables of operations on numbers are classes: one more method in each.
    own = f"ctflow_{name}"
    handler: Any = DefaultHandler
    setattr(handler, own, handler._call_default(own))
    setattr(DtypePropagationOpsHandler, own, _dtype)
    for table, text in ((CppOverrides, _of_number), (CppVecOverrides, _of_vector)):
        writer: Any = partial(text, name)
        writer.__name__ = own  # by which a kernel of vectors finds what it needs for one number
        setattr(table, own, staticmethod(writer))
    lowering.register_lowering(operation._opoverload)(partial(_lowered, own))
    return operation


tanh = _written_out("tanh", torch.tanh)
softplus = _written_out("softplus", torch.nn.functional.softplus)
