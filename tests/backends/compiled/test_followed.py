"""Graphs that are not the function they were made of are refused, before anything is solved."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from ctflow import ODEProblem, Solver, solve
from ctflow.backends.compiled import trace
from ctflow.backends.compiled.backend import CompiledBackend
from ctflow.errors import Unsupported
from tests.backends.compiled.conftest import operator_by_operator

_ATEN = torch.ops.aten


class Net(nn.Module):
    """A network with a kink that starts on its edge."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 3, bias=False, dtype=torch.float64)
        self.outer = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """[B, 2]."""
        return self.outer(torch.tanh(self.inner(y)) + torch.relu(self.inner(y))) - t * y


def _solve(f: object, y0: Tensor, gradient: bool) -> Tensor:
    start = y0.clone().requires_grad_(gradient)
    with operator_by_operator():
        y = solve(ODEProblem(f, start, [0.0, 1.0]), Solver(backend=CompiledBackend())).y  # pyright: ignore
        if gradient:
            y.square().sum().backward()
    return y.detach()


def _like_another(y: Tensor) -> Tensor:
    return -y if type(y) is Tensor else -2.0 * y


def _quadratic(t: Tensor, y: Tensor, args: tuple[Tensor, Tensor]) -> Tensor:
    return args[0] * y - args[1] * y**2


@pytest.mark.parametrize("gradient", [False, True])
def test_an_f_that_knows_that_it_is_followed(gradient: bool) -> None:
    """It gives other values then."""
    with pytest.raises(Unsupported, match="other values than `f` does"):
        _solve(lambda t, y: _like_another(y), torch.ones(3, 2), gradient)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [(_ATEN.tanh.default, _ATEN.sin.default), (_ATEN.tanh_backward.default, _ATEN.mul.Tensor)],
)
def test_a_graph_that_was_changed_wrongly(
    monkeypatch: pytest.MonkeyPatch, was: object, becomes: object
) -> None:
    """In its value, or in its derivative alone."""

    def wrong(graph: fx.Graph, *_: object) -> None:
        for node in graph.nodes:
            if node.target is was:
                node.target = becomes

    monkeypatch.setattr(trace, "by_columns", wrong)
    torch.manual_seed(0)
    with pytest.raises(Unsupported, match="other values than `f` does"):
        _solve(Net(), torch.randn(3, 2, dtype=torch.float64), gradient=True)


def test_tensors_of_which_one_was_computed_from_another() -> None:
    """Each has its own share, and the graph between them is left to the user's backward pass."""
    found: list[Tensor] = []
    for backend in ("native", CompiledBackend()):
        a = torch.tensor([0.5, -0.3], dtype=torch.float64, requires_grad=True)
        b = a.exp() * 2
        y0 = torch.ones(3, 2, dtype=torch.float64)
        problem = ODEProblem(_quadratic, y0, [0.0, 1.0], args=(a, b))
        with operator_by_operator():
            y = solve(problem, Solver(backend=backend, rtol=1e-8, atol=1e-8)).y  # pyright: ignore
            y.square().sum().backward()
        assert a.grad is not None
        found.append(a.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


def test_a_start_on_the_edge_of_a_kink_is_solved() -> None:
    """Zeros: on either side of it, by the order of a sum."""
    f = Net()
    y = _solve(f, torch.zeros(3, 2, dtype=torch.float64), gradient=True)
    y0 = torch.zeros(3, 2, dtype=torch.float64)
    torch.testing.assert_close(y, solve(ODEProblem(f, y0, [0.0, 1.0])).y.detach())
