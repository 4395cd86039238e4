"""Machine code is not trusted: it is compared with the operations it was made of, once.

The compiler has turned loops into code with other values without a word: it freed a tensor at the
first turn of the loop that reads it in every turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ctflow.errors import Unsupported

__all__ = ["Looped", "check", "loop"]

_STEPS = 6  # of the trial
_ROUGH = 1e-2
_FLOOR = 1e-2  # of the largest, as which smaller ones are treated

Run = Callable[[list[Tensor]], Sequence[Tensor]]


class Looped(nn.Module):
    """A module that becomes a program: its forward takes and returns flat tensors."""

    def limited(self, inputs: Sequence[Tensor], n_steps: int) -> list[Tensor]:
        """The inputs with another limit of steps."""
        raise NotImplementedError


def loop(
    going: Callable[..., Tensor],
    step: Callable[..., tuple[Tensor, ...]],
    carry: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Repeat a step: as one operation where a program is made, else by Python."""
    if torch.compiler.is_compiling():
        return torch.while_loop(going, step, carry)
    while bool(going(*carry)):
        carry = step(*carry)
    return carry


def check(module: Looped, program: Run, inputs: Sequence[Tensor]) -> None:
    """Compare a program with its module, on the inputs of its first solve.

    Over a few steps they must agree to half the digits. Where they do not, because a decision stood
    on the edge or tolerances are as tight as rounding, the whole solves must agree roughly; in what
    they wrote down too, if they took as many steps.

    Raises:
        Unsupported: If they do not.

    Cost:
        A few steps, operator by operator; once for each program and process.
    """
    if _agree(module, program, module.limited(inputs, _STEPS), rough=False):
        return
    if _agree(module, program, inputs, rough=True):
        return
    raise Unsupported(
        "backend 'compiled' got machine code that gives other values than the operations of `f` "
        "(a fault of the compiler). Use backend='native'."
    )


def _agree(module: Looped, program: Run, inputs: Sequence[Tensor], rough: bool) -> bool:
    ours, theirs = [x.clone() for x in inputs], [x.clone() for x in inputs]
    with torch.no_grad():
        wanted: Any = module(*ours)
    wanted = [wanted] if isinstance(wanted, Tensor) else list(wanted)
    pairs = list(zip(wanted, program(theirs), strict=True))
    if not rough or all(torch.equal(x, y) for x, y in pairs if not x.is_floating_point()):
        pairs += (_written(*each) for each in zip(inputs, ours, theirs, strict=True))
    largest = max((_size(x) for x, _ in pairs), default=0.0)
    return all(_same(x, y, rough, largest) for x, y in pairs)


def _written(before: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What either wrote; the rest of a record may hold anything, and is left out."""
    changed = (x != before) | (y != before)
    return torch.where(changed, x, 0), torch.where(changed, y, 0)


def _size(x: Tensor) -> float:
    return float(_finite(x).norm()) if x.is_floating_point() else 0.0


def _finite(x: Tensor) -> Tensor:
    return torch.nan_to_num(x.double(), 0.0, 0.0, 0.0)


def _same(x: Tensor, y: Tensor, rough: bool, largest: float) -> bool:
    """Whether two tensors agree, to their own size or to rounding of the largest of all.

    A gradient that is zero but for rounding, as that of a bias before a normalisation, has no
    digits of its own.
    """
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    if not x.is_floating_point():
        return rough or torch.equal(x, y)
    if not torch.equal(x.isfinite(), y.isfinite()):
        return False
    share = _ROUGH if rough else torch.finfo(x.dtype).eps ** 0.5
    distance = float((_finite(x) - _finite(y)).norm())
    return distance <= share * max(_size(x), _FLOOR * largest)
