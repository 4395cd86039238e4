"""What a solve and its gradient held is free when they are gone, without Python's collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from ctflow import ODEProblem, Solver, solve
from tests.backends.compiled.conftest import operator_by_operator

pytestmark = pytest.mark.once

ROUTES = [
    *(("native", gradient) for gradient in ("direct", "checkpointed", "adjoint")),
    pytest.param("compiled", "direct", marks=pytest.mark.slow),
    pytest.param("compiled", "checkpointed", marks=pytest.mark.slow),
    pytest.param("compiled", "adjoint", marks=pytest.mark.slow),
    ("torchdiffeq", "direct"),
    ("torchdiffeq", "adjoint"),
]  # SciPy's own solvers refer to themselves, and so to f


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    with operator_by_operator():
        yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


def _train(backend: str, gradient: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    y0 = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    problem = ODEProblem(lambda t, y: net(y), y0, [0.0, 0.4, 1.0])
    solution = solve(problem, Solver(backend=backend, gradient=gradient))  # pyright: ignore
    (solution.y**2).mean().backward()


@pytest.mark.parametrize(("backend", "gradient"), ROUTES)
def test_no_tensor_waits_for_the_collector(backend: str, gradient: str) -> None:
    """A training step's records are tens of megabytes, and the collector counts objects."""
    _train(backend, gradient)  # the first one fills caches
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    _train(backend, gradient)
    gc.collect()
    waiting = [x for x in gc.garbage if isinstance(x, Tensor)]
    assert not waiting, f"{len(waiting)} tensors in reference cycles"
