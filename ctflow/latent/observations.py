"""What was seen of a batch of series: values, times of their own, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ctflow.errors import InvalidProblem
from ctflow.latent.checks import check_tensors
from ctflow.state import widest

__all__ = ["Observations", "pad", "picked"]


@dataclass(frozen=True, eq=False)
class Observations:
    """Values x[b, i] of series b at times t[b, i], of which `mask` says what was seen.

    What is not seen is replaced by zeros at once, so that whatever stood there (NaN included)
    reaches no value and no gradient.

    Args:
        x: Values, [B, T, D], floating.
        t: Times, [T] for all series or [B, T] for each; strictly increasing over what was seen.
            Of the latter, those where nothing was seen may hold anything.
        mask: True where a value was seen: [B, T, D], or [B, T] for all features at once. None: all.

    Attributes:
        x: Values with zeros where nothing was seen, [B, T, D].
        t: Times in float64 (float32 where the device has no other), [T] or [B, T].
        mask: bool, [B, T, D].

    Raises:
        InvalidProblem: For shapes that do not fit, times out of order or repeated, a value or time
            that was seen and is not finite.

    Cost:
        A few passes over the data, and one wait for the device.

    Example:
        >>> x = torch.tensor([[[1.0], [2.0]], [[3.0], [torch.nan]]])
        >>> data = Observations(x, torch.tensor([0.0, 1.0]), ~x.isnan())
        >>> data.counts
        tensor([2, 1])
    """

    x: Tensor
    t: Tensor
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        """Check, and put zeros where nothing was seen."""
        check_tensors(x=self.x, t=self.t, **({} if self.mask is None else {"mask": self.mask}))
        _check_shapes(self.x, self.t, self.mask)
        mask = self.mask
        if mask is None:
            mask = torch.ones_like(self.x[:, :, 0], dtype=torch.bool)
        rows = mask if mask.dim() == 2 else mask.any(dim=2)
        mask = mask if mask.dim() == 3 else mask.unsqueeze(-1).expand_as(self.x)
        t = self.t.to(self.x.device, widest(self.x.device))
        if t.dim() == 2:
            t = torch.where(rows, t, 0.0)
        x = torch.where(mask, self.x, 0.0)
        _check_values(x, t)
        _check_order(t, rows)
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "t", t)
        object.__setattr__(self, "mask", mask)
        object.__setattr__(self, "rows", rows)

    @cached_property
    def even(self) -> bool:
        """Whether all series have as many times that hold anything."""
        return int(self.counts.min()) == self.order.shape[1]

    @property
    def seen(self) -> Tensor:
        """Which values were seen, bool [B, T, D]."""
        if self.mask is None:
            raise InvalidProblem("`mask` was removed, got None. Build new Observations.")
        return self.mask

    @cached_property
    def rows(self) -> Tensor:
        """Which times of each series hold anything, bool [B, T]."""
        return self.seen.any(dim=2)

    @cached_property
    def counts(self) -> Tensor:
        """Number of times of each series that hold anything, [B]."""
        return self.rows.sum(dim=1)

    @cached_property
    def order(self) -> Tensor:
        """Places of the times that hold anything, first to last: int64 [B, n], n = max counts.

        A series with fewer of them has zeros behind; `filled` says where.
        """
        series, places = self.rows.nonzero(as_tuple=True)
        n = max(int(self.counts.max()), 1)
        if len(places) == n * len(self.x):  # all have as many
            return places.view(-1, n)
        rank = self.rows.cumsum(dim=1)[series, places] - 1
        return places.new_zeros(len(self.x), n).index_put((series, rank), places)

    @property
    def filled(self) -> Tensor:
        """Which entries of `order` are places, bool [B, n]."""
        n = self.order.shape[1]
        return torch.arange(n, device=self.x.device) < self.counts.unsqueeze(1)

    @property
    def times(self) -> Tensor:
        """Times of each series, [B, T]."""
        return self.t.expand(self.x.shape[:2])

    def require_some(self) -> None:
        """Refuse a series of which nothing was seen.

        Raises:
            InvalidProblem: Naming the first such series.
        """
        empty = self.counts == 0
        if bool(empty.any()):
            raise InvalidProblem(
                f"`mask` must leave every series an observation, got none for sample "
                f"{int(empty.nonzero()[0])} ({int(empty.sum())} such). Drop these series: all that "
                "is known of them is the prior."
            )

    def require_from(self, t0: float) -> None:
        """Refuse what was seen before a time.

        Args:
            t0: That of the latent state.

        Raises:
            InvalidProblem: Naming the first such observation.
        """
        if not bool(self.t.min() < t0):
            return
        early = self.rows & (self.times < t0)
        if bool(early.any()):
            b, i = early.nonzero()[0].tolist()
            raise InvalidProblem(
                f"observations must lie at or after the latent state's time {t0:g}, got t="
                f"{self.times[b, i].item():g} in sample {b}. Build the model with an earlier t0."
            )

    def packed(self) -> Observations:
        """The same observations moved to the front of each series: [B, n, D], n = max counts.

        Cost:
            A gather of each part; nothing is checked again.
        """
        filled, x = self.filled, picked(self.x, self.order)
        t = self.times.gather(1, self.order)
        if self.seen.stride(2) == 0:  # one flag for all features
            seen = filled.unsqueeze(-1).expand_as(x)
        else:
            seen = picked(self.seen, self.order) & filled.unsqueeze(-1)
        if not self.even:
            x, t = torch.where(seen, x, 0.0), torch.where(filled, t, 0.0)
        made = object.__new__(Observations)
        for name, value in (("x", x), ("t", t), ("mask", seen)):
            object.__setattr__(made, name, value)
        return made


def picked(values: Tensor, places: Tensor) -> Tensor:
    """Rows of data [B, T, K] at places int64 [B, n] of their series, [B, n, K].

    A gather whose way forward is the faster one; its way back is not, and data have none.
    """
    first = torch.arange(len(places), device=places.device).unsqueeze(1) * values.shape[1]
    return values.flatten(0, 1).index_select(0, (places + first).flatten()).view(*places.shape, -1)


def pad(times: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Ragged series side by side.

    Args:
        times: Times of each series, [n_b].
        values: Values of each series, [n_b, D].

    Returns:
        x [B, n, D], t [B, n] and mask [B, n], with n the largest n_b: the arguments of
        `Observations` and of a model.

    Raises:
        InvalidProblem: If a series has not one time for each value, has other features or another
            dtype than the first, or there is none.

    Example:
        >>> x, t, mask = pad([torch.zeros(2), torch.zeros(1)], [torch.ones(2, 3), torch.ones(1, 3)])
        >>> mask
        tensor([[ True,  True],
                [ True, False]])
    """
    if not values or len(times) != len(values):
        raise InvalidProblem(
            f"`times` and `values` must have one entry for each series, got {len(times)} and "
            f"{len(values)}. Give at least one series."
        )
    check_tensors(**{"times[0]": times[0], "values[0]": values[0]})
    first = values[0].shape[1:], values[0].dtype, times[0].dtype
    for b, (t, x) in enumerate(zip(times, values, strict=True)):
        check_tensors(**{f"times[{b}]": t, f"values[{b}]": x})
        if t.dim() != 1 or x.dim() != 2 or len(t) != len(x):
            raise InvalidProblem(
                f"series {b} must have times [n] and values [n, D], got {list(t.shape)} and "
                f"{list(x.shape)}. Add the feature dimension with x[:, None]."
            )
        if (x.shape[1:], x.dtype, t.dtype) != first:
            raise InvalidProblem(
                f"series {b} must be as series 0, {first[1]} of {first[0].numel()} features at "
                f"{first[2]} times, got {x.dtype} of {x.shape[1]} at {t.dtype}. Cast it."
            )
    flags = [torch.ones(len(t), dtype=torch.bool, device=t.device) for t in times]
    x, t, mask = (
        torch.nn.utils.rnn.pad_sequence(list(part), batch_first=True)
        for part in (values, times, flags)
    )
    return x, t, mask


def _check_shapes(x: Tensor, t: Tensor, mask: Tensor | None) -> None:
    if x.dim() != 3 or not x.is_floating_point() or 0 in x.shape:
        raise InvalidProblem(
            f"`x` must be floating [B, T, D] with elements, got {x.dtype} {list(x.shape)}. "
            "Add the dimensions for batch and feature."
        )
    if not t.is_floating_point() or t.shape not in (x.shape[1:2], x.shape[:2]):
        raise InvalidProblem(
            f"`t` must be floating [T] or [B, T], got {t.dtype} {list(t.shape)} for `x` of shape "
            f"{list(x.shape)}. Give one time for each observation."
        )
    if mask is None:
        return
    if mask.dtype != torch.bool or mask.shape not in (x.shape, x.shape[:2]):
        raise InvalidProblem(
            f"`mask` must be bool [B, T] or [B, T, D], got {mask.dtype} {list(mask.shape)} for "
            f"`x` of shape {list(x.shape)}. Write mask=~x.isnan(), for example."
        )


def _check_values(x: Tensor, t: Tensor) -> None:
    for name, value in (("x", x), ("t", t)):
        if math.isfinite(value.detach().sum().item()):
            continue
        bad = ~torch.isfinite(value.detach())
        if bool(bad.any()):  # and not only too large to be added up
            where = bad.nonzero()[0].tolist()
            raise InvalidProblem(
                f"`{name}` must be finite where it was seen, got "
                f"{value.detach()[tuple(where)].item()} at index {where}. Mask what is missing: "
                "mask=~x.isnan()."
            )


def _check_order(t: Tensor, rows: Tensor) -> None:
    """Refuse times that do not grow from one observation of a series to its next."""
    if t.dim() == 1:  # columns in which nothing was seen count too: they cost nothing to order
        t, rows = t.unsqueeze(0), torch.ones_like(t, dtype=torch.bool).unsqueeze(0)
    t = t.detach()
    lowest = torch.finfo(t.dtype).min
    before = torch.where(rows, t, lowest).cummax(dim=1).values[:, :-1]
    wrong = rows[:, 1:] & (t[:, 1:] <= before)
    if not bool(wrong.any()):
        return
    b, i = wrong.nonzero()[0].tolist()
    after, earlier = t[b, i + 1].item(), before[b, i].item()
    todo = "Merge the repeated time." if after == earlier else "Sort each series by time."
    raise InvalidProblem(
        f"`t` must grow from observation to observation, got {after:g} at index {i + 1} after "
        f"{earlier:g} in sample {b}. {todo}"
    )
