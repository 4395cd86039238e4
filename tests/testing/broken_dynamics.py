"""Vector fields with one fault each, and what they look like without it."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.problems import FLOAT

__all__ = ["BROKEN", "RIGHT", "Broken", "state"]


def state() -> Tensor:
    """Four samples of two variables."""
    return torch.linspace(-1, 1, 8, dtype=FLOAT).reshape(4, 2)


def network(*middle: nn.Module) -> nn.Sequential:
    """A small network with some layers in its middle."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), *middle, nn.Linear(6, 2)).to(FLOAT)


class OnState(nn.Module):
    """A network of the state alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


class Unused(OnState):
    """A layer that was made and forgotten."""

    def __init__(self) -> None:
        super().__init__(network())
        self.forgotten = nn.Linear(2, 2).to(FLOAT)


class Conditioned(nn.Module):
    """A network that sees a context, which an encoder computed from data."""

    def __init__(self, encode_with_gradients: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.encoder = nn.Linear(3, 2).to(FLOAT)
        self.net = network()
        with torch.set_grad_enabled(encode_with_gradients):
            self.context = self.encoder(torch.ones(3, dtype=FLOAT))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y + self.context)


class Hidden:
    """A computed tensor where nobody can find it: in a generator."""

    def __init__(self) -> None:
        weight = torch.ones(2, dtype=FLOAT, requires_grad=True)
        computed = 2.0 * weight

        def forever() -> Any:  # noqa: ANN401
            while True:
                yield computed

        self._values = forever()

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return -y * next(self._values)


class WrongSine(torch.autograd.Function):
    """sin with a derivative of the wrong sign."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.sin(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:  # noqa: ANN401
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401
        (x,) = ctx.saved_tensors
        return -torch.cos(x) * grads[0]


class Buffered:
    """Writes into the tensor that it returned before."""

    def __init__(self) -> None:
        self.out = torch.empty(0, dtype=FLOAT)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return -y
        if self.out.shape != y.shape:
            self.out = torch.empty_like(y)
        return torch.neg(y, out=self.out)


class Kept(nn.Module):
    """Computes its context at the first call, from the state that it meets there."""

    def __init__(self) -> None:
        super().__init__()
        self.context: Tensor | None = None

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if self.context is None:
            self.context = y.detach().mean()
        return self.context - y


class Remembering:
    """Relaxes towards the last state that it was asked for."""

    def __init__(self) -> None:
        self.last = 0.0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        dy = self.last - y
        self.last = float(y.detach().flatten()[0])
        return dy


def needs_grad(t: Tensor, y: Tensor) -> Tensor:
    """The gradient of an energy, without switching gradients on."""
    (slope,) = torch.autograd.grad((y**4).sum(), y, create_graph=True)
    return -slope


def own_grad(t: Tensor, y: Tensor) -> Tensor:
    """The gradient of an energy by requires_grad_, which torch.func does not allow."""
    with torch.enable_grad():
        y = y.requires_grad_()
        (slope,) = torch.autograd.grad((y**4).sum(), y, create_graph=True)
    return -slope


def in_place(t: Tensor, y: Tensor) -> Tensor:
    """Changes its input where that is possible."""
    return y.neg() if y.requires_grad else y.mul_(-1)


def negated_in_place(t: Tensor, y: Tensor) -> Tensor:
    """Changes its input always."""
    return y.mul_(-1)


def one_neighbour(t: Tensor, y: Tensor) -> Tensor:
    """Sample 5 sees sample 4, if there is one."""
    return (
        -y + torch.zeros_like(y).index_fill(0, torch.tensor([5]), 1.0) * y[4] if len(y) > 5 else -y
    )


def sometimes(t: Tensor, y: Tensor) -> Tensor:
    """Leaves a step out once in a thousand calls: stochastic depth, with Python's generator."""
    return 0.0 * y if random.random() < 1e-3 else -y


def replaced(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
    """Puts its result where the state is kept."""
    y["x"] = -y["x"]
    return y


def captured_batch_norm() -> Callable[..., Tensor]:
    """A lambda, which has no buffers of its own."""
    norm = nn.BatchNorm1d(2).to(FLOAT)
    return lambda t, y: norm(y)


def detached(t: Tensor, y: Tensor) -> Tensor:
    """The derivative of its second factor is missing."""
    return -y * torch.cos(y.detach())


@dataclass(frozen=True)
class Broken:
    """A field and the properties that must fail."""

    make: Callable[[], Callable[..., Any]]
    fails: tuple[str, ...]
    states: Callable[[], Any] = state


BROKEN = {
    "too narrow": Broken(lambda: lambda t, y: y[..., :1], ("structure",)),
    "float32 parameters": Broken(lambda: OnState(network().float()), ("structure",)),
    "a leaf without derivative": Broken(
        lambda: lambda t, y: {"x": y["v"]}, ("structure",), lambda: {"x": state(), "v": state()}
    ),
    "in place": Broken(lambda: in_place, ("inputs",)),
    "always in place": Broken(lambda: negated_in_place, ("inputs",)),
    "another leaf put into the state": Broken(
        lambda: replaced, ("inputs",), lambda: {"x": state()}
    ),
    "a kept buffer": Broken(Buffered, ("fresh",)),
    "dropout": Broken(lambda: OnState(network(nn.Dropout(0.5))), ("repeatable",)),
    "remembers": Broken(Remembering, ("repeatable",)),
    "batch norm": Broken(
        lambda: OnState(network(nn.BatchNorm1d(6).to(FLOAT))), ("stateless", "batch")
    ),
    "batch norm in a closure": Broken(captured_batch_norm, ("stateless", "batch")),
    "draws in vain": Broken(lambda: lambda t, y: -y + 0 * torch.rand(()), ("repeatable",)),
    "draws elsewhere": Broken(lambda: sometimes, ("repeatable",)),
    "keeps what it computed first": Broken(Kept, ("stateless",)),
    "couples two of many": Broken(
        lambda: one_neighbour, ("batch",), lambda: torch.ones(12, 2, dtype=FLOAT)
    ),
    "couples samples": Broken(lambda: lambda t, y: y.mean(0) - y, ("batch",)),
    "time as a number": Broken(lambda: lambda t, y: -y * float(t), ("time",)),
    "time broadcast wrongly": Broken(lambda: lambda t, y: -y * t.flatten()[:1], ("time",)),
    "gradients off": Broken(lambda: needs_grad, ("no_grad",)),
    "no transforms": Broken(lambda: own_grad, ("transforms",)),
    "a root of what may be negative": Broken(lambda: lambda t, y: -y.sqrt(), ("finite",)),
    "a root at zero": Broken(
        lambda: lambda t, y: -torch.sqrt(y.abs()),
        ("finite",),
        lambda: torch.zeros(4, 2, dtype=FLOAT),
    ),
    "a pole at zero": Broken(
        lambda: lambda t, y: 1 / y, ("finite",), lambda: torch.zeros(4, 2, dtype=FLOAT)
    ),
    "a wrong backward": Broken(lambda: lambda t, y: WrongSine.apply(y), ("derivative",)),
    "detached in part": Broken(lambda: detached, ("derivative",)),
    "an unused layer": Broken(Unused, ("reached",)),
    "an encoder without gradients": Broken(lambda: Conditioned(False), ("reached",)),
    "a hidden tensor": Broken(Hidden, ("captured",)),
}
"""Name of the fault -> the field, and exactly what must fail."""


def pair(t: Tensor, y: Any) -> Any:  # noqa: ANN401
    """A pendulum as a dict."""
    return {"x": y["v"], "v": -torch.sin(y["x"])}


class Point(NamedTuple):
    """A state of two named leaves."""

    x: Tensor
    v: Tensor


def handed_back(rate: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """A parameter itself is the derivative."""
    return rate


def sparse_product(matrix: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """A linear field whose matrix is sparse."""
    return torch.sparse.mm(matrix, y.T).T - y


def image_field() -> OnState:
    """A block of an ODE-Net: at a state of zeros every ReLU is at its kink."""
    torch.manual_seed(3)
    norms = [nn.GroupNorm(2, 4, dtype=FLOAT) for _ in range(2)]
    convolutions = [nn.Conv2d(4, 4, 3, padding=1, dtype=FLOAT) for _ in range(2)]
    return OnState(
        nn.Sequential(norms[0], nn.ReLU(), convolutions[0], norms[1], nn.ReLU(), convolutions[1])
    )


def zeros(*shape: int, dtype: torch.dtype = FLOAT) -> Callable[[], Tensor]:
    """Makes a state of zeros."""
    return lambda: torch.zeros(shape, dtype=dtype)


RIGHT: dict[str, Broken] = {
    "network": Broken(lambda: OnState(network()), ()),
    "relu": Broken(
        lambda: OnState(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)).to(FLOAT)), ()
    ),
    "group norm": Broken(lambda: OnState(network(nn.GroupNorm(2, 6).to(FLOAT))), ()),
    "batch norm, eval": Broken(lambda: OnState(network(nn.BatchNorm1d(6).to(FLOAT))).eval(), ()),
    "dropout, eval": Broken(lambda: OnState(network(nn.Dropout())).eval(), ()),
    "encoder with gradients": Broken(lambda: Conditioned(True), ()),
    "dict": Broken(lambda: pair, (), lambda: {"x": state(), "v": state()}),
    "a constant that is learned": Broken(
        lambda: functools.partial(handed_back, nn.Parameter(torch.ones(4, dtype=FLOAT))),
        (),
        lambda: torch.zeros(4, dtype=FLOAT),
    ),
    "layers without a size yet": Broken(
        lambda: OnState(nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.LazyLinear(2))),
        (),
        lambda: state().float(),
    ),
    "one system": Broken(
        lambda: lambda t, y: torch.stack([y[1], -y[0]]), (), lambda: torch.ones(2, dtype=FLOAT)
    ),
    "float32": Broken(lambda: OnState(network().float()), (), lambda: state().float()),
    "depends on time": Broken(lambda: lambda t, y: torch.cos(t) * y, ()),
    "constant": Broken(lambda: lambda t, y: torch.ones_like(y), ()),
    "its own input": Broken(lambda: lambda t, y: y, ()),
    "kinks at zero": Broken(lambda: lambda t, y: torch.relu(y) - y.abs(), (), zeros(4, 2)),
    "ties of a maximum": Broken(lambda: lambda t, y: y.amax(-1, keepdim=True) - y, (), zeros(4, 2)),
    "convolutions at zero": Broken(image_field, (), zeros(2, 4, 5, 5)),
    "a state of no dimension": Broken(
        lambda: lambda t, y: torch.cos(t) * y, (), lambda: torch.tensor(1.0, dtype=FLOAT)
    ),
    "named leaves": Broken(
        lambda: lambda t, y: Point(y.v, -y.x), (), lambda: Point(state(), state())
    ),
    "keys in another order": Broken(
        lambda: lambda t, y: {"v": -y["x"], "x": y["v"]}, (), lambda: {"x": state(), "v": state()}
    ),
    "time alone": Broken(lambda: lambda t, y: torch.sin(3 * t).expand_as(y), ()),
    "a jump in time": Broken(lambda: lambda t, y: torch.where(t < 0.5, 1.0, -2.0) * y, ()),
    "zeros": Broken(lambda: lambda t, y: y @ torch.zeros(2, 2, dtype=FLOAT), ()),
    "a sparse matrix": Broken(
        lambda: functools.partial(sparse_product, torch.eye(2, dtype=FLOAT).to_sparse()), ()
    ),
    "bfloat16": Broken(
        lambda: OnState(network().bfloat16()), (), zeros(4, 2, dtype=torch.bfloat16)
    ),
}
