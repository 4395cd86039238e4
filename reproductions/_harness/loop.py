"""The one loop that trains: it can be killed at any time, and goes on where it stood.

A training is saved every few seconds, at its end, and when it is asked to stop, with everything
that its next step depends on: parameters, optimiser, schedule, random numbers, what the script
notes, and how far it is. Begun again with the same settings it goes on from there, to the same
numbers as one that was never stopped: bit for bit on one CPU thread.

Under `torchrun` the same loop is `DistributedDataParallel` (see `ranks`).
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from _harness import ranks, stopping
from _harness.checkpoints import Checkpoint, State

__all__ = ["Training", "Unfinished", "say"]

_EVERY = 20.0  # seconds between two checkpoints
_TIME_IS_UP = 1  # below the numbers of the signals that stop a training


class Unfinished(Exception):
    """The time of this slice is over; the checkpoints are written."""


class Training:
    """Parameters, their optimiser and schedule, and how far they are.

    `seconds` is time of this process on its processors (by the clock on a GPU), so that neither a
    pause nor other work on the machine counts.

    Args:
        model: What is trained.
        optimiser: Over its parameters.
        loss: Of the tensors of a batch, 0-dim; a mean over their rows, or as good as one.
        schedule: Of the learning rate, stepped once a step.
        checkpoint: Where the state is kept, and taken up; None to keep none.
        name: For messages.
        clip: Largest norm of a gradient.
        generators: Generators of its own that the script draws from.
        warm: Whether the first loss is evaluated twice, and timed once: whatever is compiled is
            compiled in the first.
        until: Time (`time.monotonic`) after which no further step is begun.

    Attributes:
        done: Steps so far.
        seconds: What they took.
        notes: Whatever the script wants to find again, in plain values and tensors.

    Example:
        for step in training.steps(1000):
            loss = training.descend(*draw(batch))
            training.notes["losses"].append(loss)
    """

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        loss: Callable[..., Tensor],
        *,
        schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
        checkpoint: Checkpoint | None = None,
        name: str = "training",
        clip: float | None = None,
        generators: Mapping[str, torch.Generator] | None = None,
        warm: bool = False,
        until: float = math.inf,
    ) -> None:
        """Take up a checkpoint if there is one."""
        self.model, self.optimiser, self.schedule = model, optimiser, schedule
        self.name, self.clip, self.until = name, clip, until
        self.generators = dict(generators or {})
        self.done, self.seconds, self.notes = 0, 0.0, dict[str, Any]()
        self._checkpoint, self._kept, self._warm = checkpoint, time.monotonic(), warm
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        found = None
        if checkpoint is not None:
            found = ranks.shared(checkpoint.load(say) if ranks.rank() == 0 else None)
        if found is not None:
            self.restore(found)
        self._resumed = found is not None
        self._objective: nn.Module = _Objective(model, loss)
        if ranks.world() > 1:
            self._objective = DistributedDataParallel(self._objective)

    def steps(self, until: int) -> Iterator[int]:
        """The numbers of the steps that are still to be done; each is done in the loop's body.

        Args:
            until: Steps in all, those of earlier slices included.

        Raises:
            Unfinished: When the slice's time is over.
            KeyboardInterrupt: After Ctrl-C; and SystemExit after SIGTERM.
        """
        if self._resumed and 0 < self.done < until:
            say(f"{self.name} goes on from step {self.done} of {until}")
        self._resumed = False
        if self.done >= until:
            return
        with stopping.heeded():
            while self.done < until:
                yield self.done
                self.done += 1
                if self.done < until:
                    self._stop_or_keep(until)
        self.keep()

    def descend(self, *batch: Tensor) -> float:
        """One step of the optimiser; returns the loss before it, the mean over all processes.

        Args:
            batch: Tensors whose dimension 0 is the batch, the same in all processes; each takes its
                rows.
        """
        own, weight = ranks.part_of(batch)
        if self._warm:
            self._warm = False
            with torch.random.fork_rng(devices=[]), ranks.own_noise(self.done):
                self._objective(weight, *own).backward()
        began = self._clock()
        with ranks.own_noise(self.done):
            loss = self._objective(weight, *own)
            self.optimiser.zero_grad()
            loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self._parameters, self.clip)
        self.optimiser.step()
        if self.schedule is not None:
            self.schedule.step()
        self.seconds += self._clock() - began
        return ranks.mean(loss)

    def keep(self) -> None:
        """Write the checkpoint."""
        self._kept = time.monotonic()
        if self._checkpoint is not None and ranks.rank() == 0:
            self._checkpoint.save(self.state())

    def state(self) -> State:
        """All that the next step depends on."""
        found: State = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "random": _random_state(),
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            "notes": self.notes,
            "done": self.done,
            "seconds": self.seconds,
        }
        if self.schedule is not None:
            found["schedule"] = self.schedule.state_dict()
        return found

    def restore(self, state: State) -> None:
        """Go on from there, whatever the number of processes was."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name])
        self.done, self.seconds, self.notes = state["done"], state["seconds"], state["notes"]
        _set_random_state(state["random"])

    def _stop_or_keep(self, until: int) -> None:
        late = _TIME_IS_UP if time.monotonic() > self.until else 0
        asked = ranks.agreed(stopping.asked_to_stop() or late)
        if not asked:
            if time.monotonic() - self._kept > _EVERY:
                self.keep()
            return
        self.keep()
        if asked == _TIME_IS_UP:
            raise Unfinished
        saved = "and is saved: the same command goes on from there" if self._checkpoint else ""
        say(f"{self.name} stopped at step {self.done} of {until} {saved}")
        stopping.stop(asked)

    def _clock(self) -> float:
        on_gpu = any(p.is_cuda for p in self._parameters)
        return time.perf_counter() if on_gpu else time.process_time()


class _Objective(nn.Module):
    """The loss as a module: what `DistributedDataParallel` wraps, of which it sees one forward."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, weight: float, *batch: Tensor) -> Tensor:
        loss = self.loss(*batch)
        return loss if weight == 1.0 else weight * loss


def say(text: str) -> None:
    """One line on standard error, by the first process alone."""
    if ranks.rank() == 0:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _random_state() -> State:
    """Of torch, numpy and Python, in plain values."""
    kind, keys, place, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), place, has_gauss, gauss),
        "python": (version, internal, gauss_next),
    }


def _set_random_state(state: State) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
