"""What computes the same: two nodes of a graph, and two graphs."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

__all__ = ["frozen", "is_pure", "merge_equal", "same"]

_ATEN = torch.ops.aten
_DETACHED = (_ATEN.detach.default, _ATEN.alias.default, _ATEN.detach_copy.default)
_CUT: dict[object, tuple[int, int]] = {  # which argument has the values, and where the cut begins
    _ATEN.slice.Tensor: (0, 2),
    _ATEN.slice_scatter.default: (1, 3),
    _ATEN.slice_backward.default: (0, 3),
}
_FEW = 64  # numbers that are compared one by one


def is_pure(node: fx.Node) -> bool:
    """Whether a node is a pure function of tensors."""
    target = node.target
    return isinstance(target, OpOverload) and not target._schema.is_mutable  # pyright: ignore


def _stand_in(node: fx.Node) -> fx.Node | None:
    """What a node is in other words; None where it is something of its own.

    Of a free size x[:, i] is cut along both dimensions, along the first from its start to its end.
    """
    if node.target in _DETACHED:
        return node.all_input_nodes[0]
    if node.target not in _CUT:
        return None
    which, first = _CUT[node.target]
    along = node.args[first:]
    whole = len(along) >= 2 and along[0] in (0, None) and along[1] == sys.maxsize
    found = node.args[which]
    return found if whole and along[2:] in ((), (1,)) and isinstance(found, fx.Node) else None


def merge_equal(graph: fx.Graph) -> None:
    """Compute once what is computed twice, in a graph of which no derivative is taken any more."""
    known: dict[object, fx.Node] = {}
    for node in list(graph.nodes):
        whole = _stand_in(node)
        if whole is not None:
            node.replace_all_uses_with(whole)
            graph.erase_node(node)
            continue
        if node.op != "call_function" or not (is_pure(node) or node.target is operator.getitem):
            continue
        key = (node.target, frozen(node.args), frozen(node.kwargs))
        first = known.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def frozen(value: Any) -> object:  # noqa: ANN401
    """Something that is equal for equal arguments of an operation, and can be looked up."""
    if isinstance(value, list | tuple):
        return (type(value).__name__, *(frozen(item) for item in value))
    if isinstance(value, dict):
        return tuple((key, frozen(item)) for key, item in value.items())
    if isinstance(value, bool | int | float | str | type(None)):
        return (type(value), repr(value))
    return value if isinstance(value, fx.Node) else (type(value), str(value))


def same(a: fx.GraphModule, b: fx.GraphModule) -> bool:
    """Whether two graphs do the same operations, and add up the same, in whatever order."""
    known: dict[object, int] = {}
    return _named_outputs(a, known) == _named_outputs(b, known)


def _named_outputs(graph: fx.GraphModule, known: dict[object, int]) -> object:
    """What a graph returns, by numbers that stand for the same in all graphs of one table.

    A node is a number, and whether it is what the number stands for turned: (x + y)^T is x^T + y^T.
    """
    names: dict[fx.Node, tuple[int, bool]] = {}
    terms: dict[int, tuple[int, ...]] = {}
    inputs = 0

    def named(value: object) -> object:
        if isinstance(value, fx.Node):
            return ("node", *names[value])
        if isinstance(value, list | tuple):
            return tuple(named(x) for x in value)
        return frozen(value)

    for node in graph.graph.nodes:
        target, args, turned = node.target, node.args, False
        if node.op == "output":
            return named(args[0])
        if target is _ATEN.t.default:
            number, turned = names[args[0]]
            names[node] = (number, not turned)
            continue
        if node.op == "placeholder":
            key: object = ("input", inputs)
            inputs += 1
        elif isinstance(size := node.meta.get("val"), torch.SymInt):
            key = ("size", str(size))  # by whatever way it was found
        elif node.op == "get_attr":
            key = ("constant", _content(getattr(graph, str(target))))
        elif target is _ATEN.add.Tensor and _are_alike(args, names) and not node.kwargs:
            turned = names[args[0]][1]
            parts = [names[x][0] for x in args]
            key = ("sum", tuple(sorted(y for x in parts for y in terms.get(x, (x,)))))
            terms[known.setdefault(key, len(known))] = key[1]
        else:
            key = (target, named(args), tuple((k, named(v)) for k, v in node.kwargs.items()))
        names[node] = (known.setdefault(key, len(known)), turned)
    return None


def _are_alike(args: Sequence[object], names: dict[fx.Node, tuple[int, bool]]) -> bool:
    """Whether all are nodes of one shape, turned or not."""
    nodes = [x for x in args if isinstance(x, fx.Node)]
    alike = len({(str(x.meta["val"].shape), names[x][1]) for x in nodes}) == 1
    return alike and len(nodes) == len(args)


def _content(constant: object) -> object:
    """What tells a constant from others: its numbers where they are few, or that it is itself."""
    if type(constant) is Tensor and constant.numel() <= _FEW:
        return (str(constant.dtype), tuple(constant.shape), repr(constant.tolist()))
    return id(constant)
