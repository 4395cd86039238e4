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

__all__ = ["Measured", "Way", "measured", "spearman", "timed_again", "ways"]


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


def timed_again(
    model: nn.Module, samples: Samples, solves: Sequence[Measured], ways: Sequence[Way]
) -> list[Measured]:
    """The same solves with the lesser time of theirs and of one more.

    Called some times over all solves, it takes a solve's times far apart: other work on a machine,
    which comes and goes, then disturbs some of the times of every solve and not all those of one.

    Args:
        model: As `measured` was given it.
        samples: Likewise.
        solves: What `measured` found, in its order: batch after batch of a way and a tolerance.
        ways: Theirs.
    """
    double = copy.deepcopy(model).double().eval()
    chosen = {(way.solver, way.norm, way.batch): way for way in ways}
    found: list[Measured] = []
    place = 0
    for i, each in enumerate(solves):
        same = i > 0 and _key(each) == _key(solves[i - 1])
        place = place + 1 if same else 0
        way = chosen[each.solver, each.norm, each.batch]
        rows = slice(place * way.batch, (place + 1) * way.batch)
        with torch.no_grad():
            start = double.stem(samples.x[rows].double())
        double.body.solver = _settings(way, each.tolerance)
        seconds, _ = _timed(double.body, start)
        found.append(replace(each, seconds=min(seconds, each.seconds)))
    return found


def _key(solve: Measured) -> tuple[str, str, int, float]:
    return solve.solver, solve.norm, solve.batch, solve.tolerance


def _settings(way: Way, tolerance: float) -> Solver:
    """Its solver with the tolerance, backward too."""
    settings = replace(way.settings, rtol=tolerance, atol=tolerance)
    if settings.backward is None:
        return settings
    own = Tolerances(tolerance, tolerance, norm=settings.backward.norm)
    return replace(settings, backward=own)


def measured(
    model: nn.Module, samples: Samples, way: Way, tolerance: float, n_batches: int
) -> Iterator[Measured]:
    """Solves of one way at one tolerance, in float64, of the first batches of images.

    Args:
        model: A trained classifier with an `ODEBlock` as its body; left as it is.
        samples: Images to solve for.
        way: How.
        tolerance: rtol and atol, forward and backward.
        n_batches: So many solves.
    """
    double = copy.deepcopy(model).double().eval()
    settings = _settings(way, tolerance)
    tight = Solver(rtol=1e-10, atol=1e-10)
    for i in range(n_batches):
        rows = slice(i * way.batch, (i + 1) * way.batch)
        x, y = samples.x[rows].double(), samples.y[rows]
        double.body.solver = tight
        with torch.no_grad():
            start = double.stem(x)
            reference = double.body(start)
        double.body.solver = settings
        seconds, end = _timed(double.body, start)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradientWarning)
            cross_entropy(double(x), y).backward()
        forward, backward = evaluations(double.body.stats)
        error = float(((end - reference) / (1 + reference.abs())).square().mean().sqrt())
        yield Measured(
            way.solver, way.norm, way.batch, tolerance, forward, backward, error, seconds
        )


@torch.no_grad()
def _timed(body: nn.Module, start: Tensor) -> tuple[float, Tensor]:
    """The CPU time of a solve, and where it ended."""
    began = time.process_time()
    end = body(start)
    return time.process_time() - began, end


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
