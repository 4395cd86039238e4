"""The functions users call for stochastic equations, with the same `Solver` and the same errors."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor

from ctflow.api import as_solver
from ctflow.backends.protocol import Feature, Solver
from ctflow.errors import BackendUnavailable, InvalidProblem, Unsupported
from ctflow.sde import Calculus, Noise, SDEProblem
from ctflow.solution import Solution, raise_if_failed

__all__ = ["SDEBackend", "sdeint", "solve_sde"]

_BUILT_IN = {"torchsde": "ctflow.backends.torchsde:TorchsdeBackend"}


@runtime_checkable
class SDEBackend(Protocol):
    """Whoever solves stochastic equations; see `ctflow.backends.Backend` for ordinary ones."""

    @property
    def name(self) -> str:
        """Name for messages and tables."""
        ...

    @property
    def features(self) -> frozenset[Feature]:
        """What it can do."""
        ...

    def refuse(self, problem: SDEProblem, solver: Solver) -> list[str]:
        """Reasons why this combination cannot be done; [] if it can."""
        ...

    def solve(self, problem: SDEProblem, solver: Solver) -> Solution:
        """Solve; failures are values."""
        ...


def sdeint(
    f: Any,  # noqa: ANN401 - any callable; SDEProblem checks it
    g: Any,  # noqa: ANN401
    y0: Tensor,
    t: Tensor | Sequence[float],
    *,
    noise: Noise = "diagonal",
    calculus: Calculus = "ito",
    seed: int | None = None,
    args: Any = None,  # noqa: ANN401 - handed to f and g as it is
    solver: Solver | str | None = None,
) -> Tensor:
    """Integrate  dy = f(t, y) dt + g(t, y) dW  from y0 at t[0]; return the state at every t.

    Args:
        f: Drift `f(t, y)`, or `f(t, y, args)`: [B, D] -> [B, D].
        g: Diffusion: [B, D] for diagonal noise, else [B, D, M].
        y0: Initial state, [B, D].
        t: Output times, [T], increasing.
        noise: "diagonal", "scalar", "additive" or "general".
        calculus: "ito" or "stratonovich".
        seed: Of the Brownian motion; None draws one from torch's global generator.
        args: Third argument of `f` and `g`; gradients reach its tensors.
        solver: A `Solver` with `backend="torchsde"`, or None for adaptive steps. `method`, `step`,
            `rtol`, `atol`, `gradient` ("direct" or "adjoint") and `max_steps` mean what they do
            for an ODE.

    Returns:
        [T, B, D]; entry 0 is `y0`. Differentiable with respect to `y0`, `args` and whatever `f`
        and `g` reach.

    Raises:
        InvalidProblem: If the input makes no sense.
        Unsupported: If the scheme cannot do what is asked.
        BackendUnavailable: If there is no such backend here.
        SolveFailed: If the solve did not reach the last time.

    Example:
        >>> import torch
        >>> y = sdeint(lambda t, y: -y, lambda t, y: 0.1 * y, torch.ones(5, 1), [0.0, 1.0], seed=0)
        >>> y.shape
        torch.Size([2, 5, 1])
    """
    problem = SDEProblem(f, g, y0, t, None, args, noise, calculus, seed)  # pyright: ignore[reportArgumentType] - normalises t
    return raise_if_failed(solve_sde(problem, solver)).y


def solve_sde(problem: SDEProblem, solver: Solver | str | None = None) -> Solution:
    """Solve a stochastic problem and return all that was found out; failures are values.

    Args:
        problem: What is asked.
        solver: How: a `Solver` with an SDE backend, its name, or None for the defaults.

    Raises:
        InvalidProblem: If the input makes no sense.
        Unsupported: If the backend cannot do what is asked.
        BackendUnavailable: If there is no such backend here.

    Example:
        >>> import torch
        >>> problem = SDEProblem(lambda t, y: -y, lambda t, y: 0.1 * y, torch.ones(5, 1), [0, 1.0])
        >>> solve_sde(problem, Solver("torchsde", step=0.1)).stats.forward.n_steps
        tensor([10])
    """
    if not isinstance(problem, SDEProblem):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidProblem(
            f"`problem` must be an SDEProblem, got {type(problem).__name__}. "
            "Build one, or call sdeint(f, g, y0, t)."
        )
    settings = Solver(backend="torchsde") if solver is None else as_solver(solver)
    backend = _backend(settings.backend)
    reasons = backend.refuse(problem, settings)
    if reasons:
        raise Unsupported(f"backend {backend.name!r} cannot do this: {'; '.join(reasons)}.")
    return backend.solve(problem, settings)


def _backend(wanted: object) -> SDEBackend:
    if not isinstance(wanted, str):
        if isinstance(wanted, SDEBackend):
            return wanted
        raise InvalidProblem(
            f"`backend` must be a name or solve SDEs, got {type(wanted).__name__}. Use 'torchsde'."
        )
    if wanted not in _BUILT_IN:
        raise BackendUnavailable(
            f"backend {wanted!r} does not solve stochastic equations; {', '.join(_BUILT_IN)} does. "
            f"Write Solver(backend='torchsde', ...)."
        )
    module, _, name = _BUILT_IN[wanted].partition(":")
    return cast("SDEBackend", getattr(import_module(module), name)())
