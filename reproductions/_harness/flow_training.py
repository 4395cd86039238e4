"""A training that can be stopped at any time and goes on where it stood."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from _harness.live import LiveLine

__all__ = ["Budget", "Training", "Unfinished"]

_KEEP_EVERY = 20.0  # seconds between two checkpoints


class Unfinished(Exception):
    """The time of this slice is over; the checkpoints are written."""


@dataclass
class Budget:
    """Minutes that may be spent in this slice.

    Args:
        minutes: Infinite for no limit.
    """

    minutes: float = math.inf
    began: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Raise `Unfinished` once the time is over."""
        if time.monotonic() - self.began > 60 * self.minutes:
            raise Unfinished


class Training:
    """Parameters, their optimiser and schedule, and how far they are.

    `seconds` is time of this process on its processors, so that neither a pause nor other work on
    the machine counts. The first evaluation of the loss is done twice, and timed once: whatever is
    compiled is compiled in the first.

    With a path, the state is kept there every 20 seconds and at the end; a training that is built
    again with the same path, and the same settings under `key`, starts from it. The random numbers
    go on too, so that a stopped run ends where an unbroken one would.

    Args:
        model: What is trained.
        optimiser: Over its parameters.
        schedule: Of the learning rate, stepped once an iteration.
        key: Settings that a checkpoint must share to be used.
        path: Checkpoint; None to keep none.
        clip: Largest norm of a gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        *,
        key: str,
        path: Path | None = None,
        clip: float = 5.0,
    ) -> None:
        """Take up a checkpoint if there is one."""
        self.model, self.optimiser, self.schedule = model, optimiser, schedule
        self.key, self.path, self.clip = key, path, clip
        self.done = 0
        self.seconds = 0.0
        self._warm = False
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._kept = time.monotonic()
        if path is not None and path.exists():
            self._load(path)

    def run(
        self, loss: Callable[[int], Tensor], until: int, name: str, line: LiveLine, budget: Budget
    ) -> None:
        """Minimise up to iteration `until`.

        Args:
            loss: The loss, 0-dim, of an iteration's number.
            until: Iterations in all, earlier slices included.
            name: For the line.
            line: Where progress is shown.
            budget: Time of this slice.

        Raises:
            Unfinished: When the slice's time is over.
        """
        if self.done < until and not self._warm:
            self._warm = True
            with torch.random.fork_rng(devices=[]):
                loss(self.done).backward()
        while self.done < until:
            began = time.process_time()
            value = self._step(loss)
            self.seconds += time.process_time() - began
            line.show(
                f"{name}  iteration {self.done}/{until}  loss {value.item():.3f}  "
                f"{self.seconds:.0f} s"
            )
            if time.monotonic() - self._kept > _KEEP_EVERY:
                self.keep()
            try:
                budget.check()
            except Unfinished:
                self.keep()
                raise
        self.keep()

    def _step(self, loss: Callable[[int], Tensor]) -> Tensor:
        value = loss(self.done)
        self.optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(self._parameters, self.clip)
        self.optimiser.step()
        self.schedule.step()
        self.done += 1
        return value

    def keep(self) -> None:
        """Write the checkpoint; a reader sees the old file or the new one."""
        self._kept = time.monotonic()
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        torch.save(
            {
                "key": self.key,
                "done": self.done,
                "seconds": self.seconds,
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "schedule": self.schedule.state_dict(),
                "random": torch.get_rng_state(),
            },
            temporary,
        )
        temporary.replace(self.path)

    def _load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        if state["key"] != self.key:
            return  # of other settings: begin anew, and overwrite it
        self.done, self.seconds = state["done"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])
