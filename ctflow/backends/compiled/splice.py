"""Put the operations of a function into a graph, and a value into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, fx
from torch._inductor.inductor_prims import force_stride_order
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["settled", "spliced"]


def spliced(node: fx.Node, function: Callable[..., Any], inputs: Sequence[fx.Node]) -> fx.Node:
    """Put what a function of tensors does before a node.

    Args:
        node: Before which.
        function: Returns one tensor.
        inputs: Nodes with their shapes noted, which it is called with.

    Returns:
        The node of its result.
    """
    inner = make_fx(function, tracing_mode="real")(*(x.meta["val"] for x in inputs))
    table: dict[fx.Node, fx.Node] = {}
    stand_ins: Iterable[fx.Node] = iter(inputs)
    with node.graph.inserting_before(node):
        for own in inner.graph.nodes:
            if own.op == "placeholder":
                table[own] = next(stand_ins)
            elif own.op != "output":
                table[own] = node.graph.node_copy(own, table.__getitem__)
    result: Any = inner.graph.output_node().args[0]
    return table[result]


def settled(x: Tensor) -> Tensor:
    """The same, row after row in a place of its own: else each of its readers computes it anew."""
    x = x.contiguous()
    return force_stride_order(x, x.stride())
