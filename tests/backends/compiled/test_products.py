"""Matrix products that are written out block by block: right for every shape and either way."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ctflow.backends.compiled.build import built
from ctflow.backends.compiled.products import by_blocks, by_dots

pytestmark = pytest.mark.compiler

# Rows, inner dimension, columns: whole blocks, ends of blocks in either direction, few of each, and
# an inner dimension so long that several blocks of columns are taken at a time.
_SHAPES = [(64, 64, 64), (7, 33, 50), (3, 200, 17), (20, 20, 1000), (129, 9, 47), (2, 512, 64)]
_SHAPES += [(40, 20000, 70), (21, 1003, 20), (1, 70, 26), (24, 300, 1), (30, 1, 50)]

_AT_THE_END_OF_MEMORY = """
import ctypes, mmap, torch
from ctflow.backends.compiled.build import built
from ctflow.backends.compiled.products import by_blocks, by_dots

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

def at_the_end(x):
    size = -(-x.numel() * 4 // mmap.PAGESIZE) * mmap.PAGESIZE
    use, kind = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    start = libc.mmap(None, size + mmap.PAGESIZE, use, kind, -1, 0)
    if libc.mprotect(start + size, mmap.PAGESIZE, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    place = (ctypes.c_float * x.numel()).from_address(start + size - x.numel() * 4)
    return torch.frombuffer(place, dtype=torch.float32).view(x.shape).copy_(x)

class Products(torch.nn.Module):
    def forward(self, a, turned, b, c):
        return by_blocks(a, b), by_blocks(turned.t(), b), by_dots(a, c)

torch.manual_seed(0)
shapes = [(12, 44), (44, 12), (44, 20), (20, 44)]
inputs = [at_the_end(torch.randn(shape)) for shape in shapes]
a, turned, b, c = inputs
for found, wanted in zip(built(Products(), inputs, None, "products")(inputs),
                         (a @ b, turned.t() @ b, a @ c.t())):
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
print("right")
"""


@pytest.fixture(autouse=True)
def _own_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CTFLOW_CACHE_DIR", str(tmp_path))


class _Products(nn.Module):
    """tanh of products plus a row: what a network's layer does."""

    def forward(self, *pairs: Tensor) -> tuple[Tensor, ...]:
        """Pairs of matrices, each first one as it is and transposed."""
        found: list[Tensor] = []
        for a, turned, b in zip(pairs[::3], pairs[1::3], pairs[2::3], strict=True):
            found.append(torch.tanh(by_blocks(a, b) + b[0]))
            found.append(by_blocks(turned.t(), b))
            found.append(by_dots(a, b.t()))
        return tuple(found)


class _Product(nn.Module):
    """One product."""

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor]:
        """[M, K], [K, N] to [M, N]."""
        return (by_blocks(a, b),)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_every_shape_is_multiplied_right_as_it_lies_and_transposed(
    threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Also at the ends of blocks, and with what follows done block by block."""
    torch.manual_seed(0)
    inputs: list[Tensor] = []
    for m, k, n in _SHAPES:
        inputs += [torch.randn(m, k), torch.randn(k, m), torch.randn(k, n)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with caplog.at_level(logging.DEBUG, "ctflow.compiled"):
            found = built(_Products(), inputs, None, "products")(inputs)
    finally:
        torch.set_num_threads(before)
    assert "once more" not in caplog.text  # as it says where the library stood in
    for i, (_, k, _) in enumerate(_SHAPES):
        a, turned, b = (x.double() for x in inputs[3 * i : 3 * i + 3])
        wanted = torch.tanh(a @ b + b[0]), turned.t() @ b, a @ b
        for x, exact, first in zip(found[3 * i :], wanted, (a, turned.t(), a), strict=False):
            limit = 2 * min(k, 1024) * torch.finfo(torch.float32).eps * (first.abs() @ b.abs() + 1)
            assert ((x.double() - exact).abs() <= limit).all()


@pytest.mark.skipif(sys.platform != "linux", reason="protects a page by its C library")
def test_nothing_is_read_past_the_end_of_a_matrix() -> None:
    """Blocks are of whole vectors, which a matrix's last row need not fill."""
    done = subprocess.run(
        [sys.executable, "-c", _AT_THE_END_OF_MEMORY], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "right"


def test_any_number_of_rows_is_multiplied_right() -> None:
    """One program for all of them."""
    rows = torch.export.Dim("rows", min=2)
    torch.manual_seed(1)
    b = torch.randn(24, 40)
    dynamic = ({0: rows}, {})
    program = built(_Product(), (torch.randn(96, 24), b), dynamic, "any rows")
    for m in (2, 96, 1001):
        a = torch.randn(m, 24)
        (product,) = program([a, b])
        torch.testing.assert_close(product, (a.double() @ b.double()).float(), rtol=1e-5, atol=1e-5)
