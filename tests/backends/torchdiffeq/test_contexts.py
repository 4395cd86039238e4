"""Solving inside torch's modes and transformations, and in every dtype."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ctflow import InvalidProblem, Solver, Unsupported, odeint
from tests.checks import check, check_close, check_relative
from tests.problems import decay

GRADIENTS = ("direct", "adjoint")
Y0 = torch.tensor([[0.3, -0.8], [1.0, 0.2], [-0.5, 0.4]])


class _Layer(nn.Module):
    """A network behind a solve, in float32."""

    def __init__(self, gradient: str) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        generator = torch.Generator().manual_seed(0)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator) * 0.5
        self.solver = Solver("torchdiffeq", gradient=gradient, rtol=1e-4, atol=1e-4)

    def forward(self, y0: Tensor) -> Tensor:
        return odeint(lambda t, y: self.net(y), y0, [0.0, 1.0], solver=self.solver)[-1]


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("is_leaf", [True, False])
def test_functional_call_differentiates_the_parameters_it_put_in(
    gradient: str, is_leaf: bool
) -> None:
    """Although they are gone from the module when the backward pass runs."""
    layer, other = _Layer(gradient), _Layer(gradient)
    leaves = {k: (1.1 * p.detach()).requires_grad_() for k, p in layer.named_parameters()}
    given = leaves if is_leaf else {k: 1.0 * p for k, p in leaves.items()}
    loss = torch.func.functional_call(layer, given, (Y0,)).sum()
    found = torch.autograd.grad(loss, list(leaves.values()))
    other.load_state_dict({k: p.detach() for k, p in leaves.items()})
    expected = torch.autograd.grad(other(Y0).sum(), list(other.parameters()))
    check_relative(found, expected, rtol=1e-6)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_autocast_lowers_products_and_keeps_the_state(gradient: str) -> None:
    """In the backward pass as in the forward pass."""
    layer = _Layer(gradient)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(Y0)
    check(y.dtype == torch.float32, f"{y.dtype}")
    found = torch.autograd.grad(y.sum(), list(layer.parameters()))
    expected = torch.autograd.grad(layer(Y0).sum(), list(layer.parameters()))
    check_relative(found, expected, rtol=0.03)  # bfloat16 has three digits
    check(all(not torch.equal(a, b) for a, b in zip(found[:3], expected[:3], strict=True)), "same")


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_without_gradients_the_states_are_the_same(gradient: str) -> None:
    """Under no_grad, and under inference_mode, where they are inference tensors."""
    layer = _Layer(gradient)
    y = layer(Y0)
    with torch.no_grad():
        quiet = layer(Y0)
    with torch.inference_mode():
        inferred = layer(Y0)
    check(y.requires_grad and not quiet.requires_grad, "no_grad is not honoured")
    check(inferred.is_inference(), "not an inference tensor")
    check_close(quiet, y.detach(), rtol=0)
    check_close(inferred.clone(), y.detach(), rtol=0)


# Dynamo looks for `.grad` of what the solve returns, and hides the warning unless it is an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_compiled_model_solves_as_before(gradient: str) -> None:
    """The solve stays out of the graph."""
    layer = _Layer(gradient)
    compiled = torch.compile(layer, backend="eager")
    check_close(compiled(Y0), layer(Y0), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_f_sees_time_in_the_dtype_of_the_state(gradient: str, dtype: torch.dtype) -> None:
    """Times themselves are float64; default tolerances fit the dtype."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        check(t.dtype == dtype and t.dim() == 0, f"{t.dtype} {t.shape}")
        return decay(t, y)

    y0 = torch.ones(2, dtype=dtype, requires_grad=True)
    y = odeint(f, y0, [0.0, 1.0], backend="torchdiffeq", gradient=gradient)
    y[-1].sum().backward()
    check(y.dtype == dtype, f"{y.dtype}")
    tolerance = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.15}[dtype]
    check_close(y[-1].double(), torch.full((2,), 0.367879441).double(), rtol=tolerance)
    check_close(y0.grad.double(), torch.full((2,), 0.367879441).double(), rtol=tolerance)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_parameters_of_a_wider_dtype_get_their_gradient(gradient: str) -> None:
    """The state stays as it is."""
    w = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(1, requires_grad=True)
    y = odeint(
        lambda t, y: -w.float() * y, y0, [0.0, 1.0], backend="torchdiffeq", gradient=gradient
    )
    found = torch.autograd.grad(y[-1].sum(), (w, y0))
    assert [g.dtype for g in found] == [torch.float64, torch.float32]
    check_close(found[0].float(), torch.tensor(-0.5488116), rtol=1e-4)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_wrong_f_is_refused_in_words(gradient: str) -> None:
    """The field's own checks hold inside torchdiffeq."""
    with pytest.raises(InvalidProblem, match="must return the shape of `y`"):
        odeint(
            lambda t, y: y[:1],
            torch.ones(2, requires_grad=True),
            [0.0, 1.0],
            backend="torchdiffeq",
            gradient=gradient,
        )


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacfwd])
@pytest.mark.parametrize("wanted", ["y0", "t1"])
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_transforms_of_functions_are_refused(
    gradient: str, transform: Callable[..., Callable[[Tensor], Tensor]], wanted: str
) -> None:
    """Reverse and forward, instead of an error from inside torchdiffeq or a tangent lost."""

    def loss(x: Tensor) -> Tensor:
        y0 = x if wanted == "y0" else torch.ones(())
        t = torch.stack([torch.zeros(()), x if wanted == "t1" else torch.ones(())])
        return odeint(decay, y0, t, backend="torchdiffeq", gradient=gradient)[-1]

    with pytest.raises(Unsupported, match=r"under torch\.func transforms"):
        transform(loss)(torch.tensor(0.7))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_state_made_under_inference_mode_can_be_solved_later(gradient: str) -> None:
    """With gradients of the parameters."""
    layer = _Layer(gradient)
    with torch.inference_mode():
        y0 = Y0.clone()
    grads = torch.autograd.grad(layer(y0).sum(), list(layer.parameters()))
    expected = torch.autograd.grad(layer(Y0).sum(), list(layer.parameters()))
    check_relative(grads, expected, rtol=1e-6)
