"""Settings are plain data; what is left open is resolved alike for every backend, or refused."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch

from ctflow import InvalidProblem, ODEProblem, Solution, Solver, Tolerances, Unsupported, solve
from ctflow.backends import Feature, available, get
from ctflow.backends.protocol import Coupling, Gradient, check, resolve
from tests.problems import decay

PROBLEM = ODEProblem(decay, torch.ones(3, 2), [0.0, 1.0])  # type: ignore[arg-type]


class Stub:
    """A backend that can do only some of it."""

    name = "stub"
    features: frozenset[Feature] = frozenset()

    def __init__(
        self,
        gradients: tuple[Gradient, ...] = ("checkpointed", "direct", "adjoint"),
        couplings: tuple[Coupling, ...] = ("shared", "per_sample"),
    ) -> None:
        self.gradients = gradients
        self.couplings = couplings

    def refuse(self, problem: ODEProblem, solver: Solver) -> list[str]:
        reasons = []
        if solver.gradient not in (None, *self.gradients):
            reasons.append(f"no {solver.gradient}")
        if solver.coupling not in (None, *self.couplings):
            reasons.append(f"no {solver.coupling}")
        return reasons

    def solve(self, problem: ODEProblem, solver: Solver) -> Solution:
        raise AssertionError("it was asked to solve what it refuses")


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (("checkpointed", "direct", "adjoint"), "checkpointed"),
        (("direct", "adjoint"), "direct"),
        (("adjoint",), "adjoint"),
    ],
)
def test_the_gradient_is_the_first_that_is_offered(
    offered: tuple[Gradient, ...], chosen: str
) -> None:
    """Checkpointed, else direct, else adjoint."""
    assert resolve(PROBLEM, Solver(), Stub(gradients=offered)).gradient == chosen


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("offers", [True, False])
def test_only_a_batch_is_stepped_sample_by_sample(batched: bool, offers: bool) -> None:
    """And only where the backend can; else the steps are shared."""
    stub = Stub(couplings=("shared", "per_sample") if offers else ("shared",))
    found = resolve(replace(PROBLEM, batched=batched), Solver(), stub).coupling
    assert found == ("per_sample" if batched and offers else "shared")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_open_tolerances_are_above_what_the_dtype_resolves(dtype: torch.dtype) -> None:
    """By a factor of ten at least, where the dtype has so many digits."""
    problem = ODEProblem(decay, torch.ones(2, dtype=dtype), PROBLEM.t)
    full = resolve(problem, Solver(), Stub())
    assert full.rtol is not None
    assert full.rtol >= min(10, 0.05 / torch.finfo(dtype).eps) * torch.finfo(dtype).eps


def test_fixed_steps_have_no_tolerances() -> None:
    """And what was written is never replaced."""
    full = resolve(PROBLEM, Solver(step=0.1, method="rk4", gradient="adjoint"), Stub())
    assert (full.rtol, full.atol, full.method, full.gradient) == (None, None, "rk4", "adjoint")


def test_a_refusal_names_every_reason_and_who_can() -> None:
    """Nothing is degraded in silence."""
    stub = Stub(gradients=("direct",), couplings=("shared",))
    solver = Solver(backend=stub, gradient="adjoint", coupling="per_sample")
    full = resolve(PROBLEM, solver, stub)
    with pytest.raises(
        Unsupported,
        match=r"'stub' cannot do this: no adjoint; no per_sample\. "
        r"Can do it: .*backend='native'",
    ):
        check(PROBLEM, full, stub, [get("native")])
    with pytest.raises(Unsupported, match=r"Can do it: backend='native'"):
        solve(PROBLEM, solver)


def test_where_nobody_can_the_refusal_says_so() -> None:
    """No backend is invented."""
    stub = Stub(gradients=())
    with pytest.raises(Unsupported, match="No installed backend can, as written"):
        check(PROBLEM, Solver(gradient="direct"), stub, [stub])


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "negative rtol": ({"rtol": -1e-3}, "`rtol` must be finite and not negative"),
    "NaN": ({"rtol": float("nan")}, "`rtol` must be finite"),
    "infinite atol": ({"atol": float("inf")}, "`atol` must be finite"),
    "boolean": ({"atol": True}, "`atol` must be finite"),
    "zero step": ({"step": 0.0}, "`step` must be finite and positive"),
    "negative step": ({"step": -0.1}, "`step` must be finite and positive"),
    "text": ({"rtol": "1e-3"}, "Pass a float"),
    "coupling": ({"coupling": "both"}, "one of 'per_sample', 'shared', got 'both'"),
    "gradient": ({"gradient": "backsolve"}, "'checkpointed', 'direct', 'adjoint', got 'backsolve'"),
    "number as method": ({"method": 5}, r"a name or a Tableau, got int. Write method='tsit5'"),
    "pair as tolerances": ({"backward": (1e-3, 1e-3)}, r"backward=Tolerances\("),
    "no step": ({"max_steps": 0}, "`max_steps` must be a positive integer"),
    "half a step": ({"max_steps": 1.5}, "`max_steps` must be a positive integer"),
    "true steps": ({"max_steps": True}, "`max_steps` must be a positive integer"),
}


@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD.keys())
def test_a_value_that_nobody_could_honour_is_refused(given: dict[str, Any], message: str) -> None:
    """When the settings are written, whatever the backend."""
    with pytest.raises(InvalidProblem, match=message):
        Solver(**given)


@pytest.mark.parametrize("given", [{"rtol": -1.0, "atol": 1.0}, {"rtol": 1e-3, "atol": 0.0}])
def test_backward_tolerances_are_checked_too(given: dict[str, float]) -> None:
    """Like those of the forward solve."""
    with pytest.raises(InvalidProblem, match="tol` must be finite"):
        Tolerances(**given)


def test_settings_are_frozen_hashable_and_travel() -> None:
    """Equal values are equal settings, after a copy or a pickle too."""
    solver = Solver(backend="torchdiffeq", rtol=1e-5, backward=Tolerances(1e-4, 1e-6))
    assert solver == copy.deepcopy(solver) == pickle.loads(pickle.dumps(solver))
    assert len({solver, replace(solver)}) == 1
    with pytest.raises(FrozenInstanceError):
        solver.rtol = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("name", available())
def test_a_repr_shows_what_was_set(name: str) -> None:
    """And nothing else; it reads as the call that made it."""
    solver = Solver(backend=name, rtol=1e-5, max_steps=7)
    assert repr(solver) == f"Solver(backend={name!r}, rtol=1e-05, max_steps=7)"
    assert eval(repr(solver)) == solver
