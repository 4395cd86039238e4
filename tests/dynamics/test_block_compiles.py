"""`torch.compile` around a model with an `ODEBlock` changes neither result nor gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from ctflow import Solver
from ctflow.dynamics import MLP, ODEBlock
from tests.checks import check_close

# torch 2.13 asks every tensor at a graph break for its `.grad`, and warns about its own question.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")


class Model(nn.Module):
    """Something to compile before the layer, and after it."""

    def __init__(self, solver: Solver) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)
        self.block = ODEBlock(MLP(2, (8,)), solver=solver)
        self.last = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, 3] to [B, 1]."""
        return torch.tanh(self.last(self.block(torch.tanh(self.first(x)))))


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def counting_backend(graphs: list[torch.fx.GraphModule]) -> Callable[..., object]:
    """A compiler backend that keeps its graphs and runs them as they are."""

    def compile_graph(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    return compile_graph


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
@pytest.mark.parametrize("coupling", ["shared", "per_sample"])
def test_a_compiled_model_computes_the_same(gradient: str, coupling: str) -> None:
    """The same values and gradients, and statistics of the solve."""
    torch.manual_seed(0)
    model = Model(Solver(gradient=gradient, coupling=coupling)).double()
    compiled = torch.compile(model, backend=counting_backend([]))
    x = torch.randn(4, 3, dtype=torch.float64)
    check_close(compiled(x), model(x), rtol=1e-12)
    wanted = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    found = torch.autograd.grad(compiled(x).sum(), list(model.parameters()))
    for value, expected in zip(found, wanted, strict=True):
        check_close(value, expected, rtol=1e-10, atol=1e-12)
    assert model.block.stats.solver.gradient == gradient


def test_what_stands_around_the_layer_is_compiled_once() -> None:
    """Two graphs, before and after; the solve itself is not traced, and nothing recompiles."""
    graphs: list[torch.fx.GraphModule] = []
    compiled = torch.compile(Model(Solver()), backend=counting_backend(graphs))
    for _ in range(4):
        compiled(torch.randn(4, 3)).sum().backward()
    assert len(graphs) == 2


def test_a_compiled_field_is_a_field() -> None:
    """Only the dynamics compiled, once with and once without gradients."""
    graphs: list[torch.fx.GraphModule] = []
    field = MLP(2, (8,)).double()
    x = torch.randn(4, 2, dtype=torch.float64)
    compiled = ODEBlock(torch.compile(field, backend=counting_backend(graphs), fullgraph=True))
    for _ in range(3):
        check_close(compiled(x), ODEBlock(field)(x), rtol=1e-12)
    assert len(graphs) <= 2


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_default_compiler_changes_nothing() -> None:
    """With real generated code around the layer, gradients included."""
    torch.manual_seed(0)
    model = Model(Solver(rtol=1e-8, atol=1e-10)).double()
    compiled = torch.compile(model)
    x = torch.randn(4, 3, dtype=torch.float64)
    check_close(compiled(x), model(x), rtol=1e-9)
    wanted = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    found = torch.autograd.grad(compiled(x).sum(), list(model.parameters()))
    for value, expected in zip(found, wanted, strict=True):
        check_close(value, expected, rtol=1e-7, atol=1e-9)
