"""How a matrix product is written out in C++: the compiler's loops over blocks, with our kernel.

The compiler has a template that cuts a product into blocks and fuses what follows into it. The
kernel that it puts into the middle keeps its sums in an array, which GCC writes to memory after
every multiplication: half as fast as a library. Here each sum is a variable, and stays in its
register, as does a row that several sums are multiplied with; and the first matrix may lie
transposed, as that of a weight's gradient does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._inductor import (
    cpu_vec_isa,
    lowering,  # pyright: ignore[reportUnusedImport]  # noqa: F401  # first: others import it in circles
)
from torch._inductor.codegen.cpp_gemm_template import CppGemmTemplate
from torch._inductor.codegen.cpp_micro_gemm import CppMicroGemmFP32Vec, create_micro_gemm
from torch._inductor.kernel.mm_common import mm_args
from torch._inductor.utils import parallel_num_threads

__all__ = ["written_out"]

_SHARE = 2**19  # multiplications that are worth a thread
_USUAL = 256  # rows that any number of them is taken to be

_KERNEL = r"""
{%- set columns = block_n // vector %}
template <int64_t BLOCK_M, int64_t BLOCK_N, bool accum, bool prefetch=false>
inline void {{kernel_name}}{{"_ntail" if tail_n else ""}}_kernel(
    const {{input_t}}* {{restrict_keyword}} A,
    const {{input2_t}}* {{restrict_keyword}} B,
    {{output_t}}* {{restrict_keyword}} C,
{%- if tail_n %}
    int64_t N,
{%- endif %}
    int64_t K,
    int64_t lda,
    int64_t ldb,
    int64_t ldc
) {
    using Vectorized = at::vec::Vectorized<{{compute_t}}>;
    // Else GCC reads a row of B anew for each multiplication, more often than a processor can.
    const auto held = [](Vectorized x) {
#if defined(__GNUC__) && defined(CPU_CAPABILITY_AVX512)
        __m512 value = x;
        asm("" : "+v"(value));
        return Vectorized(value);
#elif defined(__GNUC__) && defined(CPU_CAPABILITY_AVX2)
        __m256 value = x;
        asm("" : "+x"(value));
        return Vectorized(value);
#else
        return x;
#endif
    };
    constexpr int64_t V = Vectorized::size();
    static_assert(V == {{vector}});
{%- for c in range(columns) %}
{%- if tail_n %}
    const int64_t n{{c}} = std::max<int64_t>(0, std::min<int64_t>(V, N - {{c}} * V));
{%- else %}
    constexpr int64_t n{{c}} = V;
{%- endif %}
{%- endfor %}
{%- for r in range(block_m) %}{% for c in range(columns) %}
    Vectorized c{{r}}_{{c}}(0.0f);
{%- endfor %}{% endfor %}
    if constexpr (accum) {
{%- for r in range(block_m) %}
        if constexpr (BLOCK_M > {{r}}) {
{%- for c in range(columns) %}
            c{{r}}_{{c}} = Vectorized::loadu(C + {{r}} * ldc + {{c}} * V, n{{c}});
{%- endfor %}
        }
{%- endfor %}
    }
    for (int64_t k = 0; k < K; ++k) {
{%- for c in range(columns) %}
        const auto b{{c}} = held(Vectorized::loadu(B + k * ldb + {{c}} * V, n{{c}}));
{%- endfor %}
{%- for r in range(block_m) %}
        if constexpr (BLOCK_M > {{r}}) {
            const Vectorized a(A[{{"%s + k * lda" % r if turned else "%s * lda + k" % r}}]);
{%- for c in range(columns) %}
            c{{r}}_{{c}} = at::vec::fmadd(a, b{{c}}, c{{r}}_{{c}});
{%- endfor %}
        }
{%- endfor %}
    }
{%- for r in range(block_m) %}
    if constexpr (BLOCK_M > {{r}}) {
{%- for c in range(columns) %}
        c{{r}}_{{c}}.store(C + {{r}} * ldc + {{c}} * V, n{{c}});
{%- endfor %}
    }
{%- endfor %}
}
"""


class _Kernel(CppMicroGemmFP32Vec):
    """A block of a product, each of its sums in a register."""

    TEMPLATE_KERNEL = _KERNEL

    def get_common_options(self) -> dict[str, Any]:
        """What its text is made from."""
        return {**super().get_common_options(), "vector": _vector(), "turned": False}

    def codegen_define(self, kernel: Any) -> str:  # noqa: ANN401
        """Its text, once for all products of a program that need the same."""
        text = super().codegen_define(kernel)
        return f"#ifndef {self.name}_is_there\n#define {self.name}_is_there\n{text}\n#endif\n"


class _TurnedKernel(_Kernel):
    """The same where the first matrix lies column after column."""

    TEMPLATE_ENTRY = CppMicroGemmFP32Vec.TEMPLATE_ENTRY.replace("A + m * lda", "A + m")

    def get_common_options(self) -> dict[str, Any]:
        """What its text is made from."""
        return {**super().get_common_options(), "turned": True}

    def codegen_call(self, kernel: Any, A: Any, B: Any, C: Any, *args: Any, **rest: Any) -> str:  # noqa: ANN401
        """The call, with the distance of the first matrix's columns in the place of its rows'."""
        text: str = super().codegen_call(kernel, A, B, C, *args, **rest)
        lines = text.splitlines()  # name, A, B, C, M, N, K, lda, ldb, ldc
        lines[7] = f"    {kernel.stride(A, 1)},"
        return "\n".join(lines)


class _Product(CppGemmTemplate):
    """A product whose second matrix is read as it lies, row after row."""

    def get_options(self, *args: Any, **rest: Any) -> dict[str, Any]:  # noqa: ANN401
        """What the loops' text is made from."""
        options = super().get_options(*args, **rest)
        given = options["micro_gemm"]
        turned = _is_turned(self.input_nodes[0])
        rows, columns, _ = given.register_blocking
        options["micro_gemm"] = (_TurnedKernel if turned else _Kernel)(
            f"block_{rows}_{columns}{'_turned' if turned else ''}", given.input_dtype,
            given.input2_dtype, given.output_dtype, given.compute_dtype,
            given.register_blocking, given.alpha,
        )  # fmt: skip
        return options


def written_out(a: Any, b: Any) -> Any:  # noqa: ANN401
    """The product as part of the program; None where that cannot be done.

    Args:
        a: [M, K] float32, row after row or column after column, as the compiler knows it.
        b: [K, N], row after row.
    """
    arguments: Any = mm_args(a, b)
    layout, a, b = arguments[-3:]
    m, n = layout.size
    k = a.get_size()[1]
    known = torch.cpu.get_capabilities()
    caches = known.get("l1d_cache_size", 0) > 0 and known.get("l2_cache_size", 0) > 0
    lies = (_is_turned(a) or a.get_layout().is_contiguous()) and b.get_layout().is_contiguous()
    if not caches or not lies or _vector() < 2 or a.get_name() == b.get_name():
        return None
    rows = int(m) if isinstance(m, int) or m.is_number else _USUAL
    n_threads = max(1, min(parallel_num_threads(), rows * int(n) * int(k) // _SHARE))
    float32 = torch.float32
    blocks = create_micro_gemm(
        "product", m, n, k, float32, input2_dtype=float32, output_dtype=float32,
        compute_dtype=float32, num_threads=n_threads,
    )  # fmt: skip
    if type(blocks) is not CppMicroGemmFP32Vec:
        return None
    template = _Product(
        [a, b], layout, n_threads, blocks.register_blocking, should_block_weights=False,
        name="product",
    )  # fmt: skip
    return template.generate().output_node()


def _is_turned(a: Any) -> bool:  # noqa: ANN401
    """Whether a matrix lies column after column."""
    rows, columns = a.get_stride()
    return rows == 1 and columns != 1


def _vector() -> int:
    """How many numbers the processor treats alike."""
    isa: Any = cpu_vec_isa.pick_vec_isa()
    return isa.nelements(torch.float32) if isa else 1
