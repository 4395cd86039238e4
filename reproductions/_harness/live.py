"""One line that says how far the work is: rewritten in a terminal, else printed now and then."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ctflow import Stats

__all__ = ["Epoch", "LiveLine", "counted"]

_EVERY = 2.0  # seconds between two lines where they cannot be rewritten


@dataclass(frozen=True)
class Epoch:
    """State of a training after an epoch.

    Args:
        epoch: Its number, from 1.
        loss: Training loss in nats, mean over the epoch.
        accuracy: Share of the test set that is classified right.
        forward: Evaluations of the field in its last forward pass, mean over the samples.
        backward: Likewise in its last backward pass.
        seconds: What the training took until then: of one process on a CPU.
        fine: Evaluations forward at the paper's tolerance of 1e-3, on test images, whatever the
            tolerance of the training; None where the network has no ODE with adaptive steps.
    """

    epoch: int
    loss: float
    accuracy: float
    forward: float
    backward: float
    seconds: float
    fine: float | None = None


def counted(stats: Stats | None) -> str:
    """Evaluations of the last solve, mean over its samples: forward, and backward where it has any.

    Example:
        >>> counted(None)
        ''
    """
    if stats is None:
        return ""
    passes = [stats.forward] if stats.backward is None else [stats.forward, stats.backward]
    means = (f"{each.n_f_evals.double().mean().item():.1f}" for each in passes)
    return f"  evaluations {' + '.join(means)}"


class LiveLine:
    """A context in which `show` replaces the line before; the last one stays.

    Args:
        console: Where it is shown. If that is no terminal (a file, a log), the first line, the
            last, and one every two seconds are printed.
    """

    def __init__(self, console: Console) -> None:
        """Show nothing yet."""
        self._console = console
        self._live = Live(console=console, refresh_per_second=10) if console.is_terminal else None
        self._pending = ""
        self._printed = float("-inf")

    def __enter__(self) -> LiveLine:
        """Begin."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the last line standing."""
        if self._live is not None:
            self._live.stop()
        elif self._pending:
            self._print(self._pending)

    def show(self, text: str) -> None:
        """Replace the line."""
        if self._live is not None:
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"))
        elif time.monotonic() - self._printed >= _EVERY:
            self._print(text)
        else:
            self._pending = text

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)
        self._printed, self._pending = time.monotonic(), ""
