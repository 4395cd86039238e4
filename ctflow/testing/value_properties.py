"""What every vector field must return: one function for each property, one example at a time.

Each returns what is wrong at an example, or None. What it raises counts as wrong too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from ctflow.backends.captures import pull
from ctflow.state import leaves_of, map_leaves
from ctflow.testing.examples import Case
from ctflow.testing.subject import Subject, difference, flat, fresh, rounding, rows, said, size_of

__all__ = ["batch", "finite", "structure", "time"]


def structure(subject: Subject, case: Case) -> str | None:
    """Structure, shapes, dtype and device of the state come back."""
    with torch.enable_grad():
        subject(case.t, fresh(case.y))  # raises, and says what differs
    return None


def finite(subject: Subject, case: Case) -> str | None:
    """Values and derivatives are numbers."""
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


def batch(subject: Subject, case: Case) -> str | None:
    """A sample keeps its derivative whoever else is in the batch."""
    n = leaves_of(case.y)[0].shape[0]
    if n < 2:
        return None
    together = map_leaves(torch.detach, subject(case.t, map_leaves(torch.clone, case.y)))
    for chosen in _parts(n):
        wanted = rows(together, chosen)
        name = f"sample {chosen[0]} alone"
        try:
            found = _apart(subject, case, chosen, n, flat(wanted))
        except Exception as error:  # whatever the user's code raises is the finding
            if len(chosen) > 1:
                name = f"a part of the batch, samples {', '.join(map(str, chosen))},"
            return f"{name} cannot be evaluated: {said(error)}"
        gaps = _of_each(found, wanted) / size_of(flat(together), flat(found))
        worst = int(gaps.argmax())
        if float(gaps[worst]) > rounding(flat(found)):
            if len(chosen) > 1:
                name = f"sample {chosen[worst]} with a part of the others"
            return (
                f"{name} and in its batch of {n} differ by {float(gaps[worst]):.2g} of their size"
            )
    return None


def _parts(n: int) -> Iterator[list[int]]:
    """The first and last sample alone; and for any two samples, a part with one and not the other.

    Two indices differ in a binary digit.
    """
    yield [0]
    yield [n - 1]
    for digit in range((n - 1).bit_length()):
        for value in (0, 1):
            part = [i for i in range(n) if i >> digit & 1 == value]
            if len(part) > 1 or part[0] not in (0, n - 1):
                yield part


def _of_each(found: object, wanted: object) -> Tensor:
    """The largest difference of each sample."""
    pairs = zip(leaves_of(found), leaves_of(wanted), strict=True)
    return torch.stack([(a - b).abs().flatten(1).amax(1) for a, b in pairs]).amax(0)


def _apart(subject: Subject, case: Case, chosen: list[int], n: int, wanted: Tensor) -> object:
    """The field at some samples, with the whole of `args` or their rows of it: what fits best."""
    part = Case(case.t, rows(case.y, chosen))

    def under(args: object) -> object:
        with torch.enable_grad():
            return map_leaves(torch.detach, replace(subject, args=args)(part.t, fresh(part.y)))

    if not any(_has_rows(x, n) for x in leaves_of(subject.args)):
        return under(subject.args)
    own = map_leaves(lambda x: x[chosen] if _has_rows(x, n) else x, subject.args)
    found: list[object] = []
    for args in (own, subject.args):
        with suppress(Exception):  # of the wrong size, perhaps
            found.append(under(args))
    if not found:
        return under(own)
    return min(found, key=lambda dy: difference(flat(dy), wanted))


def _has_rows(x: object, n: int) -> bool:
    """Whether an argument may have a row for each of n samples."""
    return isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == n


def time(subject: Subject, case: Case) -> str | None:
    """A time of no dimension, and one for each sample, mean the same."""
    first: Tensor = leaves_of(case.y)[0]
    n = first.shape[0]
    column = (n,) + (1,) * (first.dim() - 1)
    scalar = subject.value(case)
    same = subject.value(Case(case.t.expand(column), case.y))
    gap = difference(scalar, same)
    if gap > rounding(scalar):
        return f"`t` as 0-dim and as {list(column)} give values that differ by {gap:.2g}"
    ends = torch.linspace(subject.box.t0, subject.box.t1, n, dtype=first.dtype, device=first.device)
    with torch.no_grad():
        together = rows(subject(ends.reshape(column), case.y), [n - 1])
        last = rows(subject(ends[-1], case.y), [n - 1])
    gap = difference(flat(together), flat(last))
    if gap > rounding(scalar):
        return f"with a time for each sample, the last one does not see its own (off by {gap:.2g})"
    return None
