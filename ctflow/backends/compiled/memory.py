"""Memory that libraries free between two evaluations stays with the process."""

from __future__ import annotations

from functools import cache

import torch

__all__ = ["keep_freed_memory"]

_LARGEST = 31 * 2**20  # glibc follows blocks of up to 32 MiB


@cache
def keep_freed_memory() -> None:
    """Let the C library keep what is freed, up to some 60 MiB, for the next evaluation.

    glibc gives a large block back to the system when it is freed, until one as large has been freed
    once (mallopt(3), M_MMAP_THRESHOLD: "dynamic mmap threshold"). A convolution's own buffers, of
    which the program knows nothing, come and go with every call, and the system hands out their
    pages one by one, cleared: that takes up to as long as the convolution. So one such block is
    freed here. It is never written to, and costs nothing; a process that ever freed a tensor of
    this size is in the same state. `MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` in the
    environment stay in force, and another C library or allocator takes no notice.
    """
    torch.empty(_LARGEST, dtype=torch.uint8, device="cpu")  # whatever the default device
