"""What every vector field must hold to: one function for each property, one example at a time.

Each returns what is wrong at an example, or None. What it raises counts as wrong too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from ctflow.backends.captures import pull
from ctflow.state import Layout, leaves_of, map_leaves
from ctflow.testing.derivatives import derivative
from ctflow.testing.examples import Case
from ctflow.testing.subject import (
    Subject,
    difference,
    flat,
    fresh,
    named_tensors,
    rows,
    size_of,
)

__all__ = ["PROPERTIES", "Property"]

_ROUNDING = 1e3
"""Units in the last place of the largest number by which two ways of summing may differ."""


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


def _structure(subject: Subject, case: Case) -> str | None:
    with torch.enable_grad():
        subject(case.t, fresh(case.y))  # raises, and says what differs
    return None


def _inputs(subject: Subject, case: Case) -> str | None:
    given = Case(case.t.clone(), map_leaves(lambda leaf: leaf.detach().clone(), case.y))
    arguments = [x for x in leaves_of(subject.args) if isinstance(x, Tensor)]
    before = [x.detach().clone() for x in arguments]
    kept = leaves_of(given.y)
    with torch.no_grad():
        try:
            subject.returned(given.t, given.y)
        except Exception:  # `no_grad` tells of it
            return None
        pairs = list(zip(arguments, before, strict=True))
        changed = [difference(flat(x), flat(old)) for x, old in pairs]
        for x, old in pairs:
            x.copy_(old)  # for the properties that are still to be looked at
    now = leaves_of(given.y)
    if len(now) != len(kept) or any(a is not b for a, b in zip(now, kept, strict=True)):
        return "it put something else into the container `y`"
    if difference(flat(given.y), flat(case.y)):
        return "it changed `y` in place"
    if difference(given.t.reshape(-1), case.t.reshape(-1)):
        return "it changed `t` in place"
    return "it changed `args` in place" if any(changed) else None


def _fresh(subject: Subject, case: Case) -> str | None:
    with torch.no_grad():
        first = subject.returned(case.t.clone(), map_leaves(torch.clone, case.y))
        kept = flat(first).clone()
        other = map_leaves(lambda leaf: 0.5 * leaf + 0.1, case.y)
        subject.returned(case.t.clone(), other)
        if difference(flat(first), kept):
            return "the second call overwrote what the first had returned"
    return None


def _repeatable(subject: Subject, case: Case) -> str | None:
    first, second = subject.value(case), subject.value(case)
    gap = difference(first, second)
    if gap > _tolerance(first):
        return f"two calls with the same `t` and `y` differ by {gap:.2g} of their size"
    return None


def _stateless(subject: Subject, case: Case) -> str | None:
    random = torch.get_rng_state()
    floating = [(name, x) for name, x in named_tensors(subject.f) if x.is_floating_point()]
    before = [flat(x.detach()).clone() for _, x in floating]
    subject.value(case)
    changed = [
        name
        for (name, x), old in zip(floating, before, strict=True)
        if difference(flat(x.detach()), old)
    ]
    if changed:
        return f"a call changed {', '.join(changed)}"
    return None if torch.equal(random, torch.get_rng_state()) else "a call drew random numbers"


def _batch(subject: Subject, case: Case) -> str | None:
    whole = map_leaves(lambda leaf: leaf.clone(), case.y)
    n = leaves_of(whole)[0].shape[0]
    if n < 2:
        return None
    together = map_leaves(torch.detach, subject(case.t, whole))
    size = size_of(flat(together))
    for i in sorted({0, 1, n // 2, n - 1}):
        sample = Case(case.t, rows(case.y, i, i + 1))
        wanted = flat(rows(together, i, i + 1))
        alone = _alone(subject, sample, i, n, wanted)
        gap = float((alone - wanted).abs().amax()) / size
        if gap > _tolerance(alone):
            return f"sample {i} alone and in its batch of {n} differ by {gap:.2g} of their size"
    return None


def _alone(subject: Subject, sample: Case, i: int, n: int, wanted: Tensor) -> Tensor:
    """The field at one sample, with the whole of `args` or its own row of them: as it fits best."""
    if not any(_has_rows(x, n) for x in leaves_of(subject.args)):
        return subject.value(sample)
    own = map_leaves(lambda x: x[i : i + 1] if _has_rows(x, n) else x, subject.args)
    found: list[Tensor] = []
    for args in (own, subject.args):
        with suppress(Exception):  # of the wrong size, perhaps
            found.append(replace(subject, args=args).value(sample))
    if not found:
        return subject.value(sample)
    return min(found, key=lambda value: difference(value, wanted))


def _has_rows(x: object, n: int) -> bool:
    """Whether an argument may have a row for each of n samples."""
    return isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == n


def _time(subject: Subject, case: Case) -> str | None:
    first: Tensor = leaves_of(case.y)[0]
    n = first.shape[0]
    column = (n,) + (1,) * (first.dim() - 1)
    scalar = subject.value(case)
    same = subject.value(Case(case.t.expand(column), case.y))
    gap = difference(scalar, same)
    if gap > _tolerance(scalar):
        return f"`t` as 0-dim and as {list(column)} give values that differ by {gap:.2g}"
    ends = torch.linspace(subject.box.t0, subject.box.t1, n, dtype=first.dtype, device=first.device)
    with torch.no_grad():
        together = subject(ends.reshape(column), case.y)
        last = rows(subject(ends[-1], case.y), n - 1, n)
    gap = difference(flat(rows(together, n - 1, n)), flat(last))
    if gap > _tolerance(scalar):
        return f"with a time for each sample, the last one does not see its own (off by {gap:.2g})"
    return None


def _no_grad(subject: Subject, case: Case) -> str | None:
    expected = subject.value(case)
    with torch.no_grad():
        found = flat(subject(case.t, case.y))
    gap = difference(found, expected)
    if gap > _tolerance(found):
        return f"values with and without gradients differ by {gap:.2g}"
    return None


def _transforms(subject: Subject, case: Case) -> str | None:
    layout = Layout.of(case.y, per_sample=False)

    def of_vector(y: Tensor) -> Tensor:
        return layout.pack(subject(case.t, layout.unpack(y)))

    y = layout.pack(map_leaves(lambda leaf: leaf.detach().clone(), case.y))
    value, back = cast("tuple[Tensor, Callable[..., object]]", torch.func.vjp(of_vector, y))
    back(torch.ones_like(value))
    gap = difference(value.detach().reshape(-1), subject.value(case))
    return f"values under torch.func differ by {gap:.2g}" if gap > _tolerance(value) else None


def _finite(subject: Subject, case: Case) -> str | None:
    y = fresh(case.y)
    with torch.enable_grad():
        dy = flat(subject(case.t, y))
        bad = ~torch.isfinite(dy)
        if bool(bad.any()):
            first = float(dy.detach()[bad][0])
            return f"it returned {first} ({int(bad.sum())} of {dy.numel()} numbers)"
        if not dy.requires_grad:
            return None
        grads = pull((dy,), leaves_of(y), (torch.ones_like(dy),), keep=True)
    found = [g for g in grads if g is not None]
    bad = torch.cat([~torch.isfinite(g).reshape(-1) for g in found]) if found else torch.zeros(0)
    return "its derivative with respect to `y` is not finite" if bool(bad.any()) else None


def _tolerance(value: Tensor) -> float:
    return _ROUNDING * torch.finfo(value.dtype).eps


PROPERTIES = (
    Property(
        "structure",
        _structure,
        "a derivative is missing for a leaf, a layer has another width than the state, or its "
        "parameters have another dtype or device than `y`.",
        after=(),
    ),
    Property(
        "inputs",
        _inputs,
        "an in-place operation on what was handed in (`y.mul_(2)`, `y[..., 0] = 0`). Write "
        "`y * 2`, or work on a clone.",
    ),
    Property(
        "repeatable",
        _repeatable,
        "dropout or another source of noise: an adaptive solver then sees an error that no step "
        "size removes. Call `.eval()`, or draw the noise once per solve and pass it as `args`.",
    ),
    Property(
        "stateless",
        _stateless,
        "batch norm in training mode updates its running statistics at every evaluation, rejected "
        "steps included; use group or layer norm, or call `.eval()`. Draw random numbers once per "
        "solve and pass them as `args`.",
        after=("structure", "repeatable"),
    ),
    Property(
        "no_grad",
        _no_grad,
        "`f` differentiates inside without `with torch.enable_grad():` (solvers call it with "
        "gradients off), or asks torch.is_grad_enabled().",
        after=("structure", "inputs", "repeatable"),
    ),
    Property(
        "fresh",
        _fresh,
        "the result is written into a buffer that is kept (`out=`, `copy_`). Return a new tensor.",
        after=("structure", "no_grad", "inputs"),
    ),
    Property(
        "batch",
        _batch,
        "batch norm in training mode, or a mean, sum or sort over dimension 0. Use group or layer "
        "norm; if dimension 0 is no batch, say batched=False.",
        batched=True,
        after=("structure", "inputs", "repeatable", "no_grad"),
    ),
    Property(
        "time",
        _time,
        "`t` is used as a Python number (`float(t)`, `t.item()`, `if t > 1`), or is reshaped as if "
        "it were 0-dim. Use torch.where, and ctflow.state.expand_time for leaves of other ranks.",
        after=("structure", "inputs", "repeatable", "no_grad"),
        batched=True,
    ),
    Property(
        "transforms",
        _transforms,
        "`requires_grad_` or autograd.grad inside `f` (use torch.func.grad or torch.func.jvp), an "
        "autograd.Function without setup_context, torch.utils.checkpoint, NumPy, or a change in "
        "place.",
        after=("structure", "inputs", "repeatable", "stateless", "no_grad"),
    ),
    Property(
        "finite",
        _finite,
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
