"""Single solves of a trained ODE-Net: what each cost, and how wrong it was."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from _harness.comparison import evaluations
from _harness.images import Samples
from ctflow import Solver, Tolerances
from ctflow.backends import get
from ctflow.errors import GradientWarning

__all__ = ["Measured", "Way", "measured", "spearman", "ways"]


@dataclass(frozen=True)
class Way:
    """One way to solve and to differentiate.

    Args:
        solver: Name of the solver.
        norm: What keeps to the tolerance in the backward solve.
        settings: Backend, method and gradient; tolerances are filled in.
        batch: Samples in one solve.
    """

    solver: str
    norm: str
    settings: Solver
    batch: int


@dataclass(frozen=True)
class Measured:
    """One solve forward, and one backward by the adjoint.

    Args:
        solver: Name of the solver.
        norm: Of the backward solve.
        batch: Samples.
        tolerance: rtol and atol.
        forward: Evaluations of the field, mean over the samples.
        backward: Likewise in the backward solve.
        error: Root mean square over all variables of |z - reference| / (1 + |reference|), which is
            in the units of the tolerance.
        seconds: CPU time of the forward solve, the least of several.
    """

    solver: str
    norm: str
    batch: int
    tolerance: float
    forward: float
    backward: float
    error: float
    seconds: float


def ways(batches: Sequence[int], backend: str) -> list[Way]:
    """dopri5 and tsit5 of a backend, and SciPy's two solvers of the paper, with their norms.

    Args:
        batches: Samples in one solve; LSODA, whose Jacobian is dense, takes the smallest alone.
        backend: Whose Runge-Kutta methods.
    """
    whole = replace(get("scipy"), norm="whole")  # pyright: ignore - a frozen dataclass
    found: list[Way] = []
    for batch in batches:
        for method in ("dopri5", "tsit5") if backend == "native" else ("dopri5",):
            base = Solver(backend, method=method, gradient="adjoint", coupling="shared")
            found.append(Way(method, "full", base, batch))
            if backend == "native":
                semi = replace(base, backward=Tolerances(1e-3, 1e-3, norm="seminorm"))
                found.append(Way(method, "seminorm", semi, batch))
        for norm, scipy in (("full", get("scipy")), ("whole", whole)):
            adams = Solver(scipy, method="adams", gradient="adjoint", coupling="shared")
            found.append(Way("Adams (VODE)", norm, adams, batch))
    lsoda = Solver("scipy", method="lsoda", gradient="adjoint", coupling="shared")
    return [*found, Way("LSODA", "full", lsoda, min(batches))]


def measured(
    model: nn.Module, samples: Samples, way: Way, tolerance: float, n_batches: int, repeats: int
) -> Iterator[Measured]:
    """Solves of one way at one tolerance, in float64, of the first batches of images.

    Args:
        model: A trained classifier with an `ODEBlock` as its body; left as it is.
        samples: Images to solve for.
        way: How.
        tolerance: rtol and atol, forward and backward.
        n_batches: So many solves.
        repeats: Of the timing.
    """
    double = copy.deepcopy(model).double().eval()
    settings = replace(way.settings, rtol=tolerance, atol=tolerance)
    if settings.backward is not None:
        own = Tolerances(tolerance, tolerance, norm=settings.backward.norm)
        settings = replace(settings, backward=own)
    tight = Solver(rtol=1e-10, atol=1e-10)
    for i in range(n_batches):
        rows = slice(i * way.batch, (i + 1) * way.batch)
        x, y = samples.x[rows].double(), samples.y[rows]
        double.body.solver = tight
        with torch.no_grad():
            start = double.stem(x)
            reference = double.body(start)
        double.body.solver = settings
        seconds, end = _timed(double.body, start, repeats)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradientWarning)
            cross_entropy(double(x), y).backward()
        forward, backward = evaluations(double.body.stats)
        error = float(((end - reference) / (1 + reference.abs())).square().mean().sqrt())
        yield Measured(
            way.solver, way.norm, way.batch, tolerance, forward, backward, error, seconds
        )


@torch.no_grad()
def _timed(body: nn.Module, start: Tensor, repeats: int) -> tuple[float, Tensor]:
    """The least CPU time of a solve, and where it ended."""
    times: list[float] = []
    for _ in range(repeats):
        began = time.process_time()
        end = body(start)
        times.append(time.process_time() - began)
    return min(times), end


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation; equal values share their mean rank."""
    u, v = _ranks(x), _ranks(y)
    u, v = u - u.mean(), v - v.mean()
    return float((u * v).sum() / (u.norm() * v.norm()))


def _ranks(values: Sequence[float]) -> Tensor:
    x = torch.tensor(values, dtype=torch.float64)
    below = (x[None] < x[:, None]).sum(1)
    equal = (x[None] == x[:, None]).sum(1)
    return below + (equal - 1) / 2
