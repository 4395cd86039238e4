"""`TorchsdeBackend`: what it takes, what it refuses, and how one solve goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ctflow.backends.captures import Captures, boundary, sequence_number
from ctflow.backends.protocol import Feature, Solver
from ctflow.backends.torchsde.adjoint import Inner, attach
from ctflow.backends.torchsde.brownian import brownian_path, covers
from ctflow.backends.torchsde.dynamics import Dynamics, Inspect
from ctflow.backends.torchsde.library import sdeint
from ctflow.backends.torchsde.plan import complete, keywords, quiet, reasons, record
from ctflow.backends.torchsde.schemes import SCHEMES
from ctflow.backends.torchsde.tally import Stopped, Tally, Watched
from ctflow.errors import InvalidProblem, Unsupported
from ctflow.sde import BrownianPath, SDEProblem
from ctflow.solution import Counts, Solution, Stats, Status
from ctflow.transforms import untraced

__all__ = ["TorchsdeBackend"]


@dataclass(frozen=True)
class TorchsdeBackend:
    """The schemes of torchsde (Li et al. 2020), tested with its version 0.2.6.

    Ito: `euler`, `milstein`, `srk`; Stratonovich: `milstein`, `midpoint`, `heun`, `euler_heun`,
    `log_ode`, `reversible_heun`. With `Solver(step=...)` steps of that size from `t[0]` on, the
    last one cut; outputs between them are interpolated linearly. Without, each step is compared
    with two halves of it; the tolerances are those of one path, not of moments.

    `gradient="direct"` differentiates the steps taken. `"adjoint"` solves the stochastic adjoint
    equation backwards along the same Brownian path: constant memory, an error of the scheme's
    order; with `method="reversible_heun"` and a fixed step it is the derivative of the steps
    themselves, up to rounding.

    Of a solve that stops only the initial state is known: torchsde keeps its outputs to itself
    until the end.

    Example:
        >>> from ctflow import SDEProblem
        >>> problem = SDEProblem(
        ...     lambda t, y: -y, lambda t, y: 0.1 * y, torch.ones(7, 2), [0.0, 1.0], seed=0
        ... )
        >>> TorchsdeBackend().solve(problem, Solver("torchsde", step=0.1)).y.shape
        torch.Size([2, 7, 2])
    """

    @property
    def name(self) -> str:
        """Its name in messages and tables."""
        return "torchsde"

    @property
    def features(self) -> frozenset[Feature]:
        """What it can do."""
        return frozenset({Feature.ADAPTIVE, Feature.FIXED, Feature.DIRECT, Feature.ADJOINT})

    def refuse(self, problem: SDEProblem, solver: Solver) -> list[str]:
        """Reasons why it cannot do what is asked."""
        return reasons(problem, complete(problem, solver))

    def solve(self, problem: SDEProblem, solver: Solver) -> Solution:
        """Solve; failures are values, as for an ODE.

        Raises:
            InvalidProblem: If drift or diffusion returns something that does not fit.
            Unsupported: If this combination cannot be done.
        """
        return self._solve(problem, solver)

    @untraced  # torchsde's loop goes by data
    def _solve(self, problem: SDEProblem, solver: Solver) -> Solution:
        solver = complete(problem, solver)
        found = reasons(problem, solver)
        if found:
            raise Unsupported(f"backend 'torchsde' cannot do this: {'; '.join(found)}.")
        try:
            return self._once(problem, solver, recorded=False)
        except _Late:
            return self._once(problem, solver, recorded=True)

    def _once(self, problem: SDEProblem, solver: Solver, *, recorded: bool) -> Solution:
        tally = Tally(solver.step is None, solver.max_steps, float(problem.t[0]))
        run = _Run(problem, solver, Dynamics(problem, tally), tally, recorded)
        out, unfinished = run()
        backward = Counts.zeros(1) if solver.gradient == "direct" else None
        trace = tuple(torch.tensor([t], dtype=torch.float64) for t in tally.trace)
        stats = Stats(record(solver), tally.counts(), backward, trace)
        unfinished.append(stats)
        status = torch.tensor([int(tally.status)])
        return Solution(problem.t, out, status, stats, tally.stops())


class _Late(Exception):
    """A solve that seemed to want no gradient reached a tensor that does."""


@dataclass(frozen=True)
class _Run:
    """One solve; `recorded` if autograd is to follow it whatever the first evaluation reached."""

    problem: SDEProblem
    solver: Solver
    dynamics: Dynamics
    tally: Tally
    recorded: bool

    def __call__(self) -> tuple[Tensor, list[Stats]]:
        """States, differentiable where anything wants a gradient, and whose statistics are open."""
        problem, dynamics, wanted = self.problem, self.dynamics, torch.is_grad_enabled()
        leaf = problem.y0.detach().requires_grad_()
        marker = sequence_number()
        try:
            with torch.inference_mode(False), torch.enable_grad():
                reached = dynamics.probe(problem.t[0], leaf)
        except Stopped:
            return self._nothing(), []
        watched = self._watched()
        if not wanted:
            return self._complete(lambda: self._plain(watched)), []
        if self.solver.gradient == "direct":
            others = any(x is not leaf for x in boundary(reached, marker))
            if self.recorded or problem.y0.requires_grad or others:
                return self._complete(lambda: self._plain(watched)), []
            return self._unrecorded(watched, _begin_again), []
        captures = Captures(dynamics.both, dynamics.field)
        captures.discover(reached, leaf, marker)
        if not (problem.y0.requires_grad or captures.inputs):
            return self._unrecorded(watched, partial(_refuse_for_adjoint, captures)), []
        with captures.cut() as leaves, torch.enable_grad():
            start = problem.y0.detach().requires_grad_()
            inner = Inner(problem, self.solver, dynamics, watched, start, leaves)
            out = self._complete(inner.solve)
            inner.keep(captures)
        if self.tally.status != Status.OK:
            return out, []
        inner.out = out
        return attach(inner, problem.y0, captures), inner.stats

    @torch.no_grad()
    def _unrecorded(self, watched: Watched, refuse: Inspect) -> Tensor:
        """A solve that nothing wants a gradient of: schemes that differentiate g would keep all."""
        self.dynamics.watch = refuse
        return self._complete(lambda: self._plain(watched))

    def _watched(self) -> Watched:
        problem, m = self.problem, self.dynamics.n_noises
        path = problem.path
        if path is None:
            levy = SCHEMES[str(self.solver.method)].levy
            ends = float(problem.t[0]), float(problem.t[-1])
            shape = (len(problem.y0), m)
            path = brownian_path(
                *ends,
                shape,
                problem.seed or 0,
                like=problem.y0,
                levy_area=levy[0] if levy else "none",
            )
        else:
            self._check(path, m)
        return Watched(path, self.tally, self.problem.y0)

    def _check(self, path: BrownianPath, m: int) -> None:
        """Refuse a path that would be read beyond what it knows."""
        problem = self.problem
        t0, t1 = float(problem.t[0]), float(problem.t[-1])
        if path.shape[1] != m:
            raise InvalidProblem(
                f"`path` must have a Brownian motion for each of the diffusion's {m}, got shape "
                f"{list(path.shape)}. Make one of shape [{len(problem.y0)}, {m}]."
            )
        if not covers(path, t0, t1):
            raise InvalidProblem(
                f"`path` must cover the times from {t0:g} to {t1:g}, got one on "
                f"{list(getattr(path, 'ends', ()))}. Make one that is as long."
            )
        dtype = getattr(path, "dtype", problem.y0.dtype)
        if dtype != problem.y0.dtype:
            raise InvalidProblem(
                f"`path` must have the dtype of `y0`, {problem.y0.dtype}, got {dtype}. Make it "
                "with like=y0."
            )

    def _plain(self, watched: Watched) -> Tensor:
        with quiet():
            return sdeint(
                self.dynamics, self.problem.y0, self.problem.t, bm=watched,
                **keywords(self.problem, self.solver),
            )  # fmt: skip

    def _complete(self, solve: Callable[[], Tensor]) -> Tensor:
        """What comes back is right, or a constant with NaN."""
        try:
            out = solve()
        except Stopped:
            return self._nothing()
        except AssertionError as error:
            if "nans in the error estimate" not in str(error):
                raise
            self.tally.status = Status.NON_FINITE
            return self._nothing()
        if not bool(torch.isfinite(out.detach()).all()):
            self.tally.status = Status.NON_FINITE
            return self._nothing()
        self.tally.finish()
        return out

    def _nothing(self) -> Tensor:
        y0 = self.problem.y0.detach()
        missing = y0.new_full((len(self.problem.t) - 1, *y0.shape), torch.nan)
        return torch.cat([y0.unsqueeze(0), missing])


def _begin_again(value: Tensor, y: Tensor, marker: int, t: Tensor) -> None:  # noqa: ARG001
    """Leave an unrecorded solve that reached a tensor which wants a gradient.

    Raises:
        _Late: If it did.
    """
    edge = get_gradient_edge(y) if y.grad_fn is not None else None
    for reached in boundary(value, marker):
        if reached is not y and (edge is None or reached != (edge.node, edge.output_nr)):
            raise _Late


def _refuse_for_adjoint(
    captures: Captures, value: Tensor, y: Tensor, marker: int, t: Tensor
) -> None:
    """Refuse it, where the adjoint would lose the gradient."""
    captures.recheck(value, y, marker, (), t)
