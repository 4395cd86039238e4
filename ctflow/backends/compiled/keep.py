"""Evaluate now, differentiate later: the derivative's graph cut where the cotangent enters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from ctflow.backends.compiled.equality import merge_equal
from ctflow.backends.compiled.trace import Traced
from ctflow.errors import Unsupported
from ctflow.state import as_real

__all__ = ["Split", "split"]

_CHEAP = frozenset(  # cheaper to repeat than to write and read
    getattr(torch.ops.aten, name).default
    for name in (
        "t", "detach", "alias", "view", "_unsafe_view", "unsqueeze", "expand", "permute",
        "relu", "neg", "sigmoid_backward", "tanh_backward", "ones_like", "zeros_like", "clone",
    )
) | frozenset(
    getattr(torch.ops.aten, name).Tensor for name in ("mul", "add", "sub", "div", "slice", "select")
    if hasattr(getattr(torch.ops.aten, name), "Tensor")
)  # fmt: skip


@dataclass(frozen=True)
class Split:
    """The two halves of a derivative.

    Attributes:
        kept: (t, y, *tensors) -> (f, *saved).
        recalled: (cotangent, *saved, *tensors) -> (its product with df/dy, and with the derivative
            by each tensor wanted).
        saved: Examples of what passes from one to the other.
    """

    kept: fx.GraphModule
    recalled: fx.GraphModule
    saved: tuple[Tensor, ...]


def split(traced: Traced) -> Split:
    """Cut the graph of f and its vector-Jacobian product in two.

    What does not depend on the cotangent is computed with f. Of that, what the other half needs is
    handed on, unless it follows at little cost from something else that is.

    Complex values are handed on as real and imaginary part: no loop takes them otherwise.

    Raises:
        Unsupported: If something that is not a tensor would have to be handed on.
    """
    if traced.pulled is None:
        raise RuntimeError("this field was traced without a derivative")
    graph = fx.GraphModule(traced.pulled, fx.Graph())
    table: dict[fx.Node, fx.Node] = {}
    result = graph.graph.graph_copy(traced.pulled.graph, table)
    graph.graph.output(result)
    merge_equal(graph.graph)
    _count_by_batch(graph.graph)
    nodes = list(graph.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    cotangent, given = inputs[2], inputs[3:]
    late: set[fx.Node] = {cotangent}
    for node in nodes:
        if node.op != "output" and late.intersection(node.all_input_nodes):
            late.add(node)
    outputs: Any = graph.graph.output_node().args[0]
    constant = _constant(nodes, given)
    crossing = [
        node
        for node in nodes
        if node not in late and node not in constant
        and (any(user in late for user in node.users) or node in outputs[1:])
    ]  # fmt: skip
    saved = _fewer(crossing, nodes, constant)
    for node in saved:
        if not isinstance(node.meta.get("val"), Tensor):
            raise Unsupported("a value that is no tensor would have to be kept")

    first = fx.Graph()
    own: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        if node is not cotangent:
            own[node] = _like(first.placeholder(node.name), node)
    for node in nodes:
        if node not in late and node not in own and node.op in ("call_function", "get_attr"):
            own[node] = first.node_copy(node, own.__getitem__)
    complex_ones = [node for node in saved if node.meta["val"].is_complex()]
    for node in complex_ones:
        whole = first.call_function(torch.ops.aten.clone.default, (own[node],))
        own[node] = first.call_function(torch.ops.aten.view_as_real.default, (whole,))
    first.output((own[outputs[0]], *(own[node] for node in saved)))
    first.eliminate_dead_code()

    second = fx.Graph()
    own = {cotangent: _like(second.placeholder("cotangent"), cotangent)}
    for i, node in enumerate(saved):
        own[node] = _like(second.placeholder(f"saved_{i}"), node)
    for node in given:
        placeholder = _like(second.placeholder(node.name), node)
        own.setdefault(node, placeholder)
    for node in complex_ones:
        own[node].meta["val"] = _real(node)
        own[node] = second.call_function(torch.ops.aten.view_as_complex.default, (own[node],))
    for node in nodes:
        if node in own or node.op not in ("call_function", "get_attr"):
            continue
        if all(x in own for x in node.all_input_nodes):
            own[node] = second.node_copy(node, own.__getitem__)
    second.output(tuple(own[node] for node in outputs[1:]))
    second.eliminate_dead_code()
    return Split(
        fx.GraphModule(traced.pulled, first),
        fx.GraphModule(traced.pulled, second),
        tuple(_real(node) for node in saved),
    )


def _count_by_batch(graph: fx.Graph) -> None:
    """Let every size follow from that of the last input, which is as long as the batch."""
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    sizes = last.meta["val"].shape
    if not sizes or not isinstance(sizes[0], torch.SymInt):
        return
    batch: Any = sizes[0]
    with graph.inserting_after(last):
        size = graph.call_function(torch.ops.aten.sym_size.int, (last, 0))
    size.meta["val"] = batch
    for node in list(graph.nodes):
        value: Any = node.meta.get("val")
        if node is size or node.op != "call_function" or not isinstance(value, torch.SymInt):
            continue
        if value.node.expr.free_symbols != {batch.node.expr}:
            continue
        with graph.inserting_before(node):
            new: Any = sympy_interp(
                PythonReferenceAnalysis, {batch.node.expr: fx.Proxy(size)}, value.node.expr
            )
        new.node.meta["val"] = value
        node.replace_all_uses_with(new.node)
        graph.erase_node(node)


def _constant(nodes: Sequence[fx.Node], given: Sequence[fx.Node]) -> set[fx.Node]:
    """What follows from the field's tensors alone: at hand in both halves."""
    found = set(given)
    for node in nodes:
        if node.op == "get_attr" or (
            node.op == "call_function" and found.issuperset(node.all_input_nodes)
        ):
            found.add(node)
    return found


def _fewer(
    crossing: Sequence[fx.Node], nodes: Sequence[fx.Node], constant: set[fx.Node]
) -> list[fx.Node]:
    """Of what would be handed on, leave out what follows cheaply from the rest."""
    order = {node: i for i, node in enumerate(nodes)}
    kept = set(crossing)
    for node in sorted(crossing, key=order.__getitem__, reverse=True):
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            continue
        at_hand = kept.union(constant)
        if node.target in _CHEAP and at_hand.issuperset(node.all_input_nodes):
            kept.discard(node)
    return sorted(kept, key=order.__getitem__)


def _real(node: fx.Node) -> Tensor:
    """An example of what is handed on: of complex numbers real and imaginary part."""
    value: Tensor = node.meta["val"]
    return as_real(value.contiguous()) if value.is_complex() else value


def _like(new: fx.Node, old: fx.Node) -> fx.Node:
    new.meta.update(old.meta)
    return new
