"""`ODEBlock` is a layer like any other."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import Tensor, nn

from ctflow import Solver
from ctflow.dynamics import MLP, ConcatLinear, ODEBlock
from tests.checks import check, check_close

gradients = pytest.mark.parametrize("gradient", ["direct", "checkpointed"])


def block() -> ODEBlock:
    """A small time-dependent layer of two features."""
    torch.manual_seed(0)
    return ODEBlock(MLP(2, (8,), layer=ConcatLinear), t=(0.0, 2.0), solver=Solver(rtol=1e-4))


def decay(t: Tensor, y: Tensor) -> Tensor:
    """dy/dt = -y; a module-level function, so that it can be pickled."""
    return -y


def test_the_state_dict_holds_the_field_alone() -> None:
    """Times and solver are settings: a checkpoint loads whatever they are."""
    layer = block()
    assert set(layer.state_dict()) == {f"field.{name}" for name in layer.field.state_dict()}
    other = ODEBlock(MLP(2, (8,), layer=ConcatLinear), t=(0.0, 2.0), solver="torchdiffeq")
    other.load_state_dict(layer.state_dict())
    other.solver = layer.solver
    x = torch.randn(3, 2)
    assert torch.equal(other(x), layer(x))


def test_to_converts_the_parameters_and_not_the_times() -> None:
    """Time stays float64, whatever the parameters become."""
    layer = block().double()
    layer.solver = None
    assert layer(torch.randn(3, 2, dtype=torch.float64)).dtype is torch.float64
    layer = layer.to(torch.bfloat16)
    assert layer(torch.randn(3, 2, dtype=torch.bfloat16)).dtype is torch.bfloat16
    assert layer.t == (0.0, 2.0)
    assert layer.stats.step_times.dtype is torch.float64


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["deepcopy", "pickle"],
)
@gradients
def test_copies_are_equal_and_independent(duplicate: object, gradient: str) -> None:
    """A copy taken between forward and backward computes the same and shares nothing."""
    layer, x = block(), torch.randn(3, 2)
    layer.solver = Solver(gradient=gradient)
    y = layer(x)
    twin = duplicate(layer)
    y.sum().backward()
    assert torch.equal(twin(x), y)
    assert twin.solver == layer.solver
    assert all(p.grad is None for p in twin.parameters())


def test_a_copy_has_no_statistics_until_it_solves() -> None:
    """They belong to the last solve of this very object."""
    layer = block()
    assert layer.stats is None
    layer(torch.zeros(1, 2))
    assert layer.stats is not None
    assert copy.deepcopy(layer).stats is None


def test_functions_are_fields_too() -> None:
    """A layer over a plain function copies, pickles and has no parameters."""
    layer = pickle.loads(pickle.dumps(ODEBlock(decay)))
    assert list(layer.parameters()) == []
    check_close(layer(torch.ones(1, 1)), torch.tensor([[-1.0]]).exp(), rtol=1e-4)


def test_functional_call_uses_the_parameters_it_is_given() -> None:
    """The layer's own are neither used nor changed."""
    layer, x = block(), torch.randn(3, 2)
    own = {name: value.detach().clone() for name, value in layer.named_parameters()}
    zeros = {name: torch.zeros_like(value) for name, value in own.items()}
    check_close(torch.func.functional_call(layer, zeros, (x,)), x, rtol=1e-6)
    assert all(torch.equal(value, own[name]) for name, value in layer.named_parameters())


def test_training_mode_reaches_the_field() -> None:
    """`.eval()` turns off what the field has of dropout."""

    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(1.0)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.drop(torch.ones_like(y))

    layer, x = ODEBlock(Leaky()), torch.zeros(2, 1)
    check_close(layer.train()(x), torch.zeros(2, 1), rtol=0.0, atol=1e-6)
    check_close(layer.eval()(x), torch.ones(2, 1), rtol=1e-5)


@gradients
def test_inference_mode_gives_the_same_result(gradient: str) -> None:
    """With inputs made inside it too."""
    layer = block()
    layer.solver = Solver(gradient=gradient)
    x = torch.randn(3, 2)
    with torch.inference_mode():
        y = layer(x.clone())
    assert y.is_inference()
    assert torch.equal(y, layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@gradients
def test_autocast_solves_in_float32(dtype: torch.dtype, gradient: str) -> None:
    """Half-precision inputs are raised; value and gradients are those without autocast."""
    layer, raised = block(), torch.randn(3, 2).to(dtype).float()
    layer.solver = Solver(gradient=gradient)
    expected = layer(raised)
    wanted = torch.autograd.grad(expected.square().sum(), list(layer.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(raised.to(dtype))
    found = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
    assert y.dtype is torch.float32
    assert torch.equal(y, expected)
    for value, reference in zip(found, wanted, strict=True):
        check_close(value, reference, rtol=1e-5, atol=1e-6)


def test_autocast_around_a_whole_model_works() -> None:
    """The layer before hands over half precision, the layer after takes float32."""
    model = nn.Sequential(nn.Linear(2, 2), block(), nn.Linear(2, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(torch.randn(4, 2)).float().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_representation_shows_times_solver_and_field() -> None:
    """As `repr` of a model does for each layer."""
    text = repr(block())
    assert "t=(0.0, 2.0), solver=Solver(backend='native', rtol=0.0001)" in text
    assert "(field): MLP(" in text
    assert "decay, t=(0.0, 1.0)" in repr(ODEBlock(decay))


@gradients
def test_statistics_keep_no_graph_alive(gradient: str) -> None:
    """Once the output is dropped, the input's memory is free, without a garbage collection."""
    layer = block()
    layer.solver = Solver(gradient=gradient)
    gc.disable()
    try:
        x = torch.randn(3, 2, requires_grad=True)
        hidden = x * 2.0  # kept alive by the graph alone, once the name is gone
        seen = weakref.ref(hidden)
        y = layer(hidden)
        del hidden
        y.sum().backward()
        del y
        check(seen() is None, "the last solve's graph is still alive")
    finally:
        gc.enable()
    assert not any(value.requires_grad for value in vars(layer.stats.forward).values())
    assert not layer.stats.step_times.requires_grad


@gradients
def test_statistics_count_both_passes(gradient: str) -> None:
    """The backward pass of a checkpointed solve evaluates again, that of a direct one does not."""
    layer = block()
    layer.solver = Solver(gradient=gradient)
    layer(torch.randn(3, 2)).sum().backward()
    assert layer.stats.backward is not None
    assert (layer.stats.backward.n_f_evals > 0).all() == (gradient == "checkpointed")
