"""The native solver inside torch.func's transforms and torch's forward mode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ctflow.backends.native.control import Control, Verdict
from ctflow.backends.protocol import Solver
from ctflow.errors import Unsupported
from ctflow.problem import ODEProblem
from ctflow.state import leaves_of
from ctflow.transforms import active, any_batched, least, levels, plain

__all__ = ["plain_verdict", "refuse_mapped", "refused", "steps_are_given"]

_ADAPTIVE = (
    "torch.vmap over adaptive steps: all its calls would have to take the same; give "
    "Solver(step=...), or make the batch dimension 0 of `y0` and use coupling='per_sample'"
)


def steps_are_given(control: Control) -> bool:
    """Whether its steps are known before the solve, whatever the solution."""
    return bool(getattr(type(control), "GIVEN", False))


def refused(problem: ODEProblem, solver: Solver, given: bool) -> list[str]:
    """Reasons why a solve cannot be differentiated or mapped by what surrounds it.

    Args:
        problem: What is asked.
        solver: How.
        given: Whether the steps are known beforehand.
    """
    if not active():
        return []
    found: list[str] = []
    if not given and any_batched(leaves_of((problem.y0, problem.args, problem.params))):
        found.append(_ADAPTIVE)
    if not torch.is_grad_enabled():
        return found
    if solver.gradient in ("checkpointed", "adjoint"):
        found.append(
            f"gradient={solver.gradient!r} under torch.func transforms or in forward mode: its "
            "backward pass is not a function of its inputs alone; take gradient='direct'"
        )
    times = levels(problem.t)
    if times is None:
        found.append(
            "a `t` that requires a gradient under torch.func transforms or in forward mode; "
            "detach it, and differentiate by it with torch.func.grad, jacrev or jvp"
        )
    elif times > 2:
        found.append(f"derivatives by `t` of order {times}; the second is the last")
    return found


def refuse_mapped(control: Control, values: Sequence[Tensor]) -> None:
    """Refuse to let a control choose steps by values that torch.vmap gives each call its own of.

    Raises:
        Unsupported: If its steps are not known beforehand.
    """
    if not steps_are_given(control) and any_batched(values):
        raise Unsupported(f"backend 'native' cannot do this: {_ADAPTIVE}.")


def plain_verdict(verdict: Verdict, control: Control) -> Verdict:
    """What a control says, for all calls of torch.vmap at once: a step counts if all are finite.

    Raises:
        Unsupported: If sizes follow the solution, which differs between the calls.
    """
    refuse_mapped(control, (verdict.size,))
    memory = None if verdict.memory is None else plain(verdict.memory)
    finite = least(verdict.finite)
    return Verdict(least(verdict.accepted), least(verdict.size), finite, memory)
