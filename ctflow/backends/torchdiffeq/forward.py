"""The forward solve, and what is left of one that stopped."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ctflow.backends.torchdiffeq.library import odeint
from ctflow.backends.torchdiffeq.plan import Plan
from ctflow.backends.torchdiffeq.watch import Stopped, Watch

__all__ = ["complete", "plain"]


def plain(watch: Watch, plan: Plan, y0: Tensor) -> Tensor:
    """States at the output times, [T, 1, N], by torchdiffeq's odeint; autograd records if it is on.

    A solve that stops gives a constant; see `complete`.
    """
    return complete(
        lambda: odeint(watch, y0, plan.times, **plan.forward(watch.norm)), watch, plan, y0
    )


def complete(solve: Callable[[], Tensor], watch: Watch, plan: Plan, y0: Tensor) -> Tensor:
    """Run a solve and see to it that what comes back is right or NaN.

    Args:
        solve: Calls torchdiffeq.
        watch: What it integrates; its tally says afterwards how it went.
        plan: Settings and times.
        y0: State at the start, [1, N].

    Returns:
        States at the output times, [T, 1, N]; of a failed solve a constant, with NaN in what was
        not reached.

    Cost:
        Of a failed solve, the steps up to the last output that was reached, once more:
        torchdiffeq keeps its outputs to itself until the end.
    """
    try:
        out = solve()
    except Stopped:
        return _reached(watch, plan, y0.detach())
    watch.tally.finish(float(plan.times[-1]))
    n_finite = _n_finite(out)
    if n_finite == len(out):
        return out
    watch.tally.lose_last()
    n_reached = int((plan.times <= watch.tally.at).sum())
    return _padded(out.detach()[: min(n_finite, n_reached)], plan)


@torch.no_grad()
def _reached(watch: Watch, plan: Plan, y0: Tensor) -> Tensor:
    """The outputs before the point where a solve stopped, by solving up to there again."""
    tally = watch.tally
    times = plan.times[plan.times <= tally.at]
    if len(times) == 1:
        return _padded(y0.unsqueeze(0), plan)
    here = plan.times.new_tensor([tally.at])
    ends = times if times[-1] == here else torch.cat([times, here])  # a fixed grid must end here
    again = watch.begin(tally.trace[0])
    try:
        out = odeint(watch, y0, ends, **plan.forward(watch.norm))[: len(times)]
    except Stopped:  # f gives another value than before: nothing can be said
        out = y0.unsqueeze(0)
    watch.tally = tally
    tally.n_f_evals += again.n_f_evals
    return _padded(out[: _n_finite(out)], plan)


def _n_finite(out: Tensor) -> int:
    """How many outputs there are before the first that is not finite."""
    bad = ~torch.isfinite(out.detach()).flatten(1).all(dim=1)
    return int(bad.int().argmax()) if bool(bad.any()) else len(out)


def _padded(out: Tensor, plan: Plan) -> Tensor:
    missing = len(plan.times) - len(out)
    return torch.cat([out, out.new_full((missing, *out.shape[1:]), torch.nan)])
