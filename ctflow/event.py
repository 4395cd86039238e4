"""Events: where a function of the state becomes zero, what happens then, and what was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from ctflow.errors import InvalidProblem

__all__ = ["Event", "EventRecord", "checked_events"]


@dataclass(frozen=True, eq=False)
class Event:
    """Something that happens where  g(t, y(t)) = 0.

    At the zero t* of g along the solution the state may change at once, y+ = change(t*, y-), and
    the solve goes on from there, or stops. Time and state are differentiable with respect to all
    that the solution, g and the change depend on, by the implicit function theorem:

        dt* = -(dg/dp dp + dg/dy dy-) / (dg/dt + dg/dy f).

    A g that is zero at the start, or behind a change, does not fire there.

    Args:
        fn: `fn(t, y)`, or `fn(t, y, args)` where the problem has `args`: g as one real number,
            0-dim; under per-sample steps one for each sample, [B], of that sample alone. `t` and
            `y` arrive as `f` gets them. Continuous, with a derivative; nothing that it reads has
            to be declared.
        direction: +1: fires only where g becomes positive on the way of the solve; -1: only where
            it becomes negative; 0: either.
        terminal: True stops the solve of a sample at the first such event, n at the n-th, False
            at none.
        change: `change(t, y)`, or `change(t, y, args)`: the state right after, with the structure
            of `y`. None leaves the state as it is. Under per-sample steps a function of each
            sample by itself, used where the event happened.

    Raises:
        InvalidProblem: For a direction or a `terminal` that means nothing.

    Source:
        Chen, Amos, Nickel 2021 (arXiv 2011.03902), eq. 8; Hairer, Norsett, Wanner, Solving Ordinary
        Differential Equations I, 2nd ed., section II.6 (zeros of the continuous output).

    Example:
        >>> import torch
        >>> floor = Event(lambda t, y: y[0], direction=-1, terminal=3,
        ...               change=lambda t, y: y * torch.tensor([1.0, -0.8]))
        >>> floor.limit
        3
    """

    fn: Callable[..., Tensor]
    direction: int = 0
    terminal: bool | int = True
    change: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        known = isinstance(self.direction, int) and not isinstance(self.direction, bool)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not known or self.direction not in (-1, 0, 1):
            raise InvalidProblem(
                f"`direction` of an Event must be -1, 0 or 1, got {self.direction!r}. Take -1 for "
                "zeros where the function falls, 1 where it rises."
            )
        if not isinstance(self.terminal, int) or self.terminal < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidProblem(
                f"`terminal` of an Event must be True, False or a number of events, got "
                f"{self.terminal!r}. Write terminal=3 to stop at the third."
            )

    @property
    def limit(self) -> int:
        """Number of such events at which a sample stops; 0 for none."""
        return int(self.terminal)


@dataclass(frozen=True, eq=False)
class EventRecord:
    """Every event of a solve in order, and where each sample ended.

    K is the largest number of events of any sample; shorter rows are filled with NaN (`which` with
    -1, `mask` with False). Under shared steps there is one sample, and no dimension B.

    Args:
        t: Times of the events, [K] or [B, K], in time's own dtype; differentiable.
        y: State right before each: the structure of `y0`, every leaf with K as a new first
            dimension.
        y_after: State right after each; equal to `y` where nothing changes it.
        which: Number of the event in the problem's list, int64 [K] or [B, K].
        mask: Which entries are events, bool [K] or [B, K].
        t_end: Where each sample's solve ended, 0-dim or [B]: its terminal event, or the last output
            time. NaN for a sample that failed.
        y_end: State there, before a change by a terminal event: the structure of `y0`.
        ended_by: Number of the terminal event that ended it, int64 0-dim or [B]; -1 where none did:
            the sample reached the last output time, or failed, which `Solution.status` tells.
    """

    t: Tensor
    y: Any
    y_after: Any
    which: Tensor
    mask: Tensor
    t_end: Tensor
    y_end: Any
    ended_by: Tensor

    @property
    def counts(self) -> Tensor:
        """Number of events of each sample, int64, 0-dim or [B]."""
        return self.mask.sum(dim=-1)


def checked_events(event: object) -> tuple[Event, ...]:
    """One event or several as a tuple; () for None.

    Raises:
        InvalidProblem: If it is something else.
    """
    if event is None:
        return ()
    if isinstance(event, Event):
        return (event,)
    events = tuple(cast("Sequence[object]", event)) if isinstance(event, Sequence) else (event,)
    for i, one in enumerate(events):
        if not isinstance(one, Event):
            raise InvalidProblem(
                f"`event` must be an Event or a sequence of them, got {type(one).__name__} at "
                f"index {i}. Write Event(fn, ...)."
            )
    if not events:
        raise InvalidProblem("`event` must hold an event, got none. Leave it out.")
    return tuple(one for one in events if isinstance(one, Event))
