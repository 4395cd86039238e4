"""How every vector field must behave: one function for each property, one example at a time.

Each returns what is wrong at an example, or None. What it raises counts as wrong too.
"""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ctflow.state import Layout, leaves_of, map_leaves
from ctflow.testing.examples import Case
from ctflow.testing.subject import Subject, difference, flat, named_tensors, rounding

__all__ = ["inputs", "new", "no_grad", "repeatable", "stateless", "transforms"]


def inputs(subject: Subject, case: Case) -> str | None:
    """`t`, `y` and `args` are left as they were."""
    given = Case(case.t.clone(), map_leaves(lambda leaf: leaf.detach().clone(), case.y))
    args = map_leaves(lambda x: x, subject.args)  # containers that can be spoilt
    kept, arguments = leaves_of(given.y), leaves_of(args)
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    before = [x.detach().clone() for x in tensors]
    with torch.no_grad():
        try:
            replace(subject, args=args).returned(given.t, given.y)
        except Exception:  # `no_grad` tells of it
            return None
        pairs = list(zip(tensors, before, strict=True))
        changed = [difference(flat(x), flat(old)) for x, old in pairs]
        for x, old in pairs:
            x.copy_(old)  # for the properties that are still to be looked at
    if not _same(leaves_of(given.y), kept):
        return "it put something else into the container `y`"
    if difference(flat(given.y), flat(case.y)):
        return "it changed `y` in place"
    if difference(given.t.reshape(-1), case.t.reshape(-1)):
        return "it changed `t` in place"
    if not _same(leaves_of(args), arguments):
        return "it put something else into the container `args`"
    return "it changed `args` in place" if any(changed) else None


def _same(now: list[object], before: list[object]) -> bool:
    return len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))


def new(subject: Subject, case: Case) -> str | None:
    """What was returned is not overwritten later."""
    with torch.no_grad():
        first = subject.returned(case.t.clone(), map_leaves(torch.clone, case.y))
        kept = flat(first).clone()
        other = map_leaves(lambda leaf: 0.5 * leaf + 0.1, case.y)
        subject.returned(case.t.clone(), other)
        if difference(flat(first), kept):
            return "the second call overwrote what the first had returned"
    return None


def repeatable(subject: Subject, case: Case) -> str | None:
    """Two calls agree, and nothing is drawn at random."""
    first, before = subject.value(case), _generators(case)
    gap = difference(first, subject.value(case))
    if gap > rounding(first):
        return f"two calls with the same `t` and `y` differ by {gap:.2g} of their size"
    now = _generators(case)
    used = [name for name, state in before.items() if state != now[name]]
    return f"a call drew random numbers (of {', '.join(used)})" if used else None


def _generators(case: Case) -> dict[str, object]:
    """Where the global generators of random numbers stand."""
    numpy = np.random.get_state(legacy=False)
    found: dict[str, object] = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "Python": random.getstate(),
        "NumPy": pickle.dumps(numpy),
    }
    if case.t.is_cuda:
        found["CUDA"] = torch.cuda.get_rng_state(case.t.device).numpy().tobytes()
    return found


def stateless(subject: Subject, case: Case) -> str | None:
    """A call changes no tensor of the field, and later calls do not depend on it."""
    floating = [(name, x) for name, x in named_tensors(subject.f) if x.is_floating_point()]
    before = [flat(x.detach()).clone() for _, x in floating]
    value = subject.value(case)
    changed = [
        name
        for (name, x), old in zip(floating, before, strict=True)
        if difference(flat(x.detach()), old)
    ]
    if changed:
        return f"a call changed {', '.join(changed)}"
    if subject.untouched is None:
        return None
    try:
        alone = replace(subject, f=copy.deepcopy(subject.untouched)).value(case)
    except Exception:  # a copy that does not work says nothing
        return None
    gap = difference(value, alone)
    if gap > rounding(value):
        return f"what it kept of earlier calls changes its values, by {gap:.2g} of their size"
    return None


def no_grad(subject: Subject, case: Case) -> str | None:
    """The same values with gradients off."""
    expected = subject.value(case)
    with torch.no_grad():
        found = flat(subject(case.t, case.y))
    gap = difference(found, expected)
    return (
        f"values with and without gradients differ by {gap:.2g}" if gap > rounding(found) else None
    )


def transforms(subject: Subject, case: Case) -> str | None:
    """The same values under `torch.func`, and a derivative."""
    layout = Layout.of(case.y, per_sample=False)

    def of_vector(y: Tensor) -> Tensor:
        return layout.pack(subject(case.t, layout.unpack(y)))

    y = layout.pack(map_leaves(lambda leaf: leaf.detach().clone(), case.y))
    value, back = cast("tuple[Tensor, Callable[..., object]]", torch.func.vjp(of_vector, y))
    back(torch.ones_like(value))
    gap = difference(value.detach().reshape(-1), subject.value(case))
    return f"values under torch.func differ by {gap:.2g}" if gap > rounding(value) else None
