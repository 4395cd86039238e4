"""Jobs one after the other, or on several processes of one thread each; either way resumable."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch

from _harness.training import Job, Trained, train

__all__ = ["run_jobs"]


def run_jobs(
    jobs: Sequence[Job],
    show: Callable[[str], None],
    *,
    workers: int = 1,
    keep: bool = False,
    until: float,
) -> list[Trained] | None:
    """Train every network.

    Args:
        jobs: What to train.
        show: Told how far it is.
        workers: Processes.
        keep: Whether to keep unfinished and finished runs in the cache folder, and to use them.
        until: Time (`time.monotonic`, which processes share) after which no epoch is begun.

    Returns:
        In the order of the jobs; None if the time was up before all were done.
    """
    if workers == 1:
        found = [train(job, show, keep=keep, until=until) for job in jobs]
    else:
        found = _on_processes(jobs, show, workers, keep, until)
    done = [each for each in found if each is not None]
    return done if len(done) == len(jobs) else None


def _on_processes(
    jobs: Sequence[Job], show: Callable[[str], None], workers: int, keep: bool, until: float
) -> list[Trained | None]:
    results: dict[int, Trained | None] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = {pool.submit(_alone, job, keep, until): i for i, job in enumerate(jobs)}
        for future in as_completed(waiting):
            i = waiting[future]
            results[i] = future.result()
            state = "done" if results[i] is not None else "time is up"
            show(f"{jobs[i].net}, seed {jobs[i].seed}: {state} ({len(results)}/{len(jobs)})")
    return [results[i] for i in range(len(jobs))]


def _alone(job: Job, keep: bool, until: float) -> Trained | None:
    """One job in a process of its own."""
    torch.set_num_threads(1)
    return train(job, lambda _: None, keep=keep, until=until)
