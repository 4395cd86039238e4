"""Trainings on several processes of one thread each, which stop and are saved together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, TypeVar

import torch

from _harness import ranks, stopping
from _harness.loop import Unfinished, say

__all__ = ["on_processes", "train_ahead"]

T = TypeVar("T")


def on_processes(
    tasks: Mapping[str, Callable[[], T]], workers: int, show: Callable[[str], None]
) -> dict[str, T]:
    """Do tasks on so many processes.

    Args:
        tasks: By name, what another process can import: a `functools.partial` of a function.
        workers: Processes.
        show: Told which ones are done.

    Returns:
        What they return, in their order.

    Raises:
        Unfinished: If the time was up in one of them; the others have gone as far as they could.
    """
    found: dict[str, T] = {}
    late = False
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _watch) as pool, _ended(pool):
        waiting = {pool.submit(_alone, task): name for name, task in tasks.items()}
        for done, future in enumerate(as_completed(waiting), start=1):
            try:
                found[waiting[future]] = future.result()
                state = "done"
            except Unfinished:
                late, state = True, "time is up"
            show(f"{waiting[future]}: {state} ({done}/{len(tasks)})")
    if late:
        raise Unfinished
    return {name: found[name] for name in tasks}


def train_ahead(
    jobs: Mapping[str, Callable[[Callable[[str], None]], Any]],
    workers: int,
    show: Callable[[str], None],
) -> None:
    """Train all jobs; what they come to stands in their checkpoints.

    A script that fits its models one after the other needs no other change to have them trained on
    several processes: each fit then finds that it is done.

    Args:
        jobs: By name, what another process can import, called with a function like `show`.
        workers: Processes; with one nothing is done, the script trains by itself. Nor is it where
            `torchrun` has started several: they train every model together.
        show: Told which ones are done.

    Raises:
        Unfinished: If the time is over.
    """
    if workers > 1 and ranks.world() == 1:
        on_processes({name: partial(_trained, job) for name, job in jobs.items()}, workers, show)


def _trained(job: Callable[[Callable[[str], None]], Any]) -> None:
    """What comes of a job need not be a thing that goes from process to process."""
    job(lambda _: None)


def _alone(task: Callable[[], T]) -> T:
    torch.set_num_threads(1)
    if number := stopping.asked_to_stop():  # while this process did the task before
        stopping.stop(number)
    try:
        return task()
    finally:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            os._exit(128 + signal.SIGTERM)  # else it waits for a task that no one gives it


def _watch() -> None:
    """Ask this process to stop when the one that it works for is gone, however that ended."""
    threading.Thread(target=_outlive, daemon=True).start()


def _outlive() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # which a training heeds, and saves itself


@contextmanager
def _ended(pool: ProcessPoolExecutor) -> Generator[None]:
    """Stop what still runs, each saved, and begin nothing more, where the waiting is cut short."""
    main = threading.current_thread() is threading.main_thread()
    interrupt = signal.getsignal(signal.SIGINT)
    before = signal.signal(signal.SIGTERM, _exit) if main else None
    try:
        yield
    except BaseException as error:
        if main:  # a second Ctrl-C would leave the pool half ended, which never ends then
            interrupt = signal.signal(signal.SIGINT, _kill)
        for process in multiprocessing.active_children():
            process.terminate()  # SIGTERM, which a training heeds
        pool.shutdown(cancel_futures=True)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            say("stopped; what was trained is saved: the same command goes on from there")
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
            signal.signal(signal.SIGINT, interrupt)


def _kill(number: int, _: FrameType | None) -> None:  # noqa: ARG001 - a signal handler's
    """End the processes at once; what they saved before stays."""
    for process in multiprocessing.active_children():
        process.kill()


def _exit(number: int, _: FrameType | None) -> None:
    stopping.stop(number)
