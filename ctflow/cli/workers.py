"""Reproductions as processes of their own, some at a time: started, watched, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from ctflow.cli.outcome import Outcome
from ctflow.errors import CtflowError

__all__ = ["Run", "Task", "Watcher", "run_all"]

_PATIENCE = 30.0  # seconds in which a run that was interrupted may save what it has
_LOOK = 0.1  # seconds between two looks at the processes
_COLUMNS = "160"  # of the logs, so that tables are not broken
_ENDINGS = (signal.SIGTERM, signal.SIGHUP)  # which stop the runs as Ctrl-C does
_TAIL = 4096  # bytes of a log in which its last line is looked for


@dataclass(frozen=True)
class Task:
    """What to run.

    Args:
        name: Of the reproduction.
        changes: Settings given on the command line.
        minutes: Expected, of one processor; None where unknown.
        alone: Whether nothing may run beside it.
    """

    name: str
    changes: Mapping[str, object]
    minutes: float | None = None
    alone: bool = False


@dataclass
class Run:
    """A task's process.

    Args:
        task: What runs.
        process: Which process.
        log: Where its output goes.
        result: Where it writes its outcome.
        output: The open log.
        began: Clock at its start.
    """

    task: Task
    process: subprocess.Popen[bytes]
    log: Path
    result: Path
    output: IO[bytes]
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self.began

    def last_line(self) -> str:
        """What it said last, in words: borders of tables say nothing."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
        return next((line.strip() for line in reversed(lines) if any(map(str.isalnum, line))), "")

    def outcome(self) -> Outcome:
        """How it ended; a process that wrote nothing has failed."""
        self.output.close()
        code = self.process.returncode
        try:
            found = Outcome.read(self.result)
        except CtflowError:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            found = Outcome("failed", f"its process ended with {how}; {self.last_line()}")
        return replace(found, seconds=round(self.seconds, 1))

    def signal(self, number: int) -> None:
        """To the process and those that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Watcher:
    """Told what happens; does nothing with it."""

    def started(self, run: Run) -> None:
        """A run has begun."""

    def running(self, runs: Sequence[Run]) -> None:
        """Some time has passed."""

    def ended(self, task: Task, outcome: Outcome) -> None:
        """A run is over."""


def run_all(
    tasks: Sequence[Task], root: Path, preset: str, logs: Path, workers: int, watcher: Watcher
) -> dict[str, Outcome]:
    """Run tasks, so many at a time, those alone after the others; how each ended, by name.

    Ctrl-C, SIGTERM and SIGHUP interrupt the processes; what has not begun is missing in the answer.

    Args:
        tasks: In the order in which they are begun.
        root: The checkout.
        preset: Of all.
        logs: Folder of logs and outcomes; it exists.
        workers: How many at a time.
        watcher: Told what happens.
    """
    outcomes: dict[str, Outcome] = {}
    beside = [task for task in tasks if not task.alone]
    groups = [(beside, workers), ([task for task in tasks if task.alone], 1)]
    # Two processes with threads of their own would take the processors from each other.
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = {"OMP_NUM_THREADS": threads, "COLUMNS": _COLUMNS} | dict(os.environ)
    active: list[Run] = []
    before = {number: signal.signal(number, _interrupt) for number in _ENDINGS}
    try:
        for group, at_once in groups:
            waiting = list(group)
            while waiting or active:
                while waiting and len(active) < at_once:
                    active.append(_start(waiting.pop(0), root, preset, logs, environment))
                    watcher.started(active[-1])
                _collect(active, outcomes, watcher)
                watcher.running(active)
                time.sleep(_LOOK)
    except KeyboardInterrupt:
        _stop(active, outcomes, watcher)
    finally:
        for run in active:
            run.signal(signal.SIGKILL)
        for number, handler in before.items():
            signal.signal(number, handler)
    return outcomes


def _start(task: Task, root: Path, preset: str, logs: Path, environment: Mapping[str, str]) -> Run:
    log, result = logs / f"{task.name}.log", logs / f"{task.name}.json"
    result.unlink(missing_ok=True)
    words = [str(root), task.name, preset, json.dumps(dict(task.changes)), str(result)]
    output = log.open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "ctflow.cli.worker", *words],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches it through us, and its own processes with it
    )
    return Run(task, process, log, result, output)


def _collect(
    active: list[Run], outcomes: dict[str, Outcome], watcher: Watcher, stopping: bool = False
) -> None:
    """Take the outcomes of those that have ended."""
    for run in [each for each in active if each.process.poll() is not None]:
        active.remove(run)
        found = run.outcome()
        if stopping and found.ended == "failed":  # interrupted where it could not say so
            found = replace(found, ended="stopped")
        outcomes[run.task.name] = found
        watcher.ended(run.task, found)


def _stop(active: list[Run], outcomes: dict[str, Outcome], watcher: Watcher) -> None:
    """Interrupt what runs and give it time to save; a second Ctrl-C gives it none."""
    for run in active:
        run.signal(signal.SIGINT)
    until = time.monotonic() + _PATIENCE
    with suppress(KeyboardInterrupt):
        while active and time.monotonic() < until:
            _collect(active, outcomes, watcher, stopping=True)
            time.sleep(_LOOK)
    for run in active:
        outcomes[run.task.name] = Outcome("stopped", "killed", seconds=round(run.seconds, 1))
        watcher.ended(run.task, outcomes[run.task.name])


def _interrupt(number: int, frame: object) -> None:  # noqa: ARG001 - a signal handler's
    raise KeyboardInterrupt
