"""The whole course of a solve as a function of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ctflow.errors import InvalidProblem
from ctflow.state import Layout, flatten_args, leaves_of
from ctflow.transforms import is_batched, least, plain

__all__ = ["DenseSolution"]

_VERSION = 1
_SLACK = 4  # units in the last place of a time's dtype by which it may lie outside


@dataclass(frozen=True, eq=False)
class DenseSolution:
    """The solution between its two ends: `sol(t)`, piece by piece the method's own interpolant.

    Inside a step of length h from t0, with s = (t - t0) / h,

        y(t) = y0 + h sum_i k_i w_i(s),  w_i(s) = sum_j p_ij s^(j+1).

    Differentiable with respect to t and, where the solve was, to everything that it depends on.

    Args:
        layout: How the state lies in [B, N].
        t0: Start of each step, [n, B], in time's own dtype; of a sample at rest its end too.
        t1: End of each step, [n, B].
        y0: State at the start of each step, [n, B, N].
        k: Stages of each step, [n, S, B, N].
        p: Coefficients of the interpolant, [S, D], in time's own dtype.

    Example:
        >>> import torch
        >>> from ctflow import odeint_dense
        >>> sol = odeint_dense(lambda t, y: -y, torch.ones(2), [0.0, 1.0])
        >>> sol(0.5).shape, sol(torch.linspace(0, 1, 5)).shape
        (torch.Size([2]), torch.Size([5, 2]))
    """

    layout: Layout
    t0: Tensor
    t1: Tensor
    y0: Tensor
    k: Tensor
    p: Tensor

    @property
    def start(self) -> Tensor:
        """Where the solve began, [B]."""
        return self.t0[0]

    @property
    def end(self) -> Tensor:
        """Where it ended, [B]."""
        return self.t1[-1]

    def __call__(self, t: Tensor | float) -> Any:  # noqa: ANN401
        """The state at times between start and end.

        Args:
            t: One time, or [T] in any order. Under per-sample steps also [B, T], each sample's own.

        Returns:
            The structure of the initial state; each leaf has its shape, with T in front of it
            where several times were asked for.

        Raises:
            InvalidProblem: If a time lies outside the interval, or is NaN.

        Cost:
            No evaluation of f; B T N for each stage.
        """
        return self._unpacked(t, slope=False)

    def derivative(self, t: Tensor | float) -> Any:  # noqa: ANN401
        """dy/dt of the interpolant at times between start and end; like `__call__`.

        One order less accurate than the state. It is f at the state within that accuracy, and
        costs no evaluation of it. At the end of a step it is that of the step before.
        """
        return self._unpacked(t, slope=True)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, detached: for `torch.save`, read by `weights_only=True`.

        Example:
            >>> import io, torch
            >>> from ctflow import DenseSolution, odeint_dense
            >>> sol = odeint_dense(lambda t, y: -y, torch.ones(2), [0.0, 1.0])
            >>> file = io.BytesIO()
            >>> torch.save(sol.state_dict(), file)
            >>> _ = file.seek(0)
            >>> again = DenseSolution.from_state_dict(torch.load(file, weights_only=True))
            >>> torch.equal(again(0.3), sol(0.3))
            True
        """
        layout, names = self.layout, ("t0", "t1", "y0", "k", "p")
        flat = torch.arange(len(layout.shapes))
        numbered = Layout(
            layout.treespec, (torch.Size((1,)),) * len(flat), flat.dtype, flat.device, False
        ).unpack(flat.reshape(1, -1))
        return {
            "version": _VERSION,
            "structure": numbered,
            "shapes": [list(shape) for shape in layout.shapes],
            "complex": layout.is_complex,
            "per_sample": layout.per_sample,
            **{name: getattr(self, name).detach().clone() for name in names},
        }

    @classmethod
    def from_state_dict(cls, values: Mapping[str, Any]) -> DenseSolution:
        """The solution that `state_dict` wrote down.

        Raises:
            InvalidProblem: If it is not what `state_dict` returns.
        """
        wanted = {"version", "structure", "shapes", "complex", "per_sample"}
        wanted |= {"t0", "t1", "y0", "k", "p"}
        if set(values) != wanted or values["version"] != _VERSION:
            raise InvalidProblem(
                f"`values` must be the state_dict of a DenseSolution of version {_VERSION}, got "
                f"the keys {sorted(values)}. Save sol.state_dict()."
            )
        y0: Tensor = values["y0"]
        first = leaves_of(values["structure"])
        order = [int(x) for x in first]
        if order != list(range(len(values["shapes"]))):
            raise InvalidProblem(
                f"`values` must number the leaves of the state in order, got {order}. "
                "Save sol.state_dict()."
            )
        shapes = tuple(torch.Size(cast("list[int]", s)) for s in values["shapes"])
        dtype = y0.dtype.to_complex() if values["complex"] else y0.dtype
        like = flatten_args(values["structure"])[1]([torch.empty(s, dtype=dtype) for s in shapes])
        layout = Layout.of(like, bool(values["per_sample"]))
        parts = {name: values[name] for name in ("t0", "t1", "y0", "k", "p")}
        return cls(layout, **parts)

    def _unpacked(self, t: Tensor | float, slope: bool) -> Any:  # noqa: ANN401
        own = None if isinstance(t, Tensor) and t.is_floating_point() else self.t0.dtype
        try:
            times = torch.as_tensor(t, dtype=own, device=self.t0.device)
        except (TypeError, ValueError) as error:
            raise InvalidProblem(
                f"`t` must be a number or a tensor of times, got {t!r:.60}. Pass a float or [T]."
            ) from error
        many = times.dim() > 0
        found = self._at(self._checked(times), slope)
        return self.layout.unpack(found if many else found[0])

    def _checked(self, times: Tensor) -> Tensor:
        """Times inside the interval, [B, T], in time's own dtype."""
        batch = self.t0.shape[1]
        shared = not self.layout.per_sample
        if times.dim() > 2 or (times.dim() == 2 and (shared or times.shape[0] != batch)):
            wanted = "one time or [T]" if shared else f"one time, [T] or [{batch}, T]"
            raise InvalidProblem(
                f"`t` must be {wanted}, got shape {list(times.shape)}. Reshape it."
            )
        slack = _SLACK * torch.finfo(times.dtype).eps
        own = times.to(self.t0.dtype)
        own = own if own.dim() == 2 else own.reshape(1, -1).expand(batch, -1)
        start, end = self.start.unsqueeze(1), self.end.unsqueeze(1)
        low, high = torch.minimum(start, end), torch.maximum(start, end)
        room = slack * torch.maximum(low.abs(), high.abs())
        inside = least((own >= low - room) & (own <= high + room))
        if not bool(inside.all()):
            b, i = (~inside).nonzero()[0].tolist()
            who = f" of sample {b}" if self.layout.per_sample else ""
            least_t, most_t = float(plain(low)[b]), float(plain(high)[b])
            got = "one of torch.vmap" if is_batched(own) else repr(float(plain(own)[b, i]))
            raise InvalidProblem(
                f"`t` must lie within [{least_t:g}, {most_t:g}]{who}, got {got} at index {i}. "
                "Ask within it, or solve over a longer interval."
            )
        return own

    def _at(self, own: Tensor, slope: bool) -> Tensor:
        """States or slopes at times [B, T], as [T, B, N]."""
        direction = torch.where(self.end >= self.start, 1.0, -1.0).to(own.dtype)
        ends = (self.t1 * direction).T.contiguous()
        ahead = (own.detach() * direction.unsqueeze(1)).contiguous()
        first = (self.t1 != self.t0).int().argmax(dim=0)  # others were repeated before it counted
        step = torch.searchsorted(ends, ahead).clamp(max=len(self.t1) - 1).T  # [T, B]
        step = torch.maximum(step, first)
        sample = torch.arange(own.shape[0], device=own.device).expand_as(step)
        t0, t1 = self.t0[step, sample], self.t1[step, sample]
        h = t1 - t0
        s = torch.where(h != 0, (own.T - t0) / torch.where(h != 0, h, 1.0), 0.0)
        weights = self._weights(s, slope).to(self.y0.dtype)  # [T, B, S]
        moved = torch.einsum("tbs,tbsn->tbn", weights, self.k.transpose(1, 2)[step, sample])
        if slope:
            return moved
        return self.y0[step, sample] + h.to(moved.dtype).unsqueeze(-1) * moved

    def _weights(self, s: Tensor, slope: bool) -> Tensor:
        """Weights of the stages, or their derivatives by s: [T, B] -> [T, B, S]."""
        s = s.unsqueeze(-1)
        n = self.p.shape[1]
        total = torch.zeros_like(s) * self.p[:, 0]
        for j in range(n - 1, -1, -1):
            total = total * s + self.p[:, j] * (j + 1 if slope else 1)
        return total if slope else total * s
