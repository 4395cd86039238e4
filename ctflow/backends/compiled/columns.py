"""Networks on tall matrices are computed column by column, many rows at a time.

A batch of states is a matrix of many rows and few columns. Its rows lie one after the other in
memory, so that few numbers stand side by side which are treated alike: at a width of 20, a vector
of 16 is used twice and is three quarters empty the second time, and a matrix product goes through a
library made for other shapes. So products of a tall matrix with a small one, and what is done to
them element by element, are computed transposed, and turned back where something else reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from ctflow.backends.compiled.products import LARGE, UNROLLED, by_blocks, by_dots
from ctflow.backends.compiled.splice import settled, spliced

__all__ = ["by_columns"]

_ATEN = torch.ops.aten
_TALL = 64  # rows from which on
_RATIO = 4  # of rows to columns, likewise
_WIDEST = 32  # columns up to which
_NARROW = 8  # columns up to which a result gains nothing by itself
_LIKE = (_ATEN.zeros_like.default, _ATEN.ones_like.default, _ATEN.full_like.default)


def by_columns(graph: fx.Graph, actual: Callable[[Any], int]) -> None:
    """Compute products of tall matrices with small ones transposed, and what follows them.

    Args:
        graph: Functional operations with their shapes noted; changed in place.
        actual: What a size is now that may be another one later.
    """
    twins: dict[fx.Node, fx.Node] = {}
    entered: dict[fx.Node, fx.Node] = {}

    def enter(x: fx.Node) -> fx.Node:
        """The twin of a value; of what has none one that is made as soon as the value is there."""
        if x not in twins and x not in entered:
            place = x.next
            while place.op == "placeholder":
                place = place.next
            entered[x] = spliced(place, lambda x: settled(x.t()), [x])
        return twins.get(x) or entered[x]

    nodes = [node for node in graph.nodes if node.op == "call_function"]
    for node in nodes:
        if _is_tall_product(node, actual) and _gains(node, twins):
            *added, a, b = node.args
            twins[node] = spliced(node, _product_of(node, actual), [enter(a), b, *added])
        elif _follows(node, twins):
            twins[node] = _elementwise(node, enter)
    for node in nodes:
        if node not in twins:
            _read_twins(node, entered | twins, actual)
    for node, twin in twins.items():
        if any(user not in twins for user in node.users):
            node.replace_all_uses_with(
                spliced(node, lambda x: settled(x.t()), [twin]),
                lambda user: user not in twins,
            )
    graph.eliminate_dead_code()


def _is_tall_product(node: fx.Node, actual: Callable[[Any], int]) -> bool:
    """Whether a node is a product of a tall matrix, with a row added to it or not."""
    if node.target not in (_ATEN.mm.default, _ATEN.addmm.default) or node.kwargs:
        return False
    *added, a, b = (x.meta["val"] for x in node.args if isinstance(x, fx.Node))
    if a.device.type != "cpu" or a.dtype not in (torch.float32, torch.float64):
        return False
    rows, inner, columns = (*a.shape, b.shape[1])
    if any(isinstance(size, torch.SymInt) for size in (inner, columns)):
        return False
    if any(x.dim() != 1 for x in added):
        return False
    widest = max(inner, columns)
    return inner > 0 and widest <= _WIDEST and actual(rows) >= max(_TALL, _RATIO * widest)


def _gains(node: fx.Node, twins: dict[fx.Node, fx.Node]) -> bool:
    """Whether it pays: the matrix is turned already, or much is done to what it becomes."""
    wide = node.meta["val"].shape[1] > _NARROW
    return node.args[-2] in twins or (wide and any(_is_elementwise(user) for user in node.users))


def _product_of(node: fx.Node, actual: Callable[[Any], int]) -> Callable[..., Tensor]:
    """The function of (a [K, M], b [K, N], added [N] or nothing) that gives (a^T b + added)^T."""
    a, b = (x.meta["val"] for x in node.args[-2:])  # pyright: ignore
    inner, columns = b.shape
    unrolled = inner <= UNROLLED or actual(a.shape[0]) * inner * columns > LARGE
    written = _is_written(a)

    def product(a: Tensor, b: Tensor, *added: Tensor) -> Tensor:
        if unrolled:
            total = b[0].unsqueeze(1) * a[:1]
            for k in range(1, inner):
                total = total + b[k].unsqueeze(1) * a[k : k + 1]
        elif written:
            total = by_blocks(b.t(), a)
        else:
            total = (b.t().unsqueeze(2) * a.unsqueeze(0)).sum(1)
        return total + added[0].unsqueeze(1) if added else total

    return product


def _is_written(tall: Any) -> bool:  # noqa: ANN401
    """Whether there is a kernel of ours for products of a tall matrix."""
    return isinstance(tall.shape[0], int) and tall.dtype == torch.float32


def _is_elementwise(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, OpOverload) and (
        torch.Tag.pointwise in target.tags or target in _LIKE
    )


def _follows(node: fx.Node, twins: dict[fx.Node, fx.Node]) -> bool:
    """Whether a node does something element by element to what has a twin."""
    value = node.meta.get("val")
    inputs = node.all_input_nodes
    if not (_is_elementwise(node) and isinstance(value, Tensor) and value.dim() == 2):
        return False
    if not any(x in twins and x.meta["val"].shape == value.shape for x in inputs):
        return False
    return all(
        isinstance(x.meta.get("val"), Tensor)
        and (
            x.meta["val"].shape in (value.shape, value.shape[1:], (1, value.shape[1]))
            or x.meta["val"].shape == (value.shape[0], 1)
            or x.meta["val"].numel() == 1
        )
        for x in inputs
    )


def _elementwise(node: fx.Node, enter: Callable[[fx.Node], fx.Node]) -> fx.Node:
    """The same operation on twins."""
    shape = node.meta["val"].shape
    table: dict[fx.Node, fx.Node] = {}
    for x in node.all_input_nodes:
        own = x.meta["val"].shape
        if own == shape:
            table[x] = enter(x)
        elif len(own) == 2:
            table[x] = spliced(node, lambda x: x.t(), [x])
        elif own == shape[1:]:
            table[x] = spliced(node, lambda x: x.unsqueeze(1), [x])
        else:
            table[x] = x
    with node.graph.inserting_before(node):
        twin = node.graph.node_copy(node, table.__getitem__)
    twin.meta["val"] = node.meta["val"].new_empty(shape[::-1])
    return twin


def _read_by_product(
    node: fx.Node, twins: dict[fx.Node, fx.Node], actual: Callable[[Any], int]
) -> None:
    """Let a product along the rows read twins: as one sum over them if both factors have one."""
    a, b = (x for x in node.args if isinstance(x, fx.Node))
    whole = _turned(a)
    if whole in twins and b in twins:
        rows, columns = b.meta["val"].shape
        if actual(rows) * columns * node.meta["val"].shape[0] > LARGE:
            node.replace_input_with(a, twins[whole])
            node.replace_input_with(b, spliced(node, lambda x: x.t(), [twins[b]]))
        else:
            total = spliced(
                node,
                by_dots
                if _is_written(b.meta["val"])
                else lambda a, b: (a.unsqueeze(1) * b.unsqueeze(0)).sum(2),
                [twins[whole], twins[b]],
            )
            node.replace_all_uses_with(total)
            node.graph.erase_node(node)
    elif whole in twins:
        node.replace_input_with(a, twins[whole])
    elif b in twins:
        node.replace_input_with(b, spliced(node, lambda x: x.t(), [twins[b]]))
    if whole is not None and not a.users:
        a.graph.erase_node(a)


def _read_twins(node: fx.Node, twins: dict[fx.Node, fx.Node], actual: Callable[[Any], int]) -> None:
    """Let a sum over rows, or a product along them, read twins as they are."""
    if node.target is _ATEN.mm.default:
        _read_by_product(node, twins, actual)
    if node.target is not _ATEN.sum.dim_IntList or node.kwargs:
        return
    x, along, *kept = node.args
    if isinstance(x, fx.Node) and x in twins and along == [0]:
        total = spliced(
            node, lambda x: x.sum(1, keepdim=True).t() if any(kept) else x.sum(1), [twins[x]]
        )
        node.replace_all_uses_with(total)
        node.graph.erase_node(node)


def _turned(node: fx.Node) -> fx.Node | None:
    """What a node shows transposed."""
    if node.target is _ATEN.t.default:
        return node.all_input_nodes[0]
    if node.target is _ATEN.permute.default and list(node.args[1]) == [1, 0]:  # pyright: ignore
        return node.all_input_nodes[0]
    return None
