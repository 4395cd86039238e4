"""What conformance is tested on: a backend, the routes through it, and problems with solutions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ctflow.api import solve
from ctflow.backends.protocol import Backend, Coupling, Feature, Gradient, Solver, check, resolve
from ctflow.backends.tableau import Tableau
from ctflow.errors import CtflowError
from ctflow.problem import ODEProblem
from ctflow.solution import Solution, raise_if_failed

__all__ = ["FLOAT", "RTOL", "Bench", "Known", "Turning", "gap"]

FLOAT = torch.float64
RTOL = 1e-8
"""Tolerance of the solves; what is allowed is a multiple of it."""

_GRADIENTS: dict[Gradient, Feature] = {
    "direct": Feature.DIRECT,
    "checkpointed": Feature.CHECKPOINTED,
    "adjoint": Feature.ADJOINT,
}


@dataclass(frozen=True)
class Bench:
    """A backend and how it is spoken to.

    Args:
        backend: Who is tested.
        method: Its method; None: the default.
        examples: Random problems that are tried at the end.
        seed: Of these.
        kinds: Of how many kinds these are; None: each of its own.
    """

    backend: Backend
    method: str | Tableau | None
    examples: int
    seed: int
    kinds: int | None = None

    @property
    def plain(self) -> Solver:
        """The settings of every solve here, before anything is varied."""
        return Solver(backend=self.backend, method=self.method, rtol=RTOL, atol=RTOL)

    def has(self, feature: Feature) -> bool:
        """Whether the backend declares a feature."""
        return feature in self.backend.features

    @property
    def gradients(self) -> tuple[Gradient, ...]:
        """The gradient methods it declares."""
        return tuple(name for name, feature in _GRADIENTS.items() if self.has(feature))

    @property
    def couplings(self) -> tuple[Coupling, ...]:
        """The couplings it declares."""
        return ("shared", "per_sample") if self.has(Feature.PER_SAMPLE) else ("shared",)

    def forward_routes(self) -> Iterator[Solver]:
        """One for each coupling."""
        for coupling in self.couplings:
            yield replace(self.plain, coupling=coupling)

    def gradient_routes(self) -> Iterator[Solver]:
        """One for each coupling and gradient method."""
        for solver in self.forward_routes():
            for gradient in self.gradients:
                yield replace(solver, gradient=gradient)

    def accepts(self, problem: ODEProblem, solver: Solver) -> bool:
        """Whether the backend takes the combination."""
        try:
            check(problem, resolve(problem, solver, self.backend), self.backend)
        except CtflowError:
            return False
        return True

    def run(self, problem: ODEProblem, solver: Solver) -> Solution:
        """Solve, and raise if a sample did not arrive."""
        return raise_if_failed(solve(problem, solver))


class _Rate(nn.Module):
    """dy/dt = a k c cos(t) y with a parameter a, an argument k and a captured c."""

    def __init__(self, a: Tensor, c: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(a, requires_grad=a.requires_grad)
        self.c = c

    def forward(self, t: Tensor, y: Tensor, args: dict[str, Tensor]) -> Tensor:
        """Evaluate it."""
        return self.a * args["k"] * self.c * torch.cos(t) * y


class Turning(nn.Module):
    """dy/dt = cos(k t) y, which comes back to where it was; k is a tensor, not a number.

    A backend that compiles then has one program for every k.

    Args:
        k: Turns of the rate in 2 pi.
        end: Where it stops being defined; NaN beyond, on both sides of [0, end].

    Attributes:
        n_calls: How often its Python has run.
    """

    def __init__(self, k: float, end: float = float("inf")) -> None:
        super().__init__()
        self.k = torch.tensor(k, dtype=FLOAT)
        self.end = torch.tensor(end, dtype=FLOAT)
        self.n_calls = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate it."""
        self.n_calls += 1
        outside = ((t < 0.0) | (t > self.end)) & torch.isfinite(self.end)
        return torch.where(outside, torch.nan, torch.cos(self.k * t)) * y


class Known:
    """A problem whose solution and all its derivatives are known in closed form.

        y(t) = y0 exp(a k c (sin t - sin t0))

    Args:
        times: Output times; or for each of the three samples a tuple of its own.

    Attributes:
        inputs: y0 [3, 2]; the parameter a; the argument k, in a dict; w, from which the captured
            tensor c = w^2 is computed; the times t.
        problem: The problem with all of them.
    """

    def __init__(self, *times: float | tuple[float, ...]) -> None:
        """Fresh leaves each time, so that nobody's gradient is left in them."""
        made = {
            "y0": torch.tensor([[1.0, -0.5], [0.3, 2.0], [-1.5, 0.7]], dtype=FLOAT),
            "a": torch.tensor(0.8, dtype=FLOAT),
            "k": torch.tensor([1.0, -0.6], dtype=FLOAT),
            "w": torch.tensor(1.1, dtype=FLOAT),
            "t": torch.tensor(times, dtype=FLOAT),
        }
        self.inputs = {name: x.requires_grad_() for name, x in made.items()}
        field = _Rate(made["a"], made["w"] ** 2)
        self.inputs["a"] = field.a
        self.problem = ODEProblem(field, made["y0"], made["t"], args={"k": made["k"]}, batched=True)

    def exact(self) -> Tensor:
        """The outputs [T, 3, 2] as a function of all inputs."""
        y0, a, k, w, t = (self.inputs[name] for name in ("y0", "a", "k", "w", "t"))
        grown = torch.sin(t) - torch.sin(t[..., :1])
        by_time = grown.reshape(-1, 1, 1) if t.dim() == 1 else grown.T.unsqueeze(-1)
        return y0 * torch.exp(a * w**2 * by_time * k)

    def plain(self) -> ODEProblem:
        """The same with nothing that wants a gradient."""
        inputs = {name: x.detach() for name, x in self.inputs.items()}
        f = _Rate(inputs["a"], inputs["w"] ** 2)
        args = {"k": inputs["k"]}
        return replace(self.problem, f=f, y0=inputs["y0"], t=inputs["t"], args=args)


def gap(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference relative to that of what is wanted, or to 1 where that is small."""
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found - wanted).detach().norm()) / max(float(wanted.detach().norm()), 1.0)
