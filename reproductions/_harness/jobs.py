"""Jobs one after the other, or on several processes of one thread each; either way resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from _harness import ranks
from _harness.session import Session
from _harness.training import Job, Trained, train
from _harness.workers import on_processes

__all__ = ["run_jobs"]


def run_jobs(
    jobs: Sequence[Job], show: Callable[[str], None], session: Session, *, workers: int = 1
) -> list[Trained]:
    """Train every network.

    Args:
        jobs: What to train.
        show: Told how far it is.
        session: Where their states are kept.
        workers: Processes; one where `torchrun` has started several.

    Returns:
        In the order of the jobs.

    Raises:
        Unfinished: If the time was up before all were done.
    """
    if workers == 1 or ranks.world() > 1:
        return [train(job, show, session) for job in jobs]
    tasks = {job.name: partial(train, job, _silent, session) for job in jobs}
    return list(on_processes(tasks, workers, show).values())


def _silent(_: str) -> None:
    """Another process has no line of its own."""
