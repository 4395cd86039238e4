"""What an event function does first in a step: a zero, a contact, or nothing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ctflow.backends.events import Look
from ctflow.backends.native.event_path import PLACES, EventPath

__all__ = ["BAD", "GRAZE", "NONE", "STUCK", "ZERO", "Found", "Known", "search"]

NONE, ZERO, GRAZE, BAD, STUCK = range(5)


class Found(NamedTuple):
    """What one event function does first in a step: everything [B].

    Attributes:
        kind: Nothing, a zero, a contact, a value that is not finite, or no way from an event.
        s: Where, as a fraction of the step; infinite for nothing.
        change: Sum of |g| at both ends of its bracket.
        width: Width of the bracket.
        steepest: Largest |slope| at the ends of the bracket.
        bend: Difference of the slopes at the ends, positive where g turns back from zero.
    """

    kind: Tensor
    s: Tensor
    change: Tensor
    width: Tensor
    steepest: Tensor
    bend: Tensor


class Bracket(NamedTuple):
    """A part of a step.

    Attributes:
        ends: Fractions of the step at its ends, [B] each.
        looks: The function there.
        side: Sign of it up to there, [B].
    """

    ends: tuple[Tensor, Tensor]
    looks: tuple[Look, Look]
    side: Tensor


class Known(NamedTuple):
    """What is known of an event function where a step begins.

    Attributes:
        j: Its number.
        direction: Of the zeros that count, -1, 0 or 1.
        side: Sign of it up to there, [B]; 0 where it is not known.
        look: It there.
        waits: Whether its event is due there, another one having come first, bool [B].
        began: Whether its event has just happened there, bool [B].
    """

    j: int
    direction: int
    side: Tensor
    look: Look
    waits: Tensor
    began: Tensor

    def fires(self, side: Tensor) -> Tensor:
        """Whether a zero counts that it comes to from this side, bool [B]."""
        if self.direction == 0:
            return torch.ones_like(side, dtype=torch.bool)
        return side == -self.direction


def search(known: Known, path: EventPath, rows: Tensor, end: Look) -> tuple[Found, Tensor]:
    """What an event function does first in a step.

    Args:
        known: The function, and what is known of it.
        path: The step.
        rows: Samples that are of interest, bool [B].
        end: The function at the end of the step.

    Returns:
        What it does first, and its side at the end of the step, [B].
    """
    j, side, left = known.j, known.side, known.look
    found, s0 = _nothing(left.g, path.step.t0), torch.zeros_like(path.step.t0)
    for place in PLACES:
        s1 = torch.full_like(s0, place)
        right = end if place == 1.0 else path.look(j, s1)
        ahead = rows & (found.kind == NONE)
        bad = ahead & ~torch.isfinite(left.g + right.g + right.slope)
        part = Bracket((s0, s1), (left, right), side)
        found = _merge(found, bad, BAD, s1, part)
        ahead = ahead & ~bad & (side != 0)
        crossed = ahead & (side * right.g < 0)
        # A zero at the very end is not left to the rounding of its sign.
        here = (right.g.abs() <= right.noise) & (side * right.slope < -right.noise)
        crossed = crossed | (ahead & here & (place == 1.0))
        dips = ahead & ~crossed & (side * left.slope < 0) & (side * right.slope >= 0)
        if bool(dips.any()):
            found = _dip(known, path, found, dips, part)
        wanted = crossed & known.fires(side)
        if bool(wanted.any()):
            found = _zero(known, path, found, wanted, part)
        side = torch.where(crossed & ~wanted, -side, side)
        clear = right.g.abs() > right.noise
        side = torch.where((side == 0) & clear, torch.sign(right.g), side)
        s0, left = s1, right
    return found, side


def _zero(known: Known, path: EventPath, found: Found, wanted: Tensor, part: Bracket) -> Found:
    """Where function j changes its sign; a zero at the start is left before it is come to.

    If it is left by no more than rounding, it is not left.
    """
    ends, looks, side = part
    left, right = looks
    back = wanted & (side * left.g <= 0) & ~known.waits
    if bool(back.any()):
        turn = torch.where(back, path.turn(known.j, back, -side, *ends), ends[0])
        left = path.look(known.j, turn)
        ends, looks = (turn, ends[1]), (left, right)
    s = path.zero(known.j, wanted, side, ends, looks)
    nowhere, part = back & (side * left.g <= left.noise), Bracket(ends, looks, side)
    found = _merge(found, wanted & ~nowhere, ZERO, s, part)
    happened = nowhere & known.began
    found = _merge(found, happened, STUCK, s, part)
    return _merge(found, nowhere & ~happened, GRAZE, s, part)


def _dip(known: Known, path: EventPath, found: Found, dips: Tensor, part: Bracket) -> Found:
    """Where function j turns back on its way to zero: two zeros, a contact, or neither."""
    ends, (left, right), side = part
    s = path.turn(known.j, dips, side, *ends)
    turn = path.look(known.j, s)
    touches = dips & (turn.g.abs() <= turn.doubt)
    found = _merge(found, touches, GRAZE, s, part)
    through = dips & ~touches & (side * turn.g < 0)
    if bool(through.any()):
        into = known.fires(side)
        lo, hi = torch.where(into, ends[0], s), torch.where(into, s, ends[1])
        near = Look(*(torch.where(into, a, b) for a, b in zip(left, turn, strict=True)))
        far = Look(*(torch.where(into, a, b) for a, b in zip(turn, right, strict=True)))
        own = torch.where(into, side, -side)
        part = Bracket((lo, hi), (near, far), own)
        found = _merge(found, through, ZERO, path.zero(known.j, through, own, *part[:2]), part)
    return found


def _nothing(g: Tensor, t: Tensor) -> Found:
    """Nothing found in any sample; values have the dtype of g, places that of t."""
    none, far = torch.zeros_like(g), torch.full_like(t, torch.inf)
    return Found(torch.zeros_like(g, dtype=torch.int64), far, none, far, none, none)


def _merge(found: Found, rows: Tensor, kind: int, s: Tensor, part: Bracket) -> Found:
    """What was found, with a find of some samples."""
    ends, (left, right), side = part
    new = Found(
        torch.full_like(found.kind, kind),
        s.to(found.s.dtype),
        left.g.abs() + right.g.abs(),
        (ends[1] - ends[0]).to(found.s.dtype),
        torch.maximum(left.slope.abs(), right.slope.abs()),
        side * (right.slope - left.slope),
    )
    return Found(*(torch.where(rows, a, b) for a, b in zip(new, found, strict=True)))
