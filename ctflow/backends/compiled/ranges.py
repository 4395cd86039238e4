"""An index out of range is an error, on however many threads a kernel runs.

The compiler checks each index that it cannot prove, and throws. From within a parallel region no
exception may leave: the process would end. Here it is caught in the iteration that threw, and
thrown again behind the region.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch._inductor.codegen import common
from torch._inductor.codegen.cpp import CppScheduling

__all__ = ["checked_ranges", "out_of_range", "thrown_behind"]

_BOUNDS = re.compile(r"index out of bounds:(?:.*< (?P<size>\d+)L)?")
_CHECK = "AOTI_TORCH_CHECK("
_PRAGMA = re.compile(r"#pragma omp (?:for|single)[^\n]*\n")
_DEPTH = re.compile(r"collapse\((\d+)\)")
_SIMD = re.compile(r" simd(?: simdlen\(\d+\))?")  # whose body may not throw
_THROW = """
#include <atomic>
#include <exception>
#include <stdexcept>
#define CTFLOW_CHECK(condition, message) if (!(condition)) throw std::out_of_range(message)
"""
_BEFORE = "std::atomic<bool> ctflow_threw{false}; std::exception_ptr ctflow_error;"
_CATCH = "catch (...) { if (!ctflow_threw.exchange(1)) ctflow_error = std::current_exception(); }"
_BEHIND = "if (ctflow_error) std::rethrow_exception(ctflow_error);"


@contextmanager
def checked_ranges() -> Generator[None]:
    """Kernels that are compiled for the processor meanwhile are written as said above."""
    common.init_backend_registration()
    before = common.device_codegens["cpu"]
    common.device_codegens["cpu"] = common.DeviceCodegen(
        _Checked, before.wrapper_codegen, before.cpp_wrapper_codegen, before.fx_wrapper_codegen
    )
    try:
        yield
    finally:
        common.device_codegens["cpu"] = before


class _Checked(CppScheduling):
    """Groups operations into kernels, and writes them."""

    def define_kernel(self, src_code: str, nodes: Any, kernel_args: Any = None) -> str:  # noqa: ANN401
        """Write one down."""
        return super().define_kernel(thrown_behind(src_code), nodes, kernel_args)


def thrown_behind(source: str) -> str:
    """A kernel whose checks leave its parallel regions.

    Args:
        source: One function in C++, as the compiler writes it.

    Returns:
        The same where it checks nothing.
    """
    if _CHECK not in source:
        return source
    found: list[str] = []
    end = 0
    for pragma in _PRAGMA.finditer(source):
        depth = _DEPTH.search(pragma[0])
        start = pragma.end()
        for _ in range(int(depth[1]) if depth else 1):
            start = source.index("{", start) + 1
        stop = _closing(source, start)
        if _CHECK in source[start:stop]:
            head = _SIMD.sub("", pragma[0]) + source[pragma.end() : start]
            found += [source[end : pragma.start()], head]
            found.append(f"try {{{source[start:stop]}}} {_CATCH}")
            end = stop
    source = "".join((*found, source[end:]))
    if found:
        first = source.index("{", source.rindex('extern "C"')) + 1
        last = source.rindex("}")
        source = f"{source[:first]}\n{_BEFORE}{source[first:last]}{_BEHIND}\n{source[last:]}"
    return _THROW + source.replace(_CHECK, "CTFLOW_CHECK(")


def out_of_range(error: RuntimeError) -> IndexError | None:
    """What a program's error means for the user, if it is about an index."""
    found = _BOUNDS.search(str(error))
    if found is None:
        return None
    size = f" of a dimension of size {found['size']}" if found["size"] else ""
    return IndexError(
        f"backend 'compiled': `f` uses an index{size} that is out of range. Look at the tensors "
        "that it indexes with, in `args` too; backend='native' names the line."
    )


def _closing(source: str, start: int) -> int:
    """Where the block ends that begins before `start`."""
    depth = 1
    for brace in re.finditer(r"[{}]", source[start:]):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return start + brace.start()
    return len(source)
