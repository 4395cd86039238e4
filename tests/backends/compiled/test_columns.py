"""Networks on tall matrices are computed transposed: the same function, read as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from ctflow.backends.compiled.columns import by_columns
from ctflow.backends.compiled.equality import merge_equal
from ctflow.backends.compiled.trace import graph_of

ROWS = 128
ATEN = torch.ops.aten


def _network(x: Tensor, v: Tensor, w: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.tanh(torch.addmm(b, torch.tanh(torch.addmm(b, x, v)), w)) @ c


def _gradients(function: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """The function and its vector-Jacobian product with its own value."""

    def found(*inputs: Tensor) -> list[Tensor]:
        value, pull = torch.func.vjp(function, *inputs)
        return [value, *pull(value)]

    return found


def _gated(x: Tensor, v: Tensor, w: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Values of other shapes: a column, a row, a number, one that nothing turned."""
    h = torch.nn.functional.silu(x @ v + b) * x[:, :1] + b.unsqueeze(0) * x.sum()
    h = torch.where(h > 0, h, -0.1 * h) / (1 + h.abs().mean(1, keepdim=True))
    return (h @ w - torch.cat([x] * 10, dim=1)[:, :20]).relu() @ c + x


def _sums(x: Tensor, v: Tensor, w: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Readers of every kind: along rows, along columns, a reshape, a softmax."""
    h = torch.exp(-((x @ v) ** 2))
    total = h.sum(0) + h.sum(0, keepdim=True)[0] + h.t().reshape(20, -1).sum(1)
    return torch.softmax(h * total, 1) @ w.t() @ c + h.reshape(-1)[: len(x)].unsqueeze(1)


def _inputs(rows: int = ROWS, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = ((rows, 4), (4, 20), (20, 20), (20,), (20, 4))
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def _transposed(function: Callable[..., Any], inputs: Sequence[Tensor]) -> fx.GraphModule:
    with FakeTensorMode() as mode:
        graph = graph_of(function, [mode.from_tensor(x) for x in inputs])
        merge_equal(graph.graph)
        by_columns(graph.graph, int)
    graph.recompile()
    return graph


def _products(graph: fx.GraphModule) -> int:
    return sum(node.target in (ATEN.mm.default, ATEN.addmm.default) for node in graph.graph.nodes)


@pytest.mark.parametrize("function", [_network, _gated, _sums])
def test_value_and_derivatives_are_the_same(function: Callable[..., Tensor]) -> None:
    """Of a network, of one with values of all shapes in it, and where much reads the values."""
    torch.manual_seed(0)
    inputs, whole = _inputs(), _gradients(function)
    graph = _transposed(whole, inputs)
    for found, wanted in zip(graph(*inputs), whole(*inputs), strict=True):
        torch.testing.assert_close(found, wanted)
        assert found.stride() == wanted.stride() or not wanted.is_contiguous()


def test_a_network_and_its_derivative_need_no_library() -> None:
    """Not one product is left, and no matrix is turned twice."""
    graph = _transposed(_gradients(_network), _inputs())
    assert _products(graph) == 0
    turns = sum("force_stride" in str(node.target) for node in graph.graph.nodes)
    assert turns == 3  # the state; the value, which is the cotangent too; their product


def _linear(x: Tensor, v: Tensor, *_: Tensor) -> Tensor:
    return x @ v


def _narrow(x: Tensor, v: Tensor, *_: Tensor) -> Tensor:
    return x @ v[:, :4] - x


@pytest.mark.parametrize(("rows", "function"), [(32, _network), (ROWS, _linear), (ROWS, _narrow)])
def test_what_gains_nothing_stays_as_it_is(rows: int, function: Callable[..., Tensor]) -> None:
    """Turning a matrix costs as much as a small product."""
    inputs = _inputs(rows)
    before = graph_of(lambda *x: [function(*x)], inputs)
    merge_equal(before.graph)
    graph = _transposed(lambda *x: [function(*x)], inputs)
    assert [node.target for node in graph.graph.nodes] == [n.target for n in before.graph.nodes]


def test_many_rows_need_no_intermediate_of_every_product() -> None:
    """A sum over products, multiplied out first, would be 20 times the matrix."""
    rows, largest = 1_000_000, 0
    graph = _transposed(lambda *x: [_network(*x)], _inputs(rows, torch.float32))
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            largest = max(largest, value.numel())
    assert largest == 20 * rows


@pytest.mark.slow
@pytest.mark.usefixtures("any_folder")
@pytest.mark.compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about itself
def test_compiled_it_is_the_same() -> None:
    """Reductions and turns of float32, as the compiler writes them."""
    torch.manual_seed(0)
    inputs, whole = _inputs(200, torch.float32), _gradients(_network)
    compiled = torch.compile(_transposed(whole, inputs))
    for found, wanted in zip(compiled(*inputs), whole(*inputs), strict=True):
        assert float((found - wanted).norm()) <= 1e-6 * float(wanted.norm())
