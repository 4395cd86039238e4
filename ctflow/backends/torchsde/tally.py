"""Counting steps from outside: a scheme asks the Brownian motion once for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctflow.backends.torchsde.brownian import levy_area_of
from ctflow.errors import InvalidProblem
from ctflow.solution import Counts, Status, Stop

__all__ = ["Stopped", "Tally", "Watched"]


class Stopped(Exception):
    """Raised to leave torchsde; the tally says why."""


class Tally:
    """How one solve goes.

    An adaptive attempt is one step and the same again in two halves; a fixed step is one.

    Args:
        adaptive: Which of both.
        max_steps: Attempts before it is stopped.
        start: Where it starts.
        backwards: Whether time falls; the trace then has it with the opposite sign.
    """

    def __init__(
        self, adaptive: bool, max_steps: int, start: float, *, backwards: bool = False
    ) -> None:
        self._adaptive, self._backwards = adaptive, backwards
        start = -start if backwards else start
        self._calls_a_step = 3 if adaptive else 1
        self._max_steps = max_steps
        self._n_calls = 0
        self._end = start  # of the attempt under way
        self.size = 0.0
        self.trace = [start]
        self.n_f_evals = self.n_steps = 0
        self.status = Status.OK
        self.f_is_finite = True

    def ask(self, ta: float, tb: float) -> None:
        """The scheme takes a step between ta and the later tb.

        Raises:
            Stopped: If it may not.
        """
        if self._backwards:
            ta, tb = -tb, -ta
        first = self._n_calls % self._calls_a_step == 0
        self._n_calls += 1
        if not first:
            return
        if self.n_steps > 0 and ta >= self._end:
            self.trace.append(self._end)
        if self.n_steps == self._max_steps:
            self.stop(Status.MAX_STEPS)
        self._end, self.size = tb, tb - ta
        if self._adaptive and not ta < ta + 0.25 * self.size < tb:
            self.stop(Status.STEP_TOO_SMALL)
        self.n_steps += 1

    def stop(self, status: Status) -> None:
        """Leave torchsde.

        Raises:
            Stopped: Always.
        """
        self.status = status
        raise Stopped

    def finish(self) -> None:
        """Note that torchsde came back by itself."""
        if self.n_steps:
            self.trace.append(self._end)

    def counts(self) -> Counts:
        """The costs as they are reported."""
        n_accepted = len(self.trace) - 1
        numbers = (self.n_f_evals, self.n_steps, n_accepted, self.n_steps - n_accepted)
        return Counts(*(torch.tensor([n], dtype=torch.int64) for n in numbers))

    def stops(self) -> tuple[Stop, ...]:
        """Where a failed solve stood."""
        if self.status == Status.OK:
            return ()
        return (Stop(0, self.trace[-1], self.size, self.f_is_finite),)


class Watched:
    """A Brownian path that tells a tally what is asked of it.

    Args:
        path: One of `brownian_path`, or of the user's own, which need not know torchsde's names.
        tally: Of the solve under way; may be replaced.
        y0: Whose dtype and device the increments must have.

    Raises:
        InvalidProblem: When called, if a path of the user's own returns something else.
    """

    def __init__(self, path: Any, tally: Tally, y0: Tensor) -> None:  # noqa: ANN401
        self._path = path
        self.tally = tally
        self.shape: tuple[int, ...] = tuple(path.shape)
        self.dtype: torch.dtype = y0.dtype
        self.device: torch.device = y0.device
        self.levy_area_approximation = levy_area_of(path)

    def __call__(self, ta: Any, tb: Any, return_U: bool = False, return_A: bool = False) -> Any:  # noqa: ANN401
        """The increment, under torchsde's names."""
        self.tally.ask(float(ta), float(tb))
        if return_U or return_A:  # only of a path that says it has them
            return self._path(ta, tb, return_U=return_U, return_A=return_A)
        found = self._path(ta, tb)
        if not isinstance(found, Tensor) or (found.shape, found.dtype) != (self.shape, self.dtype):
            got = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else found
            raise InvalidProblem(
                f"`path` must return {self.dtype} {list(self.shape)}, got {got!s:.80}. Return "
                "W(tb) - W(ta)."
            )
        return found
