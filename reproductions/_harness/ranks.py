"""Several processes train one model: what is shared, what is split, and who writes.

`torchrun` starts the processes. All of them draw the same batches, from the same random numbers;
each takes its rows of every batch, and `DistributedDataParallel` averages the gradients. What a
model draws by itself (noise, probes, dropout) is drawn anew by each process for its own rows.

With a single process everything here hands its argument on.

Source:
    Li et al. 2020, PyTorch Distributed (arXiv 2006.15704).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Part", "agreed", "joined", "mean", "own_noise", "part_of", "rank", "shared", "world"]

T = TypeVar("T")


class Part(NamedTuple):
    """One process's rows of a batch.

    Attributes:
        batch: The rows.
        weight: Factor of their mean, so that the mean over processes is that of the whole batch: 1
            for equal parts, and 0 for a process that has no row of its own and takes the first.
    """

    batch: tuple[Tensor, ...]
    weight: float


@contextmanager
def joined() -> Generator[None]:
    """Be one of the processes that `torchrun` started; alone, nothing happens."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
        # gloo's own threads live on, and may still be letting go of the last tensors; one that
        # does so while the interpreter ends aborts the process ("terminate called without ...").
        time.sleep(0.2)


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0; the first one writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def part_of(batch: Sequence[Tensor]) -> Part:
    """This process's rows of a batch that all of them have drawn.

    Args:
        batch: Tensors whose dimension 0 is the same batch.
    """
    n, own, total = len(batch[0]), rank(), world()
    start, stop = n * own // total, n * (own + 1) // total
    if start == stop:  # more processes than rows
        start, stop, weight = 0, 1, 0.0
    else:
        weight = (stop - start) * total / n
    return Part(tuple(x[start:stop] for x in batch), weight)


@contextmanager
def own_noise(step: int) -> Generator[None]:
    """Random numbers of this process alone; the common ones stay as they are, the same for all.

    Args:
        step: Where the training is: other numbers every time, and the same ones again when it is
            resumed.
    """
    if world() == 1:
        yield
        return
    common = torch.get_rng_state().numpy().tobytes() + step.to_bytes(8, "big")
    seed = int.from_bytes(hashlib.sha256(common).digest()[:7], "big")
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed + rank())
        yield


def mean(value: Tensor) -> float:
    """A 0-dim tensor, averaged over the processes."""
    if world() == 1:
        return value.item()
    total = value.detach().to("cpu", torch.float64, copy=True)
    dist.all_reduce(total)
    return float(total) / world()


def agreed(asked: int) -> int:
    """The largest of what the processes ask, so that all stop after the same step."""
    if world() == 1:
        return asked
    largest = torch.tensor(asked)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def shared(value: T) -> T:
    """What the first process has: it alone reads files, whose folder the others may not see."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
