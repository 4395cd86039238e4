"""`certify`: is this tolerance good enough for this problem?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ctflow.api import as_solver
from ctflow.backends import registry
from ctflow.backends.protocol import Solver
from ctflow.errors import CtflowError, InvalidProblem
from ctflow.problem import ODEProblem
from ctflow.state import leaves_of
from ctflow.testing.asked import Asked, Loss, default_loss
from ctflow.testing.certificate import Certificate, Measured
from ctflow.testing.judge import Judge, completed
from ctflow.testing.routes import prompt

__all__ = ["certify"]

_FINEST = 1e-12  # tolerance, or what the dtype resolves
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
        InvalidProblem: If the accuracy is not positive, or the gradient is not finite.
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
    full = completed(asked.problem, as_solver(solver))
    judge = Judge.of(asked, accuracy, full.atol or 0.0)
    now, tenth = judge.measure(full), judge.measure(_tighter(asked.problem, full, 1))
    second = _second(judge, full)
    apart = second is not None and not second.within(accuracy)
    if now.within(accuracy) and tenth.within(accuracy) and not apart:
        why = f"errors are below {accuracy:g}, and stay there at a tenth of the tolerance"
        why += f" and with {second.solver}" if second is not None else ""
        return Certificate(accuracy, now, tenth, second, "adequate", why, full, now)
    recommended, cost = _search(judge, full)
    why = _why(now, tenth, second, accuracy)
    return Certificate(accuracy, now, tenth, second, "not adequate", why, recommended, cost)


def _after_the_first(seed: int) -> Loss:
    """Output 0 is given: it would hide the others in the size of the gradient."""
    whole = default_loss(seed)

    def loss(y: Any) -> Tensor:  # noqa: ANN401
        return whole([leaf[1:] for leaf in leaves_of(y)])

    return loss


def _finest(problem: ODEProblem) -> float:
    dtype: torch.dtype = leaves_of(problem.y0)[0].dtype
    return max(_FINEST, 2 * torch.finfo(dtype).eps)


def _tighter(problem: ODEProblem, solver: Solver, k: int) -> Solver:
    """Tolerances a tenth, k times; a fixed step a third."""
    if solver.step is not None:
        return replace(solver, step=solver.step / 3**k)
    share, finest = 10.0**-k, _finest(problem)
    backward = solver.backward
    if backward is not None:
        least = min(backward.rtol, max(backward.rtol * share, finest))
        backward = replace(backward, rtol=least, atol=backward.atol * share)
    now = solver.rtol or finest
    rtol = min(now, max(now * share, finest))
    return replace(solver, rtol=rtol, atol=(solver.atol or rtol) * share, backward=backward)


def _second(judge: Judge, full: Solver) -> Measured | None:
    """Another backend, at a tenth of the tolerances; tighter where that is its own trouble."""
    first = registry.get(full.backend).name
    for name in prompt():  # what compiles is native's own mathematics
        if name == first:
            continue
        plain = Solver(backend=name, rtol=full.rtol, atol=full.atol, max_steps=full.max_steps)
        plain = plain if plain.rtol else replace(plain, rtol=1e-6)
        for k in (1, 3, 5):
            try:
                solver = completed(judge.asked.problem, _tighter(judge.asked.problem, plain, k))
            except CtflowError:
                break
            found = judge.measure(solver)
            if found.within(judge.accuracy) or k == 5:
                return found
    return None


def _search(judge: Judge, full: Solver) -> tuple[Solver | None, Measured | None]:
    """The first settings that are good enough with some room, cheapest first."""
    for solver in _candidates(judge.asked.problem, full):
        found = judge.measure(solver)
        if found.within(0.5 * judge.accuracy):
            return solver, found
    return None, None


def _candidates(problem: ODEProblem, full: Solver) -> Iterator[Solver]:
    others = [full, *_other_gradients(problem, full)]
    if full.backward is not None and full.backward.norm == "seminorm":
        norm = replace(full.backward, norm="full")
        others.insert(1, replace(full, backward=norm))
    for k in range(10):
        for solver in others:
            tighter = _tighter(problem, solver, k)
            if k == 0 or tighter.step is not None or (tighter.rtol or 0) > _finest(problem):
                yield tighter
    t = problem.t.detach()
    length = float((t[..., -1] - t[..., 0]).abs().max())
    for n in _STEPS:
        fixed = Solver(method="dopri5", step=length / n, coupling=full.coupling)
        yield completed(problem, fixed)


def _other_gradients(problem: ODEProblem, full: Solver) -> Iterator[Solver]:
    """The exact gradients of the same backend; of ours where it has none."""
    if full.gradient != "adjoint":
        return
    for backend in (full.backend, "native"):
        for gradient in ("checkpointed", "direct"):
            solver = replace(full, backend=backend, gradient=gradient, backward=None)
            try:
                yield completed(problem, solver)
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
