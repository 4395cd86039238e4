"""Every tensor that f reaches gets the gradient that back-propagation through steps gives it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ctflow import Unsupported, odeint
from ctflow.dynamics import CountCalls
from tests.checks import check_relative
from tests.problems import FLOAT

Y0 = torch.tensor([1.0, -0.5], dtype=FLOAT)
TIMES = torch.tensor([0.0, 0.4, 1.0], dtype=FLOAT)
RTOL = 1e-7
GLOBAL = torch.zeros(())  # the forms below put a tensor of their own here


class Case(NamedTuple):
    """A vector field, its third argument, and the leaves that shall get a gradient."""

    f: Callable[..., Any]
    leaves: tuple[Tensor, ...]
    args: Any = None


def weight(value: float = 0.7) -> Tensor:
    """A leaf [2] that wants a gradient."""
    return torch.tensor([value, -value], dtype=FLOAT, requires_grad=True)


def computed(w: Tensor) -> Tensor:
    """A context: a tensor with a history of its own."""
    return torch.tanh(w) + 0.3 * w


class Holder:
    """Keeps one value and multiplies by it."""

    def __init__(self, value: Any) -> None:  # noqa: ANN401
        self.value = value

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.value * y * torch.cos(t)

    def method(self, t: Tensor, y: Tensor) -> Tensor:
        return self(t, y)


class Heir(Holder):
    """Inherits the call."""


@dataclass(frozen=True)
class Frozen:
    """Its attribute cannot be assigned."""

    value: Tensor

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.value * y


class Encoded(nn.Module):
    """Holds an encoder and what it computed: both are reachable, and only one may be counted."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 2).double()
        self.context = torch.tanh(self.encoder(Y0))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.context * y + 0.1 * self.encoder(y)


class Buffered(nn.Module):
    """Keeps a computed tensor as a buffer."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.get_buffer("value") * y


def with_encoder(field: Encoded) -> Case:
    """Weights of the encoder, which reach f directly and through what was computed."""
    return Case(field, tuple(field.parameters()))


def with_global(w: Tensor, value: Tensor) -> Case:
    """The value as a global of this module."""
    globals()["GLOBAL"] = value
    return Case(lambda t, y: GLOBAL * y, (w,))


def with_normalised_weight() -> Case:
    """A parametrization computes the weight anew in each call."""
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2).double())
    return Case(lambda t, y: layer(y), tuple(layer.parameters()))


def with_inner_solve() -> Case:
    """f itself integrates, with a weight and a computed tensor."""
    layer, w = nn.Linear(2, 2).double(), weight()
    context = computed(w)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return odeint(lambda s, z: layer(z) * context, y, [0.0, 0.3], rtol=RTOL, atol=RTOL)[-1]

    return Case(f, (*layer.parameters(), w))


def make_default(value: Tensor) -> Callable[..., Any]:
    """A function whose default argument holds the value."""

    def f(t: Tensor, y: Tensor, *, c: Tensor = value) -> Tensor:
        return c * y

    return f


def scaled(t: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """For functools.partial."""
    return c * y


def wrapped(f: Callable[..., Any]) -> Callable[..., Any]:
    """A decorated function: f is in the closure of another one."""

    @functools.wraps(f)
    def outer(*inputs: Tensor) -> Tensor:
        return f(*inputs)

    return outer


PLACES: dict[str, Callable[[Tensor, Tensor], Case]] = {
    "closure": lambda w, c: Case(lambda t, y: c * y, (w,)),
    "two closures": lambda w, c: Case(wrapped(wrapped(lambda t, y: c * y)), (w,)),
    "list in a closure": lambda w, c: (lambda kept: Case(lambda t, y: kept[0] * y, (w,)))([c]),
    "nested dict": lambda w, c: (
        lambda kept: Case(lambda t, y: kept["a"]["b"][1] * y, (w,)))({"a": {"b": [None, c]}}),
    "attribute": lambda w, c: Case(Holder(c), (w,)),
    "inherited call": lambda w, c: Case(Heir(c), (w,)),
    "list in an attribute": lambda w, c: (
        lambda holder: Case(lambda t, y: holder.value[0] * y, (w,)))(Holder([c])),
    "bound method": lambda w, c: Case(Holder(c).method, (w,)),
    "frozen dataclass": lambda w, c: Case(Frozen(c), (w,)),
    "buffer": lambda w, c: Case(Buffered(c), (w,)),
    "wrapped module": lambda w, c: Case(CountCalls(Buffered(c)), (w,)),
    "default argument": lambda w, c: Case(make_default(c), (w,)),
    "global": with_global,
    "partial": lambda w, c: Case(functools.partial(scaled, c=c), (w,)),
    "args": lambda w, c: Case(lambda t, y, a: a * y, (w,), c),
    "nested args": lambda w, c: Case(lambda t, y, a: a["c"][0] * y, (w,), {"c": [c, 1.5], "n": 3}),
    "args and closure": lambda w, c: Case(lambda t, y, a: a * y + 0.1 * c, (w,), c),
    "twice": lambda w, c: Case(
        (lambda holder: lambda t, y: holder(t, y) + 0.1 * c)(Holder(c)), (w,)),
    "with its own source": lambda w, c: Case(lambda t, y: c * y + 0.1 * w, (w,)),
    "with a view of it": lambda w, c: (
        lambda view: Case(lambda t, y: c * y + view * 0.1, (w,)))(c[0]),
}  # fmt: skip
FORMS: dict[str, Callable[[], Case]] = {
    "encoder and its output": lambda: with_encoder(Encoded()),
    "parametrized weight": with_normalised_weight,
    "solve inside f": with_inner_solve,
    "module list": lambda: (lambda m: Case(lambda t, y: m[1](m[0](y)), tuple(m.parameters())))(
        nn.ModuleList([nn.Linear(2, 3).double(), nn.Linear(3, 2).double()])),
    "shared layer": lambda: (lambda m: Case(lambda t, y: m(m(y)), tuple(m.parameters())))(
        nn.Linear(2, 2).double()),
}  # fmt: skip


def gradients(case: Case, gradient: str) -> tuple[Tensor, ...]:
    """Of a loss at an interior and the last time, for y0 and the leaves."""
    y0 = Y0.clone().requires_grad_()
    y = odeint(case.f, y0, TIMES, args=case.args, gradient=gradient, rtol=RTOL, atol=RTOL)
    return torch.autograd.grad(y[1].sum() + (y[2] ** 2).sum(), (y0, *case.leaves))


def check_like_direct(make: Callable[[], Case], gradient: str, rtol: float) -> None:
    """Raise unless a gradient method agrees with back-propagation through the solver."""
    torch.manual_seed(0)
    wanted = gradients(make(), "direct")
    torch.manual_seed(0)
    check_relative(gradients(make(), gradient), wanted, rtol=rtol)


methods = pytest.mark.parametrize(
    ("gradient", "rtol"), [("checkpointed", 1e-12), ("adjoint", 20 * RTOL)]
)


@methods
@pytest.mark.parametrize("place", PLACES)
def test_a_leaf_gets_its_gradient_wherever_it_is_kept(
    place: str, gradient: str, rtol: float
) -> None:
    """In closures, attributes, containers, defaults, globals, partials, methods and args."""

    def make() -> Case:
        w = weight()
        return PLACES[place](w, w)  # its view, in the last place, is a computed tensor too

    check_like_direct(make, gradient, rtol)


@methods
@pytest.mark.parametrize("place", PLACES)
def test_a_computed_tensor_sends_its_gradient_to_its_source(
    place: str, gradient: str, rtol: float
) -> None:
    """In the same places, and exactly once where it is kept twice."""

    def make() -> Case:
        w = weight()
        return PLACES[place](w, computed(w))

    check_like_direct(make, gradient, rtol)


@methods
@pytest.mark.parametrize("form", FORMS)
def test_modules_get_their_gradient_once(form: str, gradient: str, rtol: float) -> None:
    """Also where a weight and what it computed are both reached."""
    check_like_direct(FORMS[form], gradient, rtol)


class Slotted:
    """An object without a dict: nothing in it can be found by name."""

    __slots__ = ("value",)

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.value * y


def _with_default(value: Tensor) -> Callable[..., Any]:
    def f(t: Tensor, y: Tensor, c: Tensor = value) -> Tensor:
        return c * y

    return f


HIDDEN: dict[str, Callable[[Tensor], Callable[..., Any]]] = {
    "slots": Slotted,
    "tuple": lambda c: (lambda kept: lambda t, y: kept[0] * y)((c,)),
    "positional partial": lambda c: functools.partial(lambda c, t, y: c * y, c),
    "positional default": _with_default,
    "set": lambda c: (lambda kept: lambda t, y: next(iter(kept)) * y)({c}),
}


@pytest.mark.parametrize("place", HIDDEN)
@methods
def test_a_leaf_is_found_by_the_graph_where_no_name_leads_to_it(
    place: str, gradient: str, rtol: float
) -> None:
    """The graph of one evaluation shows what was used."""

    def make() -> Case:
        w = weight()
        return Case(HIDDEN[place](w), (w,))

    check_like_direct(make, gradient, rtol)


@pytest.mark.parametrize("place", HIDDEN)
@pytest.mark.parametrize("gradient", ["checkpointed", "adjoint"])
def test_a_computed_tensor_that_cannot_be_replaced_is_refused(place: str, gradient: str) -> None:
    """The message gives its shape and two remedies."""
    f = HIDDEN[place](computed(weight()))
    with pytest.raises(Unsupported, match=r"computed tensor of shape \[2\].*`args=`.*'direct'"):
        odeint(f, Y0, TIMES, gradient=gradient)
