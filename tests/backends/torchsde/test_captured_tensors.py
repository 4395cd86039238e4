"""Tensors that drift and diffusion reach get their gradients, or are refused by name."""

from __future__ import annotations

import math
from collections import deque
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctflow import Solver, Unsupported, sdeint
from tests.backends.torchsde.equations import STEP, Y0, shake, shrink


def still(t: Tensor, y: Tensor) -> Tensor:
    """No noise."""
    return 0.0 * y


@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
def test_tensors_that_drift_and_diffusion_capture_get_their_gradients(gradient: str) -> None:
    """A parameter, a computed tensor in a closure, one in args: as by hand, without noise."""
    parameter = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    base = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    computed, given = base.exp(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def drift(t: Tensor, y: Tensor, args: Tensor) -> Tensor:
        return (parameter * computed + args) * y

    def still(t: Tensor, y: Tensor, args: Tensor) -> Tensor:
        return 0.0 * computed * y

    y0 = torch.ones(2, 1, dtype=torch.float64)
    solver = Solver("torchsde", "milstein", step=5e-3, gradient=gradient)  # pyright: ignore[reportArgumentType]
    y = sdeint(drift, still, y0, [0.0, 1.0], args=given, seed=0, solver=solver)[-1].sum()
    found = torch.stack(torch.autograd.grad(y, (parameter, base, given)))
    e = computed.detach()
    total = 2 * torch.exp(parameter.detach() * e + given.detach())
    wanted = total * torch.stack([e, parameter.detach() * e, torch.ones_like(e)])
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=0.0)  # of order 1 in the step


class Hidden:
    """Keeps a tensor where no search finds it."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def test_a_captured_tensor_that_cannot_be_found_is_refused() -> None:
    """Its gradient would be lost; through the steps themselves it is not."""
    base = torch.tensor(0.5, requires_grad=True)
    hidden = Hidden(base * 2)

    def drift(t: Tensor, y: Tensor) -> Tensor:
        return -hidden.tensor * y

    lost = Solver("torchsde", "milstein", step=0.1, gradient="adjoint")
    with pytest.raises(Unsupported, match="its gradient would be lost"):
        sdeint(drift, shake, Y0, [0.0, 1.0], seed=0, solver=lost)
    sdeint(drift, shake, Y0, [0.0, 1.0], seed=0, solver=STEP)[-1].sum().backward()
    assert base.grad is not None


def test_a_second_derivative_of_the_adjoint_is_refused() -> None:
    """It would be wrong in silence."""
    y0 = torch.ones(2, 1, requires_grad=True)
    solver = Solver("torchsde", "milstein", step=0.1, gradient="adjoint")
    y = sdeint(shrink, lambda t, y: 0.3 * y.sin(), y0, [0.0, 1.0], seed=0, solver=solver)
    (g,) = torch.autograd.grad(y.sum(), y0, create_graph=True)
    with pytest.raises(Unsupported, match="second time"):
        g.sum().backward()


class Keeper:
    """Drift and diffusion as methods, with their tensors in attributes, lists and dicts."""

    def __init__(self, one: Tensor, other: Tensor) -> None:
        self.one, self.several, self.named = one, [one, other], {"all": [one, other]}

    def drift(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.one * y * self.several[0]

    def diffusion(self, t: Tensor, y: Tensor) -> Tensor:
        return self.named["all"][1] * y.sin()


@pytest.mark.parametrize("kind", ["methods", "partial methods"])
def test_tensors_of_methods_lists_and_dicts_get_their_gradients(kind: str) -> None:
    """Computed ones too: by the exact adjoint those of the steps themselves."""
    base = torch.tensor([0.7, 0.4], dtype=torch.float64, requires_grad=True)
    found: list[Tensor] = []
    for gradient in ("direct", "adjoint"):
        keeper = Keeper(*(2 * base).unbind())
        f, g = (partial(c) if kind != "methods" else c for c in (keeper.drift, keeper.diffusion))
        solver = Solver("torchsde", "reversible_heun", step=0.125, gradient=gradient)  # pyright: ignore[reportArgumentType]
        y = sdeint(f, g, Y0.double(), [0.0, 1.0], calculus="stratonovich", seed=0, solver=solver)
        found += torch.autograd.grad(y.square().sum(), base)
    assert bool((found[0] != 0).all())
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


def _scaled(factor: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return -factor * y


def _made(kind: str, factor: Tensor) -> Any:  # noqa: ANN401
    """A drift that keeps a computed tensor where none can be put in its place, or uses it late."""
    pair, queue = (factor, factor), deque([factor])
    drifts: dict[str, Any] = {
        "partial": partial(_scaled, factor),
        "tuple": lambda t, y: -pair[0] * y,
        "default": lambda t, y, k=factor: -k * y,
        "deque": lambda t, y: -queue[0] * y,
        "late": lambda t, y: -y if t < 0.5 else -factor * y,
    }
    return drifts[kind]


@pytest.mark.parametrize("kind", ["partial", "tuple", "default", "deque", "late"])
def test_a_tensor_that_cannot_be_cut_off_is_refused_by_the_adjoint_alone(kind: str) -> None:
    """Through the steps it gets the gradient that it has by hand."""
    base, ends = torch.tensor(0.5, dtype=torch.float64, requires_grad=True), [0.0, 1.0]
    lost = Solver("torchsde", "milstein", step=0.1, gradient="adjoint")
    with pytest.raises(Unsupported, match=r"gradient would be|had not used at the start"):
        sdeint(_made(kind, 2 * base), still, Y0.double(), ends, seed=0, solver=lost)
    solver = Solver("torchsde", "milstein", step=1 / 512)
    y = sdeint(_made(kind, 2 * base), still, Y0.double(), ends, seed=0, solver=solver)
    (g,) = torch.autograd.grad(y[-1].sum(), base)
    length = 0.5 if kind == "late" else 1.0  # of the time in which it acts
    assert g.item() == pytest.approx(-2 * length * 6 * math.exp(-1.0), rel=5e-3)
