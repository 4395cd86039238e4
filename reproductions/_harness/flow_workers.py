"""Trainings on several processes of one thread each, before the script itself takes them up."""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch
from rich.console import Console

from _harness.flow_training import Budget, Unfinished
from _harness.live import LiveLine

__all__ = ["train_ahead"]

Fit = Callable[[LiveLine, Budget], Any]
"""Trains and keeps a checkpoint."""


def train_ahead(jobs: Mapping[str, Fit], workers: int, line: LiveLine, budget: Budget) -> None:
    """Train all jobs as far as the time allows; what they come to stands in their checkpoints.

    A script that fits its models one after the other needs no other change to have them trained on
    several processes: each fit then finds that it is done.

    Args:
        jobs: By name, what another process can import: a `functools.partial` of a function.
        workers: Processes; with one nothing is done, the script trains by itself.
        line: Where progress is shown.
        budget: Time of this slice.
    """
    if workers == 1:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = {pool.submit(_alone, fit, budget): name for name, fit in jobs.items()}
        for done, future in enumerate(as_completed(waiting), start=1):
            state = "done" if future.result() else "time is up"
            line.show(f"{waiting[future]}: {state} ({done}/{len(jobs)})")


def _alone(fit: Fit, budget: Budget) -> bool:
    """One training in a process of its own; whether it ended."""
    torch.set_num_threads(1)
    with LiveLine(Console(file=io.StringIO())) as line:
        try:
            fit(line, budget)
        except Unfinished:
            return False
    return True
