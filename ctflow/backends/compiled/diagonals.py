"""The trace of a network's Jacobian by one product, where it was written as many.

An exact divergence sums D entries of the Jacobian, each by a product of a unit vector with every
layer. Behind the last layer such a vector is the same row for all samples, and between two layers
there are only slopes s1, s2 of the activations. With z2 = s1(z1) B and so on, entry i is
sum_jk s2_j C_ji B_kj s1_k A_ik, so that the sum over i is s2 M s1^T for M = B^T o sum_i C_i A_i^T,
a matrix of the weights alone: D products of the batch with B become one, and with a single hidden
layer there is none. The numbers differ by roundings, as those of any other order of a sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from ctflow.backends.compiled.equality import frozen, merge_equal
from ctflow.backends.compiled.splice import spliced

__all__ = ["condensed"]

_ATEN = torch.ops.aten
_LINEAR = (  # in their first argument: derivatives of activations, and products with numbers
    _ATEN.neg.default,
    _ATEN.mul.Scalar,
    _ATEN.div.Scalar,
    _ATEN.div.Tensor,
    _ATEN.tanh_backward.default,
    _ATEN.sigmoid_backward.default,
    _ATEN.softplus_backward.default,
    _ATEN.threshold_backward.default,
    _ATEN.leaky_relu_backward.default,
    _ATEN.hardtanh_backward.default,
    _ATEN.hardsigmoid_backward.default,
    _ATEN.hardswish_backward.default,
    _ATEN.elu_backward.default,
    _ATEN.mish_backward.default,
    _ATEN.gelu_backward.default,
    _ATEN.silu_backward.default,
)
_EMPTY = (
    _ATEN.zeros_like.default,
    _ATEN.ones_like.default,
    _ATEN.new_zeros.default,
    _ATEN.new_ones.default,
    _ATEN.zeros.default,
    _ATEN.ones.default,
)
_SHAPED = (_ATEN.view.default, _ATEN._unsafe_view.default, _ATEN.reshape.default)
_PRODUCTS = (_ATEN.mm.default, _ATEN.addmm.default)


@dataclass(frozen=True)
class _Number:
    """The same number everywhere, in a tensor of no dimension."""

    value: fx.Node


@dataclass(frozen=True)
class _Row:
    """The same row for all samples: [1, K]."""

    row: fx.Node


@dataclass(frozen=True)
class _Scaled:
    """slope o row: [B, K] and [1, K]."""

    slope: fx.Node
    row: fx.Node


@dataclass(frozen=True)
class _Product:
    """(left @ matrix) o right: [B, J], [J, K] and [B, K]."""

    left: fx.Node
    matrix: fx.Node
    right: fx.Node


@dataclass(frozen=True)
class _Columns:
    """Some columns, side by side, of a product of one of the two with a matrix [K, D]."""

    factor: _Scaled | _Product
    matrix: fx.Node
    first: int
    size: int


@dataclass(frozen=True)
class _Entries:
    """n entries, added: row sums of (left @ matrix) o right, or left @ matrix [J, 1]."""

    left: fx.Node
    matrix: fx.Node
    right: fx.Node | None
    n: int = 1


@dataclass(frozen=True)
class _Stack:
    """Entries side by side along a dimension."""

    parts: tuple[_Form | None, ...]
    along: int


_Form: TypeAlias = "_Number | _Row | _Scaled | _Product | _Columns | _Entries | _Stack"
_Put: TypeAlias = Callable[[Callable[..., Tensor], Sequence[fx.Node]], fx.Node]


def condensed(graph: fx.GraphModule) -> fx.GraphModule | None:
    """The same function with traces by one product; None where it has none that would gain.

    Args:
        graph: Functional operations with their shapes noted; left as it is.
    """
    made = fx.Graph()
    made.output(made.graph_copy(graph.graph, {}))
    reader = _Reader()
    nodes = list(made.nodes)
    for node, place in pairwise(nodes):
        reader.read(node, partial(spliced, place))
    changed = False
    for node, place in pairwise(nodes):
        form = reader.forms.get(node)
        further = all(isinstance(reader.forms.get(x), _Entries | _Stack) for x in node.users)
        if isinstance(form, _Entries) and form.n > 1 and not further:
            node.replace_all_uses_with(_total(form, _shape(node), partial(spliced, place)))
            changed = True
    merge_equal(made)
    made.eliminate_dead_code()
    if not changed or _n_products(made) >= _n_products(graph.graph):
        return None
    return fx.GraphModule(graph, made)


def _n_products(graph: fx.Graph) -> int:
    """Matrix products of a batch."""
    return sum(node.target in _PRODUCTS and _shape(node)[0] != 1 for node in graph.nodes)


class _Reader:
    """What the nodes of a graph are, as far as it matters here."""

    def __init__(self) -> None:
        self.forms: dict[fx.Node, _Form] = {}
        self._nodes: dict[object, fx.Node] = {}

    def read(self, node: fx.Node, put: _Put) -> None:
        """Note what a node is, from what it is made of, if that is known."""
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, Tensor) or not node.args:
            return
        if value.dtype not in (torch.float32, torch.float64):
            return
        forms = [self.forms.get(x) if isinstance(x, fx.Node) else None for x in node.args]
        form = (
            self._constant(node, forms, put)
            or self._between_layers(node, forms, put)
            or _entry(node, forms[0], put)
            or self._sum(node, forms, put)
        )
        if form is not None and (not isinstance(form, _Entries) or _is_column(node)):
            self.forms[node] = form

    def _constant(self, node: fx.Node, forms: Sequence[_Form | None], put: _Put) -> _Form | None:
        """What is the same for all samples."""
        target, first, args = node.target, forms[0], node.args
        dim = node.meta["val"].dim()
        if target in _EMPTY:
            number = float("ones" in str(target))
            return _Number(put(lambda x: x.new_full((), number), [node]))
        if target is _ATEN.fill.Tensor:
            return _Number(_node(args[1]))
        if target is _ATEN.expand.default:
            return first if isinstance(first, _Number) else _expanded(node, put)
        if target is _ATEN.select_backward.default and dim == 2 and isinstance(first, _Number):
            along, i = args[2:]
            start = put(lambda x: torch.zeros_like(x[:1]), [node])
            return _unit(start, first, along, i, put)
        if target is _ATEN.select_scatter.default and dim == 2:
            row, source = _as_row(node, first, put), self.forms.get(_node(args[1]))
            if row is not None and isinstance(source, _Number):
                return _unit(row.row, source, args[2], args[3], put)
        return None

    def _between_layers(
        self, node: fx.Node, forms: Sequence[_Form | None], put: _Put
    ) -> _Form | None:
        """Products with weights, and with the slopes of activations."""
        target, args = node.target, node.args
        if target is _ATEN.mm.default:
            return _times(_as_row(args[0], forms[0], put) or forms[0], _node(args[1]), put)
        lines = [_as_row(x, f, put) or f for x, f in zip(args, forms, strict=True)]
        known = [x for x in lines if x is not None and _takes_slopes(x)]
        if len(known) == 2 and target in (_ATEN.add.Tensor, _ATEN.sub.Tensor) and not node.kwargs:
            return self._two_slopes(node, known, put)
        at = next((i for i, x in enumerate(lines) if x in known), None)
        if at is None or not (target in _LINEAR or (target is _ATEN.mul.Tensor and at < 2)):
            return None
        if at > 0 and target is not _ATEN.mul.Tensor:
            return None
        others = [x for i, x in enumerate(args) if i != at and isinstance(x, fx.Node)]
        if any(_shape(x) != _shape(node) for x in others):
            return None
        form = lines[at]
        slope = _slope_of(form)
        if slope is None and not others:
            return None  # a number times a row
        inner = [slope if i == at else x for i, x in enumerate(args)]
        return self._with_slope(form, self._made(node, inner, others, put), put)

    def _two_slopes(self, node: fx.Node, known: Sequence[_Form], put: _Put) -> _Form | None:
        """The sum of two products with one thing, or their difference."""
        a, b = known
        slopes = [_slope_of(a), _slope_of(b)]
        if type(a) is not type(b) or None in slopes:
            return None
        start = slopes[0]
        if self._with_slope(a, start, put) != self._with_slope(b, start, put):
            return None
        return self._with_slope(a, self._made(node, slopes, [], put), put)

    def _made(
        self, node: fx.Node, args: Sequence[Any], others: Sequence[fx.Node], put: _Put
    ) -> fx.Node:
        """A node's operation on other arguments, once; ones where there is None."""
        function: Any = node.target
        key = (function, frozen(tuple(args)), frozen(dict(node.kwargs)))
        if key not in self._nodes:
            inputs = [x for x in args if isinstance(x, fx.Node)]

            def run(*given: Tensor) -> Tensor:
                left = iter(given)
                ones = torch.ones_like(given[inputs.index(others[0])]) if others else None
                values = [
                    next(left) if isinstance(x, fx.Node) else ones if x is None else x for x in args
                ]
                return function(*values, **node.kwargs)

            self._nodes[key] = put(run, inputs)
        return self._nodes[key]

    def _with_slope(self, form: _Form | None, slope: fx.Node | None, put: _Put) -> _Form | None:
        """The same with other slopes."""
        if slope is None:
            return None
        if isinstance(form, _Row | _Scaled):
            return _Scaled(slope, form.row)
        if isinstance(form, _Product):
            return replace(form, right=slope)
        if isinstance(form, _Columns) and isinstance(form.factor, _Scaled):
            inputs = [form.factor.row, form.matrix]
            key = ("matrix", *inputs)
            if key not in self._nodes:
                self._nodes[key] = put(lambda r, m: r.t() * m, inputs)
            return _Product(form.factor.slope, self._nodes[key], slope)
        return None

    def _sum(self, node: fx.Node, forms: Sequence[_Form | None], put: _Put) -> _Form | None:
        """Sums and differences of entries."""
        target, args, first = node.target, node.args, forms[0]
        if target is _ATEN.neg.default and isinstance(first, _Entries):
            return replace(first, matrix=put(torch.neg, [first.matrix]))
        if target in (_ATEN.add.Tensor, _ATEN.sub.Tensor) and not node.kwargs and len(forms) == 2:
            sign = 1 if target is _ATEN.add.Tensor else -1
            alike = _shape(args[0]) == _shape(args[1])
            return _added(forms, put, sign) if alike else None
        dim = node.meta["val"].dim()
        if target in (_ATEN.stack.default, _ATEN.cat.default):
            listed: Any = args[0]
            along: Any = args[1] if len(args) > 1 else 0
            parts = [self.forms.get(x) for x in listed]
            apart = target is _ATEN.stack.default or _shape(listed[0])[along] == 1
            return _Stack(tuple(parts), along % dim) if parts and apart else None
        if target is _ATEN.sum.dim_IntList and isinstance(first, _Stack) and not node.kwargs:
            along = args[1]
            dim = len(_shape(args[0]))
            if isinstance(along, list) and [x % dim for x in along] == [first.along]:
                return _added(first.parts, put)
        return None


def _node(value: object) -> fx.Node:
    if not isinstance(value, fx.Node):
        raise TypeError(f"expected a node, got {value!r}")  # pragma: no cover
    return value


def _shape(node: object) -> tuple[Any, ...]:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _is_column(node: fx.Node) -> bool:
    """Whether it has one number for each sample: [B] or [B, 1]."""
    return len(_shape(node)) == 1 or _shape(node)[1:] == (1,)


def _expanded(node: fx.Node, put: _Put) -> _Number | _Row | None:
    """A number, or a row, that is the same for all samples."""
    x, shape = _node(node.args[0]), _shape(node)
    if math.prod(_shape(x)) == 1:
        return _Number(put(lambda x: x.reshape(()), [x]))
    if len(shape) == 2 and _shape(x) in (shape[1:], (1, *shape[1:])):
        return _Row(put(lambda x: x.reshape(1, -1), [x]))
    return None


def _as_row(node: object, form: _Form | None, put: _Put) -> _Row | None:
    """The row of a matrix whose rows, or whose numbers, are all the same."""
    if isinstance(form, _Number) and isinstance(node, fx.Node) and len(_shape(node)) == 2:
        return _Row(put(lambda x, v: v.to(x.dtype).expand_as(x[:1]), [node, form.value]))
    return form if isinstance(form, _Row) else None


def _unit(row: fx.Node, source: _Number, along: object, i: object, put: _Put) -> _Row | None:
    """A row in which one number is set."""
    if along not in (1, -1) or not isinstance(i, int):
        return None

    def place(x: Tensor, v: Tensor) -> Tensor:
        return x.select_scatter(v.to(x.dtype).expand(1), 1, i)

    return _Row(put(place, [row, source.value]))


def _times(form: _Form | None, matrix: fx.Node, put: _Put) -> _Form | None:
    """A product with a matrix from the right."""
    size = matrix.meta["val"].shape[1]
    if isinstance(form, _Row):
        return _Row(put(torch.mm, [form.row, matrix]))
    if isinstance(form, _Scaled | _Product) and isinstance(size, int):
        return _Columns(form, matrix, 0, size)
    return None


def _takes_slopes(form: _Form) -> bool:
    """Whether products with slopes are known: behind the last layer, and behind the one before."""
    if isinstance(form, _Columns):
        whole = form.size == form.matrix.meta["val"].shape[1]
        return whole and isinstance(form.factor, _Scaled)
    return isinstance(form, _Row | _Scaled | _Product)


def _slope_of(form: _Form | None) -> fx.Node | None:
    if isinstance(form, _Scaled):
        return form.slope
    return form.right if isinstance(form, _Product) else None


def _entry(node: fx.Node, form: _Form | None, put: _Put) -> _Form | None:
    """Columns of the last product, down to one; and their views."""
    target, args = node.target, node.args
    if target in _SHAPED:
        return form if isinstance(form, _Entries) or _shape(args[0]) == _shape(node) else None
    if not isinstance(form, _Columns) or len(args) < 3 or args[1] not in (1, -1):
        return None
    bounds: Any = args[2:]
    if not all(isinstance(x, int) for x in bounds):
        return None
    if target is _ATEN.select.int:
        start = bounds[0] % form.size
        stop = start + 1
    elif target is _ATEN.slice.Tensor and len(bounds) == 2:
        start, stop, _ = slice(*bounds).indices(form.size)
    else:
        return None
    part = replace(form, first=form.first + start, size=stop - start)
    return _column(part, put) if part.size == 1 else part


def _column(part: _Columns, put: _Put) -> _Entries:
    """One column of a product, as a sum over the layer before."""
    i, factor = part.first, part.factor
    if isinstance(factor, _Scaled):
        matrix = put(lambda r, c: (r * c[:, i]).t(), [factor.row, part.matrix])
        return _Entries(factor.slope, matrix, None)
    matrix = put(lambda m, c: m * c[:, i], [factor.matrix, part.matrix])
    return _Entries(factor.left, matrix, factor.right)


def _added(parts: Sequence[_Form | None], put: _Put, sign: int = 1) -> _Entries | None:
    """A sum of entries that differ in their matrices alone, or a difference."""
    first = parts[0]
    if not isinstance(first, _Entries):
        return None
    total, n = first.matrix, first.n
    for part in parts[1:]:
        if not isinstance(part, _Entries) or (part.left, part.right) != (first.left, first.right):
            return None
        total = put(torch.add if sign > 0 else torch.sub, [total, part.matrix])
        n += part.n
    return replace(first, matrix=total, n=n)


def _total(form: _Entries, shape: tuple[Any, ...], put: _Put) -> fx.Node:
    """The entries as one product, of shape [B] or [B, 1]."""
    flat = len(shape) == 1
    if form.right is None:
        inputs = [form.left, form.matrix]
        return put(lambda s, m: (s @ m).squeeze(1) if flat else s @ m, inputs)
    inputs = [form.left, form.matrix, form.right]
    return put(lambda s, m, q: ((s @ m) * q).sum(1, keepdim=not flat), inputs)
