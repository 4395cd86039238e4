"""Where samples stand between the rounds of a solve through events, and what all rounds found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ctflow.backends.native.loop import Integration
from ctflow.event import EventRecord
from ctflow.solution import Counts, Stats, Status, Stop
from ctflow.state import Layout

__all__ = ["Hybrid", "Rows", "together"]


class Hybrid(NamedTuple):
    """What a solve through events found out.

    Attributes:
        out: States at the output times, [T, B, N].
        record: The events.
        status: `Status` of each sample, int64 [B].
        stops: Where failed samples stood.
        counts: What it cost.
        trace: Times after each step, [B] each.
        course: As in `Outcome`, of all stretches.
        unfinished: Where the backward pass of each stretch looks for `Stats`.
    """

    out: Tensor
    record: EventRecord
    status: Tensor
    stops: tuple[Stop, ...]
    counts: Counts
    trace: tuple[Tensor, ...]
    course: tuple[Tensor, Tensor, Tensor, Tensor] | None
    unfinished: list[list[Stats]]


@dataclass
class Rows:
    """Where every sample stands between two rounds, and what was found up to there.

    Attributes:
        t: Time, [B], with its history.
        y: State, [B, N], with its history.
        going: Who has not ended, bool [B].
        status: `Status`, int64 [B].
        side: Sign of each event function before t, [E, B]; 0 where it is not known.
        fired: Events that happened at t, bool [E, B].
        blur: How near zero rounding left their functions, [B].
        near: Up to where other functions may be from zero that may be zero at t too, [E, B].
        n_of: Number of each event, int64 [E, B].
        ended_by: Terminal event, int64 [B]; -1 for none.
        t_end: Where it ended, [B].
        y_end: State there, [B, N].
    """

    t: Tensor
    y: Tensor
    going: Tensor
    status: Tensor
    side: Tensor
    fired: Tensor
    blur: Tensor
    near: Tensor
    n_of: Tensor
    ended_by: Tensor
    t_end: Tensor
    y_end: Tensor
    n_f_evals: Tensor
    n_steps: Tensor
    n_rejected: Tensor
    stops: list[Stop] = field(default_factory=list[Stop])
    trace: list[Tensor] = field(default_factory=list[Tensor])
    found: list[tuple[Tensor, ...]] = field(default_factory=list[tuple[Tensor, ...]])
    places: list[Tensor] = field(default_factory=list[Tensor])
    values: list[Tensor] = field(default_factory=list[Tensor])
    courses: list[tuple[Tensor, ...]] = field(default_factory=list[tuple[Tensor, ...]])
    unfinished: list[list[Stats]] = field(default_factory=list[list[Stats]])

    @classmethod
    def at_start(cls, y0: Tensor, times: Tensor, n_events: int) -> Rows:
        """Every sample at its first time; one without an interval has ended."""
        batch = y0.shape[0]
        zeros = torch.zeros(batch, dtype=torch.int64, device=y0.device)
        none = zeros.expand(n_events, batch)
        t = times[:, 0]
        return cls(
            t, y0, times[:, -1].detach() != t.detach(), zeros, none.to(y0.dtype), none.bool(),
            zeros.to(y0.dtype), none.to(y0.dtype), none, zeros - 1, times[:, -1], y0,
            zeros, zeros, zeros, trace=[t.detach()],
        )  # fmt: skip

    @property
    def source(self) -> Tensor:
        """For each sample itself, or one that is on its way for one that failed, [B]."""
        own = torch.arange(len(self.going), device=self.going.device)
        return torch.where(self.status != 0, self.going.nonzero()[0, 0], own)

    def fail(self, who: Tensor, status: Status, t: Tensor) -> None:
        """Take samples out that cannot go on."""
        self.status = torch.where(who, int(status), self.status)
        self.going = self.going & ~who
        for b in who.nonzero().flatten().tolist():
            self.stops.append(Stop(b, float(t[b]), 0.0, True))


def together(rows: Rows, layout: Layout, y0: Tensor, plan: Integration) -> Hybrid:
    """Outputs and records of all rounds."""
    batch, n_times = plan.grid.shape
    start = torch.arange(batch, device=y0.device)
    blank = y0.new_full((n_times * batch, y0.shape[1]), torch.nan)
    places, values = torch.cat([start, *rows.places]), torch.cat([y0, *rows.values])
    out = blank.index_copy(0, places, values).reshape(n_times, batch, -1)
    ended = (rows.ended_by >= 0) | (plan.grid[:, 0] == plan.grid[:, -1])
    end = rows.t_end.detach().unsqueeze(1)
    behind = ended.unsqueeze(1) & ((plan.grid - end) * plan.span.direction.unsqueeze(1) > 0)
    at_rest = plan.grid[:, 0] == plan.grid[:, -1]
    out = torch.where((behind | at_rest.unsqueeze(1)).T.unsqueeze(2), rows.y_end, out)
    well = rows.status == 0
    y_end = torch.where((rows.ended_by >= 0).unsqueeze(1), rows.y_end, out[-1])
    t_end = torch.where(well, rows.t_end, torch.nan)
    y_end = torch.where(well.unsqueeze(1), y_end, torch.nan)
    if not bool(well.all()):  # a failed sample is a constant of the gradient
        out = torch.where(well.unsqueeze(1), out, out.detach())
    counts = Counts(
        *(
            n.cpu().clone()
            for n in (rows.n_f_evals, rows.n_steps, rows.n_steps - rows.n_rejected, rows.n_rejected)
        )
    )
    course = None
    if rows.courses:
        t0, t1, y, k = (torch.cat(column) for column in zip(*rows.courses, strict=True))
        course = (t0, t1, y, k)
    record = _record(rows, layout, well, t_end, y_end)
    return Hybrid(
        out, record, rows.status.cpu(), tuple(rows.stops), counts, tuple(rows.trace), course,
        rows.unfinished,
    )  # fmt: skip


def _record(rows: Rows, layout: Layout, well: Tensor, t_end: Tensor, y_end: Tensor) -> EventRecord:
    """The events of all rounds: a sample's k-th is that of round k."""
    batch, n = rows.y.shape
    if rows.found:
        t, y, after, which, mask = (torch.stack(x) for x in zip(*rows.found, strict=True))
    else:
        t, y = t_end.detach().new_empty(0, batch), rows.y.detach().new_empty(0, batch, n)
        after, which = y, rows.ended_by.new_empty(0, batch)
        mask = which.bool()
    t = torch.where(mask, torch.where(well, t, t.detach()), torch.nan)
    y, after = (
        torch.where(mask.unsqueeze(2), torch.where(well.unsqueeze(1), x, x.detach()), torch.nan)
        for x in (y, after)
    )
    which = torch.where(mask, which, -1)
    t, which, mask, ended = t.T, which.T, mask.T, rows.ended_by
    if not layout.per_sample:
        t, which, mask, t_end, ended = t[0], which[0], mask[0], t_end[0], ended[0]
    return EventRecord(
        t, layout.unpack(y), layout.unpack(after), which, mask, t_end, layout.unpack(y_end), ended
    )
