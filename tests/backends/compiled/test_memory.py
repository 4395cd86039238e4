"""What is freed between two evaluations is not given back to the system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_COUNT = """
import resource, torch
from ctflow.backends.compiled.memory import keep_freed_memory

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**20), torch.ones(2**20)  # two buffers of 4 MiB, 1024 pages each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
faults()
print(faults())
"""


def _faults(**environment: str) -> int:
    other = ("MALLOC_", "GLIBC_", "LD_PRELOAD")  # another allocator, or settings of this one
    kept = {k: v for k, v in os.environ.items() if not k.startswith(other)}
    run = subprocess.run(
        [sys.executable, "-c", _COUNT], env=kept | environment, capture_output=True, check=True
    )
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_buffers_are_not_paged_in_again_at_every_call() -> None:
    """Page by page that takes as long as a convolution; what the user set stays in force."""
    assert _faults() < 1024
    assert _faults(MALLOC_MMAP_THRESHOLD_="65536") > 20 * 1024
