"""What `sdeint` promises beside numbers: seeds, errors, failures, statistics."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctflow import (
    BackendUnavailable,
    InvalidProblem,
    SDEProblem,
    SolveFailed,
    Solver,
    Tolerances,
    Unsupported,
    sdeint,
    solve_sde,
)
from ctflow.backends.protocol import Gradient
from ctflow.sde import Calculus, Noise
from tests.backends.torchsde.equations import STEP, Y0, shake, shrink


@pytest.mark.parametrize("solver", [None, STEP, Solver("torchsde", "milstein", rtol=0.1, atol=0.1)])
def test_the_same_seed_gives_the_same_numbers(solver: Solver | None) -> None:
    """Bit for bit, whatever torch's generator did in between; another seed gives others."""
    first = sdeint(shrink, shake, Y0, [0.0, 0.5, 1.0], seed=1, solver=solver)
    torch.randn(10)
    again = sdeint(shrink, shake, Y0, [0.0, 0.5, 1.0], seed=1, solver=solver)
    other = sdeint(shrink, shake, Y0, [0.0, 0.5, 1.0], seed=2, solver=solver)
    assert torch.equal(first, again)
    assert not torch.allclose(first[1:], other[1:])


def test_without_a_seed_torchs_own_decides_and_the_problem_says_which() -> None:
    """`torch.manual_seed` makes a whole script repeatable."""
    problems = []
    for _ in range(2):
        torch.manual_seed(7)
        problems.append(SDEProblem(shrink, shake, Y0, [0.0, 1.0]))  # pyright: ignore[reportArgumentType]
    assert problems[0].seed == problems[1].seed
    assert problems[0].seed != SDEProblem(shrink, shake, Y0, [0.0, 1.0]).seed  # pyright: ignore[reportArgumentType]
    assert torch.equal(solve_sde(problems[0], STEP).y, solve_sde(problems[1], STEP).y)


def test_samples_have_noise_of_their_own() -> None:
    """Equal rows end apart."""
    y = sdeint(shrink, shake, Y0, [0.0, 1.0], seed=0, solver=STEP)[-1]
    assert len(y.flatten().unique()) == 6


PROBLEMS: list[tuple[dict[str, Any], str]] = [
    ({"y0": torch.ones(3)}, "must be \\[B, D\\]"),
    ({"y0": torch.full((3, 2), torch.nan)}, "must be finite"),
    ({"t": [1.0, 0.0]}, "increasing"),
    ({"t": [0.0, 0.0]}, "strictly monotone"),
    ({"t": torch.tensor([0.0, 1.0], requires_grad=True)}, "want no gradient"),
    ({"g": 3.0}, "`g` must be callable"),
    ({"g": lambda y: y}, "`g` must be callable as"),
    ({"y0": (torch.ones(3, 2), torch.ones(3, 2))}, "real tensor \\[B, D\\], got tuple"),
    ({"y0": torch.ones(3, 2, dtype=torch.complex64)}, "real tensor .*got torch.complex64"),
    ({"f": lambda y: y}, "`f` must be callable as"),
    ({"noise": "white"}, "`noise` must be one of"),
    ({"calculus": "malliavin"}, "`calculus` must be one of"),
    ({"seed": -1}, "`seed` must be a non-negative integer"),
]


@pytest.mark.parametrize(("changes", "words"), PROBLEMS)
def test_problems_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    """When they are built, before any work."""
    asked = {"f": shrink, "g": shake, "y0": Y0, "t": [0.0, 1.0]} | changes
    with pytest.raises(InvalidProblem, match=words):
        SDEProblem(**asked)


VALUES: list[tuple[Any, Any, str, str]] = [
    (shrink, lambda t, y: torch.ones(3, 2, 4), "diagonal", "`g` must return a tensor \\[B, D\\]"),
    (shrink, shake, "general", "`g` must return a tensor \\[B, D, M\\]"),
    (shrink, lambda t, y: torch.ones(3, 2, 2), "scalar", "must be \\[B, D, 1\\]"),
    (shrink, lambda t, y: y.unsqueeze(-1), "additive", "must not depend on `y`"),
    (lambda t, y: y.double(), shake, "diagonal", "of the dtype of `y`"),
    (lambda t, y: y[0], shake, "diagonal", "`f` must return a tensor"),
]


@pytest.mark.parametrize(("f", "g", "noise", "words"), VALUES)
def test_values_that_do_not_fit_are_refused(f: Any, g: Any, noise: Any, words: str) -> None:  # noqa: ANN401
    """At the first evaluation."""
    with pytest.raises(InvalidProblem, match=words):
        sdeint(f, g, Y0, [0.0, 1.0], noise=noise, seed=0, solver=STEP)


SETTINGS: list[tuple[Solver, dict[str, Any], str]] = [
    (Solver("torchsde", "dopri5", step=0.1), {}, "is not one of euler, milstein"),
    (Solver("torchsde", "heun", step=0.1), {}, "is not for ito equations; euler, milstein, srk"),
    (Solver("torchsde", "srk", step=0.1), {"noise": "general"}, "takes no general noise; euler do"),
    (Solver("torchsde", "euler"), {}, "adaptive steps need not converge"),
    (Solver("torchsde", step=0.1, coupling="per_sample"), {}, "one step size"),
    (Solver("torchsde", step=0.1, gradient="checkpointed"), {}, "direct, adjoint"),
    (Solver("torchsde", step=0.1, backward=Tolerances(1e-3, 1e-3)), {}, "`backward`"),
    (
        Solver("torchsde", "reversible_heun", step=0.3, gradient="adjoint"),
        {"calculus": "stratonovich"},
        "multiple of `step`",
    ),
    (
        Solver("torchsde", "reversible_heun", gradient="adjoint"),
        {"calculus": "stratonovich"},
        "only with a fixed `step`",
    ),
]


@pytest.mark.parametrize(("solver", "changes", "words"), SETTINGS)
def test_settings_that_cannot_be_honoured_are_refused(
    solver: Solver, changes: dict[str, Any], words: str
) -> None:
    """With every reason, and what would do."""
    with pytest.raises(Unsupported, match=words):
        sdeint(shrink, shake, Y0, [0.0, 1.0], seed=0, solver=solver, **changes)


def test_backends_of_ordinary_equations_are_refused_by_name() -> None:
    """And so is one that does not exist."""
    for name in ("native", "nobody"):
        with pytest.raises(BackendUnavailable, match="torchsde does"):
            sdeint(shrink, shake, Y0, [0.0, 1.0], solver=name)


FAILURES: list[tuple[Any, Solver, str]] = [
    (lambda t, y: y**3, Solver("torchsde", "milstein", step=0.1), "NON_FINITE"),
    (lambda t, y: y**3, Solver("torchsde", "milstein"), "NON_FINITE|STEP_TOO_SMALL|MAX_STEPS"),
    (lambda t, y: y * torch.nan, STEP, "NON_FINITE"),
    (shrink, Solver("torchsde", step=0.01, max_steps=50), "MAX_STEPS"),
]


@pytest.mark.parametrize(("f", "solver", "status"), FAILURES)
def test_a_failed_solve_says_so(f: Any, solver: Solver, status: str) -> None:  # noqa: ANN401
    """`sdeint` raises; `solve_sde` returns NaN with a status, and the initial state."""
    y0 = 10 * Y0
    with pytest.raises(SolveFailed, match=status):
        sdeint(f, shake, y0, [0.0, 1.0, 2.0], seed=0, solver=solver)
    problem = SDEProblem(f, shake, y0, [0.0, 1.0, 2.0], seed=0)  # pyright: ignore[reportArgumentType]
    solution = solve_sde(problem, solver)
    assert not solution.ok
    assert torch.equal(solution.y[0], y0)
    assert bool(solution.y[1:].isnan().all())


def test_statistics_count_steps_and_evaluations() -> None:
    """Ten fixed steps; adaptive attempts are accepted or rejected, and the trace has their ends."""
    fixed = solve_sde(SDEProblem(shrink, shake, Y0, [0.0, 1.0], seed=0), STEP)  # pyright: ignore[reportArgumentType]
    assert int(fixed.stats.forward.n_steps) in (10, 11)  # the last may be a rounding error long
    assert fixed.stats.solver.method == "srk"
    tight = Solver("torchsde", "milstein", rtol=1e-3, atol=1e-3)
    adaptive = solve_sde(SDEProblem(shrink, shake, Y0, [0.0, 1.0], seed=0), tight).stats  # pyright: ignore[reportArgumentType]
    counts = adaptive.forward
    assert int(counts.n_rejected) > 0
    assert int(counts.n_steps) == int(counts.n_accepted) + int(counts.n_rejected)
    times = adaptive.step_times[0]
    assert len(times) == int(counts.n_accepted) + 1
    assert bool((times.diff() > 0).all())
    assert times[[0, -1]].tolist() == [0.0, 1.0]


def test_no_gradient_is_recorded_where_none_is_wanted() -> None:
    """Under no_grad and under inference mode."""
    theta = nn.Parameter(torch.tensor(0.5))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = sdeint(lambda t, y: -theta * y, shake, Y0, [0.0, 1.0], seed=0, solver=STEP)
        assert not y.requires_grad


DIFFERENTIATING = [
    ("milstein", "diagonal", "ito"),
    ("milstein", "scalar", "stratonovich"),
    ("log_ode", "general", "stratonovich"),
    ("srk", "diagonal", "ito"),
]


@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
@pytest.mark.parametrize(("method", "noise", "calculus"), DIFFERENTIATING)
def test_a_result_has_no_graph_where_nothing_wants_a_gradient(
    method: str, noise: Noise, calculus: Calculus, gradient: Gradient
) -> None:
    """Of schemes that differentiate the diffusion too; the numbers are those of a recorded one."""
    solver = Solver("torchsde", method, step=0.125, gradient=gradient)

    def diffusion(t: Tensor, y: Tensor) -> Tensor:
        return 0.3 * y.sin() if noise == "diagonal" else 0.3 * y.sin().unsqueeze(-1)

    def solved(y0: Tensor) -> Tensor:
        return sdeint(
            shrink, diffusion, y0, [0.0, 1.0], noise=noise, calculus=calculus, seed=0, solver=solver
        )

    y, recorded = solved(Y0), solved(Y0.clone().requires_grad_())
    assert not y.requires_grad
    assert recorded.requires_grad
    assert torch.equal(y, recorded.detach())


def test_torchsde_is_imported_only_when_it_is_named() -> None:
    """Importing ctflow and building a problem do not."""
    code = (
        "import sys, torch, ctflow; "
        "ctflow.SDEProblem(lambda t, y: y, lambda t, y: y, torch.ones(1, 1), [0.0, 1.0]); "
        "sys.exit('torchsde' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
