"""Ctrl-C and SIGTERM while something is trained: it stops after the step that it is in."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

__all__ = ["asked_to_stop", "forget", "heeded", "stop"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked: list[int] = []  # in this process; a process that trains for another begins nothing more


def asked_to_stop() -> int:
    """The signal that asked this process to stop, or 0."""
    return _asked[0] if _asked else 0


def forget() -> None:
    """Begin anew: nothing has been asked."""
    _asked.clear()


@contextmanager
def heeded() -> Generator[None]:
    """Note the signals instead of dying of them; the second one ends everything at once.

    Outside of the main thread, where signals do not arrive, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _note) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(number: int) -> NoReturn:
    """End as such a signal does: `KeyboardInterrupt`, or an exit with 128 plus its number."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _note(number: int, _: FrameType | None) -> None:
    if _asked:
        stop(number)
    _asked.append(number)
