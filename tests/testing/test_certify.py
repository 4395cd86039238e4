"""`certify` sees tolerances that are not good enough, and finds ones that are."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from ctflow import InvalidProblem, ODEProblem, Solver, Tolerances
from ctflow.testing import Certificate, certify
from tests.problems import FLOAT, decay
from tests.testing.hard_problems import bump, lorenz, oscillating, zero_initialised

pytestmark = pytest.mark.once

SEMINORM = Tolerances(1e-8, 1e-8, "seminorm")
BAD = {
    "oscillating": (oscillating, Solver(rtol=1e-3, atol=1e-6)),
    "oscillating, torchdiffeq": (
        oscillating,
        Solver(backend="torchdiffeq", rtol=1e-3, atol=1e-6),
    ),
    "Lorenz": (lambda: lorenz(1.0), Solver(rtol=1e-2, atol=1e-6)),
    "Lorenz, adjoint": (
        lambda: lorenz(1.5),
        Solver(rtol=1e-5, atol=1e-5, gradient="adjoint"),
    ),
    "zero-initialised": (zero_initialised, Solver(rtol=1e-8, atol=1e-8)),
    "zero-initialised, seminorm": (
        zero_initialised,
        Solver(rtol=1e-8, atol=1e-8, gradient="adjoint", backward=SEMINORM),
    ),
    "bump": (bump, Solver(rtol=1e-6, atol=1e-6)),
    "a narrow bump off the centre": (
        lambda: bump(0.002, 0.77, 200.0),
        Solver(rtol=1e-6, atol=1e-6),
    ),
}


@functools.cache
def certified(name: str) -> Certificate:
    """The certificate of one of them."""
    make, solver = BAD[name]
    return certify(make(), solver)


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_adequate_is_seen_and_what_is_recommended_is_adequate(name: str) -> None:
    """The verdict, and the reference's own word for the recommended settings."""
    found = certified(name)
    assert found.verdict == "not adequate", str(found)
    assert found.recommended is not None
    assert found.recommended_cost is not None
    assert found.recommended_cost.within(5e-3), str(found)


def test_the_error_of_torchdiffeq_is_the_measured_one() -> None:
    """58 % of the value, and 72 times the gradient."""
    found = certified("oscillating, torchdiffeq")
    assert found.asked.value_error == pytest.approx(0.57, abs=0.02)
    assert found.asked.gradient_error > 50


def test_the_recommended_tolerance_is_adequate_by_its_own_certificate() -> None:
    """For the oscillating rate: asked again, it says so."""
    first = certified("oscillating")
    assert certify(oscillating(), first.recommended).adequate


def test_the_adjoint_of_a_chaotic_system_is_replaced_by_an_exact_gradient() -> None:
    """At the same tolerance: it is the gradient that is wrong."""
    found = certified("Lorenz, adjoint")
    assert found.recommended is not None
    assert found.recommended.gradient == "checkpointed"


def test_a_bump_needs_a_fixed_step() -> None:
    """No tolerance sees what no step meets; what it sees is the bump's own height."""
    for name, share in (("bump", 0.470), ("a narrow bump off the centre", 0.415)):
        found = certified(name)  # outputs are 1 + height width sqrt(pi), or 1 where it is missed
        assert found.asked.value_error == pytest.approx(share, abs=0.002)
        assert found.recommended is not None
        assert found.recommended.step is not None


@pytest.mark.parametrize(
    ("make", "solver"),
    [
        (lambda: ODEProblem(decay, torch.ones(3, dtype=FLOAT), [0.0, 1.0, 2.0]), None),
        (lambda: ODEProblem(decay, torch.ones(3), [0.0, 1.0]), Solver(rtol=1e-4, atol=1e-5)),
        (lambda: ODEProblem(decay, torch.ones(3), [0.0, 1.0]), Solver(rtol=3e-7, atol=1e-6)),
        (
            lambda: ODEProblem(decay, torch.ones(3, 2, dtype=FLOAT), [0.0, 1.0], batched=True),
            Solver(gradient="adjoint"),
        ),
        (
            zero_initialised,
            Solver(rtol=1e-8, atol=1e-8, gradient="adjoint", backward=Tolerances(1e-8, 1e-8)),
        ),
        (oscillating, Solver(rtol=1e-7, atol=1e-9)),
    ],
    ids=[
        "decay",
        "float32",
        "float32 as tight as it gets",
        "batched",
        "zero-initialised, full norm",
        "oscillating, tight",
    ],
)
def test_what_is_adequate_is_called_so(make: object, solver: Solver | None) -> None:
    """With the settings themselves as the recommendation."""
    found = certify(make(), solver)  # pyright: ignore
    assert found.adequate, str(found)
    assert found.recommended_cost == found.asked


def test_one_bad_sample_is_not_hidden_by_the_others() -> None:
    """Errors are looked at sample by sample: one of 200 has a short kick."""
    rates = torch.zeros(200, 1, dtype=FLOAT)
    rates[7] = 50.0

    def f(t: Tensor, y: Tensor) -> Tensor:
        return rates * torch.exp(-(((t - 0.5) / 0.01) ** 2)) + 0 * y

    problem = ODEProblem(f, torch.ones(200, 1, dtype=FLOAT), [0.0, 1.0], batched=True)
    found = certify(problem, Solver(rtol=1e-6, atol=1e-6, coupling="shared"))
    assert found.asked.value_error > 0.3


def test_the_certificate_prints_and_becomes_plain_data() -> None:
    """Verdict first; the recommendation as it would be written."""
    found = certified("oscillating")
    assert str(found).startswith("not adequate: the gradient is off by")
    assert "use Solver(backend='native', rtol=1e-05" in str(found)
    assert found.as_dict()["verdict"] == "not adequate"


def test_an_accuracy_must_be_positive() -> None:
    """What to pass instead is said."""
    with pytest.raises(InvalidProblem, match="accuracy"):
        certify(oscillating(), accuracy=0.0)


def test_a_gradient_that_is_no_number_cannot_be_measured_against() -> None:
    """The outputs are right, and the parameter's gradient is NaN."""
    scale = torch.zeros((), dtype=FLOAT, requires_grad=True)
    problem = ODEProblem(
        lambda t, y: -y + 0 * torch.sqrt(scale), torch.ones(2, dtype=FLOAT), [0.0, 1.0]
    )
    with pytest.raises(InvalidProblem, match="params that is not finite"):
        certify(problem)
