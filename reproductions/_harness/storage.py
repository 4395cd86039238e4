"""What a training step needs beyond its result: peak storage, outputs subtracted."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from ctflow.testing import LiveStorage

__all__ = ["peak_bytes", "without_collector"]


def peak_bytes(run: Callable[[], Sequence[Tensor]]) -> int:
    """Peak storage of a call, less that of the tensors it returns; no garbage collection helps it.

    Args:
        run: What to measure; returns tensors that would be needed in any case.
    """
    with without_collector(), LiveStorage() as storage:
        kept = run()
    return storage.peak - sum(x.untyped_storage().nbytes() for x in kept)


@contextmanager
def without_collector() -> Iterator[None]:
    """Leave reference cycles alone meanwhile, so that a tensor caught in one stays alive."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
