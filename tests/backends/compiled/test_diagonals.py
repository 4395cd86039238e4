"""Traces of networks by one product: the same function with fewer products, or left alone."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from ctflow.backends.compiled.diagonals import condensed
from ctflow.backends.compiled.equality import merge_equal, same
from ctflow.backends.compiled.library import Free, Sketch
from ctflow.backends.compiled.trace import graph_of
from ctflow.flows.products import vjp

ATEN = torch.ops.aten
ROWS, SIZE, WIDTH = 7, 3, 5
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sine": torch.sin,
    "swish": lambda x: x * torch.sigmoid(x),
    "softplus": nn.functional.softplus,
    "relu": torch.relu,
    "leaky": nn.functional.leaky_relu,
    "clipped": nn.functional.hardtanh,
    "elu": nn.functional.elu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "mish": nn.functional.mish,
}


class Net:
    """A network of (x, t) with t = 0.3 and drawn weights, whose function takes them all."""

    def __init__(self, hidden: int, activation: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        widths = [SIZE + 1, *[WIDTH] * hidden, SIZE]
        generator = torch.Generator().manual_seed(hidden)
        self.activation = activation
        self.weights = [
            torch.randn(shape, generator=generator, dtype=torch.float64)
            for a, b in pairwise(widths)
            for shape in ((b, a), (b,))
        ]

    @property
    def inputs(self) -> list[Tensor]:
        """States and weights."""
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(ROWS, SIZE, generator=generator, dtype=torch.float64), *self.weights]

    def __call__(self, x: Tensor, *weights: Tensor) -> Tensor:
        """[B, 3] to [B, 3]."""
        h = torch.cat([x, x.new_full((x.shape[0], 1), 0.3)], dim=1)
        for i in range(0, len(weights), 2):
            h = nn.functional.linear(h if i == 0 else self.activation(h), *weights[i : i + 2])
        return h

    def rows(self, x: Tensor, *weights: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Value, and the rows of the Jacobian by torch.func."""
        value, pull = vjp(lambda x: self(x, *weights), x)
        unit = torch.eye(SIZE, dtype=x.dtype)
        return value, [pull(e.expand(x.shape))[0] for e in unit]


def _by_slices(net: Net) -> Callable[..., list[Tensor]]:
    """Unit vectors that are written, entries cut out, a sum by Python; its negative."""

    def found(x: Tensor, *weights: Tensor) -> list[Tensor]:
        value, pull = vjp(lambda x: net(x, *weights), x)
        entries = []
        for i in range(SIZE):
            unit = torch.zeros_like(value)
            unit[:, i] = 1
            entries.append(pull(unit)[0][:, i : i + 1])
        return [value, -sum(entries[1:], entries[0])]

    return found


def _by_stack(net: Net) -> Callable[..., list[Tensor]]:
    """Unit vectors of an identity, entries selected and stacked."""

    def found(x: Tensor, *weights: Tensor) -> list[Tensor]:
        value, rows = net.rows(x, *weights)
        return [value, torch.stack([row[:, i] for i, row in enumerate(rows)]).sum(dim=0)]

    return found


def _by_tape(net: Net) -> Callable[..., list[Tensor]]:
    """Sums differentiated by autograd, entries side by side, in differences."""

    def found(x: Tensor, *weights: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            x = x.requires_grad_() if x.is_leaf else x
            value = net(x, *weights)
            total = torch.zeros(x.shape[0], 1, dtype=x.dtype)
            for i in range(SIZE):
                (row,) = torch.autograd.grad(value[:, i].sum(), x, create_graph=True)
                entry = row[:, i : i + 1]
                total = entry if i == 0 else total - entry
        return [value, total]

    return found


def _by_cat(net: Net) -> Callable[..., list[Tensor]]:
    """Entries side by side in a matrix; a sum along its rows, and what is done to it after."""

    def found(x: Tensor, *weights: Tensor) -> list[Tensor]:
        value, rows = net.rows(x, *weights)
        diagonal = torch.cat([row[:, i : i + 1] for i, row in enumerate(rows)], dim=1)
        return [value, 2 * diagonal.sum(dim=1, keepdim=True).t()]

    return found


def _by_kept(net: Net) -> Callable[..., list[Tensor]]:
    """A sum that keeps its dimension, in front of the samples, and one in another dtype."""

    def found(x: Tensor, *weights: Tensor) -> list[Tensor]:
        value, rows = net.rows(x, *weights)
        diagonal = torch.stack([row[:, i] for i, row in enumerate(rows)])
        return [value, diagonal.sum(0, keepdim=True), diagonal.sum(0, dtype=torch.float32)]

    return found


def _graph(
    function: Callable[..., Any], inputs: list[Tensor], free: bool = False
) -> fx.GraphModule:
    """Of functional operations, for any number of rows or as many as there are."""
    sketch = Sketch(["rows"] if free else [])
    rows = Free("rows", 1) if free else None
    x, *weights = inputs
    fake = [sketch.tensor(x, (rows, None)), *(sketch.tensor(w, (None,) * w.dim()) for w in weights)]
    sketch.mode.allow_non_fake_inputs = True
    with sketch.mode:
        graph = graph_of(function, fake)
        graph = graph_of(torch.func.functionalize(graph, remove="mutations"), fake)
    graph.graph.eliminate_dead_code()
    merge_equal(graph.graph)
    graph.recompile()
    return graph


def _shorter(graph: fx.GraphModule) -> fx.GraphModule | None:
    mode: Any = next(iter(graph.graph.nodes)).meta["val"].fake_mode
    with mode:
        return condensed(graph)


def _products(graph: fx.GraphModule) -> int:
    """Those of the batch."""
    nodes = [n for n in graph.graph.nodes if n.target in (ATEN.mm.default, ATEN.addmm.default)]
    return sum(node.meta["val"].shape[0] != 1 for node in nodes)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [1, 2])
def test_a_trace_takes_one_product(hidden: int, activation: str) -> None:
    """Beside those of the value; before it took one for each layer and each variable."""
    net = Net(hidden, ACTIVATIONS[activation])
    before = _graph(_by_stack(net), net.inputs)
    after = _shorter(before)
    assert after is not None
    assert _products(after) == hidden + 1 + 1
    for found, wanted in zip(after(*net.inputs), before(*net.inputs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("way", [_by_slices, _by_stack, _by_tape, _by_cat])
@pytest.mark.parametrize("hidden", [1, 2])
@pytest.mark.parametrize("free", [False, True])
def test_however_it_is_written(
    hidden: int, way: Callable[[Net], Callable[..., list[Tensor]]], free: bool
) -> None:
    """By torch.func or autograd, in columns or vectors, added, subtracted or stacked."""
    net = Net(hidden)
    function = way(net)
    after = _shorter(_graph(function, net.inputs, free))
    assert after is not None
    assert _products(after) == hidden + 2
    for found, wanted in zip(after(*net.inputs), function(*net.inputs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)
        assert found.shape == wanted.shape


def test_derivatives_are_the_same() -> None:
    """By the state and by every weight and bias."""
    net = Net(2)
    function = _by_slices(net)
    after = _shorter(_graph(function, net.inputs))
    assert after is not None
    gradients = []
    for each in (function, after):
        leaves = [x.clone().requires_grad_() for x in net.inputs]
        value, trace = each(*leaves)
        gradients.append(torch.autograd.grad((value**2).sum() + trace.sin().sum(), leaves))
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def _with_norm(net: Net) -> Callable[..., list[Tensor]]:
    """The trace and the norm of the whole Jacobian, which needs the products anyway."""

    def found(x: Tensor, *weights: Tensor) -> list[Tensor]:
        value, rows = net.rows(x, *weights)
        trace = rows[0][:, 0] + rows[1][:, 1] + rows[2][:, 2]
        return [value, trace, torch.stack([(row**2).sum(1) for row in rows]).sum(0)]

    return found


def _single(net: Net) -> Callable[..., list[Tensor]]:
    def found(x: Tensor, *weights: Tensor) -> list[Tensor]:
        value, rows = net.rows(x, *weights)
        return [value, rows[0][:, 0]]

    return found


def _scaled_by_state(net: Net) -> Callable[..., list[Tensor]]:
    """Entries that are not the Jacobian's alone."""

    def found(x: Tensor, *weights: Tensor) -> list[Tensor]:
        value, rows = net.rows(x, *weights)
        return [value, sum((x * row)[:, i] for i, row in enumerate(rows))]  # pyright: ignore

    return found


@pytest.mark.parametrize(
    ("hidden", "way"),
    [(3, _by_stack), (2, _with_norm), (2, _single), (2, _scaled_by_state), (2, _by_kept)],
)
def test_what_gains_nothing_stays_as_it_is(
    hidden: int, way: Callable[[Net], Callable[..., list[Tensor]]]
) -> None:
    """Three layers, rows that are needed anyway, a single entry, something else than a trace."""
    net = Net(hidden)
    assert _shorter(_graph(way(net), net.inputs)) is None


def test_several_networks_are_told_apart() -> None:
    """Each trace is condensed by itself; a sum across both is left as it is."""
    a, b = Net(2), Net(2, torch.sigmoid)

    def apart(x: Tensor, *weights: Tensor) -> list[Tensor]:
        return [*_by_stack(a)(x, *weights), *_by_stack(b)(x, *weights)]

    def across(x: Tensor, *weights: Tensor) -> list[Tensor]:
        _, rows = a.rows(x, *weights)
        _, others = b.rows(x, *weights)
        return [sum(r[:, i] + o[:, i] for i, (r, o) in enumerate(zip(rows, others, strict=True)))]  # pyright: ignore

    after = _shorter(_graph(apart, a.inputs))
    assert after is not None
    assert _products(after) == 7  # the first layer is the same in both
    for found, wanted in zip(after(*a.inputs), apart(*a.inputs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)
    after = _shorter(_graph(across, a.inputs))
    assert after is None or torch.allclose(after(*a.inputs)[0], across(*a.inputs)[0])


def test_the_same_operations_in_another_order_are_the_same() -> None:
    """And with sums taken in another order, or turned; anything else is not."""

    def one(x: Tensor, y: Tensor) -> list[Tensor]:
        a, b = x.sin(), y.cos()
        return [(a + b + x).t() @ (x - y), b]

    def other(x: Tensor, y: Tensor) -> list[Tensor]:
        b, a = y.cos(), x.sin()
        return [(x.t() + (b + a).t()) @ (x - y), b]

    inputs = [torch.randn(3, 3), torch.randn(3, 3)]
    known = _graph(one, inputs)
    assert same(known, _graph(other, inputs))
    for wrong in (
        lambda x, y: [(x.sin() + y.cos() + x).t() @ (y - x), y.cos()],
        lambda x, y: [(x.sin() + y.cos() + x) @ (x - y), y.cos()],
        lambda x, y: [(x.sin() + y.cos() + y).t() @ (x - y), y.cos()],
        lambda x, y: [(x.sin() + y.cos()).t() @ (x - y), y.cos()],
        lambda x, y: list(reversed(one(x, y))),
        lambda x, y: one(y, x),
    ):
        assert not same(known, _graph(wrong, inputs))


def test_constants_count_by_their_numbers() -> None:
    """Two graphs have constants of their own."""

    def shifted(by: float) -> Callable[..., list[Tensor]]:
        return lambda x: [x + torch.tensor([by, 0.0])]

    inputs = [torch.randn(3, 2)]
    assert same(_graph(shifted(1.0), inputs), _graph(shifted(1.0), inputs))
    assert not same(_graph(shifted(1.0), inputs), _graph(shifted(2.0), inputs))
