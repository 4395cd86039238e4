"""What of a step-size control is part of a program, and what is an input of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ctflow.backends.native.backend import adaptive_or_fixed, backward_control
from ctflow.backends.native.control import Adaptive, Control, Fixed, Verdict
from ctflow.backends.native.gradients.adjoint import begun
from ctflow.backends.native.step import Step
from ctflow.backends.protocol import Solver
from ctflow.backends.tableau import Tableau
from ctflow.errors import Unsupported

__all__ = [
    "backward_of",
    "control_key",
    "control_values",
    "judge",
    "memory_before",
    "started",
    "usual_control",
    "with_values",
]


class _Known(NamedTuple):
    """What a control of ours came to: it is frozen, but for tensors in it."""

    control: Control
    key: tuple[object, ...]
    values: dict[object, tuple[Tensor, ...]] | None


_KNOWN: dict[int, _Known] = {}
_USUAL: dict[tuple[object, ...], Control] = {}
_BACKWARD: dict[tuple[object, ...], tuple[Control, Control]] = {}
_MOST = 256


def _known(control: Control) -> _Known | None:
    """What was found out of it before; None for a control of the user's, which may change."""
    if type(control) not in (Adaptive, Fixed):
        return None
    found = _KNOWN.get(id(control))
    if found is None:
        if len(_KNOWN) >= _MOST:
            _KNOWN.clear()
        changing = any(isinstance(value, Tensor) for value in vars(control).values())
        values = None if changing else dict[object, tuple[Tensor, ...]]()
        found = _KNOWN[id(control)] = _Known(control, _key_of(control), values)
    return found


def usual_control(solver: Solver, n_counted: int, n_variables: int) -> Control:
    """The control that portable settings mean; the same object for the same settings."""
    asked = (
        solver.step, solver.rtol, solver.atol, solver.controller, solver.first_step,
        solver.min_step, solver.max_step, n_counted, n_variables,
    )  # fmt: skip
    found = _USUAL.get(asked)
    if found is None:
        if len(_USUAL) >= _MOST:
            _USUAL.clear()
        found = _USUAL[asked] = adaptive_or_fixed(solver, n_counted, n_variables)
    return found


def backward_of(solver: Solver, control: Control, n_variables: int) -> Control:
    """The control of the adjoint's backward solve.

    The same object for the same settings. Where it begins with a size that the forward solve
    found, a 1 stands for what `started` puts in its place.

    Args:
        solver: Complete settings.
        control: That of the forward pass.
        n_variables: Of one sample's state.
    """
    key = (id(control), solver.backward, n_variables)
    found = _BACKWARD.get(key)
    if found is None or found[0] is not control:
        if len(_BACKWARD) >= _MOST:
            _BACKWARD.clear()
        own = backward_control(solver, control, n_variables)
        found = _BACKWARD[key] = control, begun(own, control, 1.0)
    return found[1]


def started(control: Control, values: tuple[Tensor, ...], size: Tensor) -> tuple[Tensor, ...]:
    """The values of a backward solve's control, with the step that it begins with.

    Args:
        control: As `backward_of` has it.
        values: Its values.
        size: Size of the step, [B].
    """
    names = _values_of(control)
    if "first_size" not in names:
        return values
    place = names.index("first_size")
    return (*values[:place], size, *values[place + 1 :])


def control_key(control: Control) -> tuple[object, ...]:
    """What of a control is part of the program."""
    known = _known(control)
    return _key_of(control) if known is None else known.key


def _key_of(control: Control) -> tuple[object, ...]:
    values = _values_of(control)
    kind = type(control)
    if not hasattr(control, "__dict__"):
        return (kind, control)
    held = vars(control).items()
    fixed = ((name, _hashable(value)) for name, value in held if name not in values)
    return (kind, values, *fixed)


def control_values(control: Control, like: Tensor) -> tuple[Tensor, ...]:
    """What of a control is an input of the program, as tensors in time's dtype."""
    known = _known(control)
    if known is None or known.values is None:
        return _tensors(control, like)
    kind = (like.dtype, like.device)
    found = known.values.get(kind)
    if found is None:
        found = known.values[kind] = _tensors(control, like)
    return found


def _tensors(control: Control, like: Tensor) -> tuple[Tensor, ...]:
    values = (getattr(control, name) for name in _values_of(control))
    return tuple(
        value.detach().to(like)
        if isinstance(value, Tensor)
        else _number(float(value), like.dtype, like.device)
        for value in values
    )


@lru_cache(maxsize=256)
def _number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number as a tensor that no program writes to."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=dtype, device=device)


def with_values(control: Control, values: Sequence[Tensor]) -> Control:
    """The control with other values: tensors in the place of numbers."""
    copy: Any = object.__new__(type(control))
    copy.__dict__.update(vars(control))
    copy.__dict__.update(zip(_values_of(control), values, strict=True))
    return copy


def _values_of(control: Control) -> tuple[str, ...]:
    return getattr(control, "VALUES", ())


def memory_before(control: Control, tableau: Tableau, t: Tensor, y: Tensor) -> Tensor:
    """What a control remembers before the first step, [M, B], in time's dtype.

    Args:
        control: The control.
        tableau: The method.
        t: Times, [B].
        y: State, [B, N].
    """
    if isinstance(control, Adaptive):
        return control.blank(y[:, 0]).to(t.dtype)
    rest = torch.zeros_like(y)
    step = Step(t, t, y, y, rest[:, :1], (rest,) * tableau.stages)
    memory = control.judge(tableau, step, torch.ones_like(t)).memory
    return t.new_ones((0, len(t)) if memory is None else memory.shape)


def _hashable(value: object) -> object:
    if isinstance(value, tuple | list):
        return tuple([_hashable(item) for item in cast("Sequence[object]", value)])
    if isinstance(value, slice):
        return (value.start, value.stop)
    if value.__hash__ is None:
        raise Unsupported(
            "backend 'compiled' cannot tell when a control changes that keeps a "
            f"{type(value).__name__}. Keep numbers and tuples in it, or use backend='native'."
        )
    return value


def judge(
    control: Control, tableau: Tableau, step: Step, size: Tensor, memory: Tensor
) -> tuple[Verdict, Tensor]:
    """What a control says of a step, and what it then remembers, [M, B].

    Args:
        control: The control.
        tableau: The method.
        step: The step.
        size: Its size, [B].
        memory: What it remembers, [M, B], as `memory_before` begins it.
    """
    if not len(memory):
        return control.judge(tableau, step, size), memory
    verdict = control.judge(tableau, step, size, memory.to(step.y0.dtype))
    if verdict.memory is None or verdict.memory.shape != memory.shape:
        raise Unsupported(
            f"backend 'compiled' needs a control that remembers [M, B] numbers after every step, "
            f"got {type(control).__name__}, which does not. Use backend='native'."
        )
    return verdict, verdict.memory.to(memory.dtype)
