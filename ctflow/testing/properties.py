"""The properties that every vector field must have, and the usual cause where one is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ctflow.testing import conduct_properties as conduct
from ctflow.testing import value_properties as values
from ctflow.testing.derivatives import derivative
from ctflow.testing.examples import Case
from ctflow.testing.subject import Subject

__all__ = ["PROPERTIES", "Property"]


@dataclass(frozen=True)
class Property:
    """One property of a field.

    Args:
        name: Its name in reports.
        wrong: What is wrong at an example, or None.
        cause: The usual cause, and what to do.
        after: Properties without which this one says nothing.
        batched: Whether it speaks of a batch of independent samples.
    """

    name: str
    wrong: Callable[[Subject, Case], str | None]
    cause: str
    after: tuple[str, ...] = ("structure",)
    batched: bool = False


PROPERTIES = (
    Property(
        "structure",
        values.structure,
        "a derivative is missing for a leaf, a layer has another width than the state, or its "
        "parameters have another dtype or device than `y`. Where it raised an error of its own: a "
        "guard against states that a solver may try (else say a smaller `box`).",
        after=(),
    ),
    Property(
        "inputs",
        conduct.inputs,
        "an in-place operation on what was handed in (`y.mul_(2)`, `y[..., 0] = 0`). Write "
        "`y * 2`, or work on a clone.",
    ),
    Property(
        "repeatable",
        conduct.repeatable,
        "dropout or another source of noise: an adaptive solver then sees an error that no step "
        "size removes. Call `.eval()`, or draw the noise once per solve and pass it as `args`.",
        after=("structure", "inputs"),
    ),
    Property(
        "stateless",
        conduct.stateless,
        "batch norm in training mode updates its running statistics at every evaluation, rejected "
        "steps included; use group or layer norm, or call `.eval()`. Or something is computed or "
        "drawn at the first call and kept: do that before the solve, and pass it as `args`.",
        after=("structure", "repeatable"),
    ),
    Property(
        "no_grad",
        conduct.no_grad,
        "`f` differentiates inside without `with torch.enable_grad():` (solvers call it with "
        "gradients off), or asks torch.is_grad_enabled().",
        after=("structure", "inputs", "repeatable"),
    ),
    Property(
        "fresh",
        conduct.new,
        "the result is written into a buffer that is kept (`out=`, `copy_`). Return a new tensor.",
        after=("structure", "no_grad", "inputs"),
    ),
    Property(
        "batch",
        values.batch,
        "batch norm in training mode, or a mean, sum or sort over dimension 0. Use group or layer "
        "norm; if dimension 0 is no batch, say batched=False.",
        batched=True,
        after=("structure", "inputs", "repeatable", "no_grad"),
    ),
    Property(
        "time",
        values.time,
        "`t` is used as a Python number (`float(t)`, `t.item()`, `if t > 1`), or is reshaped as if "
        "it were 0-dim. Use torch.where, and ctflow.state.expand_time for leaves of other ranks.",
        after=("structure", "inputs", "repeatable", "no_grad"),
        batched=True,
    ),
    Property(
        "transforms",
        conduct.transforms,
        "`requires_grad_` or autograd.grad inside `f` (use torch.func.grad or torch.func.jvp), an "
        "autograd.Function without setup_context, torch.utils.checkpoint, torch.compile (check the "
        "module as it was before), NumPy, or a change in place.",
        after=("structure", "inputs", "repeatable", "stateless", "no_grad"),
    ),
    Property(
        "finite",
        values.finite,
        "a root, logarithm, power or quotient outside its domain, or an overflow. Trial states of "
        "rejected steps lie outside the data: make `f` finite there, or say a smaller `box`.",
    ),
    Property(
        "derivative",
        derivative,
        "`.detach()`, `.data`, NumPy or torch.no_grad inside `f`, or a custom autograd.Function "
        "with a wrong backward.",
        after=("structure", "inputs", "fresh", "repeatable", "finite"),
    ),
)
"""The properties that are looked at example by example, in their order."""
