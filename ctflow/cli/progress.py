"""What is seen while reproductions run: a bar for each in a terminal, else plain lines."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ctflow.cli.outcome import Outcome
from ctflow.cli.workers import Run, Task, Watcher

__all__ = ["Bars", "Lines", "progress_of", "told", "watcher_for"]

_EVERY = 30.0  # seconds between two plain lines of a run
_COUNTED = re.compile(r"(?<![\d.])(\d+)\s*(?:/|of)\s*(\d+)(?![\d.])")


def progress_of(line: str) -> tuple[int, int] | None:
    """How far a line says that its work is: "epoch 3/24", "step 12 of 1500"; None if it does not.

    Example:
        >>> progress_of("ODE-Net, seed 0: epoch 3/24  loss 0.31  evaluations 14.0 + 20.0")
        (3, 24)
    """
    found = [(int(a), int(b)) for a, b in _COUNTED.findall(line)]
    return next(((a, b) for a, b in found if b > 0 and a <= b), None)


def watcher_for(console: Console, total: int) -> Bars | Lines:
    """Bars in a terminal, lines in a log."""
    return Bars(console, total) if console.is_terminal else Lines(console, total)


class Lines(Watcher):
    """Prints what begins and ends, and now and then how far each run is.

    Args:
        console: Where to.
        total: How many runs there will be.
    """

    def __init__(self, console: Console, total: int) -> None:
        """Nothing has been said yet."""
        self._console, self._total, self._over = console, total, 0
        self._said: dict[str, float] = {}

    def __enter__(self) -> Lines:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing to clear away."""

    def started(self, run: Run) -> None:
        """One line, with what is expected."""
        self._said[run.task.name] = time.monotonic()
        self._print(f"{run.task.name}: started{_expected(run.task)}")

    def running(self, runs: Sequence[Run]) -> None:
        """The last line of each, every half minute."""
        for run in runs:
            if time.monotonic() - self._said[run.task.name] >= _EVERY:
                self._said[run.task.name] = time.monotonic()
                self._print(f"{run.task.name}: {run.seconds:.0f} s  {run.last_line()}")

    def ended(self, task: Task, outcome: Outcome) -> None:
        """One line, with how many are done."""
        self._over += 1
        self._print(f"[{self._over}/{self._total}] {task.name}: {told(outcome)}")

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


class Bars(Watcher):
    """Keeps a bar a run, with its loss and evaluations, under what has ended.

    Args:
        console: A terminal.
        total: How many runs there will be.
    """

    def __init__(self, console: Console, total: int) -> None:
        """Draw nothing yet."""
        self._console, self._total, self._over = console, total, 0
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Bars:
        """Begin."""
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the bars away; what has ended stays."""
        self._live.stop()

    def running(self, runs: Sequence[Run]) -> None:
        """Draw every bar again."""
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, justify="right")
        grid.add_column(width=16)
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for run in runs:
            line = run.last_line()
            done, whole = progress_of(line) or (None, None)
            bar = ProgressBar(total=whole, completed=done or 0, pulse=whole is None)
            grid.add_row(run.task.name, _clock(run.seconds), bar, Text(line))
        over = ProgressBar(total=self._total, completed=self._over)
        grid.add_row("all", "", over, Text(f"{self._over} of {self._total} runs are over"))
        self._live.update(grid)

    def ended(self, task: Task, outcome: Outcome) -> None:
        """A line above the bars."""
        self._over += 1
        self._live.console.print(Text(f"{task.name}: {told(outcome)}"))


def told(outcome: Outcome) -> str:
    """How a run ended, in a few words.

    Example:
        >>> told(Outcome("done", bands=[{"passed": True}, {"passed": False}], seconds=83.2))
        '1 of 2 numbers MISSED, 1:23'
    """
    if outcome.ended != "done":
        return f"{outcome.ended}: {outcome.reason}"
    n = len(outcome.bands)
    if not n:
        return f"done, no claim, {_clock(outcome.seconds)}"
    numbers = f"{outcome.missed} of {n} numbers MISSED" if outcome.missed else f"{n} numbers ok"
    return f"{numbers}, {_clock(outcome.seconds)}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _expected(task: Task) -> str:
    return "" if task.minutes is None else f", expected: {task.minutes:g} min of a processor"
