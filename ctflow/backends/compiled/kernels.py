"""How a matrix product is written out in C++: the compiler's loops over blocks, with our kernel.

The compiler has a template that cuts a product into blocks and fuses what follows into it. The
kernel that it puts into the middle keeps its sums in an array, which GCC writes to memory after
every multiplication: half as fast as a library. Here each sum is a variable, and stays in its
register, as does a row that several sums are multiplied with; and the first matrix may lie
transposed, as that of a weight's gradient does, or the second one, which makes each sum a dot
product along memory.

Sums over a part of the inner dimension begin at zero and are added at the end of it: a long sum's
rounding errors grow with the number of its parts and their length, not with its whole length.

The template takes the second matrix to have been packed into blocks of whole vectors. Ours lies as
it is: so the kernel is told where each block begins, and how many columns the last one has.
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
from torch._inductor.codegen.cpp_utils import GemmBlocking
from torch._inductor.kernel.mm_common import mm_args
from torch._inductor.utils import parallel_num_threads

__all__ = ["written_out"]

_SHARE = 2**19  # multiplications that are worth a thread
_LINE = 16  # numbers in a line of a cache
_USUAL = 256  # rows that any number of them is taken to be

_HELD = r"""    // Else GCC reads a vector anew for each multiplication: more than a processor can.
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
"""

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
{{held}}
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
{%- macro add(ends) %}
{%- for c in range(columns) %}
        const auto b{{c}} = held(Vectorized::loadu(B + k * ldb + {{c}} * V{{", n%s" % c if ends}}));
{%- endfor %}
{%- for r in range(block_m) %}
        if constexpr (BLOCK_M > {{r}}) {
            const Vectorized a(A[{{"%s + k * lda" % r if turned else "%s * lda + k" % r}}]);
{%- for c in range(columns) %}
            c{{r}}_{{c}} = at::vec::fmadd(a, b{{c}}, c{{r}}_{{c}});
{%- endfor %}
        }
{%- endfor %}
{%- endmacro %}
    int64_t k = 0;
{%- if tail_n %}
    // Whole vectors as long as what they read too much is the next rows: the last rows have none.
    const int64_t whole = K - ({{block_n}} - N + ldb - 1) / ldb;
    for (; k < whole; ++k) {
{{- add(false)}}
    }
{%- endif %}
    for (; k < K; ++k) {
{{- add(tail_n)}}
    }
{%- for r in range(block_m) %}
    if constexpr (BLOCK_M > {{r}}) {
{%- for c in range(columns) %}
        if constexpr (accum) {
            c{{r}}_{{c}} = c{{r}}_{{c}} + Vectorized::loadu(C + {{r}} * ldc + {{c}} * V, n{{c}});
        }
        c{{r}}_{{c}}.store(C + {{r}} * ldc + {{c}} * V, n{{c}});
{%- endfor %}
    }
{%- endfor %}
}
"""

_DOTS = r"""
template <int64_t ROWS, int64_t COLUMNS, bool accum>
inline void {{kernel_name}}_kernel(
    const {{input_t}}* {{restrict_keyword}} A,
    const {{input2_t}}* {{restrict_keyword}} B,
    {{output_t}}* {{restrict_keyword}} C,
    int64_t K,
    int64_t lda,
    int64_t ldb,
    int64_t ldc
) {
    using Vectorized = at::vec::Vectorized<{{compute_t}}>;
{{held}}
    constexpr int64_t V = Vectorized::size();
{%- for r in range(4) %}{% for c in range(3) %}
    Vectorized c{{r}}_{{c}}(0.0f);
{%- endfor %}{% endfor %}
{%- macro add(n) %}
{%- for c in range(3) %}
        Vectorized b{{c}}(0.0f);
        if constexpr (COLUMNS > {{c}}) b{{c}} = held(Vectorized::loadu(B + {{c}} * ldb + k, {{n}}));
{%- endfor %}
{%- for r in range(4) %}
        if constexpr (ROWS > {{r}}) {
            const auto a = held(Vectorized::loadu(A + {{r}} * lda + k, {{n}}));
{%- for c in range(3) %}
            if constexpr (COLUMNS > {{c}}) c{{r}}_{{c}} = at::vec::fmadd(a, b{{c}}, c{{r}}_{{c}});
{%- endfor %}
        }
{%- endfor %}
{%- endmacro %}
    int64_t k = 0;
    for (; k + V <= K; k += V) {
{{- add("V")}}
    }
    if (k < K) {
{{- add("K - k")}}
    }
    const auto plus = [](Vectorized x, Vectorized y) { return x + y; };
{%- for r in range(4) %}{% for c in range(3) %}
    if constexpr (ROWS > {{r}} && COLUMNS > {{c}}) {
        const auto total = at::vec::vec_reduce_all<{{compute_t}}>(plus, c{{r}}_{{c}});
        C[{{r}} * ldc + {{c}}] = accum ? C[{{r}} * ldc + {{c}}] + total : total;
    }
{%- endfor %}{% endfor %}
}
"""

_DOTS_OF_ALL = r"""
{%- macro across(rows) %}
        int64_t n = 0;
        for (; n + 3 <= N; n += 3) {
            {{kernel_name}}_kernel<{{rows}}, 3, accum>(
                A + m * lda, B + n * ldb, C + m * ldc + n, K, lda, ldb, ldc);
        }
{%- for columns in (2, 1) %}
        if (N - n == {{columns}}) {
            {{kernel_name}}_kernel<{{rows}}, {{columns}}, accum>(
                A + m * lda, B + n * ldb, C + m * ldc + n, K, lda, ldb, ldc);
        }
{%- endfor %}
{%- endmacro %}
{{declare_kernel}} {
    int64_t m = 0;
    for (; m + 4 <= M; m += 4) {
{{- across(4)}}
    }
    for (; m < M; ++m) {
{{- across(1)}}
    }
}
"""


class _Kernel(CppMicroGemmFP32Vec):
    """A block of a product, each of its sums in a register; both matrices row after row."""

    TEMPLATE_KERNEL = _KERNEL
    NAME = "block"
    AXES = (0, 0)  # along which the parts of either matrix follow one another: rows, or columns

    def get_common_options(self) -> dict[str, Any]:
        """What its text is made from."""
        own = {"vector": _vector(), "turned": False, "held": _HELD.strip("\n")}
        return {**super().get_common_options(), **own}

    def codegen_define(self, kernel: Any) -> str:  # noqa: ANN401
        """Its text, once for all products of a program that need the same."""
        text = super().codegen_define(kernel)
        return f"#ifndef {self.name}_is_there\n#define {self.name}_is_there\n{text}\n#endif\n"

    def codegen_call(self, kernel: Any, A: Any, B: Any, C: Any, *args: Any, **rest: Any) -> str:  # noqa: ANN401
        """The call for one block of columns: where it begins in B, and how many there are."""
        text: str = super().codegen_call(kernel, A, B, C, *args, **rest)
        lines = text.splitlines()  # name, A, B, C, M, N, K, lda, ldb, ldc
        lines[2] = f"{lines[2].rstrip(',')} + (nci - nc) * Nr * {kernel.stride(B, 1)},"
        lines[5] = "    std::min<int64_t>(Nr, N - nci * Nr),"
        lines[7] = f"    {kernel.stride(A, self.AXES[0])},"
        lines[8] = f"    {kernel.stride(B, self.AXES[1])},"
        return "\n".join(lines)


class _TurnedKernel(_Kernel):
    """The same where the first matrix lies column after column."""

    TEMPLATE_ENTRY = CppMicroGemmFP32Vec.TEMPLATE_ENTRY.replace("A + m * lda", "A + m")
    NAME = "block_turned"
    AXES = (1, 0)

    def get_common_options(self) -> dict[str, Any]:
        """What its text is made from."""
        return {**super().get_common_options(), "turned": True}


class _DotKernel(_Kernel):
    """The same where the second matrix lies column after column."""

    TEMPLATE_KERNEL = _DOTS
    TEMPLATE_ENTRY = _DOTS_OF_ALL
    NAME = "dots"
    AXES = (0, 1)


class _Product(CppGemmTemplate):
    """A product whose second matrix is read as it lies."""

    def __init__(self, kernel: type[_Kernel], *args: Any, **rest: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **rest)
        self._kernel = kernel

    def get_options(self, *args: Any, **rest: Any) -> dict[str, Any]:  # noqa: ANN401
        """What the loops' text is made from."""
        options = super().get_options(*args, **rest)
        given = options["micro_gemm"]
        rows, columns, _ = given.register_blocking
        options["micro_gemm"] = self._kernel(
            f"{self._kernel.NAME}_{rows}_{columns}", given.input_dtype,
            given.input2_dtype, given.output_dtype, given.compute_dtype,
            given.register_blocking, given.alpha, tail_n=self._kernel is not _DotKernel,
        )  # fmt: skip
        return options

    def _cache_blocking(self, num_threads: int) -> GemmBlocking:
        """Blocks that stay in a cache; where vectors lie along the inner dimension, whole lines."""
        rows, columns, inner = super()._cache_blocking(num_threads)
        if self._kernel is _DotKernel:
            inner = max(_LINE, inner // _LINE * _LINE)
        return GemmBlocking(rows, columns, inner)


def written_out(a: Any, b: Any) -> Any:  # noqa: ANN401
    """The product as part of the program; None where that cannot be done.

    Args:
        a: [M, K] float32, row after row or column after column, as the compiler knows it.
        b: [K, N] float32, row after row; column after column if a lies row after row.
    """
    arguments: Any = mm_args(a, b)
    layout, a, b = arguments[-3:]
    m, n = layout.size
    k = a.get_size()[1]
    known = torch.cpu.get_capabilities()
    caches = known.get("l1d_cache_size", 0) > 0 and known.get("l2_cache_size", 0) > 0
    kernel = _kernel_for(a, b)
    if not caches or kernel is None or _vector() < 2 or a.get_name() == b.get_name():
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
        kernel, [a, b], layout, n_threads, blocks.register_blocking, should_block_weights=False,
        name="product",
    )  # fmt: skip
    return template.generate().output_node()


def _kernel_for(a: Any, b: Any) -> type[_Kernel] | None:  # noqa: ANN401
    """The kernel for two matrices as they lie; None where there is none."""
    whole = [x.get_layout().is_contiguous() for x in (a, b)]
    if whole[1] and (whole[0] or _is_turned(a)):
        return _Kernel if whole[0] else _TurnedKernel
    return _DotKernel if whole[0] and _is_turned(b) else None


def _is_turned(x: Any) -> bool:  # noqa: ANN401
    """Whether a matrix lies column after column."""
    rows, columns = x.get_stride()
    return rows == 1 and columns != 1


def _vector() -> int:
    """How many numbers the processor treats alike."""
    isa: Any = cpu_vec_isa.pick_vec_isa()
    return isa.nelements(torch.float32) if isa else 1
