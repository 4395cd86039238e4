"""Improvements of a graph before it becomes C++: what the compiler does not do by itself.

* Small matrix products, and those of few columns, become sums of products, which are fused with
  what surrounds them. A library call costs 1 to 3 microseconds, more than the arithmetic of a
  small network's layer. Larger ones are written out block by block.
* tanh and softplus of float32 are written out, within 3 units in the last place.
* What does not change during a loop (a transposed weight) is computed before it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from ctflow.backends.compiled import elementary
from ctflow.backends.compiled.equality import is_pure, merge_equal
from ctflow.backends.compiled.products import LARGE, UNROLLED, by_blocks
from ctflow.backends.compiled.splice import settled, spliced

__all__ = ["EitherWay", "improved", "in_turns", "once", "outputs_of", "split_constant"]

_SMALL = 8192  # multiplications below which a library call costs more than the product
_NARROW = 4  # columns up to which the libraries are slow
_THIN = 16  # columns below which they are quicker with few rows than with few columns
_LONG = 2**26  # multiplications from which on a library pays

_ATEN = torch.ops.aten
_NUMBERS = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)  # sizes, say


class EitherWay(nn.Module):
    """A graph improved, for the compiler; and as it was written, to hold the program against.

    Args:
        written: As `f` and the solver have it.
        better: The same function, improved.
    """

    def __init__(self, written: fx.GraphModule, better: fx.GraphModule) -> None:
        super().__init__()
        self.written = written
        self.better = better

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """As the compiler has it while it follows; else as it was written."""
        return self.better(*inputs) if torch.compiler.is_compiling() else self.written(*inputs)


def once(graph: fx.GraphModule, exact: bool) -> EitherWay:
    """What is done outside of a loop."""
    written = _copied(graph)
    return EitherWay(written, improved(graph, exact))


def in_turns(
    graph: fx.GraphModule, exact: bool, positions: Sequence[int]
) -> tuple[EitherWay, EitherWay]:
    """The body of a loop: what is done before it, from inputs that are constant, and in each turn.

    Args:
        graph: The body.
        exact: Leave elementary functions to the compiler.
        positions: Which inputs are constant: the last ones.
    """
    written = split_constant(_copied(graph), positions)
    better = split_constant(improved(graph, exact), positions)
    return EitherWay(written[0], better[0]), EitherWay(written[1], better[1])


def _copied(graph: fx.GraphModule) -> fx.GraphModule:
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph.graph, {}))
    return fx.GraphModule(graph, copy)


def improved(graph: fx.GraphModule, exact: bool) -> fx.GraphModule:
    """The same function, faster.

    Args:
        graph: Functional operations with their shapes noted; changed in place.
        exact: Leave elementary functions to the compiler.

    Returns:
        The graph.
    """
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and (whole := _undone(node)) is not node:
            node.replace_all_uses_with(whole)  # the compiler frees such a view at its first use
            graph.graph.erase_node(node)
    merge_equal(graph.graph)
    turned: set[fx.Node] = set()
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        replacement = _replacement(node, exact)
        if replacement is None:
            continue
        result = spliced(node, *replacement)
        if not result.meta["val"].is_contiguous():
            turned.add(result)
        node.replace_all_uses_with(result)
        graph.graph.erase_node(node)
    _copy_where_turned(graph.graph, turned)
    merge_equal(graph.graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _copy_where_turned(graph: fx.Graph, turned: set[fx.Node]) -> None:
    """Let views of what now lies transposed, or follows from it, copy it where they have to.

    Such a view was noted when its input lay row after row, and need not exist any more.
    """
    for node in graph.nodes:
        if not turned.intersection(node.all_input_nodes):
            continue
        turned.add(node)
        if node.target in (_ATEN.view.default, _ATEN._unsafe_view.default):
            node.target = _ATEN.reshape.default


def outputs_of(graph: fx.GraphModule) -> list[Tensor]:
    """Examples of what a graph returns."""
    found: Any = graph.graph.output_node().args[0]
    return [x.meta["val"] for x in found]


def split_constant(
    graph: fx.GraphModule, positions: Iterable[int]
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Take what depends on constant inputs alone out of a loop's body.

    Args:
        graph: The body.
        positions: Which inputs are constant: the last ones.

    Returns:
        A graph from the constant inputs to what replaces them, and the body that takes this.
    """
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    given = [inputs[i] for i in positions]
    constant = set(given)
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            constant.add(node)
        elif node.op == "call_function" and node.all_input_nodes:
            part = node.target is operator.getitem  # of several results, which go together
            movable = (part or is_pure(node)) and not isinstance(node.meta.get("val"), _NUMBERS)
            if movable and constant.issuperset(node.all_input_nodes):
                constant.add(node)
    used = [
        node
        for node in graph.graph.nodes
        if node in constant
        and node.op != "get_attr"
        and any(user not in constant for user in node.users)
    ]
    complex_ones = [node for node in used if node.meta["val"].is_complex()]
    before = fx.Graph()
    table: dict[fx.Node, fx.Node] = {node: before.placeholder(node.name) for node in given}
    for node in graph.graph.nodes:
        if node in constant and node not in table:
            table[node] = before.node_copy(node, table.__getitem__)
    results: list[fx.Node] = []
    for node in used:
        whole = _undone(node)
        if whole in given:  # a view of all of an input would be freed in the first turn of the loop
            results.append(table[whole])
        else:
            kept = before.call_function(
                _ATEN.clone.default, (table[node],), {"memory_format": torch.contiguous_format}
            )
            if node in complex_ones:  # which no loop takes
                kept = before.call_function(_ATEN.view_as_real.default, (kept,))
            results.append(kept)
    before.output(tuple(results))
    before.eliminate_dead_code()

    body = fx.Graph()
    table = {}
    for node in inputs:
        if node not in given:
            table[node] = body.placeholder(node.name)
    for node in used:
        table[node] = body.placeholder(f"constant_{node.name}")
    for node in complex_ones:
        table[node] = body.call_function(_ATEN.view_as_complex.default, (table[node],))
    for node in graph.graph.nodes:
        if node in table or node in given or (node in constant and node.op != "get_attr"):
            continue
        table[node] = body.node_copy(node, table.__getitem__)
    body.eliminate_dead_code()
    return fx.GraphModule(graph, before), fx.GraphModule(graph, body)


# Views of other numbers than those that they lie on.
_CHANGING = frozenset({_ATEN._conj.default, _ATEN._neg_view.default})


def _undone(node: fx.Node) -> fx.Node:
    """What a chain of views shows as it is, a transpose of a transpose say; or the node itself."""
    root = node
    while _is_view(root) and root.target not in _CHANGING:
        root = root.all_input_nodes[0]
    shown, whole = node.meta.get("val"), root.meta.get("val")
    if not (isinstance(shown, Tensor) and isinstance(whole, Tensor)):
        return node
    same = (shown.dtype, shown.shape, shown.stride()) == (whole.dtype, whole.shape, whole.stride())
    return root if same and shown.storage_offset() == whole.storage_offset() else node


def _is_view(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target.is_view


_WRITTEN_OUT: Mapping[object, Callable[[Tensor], Tensor]] = MappingProxyType(
    {_ATEN.tanh.default: elementary.tanh, _ATEN.softplus.default: elementary.softplus}
)
_SOFTPLUS = (1, 20)  # its slope and where it becomes a line: there float32 tells no difference

_Rewrite = tuple[Callable[..., Tensor], Sequence[fx.Node]]


def _replacement(node: fx.Node, exact: bool) -> _Rewrite | None:
    """What a node becomes, and of which nodes; None where it stays."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.device.type != "cpu":
        return None
    if node.target in _WRITTEN_OUT and not exact and value.dtype == torch.float32:
        return _written_out(node)
    if node.target is _ATEN.mm.default:
        return _product(node, None)
    if node.target is _ATEN.addmm.default and not node.kwargs:
        return _product(node, node.args[0])
    return None


def _written_out(node: fx.Node) -> _Rewrite | None:
    """An elementary function, where its further arguments are the usual ones."""
    x, *rest = node.args
    usual = not node.kwargs and tuple(rest) == _SOFTPLUS[: len(rest)]
    return (_WRITTEN_OUT[node.target], (x,)) if usual else None  # pyright: ignore


def _product(node: fx.Node, added: Any) -> _Rewrite | None:  # noqa: ANN401
    a, b = node.args[-2:]
    if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)):
        return None
    shapes = (*a.meta["val"].shape, b.meta["val"].shape[1])
    if not all(isinstance(size, int) for size in shapes[1:]):
        return None
    rows, inner, columns = shapes
    if inner == 0 or a.meta["val"].dtype not in (torch.float32, torch.float64):
        return None
    work = rows * inner * columns if isinstance(rows, int) else math.inf
    narrow = columns <= _NARROW and work <= LARGE
    if inner <= UNROLLED:
        function = _unrolled
    elif work <= _SMALL or narrow:
        function = _summed
    elif columns < _THIN and isinstance(rows, int) and rows > _THIN:
        function = _turned
    elif a.meta["val"].dtype == torch.float32 and (work < _LONG or work == math.inf):
        function = by_blocks
    else:
        return None
    if added is None:
        return function, (a, b)
    return (lambda bias, a, b: bias + function(a, b)), (added, a, b)


def _unrolled(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for a short inner dimension: [M, K], [K, N] -> [M, N]."""
    b = settled(b)
    total = a[:, :1] * b[:1]
    for k in range(1, b.shape[0]):
        total = total + a[:, k : k + 1] * b[k : k + 1]
    return total


def _turned(a: Tensor, b: Tensor) -> Tensor:
    """a @ b by way of its transpose: two to ten times as fast where b has few columns."""
    return (b.t() @ a.t()).t()


def _summed(a: Tensor, b: Tensor) -> Tensor:
    """a @ b as a reduction, along memory where the inner dimension is the longest."""
    turned = b.shape[1] < b.shape[0] and a.shape[0] > b.shape[1] and a.stride(0) == 1 < a.stride(1)
    if b.shape[1] > 1:  # otherwise each column of the result computes anew what became a
        a = settled(a.t()).t() if turned else settled(a)
    if turned:
        return (b.t().unsqueeze(2) * a.t().unsqueeze(0)).sum(1).t()
    if b.shape[1] >= b.shape[0]:
        return (a.unsqueeze(2) * settled(b).unsqueeze(0)).sum(1)
    return (a.unsqueeze(1) * settled(b.t()).unsqueeze(0)).sum(2)
