"""Matrix products that are written out block by block: right for every shape and either way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ctflow.backends.compiled.build import built
from ctflow.backends.compiled.products import by_blocks

pytestmark = pytest.mark.compiler

# Rows, inner dimension, columns: whole blocks, ends of blocks in either direction, and few of each.
_SHAPES = [(64, 64, 64), (7, 33, 50), (3, 200, 17), (20, 20, 1000), (129, 9, 47), (2, 512, 64)]


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
        return tuple(found)


class _Product(nn.Module):
    """One product."""

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor]:
        """[M, K], [K, N] to [M, N]."""
        return (by_blocks(a, b),)


def test_every_shape_is_multiplied_right_as_it_lies_and_transposed() -> None:
    """Also at the ends of blocks, and with what follows done block by block."""
    torch.manual_seed(0)
    inputs: list[Tensor] = []
    for m, k, n in _SHAPES:
        inputs += [torch.randn(m, k), torch.randn(k, m), torch.randn(k, n)]
    found = built(_Products(), inputs, None, "products")(inputs)
    for i, (_, k, _) in enumerate(_SHAPES):
        a, turned, b = (x.double() for x in inputs[3 * i : 3 * i + 3])
        wanted = torch.tanh(a @ b + b[0]), turned.t() @ b
        for x, exact, first in zip(found[2 * i :], wanted, (a, turned.t()), strict=False):
            limit = 2 * k * torch.finfo(torch.float32).eps * (first.abs() @ b.abs() + 1)
            assert ((x.double() - exact).abs() <= limit).all()


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
