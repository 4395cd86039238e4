"""`certify`: is this tolerance good enough for this problem?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ctflow.api import as_solver
from ctflow.backends import registry
from ctflow.backends.protocol import Solver, Tolerances, check, resolve
from ctflow.errors import CtflowError, InvalidProblem
from ctflow.problem import ODEProblem
from ctflow.state import leaves_of
from ctflow.testing.asked import Asked, Gradient, Loss, default_loss
from ctflow.testing.certificate import Certificate, Measured, written
from ctflow.testing.reference import frozen, on_grid
from ctflow.testing.routes import prompt

__all__ = ["certify"]

_NODES = 512  # of the reference, evenly spread: what is shorter than T / 512 may go unseen
_FINEST = 1e-12
_STEPS = (16, 64, 256, 1024)  # fixed steps over the interval, where no tolerance will do


def certify(
    problem: ODEProblem,
    solver: Solver | str | None = None,
    *,
    accuracy: float = 1e-2,
    loss: Loss | None = None,
    seed: int = 0,
) -> Certificate:
    """Say whether a solver's tolerance is good enough for a problem, values and gradient.

    The problem is solved and differentiated as asked, at a tenth of the tolerances, by a second
    backend, and on a fixed grid of steps that an adaptive solve at a tolerance of 1e-10 laid down,
    with 512 more nodes spread evenly, so that no step jumps over a short event. That grid is the
    reference. Where the verdict is bad, tighter tolerances, exact gradients and fixed steps are
    tried, the cheapest first.

    Args:
        problem: What is asked.
        solver: How it is solved now.
        accuracy: Relative error of outputs and gradient that is good enough. What is below
            `atol` of an output does not count.
        loss: Scalar of the outputs that is differentiated; None: the outputs after the first,
            weighted at random.
        seed: Of the weights.

    Returns:
        The certificate.

    Raises:
        InvalidProblem: If the accuracy is not positive.
        SolveFailed: If the reference cannot be solved.

    Cost:
        Up to ten solves with their gradients, and one of at least 512 steps.

    Example:
        >>> import torch
        >>> from ctflow import ODEProblem, Solver
        >>> y0 = torch.ones(1, dtype=torch.float64)
        >>> problem = ODEProblem(lambda t, y: -y, y0, [0.0, 1.0])
        >>> certify(problem, Solver(rtol=1e-5, atol=1e-7)).verdict
        'adequate'
    """
    if not accuracy > 0:
        raise InvalidProblem(f"`accuracy` must be positive, got {accuracy:g}. Pass 1e-2 or so.")
    asked = Asked.of(problem, loss or _after_the_first(seed), seed, narrow=True)
    full = _completed(asked.problem, as_solver(solver))
    judge = _Judge.of(asked, accuracy, full.atol or 0.0)
    now, tenth = judge.measure(full), judge.measure(_tighter(full, 1))
    second = _second(judge, full)
    apart = second is not None and not second.within(accuracy)
    if now.within(accuracy) and tenth.within(accuracy) and not apart:
        why = f"errors are below {accuracy:g}, and stay there at a tenth of the tolerance"
        why += f" and with {second.solver}" if second is not None else ""
        return Certificate(accuracy, now, tenth, second, "adequate", why, full, now)
    recommended, cost = _search(judge, full)
    why = _why(now, tenth, second, accuracy)
    return Certificate(accuracy, now, tenth, second, "not adequate", why, recommended, cost)


@dataclass(frozen=True, eq=False)
class _Judge:
    """Measures solvers against the reference."""

    asked: Asked
    reference: Gradient
    accuracy: float
    atol: float

    @classmethod
    def of(cls, asked: Asked, accuracy: float, atol: float) -> _Judge:
        dtype: torch.dtype = leaves_of(asked.problem.y0)[0].dtype
        tight = max(1e-10, 50 * torch.finfo(dtype).eps)
        grid = frozen(asked.problem, tight, _NODES)
        coupling = "per_sample" if asked.problem.t.dim() == 2 else None
        return cls(asked, asked.gradient(on_grid(grid, coupling)), accuracy, atol)

    def measure(self, solver: Solver) -> Measured:
        """Errors and cost of a solver; what it raises is its failure."""
        name = written(solver)
        try:
            found = self.asked.gradient(solver)
        except CtflowError as error:
            return Measured(name, float("inf"), float("inf"), 0, " ".join(str(error).split()))
        stats = found.solution.stats
        counts = [c.n_f_evals for c in (stats.forward, stats.backward) if c is not None]
        n = sum(int(count.amax()) for count in counts)
        doubt = found.doubts[0] if found.doubts else ""
        return Measured(name, self._value_error(found.y), self._gradient_error(found), n, doubt)

    def _value_error(self, y: Tensor) -> float:
        """The largest over times and samples; the start, which is given, left out."""
        gap = (y - self.reference.y)[1:].double().square().mean(dim=-1).sqrt()
        size = self.reference.y[1:].double().square().mean(dim=-1).sqrt()
        return float((gap / (size + self.atol / self.accuracy).clamp(min=1e-300)).amax())

    def _gradient_error(self, found: Gradient) -> float:
        """The largest of a part, relative to it; of one that hardly counts, to the whole."""
        floor = max(1e-3 * self.reference.norm, 1e-300)
        zero = self.reference._replace(
            parts={k: tuple(torch.zeros_like(x) for x in v) for k, v in found.parts.items()}
        )
        return max(
            self.reference.distance(found, part) / max(self.reference.distance(zero, part), floor)
            for part in found.parts
        )


def _after_the_first(seed: int) -> Loss:
    """Output 0 is given: it would hide the others in the size of the gradient."""
    whole = default_loss(seed)

    def loss(y: Any) -> Tensor:  # noqa: ANN401
        return whole([leaf[1:] for leaf in leaves_of(y)])

    return loss


def _completed(problem: ODEProblem, solver: Solver) -> Solver:
    backend = registry.get(solver.backend)
    full = resolve(problem, solver, backend)
    check(problem, full, backend)
    return full


def _tighter(solver: Solver, k: int) -> Solver:
    """Tolerances a tenth, k times; a fixed step a third."""
    if solver.step is not None:
        return replace(solver, step=solver.step / 3**k)
    share = 10.0**-k
    backward = solver.backward
    if backward is not None:
        least = max(backward.rtol * share, _FINEST)
        backward = replace(backward, rtol=least, atol=backward.atol * share)
    rtol = max((solver.rtol or _FINEST) * share, _FINEST)
    return replace(solver, rtol=rtol, atol=(solver.atol or rtol) * share, backward=backward)


def _second(judge: _Judge, full: Solver) -> Measured | None:
    """Another backend, at a tenth of the tolerances; tighter where that is its own trouble."""
    first = registry.get(full.backend).name
    for name in prompt():  # what compiles is native's own mathematics
        if name == first:
            continue
        plain = Solver(backend=name, rtol=full.rtol, atol=full.atol, max_steps=full.max_steps)
        rtol = plain.rtol or 1e-6
        for k in (1, 3, 5):
            tight = replace(
                plain, rtol=max(rtol * 10.0**-k, _FINEST), atol=(plain.atol or rtol) * 10.0**-k
            )
            try:
                solver = _completed(judge.asked.problem, tight)
            except CtflowError:
                break
            found = judge.measure(solver)
            if found.within(judge.accuracy) or k == 5:
                return found
    return None


def _search(judge: _Judge, full: Solver) -> tuple[Solver | None, Measured | None]:
    """The first settings that are good enough with some room, cheapest first."""
    for solver in _candidates(judge.asked.problem, full):
        found = judge.measure(solver)
        if found.within(0.5 * judge.accuracy):
            return solver, found
    return None, None


def _candidates(problem: ODEProblem, full: Solver) -> Iterator[Solver]:
    others = [full, *_other_gradients(problem, full)]
    if full.backward is not None and full.backward.norm == "seminorm":
        norm = Tolerances(full.backward.rtol, full.backward.atol)
        others.insert(1, replace(full, backward=norm))
    for k in range(10):
        for solver in others:
            tighter = _tighter(solver, k)
            if k == 0 or tighter.step is not None or (tighter.rtol or 0) > _FINEST:
                yield tighter
    t = problem.t.detach()
    length = float((t[..., -1] - t[..., 0]).abs().max())
    for n in _STEPS:
        fixed = Solver(method="dopri5", step=length / n, coupling=full.coupling)
        yield _completed(problem, fixed)


def _other_gradients(problem: ODEProblem, full: Solver) -> Iterator[Solver]:
    """The exact gradients of the same backend; of ours where it has none."""
    if full.gradient != "adjoint":
        return
    for backend in (full.backend, "native"):
        for gradient in ("checkpointed", "direct"):
            solver = replace(full, backend=backend, gradient=gradient, backward=None)
            try:
                yield _completed(problem, solver)
            except CtflowError:
                continue
            return


def _why(now: Measured, tenth: Measured, second: Measured | None, accuracy: float) -> str:
    if now.failure:
        return now.failure
    if now.value_error > accuracy:
        return f"outputs are off by {now.value_error:.2g} of their size, {accuracy:g} allowed"
    if now.gradient_error > accuracy:
        return f"the gradient is off by {now.gradient_error:.2g} of its size, {accuracy:g} allowed"
    if not tenth.within(accuracy):
        return f"at a tenth of the tolerance it is not: {tenth.failure or 'errors grow'}"
    name = "none" if second is None else second.solver
    return f"a second backend, {name}, disagrees"
