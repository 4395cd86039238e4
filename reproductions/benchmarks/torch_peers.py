"""Contestants in this process: ctflow's backends, torchdiffeq and torchode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measuring import ABSOLUTE, SCALED, Answer, Entry, Stopwatch, Tally
from benchmarks.workloads import Case
from ctflow import ODEProblem, Solver, Tolerances, solve
from ctflow.backends import available
from ctflow.errors import GradientWarning
from ctflow.solution import raise_if_failed

__all__ = ["InProcess", "contestants", "mean_square", "reference", "skipped", "started"]

State = Any
_GRADIENTS = ("checkpointed", "direct", "adjoint")
_OURS = ("native", "compiled")


@dataclass(frozen=True)
class InProcess:
    """A contestant that runs here.

    Args:
        entry: Who it is.
        solve: Solves for the given initial state; keeps the graph if that wants a gradient.
        count: Runs once more and says what it cost.
        case: What is solved.
    """

    entry: Entry
    solve: Callable[[State], State]
    count: Callable[[State], Tally]
    case: Case

    @property
    def key(self) -> str:
        """Its name in the samples."""
        return self.entry.key

    def first(self) -> float:
        """Seconds of the first call."""
        return Stopwatch(self.key, self.run).first()

    def measure(self, seconds: float) -> float:
        """Milliseconds of one call."""
        return Stopwatch(self.key, self.run).measure(seconds)

    def run(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """One call: states, and gradients of their mean square if it is of them."""
        if self.entry.task == "forward":
            with torch.no_grad():
                return _leaves(self.solve(self.case.y0)), ()
        leaves = started(self.case)
        states = _leaves(self.solve(_state(leaves)))
        return states, gradient(states, [*leaves, *self.case.field.parameters()])

    def answer(self) -> Answer:
        """What it computes."""
        states, gradients = self.run()
        return Answer(_flat(states), _flat(gradients) if gradients else None)

    def tally(self) -> Tally:
        """What that costs; the warnings of a gradient in doubt become a mark."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", GradientWarning)
            if self.entry.task == "forward":
                with torch.no_grad():
                    found = self.count(self.case.y0)
            else:
                found = self.count(_state(started(self.case)))
        doubted = any(issubclass(each.category, GradientWarning) for each in caught)
        return found._replace(doubted=doubted)


def started(case: Case) -> list[Tensor]:
    """The leaves of the initial state, wanting a gradient."""
    return [leaf.clone().requires_grad_() for leaf in case.leaves]


def mean_square(states: Sequence[Tensor]) -> Tensor:
    """The loss: over all leaves, times and variables."""
    total = sum(x.square().sum() for x in states) / sum(x.numel() for x in states)
    return torch.as_tensor(total)


def gradient(states: Sequence[Tensor], inputs: Iterable[Tensor]) -> Sequence[Tensor]:
    """Gradient of the loss."""
    return torch.autograd.grad(mean_square(states), list(inputs))


def contestants(case: Case) -> Iterator[InProcess]:
    """Everybody who is installed here and can do the case, forward passes first."""
    found = [*_ctflow(case), *_torchdiffeq(case), *_torchode(case)]
    yield from sorted(found, key=lambda each: each.entry.task != "forward")


def skipped(case: Case) -> list[str]:
    """Who does not take part, and why; one line each."""
    lines = (
        [] if "compiled" in available() else ["ctflow compiled: this ctflow has no such backend"]
    )
    if find_spec("torchdiffeq") is None:
        lines.append("torchdiffeq: not installed. Run: python -m pip install torchdiffeq")
    if not _fits_torchode(case):
        lines.append("torchode: its state must be one tensor [batch, feature], this one is not")
    elif find_spec("torchode") is None:
        lines.append("torchode: not installed. Run: python -m pip install torchode")
    return lines


def reference(case: Case, *, gradients: bool) -> Answer:
    """The answer in float64 at tolerances far below the case's.

    Args:
        case: What is solved, drawn in float64.
        gradients: Whether these are wanted too.
    """
    fine = replace(case, tolerance=case.reference)
    entry = Entry("native", "checkpointed", "exact" if gradients else "forward")
    return _ours(fine, "native", entry).answer()


def _ctflow(case: Case) -> Iterator[InProcess]:
    for backend in _OURS:
        if backend in available():
            library = f"ctflow {backend}"
            yield _ours(case, backend, Entry(library, "forward", "forward"))
            for mode in _GRADIENTS:
                task = "adjoint" if mode == "adjoint" else "exact"
                yield _ours(case, backend, Entry(library, mode, task))
            if backend == "compiled" and case.absolute:
                yield _ours(case, backend, Entry(library, ABSOLUTE, "adjoint"))


def _ours(case: Case, backend: str, entry: Entry) -> InProcess:
    field = case.traceable if backend == "compiled" else case.field
    mode: Any = "adjoint" if entry.task == "adjoint" else entry.mode
    tolerance = case.tolerance
    as_the_peers = Tolerances(tolerance, tolerance, unit="absolute")
    solver = Solver(
        backend,
        method="dopri5",
        rtol=tolerance,
        atol=tolerance,
        coupling="shared",
        gradient=None if entry.task == "forward" else mode,
        backward=as_the_peers if entry.mode == ABSOLUTE else None,
    )

    def states(y0: State) -> State:
        return raise_if_failed(solve(ODEProblem(field, y0, case.t), solver)).y

    def count(y0: State) -> Tally:
        stats = (solution := solve(ODEProblem(field, y0, case.t), solver)).stats
        if entry.mode != "forward":
            gradient(_leaves(solution.y), field.parameters())
        forward, backward = stats.forward, stats.backward
        return Tally(
            int(forward.n_f_evals),
            0 if backward is None else int(backward.n_f_evals),
            int(forward.n_accepted),
            int(forward.n_rejected),
        )

    return InProcess(entry, states, count, case)


class _Watched(nn.Module):
    """A field that counts its calls, and the steps that torchdiffeq tells it of."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field
        self.calls = self.accepted = self.rejected = 0

    def forward(self, t: Tensor, y: State) -> State:
        self.calls += 1
        return self.field(t, y)

    def callback_accept_step(self, t0: Tensor, y0: State, dt: Tensor) -> None:
        del t0, y0, dt
        self.accepted += 1

    def callback_reject_step(self, t0: Tensor, y0: State, dt: Tensor) -> None:
        del t0, y0, dt
        self.rejected += 1


def _torchdiffeq(case: Case) -> Iterator[InProcess]:
    if find_spec("torchdiffeq") is None:
        return
    import torchdiffeq

    def one(entry: Entry) -> InProcess:
        call: Callable[..., State] = torchdiffeq.odeint
        if entry.task == "adjoint":
            call = torchdiffeq.odeint_adjoint
        if entry.mode == SCALED:
            call = partial(call, adjoint_atol=case.tolerance * _largest_cotangent(case))

        def states(y0: State, field: nn.Module = case.field) -> State:
            tolerance = case.tolerance
            return call(field, y0, case.t, method="dopri5", rtol=tolerance, atol=tolerance)

        def count(y0: State) -> Tally:
            watched = _Watched(case.field)
            y = _leaves(states(y0, watched))
            forward, accepted, rejected = watched.calls, watched.accepted, watched.rejected
            if entry.task != "forward":
                gradient(y, case.field.parameters())
            return Tally(forward, watched.calls - forward, accepted, rejected)

        return InProcess(entry, states, count, case)

    yield one(Entry("torchdiffeq", "forward", "forward"))
    yield one(Entry("torchdiffeq", "direct", "exact"))
    yield one(Entry("torchdiffeq", "adjoint", "adjoint"))
    if case.absolute:
        yield one(Entry("torchdiffeq", SCALED, "adjoint"))


def _largest_cotangent(case: Case) -> float:
    """Size of what reaches the adjoint first: the largest derivative of the loss by an output."""
    with torch.no_grad():
        states = _leaves(solve(ODEProblem(case.field, case.y0, case.t)).y)
    return max(float(2 * x.abs().amax()) for x in states) / sum(x.numel() for x in states)


def _fits_torchode(case: Case) -> bool:
    return len(case.leaves) == 1 and case.leaves[0].dim() == 2


def _torchode(case: Case) -> Iterator[InProcess]:
    if find_spec("torchode") is None or not _fits_torchode(case):
        return
    import torchode

    times = case.t.expand(case.leaves[0].shape[0], -1)
    tolerance = case.tolerance

    def solution(y0: Tensor) -> Any:  # noqa: ANN401 - torchode has no stubs
        term = torchode.ODETerm(case.field)
        control = torchode.IntegralController(atol=tolerance, rtol=tolerance, term=term)
        driver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), control)
        found = driver.solve(torchode.InitialValueProblem(y0=y0, t_eval=times))
        if found.status.any():
            raise RuntimeError(f"torchode did not arrive, its status is {found.status.tolist()}")
        return found

    def states(y0: Tensor) -> Tensor:
        return solution(y0).ys.transpose(0, 1)

    def count(y0: Tensor) -> Tally:
        stats = solution(y0).stats
        steps, accepted = int(stats["n_steps"].max()), int(stats["n_accepted"].max())
        return Tally(int(stats["n_f_evals"].max()), 0, accepted, steps - accepted)

    yield InProcess(Entry("torchode", "forward", "forward"), states, count, case)
    yield InProcess(Entry("torchode", "direct", "exact"), states, count, case)


def _state(leaves: Sequence[Tensor]) -> State:
    return leaves[0] if len(leaves) == 1 else tuple(leaves)


def _leaves(y: State) -> Sequence[Tensor]:
    return (y,) if isinstance(y, Tensor) else y


def _flat(tensors: Sequence[Tensor]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return torch.cat([x.detach().double().flatten() for x in tensors]).cpu().numpy()
