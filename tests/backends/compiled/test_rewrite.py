"""What is done to graphs before they are compiled leaves their function as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ctflow.backends.compiled.rewrite import improved, split_constant
from ctflow.backends.compiled.trace import graph_of


def test_a_view_of_all_of_an_input_is_that_input() -> None:
    """The compiled loop frees such a view in its first turn, and reads it in the second."""

    def body(x: Tensor, w: Tensor) -> list[Tensor]:
        return [x @ w.t().t(), x @ w.t()]

    x, w = torch.randn(3, 4), torch.randn(4, 4)
    before, rest = split_constant(graph_of(body, (x, w)), [1])
    whole, transposed = before.graph.output_node().args[0]  # pyright: ignore
    assert whole.op == "placeholder"
    assert transposed.target is torch.ops.aten.clone.default
    found = rest(x, *before(w))
    for ours, wanted in zip(found, body(x, w), strict=True):
        torch.testing.assert_close(ours, wanted)


def test_parts_of_a_constant_are_taken_out_one_by_one() -> None:
    """A weight that is split in the loop is split before it."""

    def body(x: Tensor, w: Tensor) -> list[Tensor]:
        first, second = w.split(2)
        return [x @ first.t() + second.sum(), x @ w.unbind(0)[1]]

    x, w = torch.randn(3, 4), torch.randn(4, 4)
    before, rest = split_constant(graph_of(body, (x, w)), [1])
    assert not any("split" in str(node.target) for node in rest.graph.nodes)
    found = rest(x, *before(w))
    for ours, wanted in zip(found, body(x, w), strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.usefixtures("any_folder")
@pytest.mark.compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about itself
def test_the_factor_of_a_sum_with_a_matrix_product_is_kept() -> None:
    """Torch 2.13 compiles `torch.add(x, a @ b, alpha=0.5)` to x + a @ b."""
    x, a, b = (torch.randn(shape, dtype=torch.float64) for shape in ((32, 24), (32, 40), (40, 24)))

    def sums(x: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
        product = a @ b
        return [torch.add(x, product, alpha=0.5), torch.add(a @ (b + 1), x, alpha=-2)]

    compiled = torch.compile(graph_of(sums, (x, a, b)))
    for found, wanted in zip(compiled(x, a, b), sums(x, a, b), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.usefixtures("any_folder")
@pytest.mark.compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about itself
def test_products_of_many_numbers_and_of_few_columns() -> None:
    """The long ones are written out, with a row added or not; a narrow result is a sum."""
    torch.manual_seed(0)
    shapes = ((512, 96), (96, 64), (64, 96), (64,), (64, 3))
    inputs = [torch.randn(shape) for shape in shapes]

    def products(x: Tensor, w: Tensor, v: Tensor, b: Tensor, narrow: Tensor) -> list[Tensor]:
        h = torch.addmm(b, x, v.t())
        return [x @ w + h, h @ narrow]

    with FakeTensorMode() as mode:
        graph = improved(graph_of(products, [mode.from_tensor(x) for x in inputs]), exact=False)
    names = [str(node.target) for node in graph.graph.nodes]
    assert sum(name == "ctflow.product.default" for name in names) == 2
    assert not any("mm" in name for name in names)
    found = torch.compile(graph)(*inputs)
    wanted = [x.float() for x in products(*(x.double() for x in inputs))]
    for ours, right in zip(found, wanted, strict=True):
        assert float((ours - right).norm()) <= 1e-6 * float(right.norm())


@pytest.mark.parametrize("shape", [(512, 64, 8), (64, 512, 8), (2048, 65, 15)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_of_a_tall_matrix_with_few_columns_are_turned(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    """The library sees few rows; the value is the same, with a row added too."""
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner, dtype=dtype), torch.randn(inner, columns, dtype=dtype)
    c = torch.randn(columns, dtype=dtype)

    def products(a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
        return [a @ b, torch.addmm(c, a, b)]

    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in (a, b, c)]
        graph = improved(graph_of(products, fakes), exact=False)
    shapes = [
        tuple(x.meta["val"].shape for x in node.args)
        for node in graph.graph.nodes
        if node.target is torch.ops.aten.mm.default
    ]
    assert shapes
    assert set(shapes) == {((columns, inner), (inner, rows))}
    for found, wanted in zip(graph(a, b, c), products(a, b, c), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inner", [64, 12])
def test_what_lies_transposed_can_still_be_shown_as_one_row(inner: int) -> None:
    """A view that no longer exists is a copy: of a product, and of what is made of one."""
    a, b = torch.randn(48, inner), torch.randn(inner, 8)
    gate = torch.randn(48, 8)

    def shown(a: Tensor, b: Tensor, gate: Tensor) -> list[Tensor]:
        product = torch.tanh(a @ b) * gate
        return [(a @ b).view(1, -1), product.view(1, -1), product.view(48, 2, 4).sum(2)]

    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in (a, b, gate)]
        graph = improved(graph_of(shown, fakes), exact=True)
    for found, wanted in zip(graph(a, b, gate), shown(a, b, gate), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
