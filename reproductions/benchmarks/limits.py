"""What a solve cannot be faster than: the evaluations it needs, compiled, with no solver around.

A chain of evaluations, each a small step from the last, is compiled as one program, once with its
gradient and once without; the cost of one evaluation is the slope of the time over the length of
the chain. So the cost of entering a compiled program, which a solve pays once, does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from benchmarks.measuring import Entry, Stopwatch, Tally, Timed
from benchmarks.torch_peers import mean_square, started
from benchmarks.workloads import Case

__all__ = ["CHAINS", "Cost", "chains", "cost", "limit"]

CHAINS = (1, 5)  # lengths; compiling takes seconds for each evaluation in the longer one
_STEP = 1e-3  # of time, between two evaluations


@dataclass(frozen=True)
class Cost:
    """Milliseconds of the field, compiled.

    Args:
        f: One evaluation.
        f_and_vjp: One evaluation with its vector-Jacobian product for state and parameters.
    """

    f: float
    f_and_vjp: float


def chains(case: Case, *, gradients: bool) -> list[Timed]:
    """What has to be timed for the limit: chains of both lengths, and their gradients."""
    timed: list[Timed] = []
    for n in CHAINS:
        run = torch.compile(_chain(case, n), fullgraph=True, dynamic=False)
        timed.append(Stopwatch(f"f, chain of {n}", _forward(case, run)))
        if gradients:
            timed.append(Stopwatch(f"f and VJP, chain of {n}", _gradient(case, run)))
    return timed


def cost(samples: Mapping[str, Sequence[float | None]]) -> Cost:
    """Slopes of the medians; a VJP that was not timed is NaN."""
    return Cost(_slope(samples, "f"), _slope(samples, "f and VJP"))


def limit(entry: Entry, tally: Tally, cost: Cost) -> float | None:
    """Milliseconds below which a contestant with these evaluations cannot come.

    A direct gradient takes one VJP for each evaluation forward, also where it redoes one of them.
    Any other evaluates forward once, and then backwards, where each evaluation has its VJP.
    """
    if tally.forward is None or tally.backward is None:
        return None
    if entry.task == "forward":
        return tally.forward * cost.f
    if entry.mode == "direct" or not tally.backward:
        return tally.forward * cost.f_and_vjp
    return tally.forward * cost.f + tally.backward * cost.f_and_vjp


def _slope(samples: Mapping[str, Sequence[float | None]], name: str) -> float:
    times = [samples.get(f"{name}, chain of {n}") for n in CHAINS]
    if None in times:
        return float("nan")
    short, long = (median(t for t in own or () if t is not None) for own in times)
    # A chain shorter than the clock can tell must not make the limit negative.
    return max(long - short, 0.0) / (CHAINS[1] - CHAINS[0])


def _chain(case: Case, n: int) -> Callable[..., Sequence[Tensor]]:
    field = case.traceable
    single = len(case.leaves) == 1

    def run(t: Tensor, *leaves: Tensor) -> Sequence[Tensor]:
        for _ in range(n):
            rates = field(t, leaves[0] if single else leaves)
            rates = (rates,) if single else rates
            leaves = tuple(y + _STEP * dy for y, dy in zip(leaves, rates, strict=True))
            t = t + _STEP
        return leaves

    return run


def _forward(case: Case, run: Callable[..., Sequence[Tensor]]) -> Callable[[], object]:
    def once() -> object:
        with torch.no_grad():
            return run(case.t[0], *case.leaves)

    return once


def _gradient(case: Case, run: Callable[..., Sequence[Tensor]]) -> Callable[[], object]:
    inputs = [*started(case), *case.traceable.parameters()]
    n = len(case.leaves)

    def once() -> object:
        return torch.autograd.grad(mean_square(run(case.t[0], *inputs[:n])), inputs)

    return once
